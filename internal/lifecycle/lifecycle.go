// Package lifecycle starts and stops long-lived services, and is the only place with a bare go statement.
//
// A service is a function Run(ctx) error that returns when its context ends and everything it started has ended. Services of
// a group start in order and stop in reverse, each awaited under a deadline of its own before the next one is told to stop,
// so that a server always ends before what it depends on.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// Service is one long-lived part of a program.
type Service struct {
	Name string
	Run  func(ctx context.Context) error
	// Grace bounds how long the service may take to return once its context has ended. 0 = 10 s.
	Grace time.Duration
}

// ErrStuck is returned, wrapped with the service's name, when a service did not return within its grace.
var ErrStuck = errors.New("did not stop in time")

// Run starts the services in order and returns when ctx ends or one of them returns, after all have been stopped in reverse
// order. A service that returns nil before it was told to stop ends the group too. The errors of all are joined.
func Run(ctx context.Context, services ...Service) error {
	type running struct {
		Service
		cancel context.CancelFunc
		done   chan struct{}
		err    error
	}
	first := make(chan struct{})
	var once sync.Once
	all := make([]*running, 0, len(services))
	for _, s := range services {
		// Not derived from ctx: each is cancelled in its turn.
		sctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		r := &running{Service: s, cancel: cancel, done: make(chan struct{})}
		all = append(all, r)
		go func() {
			defer close(r.done)
			defer once.Do(func() { close(first) })
			r.err = Guard(func() error { return s.Run(sctx) })
		}()
	}
	select {
	case <-ctx.Done():
	case <-first:
	}
	var errs []error
	for i := len(all) - 1; i >= 0; i-- {
		r := all[i]
		r.cancel()
		grace := r.Grace
		if grace == 0 {
			grace = 10 * time.Second
		}
		t := time.NewTimer(grace)
		select {
		case <-r.done:
			if r.err != nil && !errors.Is(r.err, context.Canceled) {
				errs = append(errs, fmt.Errorf("%s: %w", r.Name, r.err))
			}
		case <-t.C:
			errs = append(errs, fmt.Errorf("%s: %w", r.Name, ErrStuck))
		}
		t.Stop()
	}
	return errors.Join(errs...)
}

// Guard calls f and turns a panic into an error with its stack.
func Guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}

// Tasks is a set of goroutines that come and go, such as connections. The zero value is ready for use.
type Tasks struct {
	mu     sync.Mutex
	wg     sync.WaitGroup
	closed bool
}

// Go runs f in a goroutine of the set and reports whether it was started: after Wait has been called, nothing starts.
func (t *Tasks) Go(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		f()
	}()
	return true
}

// Do runs f in the caller's own goroutine, as one of the set, and reports whether it did: after Wait has been called, nothing starts.
func (t *Tasks) Do(f func()) bool {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return false
	}
	t.wg.Add(1)
	t.mu.Unlock()
	defer t.wg.Done()
	f()
	return true
}

// Wait refuses new goroutines and waits for those that run, or for ctx.
func (t *Tasks) Wait(ctx context.Context) error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	done := make(chan struct{})
	go func() { t.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for goroutines: %w", context.Cause(ctx))
	}
}
