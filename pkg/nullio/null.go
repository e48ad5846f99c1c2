package nullio

import (
	"context"
	"io"
	"sync"
)

// Null is a reader without content whose end comes only when it is closed: a program that reads it waits, where an empty
// reader would tell it at once that its input has ended.
type Null struct {
	ended <-chan struct{} // of the context
	done  chan struct{}
	once  sync.Once
}

// NewNull makes a reader that blocks until it is closed or ctx ends, and then reports io.EOF.
func NewNull(ctx context.Context) *Null {
	return &Null{ended: ctx.Done(), done: make(chan struct{})}
}

// Read blocks until the reader's end and returns io.EOF.
func (n *Null) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	select {
	case <-n.done:
	case <-n.ended:
	}
	return 0, io.EOF
}

// Close ends all reads, those that wait and those to come.
func (n *Null) Close() error {
	n.once.Do(func() { close(n.done) })
	return nil
}

// Discard takes everything that is written and always reports the full length, so that a copy into it never ends early.
type Discard struct{}

// Write reports len(p) and nil.
func (Discard) Write(p []byte) (int, error) { return len(p), nil }

// WriteString reports len(s) and nil.
func (Discard) WriteString(s string) (int, error) { return len(s), nil }

// Close does nothing; later writes succeed too.
func (Discard) Close() error { return nil }
