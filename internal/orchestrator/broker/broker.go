package broker

import (
	"context"
	"sync"
	"time"

	"rockpool/internal/orchestrator/model"
)

// Broker is a Queue that several workers share.
type Broker struct {
	wake chan struct{} // of 1: there may be something for somebody

	mu     sync.Mutex
	queue  *Queue // guarded by mu
	paused bool   // guarded by mu
}

// New makes an empty one.
func New(l Limits) *Broker { return &Broker{wake: make(chan struct{}, 1), queue: NewQueue(l)} }

func (b *Broker) do(f func(q *Queue, now int64)) {
	b.mu.Lock()
	f(b.queue, time.Now().UnixNano())
	b.mu.Unlock()
	b.signal()
}

func (b *Broker) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Enqueue takes an evaluation.
func (b *Broker) Enqueue(e *model.Evaluation) { b.do(func(q *Queue, now int64) { q.Enqueue(e, now) }) }

// Ack ends an evaluation's work.
func (b *Broker) Ack(id string) { b.do(func(q *Queue, now int64) { q.Ack(id, now) }) }

// Renew says that an evaluation is still in work; see [Queue.Renew].
func (b *Broker) Renew(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue.Renew(id, time.Now().UnixNano())
}

// Used notes where an evaluation in work has placed something; see [Queue.Used].
func (b *Broker) Used(id string, nodes ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range nodes {
		b.queue.Used(id, n)
	}
}

// Nack gives an evaluation back.
func (b *Broker) Nack(id string) { b.do(func(q *Queue, now int64) { q.Nack(id, now) }) }

// Block keeps an evaluation aside; see [Queue.Block].
func (b *Broker) Block(e *model.Evaluation, tried uint64, need Room) (superseded *model.Evaluation) {
	b.do(func(q *Queue, now int64) { superseded = q.Block(e, tried, need, now) })
	return superseded
}

// Offer tells of nodes that have room.
func (b *Broker) Offer(offers ...Offer) {
	b.do(func(q *Queue, now int64) {
		for _, o := range offers {
			q.Offer(o, now)
		}
	})
}

// OfferQuota tells that less is held under a quota, or that it allows more.
func (b *Broker) OfferQuota(name string, index uint64) {
	b.do(func(q *Queue, now int64) { q.OfferQuota(name, index, now) })
}

// Sweep has everything that waits for room try again, a few at a time.
func (b *Broker) Sweep(index uint64) { b.do(func(q *Queue, now int64) { q.Sweep(index, now) }) }

// Forget drops an evaluation that has ended otherwise.
func (b *Broker) Forget(e *model.Evaluation) { b.do(func(q *Queue, _ int64) { q.Forget(e) }) }

// TakeBlocked drops the evaluation of a job that waits for room; see [Queue.TakeBlocked].
func (b *Broker) TakeBlocked(namespace, id string) (e *model.Evaluation) {
	b.do(func(q *Queue, _ int64) { e = q.TakeBlocked(namespace, id) })
	return e
}

// Pause stops handing out, or goes on.
func (b *Broker) Pause(paused bool) {
	b.mu.Lock()
	b.paused = paused
	b.mu.Unlock()
	b.signal()
}

// Passes reports whether an evaluation of this priority would overtake none of a higher one, and handing out is not paused.
func (b *Broker) Passes(priority int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.paused && b.queue.Passes(priority)
}

// Counts are the figures of now.
func (b *Broker) Counts() Counts {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.queue.Counts()
}

// Failures hands out the evaluations that were delivered too often.
func (b *Broker) Failures() []*model.Evaluation {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.queue.Failures()
}

// Duplicates hands out the evaluations that newer ones of their jobs stand for.
func (b *Broker) Duplicates() []*model.Evaluation {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.queue.Duplicates()
}

// Dequeue waits for an evaluation.
func (b *Broker) Dequeue(ctx context.Context) (*model.Evaluation, error) {
	for {
		e, next := b.try()
		if e != nil {
			b.signal() // there may be another one for another worker
			return e, nil
		}
		var timer <-chan time.Time
		if next > 0 {
			t := time.NewTimer(max(time.Until(time.Unix(0, next)), time.Millisecond))
			defer t.Stop()
			timer = t.C
		}
		select {
		case <-b.wake:
		case <-timer:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (b *Broker) try() (e *model.Evaluation, next int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.paused {
		return nil, 0
	}
	if e := b.queue.Dequeue(time.Now().UnixNano()); e != nil {
		return e, 0
	}
	return nil, b.queue.NextDeadline()
}
