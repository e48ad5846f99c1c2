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

// Plan says what to do now, and when to ask again if nothing happens before (zero = then not at all). It looks only at the environments
// that something happened to, and at those whose time has come.
func (p *Pools) Plan(now time.Time) (actions []Action, next time.Time) {
	p.bury(now)
	for len(p.alarms) > 0 && !now.Before(p.alarms[0].due) {
		e := p.alarms[0]
		p.touch(e)
		e.due = time.Time{}
		p.alarms.set(e)
	}
	slices.SortFunc(p.dirty, func(a, b *env) int { return cmp.Compare(a.id, b.id) })
	for _, e := range p.dirty {
		p.plan(e, now)
	}
	actions = p.act(now)
	for _, e := range p.dirty {
		e.dirty = false
		e.due = time.Time{}
		if e.wanted || len(e.runners) > 0 {
			e.due = e.alarmTime(now)
		} else if p.envs[e.id] == e {
			delete(p.envs, e.id)
		}
		p.alarms.set(e)
	}
	clear(p.dirty)
	p.dirty = p.dirty[:0]
	if len(p.alarms) > 0 {
		next = p.alarms[0].due
	}
	return actions, next
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// bury forgets those who have been dead for long enough.
func (p *Pools) bury(now time.Time) {
	n, end := 0, len(p.tombs)
	for ; n < end && now.Sub(p.tombs[n].at) > tombstone; n++ {
		switch t := p.tombs[n]; {
		case t.r.phase != Dead || !t.r.since.Equal(t.at):
		case t.r.busy: // the call's answer has to find it
			p.tombs = append(p.tombs, t)
		default:
			delete(p.runners, t.r.id)
		}
	}
	clear(p.tombs[:n])
	p.tombs = p.tombs[n:]
}

func (p *Pools) plan(e *env, now time.Time) {
	e.wake = time.Time{}
	if e.failures > 0 && e.readyAt.After(e.failedAt) {
		if at := e.readyAt.Add(stable); now.Before(at) {
			e.wake = at
		} else {
			e.recover()
		}
	}
	if e.wanted && !p.follow {
		p.shrink(e, now)
		p.grow(e, now)
	}
	if p.follow {
		for _, q := range []*queue{&e.creates, &e.repeats} {
			for r := q.first(); r != nil; r = q.first() {
				p.forget(r) // if it came to be after all, it will be observed
			}
		}
	}
}

// size is how many runners shall stand ready.
func (e *env) size(now time.Time) int {
	if e.demand == nil {
		return e.spec.Size
	}
	size, again := e.demand.target(now)
	e.wake = earlier(e.wake, again)
	return size
}

// grow adds what is missing. The entries wait for their turn as Creating.
func (p *Pools) grow(e *env, now time.Time) {
	size := e.size(now)
	missing := e.fitting(size - e.warm())
	if missing <= 0 {
		return
	}
	missing, next := e.replaceable(missing, size, now)
	e.wake = earlier(e.wake, next)
	for ; missing > 0; missing-- {
		r := &entry{id: p.newID(e.id), env: e, settings: e.spec.Settings, phase: Creating, since: now, born: now}
		p.link(r)
	}
}

// shrink lets go what is too much or out of date.
func (p *Pools) shrink(e *env, now time.Time) {
	for r := e.outdated.first(); r != nil; r = e.outdated.first() {
		p.letGo(r, now) // never handed out
	}
	size := e.size(now)
	if surplus := e.warm() - size; surplus > 0 {
		for _, r := range e.leastUseful()[:surplus] {
			p.letGo(r, now)
		}
	}
	p.withdraw(e, now)
	stale, idle := len(e.stale.list), len(e.ready.list)
	tooMany := min(stale, max(0, idle+stale-size))
	if tooMany == 0 && stale > 0 && len(e.starting.list) > 0 {
		tooMany = e.makeRoom(p.limits.Patience, now)
	}
	for range tooMany {
		p.letGo(e.stale.first(), now)
	}
}

// leastUseful are the runners that are up to date and that nobody uses: what has not been registered first, then what is still starting, first of all that for
// which there is no room, then by id, so that several gateways choose alike.
func (e *env) leastUseful() []*entry {
	var list []*entry
	for _, r := range e.runners {
		if r.fresh && r.phase <= Idle {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.phase, b.phase), -cmp.Compare(kindOf(!a.noRoom.IsZero()), kindOf(!b.noRoom.IsZero())), -cmp.Compare(a.id, b.id))
	})
	return list
}

// makeRoom is how many stale runners leave because their replacement does not start.
func (e *env) makeRoom(patience time.Duration, now time.Time) int {
	if e.grant() {
		e.nextRoom = now.Add(patience)
		return 1
	}
	at := later(e.starting.first().since.Add(patience), e.nextRoom)
	if now.Before(at) {
		e.wake = earlier(e.wake, at)
		return 0
	}
	e.nextRoom = now.Add(patience)
	e.wake = earlier(e.wake, e.nextRoom)
	return 1
}

// Strays are the runners that nobody uses and nobody wants, because their environment is not known, and that have been so for a while.
func (p *Pools) Strays(age time.Duration, now time.Time) map[environment.ID][]string {
	strays := map[environment.ID][]string{}
	for _, e := range p.envs {
		if e.wanted {
			continue
		}
		for _, r := range e.runners {
			if (r.phase == Starting || r.phase == Idle) && now.Sub(r.since) >= age {
				strays[e.id] = append(strays[e.id], r.id)
			}
		}
	}
	return strays
}

