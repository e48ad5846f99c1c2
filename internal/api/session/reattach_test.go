package session_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"pgregory.net/rapid"

	"rockpool/internal/api/session"
	"rockpool/internal/endpoint/endpointtest"
	"rockpool/internal/runner/execution"
)

// place is a server with one execution; a handshake with an offset comes again.
type place struct {
	*testing.T
	set      session.Set
	end      context.CancelCauseFunc // of the runner or the gateway
	listener *endpointtest.Listener
	outcome  chan execution.Outcome
	stop     func()
}

func newPlace(t *testing.T, keep execution.Keep, run func(context.Context, execution.Client) execution.Outcome) *place {
	p := &place{T: t, listener: endpointtest.NewListener(), outcome: make(chan execution.Outcome, 1)}
	p.set.Budget = int64(keep.Bytes)
	life, end := context.WithCancelCause(context.Background())
	p.end = end
	var once sync.Mutex
	begun := false
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := session.Upgrade(w, r, func(http.ResponseWriter, *http.Request, int, error) {})
		if err != nil {
			return
		}
		once.Lock()
		first := !begun
		begun = true
		once.Unlock()
		ctx := context.WithoutCancel(r.Context())
		if first {
			p.outcome <- p.set.Serve(life, conn, session.Execution{Key: "x", Keep: keep, Run: run, Signal: func(context.Context, string) {}})
			return
		}
		offset, _ := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
		p.set.Resume(ctx, conn, "x", offset)
	})}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(p.listener) })
	p.stop = func() { _ = server.Close(); serving.Wait() }
	return p
}

// dial connects with the subprotocol, over a connection that change may wrap.
func (p *place) dial(offset int64, change func(net.Conn) net.Conn) (*websocket.Conn, error) {
	var theirs net.Conn
	d := websocket.Dialer{Subprotocols: []string{session.Protocol}, NetDial: func(string, string) (net.Conn, error) {
		if theirs = p.listener.Dial(); change != nil {
			theirs = change(theirs)
		}
		return theirs, nil
	}}
	c, _, err := d.Dial(fmt.Sprintf("ws://gateway/?offset=%d", offset), nil)
	if err != nil {
		_ = theirs.Close()
	}
	return c, err
}

func (p *place) must(offset int64) *websocket.Conn {
	p.Helper()
	c, err := p.dial(offset, nil)
	if err != nil {
		p.Fatal(err)
	}
	return c
}

// says checks the next message.
func (p *place) says(c *websocket.Conn, want string) {
	p.Helper()
	if _, data, err := c.ReadMessage(); string(data) != want {
		p.Fatalf("got %q (%v), want %q", data, err, want)
	}
}

// cutting breaks after so many bytes in both directions together.
type cutting struct {
	net.Conn
	mu   sync.Mutex
	left int
}

func (c *cutting) grant(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n = min(n, c.left)
	c.left -= n
	return n
}

func (c *cutting) Write(b []byte) (int, error) {
	n := c.grant(len(b))
	m, err := c.Conn.Write(b[:n])
	if err == nil && n < len(b) {
		_ = c.Close()
		err = io.ErrClosedPipe
	}
	return m, err
}

func (c *cutting) Read(b []byte) (int, error) {
	n := c.grant(1)
	if n == 0 {
		_ = c.Close()
		return 0, io.ErrClosedPipe
	}
	n, err := c.Conn.Read(b[:1])
	return n, err
}

// said is one message as any client understands it.
type said struct {
	Type     string
	Data     any
	Input    int64
	Controls int64
	Offset   int64
}

// visitor is a naive client that comes again until it has the final message.
type visitor struct {
	input  []byte // to send, and then the end of it
	chunk  int
	acks   bool
	cuts   []int // bytes after which the connections break, one after the other; then they hold
	heard  int64
	output []string
	final  string
}

