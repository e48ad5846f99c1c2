package gateway_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/client"
	"rockpool/internal/config"
	"rockpool/internal/nomad/nomadtest"
)

// breaker passes TCP connections on to a gateway and breaks those of WebSockets after some bytes, until it has broken enough of them.
type breaker struct {
	net.Listener
	to string

	mu     sync.Mutex
	breaks int
	rand   *rand.Rand
	work   sync.WaitGroup
}

func newBreaker(t *testing.T, to string, breaks int) *breaker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	b := &breaker{Listener: l, to: to, breaks: breaks, rand: rand.New(rand.NewPCG(seed, 0))}
	b.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b.work.Go(func() { b.pass(c) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); b.work.Wait() })
	return b
}

func (b *breaker) pass(c net.Conn) {
	defer c.Close()
	up, err := net.Dial("tcp", b.to)
	if err != nil {
		return
	}
	defer up.Close()
	first := make([]byte, 64<<10)
	n, err := c.Read(first)
	if err != nil {
		return
	}
	limit := int64(1 << 40)
	if bytes.Contains(first[:n], []byte("/websocket?")) {
		b.mu.Lock()
		if b.breaks > 0 {
			b.breaks--
			limit = 300 + b.rand.Int64N(200<<10)
		}
		b.mu.Unlock()
	}
	if _, err := up.Write(first[:n]); err != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() { _, _ = io.CopyN(c, up, limit); _ = c.Close(); _ = up.Close() })
	_, _ = io.CopyN(up, c, limit)
	_, _ = up.Close(), c.Close()
	back.Wait()
}

func (b *breaker) left() int { b.mu.Lock(); defer b.mu.Unlock(); return b.breaks }

