package orchestrator_test

import (
	"bufio"
	"context"
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
	leader := leaderOf(t, all)
	for _, s := range all {
		until(t, s.cfg.Name+" knows all servers", func() bool {
			m, err := s.client(t).Agent().Members()
			return err == nil && len(m.Members) == len(all)
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
		for query, writer := range map[string]string{"server_id=a": "a", "server_id=b.global": "b", "server_id=leader": leader.cfg.Name, "log_level=info": from.cfg.Name} {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			resp := ask(ctx, from, query, "root")
			for name, log := range logs {
				log.Info("said by " + name)
			}
			line, err := bufio.NewReader(resp.Body).ReadString('\n')
			if err != nil || !strings.Contains(line, "said by "+writer) {
				t.Errorf("%s through %s: %d %q, %v", query, from.cfg.Name, resp.StatusCode, line, err)
			}
			cancel()
			_ = resp.Body.Close()
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
		resp := ask(t.Context(), all[2], query, c.token)
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != c.code || !strings.Contains(string(b), c.text) {
			t.Errorf("%s: %d %s, %v", query, resp.StatusCode, b, err)
		}
	}
}