// visit is one connection. It reports whether it was the last.
func (v *visitor) visit(p *place) bool {
	var change func(net.Conn) net.Conn
	if len(v.cuts) > 0 {
		n := v.cuts[0]
		v.cuts = v.cuts[1:]
		change = func(c net.Conn) net.Conn { return &cutting{Conn: c, left: 400 + n} } // the handshake is let through
	}
	c, err := p.dial(v.heard, change)
	if err != nil {
		return false
	}
	defer c.Close()
	var sender sync.WaitGroup
	defer sender.Wait()
	defer c.Close()
	acks := make(chan int64, 1024)
	defer close(acks)
	for {
		_, data, err := c.ReadMessage()
		if err != nil {
			return false
		}
		var m said
		if err := json.Unmarshal(data, &m); err != nil {
			p.Errorf("%q: %v", data, err)
			return true
		}
		switch m.Type {
		case "start":
			if m.Offset != v.heard {
				p.Errorf("the greeting says %s after %d messages", data, v.heard)
			}
			sender.Go(func() { v.send(c, m, acks) })
		case "input":
		case "stdout", "stderr":
			v.heard++
			v.output = append(v.output, m.Type+m.Data.(string))
			if v.acks {
				acks <- v.heard
			}
		default:
			v.final = string(data)
			return true
		}
	}
}

func (v *visitor) send(c *websocket.Conn, m said, acks <-chan int64) {
	for rest := v.input[m.Input:]; len(rest) > 0; {
		n := min(v.chunk, len(rest))
		if c.WriteMessage(websocket.BinaryMessage, rest[:n]) != nil {
			return
		}
		rest = rest[n:]
	}
	if m.Controls == 0 && c.WriteMessage(websocket.TextMessage, []byte(`{"type":"eof"}`)) != nil {
		return
	}
	for n := range acks {
		if c.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, `{"type":"ack","offset":%d}`, n)) != nil {
			return
		}
	}
}

// Wherever connections break, the program reads what was sent and the client reads what was written, each byte once and in order.
func TestCutsAnywhereLoseAndDoubleNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		output := rapid.SliceOfN(rapid.StringMatching(`[eo][a-zü€]{1,40}`), 0, 60).Draw(rt, "output")
		v := &visitor{
			input: rapid.SliceOfN(rapid.Byte(), 0, 5000).Draw(rt, "input"), chunk: rapid.IntRange(1, 2000).Draw(rt, "chunk"), acks: rapid.Bool().Draw(rt, "acks"),
			cuts: rapid.SliceOfN(rapid.IntRange(0, 3000), 0, 12).Draw(rt, "cuts"),
		}
		keep := execution.DefaultKeepBytes
		if v.acks {
			keep = rapid.IntRange(100, 3000).Draw(rt, "buffer") // nothing is lost by a small one
		}
		sent := bytes.Clone(v.input)
		late := rapid.IntRange(0, len(output)).Draw(rt, "output before the input")
		var got []byte
		var problem string
		synctest.Test(t, func(t *testing.T) {
			p := newPlace(t, execution.Keep{Bytes: keep, Grace: time.Minute, Acks: v.acks}, func(ctx context.Context, c execution.Client) execution.Outcome {
				write := func(chunks []string) {
					for _, s := range chunks {
						to := c.Stdout
						if s[0] == 'e' {
							to = c.Stderr
						}
						_, _ = io.WriteString(to, s[1:])
					}
				}
				write(output[:late])
				got, _ = io.ReadAll(c.Stdin)
				write(output[late:])
				return execution.Outcome{Code: 7}
			})
			defer p.stop()
			for range 30 {
				if v.visit(p) {
					break
				}
			}
			if out := <-p.outcome; out.Kind != execution.Exited {
				problem = fmt.Sprintf("it ended as %+v", out)
			}
		})
		var want []string
		for _, s := range output {
			want = append(want, map[byte]string{'e': "stderr", 'o': "stdout"}[s[0]]+s[1:])
		}
		switch {
		case problem != "":
			rt.Fatal(problem)
		case !bytes.Equal(got, sent):
			rt.Fatalf("the program read %q, sent was %q", got, sent)
		case strings.Join(v.output, "\n") != strings.Join(want, "\n"):
			rt.Fatalf("the client read %q, written was %q", v.output, want)
		case !strings.HasPrefix(v.final, `{"type":"exit","data":7`):
			rt.Fatalf("the last message was %q", v.final)
		}
	})
}

const greeting = `{"type":"start","offset":%d,"input":0,"controls":0,"reattach":{"bufferBytes":65536,"graceSeconds":30}}`

var small = execution.Keep{Bytes: execution.MinKeepBytes, Grace: 30 * time.Second}

