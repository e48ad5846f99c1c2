package httpapi

import (
	"cmp"
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/acl"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/events"
	"rockpool/internal/orchestrator/keyring"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// memoryLog applies each entry at once.
type memoryLog struct {
	mu    sync.Mutex
	store *state.Store
	index uint64
	// poison is what an entry panicked with: one like it on the log would end every server, each time that it starts.
	poison any // guarded by mu
}

func (l *memoryLog) Apply(_ context.Context, entry any) (any, uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() {
		if p := recover(); p != nil {
			l.poison = p
			panic(p)
		}
	}()
	data, err := command.Encode(entry)
	if err != nil {
		return nil, 0, err
	}
	l.index++
	r, err := command.Apply(l.store, l.index, data)
	if err, ok := r.(error); ok {
		return nil, l.index, err
	}
	return r, l.index, err
}

func (l *memoryLog) Barrier(context.Context) error { return nil }
func (l *memoryLog) Leader() (bool, string)        { return true, "one" }
func (l *memoryLog) Stats() map[string]string      { return map[string]string{} }

// world is a leading API over a state with one of each thing in namespace a, on which nothing else happens.
type world struct {
	*API
	log                             *memoryLog
	alloc, eval, node, deploy, role string
}

const nodeSecret = "the node's secret"

func newWorld(t testing.TB) *world {
	t.Helper()
	store := state.New()
	w := &world{log: &memoryLog{store: store}, alloc: ident.New(), eval: ident.New(), node: ident.New(), deploy: ident.New(), role: ident.New()}
	kek, err := keyring.Ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	l := leader.New(leader.Config{Store: store, Log: w.log, Leading: func() { close(ready) }, HeartbeatTTL: time.Hour})
	broker := events.New(events.DefaultLimits, 0)
	store.Observe(broker.Publish)
	w.API = New(Config{Store: store, Log: w.log, Leader: l, Events: broker, Name: "one", Address: "127.0.0.1:4646", Version: "0.0.0", ACL: true, KEK: kek})
	w.SetProcess(Process{Profiles: true})
	job := &model.Job{Namespace: "a", ID: "j", Name: "j", Type: "batch", Priority: 50, NodePool: "default", Stop: true,
		TaskGroups: []*model.TaskGroup{{Name: "g", Tasks: []*model.Task{{Name: "t", Driver: "mock"}}}}}
	w.must(t, &command.QuotaUpsert{Quota: &model.Quota{Name: "q"}})
	w.must(t, &command.NamespaceUpsert{Namespace: &model.Namespace{Name: "a"}})
	w.must(t, &command.NamespaceUpsert{Namespace: &model.Namespace{Name: "b"}})
	w.must(t, &command.NodeRegister{Node: &model.Node{ID: w.node, SecretID: nodeSecret, Status: model.NodeReady, NodePool: "p"}})
	w.must(t, &command.JobRegister{Job: job})
	w.must(t, &command.EvalUpdate{Create: []*model.Evaluation{{ID: w.eval, Namespace: "a", JobID: "j", Status: model.EvalComplete}}})
	w.must(t, &command.JobRegister{Job: func() *model.Job { j := *job; j.Stop = false; return &j }()})
	at := store.Snapshot().Job(nil, "a", "j")
	w.must(t, &command.PlanResults{Plans: []*state.Placement{{EvalID: w.eval, Namespace: "a", JobID: "j", JobCreateIndex: at.CreateIndex, JobModifyIndex: at.JobModifyIndex,
		Place: []*model.Allocation{{ID: w.alloc, Namespace: "a", EvalID: w.eval, NodeID: w.node, JobID: "j", TaskGroup: "g", DesiredStatus: "run", ClientStatus: "running"}},
		// Paused, so that nothing becomes of it by itself.
		Deployment: &model.Deployment{ID: w.deploy, Namespace: "a", JobID: "j", JobCreateIndex: at.CreateIndex, JobVersion: at.Version, Status: model.DeploymentPaused}}}})
	ctx, cancel := context.WithCancel(context.Background())
	leads := make(chan bool, 1)
	leads <- true
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.Run(ctx, leads) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	<-ready
	return w
}

func (w *world) must(t testing.TB, entry any) any {
	t.Helper()
	r, _, err := w.log.Apply(t.Context(), entry)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// token makes a token with these rules.
func (w *world) token(t *testing.T, rules string) string {
	t.Helper()
	secret, name := ident.New(), "p-"+ident.New()
	if _, err := acl.Parse(rules); err != nil {
		t.Fatalf("%s: %v", rules, err)
	}
	w.must(t, &command.ACLPolicyUpsert{Now: time.Now().UnixNano(), Policy: &model.ACLPolicy{Name: name, Rules: rules}})
	w.must(t, &command.ACLTokenUpsert{Now: time.Now().UnixNano(), Fresh: true, Token: &model.ACLToken{
		AccessorID: ident.New(), SecretHash: hashOf(secret), Type: model.TokenClient, Policies: []string{name},
	}})
	return secret
}

func (w *world) management(t testing.TB) string {
	t.Helper()
	secret := ident.New()
	w.must(t, &command.ACLTokenUpsert{Now: time.Now().UnixNano(), Fresh: true, Token: &model.ACLToken{
		AccessorID: ident.New(), SecretHash: hashOf(secret), Type: model.TokenManagement,
	}})
	return secret
}

// ask sends a request that ends at once even where the answer is a stream.
func (w *world) ask(method, path, token, body string, headers ...string) *httptest.ResponseRecorder {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if strings.Contains(path, "/stream") || strings.HasSuffix(path, "/watch") || strings.Contains(path, "/monitor") {
		cancel()
	}
	r := httptest.NewRequestWithContext(ctx, method, path, strings.NewReader(body))
	if token != "" {
		r.Header.Set("X-Nomad-Token", token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	rec := httptest.NewRecorder()
	w.ServeHTTP(rec, r)
	return rec
}

// What a route needs: a block of a policy, or one of these words. %ns stands for the namespace.
const (
	toPublic        = "public"     // nothing
	toByNode        = "node"       // the node's secret
	toManagement    = "management" // a toManagement token
	toAnyToken      = "any-token"
	toSocket        = "websocket" // looked at by the tests of exec
	toListJobs      = "namespace \"%ns\" {\ncapabilities = [\"list-jobs\"]\n}"
	toReadJob       = "namespace \"%ns\" {\ncapabilities = [\"read-job\"]\n}"
	toSubmitJob     = "namespace \"%ns\" {\ncapabilities = [\"submit-job\"]\n}"
	toParseJob      = "namespace \"%ns\" {\ncapabilities = [\"parse-job\"]\n}"
	toDispatchJob   = "namespace \"%ns\" {\ncapabilities = [\"dispatch-job\"]\n}"
	toScaleJob      = "namespace \"%ns\" {\ncapabilities = [\"scale-job\"]\n}"
	toReadScaling   = "namespace \"%ns\" {\ncapabilities = [\"read-job-scaling\"]\n}"
	toListScaling   = "namespace \"%ns\" {\ncapabilities = [\"list-scaling-policies\"]\n}"
	toScalingPolicy = "namespace \"%ns\" {\ncapabilities = [\"read-scaling-policy\"]\n}"
	toAgentWrite    = "agent {\npolicy = \"write\"\n}"
	toLifecycle     = "namespace \"%ns\" {\ncapabilities = [\"alloc-lifecycle\"]\n}"
	toAllocExec     = "namespace \"%ns\" {\ncapabilities = [\"alloc-exec\"]\n}"
	toReadLogs      = "namespace \"%ns\" {\ncapabilities = [\"read-logs\"]\n}"
	toReadFS        = "namespace \"%ns\" {\ncapabilities = [\"read-fs\"]\n}"
	toWriteFS       = "namespace \"%ns\" {\ncapabilities = [\"write-fs\"]\n}"
	toVarList       = "namespace \"%ns\" {\nvariables {\npath \"x/*\" {\ncapabilities = [\"list\"]\n}\n}\n}"
	toVarRead       = "namespace \"%ns\" {\nvariables {\npath \"x/*\" {\ncapabilities = [\"read\"]\n}\n}\n}"
	toVarWrite      = "namespace \"%ns\" {\nvariables {\npath \"x/*\" {\ncapabilities = [\"write\"]\n}\n}\n}"
	toVarDestroy    = "namespace \"%ns\" {\nvariables {\npath \"x/*\" {\ncapabilities = [\"destroy\"]\n}\n}\n}"
	toNodeRead      = "node {\npolicy = \"read\"\n}"
	toNodeWrite     = "node {\npolicy = \"write\"\n}"
	toAgentRead     = "agent {\npolicy = \"read\"\n}"
	toOpRead        = "operator {\npolicy = \"read\"\n}"
	toOpWrite       = "operator {\npolicy = \"write\"\n}"
	toQuotaRead     = "quota {\npolicy = \"read\"\n}"
	toQuotaWrite    = "quota {\npolicy = \"write\"\n}"
	toPluginList    = "plugin {\npolicy = \"list\"\n}"
	toPoolRead      = "node_pool \"p\" {\npolicy = \"read\"\n}"
	toPoolWrite     = "node_pool \"p\" {\npolicy = \"write\"\n}"
)

// needs is what each route needs. A route that is new has no row here, and fails the test until somebody has thought about it. Rows of writes stand for
// PUT and POST.
var needs = map[string]string{
	"job.list": toListJobs, "job.get": toReadJob, "job.delete": toSubmitJob, "job.allocations": toReadJob, "job.evaluations": toReadJob, "job.summary": toReadJob,
	"job.deployments": toReadJob, "job.deployment": toReadJob, "job.versions": toReadJob, "job.services": toReadJob, "job.register": toSubmitJob, "job.update": toSubmitJob,
	"job.parse": toParseJob, "job.validate": toReadJob,
	"evaluation.list": toReadJob, "evaluation.count": toReadJob, "evaluation.get": toReadJob, "evaluation.allocations": toReadJob,
	"allocation.list": toReadJob, "allocation.get": toReadJob, "allocation.services": toReadJob, "allocation.stop": toLifecycle,
	"node.list": toNodeRead, "node.fences": toNodeRead, "node.get": toNodeRead, "node.allocations": toNodeRead, "node.eligibility": toNodeWrite,
	"event.stream": toReadJob, "agent.self": toAgentRead, "agent.members": toAgentRead, "metrics": toAgentRead,
	"agent.health": toPublic, "status.leader": toPublic, "status.peers": toPublic, "regions": toPublic,
	"volume.list": toListJobs, "plugin.list": toPluginList, "scheduler.get": toOpRead, "scheduler.set": toOpWrite, "system.gc": toManagement, "image.resolve": toSubmitJob,
	"node.watch.register": toByNode, "node.watch.heartbeat": toByNode, "node.watch.allocations": toByNode, "node.watch": toByNode, "node.watch.services": toByNode,
	"client.exec": toSocket, "client.execution": toAllocExec, "client.execution.signal": toAllocExec, "client.execution.kill": toAllocExec,
	"client.files.apply": toWriteFS, "client.files.list": toReadFS, "client.files.raw": toReadFS, "client.stats": toReadJob, "client.restart": toLifecycle, "client.signal": toLifecycle,
	"acl.bootstrap": toPublic, "acl.onetime.exchange": toPublic, "acl.onetime.create": toAnyToken, "acl.token.self": toAnyToken, "acl.policy.self": toAnyToken,
	"acl.token.list": toManagement, "acl.token.get": toManagement, "acl.token.delete": toManagement, "acl.token.create": toManagement, "acl.token.update": toManagement,
	"acl.policy.list": toAnyToken, "acl.policy.get": toManagement, "acl.policy.delete": toManagement, "acl.policy.put": toManagement,
	"acl.role.list": toAnyToken, "acl.role.name": toManagement, "acl.role.get": toManagement, "acl.role.delete": toManagement, "acl.role.create": toManagement, "acl.role.update": toManagement,
	"namespace.list": toAnyToken, "namespace.get": toReadJob, "namespace.delete": toManagement, "namespace.create": toManagement, "namespace.update": toManagement,
	"quota.list": toQuotaRead, "quota.usages": toQuotaRead, "quota.usage": toQuotaRead, "quota.get": toQuotaRead, "quota.delete": toQuotaWrite, "quota.create": toQuotaWrite,
	"quota.update": toQuotaWrite,
	"pool.list":    toPoolRead, "pool.get": toPoolRead, "pool.nodes": toNodeRead + "\n" + toPoolRead, "pool.jobs": toListJobs + "\n" + toPoolRead, "pool.delete": toPoolWrite,
	"pool.create": toPoolWrite, "pool.update": toPoolWrite,
	"variable.list": toVarList, "variable.get": toVarRead, "variable.delete": toVarDestroy, "variable.put": toVarWrite,
	"keyring.list": toManagement, "keyring.delete": toManagement, "keyring.rotate": toManagement,
	"service.list": toReadJob, "service.get": toReadJob, "service.delete": toSubmitJob,
	"search.prefix": toAnyToken, "search.fuzzy": toAnyToken,
	"evaluation.delete": toManagement, "agent.servers": toAgentRead, "raft.configuration": toOpRead, "raft.remove": toOpWrite, "raft.transfer": toOpWrite,
	"autopilot.get": toOpRead, "autopilot.set": toOpWrite, "autopilot.health": toOpRead, "snapshot.save": toManagement, "snapshot.restore": toManagement,
	"agent.keyring.list": toAgentWrite, "agent.keyring.install": toAgentWrite, "agent.keyring.use": toAgentWrite, "agent.keyring.remove": toAgentWrite,
	"agent.join": toAgentWrite, "agent.force-leave": toAgentWrite, "introduction.create": toNodeWrite,
	"job.submission": toReadJob, "job.untag": toSubmitJob, "job.dispatch": toDispatchJob, "job.evaluate": toSubmitJob, "job.periodic.force": toSubmitJob,
	"job.revert": toSubmitJob, "job.stable": toSubmitJob, "job.tag": toSubmitJob, "job.plan": toSubmitJob, "job.explanation": toReadJob, "job.mark": toSubmitJob, "system.reconcile": toManagement,
	"deployment.list": toReadJob, "deployment.allocations": toReadJob, "deployment.get": toReadJob, "deployment.promote": toSubmitJob, "deployment.pause": toSubmitJob,
	"deployment.fail": toSubmitJob, "deployment.unblock": toSubmitJob, "deployment.health": toSubmitJob,
	"job.scale.get": toReadScaling, "job.scale": toScaleJob, "scaling.list": toListScaling, "scaling.get": toScalingPolicy,
	"agent.monitor": toAgentRead, "agent.pprof": toOpWrite, "agent.host": toOpRead, "agent.schedulers": toAgentRead, "agent.schedulers.config": toAgentRead,
	"license.get": toOpRead, "agent.reload": toOpWrite,
	"node.connection": toByNode, "client.checks": toReadJob, "client.fs.logs": toReadLogs, "client.fs.ls": toReadFS, "client.fs.stat": toReadFS,
	"client.fs.cat": toReadFS, "client.fs.readat": toReadFS, "client.fs.stream": toReadFS, "client.gc.get": toSubmitJob, "client.gc": toSubmitJob,
	"client.host.stats": toNodeRead, "client.metadata": toNodeRead, "client.collect.get": toNodeWrite, "client.collect": toNodeWrite,
	"client.metadata.put": toNodeWrite, "client.metadata.post": toNodeWrite,
	"node.drain": toNodeWrite, "node.purge": toNodeWrite, "node.evaluate": toNodeWrite,
}

// bodies are what a request needs to come as far as the question of rights.
var bodies = map[string]string{
	"job.register": `{"Job":{"ID":"x","Namespace":"a","Type":"batch","TaskGroups":[]}}`, "pool.create": `{"Name":"p"}`, "variable.put": `{"Items":{"k":"v"}}`,
	"job.validate": `{"Job":{"ID":"x","Namespace":"a"}}`,
}

func (w *world) path(r endpoint.Route) string {
	id := "j"
	switch {
	case strings.Contains(r.Path, "/node/"):
		id = w.node
	case strings.Contains(r.Path, "/allocation"), strings.Contains(r.Path, "/client/"):
		id = w.alloc
	case strings.Contains(r.Path, "/evaluation"):
		id = w.eval
	case strings.Contains(r.Path, "/deployment"):
		id = w.deploy
	case strings.Contains(r.Path, "/acl/"), strings.Contains(r.Path, "/keyring/"):
		id = "4a8a8d94-4c3c-4a1c-9c1a-5a6b7c8d9e0f"
	}
	name := "a"
	if strings.Contains(r.Path, "/quota") {
		name = "q"
	}
	p := strings.NewReplacer("{id}", id, "{name}", name, "{pool}", "p", "{path:.+}", "x/y", "{exec}", "e", "{profile}", "goroutine", "{service}", "s", "{alloc}", w.alloc).Replace(r.Path)
	p += "?namespace=a"
	if strings.Contains(r.Path, "/event/stream") {
		p += "&topic=Job"
	}
	return p
}

// readOnly may read everything and change nothing.
const readOnly = `
namespace "*" {
  policy = "read"
  variables {
    path "*" {
      capabilities = ["read"]
    }
  }
}
node_pool "*" { policy = "read" }
node { policy = "read" }
agent { policy = "read" }
operator { policy = "read" }
quota { policy = "read" }
plugin { policy = "read" }
`

// Every route against nobody, a stranger, a reader, the right token in the wrong namespace, all rights but the one, and the right one.
func TestEveryRouteAsksForItsRight(t *testing.T) {
	known := map[string]bool{}
	w := newWorld(t) // for all: what one route removes is missing for the next, which is no matter of rights
	for _, r := range w.table() {
		name := strings.TrimSuffix(strings.TrimSuffix(r.Name, ".put"), ".post")
		if _, ok := needs[r.Name]; ok {
			name = r.Name
		}
		known[name] = true
		need, ok := needs[name]
		if !ok {
			t.Errorf("route %s has no row: say what it needs", r.Name)
			continue
		}
		if r.Method == "POST" && name != r.Name {
			continue // as PUT
		}
		if name == "variable.put" && r.Method != "PUT" {
			continue
		}
		t.Run(r.Name, func(t *testing.T) {
			path, body := w.path(r), cmp.Or(bodies[name], "{}")
			is := func(who, token string, allowed bool, headers ...string) {
				t.Helper()
				rec := w.ask(r.Method, path, token, body, headers...)
				if denied := rec.Code == http.StatusForbidden; denied == allowed {
					t.Errorf("%s %s for %s: %d %q", r.Method, path, who, rec.Code, rec.Body)
				}
				if !allowed && rec.Body.String() != "Permission denied" {
					t.Errorf("%s was told %q", who, rec.Body)
				}
			}
			switch need {
			case toSocket:
				return
			case toPublic:
				// A 403 of these is about what is asked with, not about who asks.
				if rec := w.ask(r.Method, path, "", body); rec.Code == http.StatusForbidden && name != "acl.onetime.exchange" {
					t.Errorf("%d %s", rec.Code, rec.Body)
				}
				return
			case toByNode:
				is("nobody", "", false)
				is("management", w.management(t), false)
				is("another secret", "", false, secretHeader, "other")
				is("another node of that secret", "", false, secretHeader, "")
				if name != "node.watch.register" { // whose body must say the same
					is("the node", "", true, secretHeader, nodeSecret)
				}
				return
			}
			is("nobody", "", false)
			is("a stranger", ident.New(), false)
			readers := r.Method == "GET" && need != toManagement && need != toOpWrite && need != toNodeWrite && need != toAgentWrite && need != toSubmitJob || need == toAnyToken
			mayRead := readers || strings.HasPrefix(name, "job.validate") || need == toParseJob
			if need == toReadFS || need == toReadLogs || need == toAllocExec {
				mayRead = false
			}
			is("a reader", w.token(t, readOnly), mayRead)
			switch {
			case need == toManagement:
				is("whoever has all but management", w.token(t, strings.ReplaceAll(strings.ReplaceAll(readOnly, `"read"`, `"write"`), `plugin { policy = "write" }`, "")), false)
				if name == "acl.token.delete" || name == "namespace.delete" {
					return // of what is missing or in use
				}
				is("management", w.management(t), true)
				return
			case need == toAnyToken:
				is("anybody with a token", w.token(t, toNodeRead), true)
				return
			}
			if strings.Contains(need, "%ns") {
				is("the same in another namespace", w.token(t, strings.ReplaceAll(need, "%ns", "b")), false)
				is("the same in one that begins so", w.token(t, strings.ReplaceAll(need, "%ns", "a-*")), false)
				is("deny beside it", w.token(t, strings.ReplaceAll(need, "%ns", "a")+"\nnamespace \"a\" {\npolicy = \"deny\"\n}"), false)
			}
			is("the right one", w.token(t, strings.ReplaceAll(need, "%ns", "a")), true)
		})
	}
	for name := range needs {
		if !known[name] {
			t.Errorf("there is no route %s", name)
		}
	}
}

// What an id in the path names is in the object's own namespace, whatever the query says and however the path is written.
func TestTheQueryDoesNotMoveAnObject(t *testing.T) {
	w := newWorld(t)
	token := w.token(t, "namespace \"b\" {\npolicy = \"write\"\n}\nnamespace \"default\" {\npolicy = \"write\"\n}")
	escaped := "%" + strings.ToUpper(hexOf(w.alloc[0])) + w.alloc[1:]
	for _, path := range []string{
		"/v1/allocation/" + w.alloc, "/v1/allocation/" + w.alloc + "?namespace=b", "/v1/allocation/" + w.alloc + "?namespace=*", "/v1/allocation/" + escaped,
		"/v1/allocation/" + escaped + "?namespace=b", "/v1/allocation/" + w.alloc + "?namespace=b&namespace=a", "/v1/evaluation/" + w.eval + "?namespace=b",
		"/v1/evaluation/" + w.eval + "/allocations?namespace=b", "/v1/client/allocation/" + w.alloc + "/stats?namespace=b", "/v1/client/allocation/" + w.alloc + "/files?namespace=b",
		"/v1/client/allocation/" + escaped + "/files?namespace=b", "/v1/allocation/" + w.alloc + "/services?namespace=*",
	} {
		if rec := w.ask("GET", path, token, ""); rec.Code != http.StatusForbidden {
			t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
		}
	}
	if rec := w.ask("PUT", "/v1/allocation/"+w.alloc+"/stop?namespace=b", token, ""); rec.Code != http.StatusForbidden {
		t.Errorf("stop: %d %s", rec.Code, rec.Body)
	}
	for path, body := range map[string]string{
		"/v1/jobs":                 `{"Job":{"ID":"x","Namespace":"a","Type":"batch"}}`,
		"/v1/job/x":                `{"Job":{"ID":"x","Namespace":"a","Type":"batch"}}`,
		"/v1/jobs?region=global":   `{"Namespace":"a","Job":{"ID":"x","Namespace":"b","Type":"batch"}}`,
		"/v1/validate/job":         `{"Job":{"ID":"x","Namespace":"a","Type":"batch"}}`,
		"/v1/var/x/y":              `{"Path":"x/y","Namespace":"a","Items":{"k":"v"}}`,
		"/v1/var/x/y?namespace=a":  `{"Path":"x/y","Namespace":"b","Items":{"k":"v"}}`,
		"/v1/var/x%2Fy?namespace=": `{"Path":"x/y","Items":{"k":"v"}}`,
	} {
		if rec := w.ask("PUT", path, token, body); rec.Code != http.StatusForbidden {
			t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
		}
	}
}

func hexOf(c byte) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[c>>4], digits[c&15]})
}

func TestListsOfAllNamespacesShowWhatOneMaySee(t *testing.T) {
	w := newWorld(t)
	w.must(t, &command.JobRegister{Job: &model.Job{Namespace: "b", ID: "secret-job", Type: "batch", TaskGroups: []*model.TaskGroup{}}})
	a, b := w.token(t, "namespace \"a\" {\npolicy = \"read\"\n}"), w.token(t, "namespace \"b\" {\npolicy = \"read\"\n}")
	for _, path := range []string{"/v1/jobs", "/v1/allocations", "/v1/evaluations", "/v1/services", "/v1/vars", "/v1/namespaces"} {
		rec := w.ask("GET", path+"?namespace=*", a, "")
		if rec.Code == 200 && strings.Contains(rec.Body.String(), "secret-job") {
			t.Errorf("%s shows another namespace: %s", path, rec.Body)
		}
		rec = w.ask("GET", path+"?namespace=*", b, "")
		if rec.Code == 200 && (strings.Contains(rec.Body.String(), w.alloc) || strings.Contains(rec.Body.String(), w.eval) || strings.Contains(rec.Body.String(), `"Name":"a"`)) {
			t.Errorf("%s shows another namespace: %s", path, rec.Body)
		}
	}
	for _, c := range []struct{ token, want string }{{a, `"jobs":["j"]`}, {b, `"jobs":["secret-job"]`}} {
		rec := w.ask("PUT", "/v1/search?namespace=*", c.token, `{"Prefix":"","Context":"all"}`)
		if rec.Code != 200 || !strings.Contains(rec.Body.String(), c.want) || strings.Contains(rec.Body.String(), w.node) {
			t.Errorf("search: %d %s, want %s and no node", rec.Code, rec.Body, c.want)
		}
	}
	// The allocations of a node are those that one may read.
	n := w.token(t, toNodeRead)
	if rec := w.ask("GET", "/v1/node/"+w.node+"/allocations", n, ""); rec.Code != 200 || strings.TrimSpace(rec.Body.String()) != "[]" {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

// A node proves itself for the node that the path names as handlers read it.
func TestANodeSpeaksForItselfAlone(t *testing.T) {
	w := newWorld(t)
	other := ident.New()
	w.must(t, &command.NodeRegister{Node: &model.Node{ID: other, SecretID: "other", Status: model.NodeReady}})
	escaped := "%" + strings.ToUpper(hexOf(w.node[0])) + w.node[1:]
	for _, id := range []string{w.node, escaped} {
		for _, op := range []string{"heartbeat", "allocations", "services"} {
			if rec := w.ask("PUT", "/v1/internal/node/"+id+"/"+op, w.management(t), "[]", secretHeader, "other"); rec.Code != http.StatusForbidden {
				t.Errorf("%s %s: %d %s", id, op, rec.Code, rec.Body)
			}
		}
		if rec := w.ask("GET", "/v1/internal/node/"+id+"/watch", w.management(t), "", secretHeader, "other"); rec.Code != http.StatusForbidden {
			t.Errorf("%s: %d %s", id, rec.Code, rec.Body)
		}
	}
}

func TestOwnedRoutesNameTheirObject(t *testing.T) {
	for _, r := range (&API{}).table() {
		for _, o := range owned {
			if strings.HasPrefix(r.Path, o.prefix) && !strings.Contains(r.Path, "{id}") && !slices.Contains([]string{"client.stats.self"}, r.Name) {
				t.Errorf("route %s must call its object {id}, so that its namespace is found", r.Name)
			}
		}
	}
}

// A request that waits is not answered to a token that has been removed meanwhile.
func TestAWaitingRequestLosesItsAnswerWithItsToken(t *testing.T) {
	w := newWorld(t)
	token := w.token(t, "namespace \"a\" {\npolicy = \"read\"\n}")
	accessor := w.store.Snapshot().ACLTokenBySecret(hashOf(token)).AccessorID
	var wg sync.WaitGroup
	wg.Go(func() {
		if rec := w.ask("GET", "/v1/jobs?namespace=a&wait=30s&index="+strconv.FormatUint(w.store.Index(), 10), token, ""); rec.Code != http.StatusForbidden {
			t.Errorf("%d %s", rec.Code, rec.Body)
		}
	})
	w.must(t, &command.ACLTokenDelete{Accessor: accessor})
	w.must(t, &command.JobRegister{Job: &model.Job{Namespace: "a", ID: "new", Type: "batch", TaskGroups: []*model.TaskGroup{}}})
	wg.Wait()
}

// Of wrong tokens none is found quicker or slower for what it shares with a right one: the lookup is by a hash.
func TestSecretsAreLookedUpByTheirHash(t *testing.T) {
	w := newWorld(t)
	secret := w.token(t, "node {\npolicy = \"read\"\n}")
	for tok := range w.store.Snapshot().ACLTokens(nil, "") {
		if strings.Contains(tok.SecretHash, secret) || len(tok.SecretHash) != 64 {
			t.Errorf("kept is %q", tok.SecretHash)
		}
	}
	if w.store.Snapshot().ACLTokenBySecret(secret) != nil || w.store.Snapshot().ACLTokenBySecret("") != nil {
		t.Error("something that is no hash finds a token")
	}
	if rec := w.ask("GET", "/v1/nodes", hashOf(secret), ""); rec.Code != http.StatusForbidden {
		t.Errorf("the hash itself is taken for a secret: %d", rec.Code)
	}
}

// Whoever has no token cannot fill the log.
func TestNobodyWritesEntriesByAsking(t *testing.T) {
	w := newWorld(t)
	if rec := w.ask("PUT", "/v1/acl/bootstrap", "", ""); rec.Code != http.StatusOK {
		t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	before := w.store.Index()
	for _, r := range w.table() {
		if r.Policy.Scope == auth.Public || r.Method != "GET" {
			at := w.store.Index()
			w.ask(r.Method, w.path(r), "", cmp.Or(bodies[strings.TrimSuffix(r.Name, ".put")], `{"OneTimeSecretID":"x"}`))
			if now := w.store.Index(); now != at {
				t.Errorf("%s writes %d entries", r.Name, now-at)
			}
		}
	}
	if after := w.store.Index(); after != before {
		t.Errorf("%d entries were written", after-before)
	}
}

// Without a key variables are refused with what is missing, also those that another server sealed.
func TestWithoutAKeyFileThereAreNoVariables(t *testing.T) {
	w := newWorld(t)
	token := w.management(t)
	if rec := w.ask("PUT", "/v1/var/x", token, `{"Items":{"k":"v"}}`); rec.Code != http.StatusOK {
		t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	w.cfg.KEK = nil
	for method, body := range map[string]string{"GET": "", "PUT": `{"Items":{"k":"v"}}`} {
		if rec := w.ask(method, "/v1/var/x", token, body); rec.Code != http.StatusNotImplemented || !strings.Contains(rec.Body.String(), "key_file") {
			t.Errorf("%s: %d %s", method, rec.Code, rec.Body)
		}
	}
	other, err := keyring.Ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	w.cfg.KEK = other
	w.Restored()
	if rec := w.ask("GET", "/v1/var/x", token, ""); rec.Code != http.StatusInternalServerError || !strings.Contains(rec.Body.String(), "all servers need the same one") {
		t.Errorf("with another server's key: %d %s", rec.Code, rec.Body)
	}
}