// Reap lets a stray go, if it still is one.
func (p *Pools) Reap(id string, now time.Time) {
	if r := p.runners[id]; r != nil && !r.env.wanted && (r.phase == Starting || r.phase == Idle) {
		p.letGo(r, now)
	}
}

func (p *Pools) letGo(r *entry, now time.Time) {
	if r.unborn() {
		p.forget(r)
		return
	}
	p.change(r, func() { r.die(now, true) })
}

// forget drops all memory of a runner.
func (p *Pools) forget(r *entry) {
	p.unlink(r)
	delete(p.runners, r.id)
}

// act gives calls to the environments in turn, one each, as long as calls are free.
func (p *Pools) act(now time.Time) []Action {
	actions := p.round(nil, now)
	if p.makeWay(now) {
		actions = p.round(actions, now)
	}
	return actions
}

func (p *Pools) round(actions []Action, now time.Time) []Action {
	for _, e := range p.dirty {
		if !e.queued && e.call(true, now) != nil {
			e.queued = true
			p.turn = append(p.turn, e)
		}
	}
	if p.limits.Runners > 0 { // who has least comes first to what is left
		slices.SortStableFunc(p.turn, func(a, b *env) int { return cmp.Or(cmp.Compare(a.here(), b.here()), cmp.Compare(a.id, b.id)) })
	}
	var held []*env // by the limit
	for len(p.turn) > 0 && p.calls < p.limits.Concurrency {
		e := p.turn[0]
		p.turn = p.turn[1:]
		r := e.call(p.room(), now)
		switch {
		case r != nil:
			actions = append(actions, p.start(r, now))
			p.turn = append(p.turn, e)
		case e.call(true, now) != nil:
			held = append(held, e)
		default:
			e.queued = false
			p.touch(e)
		}
	}
	p.turn = append(p.turn, held...)
	return actions
}

// room reports whether one more runner may be created.
func (p *Pools) room() bool { return p.limits.Runners == 0 || p.held < p.limits.Runners }

// here is how many runners of an environment are idle or on their way to it.
func (e *env) here() int { return e.of(Starting) + e.of(Idle) + e.of(Creating) - len(e.creates.list) }

// call is the runner whose call is next. Removals go before creations unless nobody is idle.
func (e *env) call(room bool, now time.Time) *entry {
	remove, create := e.destroys.first(), e.repeats.first()
	if remove != nil && now.Before(remove.next) {
		remove = nil
	}
	if (create == nil || now.Before(create.next)) && room {
		create = e.creates.first()
	}
	if create != nil && (now.Before(create.next) || now.Before(e.notBefore)) {
		create = nil
	}
	if remove == nil || (create != nil && e.of(Idle) == 0) {
		return create
	}
	return remove
}

func (p *Pools) start(r *entry, now time.Time) Action {
	e := r.env
	a := Action{Kind: Create, Env: e.id, ID: r.id}
	if r.phase == Dying {
		a.Kind, a.Guard = Destroy, r.guard
	} else if e.failures > 0 && !e.readyAt.After(e.failedAt) {
		e.notBefore = now.Add(p.limits.Backoff(e.failures)) // one at a time tells whether it works again
	}
	p.calls++
	p.change(r, func() {
		r.busy = true
		if a.Kind == Create {
			r.creating, r.sent, r.vanished = true, now, false
		}
	})
	return a
}

// makeWay lets idle runners go for the sake of the limit of all: those above it, and one when an environment that waits has nothing at all, or
// has none on its way but stale ones to replace. It reports whether it did.
func (p *Pools) makeWay(now time.Time) bool {
	limit := p.limits.Runners
	if limit == 0 || p.held < limit || p.follow {
		return false
	}
	done := false
	for p.held-p.dying > limit && p.yield(1, now) {
		done = true
	}
	if p.dying > 0 {
		return done
	}
	for _, e := range p.turn {
		if !e.wanted {
			continue
		}
		here := e.warm() - len(e.creates.list)
		switch {
		case len(e.stale.list) > 0 && here == len(e.ready.list):
			p.letGo(e.stale.first(), now)
			return true
		case here == 0 && p.yield(2, now):
			return true
		}
	}
	return done
}

// yield lets one runner go of the environment that has most and at least so many.
func (p *Pools) yield(least int, now time.Time) bool {
	var rich *env
	for _, e := range p.envs {
		if n := e.here(); e.wanted && n >= least && (rich == nil || n > rich.here() || (n == rich.here() && e.id < rich.id)) {
			rich = e
		}
	}
	if rich == nil {
		return false
	}
	if len(rich.stale.list) > 0 {
		p.letGo(rich.stale.first(), now)
		return true
	}
	for _, r := range rich.leastUseful() {
		if !r.unborn() {
			p.letGo(r, now)
			return true
		}
	}
	return false
}

// alarmTime is when the environment wants to be planned although nothing happened.
func (e *env) alarmTime(now time.Time) time.Time {
	due := e.wake
	if r := e.destroys.first(); r != nil && now.Before(r.next) {
		due = earlier(due, r.next)
	}
	for _, q := range []*queue{&e.creates, &e.repeats} {
		if r := q.first(); r != nil {
			if at := later(r.next, e.notBefore); now.Before(at) {
				due = earlier(due, at)
			}
		}
	}
	return due
}
