package httpapi

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/packed"
	"rockpool/internal/orchestrator/state"
)

const writerOfB = "namespace \"b\" {\npolicy = \"write\"\nvariables {\npath \"*\" {\ncapabilities = [\"write\", \"read\", \"list\", \"destroy\"]\n}\n}\n}"

// An operator of one namespace asks every route about another one in every way that a query can be written, and neither sees nor changes anything of it.
func TestAnOperatorOfOneNamespaceReachesNoOther(t *testing.T) {
	w := newWorld(t)
	if rec := w.ask("PUT", "/v1/var/x/y?namespace=a", w.management(t), `{"Items":{"k":"hidden-value"}}`); rec.Code != 200 {
		t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	token := w.token(t, writerOfB)
	whole := map[string]string{
		"job.register": `{"Job":{"ID":"j","Name":"j","Type":"batch","Namespace":"a","TaskGroups":[]}}`, "job.dispatch": "{}", "job.revert": `{"JobVersion":0}`,
		"job.scale": `{"Count":5,"Target":{"Group":"g"}}`, "job.plan": `{"Job":{"ID":"j","Namespace":"a","Type":"batch"}}`, "job.stable": `{"JobVersion":0,"Stable":true}`,
		"variable.put": `{"Namespace":"a","Path":"x/y","Items":{"k":"stolen"}}`, "search.prefix": `{"Namespace":"a","Context":"all","Prefix":""}`,
		"search.fuzzy": `{"Namespace":"a","Context":"all","Text":"xy"}`, "deployment.pause": `{"DeploymentID":"` + w.deploy + `","Pause":true}`,
		"deployment.health": `{"DeploymentID":"` + w.deploy + `","HealthyAllocationIDs":["` + w.alloc + `"]}`,
	}
	whole["job.update"], whole["job.validate"] = whole["job.register"], whole["job.register"]
	before := w.store.Index()
	for _, r := range w.table() {
		name := strings.TrimSuffix(strings.TrimSuffix(r.Name, ".put"), ".post")
		if r.Name == "event.stream" || needs[name] == toPublic || needs[name] == toByNode || strings.HasPrefix(name, "acl.") || strings.HasPrefix(name, "namespace.") {
			continue // these have tests of their own
		}
		path, _, _ := strings.Cut(w.path(r), "?")
		for _, query := range []string{
			"", "namespace=a", "namespace=*", "namespace=b&namespace=a", "namespace=a&namespace=b", "namespace=b;namespace=a", "Namespace=a&namespace=b", "namespace=b%00a",
			"namespace=b%2Ca", "namespace=../a", "namespace=%2A&prefix=&meta=true", "namespace=b&region=a", "namespace[]=a&namespace=b", "namespace=*&per_page=1000&reverse",
		} {
			rec := w.ask(r.Method, path+"?"+query, token, cmp.Or(whole[name], bodies[name], "{}"))
			body := strings.ReplaceAll(rec.Body.String(), `"x/y"`, "")
			for _, hidden := range []string{`"JobID":"j"`, `"ID":"j"`, `"Namespace":"a"`, "hidden-value", `"TaskGroup":"g"`} {
				if rec.Code == http.StatusOK && strings.Contains(body, hidden) && !echoes(name) {
					t.Errorf("%s %s?%s shows %s: %.300s", r.Method, path, query, hidden, body)
				}
			}
			for ch := range changesOf(w.store.Snapshot(), "a", before) {
				t.Fatalf("%s %s?%s changed %s", r.Method, path, query, ch)
			}
		}
	}
}

// echoes are the routes that show what was asked with.
func echoes(name string) bool { return name == "job.validate" || name == "job.parse" }

// changesOf yields what of a namespace changed after an index.
func changesOf(s *state.Snapshot, namespace string, since uint64) func(func(string) bool) {
	return func(yield func(string) bool) {
		for j := range s.Jobs(nil, namespace, "") {
			if j.ModifyIndex > since && !yield("job "+j.ID) {
				return
			}
		}
		for al := range s.Allocs(nil, "") {
			if al.Namespace == namespace && al.ModifyIndex > since && !yield("allocation "+al.ID) {
				return
			}
		}
		for e := range s.Evals(nil, "") {
			if e.Namespace == namespace && e.ModifyIndex > since && !yield("evaluation "+e.ID) {
				return
			}
		}
		for d := range s.Deployments(nil, "") {
			if d.Namespace == namespace && d.ModifyIndex > since && !yield("deployment "+d.ID) {
				return
			}
		}
		for v := range s.Variables(nil, namespace, "") {
			if v.ModifyIndex > since && !yield("variable "+v.Path) {
				return
			}
		}
	}
}

// A template's rules are those of its namespace as they are now: neither an earlier version nor a template runs what was forbidden since, and a network that a
// task asks for in its old place is one like any other.
func TestNoWayAroundTheRulesOfANamespace(t *testing.T) {
	w := newWorld(t)
	token := w.token(t, writerOfB)
	spec := func(id, driver string, change func(*api.Job)) string {
		j := &api.Job{ID: &id, Name: &id, Type: new("batch"), Namespace: new("b"), TaskGroups: []*api.TaskGroup{{Name: new("g"), Count: new(1), Tasks: []*api.Task{{
			Name: "t", Driver: driver, Config: map[string]any{"command": "true"}, Resources: &api.Resources{CPU: new(1), MemoryMB: new(10)},
		}}}}}
		if change != nil {
			change(j)
		}
		body, err := json.Marshal(map[string]any{"Job": j})
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	template := func(j *api.Job) { j.ParameterizedJob = &api.ParameterizedJobConfig{} }
	periodic := func(j *api.Job) { j.Periodic = &api.PeriodicConfig{Enabled: new(true), Spec: new("0 0 1 1 *")} }
	for _, job := range []string{spec("r", "raw_exec", nil), spec("r", "exec", nil), spec("p", "raw_exec", template), spec("c", "raw_exec", periodic)} {
		if rec := w.ask("PUT", "/v1/jobs", token, job); rec.Code != 200 {
			t.Fatalf("%d %s", rec.Code, rec.Body)
		}
	}
	w.must(t, &command.NamespaceUpsert{Namespace: &model.Namespace{Name: "b", DisabledDrivers: []string{"raw_exec"}, DeniedNetworks: []string{"host"}, DeniedPools: []string{"p"}}})
	w.must(t, &command.NodePoolUpsert{Pool: &model.NodePool{Name: "p"}})
	old := func(j *api.Job) {
		j.TaskGroups[0].Tasks[0].Resources.Networks = []*api.NetworkResource{{Mode: "host", ReservedPorts: []api.Port{{Label: "ssh", Value: 22}}}}
	}
	for _, c := range []struct{ what, path, body string }{
		{"register", "/v1/jobs", spec("n", "raw_exec", nil)},
		{"register with another namespace in the body", "/v1/jobs?namespace=b", strings.ReplaceAll(spec("n", "raw_exec", nil), `"Namespace":"b"`, `"Namespace":"default"`)},
		{"plan", "/v1/job/n/plan?namespace=b", spec("n", "raw_exec", nil)},
		{"update", "/v1/job/r?namespace=b", spec("r", "raw_exec", nil)},
		{"revert", "/v1/job/r/revert?namespace=b", `{"JobVersion":0}`},
		{"dispatch", "/v1/job/p/dispatch?namespace=b", `{}`},
		{"force", "/v1/job/c/periodic/force?namespace=b", `{}`},
		{"a task's own network", "/v1/jobs", spec("n", "exec", old)},
		{"a pool", "/v1/jobs", spec("n", "exec", func(j *api.Job) { j.NodePool = new("p") })},
	} {
		rec := w.ask("PUT", c.path, token, c.body)
		if rec.Code == 200 || !strings.Contains(rec.Body.String(), "not allowed in namespace") {
			t.Errorf("%s: %d %s", c.what, rec.Code, rec.Body)
		}
	}
}

// Jobs that nobody would write who means well are refused at once, with a word of why.
func TestJobsThatMeanHarmAreRefused(t *testing.T) {
	w := newWorld(t)
	token := w.management(t)
	big := 1 << 62
	many := func(n int, one string) string { return "[" + strings.TrimSuffix(strings.Repeat(one+",", n), ",") + "]" }
	task := `{"Name":"t","Driver":"mock"}`
	group := func(more string) string {
		return `{"Job":{"ID":"x","Name":"x","Type":"batch","TaskGroups":[{"Name":"g","Tasks":[` + task + `]` + more + `}]}}`
	}
	of := func(more string) string {
		return `{"Job":{"ID":"x","Name":"x","Type":"batch","TaskGroups":[{"Name":"g","Tasks":[{"Name":"t","Driver":"mock"` + more + `}]}]}}`
	}
	whole := func(more string) string {
		return `{"Job":{"ID":"x","Name":"x","Type":"batch","TaskGroups":[{"Name":"g","Tasks":[` + task + `]}]` + more + `}}`
	}
	for _, c := range []struct{ name, body, want string }{
		{"a count of 2^31", group(`,"Count":2147483648`), "allocations at most"},
		{"a count of 2^62", group(fmt.Sprintf(`,"Count":%d`, big)), "allocations at most"},
		{"counts that overflow together", `{"Job":{"ID":"x","Type":"batch","TaskGroups":` + many(100, `{"Name":"g","Count":999999,"Tasks":[`+task+`]}`) + `}}`, "allocations at most"},
		{"groups without end", `{"Job":{"ID":"x","Type":"batch","TaskGroups":` + many(60_000, `{"Name":"g","Tasks":[{}]}`) + `}}`, "at most 1000 task groups"},
		{"tasks without end", `{"Job":{"ID":"x","Type":"batch","TaskGroups":[{"Name":"g","Tasks":` + many(60_000, task) + `}]}}`, "at most 200 tasks"},
		{"cpu that overflows", of(fmt.Sprintf(`,"Resources":{"CPU":%d,"MemoryMB":10}`, big)), "MHz of CPU"},
		{"memory that overflows", of(fmt.Sprintf(`,"Resources":{"CPU":1,"MemoryMB":%d}`, big)), "MB of memory"},
		{"memory_max that overflows", of(fmt.Sprintf(`,"Resources":{"CPU":1,"MemoryMB":10,"MemoryMaxMB":%d}`, big)), "MB of memory_max"},
		{"disk that overflows", group(fmt.Sprintf(`,"EphemeralDisk":{"SizeMB":%d}`, big)), "ephemeral disk"},
		{"negative cpu", of(`,"Resources":{"CPU":-5,"MemoryMB":10}`), "minimum CPU"},
		{"negative memory", of(`,"Resources":{"CPU":5,"MemoryMB":-10}`), "minimum MemoryMB"},
		{"devices that overflow", of(`,"Resources":{"CPU":1,"MemoryMB":10,"Devices":[{"Name":"gpu","Count":18446744073709551615}]}`), "at most 1024 devices"},
		{"a task called ..", strings.ReplaceAll(group(""), `"Name":"t"`, `"Name":".."`), "directory of its allocation"},
		{"a task called .", strings.ReplaceAll(group(""), `"Name":"t"`, `"Name":"."`), "directory of its allocation"},
		{"a task called alloc", strings.ReplaceAll(group(""), `"Name":"t"`, `"Name":"alloc"`), "directory of its allocation"},
		{"a task with a slash", strings.ReplaceAll(group(""), `"Name":"t"`, `"Name":"../t"`), "slashes"},
		{"a name of two lines", strings.ReplaceAll(group(""), `"ID":"x"`, `"ID":"x\nlevel=error"`), "control character"},
		{"a terminal's escape", strings.ReplaceAll(group(""), `"Name":"g"`, `"Name":"\u001b]0;x\u0007"`), "control character"},
		{"an endless name", strings.ReplaceAll(group(""), `"ID":"x"`, `"ID":"`+strings.Repeat("x", 1<<20)+`"`), "longer than"},
		{"a task that does not stop", of(fmt.Sprintf(`,"KillTimeout":%d`, 24*time.Hour)), "kill_timeout is at most"},
		{"a task that does not stop, for centuries", of(fmt.Sprintf(`,"KillTimeout":%d`, big)), "kill_timeout is at most"},
		{"a group that does not stop", group(fmt.Sprintf(`,"ShutdownDelay":%d`, big)), "shutdown_delay is at most"},
		{"a delay beyond time", group(fmt.Sprintf(`,"ReschedulePolicy":{"Attempts":0,"Unlimited":true,"DelayFunction":"fibonacci","Delay":%d,"MaxDelay":%d}`, big, big)), "a duration is at most"},
		{"constraints without end", whole(`,"Constraints":` + many(10_000, `{"LTarget":"a","RTarget":"b","Operand":"="}`)), "constraints, affinities and spreads"},
		{"a regular expression that explodes", whole(`,"Constraints":[{"LTarget":"${attr.x}","RTarget":"((((a{100}){100}){100}){100})","Operand":"regexp"}]`), "failed to compile"},
		{"a regular expression without end", whole(`,"Constraints":[{"LTarget":"${attr.x}","RTarget":"` + strings.Repeat("a|b", 1<<20) + `","Operand":"regexp"}]`), "longer than"},
		{"ports without end", group(`,"Networks":[{"DynamicPorts":` + many(10_000, `{"Label":"a"}`) + `}]`), "at most 1000 ports"},
		{"a payload's file outside", of(`,"DispatchPayload":{"File":"../../../etc/passwd"}`), "no path below"},
		{"a template outside", of(`,"Templates":[{"DestPath":"../../x","EmbeddedTmpl":"x"}]`), "no path below"},
		{"a template that is a program", of(`,"Templates":[{"DestPath":"local/x","EmbeddedTmpl":"{{ range 1000000000 }}{{ end }}"}]`), "is not offered"},
		{"a template from the node's files", of(`,"Templates":[{"DestPath":"local/x","SourcePath":"/etc/shadow"}]`), "source is not supported"},
		{"a job for all namespaces", whole(`,"Namespace":"*"`), "must be in a namespace"},
		{"a job of no namespace", whole(`,"Namespace":"none"`), "nonexistent namespace"},
		{"a dispatched job", whole(`,"Dispatched":true`), "Dispatched"},
		{"priority", whole(`,"Priority":2147483647`), "between [1, 100]"},
		{"cron without end", whole(`,"Periodic":{"Specs":` + many(1000, `"* * * * *"`) + `}`), "At most 32"},
		{"a time zone that is a file", whole(`,"Periodic":{"Spec":"* * * * *","TimeZone":"../../etc/passwd"}`), "time zone"},
		{"depth", `{"Job":` + strings.Repeat(`{"Meta":`, 200_000) + `}`, ""},
		{"depth of a configuration", of(`,"Config":{"a":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`), ""},
		{"null where objects belong", `{"Job":{"ID":"x","TaskGroups":[null]}}`, "null"},
		{"nulls deeper", group(`,"Networks":[null]`), "null"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			at := time.Now()
			rec := w.ask("PUT", "/v1/jobs", token, c.body)
			runtime.ReadMemStats(&after)
			if rec.Code < 400 || !strings.Contains(rec.Body.String(), c.want) {
				t.Errorf("%d %.300s, want %q", rec.Code, rec.Body, c.want)
			}
			if took := time.Since(at); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > 1<<30 {
				t.Errorf("it took %d MB", got>>20)
			}
			if rec.Body.Len() > 64<<10 {
				t.Errorf("the answer has %d bytes", rec.Body.Len())
			}
		})
	}
	if n := len(w.store.Snapshot().Job(nil, "a", "j").TaskGroups); n != 1 {
		t.Errorf("the job that is there has %d groups", n)
	}
}

// A node that somebody has taken over says what it likes, of itself and of others.
func TestWhatANodeClaims(t *testing.T) {
	w := newWorld(t)
	put := func(id, op string, body any, headers ...string) *httptest.ResponseRecorder {
		t.Helper()
		data, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		return w.ask("PUT", "/v1/internal/node/"+id+"/"+op, "", string(data), append([]string{secretHeader, nodeSecret}, headers...)...)
	}
	self := func(change func(*model.Node)) *model.Node {
		n := *w.store.Snapshot().Node(nil, w.node)
		change(&n)
		return &n
	}
	other := &model.Node{ID: ident.New(), SecretID: "other", Status: model.NodeReady, NodePool: "default"}
	w.must(t, &command.NodeRegister{Node: other})
	for name, n := range map[string]*model.Node{
		"another pool":        self(func(n *model.Node) { n.NodePool = "gpu" }),
		"the pool of all":     self(func(n *model.Node) { n.NodePool = "all" }),
		"a pool that is none": self(func(n *model.Node) { n.NodePool = "a b\n" }),
		"another name":        self(func(n *model.Node) { n.Name = "victim" }),
		"another secret":      self(func(n *model.Node) { n.SecretID = "new" }),
		"another id":          self(func(n *model.Node) { n.ID = other.ID }),
		"a status of servers": self(func(n *model.Node) { n.Status = model.NodeDisconnected }),
		"a status of nobody":  self(func(n *model.Node) { n.Status = "king" }),
		"room without end":    self(func(n *model.Node) { n.Resources.MemoryMB = 1 << 62 }),
		"room below nothing":  self(func(n *model.Node) { n.Reserved.CPU = -1 << 40 }),
	} {
		if rec := put(w.node, "register", n); rec.Code < 400 || rec.Code >= 500 {
			t.Errorf("%s: %d %s", name, rec.Code, rec.Body)
		}
	}
	if rec := put(w.node, "register", self(func(n *model.Node) { n.NodePool = "gpu" }), "X-Nomad-Token", w.management(t)); rec.Code != 200 {
		t.Errorf("another pool, with a token to join with: %d %s", rec.Code, rec.Body)
	}
	if rec := put(other.ID, "register", other); rec.Code != http.StatusForbidden {
		t.Errorf("as another node: %d %s", rec.Code, rec.Body)
	}

	// Reports about an allocation of another node change nothing, and make no evaluation of its job.
	foreign := ident.New()
	at := w.store.Snapshot().Job(nil, "a", "j")
	w.must(t, &command.PlanResults{Plans: []*state.Placement{{EvalID: w.eval, Namespace: "a", JobID: "j", JobCreateIndex: at.CreateIndex, JobModifyIndex: at.JobModifyIndex,
		Place: []*model.Allocation{{ID: foreign, Namespace: "a", EvalID: w.eval, NodeID: other.ID, JobID: "j", TaskGroup: "g", DesiredStatus: "run", ClientStatus: "running"}}}}})
	before := w.store.Index()
	for _, u := range []*model.AllocUpdate{
		{ID: foreign, ClientStatus: "failed"}, {ID: foreign, ClientStatus: "complete"}, {ID: ident.New(), ClientStatus: "failed"},
	} {
		if rec := put(w.node, "allocations", []*model.AllocUpdate{u}); rec.Code != 200 {
			t.Errorf("%d %s", rec.Code, rec.Body)
		}
	}
	if rec := put(w.node, "services", []*model.AllocServices{{AllocID: foreign, Services: []*model.ServiceRegistration{{ID: "s", ServiceName: "s", Address: "10.0.0.1"}}}}); rec.Code != 200 {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	s := w.store.Snapshot()
	if al := s.Alloc(nil, foreign); al.ClientStatus != "running" || al.ModifyIndex > before {
		t.Errorf("it is %+v", al)
	}
	for e := range s.Evals(nil, "") {
		if e.ID != w.eval && e.ModifyIndex > before {
			t.Errorf("there is an evaluation: %+v", e)
		}
	}
	for v := range s.Services(nil, "*") {
		t.Errorf("there is a service: %+v", v)
	}

	// Of its own it says nothing that is yet to come, nothing that servers decide, and nothing without end.
	for _, u := range []*model.AllocUpdate{
		nil, {ID: w.alloc, ClientStatus: "lost"}, {ID: w.alloc, ClientStatus: "unknown"}, {ID: w.alloc, ClientStatus: "evil"}, {ID: w.alloc},
		{ID: w.alloc, ClientStatus: "running", TaskStates: map[string]*model.TaskState{"t": nil}},
		{ID: w.alloc, ClientStatus: "running", TaskStates: map[string]*model.TaskState{"t": {Events: []*model.TaskEvent{nil}}}},
	} {
		if rec := put(w.node, "allocations", []*model.AllocUpdate{u}); rec.Code != http.StatusBadRequest {
			t.Errorf("%+v: %d %s", u, rec.Code, rec.Body)
		}
	}
	// Neither in many details, nor in one text that stands for thousands once it is packed.
	many := map[string]string{}
	for i := range 1000 {
		many[fmt.Sprint(i)] = "x"
	}
	if rec := put(w.node, "allocations", []*model.AllocUpdate{{ID: w.alloc, ClientStatus: "running", TaskStates: map[string]*model.TaskState{"t": {Events: []*model.TaskEvent{{Details: many}}}}}}); rec.Code != http.StatusBadRequest {
		t.Errorf("a thousand details: %d %.200s", rec.Code, rec.Body)
	}
	same, tasks := map[string]string{}, map[string]*model.TaskState{}
	for i := range 60 {
		same[fmt.Sprint(i)] = strings.Repeat("y", 500)
	}
	for i := range 900 {
		tasks[fmt.Sprint(i)] = &model.TaskState{State: "running", Events: []*model.TaskEvent{{Details: same}}}
	}
	again := make([]*model.AllocUpdate, 40_000)
	for i := range again {
		again[i] = &model.AllocUpdate{ID: w.alloc, ClientStatus: "running", ClientDescription: strings.Repeat("z", 500)}
	}
	for what, updates := range map[string][]*model.AllocUpdate{"details": {{ID: w.alloc, ClientStatus: "running", TaskStates: tasks}}, "descriptions": again} {
		small, err := packed.Reports(updates)
		if err != nil || len(small) > 2<<20 {
			t.Fatalf("%s: %d bytes, %v", what, len(small), err)
		}
		if rec := put(w.node, "allocations", small); rec.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("20 MB of %s in %d bytes: %d %.200s", what, len(small), rec.Code, rec.Body)
		}
	}
	const never = int64(1) << 62
	events := make([]*model.TaskEvent, 1000)
	for i := range events {
		events[i] = &model.TaskEvent{Type: "Driver", Time: never, DisplayMessage: strings.Repeat("é", 2500), Details: map[string]string{"a": strings.Repeat("x", 8_000)}}
	}
	if rec := put(w.node, "allocations", []*model.AllocUpdate{{ID: w.alloc, ClientStatus: "running", ModifyTime: never, Health: &model.AllocHealth{Timestamp: never},
		TaskStates: map[string]*model.TaskState{"t": {State: "running", StartedAt: never, FinishedAt: never, LastRestart: never, Events: events}}}}); rec.Code != 200 {
		t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	al, now := w.store.Snapshot().Alloc(nil, w.alloc), time.Now().UnixNano()
	ts := al.TaskStates["t"]
	if al.ModifyTime > now || ts.StartedAt > now || ts.FinishedAt > now || ts.LastRestart > now || ts.Events[0].Time > now {
		t.Errorf("kept is a time to come: %+v %+v", al, ts)
	}
	if kept, _ := json.Marshal(ts); len(ts.Events) != keptEvents || len(kept) > 200<<10 {
		t.Errorf("kept are %d events, %d bytes", len(ts.Events), len(kept))
	}
}

// Of many that register the same new id at once one is taken, and its secret is the one that counts.
func TestOneOfManyBecomesTheNode(t *testing.T) {
	w := newWorld(t)
	token, id := w.management(t), ident.New()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var won []string
	for range 20 {
		wg.Go(func() {
			secret := ident.New()
			body, _ := json.Marshal(&model.Node{ID: id, SecretID: secret, NodePool: "default"})
			if rec := w.ask("PUT", "/v1/internal/node/"+id+"/register", token, string(body), secretHeader, secret); rec.Code == 200 {
				mu.Lock()
				won = append(won, secret)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if n := w.store.Snapshot().Node(nil, id); len(won) != 1 || n.SecretID != won[0] {
		t.Errorf("%d were told that they are the node", len(won))
	}
}

// A node that was purged is told nothing more on the stream that it holds.
func TestAPurgedNodeIsToldNothing(t *testing.T) {
	w := newWorld(t)
	rec := &lines{header: http.Header{}, wrote: make(chan string, 100)}
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/v1/internal/node/"+w.node+"/watch", nil)
	r.Header.Set(secretHeader, nodeSecret)
	var wg sync.WaitGroup
	wg.Go(func() { w.ServeHTTP(rec, r) })
	<-rec.wrote
	w.must(t, &command.NodeDeregister{NodeIDs: []string{w.node}})
	w.must(t, &command.NodeRegister{Node: &model.Node{ID: w.node, SecretID: "its successor's", Status: model.NodeReady, NodePool: "p"}})
	at := w.store.Snapshot().Job(nil, "a", "j")
	w.must(t, &command.PlanResults{Plans: []*state.Placement{{EvalID: w.eval, Namespace: "a", JobID: "j", JobCreateIndex: at.CreateIndex, JobModifyIndex: at.JobModifyIndex,
		Place: []*model.Allocation{{ID: ident.New(), Namespace: "a", EvalID: w.eval, NodeID: w.node, JobID: "j", TaskGroup: "g", DesiredStatus: "run", ClientStatus: "pending"}}}}})
	wg.Wait()
	select {
	case line := <-rec.wrote:
		t.Errorf("it was told %s", line)
	default:
	}
}

// The purge of a node ends the connection that servers reach it over.
func TestAPurgedNodeIsReachedNoMore(t *testing.T) {
	w := newWorld(t)
	here, there := net.Pipe()
	defer here.Close()
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.nodes.Serve(t.Context(), w.node, there) })
	for len(w.nodes.Nodes()) == 0 {
		runtime.Gosched()
	}
	w.must(t, &command.NodeDeregister{NodeIDs: []string{w.node}})
	wg.Wait()
	if n := w.nodes.Nodes(); len(n) != 0 {
		t.Errorf("reachable are %v", n)
	}
}

// A job as large as one may be costs a server no more than a moment, also where there is no room for any of it.
func TestTheLargestJobsAreDecidedQuickly(t *testing.T) {
	w := newWorld(t)
	token := w.management(t)
	groups := func(n, count int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,{"Name":"g%d","Count":%d,"Tasks":[{"Name":"t","Driver":"mock"}]}`, i, count)
		}
		return `{"Job":{"ID":"big","Name":"big","Type":"service","Namespace":"a","TaskGroups":[` + b.String()[1:] + `]},"Diff":true}`
	}
	for name, body := range map[string]string{"one group": groups(1, 100_000), "all groups": groups(1000, 100)} {
		for _, path := range []string{"/v1/job/big/plan", "/v1/jobs"} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			at := time.Now()
			rec := w.ask("PUT", path+"?namespace=a", token, body)
			runtime.ReadMemStats(&after)
			t.Logf("%s, %s: %d, %v, %d MB", name, path, rec.Code, time.Since(at), (after.TotalAlloc-before.TotalAlloc)>>20)
			if rec.Code != 200 || time.Since(at) > 30*time.Second || after.TotalAlloc-before.TotalAlloc > 1<<30 {
				t.Errorf("%s, %s: %d %.200s after %v and %d MB", name, path, rec.Code, rec.Body, time.Since(at), (after.TotalAlloc-before.TotalAlloc)>>20)
			}
		}
	}
}

// Plans that are only shown wait for one another, so that many at once take no more memory than a few.
func TestPlansWaitForOneAnother(t *testing.T) {
	w := newWorld(t)
	token := w.management(t)
	for range maxPlans {
		w.planning <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := httptest.NewRequestWithContext(ctx, "PUT", "/v1/job/x/plan?namespace=a", strings.NewReader(fullTemplate))
	r.Header.Set("X-Nomad-Token", token)
	cancel()
	rec := httptest.NewRecorder()
	w.ServeHTTP(rec, r)
	if rec.Code != http.StatusTooManyRequests {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	<-w.planning
	if rec := w.ask("PUT", "/v1/job/y/plan?namespace=a", token, fullTemplate); rec.Code != 200 {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

// A page that a browser shows changes nothing on a server that asks nobody for a token; programs, and pages of the server itself, do.
func TestPagesOfOthersChangeNothing(t *testing.T) {
	w := newWorld(t)
	w.cfg.ACL = false
	for _, c := range []struct {
		method, path, body string
		headers            []string
		ok                 bool
	}{
		{"POST", "/v1/jobs", fullTemplate, []string{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site", "Content-Type", "text/plain"}, false},
		{"POST", "/v1/jobs", fullTemplate, []string{"Origin", "https://evil.example", "Content-Type", "text/plain"}, false},
		{"POST", "/v1/jobs", fullTemplate, []string{"Origin", "null"}, false},
		{"PUT", "/v1/node/" + w.node + "/purge", "{}", []string{"Sec-Fetch-Site", "same-site"}, false},
		{"DELETE", "/v1/job/j?namespace=a", "", []string{"Sec-Fetch-Site", "cross-site"}, false},
		{"GET", "/v1/client/allocation/" + w.alloc + "/exec?task=t&command=[%22id%22]", "", []string{
			"Origin", "https://evil.example", "Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==",
		}, false},
		{"POST", "/v1/jobs", fullTemplate, nil, true},
		{"POST", "/v1/jobs", fullTemplate, []string{"Origin", "http://example.com", "Sec-Fetch-Site", "same-origin"}, true},
		{"GET", "/v1/jobs", "", []string{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"}, true}, // which it cannot read
	} {
		rec := w.ask(c.method, c.path, "", c.body, c.headers...)
		if (rec.Code == 200) != c.ok || rec.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s %s %q: %d %.200s", c.method, c.path, c.headers, rec.Code, rec.Body)
		}
	}
}

// lines is a response that can be read while it is written.
type lines struct {
	header http.Header
	wrote  chan string
}

func (l *lines) Header() http.Header         { return l.header }
func (l *lines) WriteHeader(int)             {}
func (l *lines) Flush()                      {}
func (l *lines) Write(p []byte) (int, error) { l.wrote <- string(p); return len(p), nil }

// Nomad's clients send the caller's token to the address that a node gives of itself.
func TestNobodyIsSentToANodesOwnAddress(t *testing.T) {
	w := newWorld(t)
	n := *w.store.Snapshot().Node(nil, w.node)
	n.HTTPAddr = "evil.example:4646"
	w.must(t, &command.NodeRegister{Node: &n})
	token := w.management(t)
	var got api.Node
	if rec := w.ask("GET", "/v1/node/"+w.node, token, ""); json.Unmarshal(rec.Body.Bytes(), &got) != nil || got.ID != w.node || got.HTTPAddr != "" {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

// A filter costs no more than a moment, however it is written.
func TestFiltersAreBounded(t *testing.T) {
	w := newWorld(t)
	token := w.management(t)
	for _, f := range []string{
		strings.Repeat("(", 30) + "ID==a" + strings.Repeat(")", 30), strings.Repeat("(", 100_000), strings.Repeat("not ", 100_000) + "ID==a", strings.Repeat("ID==a or ", 50_000) + "ID==b",
		`ID matches "` + strings.Repeat("(a{1000}", 1000) + strings.Repeat(")", 1000) + `"`, `ID matches "((((a{100}){100}){100}){100})"`, `ID["` + strings.Repeat("a.", 10_000) + `"]==b`,
	} {
		at := time.Now()
		rec := w.ask("GET", "/v1/jobs?namespace=a&filter="+strings.NewReplacer(" ", "%20", "\"", "%22", "(", "%28", "{", "%7B", "}", "%7D", "[", "%5B", "]", "%5D").Replace(f), token, "")
		if rec.Code != http.StatusBadRequest || !strings.Contains(rec.Body.String(), "failed to read filter expression") || rec.Body.Len() > 16<<10 {
			t.Errorf("%.40s: %d %.200s (%d bytes)", f, rec.Code, rec.Body, rec.Body.Len())
		}
		if took := time.Since(at); took > 20*time.Second {
			t.Errorf("%.40s: took %v", f, took)
		}
	}
}
