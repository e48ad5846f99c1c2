package httpapi_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"rockpool/internal/metrics"
	"rockpool/internal/orchestrator/httpapi"
)

func TestAnAgentWithoutAServer(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Nomad-Token") != "good" {
			http.Error(w, "Permission denied", http.StatusForbidden)
			return
		}
		_, _ = io.WriteString(w, "server "+r.Method+" "+r.URL.RequestURI())
	}))
	t.Cleanup(server.Close)
	registered := false
	edge, err := httpapi.NewEdge(httpapi.EdgeConfig{
		Servers: []string{"http://127.0.0.1:1", server.URL}, Transport: http.DefaultTransport, NodeID: "n-1", Name: "n", Registered: func() bool { return registered },
		Process: httpapi.Process{Metrics: metrics.New(nil), Config: func() map[string]any { return map[string]any{"log_level": "INFO"} }},
	})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, path, token string) (int, string) {
		r := httptest.NewRequest(method, path, nil)
		r.Header.Set("X-Nomad-Token", token)
		w := httptest.NewRecorder()
		edge.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	if code, text := ask("GET", "/v1/agent/health", ""); code != 500 || !strings.Contains(text, "do not know the node") {
		t.Errorf("health before registration: %d %s", code, text)
	}
	registered = true
	if code, text := ask("GET", "/v1/jobs", "good"); code != 500 || text != "No server answered\n" {
		t.Errorf("a server that is not there: %d %s", code, text) // the next request goes to the next one
	}
	for _, c := range []struct {
		method, path, token string
		code                int
		want                string
	}{
		{"GET", "/v1/agent/health", "", 200, `"ok":true`},
		{"PUT", "/v1/jobs?namespace=x", "good", 200, "server PUT /v1/jobs?namespace=x"},
		{"GET", "/v1/jobs", "bad", 403, "Permission denied"},
		{"GET", "/v1/agent/host", "good", 200, "server GET /v1/agent/host?node_id=n-1"}, // which comes back over the connection
		{"GET", "/v1/agent/pprof/heap?debug=1", "good", 200, "server GET /v1/agent/pprof/heap?debug=1&node_id=n-1"},
		{"GET", "/v1/agent/monitor?server_id=one", "good", 200, "server GET /v1/agent/monitor?server_id=one"},
		{"GET", "/v1/agent/monitor?node_id=n-2", "good", 200, "server GET /v1/agent/monitor?node_id=n-2"},
		{"GET", "/v1/agent/self", "bad", 403, "Permission denied"},
		{"GET", "/v1/agent/self", "good", 200, `"node_id":"n-1"`},
		{"GET", "/v1/agent/self", "good", 200, `"log_level":"INFO"`},
		{"GET", "/v1/metrics", "bad", 403, "Permission denied"},
		{"GET", "/v1/metrics", "good", 200, `"Gauges":[`},
		{"GET", "/v1/metrics?format=prometheus", "good", 200, "rockpool_metrics_dropped 0"},
	} {
		if code, text := ask(c.method, c.path, c.token); code != c.code || !strings.Contains(text, c.want) {
			t.Errorf("%s %s as %q: %d %s", c.method, c.path, c.token, code, text)
		}
	}
}

func TestAnAgentWithoutAServerFollowsTheServers(t *testing.T) {
	answering := func(name string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) }))
		t.Cleanup(s.Close)
		return s.URL
	}
	given, later := answering("given"), answering("later")
	var known []string
	edge, err := httpapi.NewEdge(httpapi.EdgeConfig{Servers: []string{given}, Known: func() []string { return known }, Transport: http.DefaultTransport})
	if err != nil {
		t.Fatal(err)
	}
	ask := func() string {
		w := httptest.NewRecorder()
		edge.ServeHTTP(w, httptest.NewRequest("GET", "/v1/jobs", nil))
		return w.Body.String()
	}
	if got := ask(); got != "given" {
		t.Errorf("before it was told of others: %q", got)
	}
	if known = []string{later}; ask() != "later" {
		t.Error("the server that it was told of is not asked")
	}
	if known = []string{"http://127.0.0.1:1", "no address"}; ask() != "No server answered\n" || ask() != "given" {
		t.Error("when none of those answers, the given one is not asked")
	}
}
