package link_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"go.uber.org/goleak"

	"rockpool/internal/orchestrator/link"
)

// taken is a node that somebody has taken over: it holds the far end of a connection and says what it likes.
type taken struct {
	hub   *link.Hub
	conn  net.Conn
	ended chan error
}

func takenOver(t *testing.T) *taken {
	t.Helper()
	here, there := net.Pipe()
	n := &taken{hub: link.NewHub(), conn: here, ended: make(chan error, 1)}
	var wg sync.WaitGroup
	wg.Go(func() { n.ended <- n.hub.Serve(context.Background(), "evil", there) })
	t.Cleanup(func() { _ = here.Close(); wg.Wait() })
	eventually(t, "connected", func() bool { return len(n.hub.Nodes()) == 1 })
	return n
}

// cut fails unless the server has ended the connection.
func (n *taken) cut(t *testing.T) {
	t.Helper()
	select {
	case err := <-n.ended:
		t.Log(err)
	case <-time.After(10 * time.Second):
		t.Error("the server keeps the connection")
	}
	if len(n.hub.Nodes()) != 0 {
		t.Error("the node is still reachable")
	}
}

func frame(kind byte, flags uint16, stream, length uint32) []byte {
	b := []byte{0, kind}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return binary.BigEndian.AppendUint32(b, length)
}

// What a node sends beyond answers ends its connection before anything is kept for it.
func TestANodeThatAsksIsCut(t *testing.T) {
	many := func(one []byte, n int) string { return strings.Repeat(string(one), n) }
	for name, bytes := range map[string]string{
		"a stream":                        string(frame(1, 1, 2, 0)),
		"streams by the thousand":         many(frame(1, 1, 2, 0), 100_000),
		"a stream opened by data":         string(frame(0, 1, 2, 4)) + "data",
		"a stream behind other data":      string(frame(0, 0, 7, 4)) + "data" + string(frame(1, 1, 2, 0)),
		"a flood of pings":                many(frame(2, 1, 0, 7), 100_000),
		"another version":                 "\x09" + string(frame(1, 0, 2, 0)[1:]),
		"a frame of an unknown kind":      string(frame(9, 0, 0, 0)),
		"something that is no frame":      strings.Repeat("GET / HTTP/1.1\r\n", 10),
		"going away because of an error":  string(frame(3, 0, 0, 1)),
		"a ping after a frame in pieces ": string(frame(0, 0, 3, 0)) + many(frame(2, 1, 0, 1), 1000),
	} {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			n := takenOver(t)
			var reader sync.WaitGroup
			reader.Go(func() { _, _ = io.Copy(io.Discard, n.conn) }) // what the server says, pings among it
			_ = n.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.Copy(n.conn, iotestOneByOne{strings.NewReader(bytes)})
			n.cut(t)
			_ = n.conn.Close()
			reader.Wait()
		})
	}
}

// iotestOneByOne gives pieces that no frame ends with.
type iotestOneByOne struct{ r io.Reader }

func (o iotestOneByOne) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 1021)]) }

// A few pings are what a node may send.
func TestPingsOfANodeAreAnswered(t *testing.T) {
	n := takenOver(t)
	session, err := yamux.Server(n.conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	for range 10 {
		if _, err := session.Ping(); err != nil {
			t.Fatal(err)
		}
	}
}

// What a node answers is its answer and nothing of the server's: no cookie, redirect, other origin, header without end, answer before the answer, trailer
// or page of it reaches a client.
func TestAnAnswerOfANodeSpeaksForTheNodeAlone(t *testing.T) {
	n := takenOver(t)
	session, err := yamux.Server(n.conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer session.Close()
	answers := map[string]string{
		"/cookie": "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nSet-Cookie: a=b; Domain=example.org\r\nX-Nomad-Index: 9\r\n" +
			"Access-Control-Allow-Origin: *\r\nX-Rockpool-Not-Served: true\r\nStrict-Transport-Security: max-age=1\r\n\r\n{}",
		"/page":     "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 8\r\n\r\n<script>",
		"/svg":      "HTTP/1.1 200 OK\r\nContent-Type: image/svg+xml, text/plain\r\nContent-Length: 6\r\n\r\n<svg/>",
		"/redirect": "HTTP/1.1 302 Found\r\nLocation: https://evil.example\r\nContent-Length: 0\r\n\r\n",
		"/early":    "HTTP/1.1 103 Early Hints\r\nSet-Cookie: early=1\r\nLink: <x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"/trailer":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Set-Cookie\r\n\r\n2\r\nok\r\n0\r\nSet-Cookie: late=1\r\nX-Other: 2\r\n\r\n",
		"/long":     "HTTP/1.1 200 OK\r\nX-Long: " + strings.Repeat("a", 1<<20) + "\r\n\r\n",
		"/hints":    strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: <"+strings.Repeat("x", 1000)+">\r\n\r\n", 2000) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"/split":    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 40\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
		"/smuggle":  "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
		"/upgrade":  "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: evil\r\n\r\n",
		"/garbage":  "\x00\x01\x02 nothing like HTTP\r\n\r\n",
	}
	wg.Go(func() {
		for {
			s, err := session.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer s.Close()
				in := bufio.NewReader(s)
				for {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					if _, err := io.WriteString(s, answers[r.URL.Path]); err != nil {
						return
					}
				}
			})
		}
	})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, err := n.hub.To("evil")
		if err != nil {
			t.Error(err)
			return
		}
		h.ServeHTTP(w, r)
	}))
	defer front.Close()
	allowed := map[string]bool{"Content-Type": true, "Content-Length": true, "Date": true, "X-Content-Type-Options": true}
	paths := slices.DeleteFunc(slices.Sorted(maps.Keys(answers)), func(path string) bool { return path == "/smuggle" })
	for _, path := range append(paths, "/smuggle") { // last: what a node sends unasked may be taken for its own next answer
		t.Run(path, func(t *testing.T) {
			conn, err := net.Dial("tcp", front.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path)
			all, err := io.ReadAll(conn)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(string(all))), nil)
			if err != nil {
				t.Fatalf("%v: %.200q", err, all)
			}
			body, _ := io.ReadAll(resp.Body)
			for k := range resp.Header {
				if !allowed[k] {
					t.Errorf("the client gets %s: %q", k, resp.Header[k])
				}
			}
			if len(resp.Trailer) > 0 {
				t.Errorf("the client gets trailers %v", resp.Trailer)
			}
			for _, never := range []string{"evil", "forged", "Set-Cookie", "early", "late=1", "text/html", "svg+xml", "103"} {
				if strings.Contains(string(all), never) {
					t.Errorf("the client gets %q: %.400q", never, all)
				}
			}
			if len(all) > 4096 {
				t.Errorf("the client gets %d bytes", len(all))
			}
			whole := map[string]string{"/cookie": "{}", "/page": "<script>", "/svg": "<svg/>", "/early": "ok", "/trailer": "ok", "/smuggle": "ok"}
			if want, ok := whole[path]; ok != (resp.StatusCode == 200) || ok && string(body) != want {
				t.Errorf("%d %q", resp.StatusCode, body)
			}
		})
	}
}

// A node that is none any more has no connection any more.
func TestADroppedNodeIsCut(t *testing.T) {
	n := takenOver(t)
	n.hub.Drop("another")
	if len(n.hub.Nodes()) != 1 {
		t.Error("another one's end is the node's")
	}
	n.hub.Drop("evil")
	n.cut(t)
}
