package pool

import (
	"cmp"
	"slices"
	"time"
)

// maxWindow bounds how many runners of a scarce kind may be without a place at a time.
const maxWindow = 256

// seat counts runners that are not ready by whether there is a place for them.
func (e *env) seat(r *entry, n int) {
	if r.phase >= Idle || r.placed {
		return
	}
	e.unplaced[kindOf(r.fresh)] += n
	if r.phase == Starting && r.fresh && !r.noRoom.IsZero() {
		e.blocked += n
	}
}

// room takes in what the cluster says of a runner's place. Events may come late: one that was placed once is not unplaced again.
//
// Each place that was found lets one more runner wait for one, so that a pool doubles as long as there is room; one that finds none brings it down to a single one. That one stays
// registered: the cluster places it as soon as there is room again, and the pool hears of it without asking.
func (r *entry) room(o Observed, known bool, now time.Time) {
	e := r.env
	switch {
	case r.placed:
	case o.Placed || o.State == Ready:
		r.placed, r.noRoom = true, time.Time{}
		if known && r.fresh {
			e.window, e.granted = min(max(e.window, 1)+1, maxWindow), false
		}
	case !o.NoRoom:
		r.noRoom = time.Time{}
	case r.noRoom.IsZero():
		r.noRoom = now
		if r.fresh {
			e.window = 1
		}
	}
}

// fitting is how many of those that are missing may be created now.
func (e *env) fitting(missing int) int {
	if !e.spec.Scarce {
		return missing
	}
	return min(missing, max(e.window, 1)-e.unplaced[1])
}

// waitingForRoom are the registered runners that there is no room for, the longest waiting first.
func (e *env) waitingForRoom() []*entry {
	if e.blocked == 0 {
		return nil
	}
	list := make([]*entry, 0, e.blocked)
	for _, r := range e.starting.list {
		if !r.noRoom.IsZero() {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b *entry) int { return cmp.Or(a.since.Compare(b.since), cmp.Compare(a.id, b.id)) })
	return list
}

// withdraw takes back what waits for room, but for one, and what was to come after it.
func (p *Pools) withdraw(e *env, now time.Time) {
	if !e.spec.Scarce || e.blocked == 0 {
		return
	}
	for r := e.creates.first(); r != nil; r = e.creates.first() {
		p.forget(r) // nobody has heard of it
	}
	for _, r := range e.waitingForRoom()[1:] {
		p.letGo(r, now)
	}
}

// longestWaiting is the runner that has waited for room for longest; nil = none does.
func (e *env) longestWaiting() *entry {
	if e.blocked == 0 {
		return nil
	}
	var best *entry
	for _, r := range e.starting.list {
		if !r.noRoom.IsZero() && (best == nil || byAge(r, best)) {
			best = r
		}
	}
	return best
}

// grant reports whether a stale runner shall leave at once because its replacement waits for its place. Before the next one somebody has to have been placed: whose place it
// becomes is the cluster's to say.
func (e *env) grant() bool {
	if !e.spec.Scarce || e.blocked == 0 || e.granted {
		return false
	}
	e.granted = true
	return true
}

// shortage is nil while the cluster has not said that it lacks room.
func (e *env) shortage() *Shortage {
	r := e.longestWaiting()
	if r == nil {
		return nil
	}
	return &Shortage{Possible: e.seated(), Since: r.noRoom, Reason: r.reason}
}

// seated is how many runners have a place, and are not on their way out.
func (e *env) seated() int {
	return e.of(Creating) + e.of(Starting) + e.of(Idle) + e.of(Claiming) + e.of(Used) - e.unplaced[0] - e.unplaced[1]
}
