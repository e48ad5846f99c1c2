package state

import (
	"slices"
	"time"

	"rockpool/internal/orchestrator/model"
)

const keptNodeEvents = 10

// nodeEvent tells on a node that is being changed what happened to it.
func (t *Tx) nodeEvent(n *model.Node, subsystem, message string) {
	events := append(slices.Clone(n.Events), model.NodeEvent{Message: message, Subsystem: subsystem, Timestamp: t.now, Index: t.index})
	n.Events = events[max(0, len(events)-keptNodeEvents):]
}

// DrainUpdate begins, changes or ends the drain of a node.
type DrainUpdate struct {
	NodeID       string
	Spec         *DrainSpec // nil = no drain any more
	MarkEligible bool       // after its end
	Complete     bool       // it ends because there is nothing left, not because somebody wants it to
	AccessorID   string
	Meta         map[string]string
}

// DrainSpec is what is asked of a drain.
type DrainSpec struct {
	Deadline         time.Duration // 0 = none, negative = everything goes at once
	IgnoreSystemJobs bool
}

// SetDrain follows u; false when there is no such node, or nothing to complete.
func (t *Tx) SetDrain(u DrainUpdate) bool {
	return t.changeNode(u.NodeID, func(n *model.Node) bool {
		last := model.LastDrain{StartedAt: t.now}
		if n.LastDrain != nil && n.Drain != nil {
			last = *n.LastDrain
		}
		last.UpdatedAt = t.now
		if !u.Complete {
			last.AccessorID = u.AccessorID
			if u.Meta != nil {
				last.Meta = u.Meta
			}
		}
		switch {
		case u.Spec != nil:
			d := &model.Drain{Deadline: u.Spec.Deadline, IgnoreSystemJobs: u.Spec.IgnoreSystemJobs, StartedAt: t.now}
			if d.Deadline > 0 {
				d.ForceDeadline = t.now + int64(d.Deadline)
			}
			if n.Drain != nil {
				d.StartedAt = n.Drain.StartedAt
				t.nodeEvent(n, "Drain", "Node drain strategy updated")
			} else {
				t.nodeEvent(n, "Drain", "Node drain strategy set")
			}
			n.Drain, n.SchedulingEligibility, last.Status = d, model.NodeIneligible, model.DrainDraining
		case n.Drain == nil:
			if u.Complete || !u.MarkEligible {
				return false
			}
			n.SchedulingEligibility = model.NodeEligible
			return true
		default:
			n.Drain = nil
			last.Status = model.DrainCanceled
			message := "Node drain disabled"
			if u.Complete {
				last.Status = model.DrainComplete
				message = "Node drain complete"
			}
			t.nodeEvent(n, "Drain", message)
			if u.MarkEligible && !u.Complete {
				n.SchedulingEligibility = model.NodeEligible
			}
		}
		n.LastDrain = &last
		return true
	})
}

// DeregisterNode forgets a node; false when there is none. What it ran is lost, as the evaluations of its jobs find out.
func (t *Tx) DeregisterNode(id string) bool {
	n := t.Node(nil, id)
	if n == nil {
		return false
	}
	t.delete(tableNodes, n)
	t.NoteSilence(nil, []string{id})
	return true
}

// Transition is what is wanted of an allocation besides its running. Only what is true is taken over.
type Transition struct {
	AllocID string
	model.DesiredTransition
}

// Transit notes what is wanted of an allocation; false when there is none such.
func (t *Tx) Transit(tr Transition) bool {
	a := t.Alloc(nil, tr.AllocID)
	if a == nil {
		return false
	}
	want := tr.DesiredTransition
	if a.Transition != nil {
		want.Migrate = want.Migrate || a.Transition.Migrate
		want.Reschedule = want.Reschedule || a.Transition.Reschedule
		want.ForceReschedule = want.ForceReschedule || a.Transition.ForceReschedule
		want.NoShutdownDelay = want.NoShutdownDelay || a.Transition.NoShutdownDelay
		if want == *a.Transition {
			return true
		}
	}
	c := *a
	c.Transition = &want
	t.putAlloc(&c)
	return true
}
