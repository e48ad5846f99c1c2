package link_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/link"
)

// pipes are servers that a node reaches over pipes.
type pipes struct {
	hub *link.Hub

	mu      sync.Mutex
	addrs   []string
	changed chan struct{}
	dials   map[string]int
	refuse  error
	serving sync.WaitGroup
	open    []net.Conn
}

func newPipes(addrs ...string) *pipes {
	return &pipes{hub: link.NewHub(), addrs: addrs, changed: make(chan struct{}), dials: map[string]int{}}
}

func (p *pipes) Servers() ([]string, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addrs, p.changed
}

func (p *pipes) Connect(_ context.Context, addr string) (io.ReadWriteCloser, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dials[addr]++
	if p.refuse != nil {
		return nil, p.refuse
	}
	here, there := net.Pipe()
	p.open = append(p.open, here)
	p.serving.Go(func() { _ = p.hub.Serve(context.Background(), "node-"+addr, there) })
	return here, nil
}

func (p *pipes) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// keep runs a node until the returned function is called.
func (p *pipes) keep(h http.Handler) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = link.Keep(ctx, p, h, logging.Discard()) })
	return func() { cancel(); wg.Wait(); p.serving.Wait() }
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: did not come true", what)
		}
	}
}

// server is what clients speak to: it passes everything on to one node.
func (p *pipes) server(node string) *httptest.Server {
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, err := p.hub.To(node)
		if err != nil {
			http.Error(w, fault.Public(err), fault.KindOf(err).Status())
			return
		}
		h.ServeHTTP(w, r)
	}))
}

func TestRequestsGoOverTheNodesOwnConnection(t *testing.T) {
	defer goleak.VerifyNone(t)
	gone := make(chan struct{}, 1)
	p := newPipes("a")
	defer p.keep(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case link.ProbePath:
		case "/echo":
			_, _ = io.Copy(w, r.Body)
		case "/forever":
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			gone <- struct{}{}
		case "/half":
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("half"))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "/upgrade":
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")
			line, _ := rw.ReadString('\n')
			_, _ = io.WriteString(c, "got "+line)
		}
	}))()
	eventually(t, "connected", func() bool { return len(p.hub.Nodes()) == 1 })
	if err := p.hub.Probe(t.Context(), "node-a"); err != nil {
		t.Error(err)
	}
	if err := p.hub.Probe(t.Context(), "node-b"); !errors.Is(err, link.ErrNoPath) {
		t.Errorf("another node: %v", err)
	}
	s := p.server("node-a")
	defer s.Close()
	client := s.Client()

	text := strings.Repeat("a long body ", 100_000)
	resp, err := client.Post(s.URL+"/echo", "text/plain", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || string(got) != text {
		t.Errorf("%d bytes of %d, %v", len(got), len(text), err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, "GET", s.URL+"/forever", nil)
	if resp, err = client.Do(r); err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Error("the node goes on with a request whose client has left")
	}

	if resp, err = client.Get(s.URL + "/half"); err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("half an answer looks complete")
	}

	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")
	in := bufio.NewReader(conn)
	if resp, err = http.ReadResponse(in, nil); err != nil || resp.StatusCode != 101 {
		t.Fatalf("%+v %v", resp, err)
	}
	fmt.Fprint(conn, "hello\n")
	if line, _ := in.ReadString('\n'); line != "got hello\n" {
		t.Errorf("%q", line)
	}
	client.CloseIdleConnections()
}

func TestANodeConnectsAgainAndToNewServers(t *testing.T) {
	defer goleak.VerifyNone(t)
	p := newPipes("a")
	defer p.keep(http.NotFoundHandler())()
	eventually(t, "connected", func() bool { return len(p.hub.Nodes()) == 1 })
	p.set(func() { _ = p.open[0].Close() })
	eventually(t, "connected again", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.dials["a"] == 2
	})
	p.set(func() {
		p.addrs = []string{"b"}
		close(p.changed)
		p.changed = make(chan struct{})
	})
	eventually(t, "the old server left, the new one found", func() bool {
		n := p.hub.Nodes()
		return len(n) == 1 && n[0] == "node-b"
	})
}

func TestAServerThatNeedsNoConnectionIsLeftAlone(t *testing.T) {
	defer goleak.VerifyNone(t)
	p := newPipes("a")
	p.refuse = fault.New(fault.Conflict, "the node is in this server's process")
	stop := p.keep(http.NotFoundHandler())
	eventually(t, "asked", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.dials["a"] > 0
	})
	stop()
	if p.dials["a"] != 1 {
		t.Errorf("asked %d times", p.dials["a"])
	}
}
