package runner

import (
	"context"
	"fmt"
	"time"

	"rockpool/internal/fault"
)

// keyTime is how long after a claim the same key gives the same runner.
const keyTime = 24 * time.Hour

// attempt is a claim under a key that is under way.
type attempt struct {
	request string
	done    chan struct{} // closed at its end
	runner  *Runner
	err     error
	left    bool // its client left, which says nothing to others
}

// request is what a claim asks for. Waiting does not change what is had.
func (c Claim) request() string { return fmt.Sprintf("%d/%d", c.Env, c.Timeout/time.Second) }

// claimOnce hands out one runner for all claims under a key, as long as it lives. Memory is bounded by the runners that are used and by the
// requests under way.
func (m *Manager) claimOnce(ctx context.Context, c Claim) (*Runner, how, error) {
	request := c.request()
	for {
		now := time.Now()
		m.mu.Lock()
		r := m.keys[c.Key]
		if r != nil && now.Sub(r.mark.At) > keyTime {
			delete(m.keys, c.Key)
			r = nil
		}
		asked := ""
		if r != nil {
			asked = r.mark.Request
		}
		a, busy := m.attempts[c.Key]
		if r == nil && !busy {
			a = &attempt{request: request, done: make(chan struct{})}
			m.attempts[c.Key] = a
		} else if r == nil {
			asked = a.request
		}
		m.mu.Unlock()
		switch {
		case asked != "" && asked != request:
			return nil, 0, errOtherRequest()
		case r != nil:
			return r, repeated, nil
		case !busy:
			return m.attempt(ctx, c, a, now)
		}
		select {
		case <-a.done:
		case <-ctx.Done():
			return nil, 0, fault.Wrap(fault.Unavailable, context.Cause(ctx), "the request for a runner was given up")
		}
		if !a.left {
			return a.runner, repeated, a.err
		}
	}
}

func (m *Manager) attempt(ctx context.Context, c Claim, a *attempt, now time.Time) (r *Runner, by how, err error) {
	a.err = errBroken // for those who wait, should this not come to its end
	defer func() {
		m.mu.Lock()
		delete(m.attempts, c.Key)
		m.mu.Unlock()
		close(a.done)
	}()
	mark := c.mark()
	mark.Key, mark.Request, mark.At = c.Key, a.request, now.Truncate(time.Second)
	if m.opts.Shared == nil {
		a.runner, by, a.err = m.claim(ctx, c, mark, nil)
	} else {
		a.runner, by, a.err = m.claimAgreed(ctx, c, mark)
	}
	a.left = a.err != nil && ctx.Err() != nil
	return a.runner, by, a.err
}

func errOtherRequest() error {
	return fault.New(fault.Invalid, "the Idempotency-Key was used for another request: take a new key, or repeat the request as it was")
}

var errBroken = fault.New(fault.Internal, "an internal error occurred: repeat the request")

// mark notes how a runner was claimed. The lock is held.
func (m *Manager) mark(r *Runner, k Mark) {
	if k.Key == "" || r.mark.Key != "" {
		return
	}
	r.mark = k
	if m.keys[k.Key] == nil {
		m.keys[k.Key] = r
	}
}