func hold(ctx context.Context, _ execution.Client) execution.Outcome {
	<-ctx.Done()
	if errors.Is(context.Cause(ctx), execution.ErrClientLeft) {
		return execution.Outcome{Kind: execution.Left}
	}
	return execution.Outcome{Kind: execution.Stopped}
}

func TestTheGraceEndsAnExecutionThatNobodyComesBackTo(t *testing.T) {
	for name, part := range map[string]struct {
		run  func(context.Context, execution.Client) execution.Outcome
		want execution.Kind
	}{
		"it runs":      {hold, execution.Left},
		"it has ended": {func(context.Context, execution.Client) execution.Outcome { return execution.Outcome{Code: 3} }, execution.Exited},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlace(t, small, part.run)
				defer p.stop()
				c := p.must(0)
				p.says(c, fmt.Sprintf(greeting, 0))
				_ = c.Close()
				began := time.Now()
				if out := <-p.outcome; out.Kind != part.want || time.Since(began) != 30*time.Second {
					t.Errorf("%+v after %s", out, time.Since(began))
				}
				if p.set.Keeps("x") {
					t.Error("it is still held")
				}
				late := p.must(0)
				p.says(late, `{"type":"error","data":"the execution has ended and is not held any more"}`)
				if _, _, err := late.ReadMessage(); !websocket.IsCloseError(err, session.CloseNotHeld) {
					t.Errorf("it was closed with %v", err)
				}
				_ = late.Close()
			})
		})
	}
}

func TestTheLastMessageWaitsForItsClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t, small, func(_ context.Context, c execution.Client) execution.Outcome {
			time.Sleep(10 * time.Second)
			_, _ = io.WriteString(c.Stdout, "late")
			return execution.Outcome{Code: 3}
		})
		defer p.stop()
		c := p.must(0)
		p.says(c, fmt.Sprintf(greeting, 0))
		_ = c.Close()
		time.Sleep(29 * time.Second)
		c = p.must(0)
		p.says(c, fmt.Sprintf(greeting, 0))
		p.says(c, `{"type":"stdout","data":"late"}`)
		p.says(c, `{"type":"exit","data":3}`)
		if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) { // and answers it
			t.Errorf("it was closed with %v", err)
		}
		began := time.Now()
		if <-p.outcome; time.Since(began) != 0 {
			t.Errorf("what was delivered is held for %s", time.Since(began))
		}
		_ = c.Close()
	})
}

func TestACloseFrameStopsTheExecutionAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t, small, hold)
		defer p.stop()
		c := p.must(0)
		p.says(c, fmt.Sprintf(greeting, 0))
		began := time.Now()
		_ = c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
		if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
			t.Errorf("it was closed with %v", err)
		}
		if out := <-p.outcome; out.Kind != execution.Left || time.Since(began) != 0 {
			t.Errorf("%+v after %s", out, time.Since(began))
		}
		_ = c.Close()
	})
}

func TestTheNewerConnectionWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t, small, func(_ context.Context, c execution.Client) execution.Outcome {
			_, _ = io.WriteString(c.Stdout, "a")
			data, _ := io.ReadAll(c.Stdin)
			_, _ = c.Stdout.Write(data)
			return execution.Outcome{}
		})
		defer p.stop()
		older := p.must(0)
		p.says(older, fmt.Sprintf(greeting, 0))
		p.says(older, `{"type":"stdout","data":"a"}`)
		var closing sync.WaitGroup
		closing.Go(func() {
			_, _, err := older.ReadMessage()
			if e, ok := errors.AsType[*websocket.CloseError](err); !ok || e.Code != session.CloseReplaced || e.Text == "" {
				t.Errorf("the older was closed with %v", err)
			}
			_ = older.Close() // its own Close stops nothing
		})
		newer := p.must(1)
		p.says(newer, fmt.Sprintf(greeting, 1))
		closing.Wait()
		_ = newer.WriteMessage(websocket.BinaryMessage, []byte("b"))
		_ = newer.WriteMessage(websocket.TextMessage, []byte(`{"type":"eof"}`))
		p.says(newer, `{"type":"stdout","data":"b"}`)
		p.says(newer, `{"type":"exit","data":0}`)
		_, _, _ = newer.ReadMessage()
		if out := <-p.outcome; out.Kind != execution.Exited {
			t.Errorf("%+v", out)
		}
		_ = newer.Close()
	})
}

