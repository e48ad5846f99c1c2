package runner

import (
	"context"
	"sync"
	"time"

	"rockpool/internal/environment"
	"rockpool/internal/runner/execution"
)

// Runner is a claimed runner.
type Runner struct {
	ID         string
	Env        environment.ID
	Executions execution.Store

	mark Mark // guarded by the manager's lock

	mu      sync.Mutex
	place   execution.Place
	ports   []Port
	timeout time.Duration
	timer   *time.Timer // nil = never expires
	cause   error       // why it ended; nil = it lives
	bound   map[*context.CancelCauseFunc]struct{}
}

// Place is where its programs are started.
func (r *Runner) Place() execution.Place {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.place
}

// Ports are its mapped ports.
func (r *Runner) Ports() []Port {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ports
}

// Touch restarts the inactivity timer.
func (r *Runner) Touch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil && r.cause == nil {
		r.timer.Reset(r.timeout)
	}
}

// Bind returns a context that also ends with the runner, and has the reason as its cause.
func (r *Runner) Bind(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	key := &cancel
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cause != nil {
		cancel(r.cause)
		return ctx, func() {}
	}
	if r.bound == nil {
		r.bound = map[*context.CancelCauseFunc]struct{}{}
	}
	r.bound[key] = struct{}{}
	return ctx, func() {
		r.mu.Lock()
		delete(r.bound, key)
		r.mu.Unlock()
		cancel(context.Canceled)
	}
}

// start begins the inactivity timer.
func (r *Runner) start(timeout time.Duration, expired func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.timeout = timeout
	if timeout > 0 && r.cause == nil {
		r.timer = time.AfterFunc(timeout, expired)
	}
}

// rest stops the inactivity timer. The runner goes on.
func (r *Runner) rest() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
	}
}

// end is the runner's one end, and reports whether it was; later causes are ignored.
func (r *Runner) end(cause error) bool {
	r.mu.Lock()
	if r.cause != nil {
		r.mu.Unlock()
		return false
	}
	r.cause = cause
	if r.timer != nil {
		r.timer.Stop()
	}
	bound := r.bound
	r.bound = nil
	r.mu.Unlock()
	for cancel := range bound {
		(*cancel)(cause)
	}
	return true
}

func (r *Runner) update(s Seen) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.Place.AllocID != "" {
		r.place, r.ports = s.Place, s.Ports
	}
}
