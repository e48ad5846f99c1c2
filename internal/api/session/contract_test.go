package session_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/runner/execution"
)

// plain connects as any client of the contract does, without a subprotocol.
func (p *place) plain() *websocket.Conn {
	p.Helper()
	d := websocket.Dialer{NetDial: func(string, string) (net.Conn, error) { return p.listener.Dial(), nil }}
	c, _, err := d.Dial("ws://gateway/", nil)
	if err != nil {
		p.Fatal(err)
	}
	return c
}

// ends checks the Close: 1000, and no reason.
func (p *place) ends(c *websocket.Conn) {
	p.Helper()
	_, data, err := c.ReadMessage()
	if e, ok := errors.AsType[*websocket.CloseError](err); !ok || e.Code != websocket.CloseNormalClosure || e.Text != "" {
		p.Errorf("got %q, %v instead of Close 1000", data, err)
	}
}

const contractStart = `{"type":"start"}`

func TestNothingIsStartedBeforeTheStartMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var started atomic.Bool
		p := newPlace(t, execution.Keep{}, func(context.Context, execution.Client) execution.Outcome {
			started.Store(true)
			return execution.Outcome{}
		})
		defer p.stop()
		c := p.plain()
		synctest.Wait()
		if started.Load() {
			t.Error("the program was started before the message was out")
		}
		p.says(c, contractStart)
		p.says(c, `{"type":"exit","data":0}`)
		if !started.Load() {
			t.Error("it was not started")
		}
		p.ends(c)
		_ = c.Close()
		<-p.outcome
	})
}

// The connection is closed after the Close frame, whether or not the client answers it.
func TestTheConnectionEndsAfterTheClose(t *testing.T) {
	for answers, within := range map[bool]time.Duration{true: 0, false: 10 * time.Second} {
		t.Run(fmt.Sprintf("answered: %v", answers), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlace(t, execution.Keep{}, func(context.Context, execution.Client) execution.Outcome { return execution.Outcome{Code: 1} })
				defer p.stop()
				c := p.plain()
				if !answers {
					c.SetCloseHandler(func(int, string) error { return nil })
				}
				p.says(c, contractStart)
				p.says(c, `{"type":"exit","data":1}`)
				p.ends(c)
				began := time.Now()
				if _, err := c.NetConn().Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(began) != within {
					t.Errorf("%v after %s", err, time.Since(began))
				}
				_ = c.Close()
				<-p.outcome
			})
		})
	}
}

// A client that closed gets Close 1000 at once, no final message, and nothing of what still waited for it.
func TestAClientsCloseIsAnsweredAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t, execution.Keep{}, func(ctx context.Context, c execution.Client) execution.Outcome {
			for range 30 {
				_, _ = io.WriteString(c.Stdout, "x")
			}
			return hold(ctx, c)
		})
		defer p.stop()
		c := p.plain()
		p.says(c, contractStart)
		synctest.Wait()
		began := time.Now()
		_ = c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, "any code will do"), time.Now().Add(time.Second))
		synctest.Wait()
		p.says(c, `{"type":"stdout","data":"x"}`) // it was on its way
		p.ends(c)
		if out := <-p.outcome; out.Kind != execution.Left || time.Since(began) != 0 {
			t.Errorf("%+v after %s", out, time.Since(began))
		}
		_ = c.Close()
	})
}

func TestPingsAreAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t, execution.Keep{}, hold)
		defer p.stop()
		c := p.plain()
		p.says(c, contractStart)
		pong := make(chan string, 1)
		c.SetPongHandler(func(data string) error { pong <- data; return nil })
		var reader sync.WaitGroup
		reader.Go(func() { _, _, _ = c.ReadMessage() })
		_ = c.WriteControl(websocket.PingMessage, []byte("there?"), time.Now().Add(time.Second))
		if got := <-pong; got != "there?" {
			t.Errorf("got %q", got)
		}
		_ = c.Close()
		reader.Wait()
		<-p.outcome
	})
}

// Sixty-four messages wait for a client that does not read, beside the one that is on its way. Then the program waits; what it wrote before its time limit
// comes before the timeout.
func TestTheQueueHoldsSixtyFourMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var written atomic.Int64
		p := newPlace(t, execution.Keep{}, func(ctx context.Context, c execution.Client) execution.Outcome {
			var writer sync.WaitGroup
			writer.Go(func() {
				for {
					if _, err := io.WriteString(c.Stdout, "x"); err != nil {
						return
					}
					written.Add(1)
				}
			})
			time.Sleep(time.Second)
			return execution.Outcome{Kind: execution.TimedOut}
		})
		defer p.stop()
		c := p.plain()
		p.says(c, contractStart)
		synctest.Wait()
		if n := written.Load(); n != 65 {
			t.Errorf("%d messages were taken", n)
		}
		time.Sleep(2 * time.Second)
		for range 65 {
			p.says(c, `{"type":"stdout","data":"x"}`)
		}
		p.says(c, `{"type":"timeout"}`)
		p.ends(c)
		_ = c.Close()
		<-p.outcome
	})
}

// There is no limit on the size of a frame, and no kind of it means anything else than input.
func TestFramesOfAnySizeAreInput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := bytes.Repeat([]byte(`{"type":"eof"}`+"\x00\xff"), 100_000)
		var got []byte
		p := newPlace(t, execution.Keep{}, func(_ context.Context, c execution.Client) execution.Outcome {
			got = make([]byte, len(want))
			if _, err := io.ReadFull(c.Stdin, got); err != nil {
				t.Error(err)
			}
			return execution.Outcome{}
		})
		defer p.stop()
		c := p.plain()
		p.says(c, contractStart)
		half := len(want) / 2
		_ = c.WriteMessage(websocket.TextMessage, want[:half])
		_ = c.WriteMessage(websocket.BinaryMessage, want[half:])
		p.says(c, `{"type":"exit","data":0}`)
		p.ends(c)
		_ = c.Close()
		<-p.outcome
		if !bytes.Equal(got, want) {
			t.Error("the program read something else")
		}
	})
}

// A verdict from outside is told at once; half a character that waited for its rest is not output.
func TestAnEndOfTheRunnerIsTheLastMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t, execution.Keep{}, func(ctx context.Context, c execution.Client) execution.Outcome {
			_, _ = io.WriteString(c.Stdout, "\xc3") // half a character, whose rest never comes
			return hold(ctx, c)
		})
		defer p.stop()
		c := p.plain()
		p.says(c, contractStart)
		synctest.Wait()
		p.end(execution.ErrDeleted)
		p.says(c, `{"type":"error","data":"the allocation stopped as expected"}`)
		p.ends(c)
		_ = c.Close()
		<-p.outcome
	})
}
