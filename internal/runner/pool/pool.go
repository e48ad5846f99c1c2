package pool

import (
	"cmp"
	"time"

	"rockpool/internal/environment"
)

// Phase is where a runner stands. See DESIGN.md.
type Phase uint8

// The phases.
const (
	Creating Phase = iota
	Starting
	Idle
	Claiming
	Used
	Dying
	Dead
	phases
)

func (p Phase) String() string {
	return [...]string{"creating", "starting", "idle", "claiming", "used", "dying", "dead"}[p]
}

// Ended reports whether a runner can never be used (again).
func (p Phase) Ended() bool { return p >= Dying }

// State is what the cluster shows of a runner.
type State uint8

// The states.
const (
	Pending State = iota
	Ready         // able to execute
	Ended         // whatever the reason: it is never revived
)

// Observed is one runner as the cluster shows it.
type Observed struct {
	ID       string
	Env      environment.ID
	Settings string
	State    State
	Used     bool
	Placed   bool   // the cluster has a place for it
	NoRoom   bool   // the cluster has looked, and has none
	Reason   string // why it is not ready (yet), in the cluster's words; may be empty
}

// Spec is what an environment's pool shall be.
type Spec struct {
	Size     int  // runners that stand ready
	Min, Max int  // bounds of an automatic size, which begins with Size; Max 0 = Size is fixed
	Scarce   bool // runners need what there is little of, such as devices: see room.go
	Settings string
}

// Limits bound what the pools ask of the cluster.
type Limits struct {
	Concurrency int                             // calls under way
	Backoff     func(attempt int) time.Duration // before the next try; attempt starts at 1
	Patience    time.Duration                   // how long a replacement may start before a stale runner makes room for it
	Runners     int                             // of all environments together, used ones included; 0 = no limit
	Used        int                             // runners of one environment that are used at a time; 0 = no limit
}

// DefaultLimits are for production.
func DefaultLimits() Limits {
	return Limits{
		Concurrency: 16,
		Backoff:     func(n int) time.Duration { return min(time.Second<<min(n-1, 10), time.Minute) },
		Patience:    30 * time.Second,
	}
}

// Times that are not configured.
const (
	// stable is how long an idle runner must have lived for its end not to be taken for a failure of what it is made of.
	stable = 10 * time.Second
	// tombstone is how long a runner that is gone is remembered, so that news older than its end do not make it look new. It is longer than a
	// feed may be silent.
	tombstone = 2 * time.Minute
	// relisted is how far behind a listing may be: how long a purged runner may still be listed before it is purged again, and one that was registered be
	// missing. After a restore of the cluster indexes say nothing of that.
	relisted = time.Minute
	// forgiven is how long after the last failure the failures before it are forgotten.
	forgiven = 10 * time.Minute
	// maxReason bounds the text of a reason, in bytes.
	maxReason = 400
)

type entry struct {
	id       string
	env      *env
	settings string
	rolled   bool // out of date although the settings are the same
	fresh    bool // neither rolled nor of other settings, as it was counted
	phase    Phase
	since    time.Time // in this phase
	born     time.Time // since this process knows it
	sent     time.Time // when its creation was last asked for
	index    uint64    // of the registration; 0 = found in the cluster
	unlisted bool      // the registration's index is not known: a listing may be older than it
	shown    bool      // the cluster has shown it
	unclear  bool      // a call that creates it failed, and may have worked
	vanished bool      // the cluster said that it is gone while its creation was under way
	claimed  bool      // the cluster shows it as used
	ours     bool      // if it is used, then by a claim of this gateway
	busy     bool      // a call is under way
	creating bool      // it is the one that creates it
	failed   bool      // it never became ready, or ended at once
	buried   time.Time // the since of its tombstone
	attempts int
	next     time.Time // no call before
	guard    bool      // take it by compare-and-set before it is removed
	placed   bool      // the cluster has a place for it
	noRoom   time.Time // since when the cluster says that it has none; zero = it does not
	reason   string
	places   [lanes]place
}

