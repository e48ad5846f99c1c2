// Package plan applies plans: it checks each against the newest state and against what was accepted beside it, and commits all
// that are waiting in one log entry.
//
// Invariant: what was accepted fits. Workers plan on snapshots and may plan the same room twice; the one goroutine of the
// [Applier] decides, and what it refuses is planned again on a state that is new enough.
package plan

import (
	"context"
	"fmt"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/command"
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
		for more := true; more && len(batch) < maxBatch; {
			select {
			case s := <-a.queue:
				batch = append(batch, s)
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
	snap *state.Snapshot
	used map[string]*sched.Usage
}

func newCheck(s *state.Snapshot) *check { return &check{s, map[string]*sched.Usage{}} }

// admit takes out of a plan what does not fit, and reports whether there was such.
func (c *check) admit(p *state.Placement) (refused bool) {
	fits := p.Place[:0:0]
	for _, a := range p.Place {
		n := c.snap.Node(nil, a.NodeID)
		if n == nil || !n.Ready() {
			refused = true
			continue
		}
		u := c.usage(a.NodeID)
		if sched.Fits(n, u, &a.Resources) != "" {
			refused = true
			continue
		}
		u.Add(&a.Resources)
		a.Job = nil // the store has it
		fits = append(fits, a)
	}
	p.Place = fits
	return refused
}

func (c *check) usage(nodeID string) *sched.Usage {
	u := c.used[nodeID]
	if u == nil {
		u = &sched.Usage{}
		for a := range c.snap.AllocsByNode(nil, nodeID) {
			if sched.Holds(a) {
				u.Add(&a.Resources)
			}
		}
		c.used[nodeID] = u
	}
	return u
}
