package state

import (
	"rockpool/internal/orchestrator/model"
)

// The usage of each node is derived from its allocations: it is kept up to date by every update, so that neither the scheduler nor the plan applier
// counts, and it is in no snapshot on disk.
const tableUsage = "usage"

// nodeUsage is what is held of one node.
type nodeUsage struct {
	NodeID string
	model.Usage
}

func usageTables() []tableDef {
	return []tableDef{
		derived(define(tableUsage, 106, false, func(u *nodeUsage, to []string) []string { return append(to, u.NodeID) }, nil)),
	}
}

// noUsage is that of a node on which nothing runs.
var noUsage = &model.Usage{}

// Usage is what is held of a node. It must not be changed. Within an update it is that of before.
func (s *Snapshot) Usage(nodeID string) *model.Usage {
	if u := first[nodeUsage](s, nil, tableUsage, nodeID); u != nil {
		return &u.Usage
	}
	return noUsage
}

// count brings the usage up to date with the update's changes of allocations.
func (t *Tx) count() {
	var changed map[string]*nodeUsage
	of := func(node string) *model.Usage {
		u := changed[node]
		if u == nil {
			u = &nodeUsage{NodeID: node, Usage: *t.Usage(node)}
			if changed == nil {
				changed = map[string]*nodeUsage{}
			}
			changed[node] = u
		}
		return &u.Usage
	}
	for _, c := range t.changes {
		before, _ := c.Before.(*model.Allocation)
		after, _ := c.After.(*model.Allocation)
		held, holds := before != nil && before.Holds(), after != nil && after.Holds()
		if held && holds && sameHold(before, after) {
			continue
		}
		if held {
			of(before.NodeID).Sub(&before.Resources)
		}
		if holds {
			of(after.NodeID).Add(&after.Resources)
		}
	}
	for _, node := range sortedKeys(changed) {
		u := changed[node]
		if !u.Empty() {
			t.insert(tableUsage, u)
		} else {
			t.txn.delete(tableNo(tableUsage), u)
		}
	}
}

// sameHold reports whether two versions of an allocation hold the same because nothing has touched it.
func sameHold(a, b *model.Allocation) bool {
	ra, rb := &a.Resources, &b.Resources
	return a.NodeID == b.NodeID && ra.DiskMB == rb.DiskMB && len(ra.Ports) == len(rb.Ports) && len(ra.Tasks) == len(rb.Tasks) &&
		(len(ra.Ports) == 0 || &ra.Ports[0] == &rb.Ports[0]) && sameTasks(ra.Tasks, rb.Tasks)
}

func sameTasks(a, b map[string]*model.AllocatedTask) bool {
	for name, t := range a {
		if b[name] != t {
			return false
		}
	}
	return true
}

// recount fills in the usage of a store whose allocations were read from a snapshot.
func recount(txn *txn) {
	t := &Tx{Snapshot: Snapshot{txn: txn}}
	nodes := map[string]*nodeUsage{}
	for a := range t.Allocs(nil, "") {
		if !a.Holds() {
			continue
		}
		u := nodes[a.NodeID]
		if u == nil {
			u = &nodeUsage{NodeID: a.NodeID}
			nodes[a.NodeID] = u
		}
		u.Add(&a.Resources)
	}
	for _, node := range sortedKeys(nodes) {
		t.insert(tableUsage, nodes[node])
	}
}
