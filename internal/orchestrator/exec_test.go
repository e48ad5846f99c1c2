package orchestrator_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/nomad/api"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/inspect"
	"rockpool/internal/orchestrator/link"
	"rockpool/internal/orchestrator/model"
	nodeagent "rockpool/internal/orchestrator/node"
	"rockpool/internal/orchestrator/node/serve"
	"rockpool/internal/orchestrator/wire"
)

// agent is a node whose executions are functions.
type agent struct {
	serve.Node // what it does not have itself is not asked of it
	id         string
	dir        string      // of its only allocation
	ended      atomic.Bool // its task
	run        func(*execution)

	mu   sync.Mutex
	last *execution
}

func (a *agent) ID() string { return a.id }
func (a *agent) Fences() []driver.Fence {
	return []driver.Fence{{Wall: "Files", Name: "files.proc", InForce: true, Detail: "masked"}, {Wall: "Machine", Name: "kernel", InForce: true, Detail: "6", Note: true},
		{Wall: "Files", Name: "files.idmap", Detail: "no"}}
}
func (a *agent) Task(_ context.Context, _, task string) (driver.Task, error) {
	if task != "t" {
		return nil, driver.ErrTaskGone
	}
	return &fakeTask{}, nil
}
func (a *agent) Tasks(string) ([]string, error) { return []string{"t"}, nil }
func (a *agent) SignalTask(_ context.Context, _, task string, _ int) error {
	if task != "t" {
		return driver.ErrTaskGone
	}
	return nil
}
func (a *agent) DeviceStats(context.Context, string, []string) map[string][]*wire.DeviceGroupStats {
	return map[string][]*wire.DeviceGroupStats{"t": {{Vendor: "nvidia", Type: "gpu", Name: "A100"}}}
}
func (a *agent) CoreMHz() int                       { return 1000 }
func (a *agent) Directory(string) (string, error)   { return a.dir, nil }
func (a *agent) Ended(string, string) (bool, error) { return a.ended.Load(), nil }
func (a *agent) Checks(string) (wire.AllocCheckStatuses, error) {
	return wire.AllocCheckStatuses{}, nil
}
func (a *agent) Exec(_ context.Context, _, task string, spec driver.ExecSpec) (driver.Execution, error) {
	switch {
	case task != "t":
		return nil, driver.ErrTaskGone
	case spec.Argv[0] == "missing":
		return nil, driver.ErrNoCommand
	}
	e := newExecution(spec)
	a.mu.Lock()
	a.last = e
	a.mu.Unlock()
	e.wg.Go(func() { a.run(e); e.end() })
	return e, nil
}
func (a *agent) Execution(_, _, id string) (string, driver.ExecResult, error) {
	if id != "known" {
		return "", driver.ExecResult{}, fault.New(fault.NotFound, "Unknown execution %q", id)
	}
	return "exited", driver.ExecResult{Verdict: "exit", ExitCode: 3, CPUTime: 5, PeakMemory: 7, OutputBytes: 9, Cold: true}, nil
}
func (a *agent) SignalExecution(_, _, _ string, n int) error {
	if n != 2 {
		return fmt.Errorf("signal %d", n)
	}
	return nil
}
func (a *agent) KillExecution(_, _, _ string) error               { return nil }
func (a *agent) RestartTask(_ context.Context, _, _ string) error { return nil }
func (a *agent) lastExecution() *execution                        { a.mu.Lock(); defer a.mu.Unlock(); return a.last }

type execution struct {
	spec           driver.ExecSpec
	inR            *io.PipeReader
	in             *io.PipeWriter
	outR, errR     *io.PipeReader
	out, err       *io.PipeWriter
	done, killed   chan struct{}
	once, killOnce sync.Once
	res            driver.ExecResult
	unknown        error
	size           chan [2]uint16
	wg             sync.WaitGroup
}

func newExecution(spec driver.ExecSpec) *execution {
	e := &execution{spec: spec, done: make(chan struct{}), killed: make(chan struct{}), size: make(chan [2]uint16, 8)}
	e.inR, e.in = io.Pipe()
	e.outR, e.out = io.Pipe()
	e.errR, e.err = io.Pipe()
	return e
}

