package orchestrator_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/httpapi"
)

// The log of any server is had through any other, by name or as the leader's.
func TestTheLogOfAnotherServer(t *testing.T) {
	p := newPKI(t)
	var all []*fellow
	logs := map[string]logging.Logger{}
	for _, name := range []string{"a", "b", "c"} {
		var join []string
		if len(all) > 0 {
			join = []string{all[0].cfg.Cluster.GossipAddress}
		}
		s := p.server(t, name, 3, join...)
		s.start(t)
		defer s.stop()
		log, feed, err := logging.NewFeed(io.Discard, "info", logging.Text)
		if err != nil {
			t.Fatal(err)
		}
		s.server.SetProcess(httpapi.Process{Log: feed})
		logs[name] = log
		all = append(all, s)
	}
	leaderOf(t, all)
	for _, s := range all {
		until(t, s.cfg.Name+" knows all servers, and which leads", func() bool {
			m, err := s.client(t).Agent().Members()
			leader, of := s.client(t).Status().Leader()
			return err == nil && len(m.Members) == len(all) && of == nil && leader != ""
		})
	}
	ask := func(ctx context.Context, of *fellow, query, token string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, of.http.URL+"/v1/agent/monitor?plain=true&"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Nomad-Token", token)
		resp, err := of.http.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	for _, from := range all {
		for query, of := range map[string]func() string{
			"server_id=a":        func() string { return "a" },
			"server_id=b.global": func() string { return "b" },
			"server_id=leader":   func() string { return leaderOf(t, all).cfg.Name },
			"log_level=info":     func() string { return from.cfg.Name },
		} {
			retried(t, query+" through "+from.cfg.Name, func() error { // the leader may change under way
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				resp := ask(ctx, from, query, "root")
				defer resp.Body.Close()
				for name, log := range logs {
					log.Info("said by " + name)
				}
				line, err := bufio.NewReader(resp.Body).ReadString('\n')
				if writer := of(); err != nil || !strings.Contains(line, "said by "+writer) {
					return fmt.Errorf("%d %q instead of a word of %s, %w", resp.StatusCode, line, writer, err)
				}
				return nil
			})
		}
	}
	for query, c := range map[string]struct {
		token string
		code  int
		text  string
	}{
		"server_id=nobody":           {"root", 404, "no server is called nobody"},
		"server_id=a&log_level=loud": {"root", 400, "Unknown log level: loud"},
		"server_id=b":                {"wrong", 403, ""},
	} {
		retried(t, query, func() error { // only the leader can say that there is no such token, and it may change under way
			resp := ask(t.Context(), leaderOf(t, all), query, c.token)
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != c.code || !strings.Contains(string(b), c.text) {
				return fmt.Errorf("%d %s, %w", resp.StatusCode, b, err)
			}
			return nil
		})
	}
}
