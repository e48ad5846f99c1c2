package httpapi_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"

	"rockpool/internal/orchestrator/httpapi"
)

// limitedServer serves h under limits.
func limitedServer(t *testing.T, l *httpapi.Limiter, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(l.Handler(h))
	s.Listener = l.Listen(s.Listener)
	s.Config.ConnContext = l.Context
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func TestStreamsLeaveRoomForRequests(t *testing.T) {
	var refused int
	var mu sync.Mutex
	l := httpapi.NewLimiter(httpapi.Limits{Conns: 1, Streams: 2}, func() { mu.Lock(); refused++; mu.Unlock() })
	end := make(chan struct{})
	s := limitedServer(t, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/event/stream" {
			_ = http.NewResponseController(w).Flush()
			<-end
		}
		_, _ = io.WriteString(w, "ok")
	}))
	get := func(path string) (*http.Response, error) {
		// A connection of its own, that stays open until its answer is read.
		return (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(s.URL + path)
	}
	var streams []*http.Response
	for range 2 {
		r, err := get("/v1/event/stream")
		if err != nil || r.StatusCode != 200 {
			t.Fatalf("a stream within the limit: %v, %v", r, err)
		}
		streams = append(streams, r)
	}
	if r, err := get("/v1/jobs"); err != nil || r.StatusCode != 200 {
		t.Errorf("a request beside streams: %v, %v", r, err)
	}
	r, err := get("/v1/event/stream")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(r.Body)
	if r.StatusCode != 429 || r.Header.Get("Retry-After") == "" || !strings.Contains(string(text), "concurrent connections") {
		t.Errorf("a stream beyond the limit: %d %q", r.StatusCode, text)
	}
	close(end)
	for _, r := range streams {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
	}
	mu.Lock()
	defer mu.Unlock()
	if refused != 1 {
		t.Errorf("%d refusals were counted", refused)
	}
}

func TestConnectionsBeyondTheLimitAreToldSo(t *testing.T) {
	l := httpapi.NewLimiter(httpapi.Limits{Conns: 1}, nil)
	s := limitedServer(t, l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	idle, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ask := func() int {
		t.Helper()
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := c.Get(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		return r.StatusCode
	}
	// The idle connection was accepted before the next one is.
	if status := ask(); status != 429 {
		t.Errorf("a second connection got %d", status)
	}
	if err := idle.Close(); err != nil {
		t.Fatal(err)
	}
	for l.Open() > 0 { // until the server has seen the end
		runtime.Gosched()
	}
	if status := ask(); status != 200 {
		t.Errorf("after the first has ended the second got %d", status)
	}
}

// A header that anybody can send does not have a request counted as a stream, which there may be more of.
func TestAnUpgradeThatNobodyTakesCountsAsARequest(t *testing.T) {
	l := httpapi.NewLimiter(httpapi.Limits{Conns: 1, Streams: 100}, nil)
	entered, end := make(chan struct{}, 1), make(chan struct{})
	s := limitedServer(t, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("wait") {
			entered <- struct{}{}
			<-end
		}
		_, _ = io.WriteString(w, "ok")
	}))
	ask := func(path string) int {
		r, err := http.NewRequest(http.MethodGet, s.URL+path, nil)
		if err != nil {
			t.Error(err)
			return 0
		}
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", "websocket")
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
		if err != nil {
			t.Error(err)
			return 0
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	var first sync.WaitGroup
	first.Go(func() {
		if status := ask("/v1/jobs?index=7&wait=10m"); status != 200 {
			t.Errorf("the first got %d", status)
		}
	})
	<-entered
	for _, path := range []string{"/v1/jobs", "/v1/allocations", "/v1/client/allocation/x/stats", "/v1/var/exec"} {
		if status := ask(path); status != 429 {
			t.Errorf("%s beside another request got %d", path, status)
		}
	}
	if status := ask("/v1/client/allocation/x/exec"); status != 200 {
		t.Errorf("an execution beside a request got %d", status)
	}
	close(end)
	first.Wait()
}
