// Package endpointtest serves connections in memory, so that a test of a server's times can run in a bubble.
package endpointtest

import (
	"net"
	"sync"
)

// Listener accepts connections that Dial makes.
type Listener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// NewListener makes one.
func NewListener() *Listener {
	return &Listener{conns: make(chan net.Conn, 1), done: make(chan struct{})}
}

// Dial is the client's end of a connection that is accepted once the server comes to it. A second one before that waits.
func (l *Listener) Dial() net.Conn {
	ours, theirs := net.Pipe()
	l.conns <- ours
	return theirs
}

// Accept waits for a connection or the end.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept. It may be called again.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr is nobody's.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }
