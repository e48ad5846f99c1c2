package httpapi

import (
	"context"
	"sync"

	"rockpool/internal/fault"
)

// tracker knows the long answers under way, which an http.Server does not wait for.
type tracker struct {
	mu     sync.Mutex
	open   int           // guarded by mu
	closed bool          // guarded by mu
	idle   chan struct{} // guarded by mu; closed when closed and open is 0
}

// begin counts a long answer. Its context ends with the request's or with stop.
func (t *tracker) begin(ctx, stop context.Context) (context.Context, func(), error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, nil, fault.New(fault.Unavailable, "the server is shutting down")
	}
	t.open++
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(stop, cancel)
	return ctx, func() {
		unhook()
		cancel()
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.open--; t.open == 0 && t.closed {
			close(t.idle)
		}
	}, nil
}

// wait refuses new ones and returns when the last has ended.
func (t *tracker) wait(ctx context.Context) error {
	t.mu.Lock()
	t.closed = true
	t.idle = make(chan struct{})
	if t.open == 0 {
		close(t.idle)
	}
	idle := t.idle
	t.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
