package node

import (
	"cmp"
	"context"
	"os"
	"slices"
	"time"

	"rockpool/internal/fault"
)

const (
	// defaultKeepEnded is Nomad's number.
	defaultKeepEnded = 50
	// collectEvery is how often the node looks for what it keeps no longer.
	collectEvery = time.Minute
)

// collectEnded removes logs and files of allocations that have ended, until ctx ends: of all but the newest, and of those that ended long ago.
func (a *Agent) collectEnded(ctx context.Context) {
	for sleep(ctx, collectEvery) {
		for _, r := range a.superfluous(time.Now()) {
			if ctx.Err() != nil {
				return
			}
			if err := a.collect(r); err != nil {
				r.log().WithError(err).Warn("what is kept of an allocation that has ended could not be removed, it will be tried again")
			}
		}
	}
}

// superfluous are the allocations that have ended and of which nothing need be kept any more.
func (a *Agent) superfluous(now time.Time) []*allocRunner {
	type ended struct {
		r  *allocRunner
		at int64 // unix ns
	}
	var all []ended
	a.mu.Lock()
	for _, r := range a.runners {
		if r.over() {
			all = append(all, ended{r: r})
		}
	}
	a.mu.Unlock()
	all = slices.DeleteFunc(all, func(e ended) bool {
		e.r.mu.Lock()
		defer e.r.mu.Unlock()
		return e.r.collected
	})
	for i := range all {
		all[i].at = all[i].r.endedAt()
	}
	slices.SortFunc(all, func(x, y ended) int { return cmp.Or(cmp.Compare(y.at, x.at), cmp.Compare(x.r.id, y.r.id)) })
	var out []*allocRunner
	for i, e := range all {
		if i >= a.cfg.KeepEnded || a.cfg.KeepEndedFor > 0 && now.Sub(time.Unix(0, e.at)) > a.cfg.KeepEndedFor {
			out = append(out, e.r)
		}
	}
	return out
}

// endedAt is when the last task has ended.
func (r *allocRunner) endedAt() (at int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.tasks {
		at = max(at, t.record.State.FinishedAt)
	}
	return at
}

// Collect removes what is kept of an allocation that has ended: logs, files. Its record stays until the servers purge it.
func (a *Agent) Collect(allocID string) error {
	if allocID != "" {
		r, err := a.runner(allocID)
		if err != nil {
			return err
		}
		return a.collect(r)
	}
	a.mu.Lock()
	all := make([]*allocRunner, 0, len(a.runners))
	for _, r := range a.runners {
		all = append(all, r)
	}
	a.mu.Unlock()
	for _, r := range all {
		if err := a.collect(r); err != nil && !fault.Is(err, fault.Invalid) {
			return err
		}
	}
	return nil
}

func (a *Agent) collect(r *allocRunner) error {
	if !r.over() {
		return fault.New(fault.Invalid, "allocation %s still runs, or will", r.id)
	}
	if err := os.RemoveAll(a.db.dir(r.id)); err != nil {
		return fault.Wrap(fault.Internal, err, "what is kept of allocation %s cannot be removed", r.id)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collected = true
	return nil
}
