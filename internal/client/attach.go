package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"syscall"

	"github.com/gorilla/websocket"
	"golang.org/x/term"

	"rockpool/internal/api/dto"
	"rockpool/internal/lifecycle"
)

// protocol has the client's text frames be control messages.
const protocol = "rockpool.v1"

// outOfMemory is the text of the gateway's message; clients compare it.
const outOfMemory = "the allocation was OOM Killed"

// execute attaches the streams to an execution until it ends.
func (c *client) execute(ctx context.Context, path string, s Streams) (int, error) {
	fd := int(s.In.Fd())
	tty := term.IsTerminal(fd)
	command, err := c.command()
	if err != nil {
		return 0, err
	}
	request := dto.ExecutionRequest{Command: command, TimeLimit: c.o.TimeLimit, TTY: &tty, Reattach: &dto.Reattach{Acknowledge: true}}
	if tty {
		if w, h, err := term.GetSize(fd); err == nil {
			request.Width, request.Height = uint16(w), uint16(h)
		}
	}
	var where dto.Execution
	if err := c.call(ctx, "POST", path, request, http.StatusOK, &where); err != nil {
		return ExitError, err
	}
	t := newTalk(where.WebSocketURL, c.o.Token)
	ws, err := t.dial(ctx)
	if err != nil && !errors.Is(err, errRefused) {
		ws, err = t.again(ctx, err)
	}
	if err != nil {
		return ExitError, fmt.Errorf("connect to the execution: %w", err)
	}
	if tty {
		state, err := term.MakeRaw(fd)
		if err != nil {
			leave(ws)
			return ExitError, fmt.Errorf("raw mode: %w", err)
		}
		defer func() { _ = term.Restore(fd, state) }()
	}
	// Reading the caller's input cannot be broken off; it ends with the program.
	var input lifecycle.Tasks
	input.Go(func() { t.pump(s.In) })

	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { t.signals(s.Signals, fd, done) })
	code, err := t.converse(ctx, ws, s)
	close(done)
	t.close()
	wg.Wait()
	switch {
	case ctx.Err() != nil:
		return 128 + int(syscall.SIGTERM), nil
	case errors.Is(err, syscall.EPIPE):
		return 128 + int(syscall.SIGPIPE), nil // whoever read the output has seen enough, as with any command
	}
	return code, err
}

// pump sends the input as it comes, and its end.
func (t *talk) pump(in io.Reader) {
	buf := make([]byte, 8192)
	for {
		n, err := in.Read(buf)
		if n > 0 && !t.say(websocket.BinaryMessage, bytes.Clone(buf[:n])) {
			return
		}
		if err != nil {
			t.control(map[string]string{"type": "eof"})
			return
		}
	}
}

// signals passes on what the process is told, until done.
func (t *talk) signals(signals <-chan os.Signal, fd int, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case sig := <-signals:
			switch sig {
			case syscall.SIGWINCH:
				if w, h, err := term.GetSize(fd); err == nil {
					t.control(map[string]any{"type": "resize", "width": w, "height": h})
				}
			case os.Interrupt:
				t.control(map[string]string{"type": "signal", "name": "INT"})
			}
		}
	}
}

// converse writes the output until the last message. A connection that breaks is followed by another, where the gateway offers that.
func (t *talk) converse(ctx context.Context, ws *websocket.Conn, s Streams) (int, error) {
	for {
		over, code, err := t.listen(ctx, ws, s)
		if over {
			return code, err
		}
		if ws, err = t.again(ctx, err); err != nil {
			return ExitError, fmt.Errorf("the connection ended before the program's exit code came: %w", err)
		}
	}
}

// listen reads one connection's messages. It is not over when the connection has broken.
func (t *talk) listen(ctx context.Context, ws *websocket.Conn, s Streams) (over bool, code int, err error) {
	t.attach(ws)
	var writer sync.WaitGroup
	writer.Go(func() { t.write(ws) })
	stop := context.AfterFunc(ctx, func() { leave(ws) })
	defer func() {
		stop()
		t.attach(nil)
		if over {
			leave(ws)
		}
		_ = ws.Close()
		writer.Wait()
	}()
	for {
		_, data, err := ws.ReadMessage()
		if ctx.Err() != nil {
			return true, ExitError, ctx.Err()
		}
		if e, ok := errors.AsType[*websocket.CloseError](err); ok && e.Code != websocket.CloseAbnormalClosure {
			return true, ExitError, fmt.Errorf("the connection ended before the program's exit code came: %w", err)
		}
		if err != nil {
			return false, 0, err
		}
		var m answer
		if err := json.Unmarshal(data, &m); err != nil {
			return true, ExitError, fmt.Errorf("a message of the gateway: %w", err)
		}
		if over, code, err := t.hear(m, len(data), s); over {
			return true, code, err
		}
	}
}

// answer is one message of the gateway.
type answer struct {
	Type     string          `json:"type"`
	Data     json.RawMessage `json:"data"`
	Input    int64           `json:"input"`
	Controls int64           `json:"controls"`
	Reattach *dto.Reattach   `json:"reattach"`
}

// hear acts on a message, and reports whether it was the last.
func (t *talk) hear(m answer, size int, s Streams) (over bool, code int, err error) {
	switch m.Type {
	case "start":
		t.greet(m)
		return false, 0, nil
	case "input":
		t.took(mark{m.Input, m.Controls})
		return false, 0, nil
	}
	switch m.Type {
	case "stdout", "stderr":
		var text string
		if err := json.Unmarshal(m.Data, &text); err != nil {
			return true, ExitError, fmt.Errorf("a message of the gateway: %w", err)
		}
		to := s.Out
		if m.Type == "stderr" {
			to = s.Err
		}
		if _, err := io.WriteString(to, text); err != nil {
			return true, ExitError, err
		}
	case "exit":
		if err := json.Unmarshal(m.Data, &code); err != nil {
			return true, ExitError, fmt.Errorf("a message of the gateway: %w", err)
		}
		return true, code, nil
	case "timeout":
		return true, ExitTimeout, nil
	case "error":
		var text string
		_ = json.Unmarshal(m.Data, &text)
		if text == outOfMemory {
			return true, ExitOutOfMemory, nil
		}
		return true, ExitError, errors.New(text)
	}
	t.hearing(size)
	return false, 0, nil
}