func (e *execution) end() {
	e.out.Close()
	e.err.Close()
	e.inR.Close()
	e.once.Do(func() { close(e.done) })
}
func (e *execution) Stdin() io.WriteCloser { return e.in }
func (e *execution) Stdout() io.Reader     { return e.outR }
func (e *execution) Stderr() io.Reader {
	if e.spec.TTY && !e.spec.SplitStderr {
		return nil
	}
	return e.errR
}
func (e *execution) Resize(w, h uint16) error { e.size <- [2]uint16{w, h}; return nil }
func (e *execution) Signal(int) error         { return nil }
func (e *execution) Kill() error {
	e.killOnce.Do(func() { close(e.killed); e.inR.Close() })
	return nil
}
func (e *execution) Done() <-chan struct{}              { return e.done }
func (e *execution) Result() (driver.ExecResult, error) { return e.res, e.unknown }

type fakeTask struct{ driver.Task }

func (*fakeTask) Files() driver.Files { return fakeFiles{} }
func (*fakeTask) Usage(context.Context) (driver.Usage, error) {
	return driver.Usage{MemoryBytes: 42}, nil
}
func (*fakeTask) Signal(context.Context, int) error { return nil }

type fakeFiles struct{}

func (fakeFiles) Apply(_ context.Context, deletes []string, archive io.Reader) error {
	if len(deletes) != 1 || deletes[0] != "./*" {
		return fmt.Errorf("deletes are %v", deletes)
	}
	r := tar.NewReader(archive)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Name == "/etc/x" {
			return fmt.Errorf("Cannot open: /etc/x")
		}
	}
}
func (fakeFiles) List(_ context.Context, path string, _ bool, _ string) iter.Seq2[driver.FileInfo, error] {
	return func(yield func(driver.FileInfo, error) bool) {
		if path == "missing" {
			yield(driver.FileInfo{}, driver.ErrNotFound)
			return
		}
		_ = yield(driver.FileInfo{Name: "a", Type: "-"}, nil) && path == "broken" && yield(driver.FileInfo{}, driver.ErrPermission)
	}
}
func (fakeFiles) Open(_ context.Context, path, _ string) (io.ReadCloser, driver.FileInfo, error) {
	if path != "a" {
		return nil, driver.FileInfo{}, driver.ErrNotFound
	}
	return io.NopCloser(strings.NewReader("hello")), driver.FileInfo{Size: 5}, nil
}

// placing starts a cluster with a running allocation on a node that a server can reach.
type placing func(t testing.TB, run func(*execution)) (*cluster, *agent, *api.Allocation)

// ways are how a server reaches a node: in its own process, and over nothing but the node's own connection.
var ways = map[string]func(*cluster, *agent, *model.Node){
	"in this process": func(c *cluster, a *agent, _ *model.Node) {
		c.server.SetLocalNode(a.id, serve.New(a, nil, inspect.Process{}, nil))
	},
	"over the node's connection": func(c *cluster, a *agent, n *model.Node) { c.connect(n, serve.New(a, nil, inspect.Process{}, nil)) },
}

// eachWay runs a test in all of them.
func eachWay(t *testing.T, f func(*testing.T, placing)) {
	for name, reach := range ways {
		t.Run(name, func(t *testing.T) {
			f(t, func(t testing.TB, run func(*execution)) (*cluster, *agent, *api.Allocation) {
				return withAgent(t, run, reach)
			})
		})
	}
}

// connect gives a node its own connection to the server. It returns once requests can go over it, and what cuts it.
func (c *cluster) connect(n *model.Node, h http.Handler) (cut func()) {
	c.tb.Helper()
	remote, err := nodeagent.NewRemote([]string{c.http.URL}, nodeagent.Identity{ID: n.ID, Secret: n.SecretID}, c.token, c.http.Client())
	if err != nil {
		c.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = link.Keep(ctx, remote, h, logging.Discard()) })
	cut = func() { cancel(); wg.Wait() }
	c.tb.Cleanup(cut)
	eventually(c.tb, "the node is connected", func() bool { return slices.Contains(c.server.Nodes().Nodes(), n.ID) })
	return cut
}

func withAgent(t testing.TB, run func(*execution), reach func(*cluster, *agent, *model.Node)) (*cluster, *agent, *api.Allocation) {
	c := start(t, orchestrator.ServerConfig{Token: "secret"})
	m := newModelNode()
	n := c.join(m)
	a := &agent{id: n.id, run: run, dir: t.TempDir()}
	reach(c, a, m)
	c.register(job("10-a"))
	alloc, _, err := c.api.Allocations().Info(c.running("10-a", 1)[0].ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if e := a.lastExecution(); e != nil {
			e.wg.Wait()
		}
	})
	return c, a, alloc
}

func TestExecThroughTheAPIClient(t *testing.T) { eachWay(t, testExecThroughTheAPIClient) }

