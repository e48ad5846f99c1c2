package runner

import (
	"container/list"
	"context"
	"time"

	"rockpool/internal/environment"
	"rockpool/internal/fault"
)

// maxWaiting bounds the claims that wait for one environment.
const maxWaiting = 1000

// line is the claims that wait for a runner of one environment, in the order in which they came.
type line struct{ list list.List }

// waiter is one of them.
type waiter struct {
	env   environment.ID
	since time.Time
	at    *list.Element // nil = it has been served
	given chan handed   // holds one
}

// handed is what a claim in the line gets.
type handed struct {
	seen Seen
	err  error
}

// Len is how many claims wait; a nil line is empty.
func (l *line) Len() int {
	if l == nil {
		return 0
	}
	return l.list.Len()
}

func (l *line) front() *waiter { return l.list.Front().Value.(*waiter) }

// queue adds a claim to the line, at its end unless it had its turn already. The lock is held.
func (m *Manager) queue(id environment.ID, first bool, now time.Time) *waiter {
	l := m.lines[id]
	if l == nil {
		l = &line{}
		m.lines[id] = l
	}
	w := &waiter{env: id, since: now, given: make(chan handed, 1)}
	if first {
		w.at = l.list.PushFront(w)
	} else {
		w.at = l.list.PushBack(w)
	}
	return w
}

// leave takes a claim out of the line and tells the place it had, from 1; 0 = it has been served. The lock is held.
func (m *Manager) leave(w *waiter) int {
	if w.at == nil {
		return 0
	}
	position := 1
	for e := w.at.Prev(); e != nil; e = e.Prev() {
		position++
	}
	l := m.lines[w.env]
	l.list.Remove(w.at)
	w.at = nil
	if l.Len() == 0 {
		delete(m.lines, w.env)
	}
	return position
}

// serveAll gives idle runners to the claims that wait. The lock is held.
func (m *Manager) serveAll() {
	for id, l := range m.lines {
		for l.Len() > 0 {
			taken, ok := m.pools.Take(id, time.Now())
			if !ok {
				break
			}
			w := l.front()
			m.leave(w)
			w.given <- handed{seen: m.seen[taken]}
		}
	}
}

// dissolve sends away everyone who waits for an environment that is no more. The lock is held.
func (m *Manager) dissolve(id environment.ID) {
	for l := m.lines[id]; l.Len() > 0; {
		w := l.front()
		m.leave(w)
		w.given <- handed{err: unknown(id)}
	}
}

// await waits for a claim's turn. Who leaves frees the place; what was given meanwhile goes to the next.
func (m *Manager) await(ctx context.Context, w *waiter, wait time.Duration) (Seen, error) {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case h := <-w.given:
		return h.seen, h.err
	case <-t.C:
	case <-ctx.Done():
	}
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if position := m.leave(w); position > 0 {
		if ctx.Err() != nil {
			return Seen{}, fault.Wrap(fault.Unavailable, context.Cause(ctx), "the request for a runner was given up")
		}
		return Seen{}, m.refuse(w.env, position, now)
	}
	h := <-w.given
	if h.err == nil && ctx.Err() != nil {
		m.pools.Return(h.seen.ID, now)
		m.serveAll()
		m.poke()
		return Seen{}, fault.Wrap(fault.Unavailable, context.Cause(ctx), "the request for a runner was given up")
	}
	return h.seen, h.err
}
