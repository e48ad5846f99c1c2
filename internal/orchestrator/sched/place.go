package sched

import (
	"cmp"
	"slices"

	"rockpool/internal/orchestrator/model"
)

// place finds a node for each of want. What finds none is queued, and the first failure of a group explains the rest.
func (p *pass) place(g *model.TaskGroup, want []missing, d *model.Deployment) {
	var fields []*field // by specification: nearly always one
	rolled := d != nil && (moving(d) || p.out.Deployment == d)
	for i, w := range want {
		job, group := p.job, g
		if w.job != nil && w.job.Group(g.Name) != nil {
			job, group = w.job, w.job.Group(g.Name)
		}
		k := slices.IndexFunc(fields, func(f *field) bool { return f.job == job })
		if k < 0 {
			k = len(fields)
			fields = append(fields, p.field(job, group))
			fields[k].bound(len(want) - i)
		}
		f := fields[k]
		if m := p.out.Failed[g.Name]; m != nil && f.hopeless {
			m.CoalescedFailures++
			p.out.Queued[g.Name]++
			continue
		}
		m := &model.AllocMetric{}
		var a *model.Allocation
		if dims := p.overQuota(f.ask); len(dims) > 0 {
			m.QuotaExhausted, p.out.Quota, f.hopeless = dims, p.quota.Name, true
		} else {
			a = f.placeOne(w, m, d, rolled)
		}
		if a == nil {
			f.explainFailure(m)
			f.hopeless = f.hopeless || w.avoid == ""
			f.needs()
			p.fail(g, m)
			continue
		}
		p.countPlaced(w, a)
	}
	for _, f := range fields {
		f.finish()
	}
}

func (p *pass) fail(g *model.TaskGroup, m *model.AllocMetric) {
	if first := p.out.Failed[g.Name]; first != nil {
		first.CoalescedFailures++
	} else {
		m.NodePool = cmp.Or(p.job.NodePool, defaultPool)
		p.out.Failed[g.Name] = m
	}
	p.out.Queued[g.Name]++
}

func (p *pass) countPlaced(w missing, a *model.Allocation) {
	c := p.counts(a.TaskGroup)
	c.Preemptions += len(a.Preempts)
	switch {
	case w.canary:
		c.Canary++
	case w.previous == nil || w.reschedule || w.previous.Terminal():
		c.Place++
	case !p.stopping[w.previous]: // it is unknown, and this one stands in for it
		c.Place++
	case w.previous.ClientStatus != model.ClientLost && p.whereabouts(w.previous) != nodeHere:
		c.Place++
	}
}

// needs notes what must come free to be of use. Where others can be made to go, anything may be.
func (f *field) needs() {
	n := Size{f.ask.size.CPU, f.ask.size.MemoryMB, f.ask.size.DiskMB, 0}
	for _, w := range f.ask.wishes {
		n.Devices += w.count
	}
	if f.opts.Preempt.of(f.job.Type) {
		n = Size{}
	}
	if f.wanting {
		o := f.out.Need
		n = Size{min(n.CPU, o.CPU), min(n.MemoryMB, o.MemoryMB), min(n.DiskMB, o.DiskMB), min(n.Devices, o.Devices)}
	}
	f.out.Need, f.wanting = n, true
}

// placeOne makes an allocation on the best node, or fills in why there is none.
func (f *field) placeOne(w missing, m *model.AllocMetric, d *model.Deployment, rolled bool) *model.Allocation {
	f.avoid(w.avoid)
	defer f.avoid("")
	if f.g.EphemeralDisk.Sticky && w.previous != nil && w.avoid == "" {
		if a := f.stay(w, m, d, rolled); a != nil {
			return a
		}
	}
	f.draw()
	for c := f.best(); c != nil; c = f.best() {
		if a := f.take(c, w, m, rolledBy(d, rolled, w)); a != nil {
			return a
		}
		f.draw()
	}
	return f.preempt(f.full, w, m, rolledBy(d, rolled, w))
}

// rolledBy is the deployment that a placement counts for: one that goes on, unless it is an earlier specification that is kept up.
func rolledBy(d *model.Deployment, rolled bool, w missing) *model.Deployment {
	if d == nil || !rolled || w.job != nil {
		return nil
	}
	return d
}