// gateway run takes its execution up again, however often the connection breaks: no byte is lost or doubled, in either direction.
func TestTheTerminalClientComesAgain(t *testing.T) {
	h := ready(t, "1", 1)
	const breaks = 12
	b := newBreaker(t, strings.TrimSuffix(strings.TrimPrefix(h.url, "http://"), "/api/v1"), breaks)
	text := make([]byte, 1<<20)
	for i := range text {
		text[i] = 'a' + byte(i/1000%26)
	}
	input := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(input, text, 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(input)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out, errOut strings.Builder
	code, err := client.Run(t.Context(), client.Options{URL: "http://" + b.Addr().String(), Token: "secret", Environment: 10, Argv: []string{"flood 2000; cat"}},
		client.Streams{In: in, Out: &out, Err: &errOut})
	if code != 0 || err != nil {
		t.Fatalf("it ended with %d, %v", code, err)
	}
	want := strings.Repeat("x", 2000<<10) + string(text)
	if out.String() != want {
		at := 0
		for at < min(out.Len(), len(want)) && out.String()[at] == want[at] {
			at++
		}
		t.Errorf("%d bytes came, wanted were %d; they differ from byte %d on", out.Len(), len(want), at)
	}
	if b.left() == breaks {
		t.Error("no connection was broken")
	}
}

func TestWhoMayComeAgain(t *testing.T) {
	h, id := with(t)
	h.want("POST", "/runners/"+id+"/execute", `{"command":"wait","reattach":{"bufferBytes":1}}`, 400, "reattach.bufferBytes")
	h.want("POST", "/runners/"+id+"/execute", `{"command":"wait","reattach":{"graceSeconds":601}}`, 400, "reattach.graceSeconds")
	h.want("POST", "/runners/"+id+"/execute", `{"command":"wait","reattach":{"graceSeconds":-1}}`, 400, "reattach.graceSeconds")
	path := func(url string) string { return strings.TrimPrefix(url, "ws"+strings.TrimPrefix(h.url, "http")) }

	url := h.execute(id, `{"command":"wait","reattach":{}}`)
	h.want("GET", path(url)+"&offset=x", "", 400, "offset")
	h.want("GET", path(url)+"&offset=1", "", 400, "the execution has not begun")
	first := h.dial(url, "rockpool.v1")
	if _, data, _ := first.ReadMessage(); string(data) != `{"type":"start","offset":0,"input":0,"controls":0,"reattach":{"bufferBytes":262144,"graceSeconds":30}}` {
		t.Errorf("got %s", data)
	}
	h.want("GET", path(url), "", 404, "execution id unknown")
	h.want("GET", path(url)+"&offset=0", "", 400, "rockpool.v1")
	_, resp, err := (&websocket.Dialer{Subprotocols: []string{"rockpool.v1"}}).Dial(url+"&offset=0", http.Header{"Poseidon-Token": {"wrong"}})
	if err == nil || resp.StatusCode != 401 {
		t.Errorf("a wrong token got %v", err)
	}
	// The runner goes: so does what is held.
	_ = first.NetConn().Close()
	h.want("DELETE", "/runners/"+id, "", 204, "")
	h.want("GET", path(url)+"&offset=0", "", 410, "message")
}

// A client that does not speak the subprotocol gets the contract's messages and its contract's end, whatever was asked for.
func TestComingAgainNeedsTheSubprotocol(t *testing.T) {
	h, id := with(t)
	url := h.execute(id, `{"command":"wait","reattach":{}}`)
	ws := h.dial(url)
	if _, data, _ := ws.ReadMessage(); string(data) != begin {
		t.Errorf("got %s", data)
	}
	h.eventually("it runs", func() bool { return h.cluster.Running() == 1 })
	_ = ws.NetConn().Close()
	h.eventually("QUIT ended it", func() bool { return h.cluster.Running() == 0 })
	h.want("GET", strings.TrimPrefix(url, "ws"+strings.TrimPrefix(h.url, "http"))+"&offset=0", "", 404, "not held")
}

func TestNothingIsHeldWhereThatIsSwitchedOff(t *testing.T) {
	h, id := with(t, func(c *config.Config) { c.Server.ReattachBuffer = 0 })
	ws := h.dial(h.execute(id, `{"command":"wait","reattach":{}}`), "rockpool.v1")
	if _, data, _ := ws.ReadMessage(); string(data) != begin {
		t.Errorf("got %s", data)
	}
	_ = ws.NetConn().Close()
	h.eventually("QUIT ended it", func() bool { return h.cluster.Running() == 0 })
}

// What a client did not see of the end is there when it comes again.
func TestTheEndIsHeld(t *testing.T) {
	h, id := with(t)
	url := h.execute(id, `{"command":"echo a; cat","reattach":{"graceSeconds":20},"tty":false}`)
	ws := h.dial(url, "rockpool.v1")
	for range 2 {
		if _, _, err := ws.ReadMessage(); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range []struct {
		kind int
		data string
	}{{websocket.BinaryMessage, "b"}, {websocket.TextMessage, `{"type":"eof"}`}} {
		if err := ws.WriteMessage(m.kind, []byte(m.data)); err != nil {
			t.Fatal(err)
		}
	}
	h.eventually("it has ended", func() bool { return h.cluster.Running() == 0 })
	_ = ws.NetConn().Close()
	again := h.dial(url+"&offset=1", "rockpool.v1")
	deadline := time.Now().Add(5 * time.Second)
	_ = again.SetReadDeadline(deadline)
	h.messages(again, `{"type":"start","offset":1,"input":1,"controls":1,"reattach":{"bufferBytes":262144,"graceSeconds":20}}`, `{"type":"stdout","data":"b"}`,
		`{"type":"exit","data":0,"usage":{"cpuTimeMs":5,"wallTimeMs":7,"peakMemoryBytes":4096,"oomKilled":false,"outputBytes":2,"verdict":"exit"}}`)
}

// Whoever comes again through another gateway gets on with its execution, over a connection that breaks there as anywhere else; the codes of Close go through.
func TestComingAgainThroughAnotherGateway(t *testing.T) {
	a, b := two(t, nomadtest.New(t), "1", 1)
	const again = `{"type":"start","offset":%d,"input":%d,"controls":0,"reattach":{"bufferBytes":65536,"graceSeconds":60}}`
	url := a.execute(a.claim("0"), `{"command":"cat","tty":false,"reattach":{"graceSeconds":60,"bufferBytes":65536}}`)
	says := func(c *websocket.Conn, want string) {
		t.Helper()
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, data, err := c.ReadMessage(); string(data) != want {
			t.Fatalf("got %s, %v", data, err)
		}
	}
	exchange := func(c *websocket.Conn, text string) {
		t.Helper()
		if err := c.WriteMessage(websocket.BinaryMessage, []byte(text)); err != nil {
			t.Fatal(err)
		}
		says(c, `{"type":"stdout","data":"`+text+`"}`)
	}
	first := b.dial(b.via(url), "rockpool.v1")
	says(first, fmt.Sprintf(again, 0, 0))
	exchange(first, "one")
	_ = first.NetConn().Close()
	second := b.dial(b.via(url)+"&offset=1", "rockpool.v1")
	says(second, fmt.Sprintf(again, 1, 3))
	exchange(second, "two")
	// The other way, while the connection is still there.
	third := a.dial(url+"&offset=0", "rockpool.v1")
	if got, code := a.rest(third); code != 4001 || !strings.Contains(strings.Join(got, ""), "only that from 1 on") {
		t.Errorf("an offset that is not held: %q, %d", got, code)
	}
	third = a.dial(url+"&offset=1", "rockpool.v1")
	says(third, fmt.Sprintf(again, 1, 6))
	says(third, `{"type":"stdout","data":"two"}`)
	if got, code := b.rest(second); len(got) > 0 || code != 4000 {
		t.Errorf("the connection that was replaced got %q, %d", got, code)
	}
	if got, code := b.rest(b.dial(b.via(url)+"&offset=0", "rockpool.v1")); code != 4001 || !strings.Contains(strings.Join(got, ""), "only that from 1 on") {
		t.Errorf("an offset that is not held, through the other: %q, %d", got, code)
	}
	// The gateway between stops: the client finds its way through another one.
	fourth := b.dial(b.via(url)+"&offset=2", "rockpool.v1")
	says(fourth, fmt.Sprintf(again, 2, 6))
	b.stop()
	if _, data, err := fourth.ReadMessage(); err == nil || websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		t.Errorf("the gateway between said %s, %v at its end", data, err)
	}
	fifth := a.dial(url+"&offset=2", "rockpool.v1")
	says(fifth, fmt.Sprintf(again, 2, 6))
	exchange(fifth, "three")
	if err := fifth.WriteMessage(websocket.TextMessage, []byte(`{"type":"eof"}`)); err != nil {
		t.Fatal(err)
	}
	if got, code := a.rest(fifth); code != 1000 || !strings.Contains(strings.Join(got, ""), `{"type":"exit","data":0`) {
		t.Errorf("the end was %q, %d", got, code)
	}
}

// What is held for a client is nobody else's, not even of one who knows its URL.
func TestOnlyTheRunnersOwnerComesAgain(t *testing.T) {
	file := tokenFile(t)
	h := ready(t, "1", 1, func(c *config.Config) { c.Server.TokenFile = file })
	id := h.claimAs("root")
	_, body, _ := h.as("root", "POST", "/runners/"+id+"/execute", `{"command":"echo secret; wait","reattach":{}}`)
	var e struct{ WebSocketURL string }
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		t.Fatal(err)
	}
	connect := func(token, url string) (*websocket.Conn, *http.Response) {
		c, resp, _ := (&websocket.Dialer{Subprotocols: []string{"rockpool.v1"}}).Dial(url, http.Header{"Poseidon-Token": {cmp.Or(secrets[token], token)}})
		return c, resp
	}
	first, _ := connect("root", e.WebSocketURL)
	for range 2 {
		if _, _, err := first.ReadMessage(); err != nil {
			t.Fatal(err)
		}
	}
	_ = first.NetConn().Close()
	for token, status := range map[string]int{"alice": 410, "reader": 403, "wrong": 401, "": 401} {
		if c, resp := connect(token, e.WebSocketURL+"&offset=0"); c != nil || resp.StatusCode != status {
			t.Errorf("%q came again: %v", token, resp)
		}
	}
	again, _ := connect("root", e.WebSocketURL+"&offset=1")
	if again == nil {
		t.Fatal("its owner could not come again")
	}
	_ = again.Close()
}

