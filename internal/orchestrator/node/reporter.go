package node

import (
	"context"
	"slices"
	"sync"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/model"
)

const (
	// reportBatch bounds one report.
	reportBatch = 128
	// lazyDelay is how long a step without a change of state (Task Setup, Killing) may wait: what has a state by then is told once.
	lazyDelay = 500 * time.Millisecond
	// reportTimeout bounds one attempt.
	reportTimeout = 30 * time.Second
)

// reporter carries allocation states to the servers: the latest of each when it is due, one report at a time.
type reporter struct {
	send func(context.Context, []model.AllocUpdate) error
	log  logging.Logger
	wake chan struct{} // level trigger

	limit int // of the next report; only Run and what it calls use it

	mu    sync.Mutex
	dirty map[string]unsaid
	order []string // ids in dirty, oldest first
}

// unsaid is a state that waits to be told.
type unsaid struct {
	model.AllocUpdate
	due time.Time
}

func newReporter(send func(context.Context, []model.AllocUpdate) error, log logging.Logger) *reporter {
	return &reporter{send: send, log: log, wake: make(chan struct{}, 1), limit: reportBatch, dirty: map[string]unsaid{}}
}

// put replaces what is to be said about an allocation. Urgent reports leave at once.
func (r *reporter) put(u model.AllocUpdate, urgent bool) {
	due := time.Now()
	if !urgent {
		due = due.Add(lazyDelay)
	}
	r.mu.Lock()
	if old, ok := r.dirty[u.ID]; !ok {
		r.order = append(r.order, u.ID)
	} else if old.due.Before(due) {
		due = old.due
	}
	r.dirty[u.ID] = unsaid{u, due}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// forget drops what waits to be said about an allocation that the servers no longer have.
func (r *reporter) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.dirty, id) // its entry in order is skipped
}

// Run sends until ctx ends, and then once more what is left, until flush ends.
func (r *reporter) Run(ctx context.Context, flush time.Duration) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var pause backoff
	for {
		select {
		case <-r.wake:
		case <-timer.C:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flush)
			defer cancel()
			for r.report(last, true) == nil && r.waiting() {
			}
			return
		}
		wait := r.untilDue()
		if wait == 0 {
			if err := r.report(ctx, false); err != nil {
				if ctx.Err() != nil {
					continue // to the last attempt
				}
				r.log.WithError(err).Warn("reporting allocation states failed, it will be tried again")
				if !pause.wait(ctx) {
					continue
				}
			} else {
				pause.reset()
			}
			wait = r.untilDue()
		}
		if wait >= 0 {
			timer.Reset(wait)
		}
	}
}

func (r *reporter) waiting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.dirty) > 0
}

// untilDue is how long what waits may still wait; negative when nothing does.
func (r *reporter) untilDue() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.dirty) == 0 {
		return -1
	}
	now, wait := time.Now(), lazyDelay
	for _, u := range r.dirty {
		wait = min(wait, u.due.Sub(now))
	}
	return max(0, wait)
}

// report sends one batch. What failed waits again, unless something newer was said meanwhile.
func (r *reporter) report(ctx context.Context, last bool) error {
	batch := r.take(last)
	if len(batch) == 0 {
		return nil
	}
	attempt, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	err := r.send(attempt, batch)
	if err == nil {
		r.limit = min(2*r.limit, reportBatch)
	} else {
		r.putBack(batch)
		if fault.Is(err, fault.Invalid) || fault.Is(err, fault.TooLarge) {
			r.limit = max(r.limit/2, 1) // so that one bad state does not hold up the others
		}
		if last {
			r.log.WithError(err).WithField("allocations", len(batch)).Warn("last report failed, it will be made after the next start")
		}
	}
	return err
}

// take is what is due, or everything.
func (r *reporter) take(everything bool) []model.AllocUpdate {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	var batch []model.AllocUpdate
	r.order = slices.DeleteFunc(r.order, func(id string) bool {
		u, ok := r.dirty[id]
		if ok && (len(batch) == r.limit || !everything && u.due.After(now)) {
			return false
		}
		if ok {
			delete(r.dirty, id)
			batch = append(batch, u.AllocUpdate)
		}
		return true
	})
	return batch
}

func (r *reporter) putBack(batch []model.AllocUpdate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range batch {
		if _, newer := r.dirty[u.ID]; !newer {
			r.dirty[u.ID] = unsaid{u, time.Now()}
			r.order = append(r.order, u.ID)
		}
	}
}