type env struct {
	id      environment.ID
	wanted  bool
	spec    Spec
	demand  *demand // nil = the size is fixed
	runners map[string]*entry
	count   [2][phases]int // of stale and of fresh runners
	failed  int            // of those on their way in or out, how many could not be started
	lead    lead
	pace    pace

	unplaced [2]int // of stale and of fresh runners that are not ready, those without a place
	blocked  int    // of the fresh ones, those that the cluster has no room for
	window   int    // how many fresh ones may be without a place; see room.go
	granted  bool   // a stale runner left for their sake, and none has been placed since

	ready    queue // idle and up to date, in the order in which they are taken
	stale    queue // idle and out of date, in the same order
	starting queue // up to date and on its way, the oldest first
	outdated queue // out of date before it was ready
	creates  queue // wait for the call that creates them; nobody has heard of them
	repeats  queue // wait for that call once more
	destroys queue // wait for the call that removes them

	dirty  bool
	queued bool      // has calls to make
	wake   time.Time // when its size or its stale runners are to be looked at
	due    time.Time // when it wants to be planned although nothing happened
	alarm  int       // its place among the alarms, from 1; 0 = none

	failures  int       // starts in a row that failed
	failedAt  time.Time // the last of them
	why       string    // the last of them
	refused   bool      // the last of them was a call that failed
	readyAt   time.Time // the first that became ready since
	notBefore time.Time // no creation before
	nextRoom  time.Time // no stale runner makes room before
	hits      hits
}

// Pools is the state of all pools.
type Pools struct {
	limits  Limits
	newID   func(environment.ID) string
	envs    map[environment.ID]*env
	runners map[string]*entry
	held    int // runners that may be in the cluster
	dying   int // of these, those that are on their way out
	calls   int
	dirty   []*env
	turn    []*env // have calls to make, in turn
	alarms  alarms
	tombs   []tomb
	follow  bool // another gateway grows and shrinks the pools
}

// tomb is a runner that was dead at a time.
type tomb struct {
	r  *entry
	at time.Time
}

// New makes empty pools. newID names new runners and never repeats itself.
func New(limits Limits, newID func(environment.ID) string) *Pools {
	return &Pools{limits: limits, newID: newID, envs: map[environment.ID]*env{}, runners: map[string]*entry{}}
}

func byID(a, b *entry) bool { return a.id < b.id }

// byAge has ids decide between equal times, so that runs repeat.
func byAge(a, b *entry) bool { return cmp.Or(a.since.Compare(b.since), cmp.Compare(a.id, b.id)) < 0 }

func byTurn(a, b *entry) bool { return cmp.Or(a.next.Compare(b.next), cmp.Compare(a.id, b.id)) < 0 }

func (p *Pools) env(id environment.ID) *env {
	e, ok := p.envs[id]
	if !ok {
		e = &env{
			id: id, runners: map[string]*entry{},
			ready: queue{lane: byUse, less: p.taken(byAge)}, stale: queue{lane: byUse, less: p.taken(byID)},
			starting: queue{lane: byUse, less: byAge}, outdated: queue{lane: byUse, less: byID},
			creates: queue{lane: byCall, less: byID}, repeats: queue{lane: byCall, less: byTurn}, destroys: queue{lane: byCall, less: byTurn},
		}
		p.envs[id] = e
	}
	return e
}

func (p *Pools) touch(e *env) {
	if !e.dirty {
		e.dirty = true
		p.dirty = append(p.dirty, e)
	}
}

// change alters a runner while counts and queues do not know it.
func (p *Pools) change(r *entry, f func()) {
	p.unlink(r)
	f()
	p.link(r)
}

func (p *Pools) unlink(r *entry) {
	if r.phase == Dead {
		return
	}
	r.env.count[kindOf(r.fresh)][r.phase]--
	r.env.seat(r, -1)
	r.leave(byUse)
	r.leave(byCall)
	delete(r.env.runners, r.id)
	p.weigh(r, -1)
}

// weigh counts a runner against the limit of all.
func (p *Pools) weigh(r *entry, n int) {
	if !r.unborn() {
		p.held += n
	}
	if r.phase == Dying {
		p.dying += n
	}
	if r.failed && (r.phase < Idle || r.phase == Dying) {
		r.env.failed += n
	}
}

// unborn reports whether nobody has heard of the runner yet.
func (r *entry) unborn() bool { return r.phase == Creating && !r.busy && r.attempts == 0 }

