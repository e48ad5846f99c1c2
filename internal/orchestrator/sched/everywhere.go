package sched

import (
	"time"

	"rockpool/internal/orchestrator/model"
)

// everywhere brings a group of a system or sysbatch job to one allocation on each node that takes it.
func (p *pass) everywhere(g *model.TaskGroup, allocs []*model.Allocation) {
	c := p.counts(g.Name)
	covered := map[string]bool{}
	var outdatedOnes []*model.Allocation
	settling := 0 // of the new specification, and not running yet
	for _, a := range allocs {
		where := p.whereabouts(a)
		n := p.fleet.Node(a.NodeID)
		switch {
		case a.DesiredStatus != model.DesiredRun:
		case g.Count == 0:
			p.stop(a, whyNotNeeded)
		case !a.ClientTerminal() && (where == nodeAway || a.ClientStatus == model.ClientUnknown):
			if lost, until := p.unknown(a, where); lost {
				p.end(Stop{Alloc: a, Description: whyLost, Lost: true})
				c.Stop++
			} else {
				p.markUnknown(a, until)
				covered[a.NodeID] = true
				c.Ignore++
			}
		case !a.ClientTerminal() && where == nodeGone:
			p.end(Stop{Alloc: a, Description: whyLost, Lost: true})
			c.Stop++
		case a.ClientStatus == model.ClientLost || a.ClientStatus == model.ClientFailed && a.Transition != nil && a.Transition.ForceReschedule:
		case a.ClientTerminal():
			covered[a.NodeID] = covered[a.NodeID] || !outdated(a, p.job)
		case a.Transition != nil && a.Transition.Migrate:
			p.end(Stop{Alloc: a, Description: whyMigrating})
			c.Migrate++
		case !p.mayStand(g, n):
			p.stop(a, whyNotNeeded)
		case covered[a.NodeID]: // twice on one node
			p.stop(a, whyNotNeeded)
		case current(a, p.job):
			covered[a.NodeID] = true
			c.Ignore++
			if a.ClientStatus == model.ClientPending {
				settling++
			}
		case p.inPlace(a):
			covered[a.NodeID] = true
			p.out.Update = append(p.out.Update, a)
			c.InPlaceUpdate++
		default:
			outdatedOnes = append(outdatedOnes, a)
		}
	}
	limit := len(outdatedOnes)
	if g.Update != nil && g.Update.MaxParallel > 0 {
		limit = min(limit, max(g.Update.MaxParallel-settling, 0))
	}
	var want []missing
	for _, a := range outdatedOnes[:limit] {
		p.end(Stop{Alloc: a, Description: whyUpdating})
		c.DestructiveUpdate++
		want = append(want, missing{name: a.Name, previous: a})
	}
	for _, a := range outdatedOnes[limit:] {
		covered[a.NodeID] = true
		c.Ignore++
		p.out.RollAt = p.now + int64(max(g.Update.Stagger, shortestStagger))
	}
	if g.Count > 0 {
		p.cover(g, covered, want)
	}
}

// shortestStagger is how long the next part of an update of a system job waits at least.
const shortestStagger = time.Second

// mayStand reports whether what runs on a node may stay there under the job as it is now. That the node takes nothing new does not matter.
func (p *pass) mayStand(g *model.TaskGroup, n *model.Node) bool {
	if n == nil || !inDatacenters(p.job, n) || !inPool(p.job, n) {
		return false
	}
	for _, cs := range p.conditions(p.job, g) {
		for _, c := range cs {
			if c.Operand != opDistinctHosts && c.Operand != opDistinctProperty && !Matches(n, c.LTarget, c.Operand, c.RTarget) {
				return false
			}
		}
	}
	return true
}

// cover places a group on each node that is ready and has none. Where it may not run, nothing is missing; where it finds no room, that is said.
func (p *pass) cover(g *model.TaskGroup, covered map[string]bool, updates []missing) {
	f := p.field(p.job, g)
	previous := map[string]*model.Allocation{}
	for _, m := range updates {
		previous[m.previous.NodeID] = m.previous
	}
	for s := range f.nodes() {
		id := s.Node.ID
		if covered[id] || p.eval.NodeID != "" && p.eval.TriggeredBy == model.TriggerNodeUpdate && p.eval.NodeID != id && previous[id] == nil {
			continue
		}
		m := &model.AllocMetric{NodesAvailable: f.available, NodesInPool: f.inPool, NodesEvaluated: 1}
		f.full = nil
		c := f.look(s, m)
		if c == nil && m.NodesFiltered > 0 {
			continue
		}
		w := missing{name: allocName(p.job.ID, g.Name, 0), previous: previous[id]}
		var a *model.Allocation
		switch dims := p.overQuota(f.ask); {
		case len(dims) > 0:
			m.QuotaExhausted, p.out.Quota = dims, p.quota.Name
		case c != nil:
			a = f.take(c, w, m, nil)
		}
		if a == nil {
			a = f.preempt([]*Seat{s}, w, m, nil)
		}
		if a == nil {
			f.needs()
			p.fail(g, m)
			continue
		}
		p.countPlaced(w, a)
	}
	if p.out.Failed[g.Name] != nil {
		f.eligibility()
	}
}
