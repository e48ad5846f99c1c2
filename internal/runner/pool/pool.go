package pool

import (
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
)

func (p Phase) String() string {
	return [...]string{"creating", "starting", "idle", "claiming", "used", "dying", "dead"}[p]
}

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
}

// Limits bound what the pools ask of the cluster.
type Limits struct {
	Concurrency int                             // calls under way
	Backoff     func(attempt int) time.Duration // before the next try; attempt starts at 1
	Patience    time.Duration                   // how long a replacement may start before a stale runner makes room for it
}

// DefaultLimits are for production.
func DefaultLimits() Limits {
	return Limits{
		Concurrency: 16,
		Backoff:     func(n int) time.Duration { return min(time.Second<<min(n-1, 10), time.Minute) },
		Patience:    30 * time.Second,
	}
}

type entry struct {
	id       string
	settings string
	rolled   bool // out of date although the settings are the same
	phase    Phase
	since    time.Time
	index    uint64 // of the registration; 0 = found in the cluster
	busy     bool   // a call is under way
	attempts int
	next     time.Time // no call before
	guard    bool      // take it by compare-and-set before it is removed
}

type env struct {
	wanted    bool
	size      int
	settings  string
	runners   map[string]*entry
	dirty     bool
	due       time.Time // when it wants to be planned although nothing happened
	failures  int       // runners in a row that ended before they were ready
	notBefore time.Time // no creation before
	nextRoom  time.Time // no stale runner makes room before
}

// Pools is the state of all pools.
type Pools struct {
	limits Limits
	newID  func(environment.ID) string
	envs   map[environment.ID]*env
	where  map[string]environment.ID
	calls  int
	follow bool // another gateway grows and shrinks the pools
}

// New makes empty pools. newID names new runners and never repeats itself.
func New(limits Limits, newID func(environment.ID) string) *Pools {
	return &Pools{limits: limits, newID: newID, envs: map[environment.ID]*env{}, where: map[string]environment.ID{}}
}

func (p *Pools) env(id environment.ID) *env {
	e, ok := p.envs[id]
	if !ok {
		e = &env{runners: map[string]*entry{}}
		p.envs[id] = e
	}
	return e
}

func (p *Pools) find(id string) (*env, *entry) {
	at, ok := p.where[id]
	if !ok {
		return nil, nil
	}
	e := p.envs[at]
	return e, e.runners[id]
}

func (p *Pools) add(id environment.ID, r *entry) {
	e := p.env(id)
	e.runners[r.id] = r
	e.dirty = true
	p.where[r.id] = id
}

func (p *Pools) forget(id string) {
	at, ok := p.where[id]
	if !ok {
		return
	}
	e := p.envs[at]
	delete(e.runners, id)
	delete(p.where, id)
	e.dirty = true
	if !e.wanted && len(e.runners) == 0 {
		delete(p.envs, at)
	}
}

func (e *env) fresh(r *entry) bool { return !r.rolled && r.settings == e.settings }

// Want sets size and settings of an environment's pool.
func (p *Pools) Want(id environment.ID, size int, settings string) {
	e := p.env(id)
	if e.settings != settings {
		e.failures, e.notBefore = 0, time.Time{} // what failed was another definition
	}
	e.wanted, e.size, e.settings, e.dirty = true, size, settings, true
}

// Roll marks all runners that nobody uses as out of date.
func (p *Pools) Roll(id environment.ID) {
	e := p.env(id)
	for _, r := range e.runners {
		if r.phase <= Idle {
			r.rolled = true
		}
	}
	e.dirty = true
}

