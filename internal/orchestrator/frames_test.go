package orchestrator_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/httpapi"
	"rockpool/internal/orchestrator/model"
)

// lines opens a stream and hands out its lines; the stream ends with the test, or when leave is called.
func (c *cluster) lines(t *testing.T, path string) (next func() string, leave func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	r, err := http.NewRequestWithContext(ctx, "GET", c.http.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.token != "" {
		r.Header.Set("X-Nomad-Token", c.token)
	}
	resp, err := c.http.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d", path, resp.StatusCode)
	}
	leave = func() { cancel(); resp.Body.Close() }
	t.Cleanup(leave)
	in := json.NewDecoder(resp.Body) // frames follow each other with no more than a line's end between them
	return func() string {
		t.Helper()
		var line json.RawMessage
		if err := in.Decode(&line); err != nil {
			t.Errorf("%s ended: %v", path, err)
		}
		return string(line)
	}, leave
}

// eventLine is a line of the event stream.
type eventLine struct {
	Index  uint64
	Events []struct {
		Topic, Type, Key, Namespace string
		FilterKeys                  []string
		Index                       uint64
		Payload                     map[string]any
	}
}

// told writes lines of the event stream as golden files have them.
type told struct {
	t     *testing.T
	next  func() string
	out   strings.Builder
	last  uint64
	shown map[string]bool // what was shown in full
	only  string          // the topic whose events are written; "" = all
}

// until reads up to the line that has an event described so.
func (s *told) until(want string) {
	s.t.Helper()
	for {
		line := s.next()
		if s.t.Failed() {
			s.t.Fatalf("it waits for %q after\n%s", want, s.out.String())
		}
		if line == "{}" {
			continue // a sign of life
		}
		var l eventLine
		d := json.NewDecoder(strings.NewReader(line))
		d.UseNumber()
		if err := d.Decode(&l); err != nil {
			s.t.Fatalf("%q: %v", line, err)
		}
		if l.Index <= s.last {
			s.t.Errorf("index %d after %d", l.Index, s.last)
		}
		s.last = l.Index
		found := false
		if s.only == "" {
			fmt.Fprintln(&s.out, "line")
		}
		for _, e := range l.Events {
			if e.Index != l.Index {
				s.t.Errorf("an event of index %d in the line of %d", e.Index, l.Index)
			}
			if s.only != "" && s.only != e.Topic {
				continue
			}
			object, _ := e.Payload[e.Topic].(map[string]any)
			what := e.Topic + " " + e.Type + " " + state(object)
			if e.Payload["Deleted"] == true {
				what += " deleted"
			}
			found = found || strings.HasPrefix(what, want)
			fmt.Fprintf(&s.out, "  %s: key %s in %q, also %s, payload %s\n", mask(what), mask(e.Key), e.Namespace, mask(fmt.Sprint(e.FilterKeys)), slices.Sorted(maps.Keys(e.Payload)))
			if kind := e.Topic + " " + e.Type; !s.shown[kind] {
				s.shown[kind] = true
				s.out.WriteString(render(masked("", any(e.Payload)), true))
			}
		}
		if found {
			return
		}
	}
}

// state is what readers look at first: statuses, and the types of a task's events.
func state(o map[string]any) string {
	var out []string
	for _, k := range []string{"Status", "ClientStatus", "DesiredStatus", "TriggeredBy"} {
		if v, ok := o[k].(string); ok {
			out = append(out, v)
		}
	}
	for name, st := range o {
		states, ok := st.(map[string]any)
		if name != "TaskStates" || !ok {
			continue
		}
		for _, task := range states {
			for _, e := range task.(map[string]any)["Events"].([]any) {
				out = append(out, "+ "+e.(map[string]any)["Type"].(string))
			}
		}
	}
	return strings.Join(out, " ")
}