// The older connection is in the middle of input that the program does not take: what it has handed over counts, and the rest is the newer's.
func TestInputThatWaitsIsTakenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		input := make([]byte, 600<<10)
		for i := range input {
			input[i] = byte(i / 100)
		}
		read := make(chan struct{})
		var got []byte
		p := newPlace(t, small, func(_ context.Context, c execution.Client) execution.Outcome {
			<-read
			got, _ = io.ReadAll(c.Stdin)
			return execution.Outcome{}
		})
		defer p.stop()
		older := p.must(0)
		p.says(older, fmt.Sprintf(greeting, 0))
		var sender sync.WaitGroup
		sender.Go(func() { _ = older.WriteMessage(websocket.BinaryMessage, input) })
		synctest.Wait()
		_ = older.Close()
		sender.Wait()
		newer := p.must(0)
		var m said
		if err := newer.ReadJSON(&m); err != nil || m.Input < 256<<10 || m.Input > 300<<10 {
			t.Fatalf("%+v, %v", m, err)
		}
		close(read)
		_ = newer.WriteMessage(websocket.BinaryMessage, input[m.Input:])
		_ = newer.WriteMessage(websocket.TextMessage, []byte(`{"type":"eof"}`))
		var err error
		for err == nil {
			_, _, err = newer.ReadMessage()
		}
		<-p.outcome
		if !bytes.Equal(got, input) {
			t.Errorf("the program read %d bytes of %d", len(got), len(input))
		}
		_ = newer.Close()
	})
}

// A program that writes without end has what fits into the buffer, and then waits; a client that acknowledged nothing and comes for what is gone is told so.
func TestTheBufferIsBoundedAndHonest(t *testing.T) {
	const chunk = 1000
	for _, acks := range []bool{false, true} {
		t.Run(fmt.Sprintf("acknowledged: %v", acks), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				written := 0
				keep := small
				keep.Acks = acks
				p := newPlace(t, keep, func(ctx context.Context, c execution.Client) execution.Outcome {
					data := bytes.Repeat([]byte("x"), chunk)
					for ctx.Err() == nil {
						if _, err := c.Stdout.Write(data); err != nil {
							break
						}
						mu.Lock()
						written += chunk
						mu.Unlock()
					}
					return hold(ctx, c)
				})
				defer p.stop()
				c := p.must(0)
				p.says(c, fmt.Sprintf(greeting, 0))
				const read = 200
				for n := range read {
					if _, _, err := c.ReadMessage(); err != nil {
						t.Fatal(err)
					}
					if acks {
						_ = c.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, `{"type":"ack","offset":%d}`, n+1))
					}
				}
				_ = c.Close()
				synctest.Wait()
				mu.Lock()
				if held := written - read*chunk; held > small.Bytes {
					t.Errorf("%d bytes are held", held)
				}
				mu.Unlock()
				again := p.must(0)
				if _, data, _ := again.ReadMessage(); !strings.Contains(string(data), `"type":"error","data":"the output from offset 0 on is not held any more`) {
					t.Errorf("got %q", data)
				}
				if _, _, err := again.ReadMessage(); !websocket.IsCloseError(err, session.CloseNotHeld) {
					t.Errorf("it was closed with %v", err)
				}
				_ = again.Close()
				c = p.must(read)
				p.says(c, fmt.Sprintf(greeting, read))
				_ = c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
				for {
					if _, _, err := c.ReadMessage(); err != nil {
						break
					}
				}
				<-p.outcome
				_ = c.Close()
			})
		})
	}
}

func TestTheBudgetOfAllIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t, small, hold)
		defer p.stop()
		p.set.Budget--
		c := p.must(0)
		p.says(c, `{"type":"start"}`) // nothing is promised
		_ = c.Close()
		if out := <-p.outcome; out.Kind != execution.Left {
			t.Errorf("%+v", out)
		}
	})
}

func TestAnEndOfTheGatewayLetsGoOfWhatIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t, small, hold)
		defer p.stop()
		c := p.must(0)
		p.says(c, fmt.Sprintf(greeting, 0))
		_ = c.Close()
		synctest.Wait()
		began := time.Now()
		p.end(execution.ErrShutdown)
		if <-p.outcome; time.Since(began) != 0 {
			t.Errorf("it took %s", time.Since(began))
		}
	})
}