// Drop gives an environment up: all its runners die.
func (p *Pools) Drop(id environment.ID, now time.Time) {
	e, ok := p.envs[id]
	if !ok {
		return
	}
	e.wanted, e.dirty = false, true
	for _, r := range e.runners {
		r.die(now, false)
	}
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

// Take picks an idle runner for a claim, up to date ones first, then the longest idle, or where another gateway leads the newest. The claim's outcome must be told by Claimed,
// ClaimLost or ClaimFailed.
func (p *Pools) Take(id environment.ID, now time.Time) (string, bool) {
	e, ok := p.envs[id]
	if !ok || !e.wanted {
		return "", false
	}
	var best *entry
	for _, r := range e.runners {
		if r.phase != Idle {
			continue
		}
		if best == nil || e.before(r, best, p.follow) {
			best = r
		}
	}
	if best == nil {
		return "", false
	}
	best.enter(Claiming, now)
	e.dirty = true
	return best.id, true
}

// before says which of two idle runners is handed out first. Gateways that do not lead begin at the other end, so that they seldom try for the same one.
func (e *env) before(a, b *entry, newest bool) bool {
	if fa, fb := e.fresh(a), e.fresh(b); fa != fb {
		return fa
	}
	if newest {
		a, b = b, a
	}
	if !a.since.Equal(b.since) {
		return a.since.Before(b.since)
	}
	return a.id < b.id
}

// Claimed says that the claim of a taken runner was won.
func (p *Pools) Claimed(id string, now time.Time) { p.used(id, now) }

// ClaimLost says that somebody else uses the runner.
func (p *Pools) ClaimLost(id string, now time.Time) { p.used(id, now) }

func (p *Pools) used(id string, now time.Time) {
	if e, r := p.find(id); r != nil && r.phase == Claiming {
		r.enter(Used, now)
		e.failures = 0
		e.dirty = true
	}
}

// Discard lets a runner die, whatever it was: it ended, was deleted, or its state is not known.
func (p *Pools) Discard(id string, now time.Time) {
	if e, r := p.find(id); r != nil {
		r.die(now, false)
		e.dirty = true
	}
}

// Registered is the outcome of a Create action. index is the cluster's at the registration.
func (p *Pools) Registered(id string, index uint64, err error, now time.Time) {
	p.calls--
	e, r := p.find(id)
	if r == nil {
		return
	}
	r.busy, e.dirty = false, true
	if err != nil {
		r.retry(p.limits, now)
		return
	}
	r.index = index
	if r.phase == Creating { // its events may have been faster
		r.enter(Starting, now)
	}
}

func (r *entry) retry(l Limits, now time.Time) {
	r.attempts++
	r.next = now.Add(l.Backoff(r.attempts))
}

// Destroyed is the outcome of a Destroy action. lost says that a guarded removal found the runner in use by somebody else.
func (p *Pools) Destroyed(id string, lost bool, err error, now time.Time) {
	p.calls--
	e, r := p.find(id)
	if r == nil {
		return
	}
	r.busy, e.dirty = false, true
	switch {
	case err != nil:
		r.retry(p.limits, now)
	case lost && r.guard:
		r.enter(Used, now)
	case !lost && r.phase == Dying:
		r.enter(Dead, now)
	}
}

// Observe takes in what an event shows of a runner.
func (p *Pools) Observe(o Observed, now time.Time) {
	e, r := p.find(o.ID)
	found := r == nil
	if found {
		r = &entry{id: o.ID, settings: o.Settings, phase: Starting, since: now}
		p.add(o.Env, r)
		e = p.env(o.Env)
	}
	e.dirty = true
	switch {
	case o.State == Ended:
		if !found && r.failed(now) {
			e.failures++
			e.notBefore = now.Add(p.limits.Backoff(e.failures))
		}
		r.die(now, false)
	case o.Used && r.phase <= Idle:
		r.enter(Used, now)
	case o.State == Ready && r.phase <= Starting && !o.Used:
		r.enter(Idle, now)
		e.notBefore = time.Time{}
	}
}

// stable is how long an idle runner must have lived for its end not to be taken for a failure of what it is made of.
const stable = 10 * time.Second

// failed reports whether the end of a runner now says that its kind cannot live.
func (r *entry) failed(now time.Time) bool {
	return r.phase <= Starting || (r.phase == Idle && now.Sub(r.since) < stable)
}

// Gone says that the cluster has the runner no more. It does not speak of a registration under way.
func (p *Pools) Gone(id string) {
	if e, r := p.find(id); r != nil {
		if r.busy && r.phase == Creating {
			return
		}
		e.dirty = true
		p.forget(id)
	}
}

// tombstone is how long a purged runner may still be listed before it is purged again.
const tombstone = time.Minute

// List compares the records with a full listing of the cluster taken at index.
func (p *Pools) List(list []Observed, index uint64, now time.Time) {
	seen := make(map[string]bool, len(list))
	for _, o := range list {
		seen[o.ID] = true
		if _, r := p.find(o.ID); r != nil && r.phase == Dead && now.Sub(r.since) > tombstone {
			r.enter(Dying, now)
		}
		p.Observe(o, now)
	}
	for id := range p.where {
		_, r := p.find(id)
		if !seen[id] && r.phase != Creating && r.index <= index {
			p.forget(id)
		}
	}
	p.Touch()
}

// Touch has the next plan look at every environment.
func (p *Pools) Touch() {
	for _, e := range p.envs {
		e.dirty = true
	}
}

// Phase says where a runner stands.
func (p *Pools) Phase(id string) (Phase, bool) {
	_, r := p.find(id)
	if r == nil {
		return 0, false
	}
	return r.phase, true
}

// Stats counts an environment's runners.
type Stats struct {
	Size, Idle, Used, Starting int
}

// Stats of an environment; zero when it is not known.
func (p *Pools) Stats(id environment.ID) Stats {
	e, ok := p.envs[id]
	if !ok {
		return Stats{}
	}
	s := Stats{Size: e.size}
	for _, r := range e.runners {
		switch r.phase {
		case Creating, Starting:
			s.Starting++
		case Idle:
			s.Idle++
		case Claiming, Used:
			s.Used++
		}
	}
	return s
}

// Runners are the ids of an environment's runners that are not dead.
func (p *Pools) Runners(id environment.ID) []string {
	e, ok := p.envs[id]
	if !ok {
		return nil
	}
	ids := make([]string, 0, len(e.runners))
	for _, r := range e.runners {
		if r.phase != Dead {
			ids = append(ids, r.id)
		}
	}
	return ids
}

// Ended reports whether a runner can never be used (again).
func (p Phase) Ended() bool { return p >= Dying }

// Removed says that a runner was purged without an action of a plan.
func (p *Pools) Removed(id string, now time.Time) {
	if e, r := p.find(id); r != nil && !r.busy {
		r.enter(Dead, now)
		e.dirty = true
	}
}
