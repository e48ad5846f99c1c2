package session

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/lifecycle"
	"rockpool/internal/runner/execution"
)

// Times of a connection. Clients may be busy for long, so the deadlines are generous.
const (
	writeTime  = 30 * time.Second
	pingPeriod = 20 * time.Second
	pongTime   = 90 * time.Second
	lingerTime = 10 * time.Second // for the client to read the end and close too
	partTime   = time.Second      // the same where the gateway stops, or a newer connection has taken over
	signalTime = 5 * time.Second  // for the cluster to deliver a signal
)

// Close codes of the extended protocol.
const (
	CloseReplaced = 4000 // a newer connection has taken the execution over
	CloseNotHeld  = 4001 // the output from the offset on is not held
)

// link is one connection of a session.
type link struct {
	s      *session
	conn   *websocket.Conn
	cancel context.CancelFunc // of its context: no more input is taken
	work   sync.WaitGroup
	ping   *time.Timer
	once   sync.Once

	followed atomic.Bool // by a newer connection

	taking sync.Mutex // held while a piece of input is taken

	mu      sync.Mutex
	lingers bool // no ping is sent any more, and the last read deadline is set
}

// start has the connection speak. It returns at once.
func (l *link) start(ctx context.Context) {
	l.mu.Lock()
	l.ping = time.AfterFunc(pingPeriod, l.beat)
	l.mu.Unlock()
	var writer sync.WaitGroup
	writer.Go(func() { l.guard(l.write) })
	l.work.Go(func() {
		l.guard(func() { l.read(ctx) })
		writer.Wait()
		l.drop()
	})
}

// guard has a panic end the session, not the program.
func (l *link) guard(f func()) {
	if err := lifecycle.Guard(func() error { f(); return nil }); err != nil {
		l.s.cancel(err)
		l.drop()
	}
}

// wait returns when the connection is closed and its goroutines have ended.
func (l *link) wait() { l.work.Wait() }

// drop ends the connection as it is.
func (l *link) drop() {
	l.once.Do(func() {
		l.cancel()
		l.mu.Lock()
		l.quiet()
		l.mu.Unlock()
		_ = l.conn.Close()
		l.s.detach(l)
	})
}

// replace has the connection take no more input, from the moment of its return. Its writer finds out that it gets no more output, and says why.
func (l *link) replace() {
	l.cancel()
	// Its peer may be gone: then it must not hold on for the whole of the write's time.
	_ = l.conn.NetConn().SetWriteDeadline(time.Now().Add(partTime))
	l.taking.Lock()
	defer l.taking.Unlock()
}

func (l *link) send(data []byte) error {
	_ = l.conn.SetWriteDeadline(time.Now().Add(writeTime))
	return l.conn.WriteMessage(websocket.TextMessage, data)
}

func (l *link) beat() {
	err := l.conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeTime))
	l.mu.Lock()
	over := l.lingers // then it may have come after the Close
	if err == nil && !over {
		l.ping.Reset(pingPeriod)
	}
	l.mu.Unlock()
	if err != nil && !over {
		l.drop()
	}
}

// quiet ends the pings and all new read deadlines.
func (l *link) quiet() {
	l.lingers = true
	if l.ping != nil {
		l.ping.Stop()
	}
}

// write is the only sender of data frames.
func (l *link) write() {
	for {
		data, last := l.s.tape.take(l)
		if data == nil {
			l.goodbye(last)
			return
		}
		if l.send(data) != nil {
			l.drop()
			return
		}
	}
}

// goodbye sends the Close that fits and gives the client time for its own, so that what it still sends, if only the answer to a ping, does not reset the
// connection before it has read the end.
func (l *link) goodbye(last bool) {
	code, text, within := websocket.CloseNormalClosure, "", lingerTime
	l.mu.Lock()
	dropped := l.lingers
	l.quiet() // no ping comes after the Close
	l.mu.Unlock()
	if dropped {
		return
	}
	if !last {
		l.followed.Store(true) // before its client can answer this with a Close of its own
		code, text, within = CloseReplaced, "a newer connection has taken the execution over", partTime
	}
	_ = l.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, text), time.Now().Add(writeTime))
	if half, ok := l.conn.NetConn().(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // who only waits for the connection's end need not wait for ours
	}
	_ = l.conn.SetReadDeadline(time.Now().Add(within))
	l.cancel()
	if l.s.parting.Load() {
		l.part()
	}
}

