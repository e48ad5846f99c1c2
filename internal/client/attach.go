package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/term"

	"rockpool/internal/api/dto"
	"rockpool/internal/lifecycle"
)

// protocol has the client's text frames be control messages.
const protocol = "rockpool.v1"

// outOfMemory is the text of the gateway's message; clients compare it.
const outOfMemory = "the allocation was OOM Killed"

type connection struct {
	ws *websocket.Conn
	mu sync.Mutex // one writer at a time
}

func (c *connection) send(kind int, data []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ws.WriteMessage(kind, data)
}

func (c *connection) control(m any) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return c.send(websocket.TextMessage, data)
}

// execute attaches the streams to an execution until it ends.
func (c *client) execute(ctx context.Context, path string, s Streams) (int, error) {
	fd := int(s.In.Fd())
	tty := term.IsTerminal(fd)
	command, err := c.command()
	if err != nil {
		return 0, err
	}
	request := dto.ExecutionRequest{Command: command, TimeLimit: c.o.TimeLimit, TTY: &tty}
	if tty {
		if w, h, err := term.GetSize(fd); err == nil {
			request.Width, request.Height = uint16(w), uint16(h)
		}
	}
	var where dto.Execution
	if err := c.call(ctx, "POST", path, request, http.StatusOK, &where); err != nil {
		return ExitError, err
	}
	dialer := websocket.Dialer{Subprotocols: []string{protocol}, HandshakeTimeout: 10 * time.Second, Proxy: http.ProxyFromEnvironment}
	ws, _, err := dialer.DialContext(ctx, where.WebSocketURL, http.Header{"Poseidon-Token": {c.o.Token}}) //nolint:bodyclose // gorilla's needs none
	if err != nil {
		return ExitError, fmt.Errorf("connect to the execution: %w", err)
	}
	conn := &connection{ws: ws}
	if ws.Subprotocol() != protocol {
		_ = ws.Close()
		return ExitError, errors.New("the gateway does not speak " + protocol)
	}
	if tty {
		state, err := term.MakeRaw(fd)
		if err != nil {
			_ = ws.Close()
			return ExitError, fmt.Errorf("raw mode: %w", err)
		}
		defer func() { _ = term.Restore(fd, state) }()
	}
	// Reading the caller's input cannot be broken off; it ends with the program.
	var input lifecycle.Tasks
	input.Go(func() { conn.pump(s.In) })

	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { conn.signals(ctx, s.Signals, fd, done) })
	code, err := conn.receive(s)
	close(done)
	_ = ws.Close()
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
func (c *connection) pump(in io.Reader) {
	buf := make([]byte, 8192)
	for {
		n, err := in.Read(buf)
		if n > 0 && c.send(websocket.BinaryMessage, buf[:n]) != nil {
			return
		}
		if err != nil {
			_ = c.control(map[string]string{"type": "eof"})
			return
		}
	}
}

// signals passes on what the process is told, until done. The end of ctx ends the connection.
func (c *connection) signals(ctx context.Context, signals <-chan os.Signal, fd int, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-ctx.Done():
			_ = c.ws.Close()
			return
		case sig := <-signals:
			switch sig {
			case syscall.SIGWINCH:
				if w, h, err := term.GetSize(fd); err == nil {
					_ = c.control(map[string]any{"type": "resize", "width": w, "height": h})
				}
			case os.Interrupt:
				_ = c.control(map[string]string{"type": "signal", "name": "INT"})
			}
		}
	}
}

// receive writes the output until the last message.
func (c *connection) receive(s Streams) (int, error) {
	for {
		_, data, err := c.ws.ReadMessage()
		if err != nil {
			return ExitError, fmt.Errorf("the connection ended before the program's exit code came: %w", err)
		}
		var m struct {
			Type string          `json:"type"`
			Data json.RawMessage `json:"data"`
		}
		if err := json.Unmarshal(data, &m); err != nil {
			return ExitError, fmt.Errorf("a message of the gateway: %w", err)
		}
		switch m.Type {
		case "stdout", "stderr":
			var text string
			if err := json.Unmarshal(m.Data, &text); err != nil {
				return ExitError, fmt.Errorf("a message of the gateway: %w", err)
			}
			to := s.Out
			if m.Type == "stderr" {
				to = s.Err
			}
			if _, err := io.WriteString(to, text); err != nil {
				return ExitError, err
			}
		case "exit":
			var code int
			if err := json.Unmarshal(m.Data, &code); err != nil {
				return ExitError, fmt.Errorf("a message of the gateway: %w", err)
			}
			return code, nil
		case "timeout":
			return ExitTimeout, nil
		case "error":
			var text string
			_ = json.Unmarshal(m.Data, &text)
			if text == outOfMemory {
				return ExitOutOfMemory, nil
			}
			return ExitError, errors.New(text)
		}
	}
}
