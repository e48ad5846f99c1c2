package standin_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/certs"
	"rockpool/internal/config"
	"rockpool/internal/gateway"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/nomad"
	"rockpool/internal/nomad/standin"
)

// platform is a client of a whole gateway on a stand-in.
type platform struct {
	*testing.T
	server *standin.Server
	url    string
	http   *http.Client
	stop   func()
}

func serve(t *testing.T, s *standin.Server, change ...func(*config.Config)) *platform {
	t.Helper()
	cfg := config.Default()
	cfg.Server.Port, cfg.Server.Token, cfg.Nomad.Address = 0, "secret", s.URL
	for _, f := range change {
		f(&cfg)
	}
	log, err := logging.New(t.Output(), "debug", logging.Text)
	if err != nil {
		t.Fatal(err)
	}
	g, err := gateway.New(cfg, nil, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var tasks lifecycle.Tasks
	done := make(chan error, 1)
	tasks.Go(func() { done <- g.Run(ctx) })
	p := &platform{T: t, server: s, url: "http://" + g.Addr().String() + "/api/v1", http: &http.Client{Transport: &http.Transport{}}}
	stopped := false
	p.stop = func() {
		if stopped {
			return
		}
		stopped = true
		p.http.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the gateway ended with: %v", err)
		}
	}
	t.Cleanup(p.stop)
	return p
}

func (p *platform) do(method, path, body string) (int, string, http.Header) {
	p.Helper()
	r, err := http.NewRequest(method, p.url+path, strings.NewReader(body))
	if err != nil {
		p.Fatal(err)
	}
	r.Header.Set("Poseidon-Token", "secret")
	resp, err := p.http.Do(r)
	if errors.Is(err, io.EOF) {
		return 0, "cut: " + err.Error(), nil
	}
	if err != nil {
		p.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, "cut: " + err.Error(), resp.Header
	}
	return resp.StatusCode, strings.TrimSuffix(string(data), "\n"), resp.Header
}

func (p *platform) want(method, path, body string, status int, text string) string {
	p.Helper()
	code, got, _ := p.do(method, path, body)
	if code != status || !strings.Contains(got, text) {
		p.Fatalf("%s %s: got %d %q, want %d with %q", method, path, code, got, status, text)
	}
	return got
}

func (p *platform) eventually(what string, cond func() bool) {
	p.Helper()
	deadline := time.After(15 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			p.Fatalf("it never came to this: %s; the jobs are %v", what, p.server.Jobs(""))
		}
	}
}

func definition(size string) string {
	return `{"prewarmingPoolSize":` + size + `,"cpuLimit":100,"memoryLimit":256,"image":"openhpi/co_execenv_python:3.8","networkAccess":false,"exposedPorts":[]}`
}

func (p *platform) pool(idle, used int) {
	p.Helper()
	p.eventually("the pool's size", func() bool {
		_, body, _ := p.do("GET", "/statistics/execution-environments", "")
		var s map[string]struct{ IdleRunners, UsedRunners int }
		return json.Unmarshal([]byte(body), &s) == nil && s["10"].IdleRunners == idle && s["10"].UsedRunners == used
	})
}

func (p *platform) claim() string {
	p.Helper()
	var r struct{ RunnerID string }
	if err := json.Unmarshal([]byte(p.want("POST", "/runners", `{"executionEnvironmentId":10,"inactivityTimeout":180}`, 200, "runnerId")), &r); err != nil {
		p.Fatal(err)
	}
	return r.RunnerID
}

func (p *platform) ready(size string, idle int) *platform {
	p.Helper()
	p.want("PUT", "/execution-environments/10", definition(size), 201, "")
	p.pool(idle, 0)
	return p
}

// attached is a WebSocket with what came.
type attached struct {
	p  *platform
	ws *websocket.Conn
}

