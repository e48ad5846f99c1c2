package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
)

// leaveTimeout is how long an allocation waits for those that had to go for it, beyond the time that they may take by their own specification.
const leaveTimeout = 2 * time.Minute

// before is an allocation of this node that must have ended before another one starts: the scheduler gives its room away as soon as it is asked to stop.
type before struct {
	id     string
	quiet  <-chan struct{} // closed when nothing of it runs any more
	within time.Duration   // it should have ended by then
}

// precedes finds who must have ended before r starts. The caller holds a.mu.
func (a *Agent) precedes(r *allocRunner) (all []before) {
	alloc := r.alloc // nobody else has r yet
	first := func(o *allocRunner) {
		if o == r || o.over() || slices.ContainsFunc(all, func(b before) bool { return b.id == o.id }) {
			return
		}
		all = append(all, before{o.id, o.quiet, o.mayTake()})
	}
	for _, id := range alloc.Preempts {
		if o := a.runners[id]; o != nil {
			first(o)
		}
	}
	if o := a.runners[alloc.PreviousAllocation]; o != nil && o.leaving() { // a canary runs beside what it may replace one day
		first(o)
	}
	if !exclusive(&alloc.Resources) {
		return all
	}
	for _, o := range a.runners {
		if !o.over() && o.leaving() && o.holdsOf(&alloc.Resources) {
			first(o)
		}
	}
	return all
}

// over reports whether nothing of the allocation runs or ever will.
func (r *allocRunner) over() bool {
	select {
	case <-r.quiet:
		return true
	default:
		return false
	}
}

// leaving reports whether the allocation has ended, or is to.
func (r *allocRunner) leaving() bool {
	if r.stop.isSet() {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return (&model.Allocation{ClientStatus: r.reported.ClientStatus}).ClientTerminal()
}

// mayTake is how long the allocation's tasks may take to end, by their specification.
func (r *allocRunner) mayTake() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.alloc.Job.Group(r.alloc.TaskGroup)
	if g == nil {
		return 0
	}
	d := g.ShutdownDelay
	for _, t := range g.Tasks { // a leader before the others, and what cleans up after them all
		d += t.ShutdownDelay + max(t.KillTimeout, defaultKillTimeout) + killGrace
	}
	return d
}

// exclusive reports whether a placement holds anything that two cannot have at a time.
func exclusive(res *model.AllocatedResources) bool {
	if len(res.Ports) > 0 {
		return true
	}
	for _, t := range res.Tasks {
		if len(t.Devices) > 0 {
			return true
		}
	}
	return false
}

// holdsOf reports whether the allocation holds a port or a device that is also in res.
func (r *allocRunner) holdsOf(res *model.AllocatedResources) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.alloc.Resources.Ports {
		if slices.ContainsFunc(res.Ports, func(q model.AllocatedPort) bool { return p.Value == q.Value }) {
			return true
		}
	}
	mine := devices(&r.alloc.Resources)
	for id := range devices(res) {
		if mine[id] {
			return true
		}
	}
	return false
}

func devices(res *model.AllocatedResources) map[string]bool {
	ids := map[string]bool{}
	for _, t := range res.Tasks {
		for _, d := range t.Devices {
			for _, id := range d.DeviceIDs {
				ids[strings.Join([]string{d.Vendor, d.Type, d.Name, id}, "/")] = true
			}
		}
	}
	return ids
}

// turn waits until those have ended that had to go for the task's allocation. An allocation that cannot have its place fails: to start it beside them would take
// from both what each was promised.
func (t *taskRunner) turn(ctx context.Context) error {
	t.alloc.mu.Lock()
	waiting := t.alloc.before
	t.alloc.mu.Unlock()
	for _, b := range waiting {
		select {
		case <-b.quiet:
			continue
		default:
		}
		t.setup(fmt.Sprintf("Waiting for allocation %s to end, whose place it takes", short(b.id)))
		late := time.NewTimer(b.within + leaveTimeout)
		select {
		case <-b.quiet:
			late.Stop()
		case <-late.C:
			return &setupError{fault.New(fault.Unavailable, "allocation %s, whose place it takes, has not ended within %v", b.id, b.within+leaveTimeout)}
		case <-ctx.Done():
			late.Stop()
			return context.Cause(ctx)
		}
	}
	t.alloc.mu.Lock()
	t.alloc.before = nil
	t.alloc.mu.Unlock()
	return nil
}

// setup tells of a step on the way to the start of a task.
func (t *taskRunner) setup(text string) {
	_ = t.update(func(r *taskRecord) { // an error is logged there, and the next update writes it all again
		r.State = withEvents(r.State, event(model.TaskSetup, text, "message", text))
	})
}

// short is how people are told of an allocation.
func short(id string) string { return id[:min(len(id), 8)] }