// A stop in order waits for executions whose clients are away, and lets those in, but nobody else.
func TestWhoComesAgainIsLetInWhileTheGatewayStops(t *testing.T) {
	h := ready(t, "1", 1, func(c *config.Config) { c.Server.StopTimeout = 30 })
	r := h.claim("0")
	url, waiting := h.execute(r, `{"command":"cat","tty":false,"reattach":{}}`), h.execute(r, `{"command":"echo hi","reattach":{}}`)
	first := h.dial(url, "rockpool.v1")
	if _, _, err := first.ReadMessage(); err != nil {
		t.Fatal(err)
	}
	_ = first.NetConn().Close()
	stopped := make(chan struct{})
	go func() { defer close(stopped); h.stop() }()
	h.eventually("it says that it stops", func() bool { code, _, _ := h.do("GET", "/health", ""); return code == 503 })
	_, path, _ := strings.Cut(waiting, "/api/v1")
	h.want("GET", path+"&offset=0", "", 500, "stopping")
	again := h.dial(url+"&offset=0", "rockpool.v1")
	if err := again.WriteMessage(websocket.TextMessage, []byte(`{"type":"eof"}`)); err != nil {
		t.Fatal(err)
	}
	if got, code := h.rest(again); code != 1000 || !strings.Contains(strings.Join(got, ""), `{"type":"exit","data":0`) {
		t.Errorf("got %q and %d", got, code)
	}
	<-stopped
}