// Each sequence of events that readers depend on, line by line. The node says nothing by itself, so that each step waits for the one before.
func TestTheLinesOfTheEventStream(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	next, _ := c.lines(t, "/v1/event/stream?topic=*&namespace=*&index=0")
	if first := next(); first != "{}" {
		t.Errorf("the first line is %q", first)
	}
	s := &told{t: t, next: next, shown: map[string]bool{}}
	n := newModelNode()
	n.Resources.MemoryMB = 520
	f := &node{c: c, id: n.ID, secret: n.SecretID, silent: true, allocs: map[string]*model.Allocation{}, pushed: make(chan *model.AllocPush, 100)}
	title := func(name string) { fmt.Fprintf(&s.out, "\n## %s\n\n", name) }

	title("A node registers")
	if status, body := f.put("register", n); status != 200 {
		t.Fatalf("register: %d %s", status, body)
	}
	f.watch()
	s.until("Node NodeRegistration")

	// says reports a state of the only task, with one more kind of event each.
	var events []*model.TaskEvent
	says := func(id, client, task string, kinds ...string) {
		t.Helper()
		for _, k := range kinds {
			events = append(events, &model.TaskEvent{Type: k, Time: time.Now().UnixNano(), DisplayMessage: k})
		}
		f.report(&model.AllocUpdate{ID: id, ClientStatus: client, TaskStates: map[string]*model.TaskState{
			"t": {State: task, Failed: client == model.ClientFailed, Events: slices.Clone(events)}}})
	}
	placed := func(id string) string {
		t.Helper()
		l, _, err := c.api.Jobs().Allocations(id, false, nil)
		if err != nil || len(l) != 1 {
			t.Fatalf("%d allocations of %s, %v", len(l), id, err)
		}
		return l[0].ID
	}
	const completed = "Evaluation EvaluationUpdated complete"

	title("Register, placed")
	c.register(simple("10-a"))
	s.until(completed)
	a := placed("10-a")
	says(a, model.ClientPending, model.TaskPending, "Received", "Task Setup")
	s.until("Allocation AllocationUpdated pending")
	says(a, model.ClientRunning, model.TaskRunning, "Started")
	s.until("Allocation AllocationUpdated running")

	title("A task restarts")
	says(a, model.ClientPending, model.TaskPending, "Terminated", "Restarting")
	s.until("Allocation AllocationUpdated pending")
	says(a, model.ClientRunning, model.TaskRunning, "Started")
	s.until("Allocation AllocationUpdated running")

	title("It fails for good")
	says(a, model.ClientFailed, model.TaskDead, "Terminated", "Not Restarting")
	s.until("Job AllocationUpdated dead")

	title("Stop")
	events = nil
	c.register(simple("10-b"))
	s.until(completed)
	b := placed("10-b")
	says(b, model.ClientRunning, model.TaskRunning, "Started")
	s.until("Allocation AllocationUpdated running")
	fmt.Fprintln(&s.out, "the job is stopped")
	if _, _, err := c.api.Jobs().Deregister("10-b", false, nil); err != nil {
		t.Fatal(err)
	}
	s.until(completed)
	says(b, model.ClientRunning, model.TaskRunning, "Killing")
	s.until("Allocation AllocationUpdated running")
	says(b, model.ClientComplete, model.TaskDead, "Terminated", "Killed")
	s.until("Allocation AllocationUpdated complete")

	title("No room")
	huge := simple("10-c")
	huge.TaskGroups[0].Tasks[0].Resources.MemoryMB, huge.TaskGroups[0].Tasks[0].Resources.MemoryMaxMB = new(5000), nil
	c.register(huge)
	s.until(completed)

	title("Purge")
	events = nil
	c.register(simple("10-d"))
	s.until(completed)
	says(placed("10-d"), model.ClientRunning, model.TaskRunning, "Started")
	s.until("Allocation AllocationUpdated running")
	fmt.Fprintln(&s.out, "the job is purged")
	if _, _, err := c.api.Jobs().Deregister("10-d", true, nil); err != nil {
		t.Fatal(err)
	}
	s.until(completed)

	title("Register right after a purge")
	c.register(simple("10-e"))
	s.until(completed)
	fmt.Fprintln(&s.out, "the job is purged, and registered again")
	s.only = "Job" // when the purge's evaluation ends is another matter
	if _, _, err := c.api.Jobs().Deregister("10-e", true, nil); err != nil {
		t.Fatal(err)
	}
	c.register(simple("10-e"))
	s.until("Job PlanResult running")

	compare(t, "events", strings.TrimPrefix(s.out.String(), "\n"))
}

