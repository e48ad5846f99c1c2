// Package broker is the queue of evaluations on the leader: by priority, at most one in work per job, delivered at least once,
// and those that found no room kept aside until there may be some.
//
// [Queue] is the pure core and takes the time; [Broker] is the thin shell that blocks and owns the timer. Nothing in here is
// durable: the evaluations are in the state, and a new leader fills a new queue from there.
package broker

import (
	"cmp"
	"container/heap"
	"slices"

	"rockpool/internal/orchestrator/model"
)

// Limits of a Queue.
type Limits struct {
	Visible  int64 // ns until an evaluation that was neither acknowledged, refused nor renewed is delivered again
	Attempts int   // deliveries before an evaluation counts as failed
	Retry    int64 // ns of delay after a refusal, times the number of deliveries
}

// DefaultLimits are those of the server.
var DefaultLimits = Limits{Visible: 60e9, Attempts: 3, Retry: 1e9}

type job struct{ namespace, id string }

func jobOf(e *model.Evaluation) job { return job{e.Namespace, e.JobID} }

type item struct {
	eval     *model.Evaluation
	attempts int
	due      int64  // of a delayed or an unacknowledged one
	aside    *aside // what it waits for when its work ends; nil = nothing
}

// aside is an evaluation in work that has found no room.
type aside struct {
	eval  *model.Evaluation
	tried uint64
	need  Room
}

// Queue is the core.
type Queue struct {
	limits   Limits
	known    map[string]bool // all that is ready, delayed, waiting or in work
	ready    *items
	delayed  *items
	inWork   map[string]*item
	busy     map[job]string  // evaluation in work
	waiting  map[job][]*item // for the one in work
	blocked  backlog
	failures []*model.Evaluation

	duplicates []*model.Evaluation
}

// NewQueue makes an empty one.
func NewQueue(l Limits) *Queue {
	return &Queue{
		limits: l, known: map[string]bool{}, inWork: map[string]*item{}, busy: map[job]string{},
		ready: &items{less: func(a, b *item) int {
			return cmp.Or(cmp.Compare(b.eval.Priority, a.eval.Priority), cmp.Compare(a.eval.CreateIndex, b.eval.CreateIndex),
				cmp.Compare(a.eval.ID, b.eval.ID))
		}},
		delayed: &items{less: func(a, b *item) int { return cmp.Or(cmp.Compare(a.due, b.due), cmp.Compare(a.eval.ID, b.eval.ID)) }},
		waiting: map[job][]*item{}, blocked: newBacklog(),
	}
}

// Enqueue takes an evaluation. One that is queued already is ignored.
func (q *Queue) Enqueue(e *model.Evaluation, now int64) {
	if q.known[e.ID] {
		return
	}
	q.known[e.ID] = true
	q.add(&item{eval: e, due: e.WaitUntil}, now)
}

func (q *Queue) add(it *item, now int64) {
	if it.due > now {
		heap.Push(q.delayed, it)
		return
	}
	k := jobOf(it.eval)
	if q.busy[k] != "" {
		q.waiting[k] = append(q.waiting[k], it)
		return
	}
	q.busy[k] = it.eval.ID // from here on, so that a job is in the ready queue once
	heap.Push(q.ready, it)
}

// Dequeue hands out the most urgent evaluation, or nil.
func (q *Queue) Dequeue(now int64) *model.Evaluation {
	q.tick(now)
	if q.ready.Len() == 0 {
		return nil
	}
	it := heap.Pop(q.ready).(*item)
	it.attempts++
	it.due = now + q.limits.Visible
	q.inWork[it.eval.ID] = it
	return it.eval
}

// Used notes that an evaluation in work has placed something on a node: its part of what it was woken for is not there for others.
func (q *Queue) Used(id, node string) {
	if w, is := q.blocked.woken[id]; is && w.by.Node == node {
		w.used = true
		q.blocked.woken[id] = w
	}
}

// Renew says that an evaluation is still in work: it is not delivered again before another Limits.Visible.
func (q *Queue) Renew(id string, now int64) {
	if it := q.inWork[id]; it != nil {
		it.due = now + q.limits.Visible
	}
}

