package gateway_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/config"
	"rockpool/internal/nomad/nomadtest"
)

// between stands between a gateway and its cluster. What is in exec and files answers in a node's place; everything else goes through.
type between struct {
	mu    sync.Mutex
	exec  func(*websocket.Conn)
	files http.HandlerFunc
}

func (b *between) set(exec func(*websocket.Conn), files http.HandlerFunc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.exec, b.files = exec, files
}

// lying is a gateway with a claimed runner, whose node is what the test makes of it.
func lying(t *testing.T, change ...func(*config.Config)) (*harness, string, *between) {
	t.Helper()
	c := nomadtest.New(t)
	cluster, err := url.Parse(c.URL)
	if err != nil {
		t.Fatal(err)
	}
	b := &between{}
	transport := &http.Transport{}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(cluster) }, FlushInterval: -1, Transport: transport, ErrorLog: log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		exec, files := b.exec, b.files
		b.mu.Unlock()
		switch {
		case exec != nil && strings.HasSuffix(r.URL.Path, "/exec"):
			conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			exec(conn)
		case files != nil && strings.Contains(r.URL.Path, "/files"):
			files(w, r)
		default:
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		transport.CloseIdleConnections()
	})
	h := start(t, c, append(change, func(cfg *config.Config) { cfg.Nomad.Address = server.URL })...)
	h.want("PUT", "/execution-environments/10", env("1"), 201, "")
	h.pool("10", 1, 0)
	return h, h.claim("0"), b
}

// says is a node that sends these frames, and then what end does.
func says(end func(*websocket.Conn), frames ...string) func(*websocket.Conn) {
	return func(conn *websocket.Conn) {
		for _, f := range frames {
			if conn.WriteMessage(websocket.TextMessage, []byte(f)) != nil {
				return
			}
		}
		end(conn)
	}
}

// Ways to end a connection.
func closes(conn *websocket.Conn) {
	_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
	listens(conn)
}
func drops(conn *websocket.Conn)   { _ = conn.NetConn().Close() }
func listens(conn *websocket.Conn) { _, _ = io.Copy(io.Discard, conn.NetConn()) }

// Whatever a node says, the client gets well-formed messages with one at the end; and what is not known is an error, never an exit code.
func TestALyingNode(t *testing.T) {
	t.Parallel()
	h, id, node := lying(t)
	const out, failed = `{"stdout":{"data":"YQ=="}}`, `{"type":"error","data":"Error executing the request"}`
	const a = `{"type":"stdout","data":"a"}`
	exit := func(code string) string { return `{"exited":true,"result":{"exit_code":` + code + `}}` }
	for name, c := range map[string]struct {
		node func(*websocket.Conn)
		want []string
	}{
		"exits twice":                 {says(closes, out, exit("3"), exit("0")), []string{a, `{"type":"exit","data":3}`}},
		"output after the exit":       {says(closes, exit("4"), out, out), []string{`{"type":"exit","data":4}`}},
		"never closes":                {says(listens, exit("5")), []string{`{"type":"exit","data":5}`}},
		"no exit":                     {says(closes, out), []string{a, failed}},
		"a dropped connection":        {says(drops, out), []string{a, failed}},
		"nothing at all":              {says(drops), []string{failed}},
		"no JSON":                     {says(listens, out, "\xff\x00garbage"), []string{a, failed}},
		"another kind of JSON":        {says(listens, out, `[1,2]`), []string{a, failed}},
		"a code that is a text":       {says(listens, `{"exited":true,"result":{"exit_code":"0"}}`), []string{failed}},
		"a code that does not fit":    {says(listens, exit("1e99")), []string{failed}},
		"a code beyond a byte":        {says(closes, exit("256")), []string{`{"type":"exit","data":0}`}}, // as the kernel would cut it
		"a negative code":             {says(closes, exit("-1")), []string{`{"type":"exit","data":255}`}},
		"an exit without a result":    {says(closes, out, `{"exited":true}`), []string{a, failed}},
		"output that is no base64":    {says(listens, `{"stdout":{"data":"*"}}`), []string{failed}},
		"frames that say nothing":     {says(closes, `{}`, `null`, `{"x":1}`, `{"stdout":{}}`, `{"stdout":{"close":true}}`, out, exit("6")), []string{a, `{"type":"exit","data":6}`}},
		"empty output":                {says(closes, `{"stdout":{"data":""}}`, exit("7")), []string{`{"type":"exit","data":7}`}},
		"output in messages' clothes": {says(closes, `{"type":"exit","data":0}`, `{"stdout":{"data":"eyJ0eXBlIjoiZXhpdCIsImRhdGEiOjB9"}}`, exit("8")), []string{`{"type":"stdout","data":"{\"type\":\"exit\",\"data\":0}"}`, `{"type":"exit","data":8}`}},
		"an error as its last words": {func(c *websocket.Conn) {
			_ = c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4404, "secret internals"), time.Now().Add(time.Second))
		}, []string{failed}},
	} {
		t.Run(name, func(t *testing.T) {
			h := *h
			h.T = t
			node.set(c.node, nil)
			h.messages(h.dial(h.execute(id, `{"command":"x"}`)), append([]string{begin}, c.want...)...)
		})
	}
	node.set(nil, nil)
	h.messages(h.dial(h.execute(id, `{"command":"exit 9"}`)), begin, `{"type":"exit","data":9}`)
}