// link counts a runner and puts it into the queues of its phase.
func (p *Pools) link(r *entry) {
	e := r.env
	p.touch(e)
	p.runners[r.id] = r
	if r.phase == Dead {
		if !r.buried.Equal(r.since) {
			r.buried = r.since
			p.tombs = append(p.tombs, tomb{r, r.since})
		}
		return
	}
	if p.envs[e.id] != e { // the environment was forgotten meanwhile
		e = p.env(e.id)
		r.env = e
	}
	p.weigh(r, 1)
	e.runners[r.id] = r
	r.fresh = !r.rolled && r.settings == e.spec.Settings
	e.count[kindOf(r.fresh)][r.phase]++
	e.seat(r, 1)
	switch {
	case r.phase == Idle && r.fresh:
		e.ready.add(r)
	case r.phase == Idle:
		e.stale.add(r)
	case r.phase == Starting && r.fresh:
		e.starting.add(r)
	case r.phase < Idle && !r.fresh:
		e.outdated.add(r)
	}
	switch {
	case r.busy:
	case r.unborn():
		e.creates.add(r)
	case r.phase == Creating:
		e.repeats.add(r)
	case r.phase == Dying:
		e.destroys.add(r)
	}
}

func kindOf(fresh bool) int {
	if fresh {
		return 1
	}
	return 0
}

// of is how many runners are in a phase.
func (e *env) of(ph Phase) int { return e.count[0][ph] + e.count[1][ph] }

// warm is how many runners of the current settings are ready or on their way.
func (e *env) warm() int { return e.count[1][Creating] + e.count[1][Starting] + e.count[1][Idle] }

func (p *Pools) add(e *env, r *entry) {
	r.env = e
	p.link(r)
}

// refresh has runners counted anew after what is current has changed.
func (p *Pools) refresh(e *env, f func(*entry)) {
	all := make([]*entry, 0, len(e.runners))
	for _, r := range e.runners {
		all = append(all, r)
	}
	for _, r := range all {
		p.change(r, func() { f(r) })
	}
}

// Want sets what an environment's pool shall be.
func (p *Pools) Want(id environment.ID, s Spec, now time.Time) {
	e := p.env(id)
	changed, first := e.spec.Settings != s.Settings, !e.wanted
	fixed := e.demand == nil || e.spec.Size != s.Size
	e.wanted, e.spec = true, s
	switch {
	case s.Max == 0:
		e.demand = nil
	case fixed:
		e.demand = newDemand(s, e.demand, now)
	default:
		e.demand.bound(s.Min, s.Max)
	}
	if changed {
		e.recover() // what failed was another definition
		e.window, e.granted = 0, false
		p.refresh(e, func(*entry) {})
	}
	if first && e.demand != nil {
		e.demand.found(e.warm(), now) // a listing came before its definition
	}
	p.touch(e)
}

// recover forgets the failures.
func (e *env) recover() {
	e.failures, e.failedAt, e.why, e.refused, e.notBefore = 0, time.Time{}, "", false, time.Time{}
}

// Roll marks all runners that nobody uses as out of date.
func (p *Pools) Roll(id environment.ID) {
	p.refresh(p.env(id), func(r *entry) { r.rolled = r.rolled || r.phase <= Idle })
}

// Drop gives an environment up: all its runners die.
func (p *Pools) Drop(id environment.ID, now time.Time) {
	e, ok := p.envs[id]
	if !ok {
		return
	}
	e.wanted, e.demand = false, nil
	p.refresh(e, func(r *entry) { r.die(now, false) })
	p.touch(e)
}

func (r *entry) enter(ph Phase, now time.Time) {
	r.phase, r.since, r.attempts, r.next = ph, now, 0, time.Time{}
}

func (r *entry) die(now time.Time, guard bool) {
	if r.phase < Dying {
		r.enter(Dying, now)
		r.guard = guard
	} else if r.phase == Dying && !guard {
		r.guard = false
	}
}

// Take picks an idle runner for a claim: up to date ones first, then the longest idle, or where another gateway leads the newest. The claim's outcome
// must be told by Claimed, ClaimLost, Discard or, when it was not attempted, Return.
func (p *Pools) Take(id environment.ID, now time.Time) (string, bool) {
	e, ok := p.envs[id]
	if !ok || !e.wanted || p.full(e) {
		return "", false
	}
	best := e.ready.first()
	if best == nil {
		best = e.stale.first()
	}
	if best == nil {
		return "", false
	}
	p.change(best, func() {
		best.enter(Claiming, now)
		best.ours = true
	})
	e.pace.add(now)
	return best.id, true
}

// full reports whether no more of an environment's runners may be used.
func (p *Pools) full(e *env) bool {
	return p.limits.Used > 0 && e.of(Claiming)+e.of(Used) >= p.limits.Used
}