// Ack ends an evaluation's work.
func (q *Queue) Ack(id string, now int64) {
	it := q.inWork[id]
	if it == nil {
		return
	}
	delete(q.inWork, id)
	delete(q.known, id)
	if a := it.aside; a != nil {
		q.blocked.put(a.eval, a.tried, a.need)
	}
	q.release(jobOf(it.eval), now)
	q.tried(it.eval, now)
}

// Nack gives an evaluation back, to be delivered again a little later. After too many deliveries it has failed.
func (q *Queue) Nack(id string, now int64) {
	it := q.inWork[id]
	if it == nil {
		return
	}
	delete(q.inWork, id)
	it.aside = nil
	if it.attempts >= q.limits.Attempts {
		delete(q.known, id)
		q.failures = append(q.failures, it.eval)
		defer q.tried(it.eval, now)
	} else {
		it.due = now + int64(it.attempts)*q.limits.Retry
		heap.Push(q.delayed, it)
	}
	q.release(jobOf(it.eval), now)
}

// release lets the job's newest evaluation through. It is decided on a state that has all that the earlier ones are about, so those are not needed.
func (q *Queue) release(k job, now int64) {
	delete(q.busy, k)
	w := q.waiting[k]
	if len(w) == 0 {
		return
	}
	delete(q.waiting, k)
	newest := slices.MaxFunc(w, func(a, b *item) int {
		return cmp.Or(cmp.Compare(a.eval.CreateIndex, b.eval.CreateIndex), cmp.Compare(a.eval.ID, b.eval.ID))
	})
	for _, it := range w {
		if it == newest {
			continue
		}
		delete(q.known, it.eval.ID)
		q.duplicates = append(q.duplicates, it.eval)
		q.tried(it.eval, now)
		if it.eval.NodeID != newest.eval.NodeID && newest.eval.NodeID != "" {
			all := *newest.eval // each is about a node of its own: together they are about all
			all.NodeID = ""
			newest.eval = &all
		}
	}
	q.add(newest, now)
}

// Duplicates hands out the evaluations that newer ones of their jobs stand for.
func (q *Queue) Duplicates() []*model.Evaluation {
	d := q.duplicates
	q.duplicates = nil
	return d
}

func (q *Queue) tick(now int64) {
	for q.delayed.Len() > 0 && q.delayed.list[0].due <= now {
		q.add(heap.Pop(q.delayed).(*item), now)
	}
	for id, it := range q.inWork {
		if it.due <= now {
			q.Nack(id, now)
		}
	}
}

// NextDeadline is when Dequeue may have something new without another call; 0 = never.
func (q *Queue) NextDeadline() int64 {
	next := int64(0)
	if q.delayed.Len() > 0 {
		next = q.delayed.list[0].due
	}
	for _, it := range q.inWork {
		if next == 0 || it.due < next {
			next = it.due
		}
	}
	return next
}

// Failures hands out the evaluations that were delivered too often.
func (q *Queue) Failures() []*model.Evaluation {
	f := q.failures
	q.failures = nil
	return f
}

// Block keeps an evaluation aside that found no room on the state up to an index; need is what the smallest allocation that it waits with needs. It returns
// the one of the same job that it takes the place of. When an offer came since then that may help, the evaluation is queued at once.
func (q *Queue) Block(e *model.Evaluation, tried uint64, need Room, now int64) (superseded *model.Evaluation) {
	if old := q.blocked.byJob[jobOf(e)]; old != nil {
		if old.eval.ID != e.ID {
			superseded = old.eval
		}
		q.blocked.take(old)
	}
	switch it := q.inWork[e.ID]; {
	case it != nil: // from the end of its work on: an offer before that could not have it queued
		it.aside = &aside{e, tried, need}
	case !q.known[e.ID]: // or it is to be delivered again, and tried anyway
		q.retry(q.blocked.put(e, tried, need), now)
	}
	return superseded
}

