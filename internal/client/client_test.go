package client_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"github.com/gorilla/websocket"
	"golang.org/x/term"

	"rockpool/internal/client"
)

// gateway is a server that records what one execution's client sends, and ends it at the byte q or the end of the input.
type gateway struct {
	*httptest.Server
	mu       sync.Mutex
	calls    []string
	execute  map[string]any
	stdin    strings.Builder
	controls []string
	upload   string
	last     string
	attached chan struct{}
}

func newGateway(t *testing.T, last string) *gateway {
	g := &gateway{last: last, attached: make(chan struct{})}
	up := websocket.Upgrader{Subprotocols: []string{"rockpool.v1"}}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		g.calls = append(g.calls, r.Method+" "+r.URL.Path+" "+r.Header.Get("Poseidon-Token"))
		g.mu.Unlock()
		switch {
		case r.URL.Path == "/api/v1/runners":
			_, _ = w.Write([]byte(`{"runnerId":"r"}`))
		case strings.HasSuffix(r.URL.Path, "/execute"):
			_ = json.NewDecoder(r.Body).Decode(&g.execute)
			_, _ = w.Write([]byte(`{"websocketUrl":"ws://` + r.Host + `/ws"}`))
		case r.Method == "PATCH":
			body, _ := io.ReadAll(r.Body)
			g.upload = string(body)
			w.WriteHeader(http.StatusNoContent)
		case r.Method == "DELETE":
			w.WriteHeader(http.StatusNoContent)
		case r.URL.Path == "/ws":
			c, err := up.Upgrade(w, r, nil)
			if err != nil {
				return
			}
			defer c.Close()
			close(g.attached)
			g.attend(c)
		}
	}))
	t.Cleanup(g.Close)
	return g
}

func (g *gateway) attend(c *websocket.Conn) {
	_ = c.WriteMessage(websocket.TextMessage, []byte(`{"type":"start"}`))
	for ended := false; !ended; {
		kind, data, err := c.ReadMessage()
		if err != nil {
			return
		}
		g.mu.Lock()
		if kind == websocket.BinaryMessage {
			g.stdin.Write(data)
			ended = strings.Contains(string(data), "q")
		} else {
			g.controls = append(g.controls, string(data))
			ended = strings.Contains(string(data), "eof")
		}
		g.mu.Unlock()
		_ = c.WriteMessage(websocket.TextMessage, []byte(`{"type":"stdout","data":"out\n"}`))
	}
	_ = c.WriteMessage(websocket.TextMessage, []byte(`{"type":"stderr","data":"err\n"}`))
	if g.last != "" {
		_ = c.WriteMessage(websocket.TextMessage, []byte(g.last))
	}
}

func TestHowARunEnds(t *testing.T) {
	for _, c := range []struct {
		last string
		code int
		text string
	}{
		{`{"type":"exit","data":9,"usage":{}}`, 9, ""},
		{`{"type":"timeout"}`, 124, ""},
		{`{"type":"error","data":"the allocation was OOM Killed"}`, 137, ""},
		{`{"type":"error","data":"Error executing the request"}`, 125, "Error executing"},
		{``, 125, "before the program's exit code"},
	} {
		g := newGateway(t, c.last)
		in, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = w.WriteString("input")
		_ = w.Close()
		var out, errOut strings.Builder
		code, err := client.Run(t.Context(), client.Options{URL: g.URL + "/", Token: "tok", Environment: 3, Argv: []string{"a", "it's"}},
			client.Streams{In: in, Out: &out, Err: &errOut})
		_ = in.Close()
		if code != c.code || (err == nil) != (c.text == "") || (err != nil && !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%s: got %d, %v", c.last, code, err)
		}
		if out.String() != "out\nout\n" || errOut.String() != "err\n" || g.stdin.String() != "input" {
			t.Errorf("%s: streams %q %q %q", c.last, out.String(), errOut.String(), g.stdin.String())
		}
		if g.execute["command"] != `'a' 'it'"'"'s'` || g.execute["tty"] != false {
			t.Errorf("asked for %v", g.execute)
		}
		if last := g.calls[len(g.calls)-1]; last != "DELETE /api/v1/runners/r tok" {
			t.Errorf("%s: the last call is %s", c.last, last)
		}
	}
}

func TestATerminalIsAttachedRaw(t *testing.T) {
	g := newGateway(t, `{"type":"exit","data":0}`)
	keyboard, screen, err := pty.Open()
	if err != nil {
		t.Skipf("there are no terminals: %v", err)
	}
	defer keyboard.Close()
	defer screen.Close()
	_ = pty.Setsize(screen, &pty.Winsize{Rows: 24, Cols: 80})
	before, _ := term.GetState(int(screen.Fd()))
	signals := make(chan os.Signal, 1)
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		code, err := client.Run(t.Context(), client.Options{URL: g.URL, Argv: []string{"x"}},
			client.Streams{In: screen, Out: pw, Err: pw, Signals: signals})
		if code != 0 || err != nil {
			t.Errorf("got %d, %v", code, err)
		}
		_ = pw.Close()
	})
	lines := bufio.NewScanner(pr)
	<-g.attached
	_ = pty.Setsize(screen, &pty.Winsize{Rows: 30, Cols: 100})
	signals <- syscall.SIGWINCH
	lines.Scan() // the answer to the new size: it is attached
	_, _ = keyboard.Write([]byte{3})
	lines.Scan()
	_, _ = keyboard.Write([]byte("q"))
	wg.Wait()
	if got := g.stdin.String(); got != "\x03q" {
		t.Errorf("keys came as %q", got)
	}
	if len(g.controls) != 1 || g.controls[0] != `{"height":30,"type":"resize","width":100}` {
		t.Errorf("controls: %v", g.controls)
	}
	if g.execute["tty"] != true || g.execute["width"] != 80.0 || g.execute["height"] != 24.0 {
		t.Errorf("asked for %v", g.execute)
	}
	if after, _ := term.GetState(int(screen.Fd())); *after != *before {
		t.Error("the terminal was left changed")
	}
}