// Return gives a taken runner back whose claim was never attempted.
func (p *Pools) Return(id string, now time.Time) {
	if r := p.runners[id]; r != nil && r.phase == Claiming {
		to := Idle
		if r.claimed {
			to = Used // by somebody else
		}
		p.change(r, func() {
			r.enter(to, now)
			r.ours = false
		})
	}
}

// Claimed says that the claim of a taken runner was won.
func (p *Pools) Claimed(id string, now time.Time) { p.used(id, now) }

// ClaimLost says that somebody else uses the runner.
func (p *Pools) ClaimLost(id string, now time.Time) { p.used(id, now) }

func (p *Pools) used(id string, now time.Time) {
	if r := p.runners[id]; r != nil && r.phase == Claiming {
		p.change(r, func() { r.enter(Used, now) })
	}
}

// Discard lets a runner die, whatever it was: it ended, was deleted, or its state is not known.
func (p *Pools) Discard(id string, now time.Time) {
	if r := p.runners[id]; r != nil {
		p.change(r, func() { r.die(now, false) })
	}
}

// Registered is the outcome of a Create action. index is the cluster's at the registration, 0 where it is not known.
func (p *Pools) Registered(id string, index uint64, err error, now time.Time) {
	r := p.answered(id)
	if r == nil {
		return
	}
	p.change(r, func() {
		r.busy, r.creating = false, false
		switch {
		case r.vanished: // and perhaps made anew by this call
			r.die(now, true)
		case r.phase != Creating: // its events may have been faster
		case err != nil:
			r.retry(p.limits, now)
			r.reason, r.unclear = bounded(err.Error()), true
			p.fail(r, true, now)
		default:
			r.failed = false
			r.enter(Starting, now)
		}
		if err == nil {
			r.index, r.unlisted = index, index == 0
		}
	})
}

// answered ends a call.
func (p *Pools) answered(id string) *entry {
	p.calls--
	r := p.runners[id]
	if r != nil {
		p.touch(r.env)
	}
	return r
}

func (r *entry) retry(l Limits, now time.Time) {
	r.attempts++
	r.next = now.Add(l.Backoff(r.attempts))
}

// fail counts a start that failed. Those that were under way together fail together, and count as one.
func (p *Pools) fail(r *entry, refused bool, now time.Time) {
	r.failed = true
	e := r.env
	if !r.fresh || !e.wanted {
		return // says nothing of what is wanted now
	}
	if now.Sub(e.failedAt) > forgiven {
		e.failures = 0
	}
	if e.failures == 0 || r.sent.After(e.failedAt) {
		e.failures++
	}
	e.failedAt, e.why, e.refused = now, r.reason, refused
	if at := e.failedAt.Add(p.limits.Backoff(e.failures)); at.After(e.notBefore) {
		e.notBefore = at
	}
}

// Destroyed is the outcome of a Destroy action. lost says that a guarded removal found the runner in use by somebody else.
func (p *Pools) Destroyed(id string, lost bool, err error, now time.Time) {
	r := p.answered(id)
	if r == nil {
		return
	}
	p.change(r, func() {
		r.busy = false
		switch {
		case r.phase != Dying:
		case err != nil:
			r.retry(p.limits, now)
			r.reason = bounded(err.Error())
		case lost && r.guard:
			r.enter(Used, now)
			r.ours = false
		case !lost:
			r.enter(Dead, now)
		}
	})
}

// Removed says that a runner was purged without an action of a plan.
func (p *Pools) Removed(id string, now time.Time) {
	if r := p.runners[id]; r != nil && !r.busy && r.phase != Dead {
		p.change(r, func() { r.enter(Dead, now) })
	}
}

// Observe takes in what an event shows of a runner.
func (p *Pools) Observe(o Observed, now time.Time) {
	r := p.runners[o.ID]
	found := r == nil
	if found {
		r = &entry{id: o.ID, settings: o.Settings, phase: Starting, since: now, born: now}
		p.add(p.env(o.Env), r)
	}
	// Whatever call was made for it, one that was purged before the cluster showed it was created late.
	late := r.phase == Dead && !r.shown && o.State != Ended
	e := r.env
	p.change(r, func() {
		r.shown = true
		r.claimed = r.claimed || (o.Used && r.phase != Dead)
		if o.Reason != "" || o.State == Ready {
			r.reason = bounded(o.Reason)
		}
		r.room(o, !found, now)
		switch {
		case late:
			r.enter(Dying, now)
			r.guard = true
		case o.State == Ended:
			if !found && r.broken(now) {
				p.fail(r, false, now)
			}
			r.die(now, false)
		case o.Used && r.phase <= Idle:
			if !found { // by way of another gateway
				e.pace.add(now)
				if e.demand != nil {
					e.demand.arrive(e.lead.time(), now)
				}
			}
			r.enter(Used, now)
		case o.State == Ready && r.phase <= Starting && !o.Used:
			if !found {
				e.started(r, now)
			}
			r.failed = false
			r.enter(Idle, now)
		}
	})
}

