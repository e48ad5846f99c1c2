package pool

import "container/heap"

// queue is a heap of runners that know their place in it, so that any of them can leave at once. A runner is in at most one queue of
// each lane.
type queue struct {
	lane int
	less func(a, b *entry) bool
	list []*entry
}

// The lanes.
const (
	byUse  = iota // what it is good for: given out, waited for, let go
	byCall        // the call that it needs
	lanes
)

// place is where a runner is in a lane; a nil queue = nowhere.
type place struct {
	queue *queue
	index int
}

func (q *queue) Len() int           { return len(q.list) }
func (q *queue) Less(i, j int) bool { return q.less(q.list[i], q.list[j]) }
func (q *queue) Swap(i, j int) {
	q.list[i], q.list[j] = q.list[j], q.list[i]
	q.list[i].places[q.lane].index, q.list[j].places[q.lane].index = i, j
}

// Push is heap's; use add.
func (q *queue) Push(x any) {
	r := x.(*entry)
	r.places[q.lane] = place{q, len(q.list)}
	q.list = append(q.list, r)
}

// Pop is heap's; use leave.
func (q *queue) Pop() any {
	last := len(q.list) - 1
	r := q.list[last]
	q.list[last] = nil
	q.list = q.list[:last]
	return r
}

func (q *queue) add(r *entry) { heap.Push(q, r) }

func (q *queue) first() *entry {
	if len(q.list) == 0 {
		return nil
	}
	return q.list[0]
}

// leave takes a runner out of its queue in a lane, if it is in one.
func (r *entry) leave(lane int) {
	if at := r.places[lane]; at.queue != nil {
		heap.Remove(at.queue, at.index)
		r.places[lane] = place{}
	}
}

// alarms is a heap of environments by when they want to be planned although nothing happened.
type alarms []*env

func (a alarms) Len() int           { return len(a) }
func (a alarms) Less(i, j int) bool { return a[i].due.Before(a[j].due) }
func (a alarms) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].alarm, a[j].alarm = i+1, j+1
}

// Push is heap's; use set.
func (a *alarms) Push(x any) {
	e := x.(*env)
	*a = append(*a, e)
	e.alarm = len(*a)
}

// Pop is heap's; use set.
func (a *alarms) Pop() any {
	last := len(*a) - 1
	e := (*a)[last]
	(*a)[last] = nil
	*a = (*a)[:last]
	e.alarm = 0
	return e
}

// set moves an environment to its time; the zero time = none.
func (a *alarms) set(e *env) {
	switch {
	case e.due.IsZero() && e.alarm > 0:
		heap.Remove(a, e.alarm-1)
	case e.due.IsZero():
	case e.alarm > 0:
		heap.Fix(a, e.alarm-1)
	default:
		heap.Push(a, e)
	}
}
