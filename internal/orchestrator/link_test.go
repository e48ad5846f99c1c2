package orchestrator_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/inspect"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node/serve"
)

func TestABrowserShowsItsTokenInTheFirstMessage(t *testing.T) { eachWay(t, testABrowserShowsItsToken) }

func testABrowserShowsItsToken(t *testing.T, withAgent placing) {
	c, _, alloc := withAgent(t, func(e *execution) { _, _ = io.Copy(e.out, e.inR) })
	q := command("cat")
	q.Set("ws_handshake", "true")
	conn := c.dial(t, alloc.ID, q, "")
	// What comes right behind the token must not be lost between those who read it.
	for _, m := range []string{`{"version":1,"auth_token":"secret"}`, `{"stdin":{"data":"aGVsbG8="}}`, `{"stdin":{"close":true}}`} {
		if err := conn.WriteMessage(websocket.TextMessage, []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	var all []string
	var err error
	for err == nil {
		var f []byte
		if _, f, err = conn.ReadMessage(); err == nil {
			all = append(all, strings.TrimSpace(string(f)))
		}
	}
	if got := strings.Join(all, ""); !strings.Contains(got, `{"stdout":{"data":"aGVsbG8="}}`) || !strings.HasSuffix(got, `{"exited":true,"result":{}}`) ||
		!websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		t.Errorf("%s, %v", got, err)
	}
}

func TestANodeWithoutAConnectionIsToldAtOnce(t *testing.T) {
	c, _, alloc := withAgent(t, nil, func(*cluster, *agent, *model.Node) {})
	begun := time.Now()
	if status, body, _ := c.call("GET", "/v1/client/allocation/"+alloc.ID+"/stats", ""); status != 404 || body != "No path to node" {
		t.Errorf("%d %q", status, body)
	}
	conn := c.dial(t, alloc.ID, command("a"), "secret")
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.ClosePolicyViolation) || !strings.Contains(err.Error(), "No path to node") {
		t.Errorf("exec: %v", err)
	}
	if err := c.server.Nodes().Probe(t.Context(), alloc.NodeID); err == nil {
		t.Error("a probe of a node without a connection succeeds")
	}
	if d := time.Since(begun); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
}

func TestANodeThatVanishesEndsItsRequestsWithAnError(t *testing.T) {
	var cut func()
	c, a, alloc := withAgent(t, func(e *execution) { fmt.Fprint(e.out, "begun"); <-e.killed },
		func(c *cluster, a *agent, n *model.Node) {
			cut = c.connect(n, serve.New(a, nil, inspect.Process{}, nil))
		})
	if err := c.server.Nodes().Probe(t.Context(), a.id); err != nil {
		t.Fatal(err)
	}
	conn := c.dial(t, alloc.ID, command("sleep"), "secret")
	if _, _, err := conn.ReadMessage(); err != nil {
		t.Fatal(err)
	}
	cut()
	for {
		_, f, err := conn.ReadMessage()
		if strings.Contains(string(f), "exited") {
			t.Fatalf("it claims to know the outcome: %s", f)
		}
		if err != nil {
			if websocket.IsCloseError(err, websocket.CloseNormalClosure) {
				t.Errorf("it ends as if all were well: %v", err)
			}
			break
		}
	}
	eventually(t, "the connection is forgotten", func() bool { return len(c.server.Nodes().Nodes()) == 0 })
}

func TestASlowClientHoldsUpNobodyElse(t *testing.T) {
	c, a, alloc := withAgent(t, func(e *execution) {
		if len(e.spec.Argv) > 1 {
			fmt.Fprint(e.out, "quick")
			return
		}
		block := bytes.Repeat([]byte("x"), 1<<16)
		for {
			select {
			case <-e.killed:
				return
			default:
			}
			if _, err := e.out.Write(block); err != nil {
				return
			}
		}
	}, func(c *cluster, a *agent, n *model.Node) { c.connect(n, serve.New(a, nil, inspect.Process{}, nil)) })
	slow := c.dial(t, alloc.ID, command("endless"), "secret") // and nobody reads
	eventually(t, "it runs", func() bool { return a.lastExecution() != nil })
	endless := a.lastExecution()
	for range 20 {
		var out bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		code, err := c.api.Allocations().Exec(ctx, alloc, "t", false, []string{"a", "b"}, strings.NewReader(""), &out, io.Discard, nil, nil)
		cancel()
		if code != 0 || err != nil || out.String() != "quick" {
			t.Fatalf("%d %v %q", code, err, out.String())
		}
	}
	slow.Close()
	<-endless.killed
	endless.outR.Close()
	endless.wg.Wait()
}

