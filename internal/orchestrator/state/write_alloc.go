package state

import (
	"rockpool/internal/orchestrator/model"
)

// Placement is one evaluation's plan as the log carries it: allocations come without their job, which the store has.
type Placement struct {
	EvalID         string
	Namespace      string
	JobID          string
	JobCreateIndex uint64 // of the incarnation planned for; another one refuses
	JobModifyIndex uint64 // of the specification that Place and Update get
	Place          []*model.Allocation
	Update         []string // in place: these get the specification
	Stop           []Stop
	FollowUps      map[string]string // allocation id -> evaluation that will replace it later

	Deployment        *model.Deployment  `codec:",omitempty"` // to begin
	DeploymentUpdates []DeploymentStatus `codec:",omitempty"` // of others
	DeploymentID      string             `codec:",omitempty"` // that Joins become part of
	Joins             []string           `codec:",omitempty"` // those of Update that are part of the roll-out, and well: they went on running
}

// Stop ends an allocation from the servers' side.
type Stop struct {
	AllocID      string
	Desired      string // stop or evict; run with the client status unknown
	Description  string
	ClientStatus string // lost or unknown, when the node can no longer say; else empty
	PreemptedBy  string `codec:",omitempty"` // allocation that it has to make room for
	FollowUp     string `codec:",omitempty"` // evaluation that looks at it again
}

// Placed is what became of a Placement.
type Placed struct {
	Place, Update, Stop []*model.Allocation
	Refused             bool // the job or its specification is gone; stops were done nevertheless
}

// ApplyPlan puts a plan's allocations.
func (t *Tx) ApplyPlan(p *Placement) Placed {
	var done Placed
	j := t.Job(nil, p.Namespace, p.JobID)
	spec := t.spec(p.Namespace, p.JobID, p.JobModifyIndex)
	done.Refused = len(p.Place)+len(p.Update) > 0 && (j == nil || spec == nil || j.Stop || j.CreateIndex != p.JobCreateIndex)
	for _, s := range p.Stop {
		if done.Refused && s.PreemptedBy != "" {
			continue // nothing needs its room
		}
		if a := t.stopAlloc(s); a != nil {
			done.Stop = append(done.Stop, a)
		}
	}
	if done.Refused {
		return done
	}
	if e := t.Eval(nil, p.EvalID); e != nil && !e.Terminal() {
		c := *e
		c.SnapshotIndex = t.index
		t.PutEval(&c)
	}
	for _, id := range p.Update {
		if a := t.Alloc(nil, id); a != nil && a.DesiredStatus == model.DesiredRun {
			c := *a
			c.Job = spec
			t.putAlloc(&c)
			done.Update = append(done.Update, &c)
		}
	}
	for _, id := range sortedKeys(p.FollowUps) {
		if a := t.Alloc(nil, id); a != nil {
			c := *a
			c.FollowupEvalID = p.FollowUps[id]
			c.ModifyIndex = t.index // the node need not know, and the delay counts from the failure
			t.put(tableAllocs, &c)
		}
	}
	if p.Deployment != nil {
		t.PutDeployment(p.Deployment)
	}
	for _, u := range p.DeploymentUpdates {
		t.SetDeploymentStatus(u)
	}
	t.joinDeployment(p.DeploymentID, p.Joins)
	for _, a := range p.Place {
		a.Job, a.CreateIndex, a.CreateTime = spec, t.index, t.now
		t.putAlloc(a)
		done.Place = append(done.Place, a)
		if a.PreviousAllocation == "" {
			continue
		}
		if prev := t.Alloc(nil, a.PreviousAllocation); prev != nil {
			c := *prev
			c.NextAllocation = a.ID
			c.ModifyIndex = t.index
			t.put(tableAllocs, &c)
		}
	}
	t.countPlaced(done.Place)
	return done
}

// putAlloc is for changes that come from the servers.
func (t *Tx) putAlloc(a *model.Allocation) {
	a.ModifyIndex, a.AllocModifyIndex, a.ModifyTime = t.index, t.index, t.now
	t.put(tableAllocs, a)
	t.touchAlloc(a)
}

func (t *Tx) stopAlloc(s Stop) *model.Allocation {
	a := t.Alloc(nil, s.AllocID)
	if a == nil || s.Desired == model.DesiredRun && a.Terminal() {
		return nil
	}
	c := *a
	if c.DesiredStatus = s.Desired; s.Desired == model.DesiredRun {
		c.ClientDescription = s.Description
	} else {
		c.DesiredDescription = s.Description
	}
	if s.ClientStatus == model.ClientUnknown && a.ClientStatus != model.ClientUnknown {
		c.UnknownSince = t.now
	}
	if s.ClientStatus != "" && !a.ClientTerminal() {
		c.ClientStatus = s.ClientStatus
	}
	if s.PreemptedBy != "" {
		c.PreemptedBy = s.PreemptedBy
	}
	if s.FollowUp != "" {
		c.FollowupEvalID = s.FollowUp
	}
	t.putAlloc(&c)
	return &c
}