// A reader that leaves at any step leaves nothing behind. What goroutines are left is looked at once all tests have ended.
func TestReadersOfStreamsThatLeave(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	log, feed, err := logging.NewFeed(io.Discard, "info", "JSONFormatter")
	if err != nil {
		t.Fatal(err)
	}
	c.server.SetProcess(httpapi.Process{Log: feed})
	withNode(t, c)
	j := one("10-a")
	j.TaskGroups[0].Tasks[0].Config = map[string]any{"stdout_string": "hello\n"}
	c.register(j)
	a := c.running("10-a", 1)[0].ID
	eventually(t, "the log is there", func() bool {
		status, body, err := c.call("GET", "/v1/client/fs/logs/"+a+"?task=t&type=stdout&plain=true", "")
		return err == nil && status == 200 && body == "hello\n"
	})
	streams := map[string]struct {
		path string
		more func() // makes another line
		want []string
	}{
		"events":  {"/v1/event/stream?topic=Job:10-b", func() { c.register(one("10-b")) }, []string{"{}", `{"Index":`}},
		"logs":    {"/v1/client/fs/logs/" + a + "?task=t&type=stdout&follow=true&origin=start", nil, []string{`{"Offset":6,"Data":"aGVsbG8K","File":"alloc/logs/t.stdout.0"}`, "{}"}},
		"a file":  {"/v1/client/fs/stream/" + a + "?path=alloc/logs/t.stdout.0&follow=true", nil, []string{`{"Offset":6,"Data":"aGVsbG8K","File":"alloc/logs/t.stdout.0"}`, "{}"}},
		"monitor": {"/v1/agent/monitor?log_level=info", func() { log.Info("said") }, []string{"{}", `{"Data":"`}},
	}
	var wg sync.WaitGroup
	for name, x := range streams {
		for after := range len(x.want) + 1 {
			wg.Go(func() {
				next, leave := c.lines(t, x.path)
				defer leave()
				for i := range after {
					if i > 0 && x.more != nil {
						x.more()
					}
					if got := next(); !strings.HasPrefix(got, x.want[i]) {
						t.Errorf("line %d of %s is %q, want %q", i+1, name, got, x.want[i])
					}
				}
			})
		}
	}
	wg.Wait()
	// Nothing holds on to a follower: the log takes no more than a few at a time.
	for range 50 {
		next, leave := c.lines(t, "/v1/agent/monitor")
		next()
		leave()
	}
}

// frames reads a WebSocket to its end. How output and errors are mixed is left to chance, so those of one come before those of the other.
func frames(t *testing.T, conn *websocket.Conn) string {
	t.Helper()
	var out, errs, rest string
	for {
		_, f, err := conn.ReadMessage()
		if e, ok := errors.AsType[*websocket.CloseError](err); ok {
			return out + errs + rest + strings.TrimSuffix(fmt.Sprintf("close %d %s", e.Code, mask(e.Text)), " ") + "\n"
		}
		if err != nil {
			t.Fatalf("the connection broke: %v", err)
		}
		line := "< " + strings.TrimSuffix(string(f), "\n") + "\n"
		switch {
		case rest != "":
			t.Errorf("after the exit comes %s", line)
		case strings.Contains(line, `{"stdout"`):
			out += line
		case strings.Contains(line, `{"stderr"`):
			errs += line
		default:
			rest = line
		}
	}
}

