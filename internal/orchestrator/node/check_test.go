package node

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"rockpool/internal/orchestrator/model"
)

func TestChecks(t *testing.T) {
	elsewhere := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere = true }))
	defer other.Close()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/well":
			fmt.Fprintf(w, "%s %s %s", r.Method, r.Header.Get("X-Who"), r.Host)
		case "/moved":
			http.Redirect(w, r, other.URL, http.StatusFound)
		case "/long":
			_, _ = w.Write([]byte(strings.Repeat("x", 1<<20)))
		default:
			http.Error(w, "ill", http.StatusInternalServerError)
		}
	}))
	defer server.Close()
	u, _ := url.Parse(server.URL)
	for _, c := range []struct {
		name   string
		check  model.ServiceCheck
		status int
		output string
		fails  bool
	}{
		{"tcp", model.ServiceCheck{Type: "tcp"}, 0, "nomad: tcp ok", false},
		{"http", model.ServiceCheck{Type: "http", Path: "/well", Method: "POST", Headers: map[string][]string{"X-Who": {"me"}, "Host": {"web"}}}, 200, "POST me web", false},
		{"an error", model.ServiceCheck{Type: "http", Path: "ill"}, 500, "", true},
		{"a redirect is not followed", model.ServiceCheck{Type: "http", Path: "/moved"}, 302, "", true},
		{"a long answer is cut", model.ServiceCheck{Type: "http", Path: "/long"}, 200, strings.Repeat("x", checkOutput), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, output, err := probe(t.Context(), c.check, u.Host)
			if status != c.status || output != c.output || (err != nil) != c.fails {
				t.Errorf("%d %q %v", status, output, err)
			}
		})
	}
	if elsewhere {
		t.Error("a task sent the node to another address")
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	if _, _, err := probe(t.Context(), model.ServiceCheck{Type: "tcp"}, closed.Addr().String()); err == nil {
		t.Error("a closed port is well")
	}
}

func TestAChecksAddressIsTheAllocationsOwn(t *testing.T) {
	r := &allocRunner{alloc: &model.Allocation{Resources: model.AllocatedResources{Ports: []model.AllocatedPort{{Label: "http", Value: 20001, To: 80, HostIP: "192.0.2.7"}}}}}
	for _, c := range []struct{ label, inside, want string }{
		{"http", "", "192.0.2.7:20001"}, {"http", "172.30.64.9", "172.30.64.9:80"}, {"8080", "172.30.64.9", "172.30.64.9:8080"}, {"8080", "", ""}, {"none", "172.30.64.9", ""},
	} {
		r.networkStatus = nil
		if c.inside != "" {
			r.networkStatus = &model.NetworkStatus{Address: c.inside}
		}
		// The address that the service is registered with may be anybody's.
		got, err := r.checked(&model.Service{PortLabel: c.label, Address: "169.254.169.254"}, model.ServiceCheck{})
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s with %q: %q %v", c.label, c.inside, got, err)
		}
	}
}

func TestHealthNeedsPassingChecks(t *testing.T) {
	at := time.Unix(1000, 0)
	h := &healthTracker{checks: true, least: 10 * time.Second, deadline: time.Minute}
	parts := map[string]part{"a": {phaseMain, &model.TaskState{State: model.TaskRunning, StartedAt: at.UnixNano()}}}
	for _, step := range []struct {
		after   time.Duration
		passing bool
		healthy *bool
	}{
		{0, false, nil}, {20 * time.Second, true, nil}, {25 * time.Second, false, nil}, {30 * time.Second, true, nil}, {39 * time.Second, true, nil}, {40 * time.Second, true, new(true)},
	} {
		got, again := h.judge(at.Add(step.after), parts, step.passing)
		if (got == nil) != (step.healthy == nil) || got != nil && *got != *step.healthy {
			t.Errorf("after %v: %v", step.after, got)
		}
		if got == nil && again.Before(at.Add(step.after)) {
			t.Errorf("after %v it looks again at %v", step.after, again)
		}
	}
	h = &healthTracker{checks: true, least: 10 * time.Second, deadline: time.Minute}
	_, again := h.judge(at, parts, false)
	if got, _ := h.judge(again, parts, false); got == nil || *got {
		t.Errorf("at its deadline: %v", got)
	}
}
