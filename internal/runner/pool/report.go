package pool

import (
	"cmp"
	"slices"
	"time"

	"rockpool/internal/environment"
)

// Stats counts an environment's runners.
type Stats struct {
	Size     int // that shall stand ready
	Idle     int
	Starting int // on their way, or to be created
	Used     int
	Removing int  // on their way out
	Failed   int  // of those on their way in or out, how many could not be started
	Short    bool // the cluster has no room for all of them
	Possible int  // while it has not: runners that it has room for, used ones included
}

// Stats of an environment; zero when it is not known.
func (p *Pools) Stats(id environment.ID) Stats {
	e, ok := p.envs[id]
	if !ok {
		return Stats{}
	}
	s := Stats{
		Size: e.spec.Size, Idle: e.of(Idle), Starting: e.of(Creating) + e.of(Starting), Used: e.of(Claiming) + e.of(Used),
		Removing: e.of(Dying), Failed: e.failed,
	}
	if e.demand != nil {
		s.Size = e.demand.size
	}
	if e.blocked > 0 {
		s.Short, s.Possible = true, e.seated()
	}
	return s
}

// Report is everything there is to tell about an environment's pool.
type Report struct {
	Stats
	Spec      Spec
	Automatic *Automatic // nil = the size is fixed
	Failures  Failures
	Shortage  *Shortage // nil = the cluster has room for all that are wanted, as far as it has said
	Hits      Hits
	Runners   []Runner // that are not dead, by phase and age
	Held      int      // runners of all environments that count against the limit
}

// Automatic is what an automatic size is chosen by.
type Automatic struct {
	Need int           // the size that enough of the claims needed
	Lead time.Duration // that a start is reckoned to take
}

// Shortage says that the cluster has no room for more runners.
type Shortage struct {
	Possible int       // as in Stats
	Since    time.Time // of the runner that waits longest for a place
	Reason   string    // in the cluster's words
}

// Failures are starts that failed and have not been followed by one that worked.
type Failures struct {
	Count  int // in a row
	Last   time.Time
	Reason string    // of the last
	Retry  time.Time // no start before; zero = at once
}

// Hits are claims and how many of them were served at once.
type Hits struct {
	Claims, Served uint64
	Share          float64 // lately; 1 when there was no claim
}

// Runner is one runner of a report.
type Runner struct {
	ID      string
	Phase   Phase
	Since   time.Time // in this phase
	Current bool      // made of the environment's present definition
	Failed  bool
	Reason  string
}

// Report of an environment; false when it is not wanted.
func (p *Pools) Report(id environment.ID, runners bool, now time.Time) (Report, bool) {
	e, ok := p.envs[id]
	if !ok || !e.wanted {
		return Report{}, false
	}
	r := Report{
		Stats: p.Stats(id), Spec: e.spec, Held: p.held,
		Failures: Failures{Count: e.failures, Last: e.failedAt, Reason: e.why},
		Hits:     Hits{Claims: e.hits.claims, Served: e.hits.served, Share: 1},
	}
	if e.failures > 0 && now.Before(e.notBefore) {
		r.Failures.Retry = e.notBefore
	}
	if e.hits.recentClaims > 0 {
		r.Hits.Share = e.hits.recentServed / e.hits.recentClaims
	}
	if d := e.demand; d != nil {
		r.Automatic = &Automatic{Need: d.need(now), Lead: e.lead.time()}
	}
	r.Shortage = e.shortage()
	if !runners {
		return r, true
	}
	for _, x := range e.runners {
		reason := x.reason
		if reason == "" {
			reason = p.reason(x, now)
		}
		r.Runners = append(r.Runners, Runner{ID: x.id, Phase: x.phase, Since: x.since, Current: x.fresh, Failed: x.failed, Reason: reason})
	}
	slices.SortFunc(r.Runners, func(a, b Runner) int {
		return cmp.Or(cmp.Compare(a.Phase, b.Phase), a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID))
	})
	return r, true
}

// reason is why a runner is where it is, when the cluster gave none.
func (p *Pools) reason(r *entry, now time.Time) string {
	e := r.env
	switch {
	case r.phase == Creating && r.busy:
		return "it is being registered"
	case r.phase == Creating && now.Before(e.notBefore):
		return "earlier starts failed; this one waits for the next try"
	case r.phase == Creating && !p.room():
		return "the limit of all runners is reached"
	case r.phase == Creating:
		return "it waits for its turn to be registered"
	case r.phase == Starting && !r.noRoom.IsZero():
		return "the cluster has no room for it"
	case r.phase == Starting:
		return "the cluster has not said that it runs"
	case r.phase == Idle && !r.fresh:
		return "it is of an earlier definition and leaves when a newer one is ready"
	case r.phase == Claiming:
		return "it is being claimed"
	case r.phase == Dying:
		return "it is being removed"
	}
	return ""
}

// Arrived notes a claim for the hit rate and an automatic size, and whether it was served at once.
func (p *Pools) Arrived(id environment.ID, served bool, now time.Time) {
	e, ok := p.envs[id]
	if !ok || !e.wanted {
		return
	}
	e.hits.add(served, now)
	if e.demand != nil {
		e.demand.arrive(e.lead.time(), now)
		p.touch(e)
	}
}

// Refusal is why a claim is not served now.
type Refusal uint8

// The refusals.
const (
	NoneIdle   Refusal = iota
	UsedLimit          // as many of the environment's runners are used as may be
	TotalLimit         // there are as many runners as may be
	Failing            // runners could not be started lately
	NoRoom             // the cluster has no room for more
)

// Why says why a claim is refused, and for failing starts and want of room the cluster's words.
func (p *Pools) Why(id environment.ID) (Refusal, string) {
	e, ok := p.envs[id]
	switch {
	case !ok:
	case p.full(e):
		return UsedLimit, ""
	case e.blocked > 0:
		return NoRoom, e.shortage().Reason
	case e.failures > 0:
		return Failing, e.why
	case !p.room() && e.warm() > 0:
		return TotalLimit, ""
	}
	return NoneIdle, ""
}

// Expected is how long the claim at a place in the queue will wait, from 1, as far as can be told; 0 = it cannot be told.
func (p *Pools) Expected(id environment.ID, position int, now time.Time) time.Duration {
	e, ok := p.envs[id]
	if !ok || position < 1 || p.full(e) {
		return 0
	}
	lead := e.lead.time()
	coming := e.count[1][Starting] + e.count[1][Creating] - e.blocked
	if coming == 0 {
		return 0
	}
	// Each round brings as many as are on their way, and they are replaced as they are taken.
	wait := lead * time.Duration((position+coming-1)/coming)
	if oldest := e.starting.first(); oldest != nil {
		wait -= min(now.Sub(oldest.born), lead-min(lead, time.Second))
	}
	return max(wait, e.notBefore.Sub(now), time.Second)
}