func TestAConnectionNeedsTheNodesSecret(t *testing.T) {
	c, a, _ := withAgent(t, nil, func(*cluster, *agent, *model.Node) {})
	for _, x := range []struct {
		name, secret, upgrade string
		status                int
	}{
		{"no secret", "", "rockpool-node/1", 403}, {"a wrong one", "guess", "rockpool-node/1", 403},
	} {
		r, _ := http.NewRequestWithContext(t.Context(), "GET", c.http.URL+"/v1/internal/node/"+a.id+"/connection", nil)
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", x.upgrade)
		if x.secret != "" {
			r.Header.Set("X-Rockpool-Node-Secret", x.secret)
		}
		resp, err := c.http.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != x.status {
			t.Errorf("%s: %d", x.name, resp.StatusCode)
		}
	}
	if got := c.server.Nodes().Nodes(); len(got) != 0 {
		t.Errorf("connected: %v", got)
	}
}

// logged writes files of a task's log.
func logged(t *testing.T, a *agent, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(a.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLogs(t *testing.T) { eachWay(t, testLogs) }

func testLogs(t *testing.T, withAgent placing) {
	c, a, alloc := withAgent(t, nil)
	get := func(q string) string {
		status, body, err := c.call("GET", "/v1/client/fs/logs/"+alloc.ID+"?"+q, "")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(status, " ", body)
	}
	if got := get("task=t&type=stdout"); got != "200 " {
		t.Errorf("no log yet: %q", got)
	}
	logged(t, a, map[string]string{"alloc/logs/t.stdout.9": "abc", "alloc/logs/t.stdout.10": "defg", "alloc/logs/t.stderr.0": "e", "alloc/logs/other.stdout.0": "no"})
	for _, x := range []struct{ name, q, want string }{
		{"all of it, in the order of its numbers", "task=t&type=stdout&plain=true", "200 abcdefg"},
		{"the other stream", "task=t&type=stderr&plain=true", "200 e"},
		{"from an offset", "task=t&type=stdout&plain=true&offset=4", "200 efg"},
		{"from the end", "task=t&type=stdout&plain=true&origin=end&offset=4", "200 defg"},
		{"frames", "task=t&type=stdout&offset=2", `200 {"Offset":3,"Data":"Yw==","File":"alloc/logs/t.stdout.9"}{"Offset":4,"Data":"ZGVmZw==","File":"alloc/logs/t.stdout.10"}`},
		{"no task", "type=stdout", "400 must provide task name"},
		{"an unknown task", "task=x&type=stdout", `404 unknown task name "x"`},
		{"an odd stream", "task=t&type=stdin", `400 log type "stdin" must be stdout or stderr`},
	} {
		if got := get(x.q); got != x.want {
			t.Errorf("%s: %q, want %q", x.name, got, x.want)
		}
	}
}

func TestFollowingALog(t *testing.T) { eachWay(t, testFollowingALog) }

func testFollowingALog(t *testing.T, withAgent placing) {
	c, a, alloc := withAgent(t, nil)
	logged(t, a, map[string]string{"alloc/logs/t.stdout.0": "one "})
	cancel := make(chan struct{})
	defer close(cancel)
	frames, errs := c.api.AllocFS().Logs(alloc, true, "t", "stdout", "start", 0, cancel, nil)
	var got string
	next := func() *api.StreamFrame {
		t.Helper()
		select {
		case f := <-frames:
			return f
		case err := <-errs:
			t.Fatalf("after %q: %v", got, err)
		case <-time.After(10 * time.Second):
			t.Fatalf("nothing comes after %q", got)
		}
		return nil
	}
	until := func(want string) {
		t.Helper()
		for !strings.HasSuffix(got, want) {
			if f := next(); f != nil {
				got += string(f.Data)
			}
		}
	}
	until("one ")
	f, err := os.OpenFile(filepath.Join(a.dir, "alloc/logs/t.stdout.0"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, "two ")
	f.Close()
	until("two ")
	logged(t, a, map[string]string{"alloc/logs/t.stdout.1": "three "})
	until("three ")
	a.ended.Store(true)
	select {
	case err := <-errs:
		if err != io.EOF {
			t.Errorf("it ends with %v", err)
		}
	case f, ok := <-frames:
		if ok {
			t.Errorf("a frame after the end: %+v", f)
		}
	case <-time.After(10 * time.Second):
		t.Error("the log of a task that has ended goes on for ever")
	}
	if got != "one two three " {
		t.Errorf("%q", got)
	}
}

func TestFilesOfAnAllocation(t *testing.T) { eachWay(t, testFilesOfAnAllocation) }

func testFilesOfAnAllocation(t *testing.T, withAgent placing) {
	c, a, alloc := withAgent(t, nil)
	logged(t, a, map[string]string{"alloc/logs/t.stdout.0": "hello", "alloc/data/x.html": "<html>", "u/secrets/key": "s"})
	outside := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(outside, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"alloc/data/out": outside, "alloc/data/up": "../../../../../../../../../etc", "alloc/data/in": "x.html"} {
		if err := os.Symlink(to, filepath.Join(a.dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	fs := c.api.AllocFS()
	list, _, err := fs.List(alloc, "/alloc/logs", nil)
	if err != nil || len(list) != 1 || list[0].Name != "t.stdout.0" || list[0].Size != 5 || list[0].IsDir || list[0].FileMode != "-rw-------" {
		t.Errorf("list: %+v %v", list, err)
	}
	info, _, err := fs.Stat(alloc, "alloc/data/x.html", nil)
	if err != nil || info.ContentType != "text/html; charset=utf-8" || info.Size != 6 {
		t.Errorf("stat: %+v %v", info, err)
	}
	r, err := fs.ReadAt(alloc, "alloc/logs/t.stdout.0", 1, 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	data, _ := io.ReadAll(r)
	r.Close()
	if string(data) != "ell" {
		t.Errorf("readat: %q", data)
	}
	for _, x := range []struct {
		name, what, path string
		status           int
	}{
		{"a file", "cat", "alloc/logs/t.stdout.0", 200}, {"a link to a neighbour", "cat", "alloc/data/in", 200},
		{"a missing file", "cat", "alloc/none", 404}, {"a missing directory", "ls", "none", 404}, {"stat of nothing", "stat", "none", 404},
		{"a climb", "cat", "../../etc/passwd", 400}, {"a climb in the middle", "ls", "alloc/../../x", 400}, {"a climb that comes back", "ls", "alloc/../alloc", 200},
		{"a link out", "cat", "alloc/data/out", 400}, {"a link up", "ls", "alloc/data/up", 400}, {"through a link up", "cat", "alloc/data/up/passwd", 400},
		{"a directory as a file", "cat", "alloc", 400}, {"an absolute path is below the allocation", "cat", "/alloc/logs/t.stdout.0", 200},
		{"secrets", "cat", "t/secrets/key", 403}, {"secrets by a detour", "cat", "t/./x/../secrets/key", 403}, {"a NUL", "cat", "alloc/%00", 400},
	} {
		t.Run(x.name, func(t *testing.T) {
			status, body, err := c.call("GET", "/v1/client/fs/"+x.what+"/"+alloc.ID+"?path="+x.path, "")
			if err != nil || status != x.status || strings.Contains(body, "precious") || strings.Contains(body, "root:") {
				t.Errorf("%d %q %v, want %d", status, body, err, x.status)
			}
		})
	}
	status, body, err := c.call("GET", "/v1/client/fs/stream/"+alloc.ID+"?path=alloc/logs/t.stdout.0&follow=false&origin=end&offset=2", "")
	if err != nil || status != 200 || body != `{"Offset":5,"Data":"bG8=","File":"alloc/logs/t.stdout.0"}` {
		t.Errorf("stream: %d %s %v", status, body, err)
	}
}
