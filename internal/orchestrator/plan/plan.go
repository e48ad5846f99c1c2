// Package plan applies plans: it checks each against the newest state and against what was accepted beside it, and commits all
// that are waiting in one log entry.
//
// Invariant: what was accepted fits. Workers plan on snapshots and may plan the same room twice; the one goroutine of the
// [Applier] decides, and what it refuses is planned again on a state that is new enough.
package plan

import (
	"context"
	"fmt"
	"slices"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
)

// Log brings an entry onto the log; see consensus.
type Log interface {
	Apply(ctx context.Context, entry any) (result any, index uint64, err error)
}

// Result is what became of a plan.
type Result struct {
	state.Placed
	Index   uint64 // at which it was applied
	Partial bool   // something was refused: plan again on a state of at least Index
}

type submission struct {
	plan   *state.Placement
	answer chan<- answer // of 1
}

type answer struct {
	result Result
	err    error
}

const (
	maxBatch   = 128             // plans in one entry
	maxPlaced  = 4096            // placements in one entry, unless a single plan has more: what else waits for the log waits that long
	applyBound = 5 * time.Second // of one entry
)

// Applier is the one place where plans become state.
type Applier struct {
	store *state.Store
	log   Log
	queue chan submission
	// Measure is told how long the steps took. nil = nobody is.
	Measure func(name string, start time.Time)
}

func (a *Applier) measure(name string, start time.Time) {
	if a.Measure != nil {
		a.Measure(name, start)
	}
}

// Waiting is how many plans wait to be looked at.
func (a *Applier) Waiting() int { return len(a.queue) }

// New makes an applier.
func New(s *state.Store, l Log) *Applier {
	return &Applier{store: s, log: l, queue: make(chan submission, maxBatch)}
}

// Submit hands in a plan and waits for its result. The plan is the applier's from here on.
func (a *Applier) Submit(ctx context.Context, p *state.Placement) (Result, error) {
	ch := make(chan answer, 1)
	select {
	case a.queue <- submission{p, ch}:
	case <-ctx.Done():
		return Result{}, context.Cause(ctx)
	}
	select {
	case r := <-ch:
		return r.result, r.err
	case <-ctx.Done():
		return Result{}, context.Cause(ctx)
	}
}

// Run applies until ctx ends.
func (a *Applier) Run(ctx context.Context) error {
	for {
		var batch []submission
		select {
		case s := <-a.queue:
			batch = append(batch, s)
		case <-ctx.Done():
			return nil
		}
		placed := len(batch[0].plan.Place)
		for more := true; more && len(batch) < maxBatch && placed < maxPlaced; {
			select {
			case s := <-a.queue:
				batch = append(batch, s)
				placed += len(s.plan.Place)
			default:
				more = false
			}
		}
		a.apply(ctx, batch)
	}
}

func (a *Applier) apply(ctx context.Context, batch []submission) {
	start := time.Now()
	check := newCheck(a.store.Snapshot())
	entry := &command.PlanResults{Now: time.Now().UnixNano()}
	partial := make([]bool, len(batch))
	for i, s := range batch {
		partial[i] = check.admit(s.plan)
		entry.Plans = append(entry.Plans, s.plan)
	}
	a.measure("nomad.nomad.plan.evaluate", start)
	ctx, cancel := context.WithTimeout(ctx, applyBound)
	defer cancel()
	start = time.Now()
	result, index, err := a.log.Apply(ctx, entry)
	a.measure("nomad.nomad.plan.apply", start)
	placed, ok := result.([]state.Placed)
	if err == nil && !ok {
		err = fault.New(fault.Internal, "the log answered a plan with %T", result)
	}
	for i, s := range batch {
		if err != nil {
			s.answer <- answer{err: fmt.Errorf("apply the plan: %w", err)}
			continue
		}
		s.answer <- answer{result: Result{placed[i], index, partial[i] || placed[i].Refused}}
	}
}

// check is the state with what a batch has been promised so far.
type check struct {
	snap   *state.Snapshot
	used   map[string]*sched.Usage
	gone   map[string]bool // allocations that make room for accepted ones
	quotas quotas
}

func newCheck(s *state.Snapshot) *check {
	return &check{snap: s, used: map[string]*sched.Usage{}, gone: map[string]bool{}, quotas: quotas{snap: s}}
}

// admit takes out of a plan what does not fit, and reports whether there was such. What the plan itself ends to make room counts as gone, but only if what
// it makes room for is accepted. A job that wants all or nothing gets nothing unless all fit.
func (c *check) admit(p *state.Placement) (refused bool) {
	evicted := map[string][]*model.Allocation{} // by what they make room for
	for _, s := range p.Stop {
		if a := c.snap.Alloc(nil, s.AllocID); s.PreemptedBy != "" && a != nil && a.Holds() && !c.gone[a.ID] {
			evicted[s.PreemptedBy] = append(evicted[s.PreemptedBy], a)
		}
	}
	fits := p.Place[:0:0]
	var took map[string][]*model.Allocation // the room that accepted ones got; nil where nothing goes
	if slices.ContainsFunc(p.Stop, func(s state.Stop) bool { return s.PreemptedBy != "" }) {
		took = map[string][]*model.Allocation{}
	}
	c.quotas.stop(p)
	for _, a := range p.Place {
		room, ok := c.fits(p, a, evicted[a.ID])
		if !ok {
			refused = true
			continue
		}
		if took != nil {
			took[a.ID] = room
		}
		a.Job = nil // the store has it
		fits = append(fits, a)
	}
	if refused {
		if j := c.snap.Job(nil, p.Namespace, p.JobID); j != nil && j.AllAtOnce {
			for _, a := range fits {
				c.takeBack(p, a, took[a.ID])
			}
			fits = nil
			clear(took)
		}
	}
	p.Stop = slices.DeleteFunc(p.Stop, func(s state.Stop) bool {
		_, accepted := took[s.PreemptedBy]
		return s.PreemptedBy != "" && !accepted
	})
	p.Place = fits
	return refused
}

// fits takes an allocation into account, if it fits, in the room of those of its node that go for it; it returns those.
func (c *check) fits(p *state.Placement, a *model.Allocation, evicted []*model.Allocation) (took []*model.Allocation, ok bool) {
	n := c.snap.Node(nil, a.NodeID)
	if n == nil || !n.Ready() {
		return nil, false
	}
	u := c.usage(a.NodeID)
	after := *u
	for _, v := range evicted {
		if v.NodeID == a.NodeID && !c.gone[v.ID] {
			after.Sub(&v.Resources)
			took = append(took, v)
		}
	}
	if sched.Fits(n, &after, &a.Resources) != "" || !c.quotas.admit(p, a) {
		return nil, false
	}
	after.Add(&a.Resources)
	*u = after
	for _, v := range took {
		c.gone[v.ID] = true
	}
	return took, true
}

// takeBack undoes fits.
func (c *check) takeBack(p *state.Placement, a *model.Allocation, took []*model.Allocation) {
	u := c.usage(a.NodeID)
	u.Sub(&a.Resources)
	c.quotas.giveBack(p, a)
	for _, v := range took {
		u.Add(&v.Resources)
		delete(c.gone, v.ID)
	}
}

func (c *check) usage(nodeID string) *sched.Usage {
	u := c.used[nodeID]
	if u == nil {
		now := *c.snap.Usage(nodeID)
		u = &now
		c.used[nodeID] = u
	}
	return u
}
