package cli_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rockpool/internal/orchestrator/cli"
)

// fake answers by "METHOD path" and remembers what it was asked. Several answers are given one after the other, the last for ever.
type fake struct {
	mu      sync.Mutex
	answers map[string][]string
	asked   []string
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	defer f.mu.Unlock()
	key := r.Method + " " + r.URL.Path
	line := key
	q := r.URL.Query()
	for _, k := range []string{"index", "wait"} {
		q.Del(k)
	}
	if len(q) > 0 {
		line += "?" + q.Encode()
	}
	if len(body) > 0 {
		line += " " + strings.TrimSpace(string(body))
	}
	f.asked = append(f.asked, line)
	w.Header().Set("X-Nomad-Index", "7")
	list, ok := f.answers[key]
	if !ok {
		http.Error(w, "not supported by Rockpool", http.StatusNotImplemented)
		return
	}
	if len(list) > 1 {
		f.answers[key] = list[1:]
	}
	if text, status, isError := strings.Cut(list[0], "!"); isError && text == "" {
		code, message, _ := strings.Cut(status, " ")
		n := 500
		_, _ = fmt.Sscan(code, &n)
		http.Error(w, message, n)
		return
	}
	_, _ = io.WriteString(w, list[0])
}

// run runs one command line against a fake and returns its exit code and what it wrote.
func run(t *testing.T, f *fake, in string, line ...string) (code int, out, text string) {
	t.Helper()
	s := httptest.NewServer(f)
	defer s.Close()
	for _, c := range cli.Table() {
		words := strings.Fields(c.Path)
		if len(line) < len(words) || !slices.Equal(words, line[:len(words)]) {
			continue
		}
		args := line[len(words):]
		if c.Remote {
			args = append([]string{"--address", s.URL}, args...)
		}
		var stdout, stderr bytes.Buffer
		err := c.Parse(t.Context(), cli.Env{In: strings.NewReader(in), Out: &stdout, Err: &stderr, Poll: time.Microsecond}, args...)
		if err != nil {
			text = err.Error()
		}
		return cli.Code(err), stdout.String() + stderr.String(), text
	}
	t.Fatalf("there is no command %q", line)
	return 0, "", ""
}

const (
	node  = "11111111-2222-3333-4444-555555555555"
	alloc = "aaaaaaaa-2222-3333-4444-555555555555"
	eval  = "eeeeeeee-2222-3333-4444-555555555555"
)

var (
	oneNode  = []string{`[{"ID":"` + node + `","Name":"n","Status":"ready"}]`}
	oneJob   = []string{`[{"ID":"j","Namespace":"default","JobSummary":{}}]`}
	job      = []string{`{"ID":"j","Name":"j","Namespace":"default","Version":2}`}
	oneAlloc = []string{`[{"ID":"` + alloc + `","Namespace":"default","ClientStatus":"running"}]`}
	anAlloc  = []string{`{"ID":"` + alloc + `","Namespace":"default","TaskGroup":"g","NodeID":"` + node + `","Job":{"ID":"j","TaskGroups":[{"Name":"g","Tasks":[{"Name":"t"}]}]}}`}
)