// StopAlloc asks for an allocation's end. False means that there is no such allocation.
func (t *Tx) StopAlloc(id, description string) bool {
	return t.stopAlloc(Stop{AllocID: id, Desired: model.DesiredStop, Description: description}) != nil
}

func (t *Tx) removeAlloc(a *model.Allocation) {
	t.delete(tableAllocs, a)
	t.touch(a.Namespace, a.JobID)
	t.put(tableTombstones, &Tombstone{NodeID: a.NodeID, AllocID: a.ID, Index: t.index, Time: t.now})
}

// ReportAlloc takes what a node says about one of its allocations. A tombstone goes when the node says that it has buried the allocation, and for nothing
// else: that one has ended may have been said before the node knew that it is gone. An old report never brings a finished one back.
func (t *Tx) ReportAlloc(nodeID string, u *model.AllocUpdate) {
	a := t.Alloc(nil, u.ID)
	if u.Buried {
		if d := first[Tombstone](&t.Snapshot, nil, tableTombstones, u.ID); d != nil && d.NodeID == nodeID {
			t.delete(tableTombstones, d)
		}
		return
	}
	if a == nil || a.NodeID != nodeID || a.ClientTerminal() && a.ClientStatus != model.ClientLost {
		return
	}
	if a.ClientStatus == model.ClientLost && u.ClientStatus != model.ClientComplete && u.ClientStatus != model.ClientFailed {
		return
	}
	c := *a
	c.ClientStatus, c.ClientDescription, c.TaskStates = u.ClientStatus, u.ClientDescription, u.TaskStates
	if u.NetworkStatus != nil {
		c.NetworkStatus = u.NetworkStatus
	}
	health := u.Health
	if c.DeploymentID != "" && c.ClientStatus == model.ClientFailed {
		health = &model.AllocHealth{Healthy: new(false), Timestamp: u.ModifyTime} // whatever it was before
	}
	t.takeHealth(&c, health)
	c.ModifyIndex, c.ModifyTime = t.index, max(u.ModifyTime, a.ModifyTime)
	t.put(tableAllocs, &c)
	t.touchAlloc(&c)
}

// RegisterNode puts a node. What operators and servers decided about it stays. The store keeps n.
func (t *Tx) RegisterNode(n *model.Node) *model.Node {
	n.CreateIndex, n.ModifyIndex, n.StatusUpdatedAt = t.index, t.index, t.now
	n.ComputedClass = n.ComputeClass()
	if n.SchedulingEligibility == "" {
		n.SchedulingEligibility = model.NodeEligible
	}
	if old := t.Node(nil, n.ID); old != nil {
		n.CreateIndex, n.SchedulingEligibility = old.CreateIndex, old.SchedulingEligibility
		n.Drain, n.LastDrain, n.Events = old.Drain, old.LastDrain, old.Events
		if old.Status == n.Status {
			n.StatusUpdatedAt = old.StatusUpdatedAt
		} else {
			t.nodeEvent(n, "Cluster", "Node re-registered")
		}
	} else {
		n.Drain, n.LastDrain, n.Events = nil, nil, nil
		t.nodeEvent(n, "Cluster", "Node registered")
	}
	t.put(tableNodes, n)
	t.ensureNodePool(n.NodePool)
	return n
}

// SetNodeStatus changes a node's status; false when there is no such node or it has it already.
func (t *Tx) SetNodeStatus(id, status, description string) bool {
	return t.changeNode(id, func(n *model.Node) bool {
		if n.Status == status {
			return false
		}
		n.Status, n.StatusDescription, n.StatusUpdatedAt = status, description, t.now
		switch status {
		case model.NodeDown, model.NodeDisconnected:
			t.nodeEvent(n, "Cluster", "Node heartbeat missed")
		case model.NodeReady:
			t.nodeEvent(n, "Cluster", "Node reregistered by heartbeat")
		}
		return true
	})
}

// SetNodeEligibility changes whether a node gets new allocations; false when there is no such node.
func (t *Tx) SetNodeEligibility(id, eligibility string) bool {
	return t.changeNode(id, func(n *model.Node) bool {
		n.SchedulingEligibility = eligibility
		return true
	})
}

func (t *Tx) changeNode(id string, f func(*model.Node) bool) bool {
	old := t.Node(nil, id)
	if old == nil {
		return false
	}
	c := *old
	if !f(&c) {
		return false
	}
	c.ModifyIndex = t.index
	t.put(tableNodes, &c)
	return true
}
