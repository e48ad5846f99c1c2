package session_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/gorilla/websocket"

	"rockpool/internal/api/session"
	"rockpool/internal/runner/execution"
)

// FuzzFrames sends frames of any kind and any bytes to a session, well formed first and then as they are. The program gets all that was sent as input,
// the session ends with the connection, and its reader and writer with it.
func FuzzFrames(f *testing.F) {
	for _, seed := range []string{"", "hello\n", `{"type":"resize","width":80,"height":24}`, `{"type":"signal","name":"INT"}`, `{"type":"eof"}`, "\x03\x1a\x1c", "\xff\xfe", `{"type":"resize","width":-1}`,
		"\x88\x82\x00\x00\x00\x00\x03\xe8", "\x81\xfe\xff\xff\x00\x00\x00\x00", "\xc1\x80\x00\x00\x00\x00", "\x09\x80\x00\x00\x00\x00"} {
		for extended := range 2 {
			f.Add([]byte(seed), extended == 1, true)
		}
	}
	type visit struct {
		input chan []byte
		over  chan struct{}
	}
	visits := make(chan visit, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := <-visits
		defer close(v.over)
		conn, err := session.Upgrade(w, r, func(http.ResponseWriter, *http.Request, int, error) {})
		if err != nil {
			return
		}
		new(session.Set).Serve(context.Background(), conn, session.Execution{Run: func(ctx context.Context, c execution.Client) execution.Outcome {
			var b bytes.Buffer
			copied := make(chan struct{})
			go func() { defer close(copied); _, _ = io.Copy(&b, c.Stdin) }()
			<-ctx.Done()
			_ = c.Stdin.Close()
			<-copied
			v.input <- b.Bytes()
			return execution.Outcome{Kind: execution.Left}
		}, Signal: func(context.Context, string) {}})
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
	f.Fuzz(func(t *testing.T, data []byte, extended, binaryFrame bool) {
		v := visit{make(chan []byte, 1), make(chan struct{})}
		visits <- v
		d := websocket.Dialer{NetDial: dial}
		if extended {
			d.Subprotocols = []string{session.Protocol}
		}
		conn, _, err := d.Dial("ws://gateway/", nil)
		if err != nil {
			t.Fatal(err)
		}
		kind := websocket.TextMessage
		if binaryFrame {
			kind = websocket.BinaryMessage
		}
		if err := conn.WriteMessage(kind, data); err != nil {
			t.Fatal(err)
		}
		raw := conn.NetConn()
		_, _ = raw.Write(binary.BigEndian.AppendUint16(data, uint16(len(data))))
		_ = raw.(*net.UnixConn).CloseWrite()
		for err == nil {
			_, _, err = conn.ReadMessage()
		}
		_ = conn.Close()
		<-v.over
		if got := <-v.input; (binaryFrame || !extended) && !bytes.HasPrefix(got, data) && len(data) < 1<<16 {
			t.Errorf("the program got %q of %q", got, data)
		}
	})
}
