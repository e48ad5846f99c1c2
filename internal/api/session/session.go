package session

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/lifecycle"
	"rockpool/internal/runner/execution"
	"rockpool/pkg/nullio"
)

// Protocol is the subprotocol of the extended form.
const Protocol = "rockpool.v1"

const queueSize = 64 // messages

// Times of a connection. Clients may be busy for long, so the deadlines are generous.
const (
	writeTime  = 30 * time.Second
	pingPeriod = 20 * time.Second
	pongTime   = 90 * time.Second
	lingerTime = 10 * time.Second // for the client to read the end and close too
	partTime   = time.Second      // the same where the client left, or the gateway stops
)

// stdinSize is how much input may wait for a program, in bytes.
const stdinSize = 256 << 10

// Runs executes: it hands its client's streams to an execution and returns the outcome. The cause of ctx is the verdict.
type Runs func(ctx context.Context, c execution.Client) execution.Outcome

// Signals sends a signal to the execution.
type Signals func(ctx context.Context, name string)

type session struct {
	conn     *websocket.Conn
	extended bool
	queue    chan []byte // never closed: a program that is being ended may still write
	last     chan []byte // the final message, nil for none; nothing is sent after it
	stdin    *nullio.Stdin
	resize   chan execution.Size
	signal   Signals
	cancel   context.CancelCauseFunc
	over     atomic.Bool // the last message was sent
}

// Conn is an upgraded connection.
type Conn = websocket.Conn

// Upgrade takes a handshake over. It checks the origin as gorilla does by default: where there is one, its host must be ours. A handshake that is
// refused has been answered by refuse.
func Upgrade(w http.ResponseWriter, r *http.Request, refuse func(http.ResponseWriter, *http.Request, int, error)) (*Conn, error) {
	u := websocket.Upgrader{
		HandshakeTimeout: 10 * time.Second, ReadBufferSize: 4096, WriteBufferSize: 8192, Subprotocols: []string{Protocol}, Error: refuse,
	}
	return u.Upgrade(w, r, nil)
}

// Serve speaks the protocol on a connection until the execution has ended, and closes it. ctx ends with the runner and the gateway.
func Serve(ctx context.Context, conn *Conn, size execution.Size, run Runs, signal Signals) execution.Outcome {
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &session{
		conn: conn, extended: conn.Subprotocol() == Protocol, queue: make(chan []byte, queueSize), last: make(chan []byte, 1),
		stdin: nullio.NewStdin(stdinSize), resize: make(chan execution.Size, 1), signal: signal, cancel: cancel,
	}
	if size != (execution.Size{}) {
		s.resize <- size
	}
	_ = conn.SetWriteDeadline(time.Now().Add(writeTime))
	if err := conn.WriteMessage(websocket.TextMessage, encode(message{Type: "start"})); err != nil {
		return execution.Outcome{Kind: execution.Left}
	}
	var reader, writer sync.WaitGroup
	// A panic of a goroutine would end the program; here it ends the session.
	reader.Go(func() { s.guard(func() { s.read(ctx) }) })
	writer.Go(func() { s.guard(s.write) })

	send := func(data []byte) error {
		select {
		case s.queue <- data:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	stdout, stderr := &text{kind: "stdout", send: send}, &text{kind: "stderr", send: send}
	out := run(ctx, execution.Client{Stdin: s.stdin, Stdout: stdout, Stderr: stderr, Resize: s.resize, Usage: s.extended})
	if out.Kind == execution.Exited {
		if errors.Join(stdout.flush(), stderr.flush()) != nil {
			out = execution.Outcome{Kind: execution.Left}
		}
	}
	s.finish(ctx, out)
	writer.Wait()
	s.linger(ctx, &reader)
	return out
}

func (s *session) guard(f func()) {
	if err := lifecycle.Guard(func() error { f(); return nil }); err != nil {
		s.cancel(err)
	}
}

// finish hands the writer the last message.
func (s *session) finish(ctx context.Context, out execution.Outcome) {
	last := final(out, s.extended)
	if errors.Is(context.Cause(ctx), execution.ErrClientLeft) {
		last = nil
	}
	s.last <- last
}

// linger waits for the client's Close, so that what it still sends, if only the answer to a ping, does not reset the connection before it has read the end.
func (s *session) linger(ctx context.Context, reader *sync.WaitGroup) {
	s.over.Store(true)
	_ = s.conn.SetReadDeadline(time.Now().Add(lingerTime))
	defer context.AfterFunc(ctx, func() {
		if cause := context.Cause(ctx); errors.Is(cause, execution.ErrShutdown) || errors.Is(cause, execution.ErrClientLeft) {
			_ = s.conn.SetReadDeadline(time.Now().Add(partTime))
		}
	})()
	if half, ok := s.conn.NetConn().(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // nothing follows the Close: who only waits for the connection's end need not wait for ours
	}
	// Input that waits for the program keeps the reader from reading on. What is queued stays readable for the grace period.
	_ = s.stdin.Close()
	reader.Wait()
}

// write is the only sender of data frames. After an error it only empties the queue.
func (s *session) write() {
	ping := time.NewTicker(pingPeriod)
	defer ping.Stop()
	failed := false
	check := func(err error) {
		if err != nil && !failed {
			failed = true
			s.cancel(errors.Join(execution.ErrClientLeft, err))
		}
	}
	send := func(data []byte) {
		if !failed && data != nil {
			_ = s.conn.SetWriteDeadline(time.Now().Add(writeTime))
			check(s.conn.WriteMessage(websocket.TextMessage, data))
		}
	}
	for {
		select {
		case data := <-s.queue:
			send(data)
		case <-ping.C:
			if !failed {
				check(s.conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeTime)))
			}
		case last := <-s.last:
			for len(s.queue) > 0 {
				send(<-s.queue)
			}
			send(last)
			if !failed {
				normal := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
				_ = s.conn.WriteControl(websocket.CloseMessage, normal, time.Now().Add(writeTime))
			}
			return
		}
	}
}

