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

	mu      sync.Mutex
	place   execution.Place
	ports   []Port
	timeout time.Duration
	gateway string      // that claimed it, where there are several
	used    time.Time   // last through this gateway
	timer   *time.Timer // nil = it does not expire, or another gateway watches over it
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
	r.used = time.Now()
	if r.timer != nil && r.cause == nil {
		r.timer.Reset(r.timeout)
	}
}

// again has the timer fire after d, unless it rests.
func (r *Runner) again(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil && r.cause == nil {
		r.timer.Reset(d)
	}
}

// idle is since when it was not used through this gateway, and after how long it expires.
func (r *Runner) idle() (since, timeout time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(r.used), r.timeout
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
	if r.timer != nil {
		r.timer.Stop()
	}
	if timeout > 0 && r.cause == nil {
		r.timer = time.AfterFunc(timeout, expired)
	}
}

// watched reports whether its timer runs.
func (r *Runner) watched() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.timer != nil
}

// rest stops the inactivity timer. The runner goes on.
func (r *Runner) rest() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
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
