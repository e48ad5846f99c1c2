package leader

import (
	"context"
	"time"

	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

const migrateStep = 256 // allocations per log entry

// drainNodes empties the nodes that are to be emptied. All that it knows is in the state, so a new term goes on where the last one was.
func (t *term) drainNodes(ctx context.Context) error {
	for {
		watch := state.NewWatch()
		now := time.Now().UnixNano()
		p := planDrain(t.cfg.Store.Snapshot(), watch, now)
		entries := p.entries(now)
		if err := t.applyAll(ctx, "a drain", entries); err != nil {
			p.next = time.Now().Add(time.Second).UnixNano()
		} else if len(entries) > 0 {
			continue
		}
		if !wait(ctx, watch, p.next) {
			return nil
		}
	}
}

// drainPlan is what may leave now.
type drainPlan struct {
	migrate []*model.Allocation
	done    []string // nodes that are empty
	next    int64    // when to look again, unix ns; 0 = when something changes

	snap    *state.Snapshot
	watch   state.Watch
	now     int64
	budgets map[groupOf]int
}

type groupOf struct{ namespace, job, group string }

// planDrain decides for all draining nodes together, because a group may have allocations on several.
//
// Services leave as migrate.max_parallel of their group allows: as many as are well beyond count - max_parallel. Batch work may run to its end until the
// deadline. What runs on every node leaves last, when there is nothing else. At the deadline, or without one to wait for (negative), all goes at once.
func planDrain(snap *state.Snapshot, w state.Watch, now int64) *drainPlan {
	p := &drainPlan{snap: snap, watch: w, now: now, budgets: map[groupOf]int{}}
	for n := range snap.DrainingNodes(w) {
		p.node(n)
	}
	return p
}

func (p *drainPlan) node(n *model.Node) {
	d := n.Drain
	forced := d.Deadline < 0 || d.ForceDeadline != 0 && p.now >= d.ForceDeadline
	if !forced {
		p.next = soonest(p.next, d.ForceDeadline)
	}
	left := 0
	var last []*model.Allocation // of system jobs
	for a := range p.snap.AllocsByNode(p.watch, n.ID) {
		if a.ClientTerminal() {
			continue
		}
		if a.Job.Type == model.JobTypeSystem || a.Job.Type == model.JobTypeSysbatch {
			if !d.IgnoreSystemJobs {
				last = append(last, a)
			}
			continue
		}
		left++
		if !leaving(a) && (forced || a.Job.Type == model.JobTypeService && p.mayLeave(a)) {
			p.migrate = append(p.migrate, a)
		}
	}
	if left > 0 && !forced {
		return
	}
	for _, a := range last {
		if !leaving(a) {
			p.migrate = append(p.migrate, a)
		}
	}
	if left+len(last) == 0 {
		p.done = append(p.done, n.ID)
	}
}

// leaving reports whether an allocation is on its way already.
func leaving(a *model.Allocation) bool {
	return a.DesiredStatus != model.DesiredRun || a.Transition != nil && a.Transition.Migrate
}

// mayLeave takes one off what may still leave of an allocation's group.
func (p *drainPlan) mayLeave(a *model.Allocation) bool {
	j := p.snap.Job(p.watch, a.Namespace, a.JobID)
	if j == nil || j.Stop || j.Group(a.TaskGroup) == nil {
		return true // nothing is put in its place
	}
	k := groupOf{a.Namespace, a.JobID, a.TaskGroup}
	left, ok := p.budgets[k]
	if !ok {
		left = p.budget(j, j.Group(a.TaskGroup))
	}
	p.budgets[k] = left - 1
	return left > 0
}

func (p *drainPlan) budget(j *model.Job, g *model.TaskGroup) int {
	pol := model.DefaultMigrate()
	if g.Migrate != nil {
		pol = *g.Migrate
	}
	well := 0
	for a := range p.snap.AllocsByJob(p.watch, j.Namespace, j.ID) {
		if a.TaskGroup == g.Name && !leaving(a) && p.well(a, g, pol) {
			well++
		}
	}
	return well - (g.Count - max(pol.MaxParallel, 1))
}

// well reports whether an allocation does its work. Where its node says nothing about that, and there are no checks that only the node could know of, one that has run
// for the least time does.
func (p *drainPlan) well(a *model.Allocation, g *model.TaskGroup, pol model.MigratePolicy) bool {
	switch {
	case a.ClientStatus != model.ClientRunning || state.Unhealthy(a):
		return false
	case state.Healthy(a):
		return true
	case pol.HealthCheck == model.HealthChecks && checked(g):
		return false
	}
	started := a.CreateTime
	for _, s := range a.TaskStates {
		started = max(started, s.StartedAt)
	}
	at := started + int64(pol.MinHealthyTime)
	if at > p.now {
		p.next = soonest(p.next, at)
	}
	return at <= p.now
}

func checked(g *model.TaskGroup) bool {
	services := g.Services
	for _, t := range g.Tasks {
		services = append(services[:len(services):len(services)], t.Services...)
	}
	for _, s := range services {
		if len(s.Checks) > 0 {
			return true
		}
	}
	return false
}

// entries are the plan as the log carries it.
func (p *drainPlan) entries(now int64) []any {
	var out []any
	for left := p.migrate; len(left) > 0; {
		n := min(len(left), migrateStep)
		e := &command.AllocTransitions{Now: now}
		seen := map[[2]string]bool{}
		for _, a := range left[:n] {
			e.Transitions = append(e.Transitions, state.Transition{AllocID: a.ID, DesiredTransition: model.DesiredTransition{Migrate: true}})
			if k := [2]string{a.Namespace, a.JobID}; !seen[k] {
				seen[k] = true
				ev := JobEval(a.Job, model.TriggerNodeDrain)
				ev.NodeID = a.NodeID
				e.Evals = append(e.Evals, ev)
			}
		}
		out, left = append(out, e), left[n:]
	}
	if len(p.done) > 0 {
		e := &command.NodeDrain{Now: now}
		for _, id := range p.done {
			e.Updates = append(e.Updates, state.DrainUpdate{NodeID: id, Complete: true})
		}
		out = append(out, e)
	}
	return out
}