func (p *platform) execute(runner, request string) *attached {
	p.Helper()
	var e struct{ WebSocketURL string }
	if err := json.Unmarshal([]byte(p.want("POST", "/runners/"+runner+"/execute", request, 200, "websocketUrl")), &e); err != nil {
		p.Fatal(err)
	}
	ws, _, err := websocket.DefaultDialer.Dial(e.WebSocketURL, http.Header{"Poseidon-Token": {"secret"}})
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { _ = ws.Close() })
	_ = ws.SetReadDeadline(time.Now().Add(20 * time.Second))
	return &attached{p, ws}
}

// rest is all output and the last message.
func (e *attached) rest() (stdout, stderr, last string) {
	e.p.Helper()
	for {
		_, data, err := e.ws.ReadMessage()
		if websocket.IsCloseError(err, websocket.CloseNormalClosure) {
			return stdout, stderr, last
		}
		if err != nil {
			e.p.Fatalf("after %q: %v", last, err)
		}
		var m struct {
			Type string
			Data any
		}
		last = string(bytes.TrimSpace(data))
		_ = json.Unmarshal(data, &m)
		switch m.Type {
		case "stdout":
			stdout += m.Data.(string)
		case "stderr":
			stderr += m.Data.(string)
		}
	}
}

func (p *platform) runs(runner, command, stdout, stderr, last string) {
	p.Helper()
	body, _ := json.Marshal(map[string]any{"command": command, "timeLimit": 10})
	gotOut, gotErr, gotLast := p.execute(runner, string(body)).rest()
	if gotOut != stdout || gotErr != stderr || gotLast != last {
		p.Fatalf("%s: got %q, %q, %s; want %q, %q, %s", command, gotOut, gotErr, gotLast, stdout, stderr, last)
	}
}

func (p *platform) clean(runner string) {
	p.Helper()
	p.eventually("nothing is left in the runner", func() bool {
		return len(p.server.Processes(runner)) == 0 && len(p.server.FIFOs(runner)) == 0 && p.server.Execs() == 0
	})
}

const exitZero = `{"type":"exit","data":0}`

// cycle is what a learner's submission makes of a runner.
func (p *platform) cycle() {
	p.Helper()
	id := p.claim()
	if m := p.server.Meta(id); m["used"] != "true" || m["timeout"] != "180" {
		p.Fatalf("the mark is %v", m)
	}
	p.want("PATCH", "/runners/"+id+"/files", `{"delete":["./*"],"copy":[{"path":"./dir/"},{"path":"dir/main.sh","content":"ZWNobyBvdXQ7IGVjaG8gZXJyID4mMjsgcmVhZCB4OyBlY2hvIGdvdCAkeA=="}]}`, 204, "")
	e := p.execute(id, `{"command":"bash dir/main.sh"}`)
	if err := e.ws.WriteMessage(websocket.TextMessage, []byte("typed\n")); err != nil {
		p.Fatal(err)
	}
	out, errs, last := e.rest()
	if strings.Replace(strings.Replace(out, "typed\r\n", "", 1), "out\r\n", "", 1) != "got typed\r\n" || errs != "err\n" || last != exitZero {
		p.Fatalf("got %q, %q, %s", out, errs, last)
	}
	p.want("GET", "/runners/"+id+"/files", "", 200, `{"name":"./dir/main.sh","entryType":"-","size":43,"modificationTime":0,"permissions":"rwxr--r--","owner":"root","group":"root"}`)
	p.want("GET", "/runners/"+id+"/files?path=missing", "", 424, "file not found or insufficient permissions")
	code, body, head := p.do("GET", "/runners/"+id+"/files/raw?path=dir/main.sh", "")
	if code != 200 || head.Get("Content-Length") != "43" || !strings.HasPrefix(body, "echo out") {
		p.Fatalf("download: %d %q %v", code, body, head)
	}
	p.want("GET", "/runners/"+id+"/files/raw?path=/proc/1/environ", "", 424, "file not found or insufficient permissions")
	p.want("PATCH", "/runners/"+id+"/files", `{"copy":[{"path":"/proc/1/environ","content":"eA=="}]}`, 500, "Cannot open: ")
	p.clean(id)
	p.want("DELETE", "/runners/"+id, "", 204, "")
	p.want("DELETE", "/runners/"+id, "", 410, "message")
	if p.server.Job(id) != nil {
		p.Fatal("the job is not purged")
	}
}

