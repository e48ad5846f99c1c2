package gateway_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"

	"rockpool/internal/config"
	"rockpool/internal/gateway"
	"rockpool/internal/logging"
	"rockpool/internal/nomad"
	"rockpool/internal/nomad/nomadtest"
	"rockpool/internal/timeline"
)

// starting is an embedded orchestrator that is not ready yet.
type starting struct {
	url   string
	ready chan struct{}
}

func (s starting) URL() string                   { return s.url }
func (s starting) Token() string                 { return "" }
func (s starting) Timeline() *timeline.Recorder  { return nil }
func (s starting) Inside() nomad.Inside          { return nomad.Inside{} }
func (s starting) Ready() <-chan struct{}        { return s.ready }
func (s starting) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func TestAnEmbeddedOrchestratorIsAskedOnceItIsReady(t *testing.T) {
	target, err := url.Parse(nomadtest.New(t).URL)
	if err != nil {
		t.Fatal(err)
	}
	var early atomic.Int32
	s := starting{ready: make(chan struct{})}
	asked := make(chan struct{}, 100)
	through := httputil.NewSingleHostReverseProxy(target)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-s.ready:
		default:
			early.Add(1)
		}
		select {
		case asked <- struct{}{}:
		default:
		}
		through.ServeHTTP(w, r)
	}))
	s.url = proxy.URL
	cfg := config.Default()
	cfg.Server.Port = 0
	g, err := gateway.New(cfg, s, logging.Discard())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	// Health is answered by what runs beside the feed: by then a feed that does not wait has begun.
	resp, err := http.Get("http://" + g.Addr().String() + "/api/v1/health")
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("health while it starts: %d, %v", resp.StatusCode, err)
	}
	close(s.ready)
	<-asked
	if n := early.Load(); n > 0 {
		t.Errorf("it was asked %d times before it was ready", n)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	proxy.Close()
}
