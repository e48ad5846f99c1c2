// Package events is the broker of the event stream: index-ordered, resumable, bounded and honest.
//
// There is one ring of batches, one batch per log entry, and each subscription is a position in it. So a slow reader costs
// nothing, and one that falls off the ring is cut with [ErrSlow]; a resume from an index that the ring no longer covers is
// refused with [ErrGap]. Nobody ever misses an event silently.
package events

import (
	"context"
	"errors"
	"sync"

	"rockpool/internal/orchestrator/state"
)

// Errors of subscriptions.
var (
	ErrGap    = errors.New("events of that index are no longer held; list what there is and start from the index of that answer")
	ErrSlow   = errors.New("the reader was too slow: events it has not read are no longer held")
	ErrClosed = errors.New("the event stream was closed")
)

// Limits of what is kept for resumes; the first that is exceeded drops the oldest.
type Limits struct {
	Batches int
	Bytes   int   // estimated
	Age     int64 // ns
}

// DefaultLimits are those of a server that is told nothing else.
var DefaultLimits = Limits{Batches: 100_000, Bytes: 128 << 20, Age: 10 * 60 * 1e9}

// Broker keeps the newest batches.
type Broker struct {
	limits Limits

	mu      sync.Mutex
	ring    []*Batch      // guarded by mu; oldest first
	first   uint64        // guarded by mu; number of ring[0], counted from the start of the process
	bytes   int           // guarded by mu
	dropped uint64        // guarded by mu; events up to this index are not all held
	newest  uint64        // guarded by mu; index of the newest update, with or without events
	changed chan struct{} // guarded by mu; closed at the next change
	closed  bool          // guarded by mu
}

// New makes a broker for a state that is at index from: earlier events are not held.
func New(l Limits, from uint64) *Broker {
	return &Broker{limits: l, dropped: from, newest: from, changed: make(chan struct{})}
}

// Reset drops everything, because the state was replaced by one at index. Subscriptions end with ErrSlow.
func (b *Broker) Reset(index uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.first += uint64(len(b.ring)) + 1
	b.ring, b.bytes, b.dropped, b.newest = nil, 0, index, index
	b.wake()
}

// Publish adds what an update changed. Updates come in the order of their indexes.
func (b *Broker) Publish(c state.Commit) {
	batch := newBatch(c)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.newest = c.Index
	if len(batch.Events) == 0 {
		return
	}
	b.ring = append(b.ring, batch)
	b.bytes += batch.bytes
	for len(b.ring) > 1 && (len(b.ring) > b.limits.Batches || b.bytes > b.limits.Bytes || batch.time-b.ring[0].time > b.limits.Age) {
		b.bytes -= b.ring[0].bytes
		b.dropped = b.ring[0].Index
		b.ring[0] = nil
		b.ring = b.ring[1:]
		b.first++
	}
	b.wake()
}

// wake is called with mu held.
func (b *Broker) wake() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// Close ends all subscriptions.
func (b *Broker) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.wake()
}

// Subscription is a position of one reader. It needs no closing.
type Subscription struct {
	b      *Broker
	next   uint64 // number of the batch to read
	from   uint64 // earlier indexes are skipped
	filter Filter
}

// Subscribe starts with the events of index from, or with 0 with those that come after now.
func (b *Broker) Subscribe(from uint64, f Filter) (*Subscription, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &Subscription{b: b, from: from, filter: f}
	if from == 0 {
		s.next = b.first + uint64(len(b.ring))
		return s, nil
	}
	if from <= b.dropped || from > b.newest+1 {
		return nil, ErrGap
	}
	s.next = b.first
	return s, nil
}

// Next waits for the next batch with events that the filter lets through, and returns those.
func (s *Subscription) Next(ctx context.Context) (uint64, []*Event, error) {
	for {
		batch, changed, err := s.take()
		if err != nil {
			return 0, nil, err
		}
		if batch == nil {
			select {
			case <-changed:
			case <-ctx.Done():
				return 0, nil, context.Cause(ctx)
			}
			continue
		}
		if batch.Index < s.from {
			continue
		}
		if out := s.filter.apply(batch.Events); len(out) > 0 {
			return batch.Index, out, nil
		}
	}
}

func (s *Subscription) take() (*Batch, <-chan struct{}, error) {
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return nil, nil, ErrClosed
	case s.next < b.first:
		return nil, nil, ErrSlow
	case s.next-b.first >= uint64(len(b.ring)):
		return nil, b.changed, nil
	}
	batch := b.ring[s.next-b.first]
	s.next++
	return batch, nil, nil
}
