package sched

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"rockpool/internal/orchestrator/model"
)

// Fleet is all nodes with what allocations hold of each, at one moment. It never changes: an Edit makes the next one, which shares what it did not touch,
// so that whoever decides on one does not hold up those who report changes.
type Fleet struct {
	slots      *slots
	blocks     []*block
	ready      map[place][]int32 // slots of the nodes that take new allocations, sorted
	namespaces map[string]Usage
}

const blockSize = 64

type block struct {
	owner uint64 // the Edit that made it
	seats [blockSize]*Seat
}

// Seat is one node of a Fleet.
type Seat struct {
	Node  *model.Node // nil = it is not known, but something holds its resources
	Used  Usage
	class string
	slot  int32
	cpu   int // for allocations, as are the next two
	mem   int
	disk  int
	owner uint64
}

// place is what nodes have in common that are looked for together.
type place struct {
	pool, datacenter string
	devices          bool // they have some
}

func placeOf(n *model.Node) place {
	return place{poolOf(n), n.Datacenter, len(n.Resources.Devices) > 0}
}

func poolOf(n *model.Node) string { return cmp.Or(n.NodePool, defaultPool) }

// slots gives each node a number, which it keeps. All fleets that come from one share it.
type slots struct {
	edits atomic.Uint64 // numbers them

	mu sync.RWMutex
	of map[string]int32 // guarded by mu
}

func (s *slots) find(id string) (int32, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	i, ok := s.of[id]
	return i, ok
}

func (s *slots) take(id string) int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.of[id]
	if !ok {
		i = int32(len(s.of))
		s.of[id] = i
	}
	return i
}

// NewFleet sums up nodes and allocations.
func NewFleet(nodes iter.Seq[*model.Node], allocs iter.Seq[*model.Allocation]) *Fleet {
	e := (&Fleet{slots: &slots{of: map[string]int32{}}}).Edit()
	for n := range nodes {
		e.Node(nil, n)
	}
	for a := range allocs {
		e.Alloc(nil, a)
	}
	return e.Done()
}

// Seat is the node of that id, or nil.
func (f *Fleet) Seat(id string) *Seat {
	i, ok := f.slots.find(id)
	if !ok {
		return nil
	}
	return f.at(i)
}

func (f *Fleet) at(i int32) *Seat {
	if b := int(i) / blockSize; b < len(f.blocks) && f.blocks[b] != nil {
		return f.blocks[b].seats[i%blockSize]
	}
	return nil
}

// Node is the node of that id, or nil.
func (f *Fleet) Node(id string) *model.Node {
	if s := f.Seat(id); s != nil {
		return s.Node
	}
	return nil
}

// Class is the computed class of the node.
func (s *Seat) Class() string { return s.class }

// Left is what the node has left.
func (s *Seat) Left() Size {
	return Size{s.cpu - s.Used.CPU, s.mem - s.Used.MemoryMB, s.disk - s.Used.DiskMB, freeInstances(s.Node, &s.Used)}
}

// Ready counts the nodes that take new allocations, by pool and datacenter.
func (f *Fleet) Ready() map[[2]string]int {
	out := map[[2]string]int{}
	for p, list := range f.ready {
		if len(list) > 0 {
			out[[2]string{p.pool, p.datacenter}] += len(list)
		}
	}
	return out
}

// Namespace is what the allocations of a namespace hold.
func (f *Fleet) Namespace(name string) Usage { return f.namespaces[name] }

// Edit is a change of a Fleet under way. The Fleet stays as it is.
type Edit struct {
	id                    uint64
	next                  Fleet
	ready, spaces, blocks bool           // these of next are its own
	lists                 map[place]bool // of ready
}

// Edit begins a change.
func (f *Fleet) Edit() *Edit { return &Edit{id: f.slots.edits.Add(1), next: *f} }

// Done ends it. The Edit must not be used any more.
func (e *Edit) Done() *Fleet { f := e.next; return &f }

// seat is a node's seat for writing.
func (e *Edit) seat(id string) *Seat {
	i := e.next.slots.take(id)
	if !e.blocks {
		e.blocks = true
		e.next.blocks = slices.Clone(e.next.blocks)
	}
	b := int(i) / blockSize
	for len(e.next.blocks) <= b {
		e.next.blocks = append(e.next.blocks, nil)
	}
	switch old := e.next.blocks[b]; {
	case old == nil:
		e.next.blocks[b] = &block{owner: e.id}
	case old.owner != e.id:
		e.next.blocks[b] = &block{owner: e.id, seats: old.seats}
	}
	seats := &e.next.blocks[b].seats
	switch old := seats[i%blockSize]; {
	case old == nil:
		seats[i%blockSize] = &Seat{slot: i, owner: e.id}
	case old.owner != e.id:
		c := *old
		c.owner = e.id
		seats[i%blockSize] = &c
	}
	return seats[i%blockSize]
}

// Node replaces a node by what it is now; nil = it was or is not there.
func (e *Edit) Node(before, after *model.Node) {
	n := after
	if n == nil {
		n = before
	}
	s := e.seat(n.ID)
	was := s.Node
	s.Node = after
	if after != nil {
		s.cpu, s.mem, s.disk = Available(after)
		if s.class = after.ComputedClass; s.class == "" {
			s.class = after.ComputeClass()
		}
	}
	if was != nil && was.Ready() && (after == nil || !after.Ready() || placeOf(was) != placeOf(after)) {
		e.list(placeOf(was), s.slot, false)
	}
	if after != nil && after.Ready() {
		e.list(placeOf(after), s.slot, true)
	}
}

func (e *Edit) list(p place, slot int32, in bool) {
	old := e.next.ready[p]
	i, is := slices.BinarySearch(old, slot)
	if is == in {
		return
	}
	if !e.ready {
		e.ready = true
		e.next.ready = maps.Clone(e.next.ready)
		if e.next.ready == nil {
			e.next.ready = map[place][]int32{}
		}
		e.lists = map[place]bool{}
	}
	if !e.lists[p] {
		e.lists[p] = true
		old = slices.Clone(old)
	}
	if in {
		e.next.ready[p] = slices.Insert(old, i, slot)
	} else {
		e.next.ready[p] = slices.Delete(old, i, i+1)
	}
}

// Alloc replaces an allocation by what it is now; nil = it was or is not there. What an allocation holds never changes, only whether it does.
func (e *Edit) Alloc(before, after *model.Allocation) {
	was, is := before != nil && before.Holds(), after != nil && after.Holds()
	if was == is {
		return
	}
	a := after
	if was {
		a = before
	}
	if !e.spaces {
		e.spaces = true
		e.next.namespaces = maps.Clone(e.next.namespaces)
		if e.next.namespaces == nil {
			e.next.namespaces = map[string]Usage{}
		}
	}
	ns := e.next.namespaces[a.Namespace]
	space := a.Resources
	space.Ports = nil // they are a node's
	used := &e.seat(a.NodeID).Used
	if is {
		used.Add(&a.Resources)
		ns.Add(&space)
	} else {
		used.Sub(&a.Resources)
		ns.Sub(&space)
	}
	if ns.Allocs == 0 {
		delete(e.next.namespaces, a.Namespace)
	} else {
		e.next.namespaces[a.Namespace] = ns
	}
}
