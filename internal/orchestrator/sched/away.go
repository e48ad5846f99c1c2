package sched

import (
	"rockpool/internal/orchestrator/model"
)

type whereabouts int

const (
	nodeHere whereabouts = iota
	nodeAway             // cut off: its work may go on
	nodeGone
)

func (p *pass) whereabouts(a *model.Allocation) whereabouts {
	switch n := p.fleet.Node(a.NodeID); {
	case n == nil || n.Status == model.NodeDown:
		return nodeGone
	case n.Status == model.NodeDisconnected:
		return nodeAway
	}
	return nodeHere
}

// disconnect is the policy that an allocation was placed with, nil when its node's absence ends it.
func disconnect(a *model.Allocation) *model.DisconnectPolicy {
	if g := a.Job.Group(a.TaskGroup); g != nil && g.Disconnect != nil && g.Disconnect.LostAfter > 0 {
		return g.Disconnect
	}
	return nil
}

// unknown decides about an allocation that nobody hears of: lost means that its time is over. until is when that will be.
func (p *pass) unknown(a *model.Allocation, where whereabouts) (lost bool, until int64) {
	pol := disconnect(a)
	if pol == nil || a.ClientStatus == model.ClientPending && where == nodeAway {
		return true, 0
	}
	since := a.UnknownSince
	if a.ClientStatus != model.ClientUnknown || since == 0 {
		since = p.now
	}
	until = since + int64(pol.LostAfter)
	return until <= p.now, until
}

// markUnknown notes once that an allocation is not heard of, and looks at it again when its time is over.
func (p *pass) markUnknown(a *model.Allocation, until int64) {
	if a.ClientStatus != model.ClientUnknown {
		p.end(Stop{Alloc: a, Description: whyUnknown, Unknown: true})
		p.followUp(a, until, model.TriggerDisconnect)
	}
}

// away deals with an allocation whose node is cut off, or back without having told of it yet.
func (s *slotting) away(a *model.Allocation, where whereabouts) {
	lost, until := s.unknown(a, where)
	if lost {
		s.lose(a)
		return
	}
	s.markUnknown(a, until)
	switch {
	case s.standIn(a) != nil: // which has the slot
	case where == nodeAway && disconnect(a).Replace && !s.replaced(a):
		s.want = append(s.want, missing{name: a.Name, previous: a, avoid: a.NodeID})
	case s.unpromoted(a):
		s.canaries = append(s.canaries, a)
	default:
		s.keep = append(s.keep, a)
	}
}

// standIn is the allocation that runs in the place of another one, or nil.
func (p *pass) standIn(a *model.Allocation) *model.Allocation {
	for b := p.next[a.ID]; b != nil; b = p.next[b.ID] {
		if !b.Terminal() && !p.stopping[b] {
			return b
		}
	}
	return nil
}

// reconnected finds allocations that are back while others run in their place, and stops one of each two. It returns what it stopped.
func (s *slotting) reconnected(allocs []*model.Allocation) map[*model.Allocation]bool {
	dropped := map[*model.Allocation]bool{}
	for _, a := range allocs {
		if a.UnknownSince == 0 || a.ClientStatus != model.ClientRunning || a.DesiredStatus != model.DesiredRun || s.whereabouts(a) != nodeHere {
			continue
		}
		b := s.standIn(a)
		if b == nil || dropped[b] {
			continue
		}
		loser := b
		if !s.keepsOriginal(a, b) {
			loser = a
		}
		s.stop(loser, whyReconnected)
		dropped[loser] = true
	}
	return dropped
}

func (s *slotting) keepsOriginal(a, b *model.Allocation) bool {
	strategy := ""
	if pol := disconnect(a); pol != nil {
		strategy = pol.Reconcile
	}
	switch {
	case a.Job.Version < b.Job.Version || a.Transition != nil && a.Transition.Migrate:
		return false
	case strategy == model.ReconcileKeepOriginal:
		return true
	case strategy == model.ReconcileKeepReplacement:
		return false
	case b.ClientStatus != model.ClientRunning:
		return true
	case strategy == model.ReconcileLongestRunning:
		return startedAt(a) <= startedAt(b)
	}
	return scoreOf(a) >= scoreOf(b)
}

// startedAt is when the last of the tasks that run now started; unix ns.
func startedAt(a *model.Allocation) int64 {
	at := int64(0)
	for _, s := range a.TaskStates {
		if s != nil && s.State == model.TaskRunning {
			at = max(at, s.StartedAt)
		}
	}
	if at == 0 {
		return a.CreateTime
	}
	return at
}

// scoreOf is what the node was worth when the allocation was placed.
func scoreOf(a *model.Allocation) float64 {
	if a.Metrics != nil {
		for _, m := range a.Metrics.ScoreMeta {
			if m.NodeID == a.NodeID {
				return m.Norm
			}
		}
	}
	return 0
}
