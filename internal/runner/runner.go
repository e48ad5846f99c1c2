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
	Owner      string // who claimed it; "" = nobody in particular
	Executions execution.Store

	mu      sync.Mutex
	place   execution.Place
	ports   []Port
	timeout time.Duration
	gateway string      // that claimed it, where there are several
	timer   *time.Timer // nil = it does not expire, or another gateway watches over it
	claimed time.Time   // or found, after a restart
	touched time.Time   // last used through this gateway
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
	r.touched = time.Now()
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
	return time.Since(r.touched), r.timeout
}

// Times are when it was claimed, or found after a restart, its inactivity timeout, and what is left of that now: -1 s where it never
// expires here.
func (r *Runner) Times(now time.Time) (claimed time.Time, timeout, left time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer == nil {
		return r.claimed, r.timeout, -time.Second
	}
	return r.claimed, r.timeout, max(r.timeout-now.Sub(r.touched), 0)
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
	r.timeout, r.touched = timeout, time.Now()
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