func testExecThroughTheAPIClient(t *testing.T, withAgent placing) {
	c, a, alloc := withAgent(t, func(e *execution) {
		in, _ := io.ReadAll(e.inR)
		fmt.Fprintf(e.out, "got %s", in)
		fmt.Fprint(e.err, "oops")
		e.res.ExitCode = 42
	})
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	input := strings.Repeat("x", 100_000)
	code, err := c.api.Allocations().Exec(ctx, alloc, "t", false, []string{"cat", "-"}, strings.NewReader(input), &out, &errs, nil, nil)
	if code != 42 || err != nil || out.String() != "got "+input || errs.String() != "oops" {
		t.Errorf("code %d, %v, %d bytes out, %q", code, err, out.Len(), errs.String())
	}
	if got := a.lastExecution().spec; fmt.Sprint(got.Argv) != "[cat -]" || got.TTY {
		t.Errorf("the spec is %+v", got)
	}
}

func (c *cluster) dial(t *testing.T, alloc string, q url.Values, token string) *websocket.Conn {
	t.Helper()
	h := http.Header{}
	if token != "" {
		h.Set("X-Nomad-Token", token)
	}
	u := strings.Replace(c.http.URL, "http", "ws", 1) + "/v1/client/allocation/" + alloc + "/exec?" + q.Encode()
	conn, resp, err := websocket.DefaultDialer.Dial(u, h)
	if err != nil {
		t.Fatalf("dial: %v %v", err, resp)
	}
	resp.Body.Close()
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	return conn
}

func command(argv ...string) url.Values {
	data, _ := json.Marshal(argv)
	return url.Values{"task": {"t"}, "command": {string(data)}}
}

func TestExecFrames(t *testing.T) { eachWay(t, testExecFrames) }

func testExecFrames(t *testing.T, withAgent placing) {
	c, a, alloc := withAgent(t, func(e *execution) {
		size := <-e.size
		fmt.Fprintf(e.out, "%dx%d", size[0], size[1])
		buf := make([]byte, 2)
		_, _ = io.ReadFull(e.inR, buf)
		_, _ = e.out.Write(buf)
		e.res.Warm = true
	})
	q := command("sh")
	for k, v := range map[string]string{"tty": "true", "rockpool_id": "run-1", "rockpool_env": `{"B":"2","A":"1 $(x)"}`,
		"rockpool_dir": "/work", "rockpool_user": "user", "rockpool_split": "true",
		"rockpool_environ": base64.RawURLEncoding.EncodeToString([]byte("A=later\n\xff\x01\x00C=\x00")), "rockpool_time_limit_ms": "1500",
		"rockpool_cpu_limit_ms": "20", "rockpool_output_limit": "1048576", "rockpool_grace_ms": "3000", "rockpool_background": "true"} {
		q.Set(k, v)
	}
	conn := c.dial(t, alloc.ID, q, "secret")
	for _, f := range []string{`{}`, `{"tty_size":{"height":24,"width":80}}`, `{"stdin":{"data":"aGk="}}`, `{"stdin":{"close":true}}`} {
		if err := conn.WriteMessage(websocket.TextMessage, []byte(f)); err != nil {
			t.Fatal(err)
		}
	}
	var frames []string
	var err error
	for {
		var f []byte
		if _, f, err = conn.ReadMessage(); err != nil {
			break
		}
		frames = append(frames, strings.TrimSpace(string(f)))
	}
	if !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		t.Errorf("it ended with %v", err)
	}
	got := strings.Join(frames, "\n")
	for _, want := range []string{`{"stdout":{"data":"ODB4MjQ="}}`, `{"stdout":{"data":"aGk="}}`, `{"stdout":{"close":true}}`, `{"stderr":{"close":true}}`} {
		if !strings.Contains(got, want) {
			t.Errorf("no frame %s in\n%s", want, got)
		}
	}
	if frames[len(frames)-1] != `{"exited":true,"result":{},"rockpool_start":"warm"}` {
		t.Errorf("the last frame is %s", frames[len(frames)-1])
	}
	s := a.lastExecution().spec
	if s.ID != "run-1" || !slices.Equal(s.Env, []string{"A=1 $(x)", "B=2", "A=later\n\xff\x01", "C="}) || s.Dir != "/work" || s.User != "user" || !s.SplitStderr || !s.TTY {
		t.Errorf("the spec is %+v", s)
	}
	if s.TimeLimit != 1500*time.Millisecond || s.CPULimit != 20*time.Millisecond || s.OutputLimit != 1<<20 || s.Grace != 3*time.Second || !s.Background {
		t.Errorf("the limits are %+v", s)
	}
}

func TestTheContainmentTable(t *testing.T) { eachWay(t, testTheContainmentTable) }