// What there is to know of a release, of events and of access, in all the combinations that occur.
func TestTheGatewayOnEveryRelease(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		o    standin.Options
	}{
		{"1.6, where purged allocations stay", standin.Options{Version: "1.6.0"}},
		{"1.8, events after the answer", standin.Options{Version: "1.8.4", EventsLate: true}},
		{"1.10, each event twice", standin.Options{Version: "1.10.5", Twice: true}},
		{"2.0, a restricted token", standin.Options{Version: "2.0.0", Token: "11111111-2222-3333-4444-555555555555"}},
		{"an image without setuser", standin.Options{Bare: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := serve(t, standin.New(t, c.o), func(cfg *config.Config) { cfg.Nomad.Token = c.o.Token }).ready("2", 2)
			for range 2 {
				p.cycle()
			}
			p.pool(2, 0)
			p.want("PUT", "/execution-environments/10", strings.Replace(definition("1"), "256", "512", 1), 204, "")
			p.eventually("the pool is rolled", func() bool { return len(p.server.Jobs("10-")) == 1 })
			p.pool(1, 0)
			p.want("DELETE", "/execution-environments/10", "", 204, "")
			p.eventually("the cluster is empty", func() bool { return len(p.server.Jobs("")) == 0 })
			if n := p.server.Calls("GET /v1/client/allocation//") + p.server.Calls("PUT /v1/rockpool"); n != 0 {
				t.Errorf("%d calls of what Nomad does not have", n)
			}
		})
	}
}

func TestHowRunsEndOnNomad(t *testing.T) {
	t.Parallel()
	p := serve(t, standin.New(t, standin.Options{})).ready("1", 1)
	id := p.claim()
	start := func(command string, limit string) *attached {
		body, _ := json.Marshal(map[string]any{"command": command + " # " + limit, "timeLimit": json.RawMessage(limit)})
		e := p.execute(id, string(body))
		p.eventually("it runs", func() bool { return len(p.server.Processes(id)) >= 4 || limit == "-1" })
		return e
	}
	for _, c := range []struct{ name, command, limit string }{
		{"QUIT works", "sleep 100", "1"}, {"QUIT is ignored", "trap '' QUIT; sleep 100; sleep 100", "1"}, {"over at once", "sleep 100", "-1"},
	} {
		began := time.Now()
		if _, _, last := start(c.command, c.limit).rest(); last != `{"type":"timeout"}` || time.Since(began) > 3900*time.Millisecond {
			t.Errorf("%s: %s after %v", c.name, last, time.Since(began))
		}
		p.clean(id)
		p.runs(id, "echo well", "well\r\n", "", exitZero)
	}
	e := start("trap '' QUIT; sleep 100; sleep 100", "0")
	if err := e.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	e.rest()
	p.clean(id)
	p.runs(id, "echo well; echo worse >&2; exit 128", "well\r\n", "worse\n", `{"type":"exit","data":128}`)

	p.server.FailExec(standin.ExecFault{Match: "CODEOCEAN=true", Close: 1000, AtStart: true})
	p.runs(id, "true", "", "", `{"type":"error","data":"Error executing the request"}`)
	p.server.HealExec()
	p.server.FailExec(standin.ExecFault{Match: "CODEOCEAN=true", Close: 1006})
	p.runs(id, "exit 4", "", "", `{"type":"exit","data":4}`)
	p.server.HealExec()
	p.clean(id)

	for _, c := range []struct {
		name string
		end  func(id string)
		text string
	}{
		{"out of memory", func(id string) { p.server.End(id, "failed", true) }, "the allocation was OOM Killed"},
		{"failed", func(id string) { p.server.End(id, "failed", false) }, "Error executing the request"},
		{"lost", func(id string) { p.server.End(id, "lost", false) }, "Error executing the request"},
		{"complete", func(id string) { p.server.End(id, "complete", false) }, "the allocation stopped as expected"},
		{"restarted, out of memory", func(id string) { p.server.Restart(id, true) }, "the allocation was OOM Killed"},
		{"rescheduled", p.server.Reschedule, "Error executing the request"},
		{"deleted", func(id string) { p.want("DELETE", "/runners/"+id, "", 204, "") }, "the allocation stopped as expected"},
	} {
		e := start("sleep 100", "0")
		c.end(id)
		if _, _, last := e.rest(); last != `{"type":"error","data":"`+c.text+`"}` {
			t.Errorf("%s: got %s", c.name, last)
		}
		p.want("DELETE", "/runners/"+id, "", 410, "message")
		p.eventually("its job is purged", func() bool { return p.server.Job(id) == nil })
		p.eventually("there is another one", func() bool {
			code, body, _ := p.do("POST", "/runners", `{"executionEnvironmentId":10}`)
			var r struct{ RunnerID string }
			return code == 200 && json.Unmarshal([]byte(body), &r) == nil && r.RunnerID != id && func() bool { id = r.RunnerID; return true }()
		})
	}
}

