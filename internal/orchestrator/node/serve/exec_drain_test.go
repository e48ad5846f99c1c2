package serve

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// taken is a response whose connection is taken over.
type taken struct {
	*httptest.ResponseRecorder
	conn net.Conn
}

func (t taken) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}

// A client that is behind with the output may send its signs of life after the end. They are taken for a while, and not for ever.
func TestAClientThatIsBehindIsNotReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		for name, value := range map[string]string{"Connection": "upgrade", "Upgrade": "websocket", "Sec-Websocket-Version": "13", "Sec-Websocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg=="} {
			r.Header.Set(name, value)
		}
		var work sync.WaitGroup
		work.Go(func() { _, _ = io.Copy(io.Discard, theirs) })
		conn, err := Upgrade(taken{httptest.NewRecorder(), ours}, r)
		if err != nil {
			t.Fatal(err)
		}
		run := &recording{done: make(chan struct{})}
		work.Go(func() {
			s := &execSession{conn: conn, run: run, out: make(chan []byte), beat: execHeartbeat, alone: func() bool { return true }}
			s.serve(t.Context())
			_ = conn.Close()
		})
		_ = run.Kill()
		began, kept := time.Now(), time.Duration(0)
		for ; ; time.Sleep(5 * time.Second) { // of the bubble
			if _, err := theirs.Write([]byte{0x81, 0x82, 0, 0, 0, 0, '{', '}'}); err != nil {
				break
			}
			kept = time.Since(began)
		}
		if kept < 20*time.Second || kept > time.Minute {
			t.Errorf("it could send for %v after the end", kept)
		}
		_ = theirs.Close()
		work.Wait()
	})
}
