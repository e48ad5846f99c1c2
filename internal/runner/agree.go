package runner

import (
	"context"
	"errors"
	"time"

	"rockpool/internal/fault"
)

// Agreed is the runner that a key of a claim stands for, among all gateways.
type Agreed struct {
	Runner  string
	Request string // what was asked for
	Gateway string // that claims it
	Index   uint64 // of the last change; 0 = the key stands for nothing
}

// Keys are where gateways agree on the runner of a key before any of them claims it. Calls return within the deadline of their context.
type Keys interface {
	Agreed(ctx context.Context, key string) (Agreed, error)
	// Agree has the key stand for a runner unless somebody has changed it since a.Index; false = somebody has.
	Agree(ctx context.Context, key string, a Agreed) (index uint64, ok bool, err error)
	// Standing is how the cluster has a runner; there = false: it has none of that id.
	Standing(ctx context.Context, id string) (used bool, m Mark, there bool, err error)
}

// Times of an agreement.
const (
	agreeAgain = 10 * time.Millisecond  // before it is looked again what another gateway made of it; twice as long each time,
	agreeMost  = 250 * time.Millisecond // up to this
	agreeTime  = callTime + 2*time.Second
)

// errDisagreed says that another gateway was faster to say what a key stands for.
var errDisagreed = errors.New("the key stands for another runner")

// progress is what has become of the runner that a key stands for.
type progress uint8

const (
	none    progress = iota // nothing that counts: the key is free
	pending                 // another gateway may be claiming it
	done
)

// claimAgreed is claim for a key that all gateways may get at once: whichever runner the key stands for in the cluster is the one, however late the events are.
func (m *Manager) claimAgreed(ctx context.Context, c Claim, mark Mark) (*Runner, how, error) {
	keys, since, last := m.opts.Shared.Keys, time.Now(), uint64(0)
	for pause := agreeAgain; ; pause = min(2*pause, agreeMost) {
		was, err := within(ctx, func(ctx context.Context) (Agreed, error) { return keys.Agreed(ctx, c.Key) })
		if err != nil {
			return nil, 0, err
		}
		if was.Index != last {
			last, since = was.Index, time.Now()
		}
		r, at, err := m.agreed(ctx, c.Key, was)
		switch {
		case err != nil:
			return nil, 0, err
		case at != none && was.Request != mark.Request:
			return nil, 0, errOtherRequest()
		case at == done:
			return r, repeated, nil
		case at == pending && time.Since(since) < agreeTime:
			t := time.NewTimer(pause)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return nil, 0, fault.Wrap(fault.Unavailable, context.Cause(ctx), "the request for a runner was given up")
			}
			continue
		}
		r, by, err := m.claim(ctx, c, mark, func(ctx context.Context, id string) error {
			index, ok, err := keys.Agree(ctx, c.Key, Agreed{Runner: id, Request: mark.Request, Gateway: m.self(), Index: was.Index})
			if err == nil && !ok {
				err = errDisagreed
			}
			was.Index = index
			return err
		})
		if !errors.Is(err, errDisagreed) {
			return r, by, err
		}
	}
}

// within bounds one call.
func within[T any](ctx context.Context, call func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return call(ctx)
}

// agreed finds out what has become of what a key stands for.
func (m *Manager) agreed(ctx context.Context, key string, was Agreed) (*Runner, progress, error) {
	if was.Index == 0 {
		return nil, none, nil
	}
	if r, err := m.Lookup(was.Runner); err == nil {
		return m.ofKey(r, key)
	}
	var there bool
	var mark Mark
	used, err := within(ctx, func(ctx context.Context) (used bool, err error) {
		used, mark, there, err = m.opts.Shared.Keys.Standing(ctx, was.Runner)
		return used, err
	})
	switch {
	case err != nil:
		return nil, none, err
	case !there || used && (mark.Key != key || time.Since(mark.At) > keyTime):
		return nil, none, nil
	case !used && was.Gateway == m.self(): // our own earlier attempt
		return nil, none, nil
	case !used:
		if lives, err := m.opts.Shared.Others.Lives(ctx, was.Gateway); err != nil || lives {
			return nil, pending, err
		}
		return nil, none, nil
	}
	r, err := m.Find(ctx, was.Runner)
	if fault.Is(err, fault.Gone) {
		return nil, none, nil // it has ended
	}
	if err != nil {
		return nil, none, err
	}
	return m.ofKey(r, key)
}

// ofKey reports whether a runner was claimed under a key.
func (m *Manager) ofKey(r *Runner, key string) (*Runner, progress, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.mark.Key != key || time.Since(r.mark.At) > keyTime {
		return nil, none, nil
	}
	return r, done, nil
}
