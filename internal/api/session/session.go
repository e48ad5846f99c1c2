package session

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/runner/execution"
	"rockpool/pkg/nullio"
)

// Protocol is the subprotocol of the extended form.
const Protocol = "rockpool.v1"

// stdinSize is how much input may wait for a program, in bytes.
const stdinSize = 256 << 10

// Execution is what a session carries.
type Execution struct {
	Key  string // names it for a client that comes again
	Size execution.Size
	// Keep asks for a session that outlives its connection; only a client of the subprotocol has it.
	Keep execution.Keep
	// Run hands the client's streams to the program and returns the outcome. The cause of ctx is the verdict.
	Run func(ctx context.Context, c execution.Client) execution.Outcome
	// Signal sends a signal to the program.
	Signal func(ctx context.Context, name string)
}

// session is one execution as its client sees it.
type session struct {
	keep     execution.Keep // as granted
	extended bool
	tape     *tape
	stdin    *nullio.Stdin
	resize   chan execution.Size // nil = no size will come
	signal   func(ctx context.Context, name string)
	cancel   context.CancelCauseFunc
	over     chan struct{} // closed when no connection is expected any more
	parting  atomic.Bool   // the gateway stops: nobody is waited for longer than needed

	attaching sync.Mutex // one connection at a time comes in
	newest    *link      // that came in, also when it has ended; guarded by attaching

	mu        sync.Mutex
	link      *link // the present connection
	grace     *time.Timer
	left      bool // the client has closed, or did not come back in time
	delivered bool // the client has everything
	ended     bool // there is an outcome
	doomed    bool // the runner or the gateway has ended: nobody can come back
	closed    bool // over is closed
}

// Conn is an upgraded connection.
type Conn = websocket.Conn

// buffers of frames that are being written.
var buffers sync.Pool

// Upgrade takes a handshake over. It checks the origin as gorilla does by default: where there is one, its host must be ours. A handshake that is
// refused has been answered by refuse. The connection's read buffer is that of the HTTP server.
func Upgrade(w http.ResponseWriter, r *http.Request, refuse func(http.ResponseWriter, *http.Request, int, error)) (*Conn, error) {
	u := websocket.Upgrader{
		HandshakeTimeout: 10 * time.Second, WriteBufferSize: 8192, WriteBufferPool: &buffers, Subprotocols: []string{Protocol}, Error: refuse,
	}
	return u.Upgrade(w, r, nil)
}

// Offers reports whether a handshake names the subprotocol.
func Offers(r *http.Request) bool { return slices.Contains(websocket.Subprotocols(r), Protocol) }

func newSession(conn *Conn, e Execution, cancel context.CancelCauseFunc) *session {
	s := &session{
		keep: e.Keep, extended: conn.Subprotocol() == Protocol, tape: newTape(e.Keep), stdin: nullio.NewStdin(stdinSize),
		signal: e.Signal, cancel: cancel, over: make(chan struct{}),
	}
	if s.extended || e.Size != (execution.Size{}) { // nobody else can tell one
		s.resize = make(chan execution.Size, 1)
	}
	if e.Size != (execution.Size{}) {
		s.resize <- e.Size
	}
	return s
}

// serve speaks the protocol until the execution has ended and its client has been told, or is not expected any more.
func (s *session) serve(ctx context.Context, conn *Conn, e Execution) execution.Outcome {
	l, err := s.attach(ctx, conn, 0)
	if l != nil {
		defer func() {
			l.drop() // it has ended, unless a panic has come here
			l.wait()
		}()
	}
	if err != nil && s.keep.Bytes == 0 {
		return execution.Outcome{Kind: execution.Left}
	}
	unhook := context.AfterFunc(ctx, s.tape.refuse)
	defer unhook()
	stdout, stderr := &text{kind: "stdout", send: s.tape.push}, &text{kind: "stderr", send: s.tape.push}
	out := e.Run(ctx, execution.Client{Stdin: s.stdin, Stdout: stdout, Stderr: stderr, Resize: s.resize, Usage: s.extended})
	if out.Kind == execution.Exited && errors.Join(stdout.flush(), stderr.flush()) != nil {
		out = execution.Outcome{Kind: execution.Left}
	}
	last := final(out, s.extended)
	if errors.Is(context.Cause(ctx), execution.ErrClientLeft) {
		last = nil
	}
	s.tape.end(last)
	// Input that waits for the program keeps a reader from reading on. What is queued stays readable for the grace period.
	_ = s.stdin.Close()
	s.change(func() { s.ended, s.left = true, s.left || last == nil })
	doom := context.AfterFunc(ctx, func() {
		s.change(func() { s.doomed = true })
		if errors.Is(context.Cause(ctx), execution.ErrShutdown) {
			s.part()
		}
	})
	<-s.over
	doom()
	return out
}

// change runs f with the lock held, and then finds out whether the session is over.
func (s *session) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	if s.closed || !s.ended || s.link != nil || !s.left && !s.delivered && !s.doomed {
		return
	}
	s.closed = true
	if s.grace != nil {
		s.grace.Stop()
	}
	close(s.over)
}

// attach makes conn the session's connection, from the given message on. A link is returned with an error when it broke at once.
func (s *session) attach(ctx context.Context, conn *Conn, offset int64) (*link, error) {
	s.attaching.Lock()
	defer s.attaching.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	l := &link{s: s, conn: conn, cancel: cancel}
	if err := s.tape.attach(l, offset); err != nil {
		cancel()
		return nil, err
	}
	if s.newest != nil {
		s.newest.replace() // one that has broken may still be about to take input
	}
	s.newest = l
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		cancel()
		s.tape.detach(l)
		return nil, errNotHeld
	}
	s.link = l
	if s.grace != nil {
		s.grace.Stop()
	}
	s.mu.Unlock()
	if err := l.send(hello(s.keep, offset, s.tape.taken())); err != nil {
		l.drop()
		return l, err
	}
	l.start(ctx)
	return l, nil
}

// detach lets go of a connection that has ended. Somebody may come again for the time of the grace.
func (s *session) detach(l *link) {
	s.tape.detach(l)
	gone := false
	s.change(func() {
		if s.link != l {
			return // it was replaced
		}
		s.link = nil
		if l.followed.Load() {
			return // by one that is just coming in
		}
		if s.left = s.left || s.keep.Grace == 0; s.left {
			gone = true
			return
		}
		s.grace = time.AfterFunc(s.keep.Grace, s.expire)
	})
	if gone {
		s.cancel(execution.ErrClientLeft)
	}
}

// expire gives up on a client that did not come back.
func (s *session) expire() {
	gone := false
	s.change(func() {
		gone = s.link == nil
		s.left = s.left || gone
	})
	if gone {
		s.cancel(execution.ErrClientLeft)
	}
}

// part has a client that was told the end close soon.
func (s *session) part() {
	s.parting.Store(true)
	s.mu.Lock()
	l := s.link
	s.mu.Unlock()
	if l != nil {
		l.part()
	}
}

// leave is the end of the execution by its client's Close; that of a connection that was replaced says nothing.
func (s *session) leave(l *link) {
	gone := false
	s.change(func() {
		gone = s.link == l && !l.followed.Load()
		s.left = s.left || gone
	})
	if gone {
		s.cancel(execution.ErrClientLeft)
	}
}