func testTheContainmentTable(t *testing.T, withAgent placing) {
	c, a, _ := withAgent(t, nil)
	get := func(token string) (int, string) {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", c.http.URL+"/v1/nodes/self/fences?node_id="+a.id, nil)
		req.Header.Set("X-Nomad-Token", token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, strings.TrimSpace(string(text))
	}
	want := `[{"Wall":"Files","Fences":[{"Name":"files.proc","InForce":true,"Detail":"masked","Note":false},{"Name":"files.idmap","InForce":false,"Detail":"no","Note":false}]},` +
		`{"Wall":"Machine","Fences":[{"Name":"kernel","InForce":true,"Detail":"6","Note":true}]}]`
	if status, got := get("secret"); status != 200 || got != want {
		t.Errorf("%d %s", status, got)
	}
	if status, _ := get("wrong"); status != 403 {
		t.Errorf("without a right to read nodes: %d", status)
	}
}

func TestAClientThatLeavesKillsItsExecution(t *testing.T) {
	eachWay(t, testAClientThatLeavesKillsItsExecution)
}

func testAClientThatLeavesKillsItsExecution(t *testing.T, withAgent placing) {
	c, a, alloc := withAgent(t, func(e *execution) { <-e.killed })
	conn := c.dial(t, alloc.ID, command("sleep"), "secret")
	eventually(t, "it runs", func() bool { return a.lastExecution() != nil })
	conn.Close()
	<-a.lastExecution().killed
}

func TestAServerThatStopsEndsExecutions(t *testing.T) { eachWay(t, testAServerThatStopsEndsExecutions) }

func testAServerThatStopsEndsExecutions(t *testing.T, withAgent placing) {
	c, a, alloc := withAgent(t, func(e *execution) { <-e.killed })
	c.dial(t, alloc.ID, command("sleep"), "secret")
	eventually(t, "it runs", func() bool { return a.lastExecution() != nil })
	c.stop()
	<-a.lastExecution().killed
}

func TestExecRefusals(t *testing.T) { eachWay(t, testExecRefusals) }

func testExecRefusals(t *testing.T, withAgent placing) {
	c, _, alloc := withAgent(t, func(e *execution) { e.unknown = fmt.Errorf("lost") })
	other := "4a8a8d94-4c3c-4a1c-9c1a-5a6b7c8d9e0f"
	with := func(q url.Values, k, v string) url.Values { q.Set(k, v); return q }
	native := func(k, v string) url.Values { return with(with(command("a"), "rockpool_id", "x"), k, v) }
	for _, x := range []struct {
		name, alloc, token string
		q                  url.Values
		code               int
		text               string
	}{
		{"no token", alloc.ID, "", command("a"), 1011, "Permission denied"},
		{"an unknown allocation", other, "secret", command("a"), 1008, `Unknown allocation "` + other + `"`},
		{"a task that does not run", alloc.ID, "secret", with(command("a"), "task", "x"), 1008, `task "x" is not running.`},
		{"no task", alloc.ID, "secret", with(command("a"), "task", ""), 1008, "task name"},
		{"no command", alloc.ID, "secret", command(), 1008, "command"},
		{"a bad command", alloc.ID, "secret", with(command(), "command", "ls"), 1008, "command"},
		{"a bad id", alloc.ID, "secret", with(command("a"), "rockpool_id", "a/b"), 1008, "rockpool_id"},
		{"an environment that is not base64", alloc.ID, "secret", native("rockpool_environ", "A=b"), 1008, "rockpool_environ"},
		{"an environment that does not end", alloc.ID, "secret", native("rockpool_environ", "QT1i"), 1008, "rockpool_environ"},
		{"a variable without a name", alloc.ID, "secret", native("rockpool_environ", "PWIA"), 1008, "name"},
		{"a NUL in a value", alloc.ID, "secret", native("rockpool_env", `{"A":"b\u0000c"}`), 1008, "NUL"},
		{"a negative time limit", alloc.ID, "secret", native("rockpool_time_limit_ms", "-1"), 1008, "rockpool_time_limit_ms"},
		{"a grace of ages", alloc.ID, "secret", native("rockpool_grace_ms", "9223372036854775807"), 1008, "rockpool_grace_ms"},
		{"a negative output limit", alloc.ID, "secret", native("rockpool_output_limit", "-1"), 1008, "rockpool_output_limit"},
		{"a command that is not there", alloc.ID, "secret", command("missing"), 1011, "command not found: missing"},
		{"an outcome that is not known", alloc.ID, "secret", command("a"), 1011, "not known"},
	} {
		t.Run(x.name, func(t *testing.T) {
			conn := c.dial(t, x.alloc, x.q, x.token)
			var err error
			for err == nil {
				var f []byte
				if _, f, err = conn.ReadMessage(); strings.Contains(string(f), "exited") {
					t.Error("it claims to have exited")
				}
			}
			if e, ok := err.(*websocket.CloseError); !ok || e.Code != x.code || !strings.Contains(e.Text, x.text) {
				t.Errorf("got %v, want %d %s", err, x.code, x.text)
			}
		})
	}
	conn := c.dial(t, alloc.ID, with(command("a"), "ws_handshake", "true"), "")
	if err := conn.WriteMessage(websocket.TextMessage, []byte(`{"version":1,"auth_token":"wrong"}`)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, 1011) {
		t.Errorf("a wrong token in the handshake got %v", err)
	}
}

func TestRoutesOfARunningTask(t *testing.T) { eachWay(t, testRoutesOfARunningTask) }

func testRoutesOfARunningTask(t *testing.T, withAgent placing) {
	c, _, alloc := withAgent(t, nil)
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	_ = w.WriteHeader(&tar.Header{Name: "/etc/x", Mode: 0o644})
	_ = w.Close()
	for _, q := range []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"an ended execution", "GET", "/execution/known?task=t", "", 200, `{"State":"exited","ExitCode":3,"Signal":0,"OOMKilled":false,"CPUTimeNS":5,"WallTimeNS":0,"PeakMemoryBytes":7,"Verdict":"exit","OutputBytes":9,"Warm":false,"Cold":true}`},
		{"an unknown execution", "GET", "/execution/other?task=t", "", 404, "Unknown execution"},
		{"a signal", "PUT", "/execution/known/signal?task=t", `{"Signal":"SIGINT"}`, 200, `{"Index":0}`},
		{"an odd signal", "PUT", "/execution/known/signal?task=t", `{"Signal":"SIGODD"}`, 400, "not a signal"},
		{"a kill", "DELETE", "/execution/known?task=t", "", 200, `{"Index":0}`},
		{"a restart", "PUT", "/restart", `{"TaskName":"t"}`, 200, `{"Index":0}`},
		{"a restart of nothing", "PUT", "/restart", `{"TaskName":"x"}`, 500, "Could not find task runner for task: x"},
		{"a task's signal", "POST", "/signal", `{"Task":"t","Signal":"SIGHUP"}`, 200, `{"Index":0}`},
		{"figures", "GET", "/stats?task=t", "", 200, `"Usage":42`},
		{"figures of its devices", "GET", "/stats?task=t", "", 200, `"DeviceStats":[{"Vendor":"nvidia","Type":"gpu","Name":"A100"`},
		{"files with nothing to unpack", "PUT", "/files?task=t", `{"Delete":["./*"]}` + "\n", 200, `{"Index":0}`},
		{"files that cannot be written", "PUT", "/files?task=t", `{"Delete":["./*"]}` + "\n" + archive.String(), 422, "Cannot open: /etc/x"},
		{"files without a head", "PUT", "/files?task=t", "tar", 400, "first line"},
		{"files of a task that does not run", "GET", "/files?task=x&path=.", "", 404, "is not running"},
		{"a listing", "GET", "/files?task=t&path=.", "", 200, `{"end":true}`},
		{"a listing of nothing", "GET", "/files?task=t&path=missing", "", 424, "file not found"},
		{"a file", "GET", "/files/raw?task=t&path=a", "", 200, "hello"},
		{"a missing file", "GET", "/files/raw?task=t&path=b", "", 424, "file not found"},
		{"checks", "GET", "/checks", "", 200, "{}"},
		{"what we do not have", "GET", "/pause", "", 501, "not supported"},
	} {
		t.Run(q.name, func(t *testing.T) {
			status, body, err := c.call(q.method, "/v1/client/allocation/"+alloc.ID+q.path, q.body)
			if err != nil || status != q.status || !strings.Contains(body, q.want) {
				t.Errorf("got %d %q %v, want %d with %q", status, body, err, q.status, q.want)
			}
		})
	}
	if _, body, err := c.call("GET", "/v1/client/allocation/"+alloc.ID+"/files?task=t&path=broken", ""); err == nil && strings.Contains(body, `"end"`) {
		t.Errorf("a listing that broke off looks complete: %q", body)
	}
}

func (c *cluster) call(method, path, body string) (int, string, error) {
	r, err := http.NewRequest(method, c.http.URL+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	r.Header.Set("X-Nomad-Token", "secret")
	resp, err := c.http.Client().Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}
