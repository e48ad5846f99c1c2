package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// What is sent waits here until the gateway has taken it, so that it can be sent again over another connection.
const (
	windowBytes    = 256 << 10
	windowControls = 256
	messageCost    = 64 // bytes that the gateway's buffer counts for a message beside its own
)

// Times of connections.
const (
	handshakeTime = 10 * time.Second
	silenceTime   = 75 * time.Second // the gateway pings every 20 s
	sendTime      = 30 * time.Second
	firstPause    = 100 * time.Millisecond // before the second try to connect; it doubles
	longestPause  = 2 * time.Second
	closeTime     = time.Second
	beginTime     = 5 * time.Second // to connect at first
)

// talk is what is said between this client and an execution, over one connection after the other.
type talk struct {
	url    string
	token  string
	dialer websocket.Dialer

	mu      sync.Mutex
	changed sync.Cond
	tried   bool            // to connect
	ws      *websocket.Conn // the connection that is written to
	greeted bool            // by the gateway, over ws
	grace   time.Duration   // within which a broken connection can be followed by another; 0 = not at all
	said    []frame         // not taken by the gateway yet
	next    int             // of said: what ws sends next
	taken   mark            // what lies before said
	waiting mark            // what said holds
	heard   int64           // messages of output
	unacked int             // what those cost that were not acknowledged
	ackStep int             // of unacked
	closed  bool
}

// frame is one that was said.
type frame struct {
	kind int
	data []byte
}

// mark is an amount of input: bytes of stdin and control messages.
type mark struct{ bytes, controls int64 }

// after is the mark behind a frame.
func (m mark) after(f frame) mark {
	if f.kind == websocket.TextMessage {
		return mark{m.bytes, m.controls + 1}
	}
	return mark{m.bytes + int64(len(f.data)), m.controls}
}

func newTalk(to, token string) *talk {
	t := &talk{url: to, token: token, grace: beginTime, dialer: websocket.Dialer{
		Subprotocols: []string{protocol}, HandshakeTimeout: handshakeTime, Proxy: http.ProxyFromEnvironment,
	}}
	t.changed.L = &t.mu
	return t
}

// errRefused says that trying again is of no use.
var errRefused = errors.New("the gateway refuses")

// address is the execution's URL: as it was given at first, and then with the offset of what was not heard yet.
func (t *talk) address() (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.tried {
		t.tried = true
		return t.url, nil
	}
	u, err := url.Parse(t.url)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errRefused, err)
	}
	q := u.Query()
	q.Set("offset", strconv.FormatInt(t.heard, 10))
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// dial makes a connection that continues after what was heard.
func (t *talk) dial(ctx context.Context) (*websocket.Conn, error) {
	to, err := t.address()
	if err != nil {
		return nil, err
	}
	ws, resp, err := t.dialer.DialContext(ctx, to, http.Header{"Poseidon-Token": {t.token}}) //nolint:bodyclose // gorilla's needs none
	if err != nil {
		if resp != nil && resp.StatusCode < http.StatusInternalServerError {
			return nil, fmt.Errorf("%w: %s", errRefused, resp.Status)
		}
		return nil, err
	}
	if ws.Subprotocol() != protocol {
		_ = ws.Close()
		return nil, fmt.Errorf("%w: it does not speak %s", errRefused, protocol)
	}
	alive := func() { _ = ws.SetReadDeadline(time.Now().Add(silenceTime)) }
	alive()
	pong := ws.PingHandler()
	ws.SetPingHandler(func(data string) error { alive(); return pong(data) })
	return ws, nil
}

// again connects anew after a connection broke for a reason.
func (t *talk) again(ctx context.Context, broke error) (*websocket.Conn, error) {
	t.mu.Lock()
	grace := t.grace
	t.mu.Unlock()
	if grace == 0 {
		return nil, broke
	}
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		ws, err := t.dial(ctx)
		if err == nil || errors.Is(err, errRefused) {
			return ws, err
		}
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return nil, fmt.Errorf("%w; it could not be taken up again within %s: %w", broke, grace, err)
		}
	}
}

// attach has ws be written to, nil for no connection, as soon as the gateway has greeted.
func (t *talk) attach(ws *websocket.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ws, t.greeted = ws, false
	t.changed.Broadcast()
}

// greet notes what the gateway offers and what it has taken. What it has not taken is sent again.
func (t *talk) greet(m answer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.greeted, t.grace, t.next = true, 0, 0
	if m.Reattach != nil {
		t.grace = time.Duration(m.Reattach.GraceSeconds) * time.Second
		t.unacked, t.ackStep = 0, m.Reattach.BufferBytes/8
	}
	t.trim(mark{m.Input, m.Controls})
}

// trim forgets what the gateway has taken.
func (t *talk) trim(to mark) {
	for len(t.said) > 0 {
		f := &t.said[0]
		if f.kind == websocket.TextMessage {
			if t.taken.controls >= to.controls {
				break
			}
			t.taken.controls++
			t.waiting.controls--
		} else {
			n := max(0, min(int64(len(f.data)), to.bytes-t.taken.bytes))
			t.taken.bytes += n
			t.waiting.bytes -= n
			if f.data = f.data[n:]; len(f.data) > 0 {
				break
			}
		}
		t.said, t.next = t.said[1:], max(0, t.next-1)
	}
	t.changed.Broadcast()
}

// took is trim for a message of the gateway.
func (t *talk) took(to mark) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.trim(to)
}

// say queues a frame, and waits while too much was not taken. It reports whether anybody may send it.
func (t *talk) say(kind int, data []byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for !t.closed && (t.waiting.bytes >= windowBytes || t.waiting.controls >= windowControls) {
		t.changed.Wait()
	}
	if t.closed {
		return false
	}
	t.said = append(t.said, frame{kind, data})
	t.waiting = t.waiting.after(frame{kind, data})
	t.changed.Broadcast()
	return true
}

// control says a control message.
func (t *talk) control(m any) {
	if data, err := json.Marshal(m); err == nil {
		t.say(websocket.TextMessage, data)
	}
}

// hearing counts a message of output.
func (t *talk) hearing(size int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.heard++
	if t.unacked += size + messageCost; t.unacked >= t.ackStep {
		t.changed.Broadcast()
	}
}

// close has nothing be said any more.
func (t *talk) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.changed.Broadcast()
}

// due waits for what ws has to send next, until another connection takes its place.
func (t *talk) due(ws *websocket.Conn) (frame, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		switch {
		case t.ws != ws:
			return frame{}, false
		case !t.greeted:
		case t.grace > 0 && t.unacked >= t.ackStep:
			t.unacked = 0
			return frame{websocket.TextMessage, fmt.Appendf(nil, `{"type":"ack","offset":%d}`, t.heard)}, true
		case t.next < len(t.said):
			f := t.said[t.next]
			t.next++
			if t.grace == 0 { // it cannot be sent again
				t.trim(t.taken.after(f))
			}
			return f, true
		}
		t.changed.Wait()
	}
}

// write is the only sender of a connection's data frames.
func (t *talk) write(ws *websocket.Conn) {
	for {
		f, ok := t.due(ws)
		if !ok {
			return
		}
		_ = ws.SetWriteDeadline(time.Now().Add(sendTime))
		if ws.WriteMessage(f.kind, f.data) != nil {
			_ = ws.Close() // the reader finds out
			return
		}
	}
}

// leave asks the gateway to end the execution, and gives it a moment to answer.
func leave(ws *websocket.Conn) {
	now := time.Now()
	_ = ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), now.Add(closeTime))
	_ = ws.SetReadDeadline(now.Add(closeTime))
}