func TestTheEventStreamIsNotBelievedToBeWhole(t *testing.T) {
	t.Parallel()
	s := standin.New(t, standin.Options{})
	p := serve(t, s).ready("2", 2)
	id := p.claim()
	p.pool(2, 1)
	e := p.execute(id, `{"command":"read x; echo $x"}`)
	p.eventually("it runs", func() bool { return len(s.Processes(id)) >= 3 })
	for _, c := range []struct {
		name string
		fall func()
	}{
		{"a gap", func() {
			s.Deaf(true)
			idle := slices.DeleteFunc(s.Jobs("10-"), func(j string) bool { return j == id })
			s.Remove(idle[0])
			s.Deaf(false)
			s.Cut()
		}},
		{"an error's frame", func() {
			s.Frame(`{"Error":{"Code":500,"Message":"subscription closed by server, client should resubscribe"}}`)
		}},
		{"no JSON", func() { s.Frame(`rpc error: EOF`) }},
		{"an index that goes back", func() { s.Restore(5); s.Frame(`{"Index":6,"Events":[]}`) }},
		{"a server that has no leader meanwhile", func() {
			s.Fail(standin.Fault{Prefix: "GET /v1/", Status: 500, Text: "rpc error: No cluster leader", Times: 3})
			s.Cut()
		}},
		{"an overloaded server", func() {
			s.Fail(standin.Fault{Prefix: "GET /v1/event/stream", Status: 429, Text: "Your IP is issuing too many concurrent connections, please rate limit your calls", Times: 1})
			s.Cut()
		}},
	} {
		listed := s.Calls("GET /v1/allocations")
		c.fall()
		p.eventually(c.name+" is followed by a listing", func() bool { return s.Calls("GET /v1/allocations") > listed && s.Subscribers() == 1 })
		p.eventually("as many runners as there shall be", func() bool { return len(s.Jobs("10-")) == 3 })
		p.pool(2, 1)
	}
	if err := e.ws.WriteMessage(websocket.TextMessage, []byte("still\n")); err != nil {
		t.Fatal(err)
	}
	if out, _, last := e.rest(); out != "still\r\nstill\r\n" || last != exitZero {
		t.Errorf("the execution came to %q, %s", out, last)
	}
	p.clean(id)
}