// stay tries the node that has the disk of the predecessor.
func (f *field) stay(w missing, m *model.AllocMetric, d *model.Deployment, rolled bool) *model.Allocation {
	s := f.fleet.Seat(w.previous.NodeID)
	if s == nil || s.Node == nil || !s.Node.Ready() || !inDatacenters(f.job, s.Node) || !inPool(f.job, s.Node) {
		return nil
	}
	c := f.bySlot[s.slot]
	if c == nil {
		var unseen model.AllocMetric
		if c = f.look(s, &unseen); c == nil {
			return nil
		}
	}
	return f.take(c, w, m, rolledBy(d, rolled, w))
}

// take places on a candidate; nil = there is no room for it any more, and it is no candidate any longer.
func (f *field) take(c *candidate, w missing, m *model.AllocMetric, d *model.Deployment) *model.Allocation {
	if why := f.clash(c.seat); why != "" {
		f.m.filter(why, c.seat.Node.NodeClass)
		f.drop(c)
		return nil
	}
	id, seed := f.allocID(w.name)
	got, why := allocate(c.seat, f.usage(c.seat), f.g, &f.ask, seed)
	if why != "" {
		f.exhausted(c.seat, why)
		f.drop(c)
		return nil
	}
	m.ScoreMeta = f.scores(c)
	a := f.make(id, c.seat, w, got, m, d)
	f.commit(c.seat, a)
	f.grown(c)
	return a
}

func (f *field) make(id string, s *Seat, w missing, got model.AllocatedResources, m *model.AllocMetric, d *model.Deployment) *model.Allocation {
	a := &model.Allocation{
		ID: id, Namespace: f.job.Namespace, EvalID: f.eval.ID, Name: w.name, NodeID: s.Node.ID, NodeName: s.Node.Name,
		JobID: f.job.ID, Job: f.job, TaskGroup: f.g.Name, Resources: got, DesiredStatus: model.DesiredRun,
		ClientStatus: model.ClientPending, Metrics: m,
	}
	if w.previous != nil {
		a.PreviousAllocation = w.previous.ID
		a.Reschedules = w.previous.Reschedules
		if w.reschedule {
			a.Reschedules = track(w.previous, f.g.Reschedule, f.now)
		}
	}
	if d != nil {
		a.DeploymentID = d.ID
		if w.canary {
			a.DeploymentStatus = &model.AllocHealth{Canary: true}
		}
	}
	return a
}

func (f *field) commit(s *Seat, a *model.Allocation) {
	f.ownUsage(s).Add(&a.Resources)
	f.held.Add(&model.AllocatedResources{Tasks: a.Resources.Tasks, DiskMB: a.Resources.DiskMB})
	f.placed = append(f.placed, a)
	f.out.Place = append(f.out.Place, a)
	for i := range f.distinct {
		f.distinct[i].add(s.Node)
	}
}

// overQuota names the dimensions of the namespace's quota that one more allocation would exceed.
func (p *pass) overQuota(ask share) []string {
	if p.quota == nil {
		return nil
	}
	return Exceeds(p.quota, &p.held, &model.AllocatedResources{Tasks: ask.tasks, DiskMB: ask.size.DiskMB}, ask.wanted)
}

// Exceeds names the dimensions of a quota that r would exceed on top of what is held. wanted are devices that r does not name yet, by the name of the
// request; nil where it does.
func Exceeds(q *model.Quota, before *Usage, r *model.AllocatedResources, wanted map[string]int) []string {
	after := *before
	after.Add(&model.AllocatedResources{Tasks: r.Tasks, DiskMB: r.DiskMB})
	var dims []string
	over := func(limit, n int, dim string) {
		if limit > 0 && n > limit || limit < 0 && n > 0 {
			dims = append(dims, dim)
		}
	}
	over(q.CPU, after.CPU, dimCPU)
	over(q.MemoryMB, after.MemoryMB, dimMemory)
	over(q.MemoryMaxMB, after.MemoryMaxMB, dimMemoryMax)
	for _, name := range sortedKeys(q.Devices) {
		asked := 0
		for _, want := range sortedKeys(wanted) {
			if want == name || meansDevice(want, name) || meansDevice(name, want) {
				asked += wanted[want]
			}
		}
		over(q.Devices[name], held(&after, name)+asked, "devices: "+name)
	}
	return dims
}
