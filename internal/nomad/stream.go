package nomad

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/nomad/api"

	"rockpool/internal/fault"
	"rockpool/internal/runner/execution"
	"rockpool/internal/timeline"
)

const (
	heartbeatTime = 10 * time.Second // Nomad closes an exec on which nothing is said for long
	frameSize     = 2048             // bytes of stdin in one, as nomad/api has it
	maxFrame      = 16 << 20         // bytes of one that comes
)

// attachTries is how often an exec is asked for that was refused before anything was started, by a server that is busy or has no leader.
const attachTries = 4

// session is one exec. It is nomad/api's protocol, spoken so that nothing is left behind: that client asks for the node first each time, leaves its goroutines to
// themselves, and tells a lost exit code by text alone.
type session struct {
	conn *websocket.Conn
	free func() bool
	late atomic.Bool // it went on after its end was told

	call   *timeline.Span           // nil = nothing is recorded
	dialed time.Time                // when the cluster had taken the exec
	first  *api.ExecStreamingOutput // read ahead of run
	start  execution.Start          // known with the exit code
	mu     sync.Mutex               // of writing
}

// attach opens an exec that ends with ctx. What fails here has started nothing.
func (c *Client) attach(ctx context.Context, at execution.Place, tty bool, argv []string, params map[string]string) (_ *session, err error) {
	command, err := json.Marshal(argv)
	if err != nil {
		return nil, fmt.Errorf("encode a command: %w", err)
	}
	q := c.params(url.Values{"task": {mainTask}, "tty": {strconv.FormatBool(tty)}, "command": {string(command)}})
	for k, v := range params {
		q.Set(k, v)
	}
	address := "ws" + strings.TrimPrefix(c.address, "http") + "/v1/client/allocation/" + url.PathEscape(at.AllocID) + "/exec?" + q.Encode()
	call := timeline.From(ctx).Child(timeline.ExecCall)
	header := c.header()
	if call != nil {
		header.Set(timeline.Header, call.Traceparent())
	}
	defer func() {
		if call != nil && err != nil {
			call.Fail(err)
			call.End()
		}
	}()
	for try := 1; ; try++ {
		dial := call.Child(timeline.ExecDial)
		conn, resp, err := c.dialer.DialContext(ctx, address, header)
		dial.Fail(err)
		dial.End()
		if err == nil {
			conn.SetReadLimit(maxFrame)
			s := &session{conn: conn, call: call, dialed: time.Now()}
			s.free = context.AfterFunc(ctx, func() { _ = conn.Close() })
			return s, nil
		}
		if resp != nil { // a refusal
			text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
			_ = resp.Body.Close()
			if err = ofStatus(resp.StatusCode, strings.TrimSpace(string(text)), "execute"); fault.Is(err, fault.NotFound) {
				err = gone(err)
			}
		} else {
			err = classify(err, "execute")
		}
		if resp == nil || try == attachTries || !fault.Is(err, fault.Unavailable) {
			return nil, err
		}
		if err := pause(ctx, try); err != nil {
			return nil, err
		}
	}
}

// begin is attach for a script that says first that it has begun. A task that is told of as running may not have started yet.
func (c *Client) begin(ctx context.Context, at execution.Place, tty bool, argv []string) (*session, error) {
	for try := 1; ; try++ {
		s, err := c.attach(ctx, at, tty, argv, nil)
		if err != nil {
			return nil, err
		}
		frame, err := s.next()
		if err == nil {
			s.first = &frame
			return s, nil
		}
		s.close()
		if e, ok := errors.AsType[*websocket.CloseError](err); !ok || try == attachTries || !strings.Contains(e.Text, "not started yet") {
			return nil, lost(err)
		}
		if err := pause(ctx, try); err != nil {
			return nil, err
		}
	}
}

// pause is the time before another try.
func pause(ctx context.Context, try int) error {
	t := time.NewTimer(time.Duration(try) * 200 * time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return fmt.Errorf("execute: %w", context.Cause(ctx))
	case <-t.C:
		return nil
	}
}

// next is the next frame.
func (s *session) next() (api.ExecStreamingOutput, error) {
	if f := s.first; f != nil {
		s.first = nil
		return *f, nil
	}
	var frame struct {
		api.ExecStreamingOutput
		Steps string          `json:"rockpool_timeline"` // beside the exit code, of a cluster of ours
		Start execution.Start `json:"rockpool_start"`    // likewise
	}
	err := s.conn.ReadJSON(&frame)
	if err == nil && frame.Exited {
		s.call.Import(frame.Steps, s.dialed)
		if frame.Start == execution.Warm || frame.Start == execution.Cold { // it becomes a label
			s.start = frame.Start
		}
	}
	return frame.ExecStreamingOutput, err
}

// close drops the connection. What runs in the container is not ended by that.
func (s *session) close() {
	s.free()
	_ = s.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
	_ = s.conn.Close()
}