// Each frame of exec, as it stands on the wire.
func TestTheFramesOfExec(t *testing.T) {
	var code atomic.Int32
	c, _, alloc := withAgent(t, func(e *execution) {
		switch e.spec.Argv[0] {
		case "cat":
			_, _ = io.Copy(e.out, e.inR)
		case "out":
			fmt.Fprint(e.out, "out")
		case "err":
			fmt.Fprint(e.err, "err")
		case "size":
			size := <-e.size
			fmt.Fprintf(e.out, "%dx%d", size[0], size[1])
		case "lost":
			e.unknown = errors.New("lost")
		}
		e.res.ExitCode = int(code.Load())
	}, ways["in this process"])
	var out strings.Builder
	for _, x := range []struct {
		name, alloc, task, token, argv, query string
		code                                  int
		sent                                  []string
	}{
		{name: "nothing is said", argv: `["true"]`},
		{name: "output", argv: `["out"]`, code: 0},
		{name: "errors, and an exit code", argv: `["err"]`, code: 3},
		{name: "input", argv: `["cat"]`, sent: []string{`{}`, `{"stdin":{"data":"aGk="}}`, `{"stdin":{"close":true}}`}},
		{name: "a terminal", argv: `["size"]`, query: "&tty=true", sent: []string{`{"tty_size":{"height":24,"width":80}}`}},
		{name: "a token in the first message", argv: `["out"]`, token: "-", query: "&ws_handshake=true", sent: []string{`{"version":1,"auth_token":"secret"}`}},
		{name: "a wrong token in the first message", argv: `["out"]`, token: "-", query: "&ws_handshake=true", sent: []string{`{"version":1,"auth_token":"x"}`}},
		{name: "another version of the first message", argv: `["out"]`, token: "-", query: "&ws_handshake=true", sent: []string{`{"version":2,"auth_token":"secret"}`}},
		{name: "a first message that is none", argv: `["out"]`, token: "-", query: "&ws_handshake=true", sent: []string{`hello`}},
		{name: "no token", argv: `["out"]`, token: "-"},
		{name: "an unknown allocation", argv: `["out"]`, alloc: unknownID},
		{name: "no allocation's id", argv: `["out"]`, alloc: "x"},
		{name: "a task that does not run", argv: `["out"]`, task: "none"},
		{name: "no task", argv: `["out"]`, task: "-"},
		{name: "no command", argv: `[]`},
		{name: "a command that is no list", argv: `ls`},
		{name: "a command that is not there", argv: `["missing"]`},
		{name: "an outcome that is not known", argv: `["lost"]`},
		{name: "a frame that is none", argv: `["cat"]`, sent: []string{`hello`}},
		{name: "a terminal that is neither", argv: `["out"]`, query: "&tty=maybe"},
	} {
		code.Store(int32(x.code))
		task := map[string]string{"": "t", "-": ""}
		name, known := task[x.task]
		if !known {
			name = x.task
		}
		token := "secret"
		if x.token != "" {
			token = ""
		}
		id := alloc.ID
		if x.alloc != "" {
			id = x.alloc
		}
		q := "task=" + name + "&command=" + x.argv + x.query
		h := http.Header{}
		if token != "" {
			h.Set("X-Nomad-Token", token)
		}
		conn, resp, err := websocket.DefaultDialer.Dial(strings.Replace(c.http.URL, "http", "ws", 1)+"/v1/client/allocation/"+id+"/exec?"+strings.NewReplacer(`"`, "%22", "[", "%5B", "]", "%5D").Replace(q), h)
		fmt.Fprintf(&out, "## %s\n\n%s\n", x.name, q)
		if err != nil {
			body, _ := io.ReadAll(resp.Body)
			fmt.Fprintf(&out, "no WebSocket: %d %s\n\n", resp.StatusCode, mask(string(body)))
			continue
		}
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		for _, f := range x.sent {
			fmt.Fprintf(&out, "> %s\n", f)
			if err := conn.WriteMessage(websocket.TextMessage, []byte(f)); err != nil {
				t.Fatal(err)
			}
		}
		out.WriteString(frames(t, conn) + "\n")
		conn.Close()
	}
	compare(t, "exec", out.String())
}

// Whatever a client has said before it leaves, its execution is killed.
func TestClientsOfExecThatLeave(t *testing.T) { eachWay(t, testClientsOfExecThatLeave) }

func testClientsOfExecThatLeave(t *testing.T, withAgent placing) {
	started := make(chan *execution, 1)
	c, _, alloc := withAgent(t, func(e *execution) {
		started <- e
		go func() { _, _ = io.Copy(io.Discard, e.inR) }() // ends with the execution's input
		_, _ = fmt.Fprint(e.out, "out")
		<-e.killed
	})
	steps := []func(*websocket.Conn) error{
		func(conn *websocket.Conn) error { return conn.WriteMessage(websocket.TextMessage, []byte(`{}`)) },
		func(conn *websocket.Conn) error {
			return conn.WriteMessage(websocket.TextMessage, []byte(`{"tty_size":{"height":1,"width":1}}`))
		},
		func(conn *websocket.Conn) error {
			return conn.WriteMessage(websocket.TextMessage, []byte(`{"stdin":{"data":"aGk="}}`))
		},
		func(conn *websocket.Conn) error { _, _, err := conn.ReadMessage(); return err },
		func(conn *websocket.Conn) error {
			return conn.WriteMessage(websocket.TextMessage, []byte(`{"stdin":{"close":true}}`))
		},
	}
	for after := range len(steps) + 1 {
		for _, polite := range []bool{false, true} {
			q := command("sh")
			q.Set("tty", "true")
			conn := c.dial(t, alloc.ID, q, "secret")
			for _, step := range steps[:after] {
				if err := step(conn); err != nil {
					t.Fatal(err)
				}
			}
			e := <-started
			if polite {
				_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
			}
			conn.Close()
			select {
			case <-e.killed:
			case <-time.After(10 * time.Second):
				t.Fatalf("an execution lives on after a client that left after %d steps, polite %v", after, polite)
			}
		}
	}
	// A client that leaves before the answer to its handshake has no execution, or a dead one.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, resp, err := websocket.DefaultDialer.DialContext(ctx, strings.Replace(c.http.URL, "http", "ws", 1)+"/v1/client/allocation/"+alloc.ID+"/exec", nil)
	if err == nil {
		t.Error("it was dialled all the same")
	}
	if resp != nil {
		resp.Body.Close()
	}
}
