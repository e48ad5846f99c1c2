package orchestrator_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/inspect"
	"rockpool/internal/orchestrator/node/serve"
)

func TestAnOperatorLooksAtANodesProcessThroughAServer(t *testing.T) {
	c := bootstrapped(t, orchestrator.ServerConfig{})
	m := newModelNode()
	n := c.join(m)
	log, feed, err := logging.NewFeed(io.Discard, "info", logging.Text)
	if err != nil {
		t.Fatal(err)
	}
	process := inspect.Process{Name: "the node's agent", Log: feed, Profiles: true}
	cut := c.connect(m, serve.New(&agent{id: n.id}, nil, process, nil))
	c.policy("watcher", `agent { policy = "read" }`)
	c.policy("operator", `operator { policy = "write" }`)
	watcher, operator := c.tokenOf("watcher"), c.tokenOf("operator")
	ask := func(ctx context.Context, path, token string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, "GET", c.http.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Nomad-Token", token)
		resp, err := c.http.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	of := "node_id=" + n.id
	for _, x := range []struct {
		path, token string
		status      int
		want        string
	}{
		{"/v1/agent/host?" + of, operator.SecretID, 200, `"AgentID":"the node's agent"`},
		{"/v1/agent/host?" + of, watcher.SecretID, 403, "Permission denied"},
		{"/v1/agent/pprof/goroutine?debug=1&" + of, operator.SecretID, 200, "goroutine profile"},
		{"/v1/agent/pprof/goroutine?debug=1&" + of, watcher.SecretID, 403, "Permission denied"},
		{"/v1/agent/pprof/nothing?" + of, operator.SecretID, 404, "Unknown profile: nothing"},
		{"/v1/agent/monitor?" + of, operator.SecretID, 403, "Permission denied"},
		{"/v1/agent/monitor?log_level=loud&" + of, watcher.SecretID, 400, "Unknown log level: loud"},
		{"/v1/agent/monitor?server_id=one&" + of, watcher.SecretID, 400, "either a node or a server"},
		{"/v1/agent/monitor?node_id=nobody", watcher.SecretID, 404, "Unknown node"},
	} {
		resp := ask(t.Context(), x.path, x.token)
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != x.status || !strings.Contains(string(b), x.want) {
			t.Errorf("%s: %d %.200s, %v", x.path, resp.StatusCode, b, err)
		}
	}

	// The log comes as it is written, and ends with the right to it.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	resp := ask(ctx, "/v1/agent/monitor?plain=true&"+of, watcher.SecretID)
	defer resp.Body.Close()
	log.Info("a word of the node")
	lines := bufio.NewReader(resp.Body)
	if line, err := lines.ReadString('\n'); err != nil || !strings.Contains(line, "a word of the node") {
		t.Fatalf("%q, %v", line, err)
	}
	if _, err := c.api.ACLTokens().Delete(watcher.AccessorID, nil); err != nil {
		t.Fatal(err)
	}
	for err = nil; err == nil; {
		_, err = lines.ReadBytes('\n')
	}
	if ctx.Err() != nil {
		t.Error("the log goes on though the token was deleted")
	}

	cut()
	eventually(t, "the server knows that the node is gone", func() bool { return len(c.server.Nodes().Nodes()) == 0 })
	resp = ask(t.Context(), "/v1/agent/host?"+of, operator.SecretID)
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 404 || !bytes.Contains(b, []byte("No path to node")) {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
}
