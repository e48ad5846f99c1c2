package gateway

import (
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/config"
	"rockpool/internal/endpoint/endpointtest"
	"rockpool/internal/logging"
)

// A client that takes its time costs a connection for a bounded time only: 15 s for a header, 60 s for nothing at all after an answer.
func TestSlowClientsAreLetGo(t *testing.T) {
	const answer = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
	for name, c := range map[string]struct {
		first, piece string // piece is sent each second
		within       time.Duration
		answered     bool
	}{
		"nothing":               {"", "", 15 * time.Second, false},
		"half a line":           {"GET /api", "", 15 * time.Second, false},
		"a header a second":     {"GET / HTTP/1.1\r\nHost: h\r\n", "X: y\r\n", 15 * time.Second, false},
		"rest after an answer":  {answer, "", 60 * time.Second, true},
		"half a second request": {answer + "GET /", "", 15 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				open := newConnections(config.Server{}, func() {}, logging.Discard())
				g := &Gateway{cfg: config.Default(), log: logging.Discard()}
				served := 0
				server := g.server(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { served++; w.WriteHeader(http.StatusNoContent) }), open)
				l := endpointtest.NewListener()
				theirs := l.Dial()
				var wg sync.WaitGroup
				wg.Go(func() { _ = server.Serve(open.limit(l)) })
				began := time.Now()
				over := make(chan struct{})
				wg.Go(func() {
					_, err := io.WriteString(theirs, c.first)
					for err == nil {
						select {
						case <-time.After(time.Second):
							if c.piece != "" {
								_, err = io.WriteString(theirs, c.piece)
							}
						case <-over:
							return
						}
					}
				})
				_, _ = io.Copy(io.Discard, theirs) // until it is closed
				if took := time.Since(began); took < c.within || took > c.within+time.Second || (served == 1) != c.answered {
					t.Errorf("it was closed after %v with %d requests served, want %v", took, served, c.within)
				}
				close(over)
				_ = theirs.Close()
				_ = server.Close()
				wg.Wait()
				synctest.Wait()
				open.mu.Lock()
				defer open.mu.Unlock()
				if open.open != 0 || len(open.by) != 0 {
					t.Errorf("%d connections are counted at the end, of %v", open.open, open.by)
				}
			})
		})
	}
}
