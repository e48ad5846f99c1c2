package httpapi

import (
	"strings"

	"rockpool/internal/auth"
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// What nodes say is taken as said by machines that run strangers' code: one that was taken over must not reach beyond its own allocations.

const (
	mostOfANode = 1_000_000_000 // MHz or MB; sums over all nodes fit into an integer
	keptEvents  = 10            // of a task
	maxTold     = 4 << 10       // bytes of a text of a report
	maxTasks    = 1000          // of an allocation
	maxDetails  = 64            // of an event
)

// plausible refuses a node that could not be.
func plausible(n *model.Node) error {
	amounts := []int{
		n.Resources.CPU, n.Resources.Cores, n.Resources.MemoryMB, n.Resources.DiskMB, n.Reserved.CPU, n.Reserved.Cores, n.Reserved.MemoryMB, n.Reserved.DiskMB,
	}
	for _, v := range amounts {
		if v < 0 || v > mostOfANode {
			return fault.New(fault.Invalid, "a resource of the node is %d: it must be 0 to %d", v, mostOfANode)
		}
	}
	for name, d := range n.Drivers {
		if d == nil {
			return fault.New(fault.Invalid, "the node's driver %q is null", name)
		}
	}
	for name, v := range n.HostVolumes {
		if v == nil {
			return fault.New(fault.Invalid, "the node's host volume %q is null", name)
		}
	}
	switch {
	case n.Status != model.NodeReady && n.Status != model.NodeInitializing: // what else there is servers decide
		return fault.New(fault.Invalid, "a node registers with the status %q or %q, not with %q", model.NodeReady, model.NodeInitializing, n.Status)
	case !sharedName.MatchString(n.NodePool) || n.NodePool == model.PoolAll:
		return fault.New(fault.Invalid, "a node cannot be in node pool %q", n.NodePool)
	case len(n.Name) > maxTold || !state.ValidKey(n.Name):
		return fault.New(fault.Invalid, "the node's name is longer than %d bytes or holds a NUL", maxTold)
	}
	return nil
}

// mayMove asks a known node that comes with another name or another pool for what a new one needs: its secret proves which node it is, and an introduction
// token was for one name and one pool.
func (a *API) mayMove(token string, old, n *model.Node) error {
	if old.NodePool == n.NodePool && old.Name == n.Name || a.mayJoin(token) {
		return nil
	}
	return fault.New(fault.Forbidden, "the node is known as %q in node pool %q: to be %q in %q it needs a token to join with, as a new one does",
		old.Name, old.NodePool, n.Name, n.NodePool)
}

// mostTold bounds the texts of a report in bytes, as each stands where it is used: packed, one may stand for thousands.
const mostTold = nodeBody

// reported keeps of what a node reports what it can know: of its own allocations, about states that a client's side has, at no time that is yet to come.
func reported(s *state.Snapshot, nodeID string, in []*model.AllocUpdate, now int64) ([]*model.AllocUpdate, error) {
	out := make([]*model.AllocUpdate, 0, len(in))
	said := 0
	for _, u := range in {
		if u == nil {
			return nil, fault.New(fault.Invalid, "a report is null")
		}
		al := s.Alloc(nil, u.ID)
		if !u.Buried && (al == nil || al.NodeID != nodeID) {
			continue // it was purged meanwhile, or it never was the node's
		}
		switch u.ClientStatus {
		case model.ClientPending, model.ClientRunning, model.ClientComplete, model.ClientFailed:
		default:
			if !u.Buried {
				return nil, fault.New(fault.Invalid, "a node cannot report the status %q", u.ClientStatus)
			}
		}
		if len(u.TaskStates) > maxTasks {
			return nil, fault.New(fault.Invalid, "a report is about at most %d tasks", maxTasks)
		}
		u.ModifyTime = min(u.ModifyTime, now)
		u.ClientDescription = told(u.ClientDescription)
		said += len(u.ClientDescription)
		if h := u.Health; h != nil {
			h.Timestamp = min(h.Timestamp, now)
		}
		for name, t := range u.TaskStates {
			if t == nil {
				return nil, fault.New(fault.Invalid, "the state of task %q is null", name)
			}
			t.State = told(t.State)
			t.LastRestart, t.StartedAt, t.FinishedAt = min(t.LastRestart, now), min(t.StartedAt, now), min(t.FinishedAt, now)
			t.Events = t.Events[max(0, len(t.Events)-keptEvents):]
			for _, e := range t.Events {
				if e == nil {
					return nil, fault.New(fault.Invalid, "an event of task %q is null", name)
				}
				if len(e.Details) > maxDetails {
					return nil, fault.New(fault.Invalid, "an event of task %q has %d details, at most %d are kept", name, len(e.Details), maxDetails)
				}
				e.Time = min(e.Time, now)
				e.Type, e.DisplayMessage = told(e.Type), told(e.DisplayMessage)
				e.Details = toldAll(e.Details)
				said += sizeOf(e)
			}
			if said += len(name) + len(t.State); said > mostTold {
				return nil, errSaidTooMuch
			}
		}
		if said > mostTold {
			return nil, errSaidTooMuch
		}
		out = append(out, u)
	}
	return out, nil
}

var errSaidTooMuch = fault.New(fault.TooLarge, "the texts of a report are more than %d bytes: report fewer allocations at a time", mostTold)

// told cuts a text.
func told(s string) string {
	if len(s) <= maxTold {
		return s
	}
	return strings.ToValidUTF8(s[:maxTold], "")
}

// toldAll cuts the texts of details, in a copy: they may be those of other events too.
func toldAll(details map[string]string) map[string]string {
	long := func(s string) bool { return len(s) > maxTold }
	for k, v := range details {
		if !long(k) && !long(v) {
			continue
		}
		cut := make(map[string]string, len(details))
		for k, v := range details {
			cut[told(k)] = told(v)
		}
		return cut
	}
	return details
}

func sizeOf(e *model.TaskEvent) int {
	n := len(e.Type) + len(e.DisplayMessage)
	for k, v := range e.Details {
		n += len(k) + len(v)
	}
	return n
}

// observeNodes ends the connection of a node that has been purged. It runs on the goroutine that applies the log.
func (a *API) observeNodes(c state.Commit) {
	for _, ch := range c.Changes {
		if n, ok := ch.Before.(*model.Node); ok && n != nil && ch.After == nil {
			a.nodes.Drop(n.ID)
		}
	}
}

// stillNode reports whether a node that showed a secret is the one of that id yet.
func (a *API) stillNode(id, secret string) bool {
	n := a.store.Snapshot().Node(nil, id)
	return n != nil && auth.TokenEqual(secret, n.SecretID)
}