func TestEachCommandAsksForWhatItSays(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	hcl, asJSON := file("j.hcl", "job \"j\" {}"), file("j.json", `{"Job":{"ID":"j","Name":"j"}}`)
	vars, secret := file("v.hcl", "a = 1\n"), file("secret", "s3cret\n")
	for _, c := range []struct {
		line    string
		in      string
		answers map[string][]string
		asked   []string // each must begin so
		code    int
		want    string // in what was written, or in the error
	}{
		{"job run --detach --var say=x\"${y} --var list=[1] --var-file " + vars + " " + hcl, "", map[string][]string{
			"PUT /v1/jobs/parse": job, "PUT /v1/jobs": {`{"EvalID":"` + eval + `","Warnings":"careful"}`},
		}, []string{`PUT /v1/jobs/parse {"JobHCL":"job \"j\" {}","Variables":"a = 1\nlist = [1]\nsay = \"x\\\"$${y}\"\n","Canonicalize":false}`, `PUT /v1/jobs {"Submission":{"Source":"job \"j\" {}","Format":"hcl2","VariableFlags":{"list":"[1]"`}, 0, "careful"},
		{"job run --detach --check-index 5 --json -", `{"ID":"j"}`, map[string][]string{"PUT /v1/jobs": {`{"EvalID":"e"}`}}, []string{`PUT /v1/jobs {"Submission":{"Source":"{\"ID\":\"j\"}","Format":"json"`}, 0, "registered"},
		{"job run " + hcl, "", map[string][]string{"PUT /v1/jobs/parse": {"!400 job.hcl:1,2: unknown block"}}, []string{"PUT /v1/jobs/parse"}, 1, hcl + ":1,2: unknown block"},
		{"job run --json " + asJSON, "", map[string][]string{"PUT /v1/jobs": {`{"EvalID":""}`}}, []string{"PUT /v1/jobs"}, 0, "starts nothing by itself"},
		{"job validate --json " + asJSON, "", map[string][]string{"PUT /v1/validate/job": {`{"ValidationErrors":["Missing job task groups"],"Error":"1 error"}`}}, []string{"PUT /v1/validate/job"}, 1, "Missing job task groups"},
		{"job plan --json " + asJSON, "", map[string][]string{"PUT /v1/job/j/plan": {`{"JobModifyIndex":9,"Annotations":{"DesiredTGUpdates":{"g":{"Place":2}}},"Diff":{"Type":"Added","ID":"j"}}`}}, []string{`PUT /v1/job/j/plan {"Job":{`}, 1, "2 create"},
		{"job plan --json " + asJSON, "", map[string][]string{"PUT /v1/job/j/plan": {`{"Annotations":{"DesiredTGUpdates":{"g":{"Ignore":2}}}}`}}, []string{"PUT /v1/job/j/plan"}, 0, "2 leave"},
		{"job plan --json " + asJSON, "", nil, []string{"PUT /v1/job/j/plan"}, 255, "does not offer it"},
		{"job stop --purge --detach j", "", map[string][]string{"GET /v1/jobs": oneJob, "GET /v1/job/j": job, "DELETE /v1/job/j": {`{"EvalID":"e"}`}}, []string{"GET /v1/jobs?prefix=j", "GET /v1/job/j?namespace=default", "DELETE /v1/job/j?eval_priority=0&global=false&namespace=default&no_shutdown_delay=false&purge=true"}, 0, "stopped"},
		{"job dispatch --detach --meta k=v=w j -", "load", map[string][]string{"PUT /v1/job/j/dispatch": {`{"DispatchedJobID":"j/dispatch-1","EvalID":"e"}`}}, []string{`PUT /v1/job/j/dispatch {"JobID":"j","Payload":"bG9hZA==","Meta":{"k":"v=w"}`}, 0, "j/dispatch-1"},
		{"job history j", "", map[string][]string{"GET /v1/jobs": oneJob, "GET /v1/job/j": job, "GET /v1/job/j/versions": {`{"Versions":[{"ID":"j","Version":2}]}`}}, []string{"GET /v1/jobs", "GET /v1/job/j", "GET /v1/job/j/versions"}, 0, "Version"},
		{"job eval --detach j", "", map[string][]string{"GET /v1/jobs": oneJob, "GET /v1/job/j": job, "PUT /v1/job/j/evaluate": {`{"EvalID":"e"}`}}, []string{"GET", "GET", "PUT /v1/job/j/evaluate?namespace=default"}, 0, "Evaluation e"},
		{"job inspect j", "", map[string][]string{"GET /v1/jobs": oneJob, "GET /v1/job/j": job}, []string{"GET", "GET"}, 0, `"Job": {`},
		{"job status", "", map[string][]string{"GET /v1/jobs": {"[]"}}, []string{"GET /v1/jobs"}, 0, "No running jobs"},
		{"job status nothing", "", map[string][]string{"GET /v1/jobs": {"[]"}}, []string{"GET /v1/jobs"}, 1, "no job whose id begins"},
		{"node status", "", map[string][]string{"GET /v1/nodes": oneNode}, []string{"GET /v1/nodes"}, 0, "11111111"},
		{"node eligibility --disable 1111", "", map[string][]string{"GET /v1/nodes": oneNode, "PUT /v1/node/" + node + "/eligibility": {`{}`}}, []string{"GET /v1/nodes?prefix=1111", `PUT /v1/node/` + node + `/eligibility {"NodeID":"` + node + `","Eligibility":"ineligible"}`}, 0, "ineligible"},
		{"node drain --enable --detach --force -m why 1111", "", map[string][]string{"GET /v1/nodes": oneNode, "PUT /v1/node/" + node + "/drain": {`{}`}}, []string{"GET", `PUT /v1/node/` + node + `/drain {"NodeID":"` + node + `","DrainSpec":{"Deadline":-1,"IgnoreSystemJobs":false},"MarkEligible":false,"Meta":{"message":"why"}}`}, 0, "drain begins"},
		{"node drain --disable 1111", "", map[string][]string{"GET /v1/nodes": oneNode, "PUT /v1/node/" + node + "/drain": {`{}`}}, []string{"GET", `PUT /v1/node/` + node + `/drain {"NodeID":"` + node + `","DrainSpec":null,"MarkEligible":true,"Meta":null}`}, 0, "drain ends"},
		{"node drain 1111", "", nil, nil, 1, "either -enable or -disable"},
		{"alloc stop --detach aaaa", "", map[string][]string{"GET /v1/allocations": oneAlloc, "GET /v1/allocation/" + alloc: anAlloc, "PUT /v1/allocation/" + alloc + "/stop": {`{"EvalID":"e"}`}}, []string{"GET /v1/allocations?namespace=%2A&prefix=aaaa", "GET /v1/allocation/" + alloc + "?namespace=default", "PUT /v1/allocation/" + alloc + "/stop"}, 0, "told to stop"},
		{"alloc signal -s SIGHUP aaaa t", "", map[string][]string{"GET /v1/allocations": oneAlloc, "GET /v1/allocation/" + alloc: anAlloc, "PUT /v1/client/allocation/" + alloc + "/signal": {`{"Index":0}`}}, []string{"GET", "GET", `PUT /v1/client/allocation/` + alloc + `/signal?namespace=default {"Task":"t","Signal":"SIGHUP"}`}, 0, ""},
		{"alloc restart aaaa u", "", map[string][]string{"GET /v1/allocations": oneAlloc, "GET /v1/allocation/" + alloc: anAlloc}, []string{"GET", "GET"}, 1, `no task "u", but: t`},
		{"server members", "", map[string][]string{"GET /v1/agent/members": {`{"Members":[{"Name":"a.global","Addr":"10.0.0.1","Port":4648,"Status":"alive","Tags":{"rpc_addr":"10.0.0.1","port":"4647"}}]}`}, "GET /v1/status/leader": {`"10.0.0.1:4647"`}}, []string{"GET /v1/agent/members", "GET /v1/status/leader"}, 0, "alive   true"},
		{"operator raft list-peers --stale", "", map[string][]string{"GET /v1/operator/raft/configuration": {`{"Servers":[{"ID":"x","Node":"a","Leader":true,"Voter":true}]}`}}, []string{"GET /v1/operator/raft/configuration?stale="}, 0, "leader"},
		{"operator raft remove-peer --peer-id x", "", map[string][]string{"DELETE /v1/operator/raft/peer": {"null"}}, []string{"DELETE /v1/operator/raft/peer?id=x"}, 0, "removed"},
		{"operator raft remove-peer", "", nil, nil, 1, "either -peer-id or -peer-address"},
		{"operator raft transfer-leadership --peer-id x", "", map[string][]string{"PUT /v1/operator/raft/transfer-leadership": {"null"}}, []string{"PUT /v1/operator/raft/transfer-leadership?id=x"}, 0, "goes to x"},
		{"operator autopilot get-config", "", map[string][]string{"GET /v1/operator/autopilot/configuration": {`{"CleanupDeadServers":true,"LastContactThreshold":"200ms","ServerStabilizationTime":"10s"}`}}, []string{"GET /v1/operator/autopilot/configuration"}, 0, "200ms"},
		{"operator autopilot health", "", map[string][]string{"GET /v1/operator/autopilot/health": {`!429 {"Healthy":false,"Servers":[{"Name":"b.global","LastContact":"1s"}]}`}}, []string{"GET /v1/operator/autopilot/health"}, 2, "b.global"},
		{"acl bootstrap " + secret, "", map[string][]string{"PUT /v1/acl/bootstrap": {`{"AccessorID":"a","SecretID":"s3cret"}`}}, []string{`PUT /v1/acl/bootstrap {"BootstrapSecret":"s3cret"}`}, 0, "s3cret"},
		{"namespace apply --description d n", "", map[string][]string{"GET /v1/namespace/n": {`{"Name":"n","Quota":"q"}`}, "PUT /v1/namespace": {"null"}}, []string{"GET /v1/namespace/n", `PUT /v1/namespace {"Name":"n","Description":"d","Quota":"q"`}, 0, "applied"},
		{"namespace apply n", "", map[string][]string{"GET /v1/namespace/n": {"!404 Namespace not found"}, "PUT /v1/namespace": {"null"}}, []string{"GET", `PUT /v1/namespace {"Name":"n"`}, 0, "applied"},
		{"namespace delete n", "", map[string][]string{"DELETE /v1/namespace/n": {"null"}}, []string{"DELETE /v1/namespace/n"}, 0, "removed"},
		{"system gc", "", map[string][]string{"PUT /v1/system/gc": {`{"Index":1}`}}, []string{"PUT /v1/system/gc"}, 0, "collected"},
		{"eval status eeee", "", map[string][]string{"GET /v1/evaluations": {`[{"ID":"` + eval + `"}]`}, "GET /v1/evaluation/" + eval: {`{"ID":"` + eval + `","Status":"blocked","FailedTGAllocs":{"g":{"DimensionExhausted":{"memory":3},"NodesEvaluated":3,"CoalescedFailures":1}}}`}, "GET /v1/evaluation/" + eval + "/allocations": {"[]"}}, []string{"GET", "GET /v1/evaluation/" + eval + "?related=true", "GET"}, 0, "memory on 3 nodes"},
		{"job status", "", map[string][]string{"GET /v1/jobs": {"!403 Permission denied"}}, []string{"GET"}, 1, "-token or NOMAD_TOKEN"},
		{"job status", "", map[string][]string{"GET /v1/jobs": {"!429 too many"}}, []string{"GET"}, 1, "busy"},
		{"job run", "", nil, nil, 1, "usage: orchestrator job run [options] <file>"},
	} {
		t.Run(c.line, func(t *testing.T) {
			f := &fake{answers: c.answers}
			code, out, text := run(t, f, c.in, strings.Fields(c.line)...)
			if code != c.code || !strings.Contains(out+text, c.want) {
				t.Errorf("exit code %d, want %d with %q:\n%s\n%s", code, c.code, c.want, out, text)
			}
			if len(f.asked) != len(c.asked) {
				t.Fatalf("asked was\n%s", strings.Join(f.asked, "\n"))
			}
			for i, want := range c.asked {
				if !strings.HasPrefix(f.asked[i], want) {
					t.Errorf("asked was\n%s\nwant\n%s", f.asked[i], want)
				}
			}
		})
	}
}