// send has no deadline: a program that does not read its input holds the server back, and the server us. Hosts that are gone are noticed by the kernel.
func (s *session) send(v *api.ExecStreamingInput) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.WriteJSON(v)
}

// input sends bytes of stdin.
func (s *session) input(p []byte) error {
	return s.send(&api.ExecStreamingInput{Stdin: &api.ExecStreamingIOOperation{Data: p}})
}

// errNoExitCode says that an exec ended without one, whatever it was closed with.
var errNoExitCode = errors.New("the exec ended without an exit code")

// run connects stdio until the exec ends, and gives the exit code that the server sent. It is called once, and closes the connection and Stdin. eof is what the end of
// Stdin is told with; nil = by closing the program's. Stdin is sent from begun on; nil = at once.
func (s *session) run(stdio execution.Stdio, eof []byte, begun <-chan struct{}) (int, error) {
	var wg sync.WaitGroup
	done := make(chan struct{})
	defer wg.Wait()
	defer func() {
		if c, ok := stdio.Stdin.(io.Closer); ok {
			_ = c.Close()
		}
	}()
	defer s.close()
	defer close(done)
	if stdio.Stdin != nil {
		wg.Go(func() {
			if begun != nil {
				select {
				case <-begun:
				case <-done:
					return
				}
			}
			s.feed(stdio.Stdin, eof)
		})
	}
	wg.Go(func() { s.beat(stdio.Resize, done) })
	defer s.call.End()
	heard := s.dialed // what was heard last that is a step
	for first := true; ; {
		frame, err := s.next()
		if err != nil {
			if s.late.Load() {
				return 0, fault.New(fault.Unavailable, "the exec went on after the program's end was told")
			}
			return 0, lost(err)
		}
		for _, out := range []struct {
			op *api.ExecStreamingIOOperation
			to io.Writer
		}{{frame.Stdout, stdio.Stdout}, {frame.Stderr, stdio.Stderr}} {
			if out.op != nil && len(out.op.Data) > 0 {
				if first && s.call != nil {
					now := time.Now()
					s.call.Past(timeline.ExecByte, heard, now)
					first, heard = false, now
				}
				if _, err := out.to.Write(out.op.Data); err != nil {
					return 0, fmt.Errorf("hand on output: %w", err)
				}
			}
		}
		if frame.Exited {
			if frame.Result == nil {
				return 0, fault.Wrap(fault.Unavailable, errNoExitCode, "the program's outcome is lost")
			}
			if s.call != nil {
				s.call.Past(timeline.ExecExit, heard, time.Now())
			}
			return frame.Result.ExitCode, nil
		}
	}
}

// lost is the error of an exec that broke off.
func lost(err error) error {
	if e, ok := errors.AsType[*websocket.CloseError](err); ok {
		if strings.Contains(e.Text, "Unknown allocation") {
			return gone(e)
		}
		return fault.Wrap(fault.Unavailable, fmt.Errorf("%w: close %d: %s", errNoExitCode, e.Code, e.Text), "the program's outcome is lost")
	}
	return fault.Wrap(fault.Unavailable, fmt.Errorf("%w: %w", errNoExitCode, err), "the program's outcome is lost")
}

func gone(cause error) error { return fault.Wrap(fault.Gone, cause, "the runner's allocation is gone") }

// feed sends stdin until it ends or the connection does.
func (s *session) feed(from io.Reader, eof []byte) {
	buf := make([]byte, frameSize)
	last := byte('\n')
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if s.input(buf[:n]) != nil {
				return
			}
			last = buf[n-1]
		}
		if err != nil {
			if eof != nil {
				if last != '\n' {
					_ = s.input(eof) // the first one only ends the line
				}
				_ = s.input(eof)
			} else {
				_ = s.send(&api.ExecStreamingInput{Stdin: &api.ExecStreamingIOOperation{Close: true}})
			}
			return
		}
	}
}

// beat keeps the connection alive and sends the sizes of the terminal.
func (s *session) beat(sizes <-chan execution.Size, done <-chan struct{}) {
	tick := time.NewTicker(heartbeatTime)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case size, ok := <-sizes:
			if !ok {
				sizes = nil
				continue
			}
			_ = s.send(&api.ExecStreamingInput{TTYSize: &api.TerminalSize{Height: int(size.Height), Width: int(size.Width)}})
		case <-tick.C:
			_ = s.send(&api.ExecStreamingInput{})
		}
	}
}

// writing are the buffers of connections that are writing. An execution that waits holds none.
var writing sync.Pool

// dialer opens WebSockets over what HTTP requests go over.
func dialer(t *http.Transport) *websocket.Dialer {
	return &websocket.Dialer{
		NetDialContext: t.DialContext, Proxy: t.Proxy, TLSClientConfig: t.TLSClientConfig, HandshakeTimeout: handshakeTime,
		ReadBufferSize: 4096, WriteBufferSize: 4096, WriteBufferPool: &writing,
	}
}
