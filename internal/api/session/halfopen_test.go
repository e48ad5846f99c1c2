package session_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/api/session"
	"rockpool/internal/endpoint/endpointtest"
	"rockpool/internal/runner/execution"
)

// served runs one session against a client whose connection is handed to peer after the handshake, and returns the cause that ended the execution.
func served(t *testing.T, run func(ctx context.Context, c execution.Client), peer func(net.Conn)) error {
	t.Helper()
	return servedWith(t, nil, false, run, peer)
}

// servedWith is served with subprotocols, and with patience it lets the client see the connection's end.
func servedWith(t *testing.T, protocols []string, patience bool, run func(ctx context.Context, c execution.Client), peer func(net.Conn)) error {
	t.Helper()
	l := endpointtest.NewListener()
	theirs := l.Dial()
	cause := make(chan error, 1)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := session.Upgrade(w, r, func(_ http.ResponseWriter, _ *http.Request, _ int, err error) { t.Error(err) })
		if err != nil {
			cause <- err
			return
		}
		new(session.Set).Serve(context.WithoutCancel(r.Context()), conn, session.Execution{
			Run: func(ctx context.Context, c execution.Client) execution.Outcome {
				run(ctx, c)
				cause <- context.Cause(ctx)
				return execution.Outcome{Kind: execution.Left}
			},
			Signal: func(context.Context, string) {},
		})
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	dialer := websocket.Dialer{Subprotocols: protocols, NetDial: func(string, string) (net.Conn, error) { return theirs, nil }}
	conn, _, err := dialer.Dial("ws://gateway/", nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan struct{})
	wg.Go(func() { defer close(seen); peer(conn.NetConn()) })
	got := <-cause
	if patience {
		<-seen
	}
	_ = theirs.Close()
	_ = server.Close()
	wg.Wait()
	return got
}

// The other side's machine is gone: nothing is answered any more, and nothing says so.
func TestAHalfOpenConnectionEndsTheExecution(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		cause := served(t,
			func(ctx context.Context, _ execution.Client) { <-ctx.Done() },
			func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }) // bytes are taken, pings are never answered
		if took := time.Since(start); !errors.Is(cause, execution.ErrClientLeft) || took < time.Minute || took > 2*time.Minute {
			t.Errorf("ended after %s with %v", took, cause)
		}
	})
}

// A client that stops reading holds the program back; it costs the queue and no more, and is given up in the end.
func TestAClientThatDoesNotReadCostsBoundedMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const chunk = 4096
		written, gone := 0, make(chan struct{})
		start := time.Now()
		cause := served(t,
			func(ctx context.Context, c execution.Client) {
				defer close(gone)
				data := make([]byte, chunk)
				for i := range data {
					data[i] = 'x'
				}
				for ctx.Err() == nil {
					n, err := c.Stdout.Write(data)
					written += n
					if err != nil {
						return
					}
				}
			},
			func(c net.Conn) {
				_, _ = c.Read(make([]byte, 256)) // the start, and nothing after it
				<-gone
			})
		if took := time.Since(start); !errors.Is(cause, execution.ErrClientLeft) || took > 2*time.Minute {
			t.Errorf("ended after %s with %v", took, cause)
		}
		if written > 100*chunk {
			t.Errorf("%d bytes were taken for a client that does not read", written)
		}
	})
}
