package load_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"rockpool/tests/load"
)

// Calls one after the other share a connection, calls at the same time do not, and each has its own answer, whatever its status.
func TestAClientKeepsItsConnections(t *testing.T) {
	var made atomic.Int64
	var meet sync.WaitGroup
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/together":
			meet.Done()
			meet.Wait()
		case "/last":
			w.Header().Set("Connection", "close")
		}
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.Path, body)
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			made.Add(1)
		}
	}
	s.Start()
	defer s.Close()
	c, err := load.NewClient(t.Context(), s.URL)
	if err != nil {
		t.Fatal(err)
	}
	call := func(path, body string) {
		t.Helper()
		status, answer, err := c.Do(http.MethodPut, path, []byte(body))
		if want := "PUT " + path + " " + body; status != http.StatusTeapot || string(answer) != want || err != nil {
			t.Errorf("%d %.50q, not %.50q, %v", status, answer, want, err)
		}
	}
	long := strings.Repeat("x", 1<<20)
	for _, step := range []struct {
		path string
		at   int // calls at once
		made int64
	}{{"/one", 1, 1}, {"/two", 1, 1}, {"/together", 3, 3}, {"/last", 1, 3}, {"/one", 1, 3}, {"/together", 3, 4}} {
		if step.path == "/together" {
			meet.Add(step.at)
		}
		var wg sync.WaitGroup
		for range step.at {
			wg.Go(func() { call(step.path, long) })
		}
		wg.Wait()
		if made.Load() != step.made {
			t.Errorf("after %s there were %d connections, not %d", step.path, made.Load(), step.made)
		}
	}
}

func TestAClientEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}))
	defer s.Close()
	c, err := load.NewClient(ctx, s.URL)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // under way, and begun later
		if status, answer, err := c.Do(http.MethodGet, "/", nil); err == nil {
			t.Errorf("%d %s", status, answer)
		}
	}
	for _, url := range []string{"", "https://127.0.0.1:1", "http://127.0.0.1", "http://127.0.0.1:1/v1"} {
		if _, err := load.NewClient(ctx, url); err == nil {
			t.Errorf("%q is no address", url)
		}
	}
}