// part has a client that was told the end close soon.
func (l *link) part() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lingers {
		_ = l.conn.SetReadDeadline(time.Now().Add(partTime))
	}
}

// alive gives the client time for its next sign of life.
func (l *link) alive() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.lingers {
		_ = l.conn.SetReadDeadline(time.Now().Add(pongTime))
	}
}

// read takes in what the client sends until it closes or its connection breaks.
func (l *link) read(ctx context.Context) {
	l.conn.SetPongHandler(func(string) error { l.alive(); return nil })
	l.conn.SetCloseHandler(func(int, string) error { return nil }) // the writer answers
	l.alive()
	for {
		kind, r, err := l.conn.NextReader()
		if err == nil {
			err = l.frame(ctx, kind, r)
		}
		e, closed := errors.AsType[*websocket.CloseError](err)
		if closed && e.Code != websocket.CloseAbnormalClosure || errors.Is(err, websocket.ErrReadLimit) { // a frame longer than any
			l.s.leave(l)
			return
		}
		if err != nil {
			l.drop()
			return
		}
		l.alive() // time spent waiting for the program does not count
	}
}

// pieces are what frames of any size are read in. A connection that is idle holds none.
var pieces = sync.Pool{New: func() any { return new([4096]byte) }}

func (l *link) frame(ctx context.Context, kind int, r io.Reader) error {
	if l.s.extended && kind == websocket.TextMessage {
		return l.control(ctx, r)
	}
	buf := pieces.Get().(*[4096]byte)
	defer pieces.Put(buf)
	for {
		n, err := r.Read(buf[:])
		if n > 0 {
			l.take(ctx, func() {
				taken, err := l.s.stdin.WriteContext(ctx, buf[:n])
				if err != nil && ctx.Err() == nil {
					taken = n // refused once the execution has ended: then nobody reads it
				}
				l.s.tape.took(int64(taken), 0)
			})
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// take runs f unless a newer connection has taken over.
func (l *link) take(ctx context.Context, f func()) {
	l.taking.Lock()
	defer l.taking.Unlock()
	if ctx.Err() == nil {
		f()
	}
}

// maxControl bounds a control message, in bytes.
const maxControl = 4096

func (l *link) control(ctx context.Context, r io.Reader) error {
	data, err := io.ReadAll(io.LimitReader(r, maxControl+1))
	if err != nil {
		return err
	}
	var m struct {
		Type          string
		Width, Height uint16
		Name          string
		Offset        int64
	}
	unknown := len(data) > maxControl || json.Unmarshal(data, &m) != nil // skipped like unknown types, so that the protocol can grow
	if m.Type == "ack" {
		if l.s.tape.ack(l, m.Offset) {
			l.s.change(func() { l.s.delivered = true })
		}
		return nil
	}
	l.take(ctx, func() {
		l.s.tape.took(0, 1)
		if !unknown {
			l.s.control(ctx, m.Type, m.Name, execution.Size{Width: m.Width, Height: m.Height})
		}
	})
	return nil
}

func (s *session) control(ctx context.Context, kind, name string, size execution.Size) {
	switch kind {
	case "resize":
		select { // only the latest size matters
		case <-s.resize:
		default:
		}
		select {
		case s.resize <- size:
		default:
		}
	case "signal":
		// A connection that breaks meanwhile must not lose it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), signalTime)
		defer cancel()
		s.signal(ctx, "SIG"+strings.TrimPrefix(strings.ToUpper(name), "SIG"))
	case "eof":
		_ = s.stdin.Close()
	}
}