// read takes in what the client sends until it closes, leaves, or the session is over.
func (s *session) read(ctx context.Context) {
	alive := func(string) error {
		if ctx.Err() != nil || s.over.Load() {
			return nil // the linger deadline holds
		}
		return s.conn.SetReadDeadline(time.Now().Add(pongTime))
	}
	s.conn.SetPongHandler(alive)
	s.conn.SetCloseHandler(func(int, string) error { return nil }) // the writer answers
	_ = alive("")
	for {
		kind, r, err := s.conn.NextReader()
		if err == nil {
			err = s.frame(ctx, kind, r)
		}
		if err != nil {
			s.cancel(errors.Join(execution.ErrClientLeft, err))
			return
		}
		_ = alive("") // time spent waiting for the program does not count
	}
}

func (s *session) frame(ctx context.Context, kind int, r io.Reader) error {
	if s.extended && kind == websocket.TextMessage {
		return s.control(ctx, r)
	}
	buf := make([]byte, 4096) // a frame may be of any size
	for {
		n, err := r.Read(buf)
		if n > 0 {
			_, _ = s.stdin.Write(buf[:n]) // refused once the execution has ended: then nobody reads it
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// maxControl bounds a control message, in bytes.
const maxControl = 4096

func (s *session) control(ctx context.Context, r io.Reader) error {
	data, err := io.ReadAll(io.LimitReader(r, maxControl+1))
	if err != nil {
		return err
	}
	var m struct {
		Type          string
		Width, Height uint16
		Name          string
	}
	if len(data) > maxControl || json.Unmarshal(data, &m) != nil {
		return nil // unknown messages are skipped, so that the protocol can grow
	}
	switch m.Type {
	case "resize":
		select { // only the latest size matters
		case <-s.resize:
		default:
		}
		select {
		case s.resize <- execution.Size{Width: m.Width, Height: m.Height}:
		default:
		}
	case "signal":
		s.signal(ctx, "SIG"+strings.TrimPrefix(strings.ToUpper(m.Name), "SIG"))
	case "eof":
		_ = s.stdin.Close()
	}
	return nil
}