// The exit code of "job run" says what came of it, not that it was asked for.
func TestTheExitCodeOfARunIsHonest(t *testing.T) {
	pending, complete := `{"ID":"`+eval+`","Status":"pending"}`, `{"ID":"`+eval+`","Status":"complete"}`
	with := func(status string) string {
		return `[{"ID":"` + alloc + `","TaskGroup":"g","DesiredStatus":"run","ClientStatus":"` + status + `","TaskStates":{"t":{"Failed":true,"Events":[{"DisplayMessage":"Exit Code: 3"}]}}}]`
	}
	deploying := `{"ID":"` + eval + `","Status":"complete","DeploymentID":"d"}`
	for _, c := range []struct {
		name                 string
		eval, allocs, deploy []string
		code                 int
		want                 string
	}{
		{"placed and running", []string{pending, complete}, []string{"[]", with("pending"), with("pending"), with("running")}, nil, 0, "is running"},
		{"placed and done", []string{complete}, []string{with("complete")}, nil, 0, "is complete"},
		{"placed and failed", []string{complete}, []string{with("pending"), with("failed")}, nil, 2, "task t: Exit Code: 3"},
		{"placed and lost", []string{complete}, []string{with("lost")}, nil, 2, "is lost"},
		{"nothing to do", []string{complete}, []string{"[]"}, nil, 0, ""},
		{"no room", []string{`{"ID":"` + eval + `","Status":"complete","BlockedEval":"b","FailedTGAllocs":{"g":{}}}`}, []string{"[]"}, nil, 2, "no node could be looked at"},
		{"an evaluation that failed", []string{`{"ID":"` + eval + `","Status":"failed","StatusDescription":"maximum attempts reached"}`}, []string{"[]"}, nil, 2, "maximum attempts"},
		{"a deployment that succeeds", []string{deploying}, []string{"[]"}, []string{`{"ID":"d","Status":"running"}`, `{"ID":"d","Status":"successful"}`}, 0, "successful"},
		{"a deployment that fails", []string{deploying}, []string{"[]"}, []string{`{"ID":"d","Status":"failed","StatusDescription":"progress deadline"}`}, 2, "progress deadline"},
		{"canaries that wait", []string{deploying}, []string{"[]"}, []string{`{"ID":"d","Status":"running","StatusDescription":"Deployment is running but requires manual promotion","TaskGroups":{"g":{"DesiredCanaries":1,"HealthyAllocs":1}}}`}, 2, "promoted"},
		{"a server that fails", []string{"!500 broken"}, []string{"[]"}, nil, 1, "broken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fake{answers: map[string][]string{
				"PUT /v1/jobs": {`{"EvalID":"` + eval + `"}`}, "GET /v1/evaluation/" + eval: c.eval, "GET /v1/evaluation/" + eval + "/allocations": c.allocs,
			}}
			if c.deploy != nil {
				f.answers["GET /v1/deployment/d"] = c.deploy
			}
			code, out, text := run(t, f, `{"ID":"j"}`, "job", "run", "--json", "-")
			if code != c.code || !strings.Contains(out+text, c.want) {
				t.Errorf("exit code %d, want %d with %q:\n%s\n%s", code, c.code, c.want, out, text)
			}
		})
	}
}