// started takes in that a start worked.
func (e *env) started(r *entry, now time.Time) {
	e.notBefore = time.Time{}
	if !e.readyAt.After(e.failedAt) {
		e.readyAt = now
	}
	e.lead.add(now.Sub(r.born))
}

// broken reports whether the end of a runner now says that its kind cannot live.
func (r *entry) broken(now time.Time) bool {
	return r.phase <= Starting || (r.phase == Idle && now.Sub(r.since) < stable)
}

// Gone says that the cluster has the runner no more.
func (p *Pools) Gone(id string, now time.Time) {
	r := p.runners[id]
	switch {
	case r == nil:
	case r.creating:
		r.vanished = true // of this creation or of one before: its answer decides
	case r.unclear && r.phase != Dead: // it may speak of one creation, and another was the later one
		p.change(r, func() { r.die(now, true) })
	case r.phase != Dead:
		p.vanish(r, now)
	}
}

// vanish takes in that the cluster has a runner no more. Unless it was on its way out, what was shown of it says nothing of what a repeated creation may make
// anew, which somebody else may claim.
func (p *Pools) vanish(r *entry, now time.Time) {
	p.change(r, func() {
		r.claimed = r.claimed && r.phase == Dying
		r.enter(Dead, now)
	})
}

// List compares the records with a full listing of the cluster taken at index.
func (p *Pools) List(list []Observed, index uint64, now time.Time) {
	seen := make(map[string]bool, len(list))
	for _, o := range list {
		seen[o.ID] = true
		switch r := p.runners[o.ID]; {
		case r == nil:
		case r.phase == Dead && now.Sub(r.since) > relisted:
			p.change(r, func() {
				if r.enter(Dying, now); o.Used && !r.ours && !r.claimed {
					r.phase = Used // created late, and claimed by somebody else
				}
				r.guard = !o.Used
			})
		case r.phase == Used && r.unclear && !o.Used:
			// A creation that was repeated after the runner's end made it anew. Should the listing be wrong, the guard keeps the runner.
			p.change(r, func() { r.die(now, true) })
		}
		p.Observe(o, now)
	}
	for id, r := range p.runners {
		switch {
		case r.creating:
			r.vanished = r.vanished || (r.shown && !seen[id])
		case seen[id] || r.phase == Creating || r.phase == Dead:
		case r.index > index && now.Sub(r.sent) < relisted: // the listing may be older, but the next one is not
			r.index = 0
		case r.unlisted:
			r.unlisted = false
		default:
			p.vanish(r, now)
		}
	}
	for _, e := range p.envs {
		p.relieve(e, now)
		p.touch(e)
	}
}

// relieve ends what calls that failed wait for: the cluster answers again. An automatic size takes over what it finds.
func (p *Pools) relieve(e *env, now time.Time) {
	if e.refused {
		e.notBefore = time.Time{}
	}
	for _, q := range []*queue{&e.repeats, &e.destroys} {
		for _, r := range q.list {
			r.next = time.Time{}
		}
		// With one time for all, ids decide, and the heap has to follow.
		list := q.list
		q.list = nil
		for _, r := range list {
			q.add(r)
		}
	}
	if e.demand != nil {
		e.demand.found(e.warm(), now)
	}
}

// Touch has the next plan look at every environment.
func (p *Pools) Touch() {
	for _, e := range p.envs {
		p.touch(e)
	}
}

// Phase says where a runner stands.
func (p *Pools) Phase(id string) (Phase, bool) {
	r := p.runners[id]
	if r == nil {
		return 0, false
	}
	return r.phase, true
}

// Runners are the ids of an environment's runners that are not dead.
func (p *Pools) Runners(id environment.ID) []string {
	e, ok := p.envs[id]
	if !ok {
		return nil
	}
	ids := make([]string, 0, len(e.runners))
	for id := range e.runners {
		ids = append(ids, id)
	}
	return ids
}

// bounded cuts a text.
func bounded(s string) string {
	if len(s) > maxReason {
		return s[:maxReason] + "…"
	}
	return s
}
