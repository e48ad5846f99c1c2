package node

import (
	"cmp"
	"context"
	"maps"
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
		for _, id := range a.superfluous(time.Now()) {
			if ctx.Err() != nil {
				return
			}
			if err := a.Collect(id); err != nil && !fault.Is(err, fault.NotFound) { // it may have been purged meanwhile
				a.log.WithError(err).WithField("alloc_id", id).Warn("what is kept of an allocation that has ended could not be removed, it will be tried again")
			}
		}
	}
}

// superfluous are the allocations that have ended and of which nothing need be kept any more.
func (a *Agent) superfluous(now time.Time) (ids []string) {
	type file struct {
		id string
		at int64 // unix ns
	}
	var all []file
	a.mu.Lock()
	for id, e := range a.ended {
		if !e.collected && !e.going {
			all = append(all, file{id, e.at})
		}
	}
	for id, r := range a.runners {
		if at, over := r.uncollected(); over {
			all = append(all, file{id, at})
		}
	}
	a.mu.Unlock()
	slices.SortFunc(all, func(x, y file) int { return cmp.Or(cmp.Compare(y.at, x.at), cmp.Compare(x.id, y.id)) })
	for i, f := range all {
		if i >= a.cfg.KeepEnded || a.cfg.KeepEndedFor > 0 && now.Sub(time.Unix(0, f.at)) > a.cfg.KeepEndedFor {
			ids = append(ids, f.id)
		}
	}
	return ids
}

// uncollected reports whether nothing of the allocation runs or will and its files are there, and when its last task has ended.
func (r *allocRunner) uncollected() (at int64, over bool) {
	if !r.over() {
		return 0, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lastEnd(), !r.collected
}

// lastEnd is when the last task has ended. The caller holds mu.
func (r *allocRunner) lastEnd() (at int64) {
	for _, t := range r.tasks {
		at = max(at, t.record.State.FinishedAt)
	}
	return at
}

// Collect removes what is kept of an allocation that has ended, or of all of them where none is named: logs, files. Their records stay until the servers purge them.
func (a *Agent) Collect(allocID string) error {
	if allocID != "" {
		return a.collect(allocID)
	}
	a.mu.Lock()
	all := slices.AppendSeq(slices.Collect(maps.Keys(a.runners)), maps.Keys(a.ended))
	a.mu.Unlock()
	for _, id := range all {
		if err := a.collect(id); err != nil && !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return nil
}

func (a *Agent) collect(allocID string) error {
	r, _, err := a.find(allocID)
	if err != nil {
		return err
	}
	if r != nil && !r.over() {
		return fault.New(fault.Invalid, "allocation %s still runs, or will", allocID)
	}
	if err := os.RemoveAll(a.db.dir(allocID)); err != nil {
		return fault.Wrap(fault.Internal, err, "what is kept of allocation %s cannot be removed", allocID)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if e, ok := a.ended[allocID]; ok { // it may have been retired meanwhile
		e.collected = true
		a.ended[allocID] = e
	} else if r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.collected = true
	}
	return nil
}
