package session

import (
	"context"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/fault"
	"rockpool/internal/runner/execution"
)

// Set is the sessions of a gateway. The zero value keeps none for clients that come again.
type Set struct {
	// Budget is how many bytes of output may be held for such clients in all.
	Budget int64

	mu      sync.Mutex
	kept    map[string]*session
	granted int64
}

// Serve carries an execution over a connection until it has ended, and closes it. ctx ends with the runner and the gateway.
func (t *Set) Serve(ctx context.Context, conn *Conn, e Execution) execution.Outcome {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if conn.Subprotocol() != Protocol {
		e.Keep = execution.Keep{}
	}
	s := t.enter(conn, e, cancel)
	defer t.leave(s, e.Key)
	return s.serve(ctx, conn, e)
}

// enter makes a session. Where the budget does not allow it to be kept, it is one that ends with its connection, and its first message shows that.
func (t *Set) enter(conn *Conn, e Execution, cancel context.CancelCauseFunc) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.granted+int64(e.Keep.Bytes) > t.Budget {
		e.Keep = execution.Keep{}
	}
	s := newSession(conn, e, cancel)
	t.granted += int64(s.keep.Bytes)
	if s.keep.Grace > 0 {
		if t.kept == nil {
			t.kept = map[string]*session{}
		}
		t.kept[e.Key] = s
	}
	return s
}

func (t *Set) leave(s *session, key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kept[key] == s {
		delete(t.kept, key)
	}
	t.granted -= int64(s.keep.Bytes)
}

// Keeps reports whether the execution of that key is held for a client that comes again.
func (t *Set) Keeps(key string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kept[key] != nil
}

// Resume makes conn the connection of an execution that is under way, from the message with the number offset on, and returns when conn is closed. A
// connection that the execution still had is closed. Where it is refused, the client is told why.
func (t *Set) Resume(ctx context.Context, conn *Conn, key string, offset int64) {
	t.mu.Lock()
	s := t.kept[key]
	t.mu.Unlock()
	var l *link
	err := error(errNotHeld)
	if s != nil {
		l, err = s.attach(ctx, conn, offset)
	}
	if l == nil {
		refuse(conn, err)
		return
	}
	l.wait()
}

// refuse says why there is nothing to go on with, and closes.
func refuse(conn *Conn, err error) {
	defer conn.Close()
	now := time.Now()
	text := fault.Public(err)
	_ = conn.SetWriteDeadline(now.Add(writeTime))
	if conn.WriteMessage(websocket.TextMessage, encode(message{Type: "error", Data: text})) != nil {
		return
	}
	_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(CloseNotHeld, text), now.Add(writeTime))
	if half, ok := conn.NetConn().(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	_ = conn.SetReadDeadline(time.Now().Add(lingerTime))
	for {
		if _, _, err := conn.NextReader(); err != nil {
			return
		}
	}
}
