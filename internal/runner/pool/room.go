package pool

import (
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
			e.window = min(max(e.window, 1)+1, maxWindow)
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
	var list []*entry
	for _, r := range e.starting.list {
		if !r.noRoom.IsZero() {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b *entry) int {
		if byAge(a, b) {
			return -1
		}
		return 1
	})
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

// grant reports whether a stale runner shall leave at once because its replacement waits for its place. It does so once for each.
func (e *env) grant() bool {
	if !e.spec.Scarce {
		return false
	}
	list := e.waitingForRoom()
	if len(list) == 0 || list[0].granted {
		return false
	}
	list[0].granted = true
	return true
}

// shortage is nil while the cluster has not said that it lacks room.
func (e *env) shortage() *Shortage {
	list := e.waitingForRoom()
	if len(list) == 0 {
		return nil
	}
	here := e.of(Creating) + e.of(Starting) + e.of(Idle) + e.of(Claiming) + e.of(Used)
	return &Shortage{Possible: here - e.unplaced[0] - e.unplaced[1], Since: list[0].noRoom, Reason: list[0].reason}
}