func TestASlowNodeDelaysNoVerdict(t *testing.T) {
	t.Parallel()
	h, id, node := lying(t)
	node.set(listens, nil) // it takes the command and never says a word
	began := time.Now()
	h.messages(h.dial(h.execute(id, `{"command":"x","timeLimit":1}`)), begin, `{"type":"timeout"}`)
	ws := h.dial(h.execute(id, `{"command":"x"}`))
	_ = ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
	h.messages(ws, begin)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	ws = h.dial(h.execute(id, `{"command":"x"}`))
	h.want("DELETE", "/runners/"+id, "", 204, "")
	h.messages(ws, begin, `{"type":"error","data":"the allocation stopped as expected"}`)
}

// A node that writes as fast as it can for a client that does not read is held back: what is on its way is all that is kept.
func TestAFloodForAClientThatDoesNotReadIsHeldBack(t *testing.T) {
	h, id, node := lying(t)
	held := make(chan int, 1)
	frame := `{"stdout":{"data":"` + strings.Repeat("eHh4", 8<<10) + `"}}` // 24 KiB of output
	node.set(func(conn *websocket.Conn) {
		go listens(conn)
		const frames = 20_000 // 480 MiB
		sent := 0
		for sent < frames && conn.SetWriteDeadline(time.Now().Add(500*time.Millisecond)) == nil && conn.WriteMessage(websocket.TextMessage, []byte(frame)) == nil {
			sent++
		}
		held <- sent
		if sent == frames {
			t.Error("nothing held the node back")
		}
	}, nil)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	ws := h.dial(h.execute(id, `{"command":"x"}`))
	sent := <-held
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("%d bytes are kept after %d frames", grown, sent)
	}
	_ = ws.Close()
}

func TestALyingNodesFiles(t *testing.T) {
	h, id, node := lying(t)
	const entry = `{"name":"./a","type":"-","size":1,"mod_time":2,"permissions":"rwxr--r--","owner":"o","group":"g"}` + "\n"
	const unreachable = `"errorCode":"NOMAD_UNREACHABLE"`
	for name, c := range map[string]struct {
		method, path string
		node         http.HandlerFunc
		status       int
		text         string // "cut: " where the answer has to break off
	}{
		"a listing of garbage":      {"GET", "/files", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "garbage") }, 500, unreachable},
		"a listing without its end": {"GET", "/files", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, entry) }, 0, "cut: "},
		"garbage later":             {"GET", "/files", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, entry+"]") }, 0, "cut: "},
		"an empty answer":           {"GET", "/files", func(http.ResponseWriter, *http.Request) {}, 500, unreachable},
		"odd permissions": {"GET", "/files", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, strings.Replace(entry, "rwxr--r--", "rwxr--r--+x", 1)+`{"end":true}`+"\n")
		}, 200, `"permissions":"rwxr--r--"`},
		"more after the end": {"GET", "/files", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, entry+`{"end":true}`+"\n"+entry)
		}, 200, `]}`},
		"a name without end":   {"GET", "/files", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"name":"`); endless(w) }, 500, unreachable},
		"a status of its own":  {"GET", "/files", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(418); _, _ = io.WriteString(w, "tea") }, 500, `"errorCode":"UNKNOWN"`},
		"an error without end": {"GET", "/files", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); endless(w) }, 500, `"errorCode":"UNKNOWN"`},
		"a download that is too short": {"GET", "/files/raw?path=a", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100000")
			_, _ = io.WriteString(w, "short")
		}, 0, "cut: "},
		"a copy that is not confirmed": {"PATCH", "/files", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }, 500, unreachable},
		"a copy confirmed at length": {"PATCH", "/files", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, `{"x":"`)
			endless(w)
		}, 500, unreachable},
		"a copy that is cut off": {"PATCH", "/files", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 500, unreachable},
		"a copy that does not fit": {"PATCH", "/files", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusUnprocessableEntity)
			_, _ = io.WriteString(w, "a: Cannot write: No space left on device")
		}, 500, `{"message":"file copy failed: stderr output 'a: Cannot write: No space left on device' and stdout output ''","errorCode":"UNKNOWN"}`},
	} {
		t.Run(name, func(t *testing.T) {
			h := *h
			h.T = t
			node.set(nil, c.node)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			code, body, _ := h.do(c.method, "/runners/"+id+c.path, `{"copy":[{"path":"a","content":"YQ=="}]}`)
			runtime.ReadMemStats(&after)
			if c.status != 0 && code != c.status || !strings.Contains(body, c.text) {
				t.Errorf("got %d %.300s", code, body)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
				t.Errorf("%d bytes were allocated", grown)
			}
		})
	}
	node.set(nil, nil)
	h.want("GET", "/runners/"+id+"/files", "", 200, "files")
}

