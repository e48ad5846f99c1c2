package broker

import (
	"cmp"
	"container/heap"
	"maps"
	"slices"
	"strings"

	"rockpool/internal/orchestrator/model"
)

// Room is what a node has left, or what the smallest of the allocations that wait needs.
type Room struct{ CPU, MemoryMB, DiskMB, Devices int }

func (r Room) holds(n Room) bool {
	return n.CPU <= r.CPU && n.MemoryMB <= r.MemoryMB && n.DiskMB <= r.DiskMB && n.Devices <= r.Devices
}

// with is the room with n times another one.
func (r Room) with(o Room, n int) Room {
	return Room{r.CPU + n*o.CPU, r.MemoryMB + n*o.MemoryMB, r.DiskMB + n*o.DiskMB, r.Devices + n*o.Devices}
}

// Offer is room that came free at an index of the state.
type Offer struct {
	Index uint64
	Node  string
	Class string // computed class of the node
	Room  Room

	quota string // it came free under this quota, whatever the node
	all   bool   // something else changed: everybody may try

	left  Room // what those that it woke do not need
	out   int  // those that it woke and that have not been tried
	width int  // how many there may be of them
}

// shape is what evaluations have in common that wait for the same. The backlog of a course is a thousand evaluations of one shape.
type shape struct {
	priority int
	need     Room
	classes  string // that were looked at, with the verdict
	escaped  bool
	quota    string
	noRoom   bool // under the quota, some of it found no room, or may have: it is not known what it needs
}

// queue holds the evaluations of one shape. Those that tried longest ago are first.
type queue struct {
	shape   shape
	classes map[string]bool
	waiting waiters
}

type waiter struct {
	eval  *model.Evaluation
	tried uint64 // index of the state that it found no room on
	queue *queue
	pos   int
}

// takes reports whether an offer may help, of which so much room is there.
func (q *queue) takes(o *Offer, room Room) bool {
	switch {
	case o.all:
		return true
	case o.quota != "":
		return o.quota == q.shape.quota
	case q.shape.quota != "" && !q.shape.noRoom:
		return false
	case !room.holds(q.shape.need):
		return false
	case q.shape.escaped:
		return true
	}
	fit, seen := q.classes[o.Class]
	return fit || !seen
}

// backlog is all that waits for room. An offer wakes as many as it has room for and no more; one that takes nothing of it, for it found no room, or some elsewhere, or needed none any
// more, gives its part back, for others, which may be many where it is large. So however many wait, a freed allocation costs about one attempt, and yet nobody waits for ever beside room that would do. Who waits for devices gives its part back in any
// case: devices are of many kinds, so that it may have found its own elsewhere.
type backlog struct {
	byJob  map[job]*waiter
	queues map[shape]*queue
	order  []*queue // by priority, highest first
	woken  map[string]woken
	recent []*Offer // the newest, oldest first
	missed uint64   // index up to which offers have been forgotten
}

func newBacklog() backlog {
	return backlog{byJob: map[job]*waiter{}, queues: map[shape]*queue{}, woken: map[string]woken{}}
}

// woken is what woke a waiter, and its part of that.
type woken struct {
	by   *Offer
	part Room
	used bool // it was placed on the node
}

const keptOffers = 4096 // for those that were decided on an older state

func shapeOf(e *model.Evaluation, need Room) shape {
	s := shape{priority: e.Priority, need: need, escaped: e.EscapedClass, quota: e.QuotaReached, noRoom: e.QuotaReached != "" && need == (Room{})}
	for _, m := range e.FailedTGAllocs {
		s.noRoom = s.noRoom || s.quota != "" && len(m.QuotaExhausted) == 0
	}
	if s.quota != "" && !s.noRoom || s.escaped {
		return s
	}
	var b strings.Builder
	for _, c := range slices.Sorted(maps.Keys(e.ClassEligibility)) {
		b.WriteString(c)
		if e.ClassEligibility[c] {
			b.WriteByte('+')
		}
		b.WriteByte(0)
	}
	s.classes = b.String()
	return s
}

func (b *backlog) put(e *model.Evaluation, tried uint64, need Room) *waiter {
	s := shapeOf(e, need)
	q := b.queues[s]
	if q == nil {
		q = &queue{shape: s, classes: e.ClassEligibility}
		b.queues[s] = q
		i, _ := slices.BinarySearchFunc(b.order, q, func(a, q *queue) int { return cmp.Compare(q.shape.priority, a.shape.priority) })
		for i < len(b.order) && b.order[i].shape.priority == s.priority {
			i++
		}
		b.order = slices.Insert(b.order, i, q)
	}
	w := &waiter{eval: e, tried: tried, queue: q}
	heap.Push(&q.waiting, w)
	b.byJob[jobOf(e)] = w
	return w
}

func (b *backlog) take(w *waiter) {
	heap.Remove(&w.queue.waiting, w.pos)
	delete(b.byJob, jobOf(w.eval))
	if w.queue.waiting.Len() == 0 {
		delete(b.queues, w.queue.shape)
		b.order = slices.DeleteFunc(b.order, func(q *queue) bool { return q == w.queue })
	}
}

// wake takes out those that an offer still has room for.
func (b *backlog) wake(o *Offer) (all []*waiter) {
	for i := 0; i < len(b.order) && o.out < o.width; {
		q := b.order[i]
		for o.out < o.width && q.waiting.Len() > 0 && q.waiting[0].tried < o.Index && q.takes(o, o.left) {
			w := q.waiting[0]
			b.take(w)
			all = append(all, w)
			b.woken[w.eval.ID] = woken{by: o, part: q.shape.need}
			o.left = o.left.with(q.shape.need, -1)
			o.out++
		}
		if q.waiting.Len() > 0 {
			i++
		}
	}
	return all
}

// note remembers an offer for those that are being decided on an older state right now.
func (b *backlog) note(o *Offer) {
	if len(b.recent) >= keptOffers {
		b.missed = b.recent[keptOffers/2].Index
		b.recent = slices.Clone(b.recent[keptOffers/2+1:])
	}
	b.recent = append(b.recent, o)
}

// overlooked finds an offer that came after what a waiter was decided on.
func (b *backlog) overlooked(w *waiter) *Offer {
	if w.tried < b.missed {
		return &Offer{Index: b.missed, all: true}
	}
	for i := len(b.recent) - 1; i >= 0 && b.recent[i].Index > w.tried; i-- {
		if o := b.recent[i]; w.queue.takes(o, o.Room) {
			return o
		}
	}
	return nil
}

type waiters []*waiter

func (s waiters) Len() int { return len(s) }
func (s waiters) Less(i, j int) bool {
	a, b := s[i], s[j]
	return cmp.Or(cmp.Compare(a.tried, b.tried), cmp.Compare(a.eval.CreateIndex, b.eval.CreateIndex), cmp.Compare(a.eval.ID, b.eval.ID)) < 0
}
func (s waiters) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].pos, s[j].pos = i, j
}
func (s *waiters) Push(v any) {
	w := v.(*waiter)
	w.pos = len(*s)
	*s = append(*s, w)
}
func (s *waiters) Pop() any {
	n := len(*s) - 1
	v := (*s)[n]
	(*s)[n] = nil
	*s = (*s)[:n]
	return v
}
