package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/gorilla/websocket"

	"rockpool/internal/orchestrator/driver"
)

// recording is a program that reads its input to the end, or until it is killed, and writes nothing.
type recording struct {
	mu     sync.Mutex
	input  bytes.Buffer
	closed bool
	sizes  [][2]uint16
	once   sync.Once
	done   chan struct{}
}

func (r *recording) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, os.ErrClosed
	}
	return r.input.Write(p)
}

func (r *recording) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return nil
}

func (r *recording) Read([]byte) (int, error) {
	<-r.done
	return 0, io.EOF
}

func (r *recording) Resize(width, height uint16) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sizes = append(r.sizes, [2]uint16{width, height})
	return nil
}

func (r *recording) Stdin() io.WriteCloser              { return r }
func (r *recording) Stdout() io.Reader                  { return r }
func (r *recording) Stderr() io.Reader                  { return nil }
func (r *recording) Signal(int) error                   { return nil }
func (r *recording) Kill() error                        { r.once.Do(func() { close(r.done) }); return nil }
func (r *recording) Done() <-chan struct{}              { return r.done }
func (r *recording) Result() (driver.ExecResult, error) { return driver.ExecResult{}, nil }

// FuzzExecFrames sends messages, one a line, to the session of a program, and after them the same bytes as they are, without a frame. The program must
// get what a plain reading of the messages says, the session must end with the connection, and nothing may be left running.
func FuzzExecFrames(f *testing.F) {
	for _, seed := range []string{
		`{"stdin":{"data":"aGVsbG8K"}}` + "\n" + `{"stdin":{"close":true}}`, `{"tty_size":{"height":24,"width":80}}` + "\n" + `{}`, `{"stdin":{"data":"!"}}`,
		`{"stdin":{"data":"YQ=="},"tty_size":{"height":-1,"width":70000}}`, `null`, `[]`, `{"stdin":null}`, "\x88\x80\x00\x00\x00\x00", `{"stdin":{"close":true}}` + "\n" + `{"stdin":{"data":"YQ=="}}`,
		"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff", `{"stdin":{"data":"YQ==","data":"Yg=="}}`, `{"STDIN":{"DATA":"YQ=="}}`, `{"stdin":{"data":"YQ=="}} {"stdin":{"data":"Yg=="}}`,
	} {
		f.Add([]byte(seed))
	}
	type visit struct {
		run  *recording
		over chan struct{}
	}
	visits := make(chan visit, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := <-visits
		defer close(v.over)
		up := websocket.Upgrader{}
		conn, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		conn.SetReadLimit(execFrame)
		s := &execSession{conn: conn, run: v.run, out: make(chan []byte), beat: execHeartbeat}
		s.serve(context.Background())
	}))
	// Ports would run out: each connection takes one for a minute.
	socket := filepath.Join(f.TempDir(), "s")
	var err error
	if server.Listener, err = net.Listen("unix", socket); err != nil {
		f.Fatal(err)
	}
	server.Start()
	f.Cleanup(server.Close)
	dial := func(string, string) (net.Conn, error) { return net.Dial("unix", socket) }
	f.Fuzz(func(t *testing.T, data []byte) {
		v := visit{&recording{done: make(chan struct{})}, make(chan struct{})}
		visits <- v
		d := websocket.Dialer{NetDial: dial}
		conn, _, err := d.Dial("ws://node/", nil)
		if err != nil {
			t.Fatal(err)
		}
		want, closed := []byte{}, false
		for message := range bytes.SplitSeq(data, []byte("\n")) {
			if err := conn.WriteMessage(websocket.TextMessage, message); err != nil {
				break // the server has hung up already
			}
			var in execInput
			if json.NewDecoder(bytes.NewReader(message)).Decode(&in) != nil {
				break
			}
			if in.Stdin != nil && !closed {
				want = append(want, in.Stdin.Data...)
				closed = in.Stdin.Close
			}
		}
		raw := conn.NetConn()
		_, _ = raw.Write(data)
		_ = raw.(*net.UnixConn).CloseWrite()
		for err == nil {
			_, _, err = conn.ReadMessage()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		_ = conn.Close()
		<-v.over
		v.run.mu.Lock()
		defer v.run.mu.Unlock()
		if got := v.run.input.Bytes(); !bytes.HasPrefix(got, want) {
			t.Errorf("the program got %q, want %q", got, want)
		}
		select {
		case <-v.run.done:
		default:
			t.Error("the program goes on although its client is gone")
		}
	})
}