// ended is an input that is at its end.
func ended(t *testing.T) *os.File {
	in, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close() })
	return in
}

func TestADirectoryIsUploadedWhole(t *testing.T) {
	g := newGateway(t, `{"type":"exit","data":0}`)
	root := t.TempDir()
	dir := filepath.Join(root, "dir")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "sub"), 0o755), os.WriteFile(filepath.Join(dir, "sub", "f"), []byte("x"), 0o644),
		os.Symlink("sub/f", filepath.Join(dir, "link")), os.Symlink("nowhere", filepath.Join(dir, "dangling")),
		os.Symlink("dir", filepath.Join(root, "alias")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, named := range []string{dir, filepath.Join(root, "alias")} {
		g.attached = make(chan struct{})
		var notes strings.Builder
		_, err := client.Run(t.Context(), client.Options{URL: g.URL, Dir: named, Argv: []string{"x"}},
			client.Streams{In: ended(t), Out: io.Discard, Err: &notes})
		if err != nil {
			t.Fatal(err)
		}
		if want := `{"copy":[{"path":"link","content":"eA=="},{"path":"sub/","content":""},{"path":"sub/f","content":"eA=="}]}`; g.upload != want {
			t.Errorf("uploaded %s", g.upload)
		}
		if !strings.Contains(notes.String(), "dangling is left out") {
			t.Errorf("of the dangling link it says %q", notes.String())
		}
	}
}

type closedPipe struct{}

func (closedPipe) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.EPIPE}
}

func TestTheRunnerIsGivenBackWhenNobodyReadsTheOutput(t *testing.T) {
	g := newGateway(t, `{"type":"exit","data":0}`)
	code, err := client.Run(t.Context(), client.Options{URL: g.URL, Argv: []string{"x"}},
		client.Streams{In: ended(t), Out: closedPipe{}, Err: closedPipe{}})
	if code != 141 || err != nil {
		t.Errorf("got %d, %v", code, err)
	}
	if last := g.calls[len(g.calls)-1]; !strings.HasPrefix(last, "DELETE") {
		t.Errorf("the last call is %s", last)
	}
}

func TestAnInterruptBreaksOffTheWayToTheProgram(t *testing.T) {
	signals := make(chan os.Signal, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then does the server notice that the client leaves
		signals <- os.Interrupt
		<-r.Context().Done()
	}))
	defer server.Close()
	code, err := client.Run(t.Context(), client.Options{URL: server.URL, Argv: []string{"x"}}, client.Streams{Signals: signals})
	if code != 130 || err != nil {
		t.Errorf("got %d, %v", code, err)
	}
}

func TestWhatIsWrongIsSaidWithWhatToDo(t *testing.T) {
	for _, c := range []struct {
		o    client.Options
		want string
	}{
		{client.Options{URL: "127.0.0.1:7200"}, "begins with http://"},
		{client.Options{URL: "http://127.0.0.1:1"}, "start one with gateway serve"},
		{client.Options{URL: newGateway(t, "").URL, Files: []string{t.TempDir()}}, "uploaded with --dir"},
	} {
		c.o.Argv = []string{"x"}
		if code, err := client.Run(t.Context(), c.o, client.Streams{In: ended(t)}); code != client.ExitError || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %d, %v", c.o, code, err)
		}
	}
}

// A claim whose answer is lost is sent again under the same key, so that one runner comes of it.
func TestAClaimIsRepeatedUnderItsKey(t *testing.T) {
	var mu sync.Mutex
	var keys []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.Method != "POST" || r.URL.Path != "/api/v1/runners" {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		var in struct{ WaitTimeout int }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.WaitTimeout != 7 {
			t.Errorf("it waits %d s: %v", in.WaitTimeout, err)
		}
		keys = append(keys, r.Header.Get("Idempotency-Key"))
		if len(keys) < 3 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = w.Write([]byte(`{"message":"none is idle","errorCode":"NOMAD_OVERLOAD"}`))
	}))
	defer s.Close()
	code, err := client.Run(t.Context(), client.Options{URL: s.URL, Environment: 10, Argv: []string{"true"}, Wait: 7}, client.Streams{Out: io.Discard, Err: io.Discard})
	if code != client.ExitError || err == nil || !strings.Contains(err.Error(), "POST /runners: none is idle") {
		t.Errorf("got %d, %v", code, err)
	}
	if len(keys) != 3 || keys[0] == "" || keys[1] != keys[0] || keys[2] != keys[0] {
		t.Errorf("the keys were %q", keys)
	}
}
