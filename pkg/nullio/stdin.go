package nullio

import (
	"context"
	"errors"
	"io"
	"sync"
)

// DefaultSize is the number of bytes a [Stdin] holds when NewStdin is asked for none in particular.
const DefaultSize = 32 << 10

// ControlSize is the number of injected bytes that may wait for a reader.
const ControlSize = 64

// restSize is how large a ring may be that is kept while it is empty, in bytes.
const restSize = 4 << 10

// ErrControlFull is what Inject returns when nobody reads what was injected before.
var ErrControlFull = errors.New("nullio: too many control bytes are waiting")

// Stdin is the standard input of a program: what is written to it can be read from it, and a read waits for what is not
// there yet. It differs from [io.Pipe] in three ways. It holds a bounded number of bytes, so that a writer meets
// back-pressure only when the reader is that far behind. Control bytes, such as the interrupt of a terminal, overtake
// what is queued. And its end, too, comes after all that was written before.
type Stdin struct {
	writing sync.Mutex // one Write at a time, so that long ones do not mix

	mu      sync.Mutex
	changed sync.Cond // any of the fields below
	control []byte    // at most ControlSize
	size    int       // bytes that may be queued
	ring    []byte    // grows up to size, and is let go when it is large and empty
	start   int       // of the queued bytes in ring
	length  int       // number of queued bytes
	closed  bool
	err     error // why it was cut; reported at once, ahead of what is queued
}

// NewStdin makes a Stdin that holds up to size bytes, or DefaultSize if size is not positive.
func NewStdin(size int) *Stdin {
	if size <= 0 {
		size = DefaultSize
	}
	s := &Stdin{size: size}
	s.changed.L = &s.mu
	return s
}

// Read waits for at least one byte or for the end. Control bytes come first.
func (s *Stdin) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.control) == 0 && s.length == 0 && !s.closed && s.err == nil {
		s.changed.Wait()
	}
	switch {
	case s.err != nil:
		return 0, s.err
	case len(s.control) > 0:
		n := copy(p, s.control)
		s.control = s.control[:copy(s.control, s.control[n:])]
		return n, nil
	case s.length > 0:
		n := s.pop(p)
		if s.length == 0 && len(s.ring) > restSize {
			s.ring, s.start = nil, 0
		}
		s.changed.Broadcast()
		return n, nil
	}
	return 0, io.EOF
}

// Write queues all of p. It waits while the queue is full, and returns the full length, or an error and how much was taken.
func (s *Stdin) Write(p []byte) (int, error) { return s.WriteContext(context.Background(), p) }

// WriteContext is Write that gives up when ctx ends. It returns how much was taken then, and the cause of ctx.
func (s *Stdin) WriteContext(ctx context.Context, p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	total := 0
	for {
		if err := s.refusal(); err != nil {
			return total, err
		}
		if len(p) == 0 {
			return total, nil
		}
		if s.length == s.size {
			if err := s.wait(ctx); err != nil {
				return total, err
			}
			continue
		}
		n := s.push(p)
		total, p = total+n, p[n:]
		s.changed.Broadcast()
	}
}

// Inject puts control bytes ahead of everything queued by Write. It never waits: all of them are taken or none.
func (s *Stdin) Inject(control ...byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if s.closed && s.length == 0 && len(s.control) == 0 {
		return io.ErrClosedPipe // the reader may have been told of the end
	}
	if len(s.control)+len(control) > ControlSize {
		return ErrControlFull
	}
	s.control = append(s.control, control...)
	s.changed.Broadcast()
	return nil
}

// Close ends the input: reads report io.EOF once everything queued was read, writes fail.
func (s *Stdin) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.changed.Broadcast()
	return nil
}

// CloseWithError cuts the input: reads and writes, also those that wait, fail with err at once. What is queued is dropped. The
// first error stays. A nil err stands for io.ErrClosedPipe.
func (s *Stdin) CloseWithError(err error) {
	if err == nil {
		err = io.ErrClosedPipe
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.control, s.length = nil, 0
	s.changed.Broadcast()
}

// Buffered is the number of bytes that wait to be read.
func (s *Stdin) Buffered() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.control) + s.length
}

// wait waits for a change.
func (s *Stdin) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.changed.Broadcast()
	})
	defer stop()
	if ctx.Err() == nil {
		s.changed.Wait()
	}
	return context.Cause(ctx)
}

func (s *Stdin) refusal() error {
	if s.err == nil && s.closed {
		return io.ErrClosedPipe
	}
	return s.err
}

// grow makes the ring large enough for n more bytes, where it may be.
func (s *Stdin) grow(n int) {
	want := min(s.size, s.length+n)
	if want <= len(s.ring) {
		return
	}
	ring := make([]byte, min(s.size, max(want, 2*len(s.ring))))
	held := copy(ring, s.ring[s.start:min(len(s.ring), s.start+s.length)])
	copy(ring[held:s.length], s.ring)
	s.ring, s.start = ring, 0
}

// push copies as much of p as there is room for.
func (s *Stdin) push(p []byte) int {
	s.grow(len(p))
	end := (s.start + s.length) % len(s.ring)
	limit := len(s.ring)
	if end < s.start {
		limit = s.start
	}
	n := copy(s.ring[end:limit], p)
	if limit == len(s.ring) && s.start > 0 && s.start <= end {
		n += copy(s.ring[:s.start], p[n:])
	}
	s.length += n
	return n
}

// pop moves as much as is queued and fits into p.
func (s *Stdin) pop(p []byte) int {
	p = p[:min(len(p), s.length)]
	n := copy(p, s.ring[s.start:])
	n += copy(p[n:], s.ring)
	s.start = (s.start + n) % len(s.ring)
	s.length -= n
	return n
}
