package platform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// Message is one message of the gateway, with the time it arrived.
type Message struct {
	Type string
	Text string // of stdout, stderr, error
	Code int    // of exit
	At   time.Time
}

// Session is an open execution.
type Session struct{ conn *websocket.Conn }

// Outcome is everything an execution said.
type Outcome struct {
	Messages []Message
	Stdout   string
	Stderr   string
	Final    Message // exit, timeout or error
	Close    int     // close code
}

// Next reads one message. After the gateway's Close it returns the *websocket.CloseError. Anything that is not of the contract's form is an
// error: the platform would drop it.
func (s *Session) Next(ctx context.Context) (Message, error) {
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	kind, data, err := s.conn.ReadMessage()
	at := time.Now()
	if err != nil {
		if ctx.Err() != nil {
			return Message{}, fmt.Errorf("waiting for a message: %w", context.Cause(ctx))
		}
		return Message{}, err
	}
	if kind != websocket.TextMessage {
		return Message{}, errors.New("a binary frame came from the gateway")
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return Message{}, fmt.Errorf("%q: %w", data, err)
	}
	m := Message{At: at}
	if err := json.Unmarshal(raw["type"], &m.Type); err != nil {
		return m, fmt.Errorf("%q: %w", data, err)
	}
	want := 2
	switch m.Type {
	case "start", "timeout":
		want = 1
	case "exit":
		err = json.Unmarshal(raw["data"], &m.Code)
	case "stdout", "stderr", "error":
		err = json.Unmarshal(raw["data"], &m.Text)
		if err == nil && m.Text == "" {
			err = errors.New("empty data")
		}
	default:
		err = fmt.Errorf("unknown type %q", m.Type)
	}
	if err == nil && len(raw) != want {
		err = errors.New("extra keys")
	}
	if err != nil {
		return m, fmt.Errorf("%q: %w", data, err)
	}
	return m, nil
}

// Send writes text to the program's standard input.
func (s *Session) Send(text string) error {
	return s.conn.WriteMessage(websocket.TextMessage, []byte(text))
}

// Stop asks the gateway to end the execution, as the platform does when a learner presses stop.
func (s *Session) Stop() error {
	return s.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(5*time.Second))
}

// Abort drops the connection without a word.
func (s *Session) Abort() { _ = s.conn.Close() }

// Wait reads to the gateway's Close. An execution that was not ended by exactly one final message and a Close 1000 is an error, unless the
// client asked for the end itself.
func (s *Session) Wait(ctx context.Context) (Outcome, error) {
	return s.WaitFunc(ctx, func(Message) {})
}

// WaitFunc is Wait with a look at every message as it comes.
func (s *Session) WaitFunc(ctx context.Context, see func(Message)) (Outcome, error) {
	var o Outcome
	var out, errs strings.Builder
	for {
		m, err := s.Next(ctx)
		if err != nil {
			o.Stdout, o.Stderr = out.String(), errs.String()
			if c, ok := errors.AsType[*websocket.CloseError](err); ok {
				o.Close = c.Code
				switch {
				case c.Code != websocket.CloseNormalClosure:
					return o, fmt.Errorf("closed with %d %q", c.Code, c.Text)
				case o.Final.Type == "":
					return o, errors.New("closed without a final message")
				}
				return o, nil
			}
			return o, err
		}
		if o.Final.Type != "" {
			return o, fmt.Errorf("%s after the final %s", m.Type, o.Final.Type)
		}
		if (m.Type == "start") != (len(o.Messages) == 0) {
			return o, fmt.Errorf("message %d is %s", len(o.Messages), m.Type)
		}
		o.Messages = append(o.Messages, m)
		switch m.Type {
		case "stdout":
			out.WriteString(m.Text)
		case "stderr":
			errs.WriteString(m.Text)
		case "exit", "timeout", "error":
			o.Final = m
		}
		see(m)
	}
}
