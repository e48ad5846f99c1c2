package pool

import (
	"cmp"
	"slices"
	"time"

	"rockpool/internal/environment"
)

// Kind is what to do.
type Kind uint8

// The kinds of actions.
const (
	Create Kind = iota
	Destroy
)

// Action is a call that the shell makes; it reports the outcome by Registered or Destroyed.
type Action struct {
	Kind  Kind
	Env   environment.ID
	ID    string
	Guard bool // Destroy: claim it by compare-and-set first
}

// Plan says what to do now, and when to ask again if nothing happens before (zero = then not at all).
func (p *Pools) Plan(now time.Time) (actions []Action, next time.Time) {
	ids := make([]environment.ID, 0, len(p.envs))
	for id, e := range p.envs {
		if e.dirty || (!e.due.IsZero() && !now.Before(e.due)) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		actions = append(actions, p.plan(id, p.envs[id], now)...)
	}
	for _, e := range p.envs {
		next = earlier(next, e.due)
	}
	return actions, next
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

func (p *Pools) plan(id environment.ID, e *env, now time.Time) (actions []Action) {
	e.dirty, e.due = false, time.Time{}
	if e.wanted && !p.follow {
		p.shrink(e, now)
		p.grow(id, e, now)
	}
	for _, r := range sorted(e.runners, func(r *entry) bool { return !r.busy && (r.phase == Creating || r.phase == Dying) }) {
		switch {
		case r.phase == Creating && p.follow:
			p.forget(r.id) // if it came to be after all, it will be observed
			continue
		case r.phase == Creating && e.wanted && now.Before(e.notBefore):
			e.due = earlier(e.due, e.notBefore)
			continue
		case now.Before(r.next):
			e.due = earlier(e.due, r.next)
			continue
		case p.calls >= p.limits.Concurrency:
			e.dirty = true // when a call returns there is a place
			return actions
		}
		p.calls++
		r.busy = true
		a := Action{Kind: Create, Env: id, ID: r.id}
		if r.phase == Dying {
			a.Kind, a.Guard = Destroy, r.guard
		}
		actions = append(actions, a)
	}
	return actions
}

// grow adds what is missing. The entries wait for their turn as Creating.
func (p *Pools) grow(id environment.ID, e *env, now time.Time) {
	have := 0
	for _, r := range e.runners {
		if r.phase <= Idle && e.fresh(r) {
			have++
		}
	}
	for ; have < e.size; have++ {
		p.add(id, &entry{id: p.newID(id), settings: e.settings, phase: Creating, since: now})
	}
	e.dirty = false
}

// shrink lets go what is too much or out of date.
func (p *Pools) shrink(e *env, now time.Time) {
	var fresh, staleIdle []*entry
	freshIdle, waiting := 0, false
	for _, r := range sorted(e.runners, func(r *entry) bool { return r.phase <= Idle }) {
		switch {
		case e.fresh(r):
			fresh = append(fresh, r)
			if r.phase == Idle {
				freshIdle++
			} else if r.phase == Starting {
				waiting = true
			}
		case r.phase == Idle:
			staleIdle = append(staleIdle, r)
		default:
			p.letGo(r, now) // never handed out
		}
	}
	// The least useful first: what has not been registered, what is still starting, then by id, so that several gateways
	// choose alike.
	slices.SortFunc(fresh, func(a, b *entry) int { return cmp.Or(cmp.Compare(a.phase, b.phase), -cmp.Compare(a.id, b.id)) })
	for _, r := range fresh[:max(0, len(fresh)-e.size)] {
		if r.phase == Idle {
			freshIdle--
		}
		p.letGo(r, now)
	}
	tooMany := min(len(staleIdle), max(0, freshIdle+len(staleIdle)-e.size))
	if tooMany == 0 && len(staleIdle) > 0 && waiting {
		tooMany = e.makeRoom(p.limits.Patience, now)
	}
	for _, r := range staleIdle[:tooMany] {
		p.letGo(r, now)
	}
}

// makeRoom is how many stale runners leave because their replacement does not start.
func (e *env) makeRoom(patience time.Duration, now time.Time) int {
	first := now
	for _, r := range e.runners {
		if r.phase == Starting && e.fresh(r) && r.since.Before(first) {
			first = r.since
		}
	}
	at := first.Add(patience)
	if at.Before(e.nextRoom) {
		at = e.nextRoom
	}
	if now.Before(at) {
		e.due = earlier(e.due, at)
		return 0
	}
	e.nextRoom = now.Add(patience)
	e.due = earlier(e.due, e.nextRoom)
	return 1
}

func (p *Pools) letGo(r *entry, now time.Time) {
	if r.phase == Creating && !r.busy && r.attempts == 0 {
		p.forget(r.id) // nobody has heard of it
		return
	}
	r.die(now, true)
}

func sorted(m map[string]*entry, keep func(*entry) bool) []*entry {
	var list []*entry
	for _, r := range m {
		if keep(r) {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b *entry) int { return cmp.Compare(a.id, b.id) })
	return list
}