func TestClaimsWhenTheClusterFails(t *testing.T) {
	t.Parallel()
	s := standin.New(t, standin.Options{})
	p := serve(t, s).ready("3", 3)
	for _, f := range []standin.Fault{
		{Prefix: "PUT /v1/jobs", Status: 500, Text: "rpc error: No cluster leader", Times: 1},
		{Prefix: "PUT /v1/jobs", Status: 503, Text: "", Times: 1},
		{Prefix: "PUT /v1/jobs", Status: 500, Text: "leadership lost while committing log", Times: 1, Before: true},
	} {
		before := s.Jobs("10-")
		s.Fail(f)
		p.want("POST", "/runners", `{"executionEnvironmentId":10}`, 500, `"errorCode":"NOMAD_UNREACHABLE"`)
		p.eventually("whoever it was is replaced, since nobody knows its state", func() bool {
			now := s.Jobs("10-")
			gone := slices.DeleteFunc(slices.Clone(before), func(id string) bool { return slices.Contains(now, id) })
			return len(now) == 3 && len(gone) == 1
		})
		p.pool(3, 0)
	}
}

// A cluster as Poseidon leaves it, taken over and given back.
func TestAClusterOfPoseidon(t *testing.T) {
	t.Parallel()
	s := standin.New(t, standin.Options{})
	const idle, used, broken = "10-29148651-a4e2-11ee-9e5f-0242ac120002", "10-2d8b3a0c-a4e2-11ee-9e5f-0242ac120002", "10-31f4b2aa-a4e2-11ee-9e5f-0242ac120002"
	job := func(id, meta string) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join("testdata", "poseidon.json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Put([]byte(strings.NewReplacer("@ID@", id, `"@META@"`, meta).Replace(string(data)))); err != nil {
			t.Fatal(err)
		}
	}
	job("template-10", `{"prewarmingPoolSize":"1","used":"false"}`)
	job("template-x", `{"prewarmingPoolSize":"1","used":"false"}`)
	job(idle, `{"used":"false"}`)
	job(used, `{"used":"true","timeout":"600"}`)
	job(broken, `{"used":"true","timeout":"180"}`)
	s.Restart(broken, false)
	if err := os.WriteFile(filepath.Join(s.Root(used), "workspace", "theirs"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p := serve(t, s)
	p.want("GET", "/execution-environments", "", 200, `{"executionEnvironments":[{"id":10,"prewarmingPoolSize":1,"cpuLimit":20,"memoryLimit":512,"image":"openhpi/co_execenv_python:3.8","networkAccess":true,"exposedPorts":[3000]}]}`)
	p.pool(1, 1)
	p.want("DELETE", "/runners/"+broken, "", 410, "")
	p.want("GET", "/runners/"+used+"/files", "", 200, `"./theirs"`)
	p.runs(used, "echo hi", "hi\r\n", "", exitZero)
	if got := p.claim(); got != idle {
		t.Errorf("claimed %s", got)
	}
	p.pool(1, 2)
	p.stop()

	// What Poseidon reads when it comes back.
	for id, want := range map[string]map[string]string{idle: {"used": "true", "timeout": "180"}, used: {"used": "true", "timeout": "600"}} {
		j := s.Job(id)
		if j == nil || *j.Name != id || *j.TaskGroups[1].Name != "config" || *j.TaskGroups[1].Count != 0 || j.TaskGroups[1].Meta["used"] != want["used"] || j.TaskGroups[1].Meta["timeout"] != want["timeout"] {
			t.Errorf("%s: %+v", id, s.Meta(id))
		}
	}
	if m := s.Meta("template-10"); m["prewarmingPoolSize"] != "1" || m["used"] != "false" {
		t.Errorf("the template's meta is %v", m)
	}
	if s.Job("template-x") == nil {
		t.Error("a job that is not ours was touched")
	}
	for _, id := range s.Jobs("10-") {
		if j := s.Job(id); *j.TaskGroups[0].Name != "default-group" || j.TaskGroups[0].Tasks[0].Name != "default-task" || j.TaskGroups[0].Tasks[0].Config["image"] != "openhpi/co_execenv_python:3.8" {
			t.Errorf("%s: %+v", id, j.TaskGroups[0])
		}
	}
	again := serve(t, s)
	again.pool(1, 2)
	again.want("DELETE", "/runners/"+used, "", 204, "")
}

// A definition outlives the container of its template job, whatever ended that: a night in which all machines were off must not cost the environments.
func TestADefinitionOutlivesItsContainer(t *testing.T) {
	t.Parallel()
	s := standin.New(t, standin.Options{})
	p := serve(t, s).ready("1", 1)
	if r := s.Job("template-10").TaskGroups[0].ReschedulePolicy; r == nil || !*r.Unlimited || *r.Delay < 5*time.Second || *r.MaxDelay < *r.Delay {
		t.Errorf("the cluster does not start the container again: %+v", r)
	}
	if r := s.Job(s.Jobs("10-")[0]).TaskGroups[0].ReschedulePolicy; r == nil || *r.Unlimited {
		t.Errorf("a runner is rescheduled: %+v", r)
	}
	p.stop()
	s.End("template-10", "failed", false)
	p = serve(t, s)
	p.want("GET", "/execution-environments/10", "", 200, `"id":10`)
	p.pool(1, 0)
	p.stop()

	// One that the cluster does not start again, such as Poseidon's or one that an earlier gateway has made, is registered anew; one that was stopped is not.
	data, err := os.ReadFile(filepath.Join("testdata", "poseidon.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"template-20", "template-30"} {
		if err := s.Put([]byte(strings.NewReplacer("@ID@", id, `"@META@"`, `{"prewarmingPoolSize":"1","used":"false"}`).Replace(string(data)))); err != nil {
			t.Fatal(err)
		}
		s.End(id, "failed", false)
	}
	s.Stop("template-30")
	p = serve(t, s)
	p.want("GET", "/execution-environments/20", "", 200, `"id":20`)
	p.want("GET", "/execution-environments/30", "", 404, "")
	p.want("GET", "/execution-environments/30?fetch=true", "", 404, "")
	p.want("GET", "/execution-environments/20?fetch=true", "", 200, `"image":"openhpi/co_execenv_python:3.8"`)
	p.eventually("the dead job is registered anew", func() bool {
		j := s.Job("template-20")
		return *j.Status != "dead" && *j.TaskGroups[0].ReschedulePolicy.Unlimited && s.Meta("template-20")["rockpool_revived"] != "" && s.Meta("template-20")["prewarmingPoolSize"] == "1"
	})
	if *s.Job("template-30").Status != "dead" {
		t.Error("a job that was stopped was registered anew")
	}
}

func TestOverTLSWithACertificateOfOurOwn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, err := certs.CreateCA("", time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, r certs.Request) certs.Files {
		p, err := certs.Create(ca, r, time.Now())
		f := certs.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, name+".pem"), Key: filepath.Join(dir, name+"-key.pem")}
		for path, data := range map[string][]byte{f.CA: ca.Cert, f.Cert: p.Cert, f.Key: p.Key} {
			err = errors.Join(err, os.WriteFile(path, data, 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	server := write("server", certs.Request{Role: certs.Server})
	pair, err := tls.LoadX509KeyPair(server.Cert, server.Key)
	if err != nil {
		t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(ca.Cert)
	s := standin.New(t, standin.Options{TLS: &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trusted}})
	mine := write("cli", certs.Request{Role: certs.CLI})
	p := serve(t, s, func(c *config.Config) {
		c.Nomad.TLS = config.TLS{Active: true, CAFile: mine.CA, CertFile: mine.Cert, KeyFile: mine.Key}
		c.Nomad.TLSServerName, c.Nomad.Region = "server.global.nomad", "global"
	}).ready("1", 1)
	p.cycle()

	log, err := logging.New(t.Output(), "debug", logging.Text)
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]nomad.Options{
		"no authority": {CAFile: server.Cert + ".none"}, "no PEM": {CAFile: server.Key}, "a key that is none": {CAFile: mine.CA, CertFile: mine.Cert, KeyFile: mine.CA},
	} {
		o.Address = s.URL
		if _, err := nomad.New(o, log); err == nil || !strings.Contains(err.Error(), "nomad.tls") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