// retry queues a waiter that has overlooked an offer.
func (q *Queue) retry(w *waiter, now int64) {
	if o := q.blocked.overlooked(w); o != nil {
		q.blocked.take(w)
		q.Enqueue(w.eval, now)
	}
}

// Offer wakes those that a node's room may be enough for.
func (q *Queue) Offer(o Offer, now int64) {
	o.left, o.width = o.Room, mostWoken
	q.offer(&o, now)
}

func (q *Queue) offer(o *Offer, now int64) {
	q.blocked.note(o)
	q.enqueue(q.blocked.wake(o), now)
}

// OfferQuota wakes those that wait for a quota, one after the other.
func (q *Queue) OfferQuota(name string, index uint64, now int64) {
	q.offer(&Offer{Index: index, quota: name, width: 1}, now)
}

// Sweep wakes everybody, a few at a time.
func (q *Queue) Sweep(index uint64, now int64) {
	q.offer(&Offer{Index: index, all: true, width: sweepWidth}, now)
}

const (
	mostWoken  = 256 // by one offer, at a time
	sweepWidth = 8
)

func (q *Queue) enqueue(list []*waiter, now int64) {
	for _, w := range list {
		q.Enqueue(w.eval, now)
	}
}

// tried passes on the offer that woke an evaluation: what is left of it, with its part when that was not used, or of devices.
func (q *Queue) tried(e *model.Evaluation, now int64) {
	w := q.blocked.byJob[jobOf(e)]
	inVain := w != nil && w.eval.ID == e.ID
	if inVain {
		q.retry(w, now)
	}
	if was, is := q.blocked.woken[e.ID]; is {
		delete(q.blocked.woken, e.ID)
		o := was.by
		o.out--
		if inVain || !was.used || was.part.Devices > 0 {
			o.left = o.left.with(was.part, 1)
		}
		q.enqueue(q.blocked.wake(o), now)
	}
}

// Forget drops an evaluation that has ended otherwise, unless it is in work.
func (q *Queue) Forget(e *model.Evaluation) {
	if w := q.blocked.byJob[jobOf(e)]; w != nil && w.eval.ID == e.ID {
		q.blocked.take(w)
	}
	if it := q.inWork[e.ID]; it != nil {
		it.aside = nil
	}
}

// TakeBlocked drops the evaluation of a job that waits for room, because the job has all it needs, and returns it.
func (q *Queue) TakeBlocked(namespace, id string) *model.Evaluation {
	w := q.blocked.byJob[job{namespace, id}]
	if w == nil {
		return nil
	}
	q.blocked.take(w)
	return w.eval
}

// Counts are figures for metrics and admission.
type Counts struct{ Ready, Waiting, Delayed, InWork, Blocked int }

// Counts returns the figures of now.
func (q *Queue) Counts() Counts {
	c := Counts{Ready: q.ready.Len(), Delayed: q.delayed.Len(), InWork: len(q.inWork), Blocked: len(q.blocked.byJob)}
	for _, w := range q.waiting {
		c.Waiting += len(w)
	}
	return c
}

// Passes reports whether nothing that is ready or in work has a higher priority: what is in work may not have what it asks for yet.
func (q *Queue) Passes(priority int) bool {
	if q.ready.Len() > 0 && q.ready.list[0].eval.Priority > priority {
		return false
	}
	for _, it := range q.inWork { // as many as there are workers
		if it.eval.Priority > priority {
			return false
		}
	}
	return true
}

type items struct {
	list []*item
	less func(a, b *item) int
}

func (s *items) Len() int           { return len(s.list) }
func (s *items) Less(i, j int) bool { return s.less(s.list[i], s.list[j]) < 0 }
func (s *items) Swap(i, j int)      { s.list[i], s.list[j] = s.list[j], s.list[i] }
func (s *items) Push(v any)         { s.list = append(s.list, v.(*item)) }
func (s *items) Pop() any {
	n := len(s.list) - 1
	v := s.list[n]
	s.list[n] = nil
	s.list = s.list[:n]
	return v
}
