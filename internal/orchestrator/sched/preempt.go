package sched

import (
	"cmp"
	"slices"

	"rockpool/internal/orchestrator/model"
)

const (
	preemptBy       = 10 // by how much the priority of what goes must be lower
	mostPreemptable = 64 // nodes looked at for it
)

// victims are allocations of a node that would have to go.
type victims struct {
	seat   *Seat
	allocs []*model.Allocation
	left   Usage // of the node without them
	got    model.AllocatedResources
	spared int // groups that would lose more at once than their migrate policy allows
}

// preempt makes room on one of the full nodes by ending allocations of lower priority: few, and of the lowest.
func (f *field) preempt(full []*Seat, w missing, m *model.AllocMetric, d *model.Deployment) *model.Allocation {
	if !f.opts.Preempt.of(f.job.Type) || len(full) == 0 {
		return nil
	}
	id, seed := f.allocID(w.name)
	var best *victims
	for _, s := range full {
		if f.infeasible(s) != "" || f.clash(s) != "" || s.Node.ID == w.avoid {
			continue
		}
		if v := f.victims(s, seed); v != nil && (best == nil || v.cheaper(best)) {
			best = v
		}
	}
	if best == nil {
		return nil
	}
	s := best.seat
	m.ScoreMeta = []model.NodeScore{{NodeID: s.Node.ID, Scores: map[string]float64{"preemption": float64(-len(best.allocs))}}}
	a := f.make(id, s, w, best.got, m, d)
	*f.ownUsage(s) = best.left
	if f.evicted == nil {
		f.evicted = map[string]int{}
	}
	for _, v := range best.allocs {
		a.Preempts = append(a.Preempts, v.ID)
		f.end(Stop{Alloc: v, Description: whyPreempted, PreemptedBy: id})
		f.evicted[groupOf(v)]++
	}
	f.commit(s, a)
	f.same[s.slot]++
	return a
}

func groupOf(a *model.Allocation) string {
	return a.Namespace + "\x00" + a.JobID + "\x00" + a.TaskGroup
}

// victims finds what has to go from a node, or nil.
func (f *field) victims(s *Seat, seed uint64) *victims {
	var may []*model.Allocation
	for a := range f.state.AllocsByNode(s.Node.ID) {
		if a.Holds() && a.DesiredStatus == model.DesiredRun && !f.stopping[a] && a.Job.Priority+preemptBy <= f.job.Priority {
			may = append(may, a)
		}
	}
	// Lowest priority first; of equal ones those that hold most of what is asked for, so that few have to go.
	useful := f.useful(s.Node, may)
	slices.SortFunc(may, func(a, b *model.Allocation) int {
		return cmp.Or(cmp.Compare(f.sparing(a), f.sparing(b)), cmp.Compare(a.Job.Priority, b.Job.Priority), cmp.Compare(useful[b], useful[a]),
			cmp.Compare(memoryOf(b), memoryOf(a)), cmp.Compare(a.ID, b.ID))
	})
	v := &victims{seat: s, left: *f.usage(s)}
	fits := func(u *Usage) bool {
		got, why := allocate(s, u, f.g, &f.ask, seed)
		v.got = got
		return why == ""
	}
	done := false
	for _, a := range may {
		v.left.Sub(&a.Resources)
		v.allocs = append(v.allocs, a)
		if done = fits(&v.left); done {
			break
		}
	}
	if !done {
		return nil
	}
	// What turned out not to be needed stays, the highest priority first.
	for i := len(v.allocs) - 1; i >= 0; i-- {
		with := v.left
		with.Add(&v.allocs[i].Resources)
		if fits(&with) {
			v.left = with
			v.allocs = slices.Delete(v.allocs, i, i+1)
		}
	}
	fits(&v.left)
	for _, a := range v.allocs {
		v.spared += f.sparing(a)
	}
	return v
}

// useful counts the instances that allocations of a node hold of what the group asks for.
func (f *field) useful(n *model.Node, allocs []*model.Allocation) map[*model.Allocation]int {
	if len(f.ask.wishes) == 0 {
		return nil
	}
	out := map[*model.Allocation]int{}
	for _, a := range allocs {
		for d, id := range a.Resources.Instances {
			at, _ := findInstance(n, d, id)
			if at != nil && slices.ContainsFunc(f.ask.wishes, func(w wish) bool { return w.means(at) && chosen(w.q.Constraints, id) }) {
				out[a]++
			}
		}
	}
	return out
}

// sparing is 1 for an allocation whose group has lost as many to this evaluation as its migrate policy lets go at once.
func (f *field) sparing(a *model.Allocation) int {
	most := model.DefaultMigrate().MaxParallel
	if g := a.Job.Group(a.TaskGroup); g != nil && g.Migrate != nil && g.Migrate.MaxParallel > 0 {
		most = g.Migrate.MaxParallel
	}
	return boolInt(f.evicted[groupOf(a)] >= most)
}

func memoryOf(a *model.Allocation) int {
	sum := 0
	for _, t := range a.Resources.Tasks {
		sum += t.MemoryMB
	}
	return sum
}

func (v *victims) cheaper(o *victims) bool {
	highest := func(v *victims) (p int) {
		for _, a := range v.allocs {
			p = max(p, a.Job.Priority)
		}
		return p
	}
	return cmp.Or(cmp.Compare(v.spared, o.spared), cmp.Compare(highest(v), highest(o)), cmp.Compare(len(v.allocs), len(o.allocs))) < 0
}