func TestAPrefixOfSeveralIsRefused(t *testing.T) {
	f := &fake{answers: map[string][]string{"GET /v1/nodes": {`[{"ID":"aa1"},{"ID":"aa2"}]`}}}
	if code, _, text := run(t, f, "", "node", "eligibility", "--enable", "aa"); code != 1 || !strings.Contains(text, "aa1, aa2") {
		t.Errorf("exit code %d, %s", code, text)
	}
}

func TestCertificatesAreMadeOnce(t *testing.T) {
	dir := t.TempDir()
	ca := []string{"--ca", filepath.Join(dir, "rockpool-agent-ca.pem"), "--key", filepath.Join(dir, "rockpool-agent-ca-key.pem"), "--dir", dir}
	for _, c := range []struct {
		line []string
		code int
		want string
	}{
		{append([]string{"tls", "cert", "create", "--server"}, ca...), 1, "orchestrator tls ca create"},
		{[]string{"tls", "ca", "create", "--dir", dir}, 0, "rockpool-agent-ca.pem written"},
		{[]string{"tls", "ca", "create", "--dir", dir}, 1, "is there already"},
		{append([]string{"tls", "cert", "create"}, ca...), 1, "say one of"},
		{append([]string{"tls", "cert", "create", "--server", "--additional-ipaddress", "10.0.0.1"}, ca...), 0, "global-server-rockpool.pem written"},
	} {
		if code, out, text := run(t, &fake{}, "", c.line...); code != c.code || !strings.Contains(out+text, c.want) {
			t.Errorf("%q: exit code %d, %s%s", c.line, code, out, text)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "global-server-rockpool-key.pem"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key is %v, %v", info, err)
	}
}

func TestASnapshotIsSavedWholeOrNotAtAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.snap")
	f := &fake{answers: map[string][]string{"GET /v1/operator/snapshot": {"!500 No cluster leader"}}}
	if code, _, _ := run(t, f, "", "operator", "snapshot", "save", path); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a file was left")
	}
}

func TestLogsComeInFrames(t *testing.T) {
	f := &fake{answers: map[string][]string{
		"GET /v1/allocations": oneAlloc, "GET /v1/allocation/" + alloc: anAlloc,
		"GET /v1/client/fs/logs/" + alloc: {`{"Data":"YQpiCmMK"}` + "\n{}\n" + `{"Data":"ZAo="}`},
	}}
	if code, out, text := run(t, f, "", "alloc", "logs", "aaaa"); code != 0 || out != "a\nb\nc\nd\n" {
		t.Errorf("exit code %d, %q, %s", code, out, text)
	}
	if code, out, text := run(t, f, "", "alloc", "logs", "--tail", "-n", "2", "aaaa"); code != 0 || out != "b\nc\nd\n" {
		t.Errorf("exit code %d, %q, %s", code, out, text)
	}
}
