package leader

import (
	"reflect"
	"slices"
	"sync"

	"rockpool/internal/orchestrator/broker"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
)

// ledger keeps what is held of each node in step with the state, so that nobody has to add it up.
type ledger struct {
	mu      sync.Mutex
	fleet   *sched.Fleet   // guarded by mu; nil until begin
	index   uint64         // guarded by mu; of the last commit that fleet has
	pending []state.Commit // guarded by mu; that came before begin
}

// begin sums up a snapshot. What has been committed since is added.
func (l *ledger) begin(snap *state.Snapshot) {
	fleet := sched.NewFleet(snap.Nodes(nil, ""), snap.Allocs(nil, ""))
	at := snap.Index()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fleet, l.index = fleet, at
	for _, c := range l.pending {
		if c.Index > at {
			l.take(c)
		}
	}
	l.pending = nil
}

// current is the newest, nil before begin, and the index of the commit up to which it goes. A snapshot is seen before the ledger has its changes, which it gets from the
// store as every other observer: so it may be behind the newest snapshot.
func (l *ledger) current() (*sched.Fleet, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fleet, l.index
}

// observe takes a commit and returns the room that it made, a node at a time, and the namespaces that hold less.
func (l *ledger) observe(c state.Commit) (offers []broker.Offer, namespaces []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fleet == nil {
		l.pending = append(l.pending, c)
		return nil, nil
	}
	nodes, namespaces := l.take(c)
	for _, id := range nodes {
		if s := l.fleet.Seat(id); s != nil && s.Node != nil && s.Node.Ready() {
			left := s.Left()
			offers = append(offers, broker.Offer{Index: c.Index, Node: id, Class: s.Class(), Room: broker.Room(left)})
		}
	}
	return offers, namespaces
}

// take brings the fleet up to a commit and returns the nodes that have more room now, and the namespaces that hold less. Callers hold mu.
func (l *ledger) take(c state.Commit) (roomier, namespaces []string) {
	l.index = c.Index
	var e *sched.Edit
	edit := func() *sched.Edit {
		if e == nil {
			e = l.fleet.Edit()
		}
		return e
	}
	seen := map[string]bool{}
	more := func(id string) {
		if !seen[id] {
			seen[id] = true
			roomier = append(roomier, id)
		}
	}
	for _, ch := range c.Changes {
		switch v := cmpOr(ch.After, ch.Before).(type) {
		case *model.Node:
			before, _ := ch.Before.(*model.Node)
			after, _ := ch.After.(*model.Node)
			edit().Node(before, after)
			if after != nil && after.Ready() && (before == nil || !before.Ready() || !alike(before, after)) {
				more(v.ID)
			}
		case *model.Allocation:
			before, _ := ch.Before.(*model.Allocation)
			after, _ := ch.After.(*model.Allocation)
			was, is := before != nil && before.Holds(), after != nil && after.Holds()
			if was == is {
				continue
			}
			edit().Alloc(before, after)
			if was {
				more(v.NodeID)
				if !slices.Contains(namespaces, v.Namespace) {
					namespaces = append(namespaces, v.Namespace)
				}
			}
		}
	}
	if e != nil {
		l.fleet = e.Done()
	}
	return roomier, namespaces
}

func cmpOr(a, b any) any {
	if a != nil {
		return a
	}
	return b
}

// alike reports whether two states of a node offer the same.
func alike(a, b *model.Node) bool {
	if a.ComputedClass == "" || a.ComputedClass != b.ComputedClass {
		return false
	}
	if !reflect.DeepEqual(a.Resources.Devices, b.Resources.Devices) { // one of them may be well again
		return false
	}
	acpu, amem, adisk := sched.Available(a)
	bcpu, bmem, bdisk := sched.Available(b)
	return acpu == bcpu && amem == bmem && adisk == bdisk
}