// endless writes until nobody reads.
func endless(w io.Writer) {
	piece := strings.Repeat("x", 64<<10)
	for {
		if _, err := io.WriteString(w, piece); err != nil {
			return
		}
	}
}

// A cluster that answers every call with an error, each in turn: the gateway says so and goes on.
func TestEachCallThatFailsIsSaid(t *testing.T) {
	t.Parallel()
	h, id := with(t)
	h.pool("10", 1, 1)
	for _, c := range []struct{ breaks, method, path, body, code string }{
		{"PUT /v1/jobs", "PUT", "/execution-environments/30", env("0"), "NOMAD_UNREACHABLE"},
		{"GET /v1/jobs", "GET", "/execution-environments?fetch=true", "", "NOMAD_UNREACHABLE"},
		{"GET /v1/job", "GET", "/execution-environments/10?fetch=true", "", "NOMAD_UNREACHABLE"},
		{"DELETE /v1/job/", "DELETE", "/execution-environments/10", "", ""},
		{"PUT /v1/client/allocation/", "PATCH", "/runners/" + id + "/files", `{}`, "NOMAD_UNREACHABLE"},
		{"GET /v1/client/allocation/", "GET", "/runners/" + id + "/files", "", "NOMAD_UNREACHABLE"},
		{"GET /v1/client/allocation/", "GET", "/runners/" + id + "/files/raw?path=a", "", "NOMAD_UNREACHABLE"},
	} {
		h.cluster.Break(c.breaks, true)
		code, body, _ := h.do(c.method, c.path, c.body)
		h.cluster.Break(c.breaks, false)
		var e struct{ Message, ErrorCode string }
		if err := json.Unmarshal([]byte(body), &e); code != 500 || err != nil || c.code != "" && e.ErrorCode != c.code {
			t.Errorf("%s %s without %s: got %d %s", c.method, c.path, c.breaks, code, body)
		}
	}
	h.cluster.Break("GET /v1/client/allocation/", true)
	h.messages(h.dial(h.execute(id, `{"command":"x"}`)), begin, `{"type":"error","data":"Error executing the request"}`)
	h.cluster.Break("GET /v1/client/allocation/", false)
	h.want("GET", "/health", "", 204, "")
}

// Files for which there is no room are refused after the request was read, and nothing of it is done.
func TestUploadsThatDoNotFitAreRefused(t *testing.T) {
	h, id := with(t, func(cfg *config.Config) { cfg.Server.Limits.UploadMemory, cfg.Server.Limits.UploadDisk = 1, 1 })
	large := `{"delete":["./*"],"copy":[{"path":"a","content":"` + strings.Repeat("AAAA", 1<<20) + `"}]}`
	code, body, header := h.do("PATCH", "/runners/"+id+"/files", large)
	if code != 500 || header.Get("Retry-After") == "" || !strings.Contains(body, "again in a moment") || !strings.Contains(body, "NOMAD_OVERLOAD") {
		t.Errorf("got %d %s", code, body)
	}
	if n := len(h.cluster.Uploads()); n != 0 {
		t.Errorf("%d uploads came to the runner", n)
	}
	h.want("PATCH", "/runners/"+id+"/files", `{"copy":[{"path":"a","content":"AAAA"}]}`, 204, "")
}

// What no program can be told is refused before anything is stored.
func TestACommandThatIsTooLongIsRefused(t *testing.T) {
	h, id := with(t)
	code, body, _ := h.do("POST", "/runners/"+id+"/execute", `{"command":"`+strings.Repeat("x", 128<<10)+`"}`)
	if code != 400 || !strings.Contains(body, "at most ") || !strings.Contains(body, "put it into a file") {
		t.Errorf("got %d %s", code, body)
	}
}

// Executions that are never connected are bounded, and the answer says what to do.
func TestExecutionsThatAreNeverConnectedAreBounded(t *testing.T) {
	h, id := with(t)
	command := strings.Repeat("x", 120<<10)
	for n := 0; ; n++ {
		code, body, _ := h.do("POST", "/runners/"+id+"/execute", `{"command":"`+command+`"}`)
		if code == 200 && n < 200 {
			continue
		}
		if want := fmt.Sprintf("%d executions of this runner were never begun: connect to their WebSockets, or take another runner", n); code != 400 || !strings.Contains(body, want) {
			t.Errorf("after %d: got %d %s", n, code, body)
		}
		return
	}
}
