// Package standin is a stand-in for a cluster of HashiCorp Nomad, for tests: the routes and frames that it documents, its sequences of events, and what goes wrong with it.
//
// It offers nothing of our own orchestrator. Commands are really run: each allocation is a container with a root and processes of its own, in which the machine's
// shells and tools run, so that what the gateway sends to a runner is proven with them. That takes the rights of root; see [Need].
package standin

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/ident"
)

// Options of a Server.
type Options struct {
	// Version decides what is different between releases; empty = 1.10.5.
	Version string
	TLS     *tls.Config // nil = plain HTTP
	// Token is one that may do what the gateway needs and nothing more; empty = ACL is off.
	Token string
	// Bare images have no /sbin/setuser.
	Bare bool
	// EventsLate tells of a registration only after it was answered; otherwise before, as a fast scheduler does.
	EventsLate bool
	// Twice sends each event a second time.
	Twice bool
}

// Server is the stand-in.
type Server struct {
	URL string

	opts    Options
	minor   int
	major   int
	dir     string
	http    *httptest.Server
	taskEnv []string
	execs   atomic.Int64

	mu         sync.Mutex
	index      uint64
	jobs       map[string]*api.Job
	allocs     map[string]*alloc
	evals      map[string]*api.Evaluation
	buffer     [][]byte // of the event broker
	subs       map[*subscriber]bool
	faults     []*Fault
	execFaults []*ExecFault
	calls      map[string]int
	noRoom     bool
	nodes      []Node
	blocked    []*api.Evaluation // that wait for room, in the order in which they came
	deaf       bool              // events are lost
	stop       chan struct{}
}

// alloc is an allocation.
type alloc struct {
	ID, EvalID, Name, Namespace, NodeID, NodeName, JobID, TaskGroup string
	DesiredStatus, ClientStatus                                     string
	PreviousAllocation, NextAllocation                              string                    `json:",omitempty"`
	TaskStates                                                      map[string]*api.TaskState `json:",omitempty"`
	AllocatedResources                                              *api.AllocatedResources
	CreateIndex, ModifyIndex, AllocModifyIndex                      uint64
	CreateTime, ModifyTime                                          int64

	box *container
}

type subscriber struct {
	lines chan []byte
	cut   chan struct{}
}

// Fault is an answer to requests whose "METHOD /path" begins with Prefix.
type Fault struct {
	Prefix string
	Times  int // 0 = until healed
	Status int
	Text   string
	Before bool // the request is carried out all the same: its answer is what is lost
}

// Need skips a test where no containers can be made.
func Need(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("the stand-in's containers take the rights of root")
	}
	for _, tool := range []string{"/usr/bin/nsenter", "/usr/bin/setsid", "/usr/bin/setpriv"} {
		if _, err := os.Stat(tool); err != nil {
			t.Skipf("the stand-in's containers need %s", tool)
		}
	}
}

// New starts a server that ends with the test.
func New(t testing.TB, o Options) *Server {
	Need(t)
	if o.Version == "" {
		o.Version = "1.10.5"
	}
	dir, err := os.MkdirTemp("", "standin-") // a test's own has its name, which may hold what a mount's options cannot
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &Server{
		opts: o, dir: dir, index: 10, jobs: map[string]*api.Job{}, allocs: map[string]*alloc{}, evals: map[string]*api.Evaluation{},
		subs: map[*subscriber]bool{}, calls: map[string]int{}, stop: make(chan struct{}), nodes: []Node{plain},
		taskEnv: []string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "TERM=ansi", "COLUMNS=10000", "NO_COLOR=true",
			"NOMAD_ALLOC_ID=1", "NOMAD_META_a-b=not a name of a shell's variable", "NOMAD_TASK_DIR=/local\nNOMAD_FAKE=x",
		},
	}
	if _, err := fmt.Sscanf(o.Version, "%d.%d", &s.major, &s.minor); err != nil {
		t.Fatal(err)
	}
	s.http = httptest.NewUnstartedServer(s.routes())
	if o.TLS != nil {
		s.http.TLS = o.TLS
		s.http.StartTLS()
	} else {
		s.http.Start()
	}
	s.URL = s.http.URL
	t.Cleanup(func() {
		close(s.stop)
		s.mu.Lock()
		var boxes []*container
		for _, a := range s.allocs {
			if a.box != nil {
				boxes = append(boxes, a.box)
			}
		}
		s.mu.Unlock()
		for _, b := range boxes {
			b.stop()
		}
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

// since reports whether the release is at least that one.
func (s *Server) since(major, minor int) bool {
	return s.major > major || s.major == major && s.minor >= minor
}

// Fail has requests fail.
func (s *Server) Fail(f Fault) { s.mu.Lock(); s.faults = append(s.faults, &f); s.mu.Unlock() }

// Heal has all requests work again.
func (s *Server) Heal() { s.mu.Lock(); s.faults = nil; s.mu.Unlock() }

func (s *Server) fault(what string) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[what]++
	for i, f := range s.faults {
		if strings.HasPrefix(what, f.Prefix) {
			if f.Times == 1 {
				s.faults = append(s.faults[:i:i], s.faults[i+1:]...)
			}
			f.Times--
			return f
		}
	}
	return nil
}

// Calls is how many requests began so.
func (s *Server) Calls(prefix string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for what, times := range s.calls {
		if strings.HasPrefix(what, prefix) {
			n += times
		}
	}
	return n
}

// What a token may do. The one of a gateway has what the documentation asks for, and neither agent:read nor management.
const (
	free     = ""
	submit   = "submit-job"
	read     = "read-job"
	execute  = "alloc-exec"
	readNode = "node:read"
	agent    = "agent:read"
)

var granted = []string{free, submit, read, execute, readNode}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, row := range map[string]struct {
		scope string
		serve http.HandlerFunc
	}{
		"GET /v1/agent/self":                     {agent, s.self},
		"GET /v1/status/leader":                  {free, func(w http.ResponseWriter, _ *http.Request) { s.answer(w, "127.0.0.1:4647") }},
		"PUT /v1/jobs/parse":                     {submit, s.parse},
		"POST /v1/jobs/parse":                    {submit, s.parse},
		"PUT /v1/jobs":                           {submit, s.register},
		"GET /v1/jobs":                           {read, s.list},
		"GET /v1/job/{id}":                       {read, one(s, s.jobs, "job")},
		"DELETE /v1/job/{id}":                    {submit, s.deregister},
		"PUT /v1/job/{id}/plan":                  {submit, s.plan},
		"GET /v1/job/{id}/evaluations":           {read, s.evaluations},
		"GET /v1/nodes":                          {readNode, s.listNodes},
		"GET /v1/allocations":                    {read, s.allocations},
		"GET /v1/allocation/{id}":                {read, one(s, s.allocs, "alloc")},
		"GET /v1/evaluation/{id}":                {read, one(s, s.evals, "eval")},
		"GET /v1/node/{id}":                      {readNode, s.node},
		"GET /v1/event/stream":                   {read, s.events},
		"GET /v1/client/allocation/{alloc}/exec": {execute, s.exec},
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			f := s.fault(r.Method + " " + r.URL.Path)
			if f != nil && !f.Before {
				http.Error(w, f.Text, f.Status)
				return
			}
			if s.opts.Token != "" {
				token := r.Header.Get("X-Nomad-Token")
				if token != s.opts.Token || !slices.Contains(granted, row.scope) {
					if strings.HasSuffix(pattern, "/event/stream") {
						return // status 200 and nothing, as Nomad
					}
					http.Error(w, "Permission denied", http.StatusForbidden)
					return
				}
			}
			if ns := r.URL.Query().Get("namespace"); ns != "" && ns != "default" && ns != "*" {
				http.Error(w, "Namespace not found", http.StatusNotFound)
				return
			}
			if f != nil {
				row.serve(&lost{header: http.Header{}}, r)
				http.Error(w, f.Text, f.Status)
				return
			}
			row.serve(w, r)
		})
	}
	return mux
}

// lost is an answer that nobody gets.
type lost struct{ header http.Header }

func (l *lost) Header() http.Header         { return l.header }
func (l *lost) Write(p []byte) (int, error) { return len(p), nil }
func (l *lost) WriteHeader(int)             {}

func (s *Server) answer(w http.ResponseWriter, v any) {
	s.mu.Lock()
	index := s.index
	s.mu.Unlock()
	answerAt(w, index, v)
}

func answerAt(w http.ResponseWriter, index uint64, v any) {
	w.Header().Set("X-Nomad-Index", strconv.FormatUint(index, 10))
	w.Header().Set("X-Nomad-KnownLeader", "true")
	w.Header().Set("X-Nomad-LastContact", "0")
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (s *Server) self(w http.ResponseWriter, _ *http.Request) {
	s.answer(w, map[string]any{"config": map[string]any{"Version": map[string]any{"Version": s.opts.Version}}, "member": map[string]any{}, "stats": map[string]any{}})
}

// parse answers what Nomad makes of the template that the product comes with.
func (s *Server) parse(w http.ResponseWriter, r *http.Request) {
	var req api.JobsParseRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || !strings.Contains(req.JobHCL, `job "template-0"`) {
		http.Error(w, "Failed to parse job", http.StatusBadRequest)
		return
	}
	s.answer(w, &api.Job{
		ID: new("template-0"), Name: new("template-0"), Type: new("batch"), Datacenters: []string{"dc1"}, Namespace: new("default"),
		TaskGroups: []*api.TaskGroup{
			{Name: new("default-group"), Count: new(1), RestartPolicy: &api.RestartPolicy{Attempts: new(0), Mode: new("fail")},
				ReschedulePolicy: &api.ReschedulePolicy{Attempts: new(0), Unlimited: new(false)},
				Tasks: []*api.Task{{Name: "default-task", Driver: "docker", KillTimeout: new(time.Duration(0)), KillSignal: "SIGKILL",
					Config:    map[string]any{"image": "host", "command": "sleep", "args": []any{"infinity"}, "network_mode": "none", "force_pull": false},
					Resources: &api.Resources{CPU: new(40), MemoryMB: new(50), MemoryMaxMB: new(256)}}}},
			{Name: new("config"), Count: new(0), Tasks: []*api.Task{{Name: "config", Driver: "exec", Config: map[string]any{"command": "true"}}},
				Meta: map[string]string{"used": "false", "prewarmingPoolSize": "0"}},
		},
	})
}

func clone[T any](v *T) *T {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	var out T
	if err := json.Unmarshal(data, &out); err != nil {
		panic(err)
	}
	return &out
}

func (s *Server) register(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Job            *api.Job
		EnforceIndex   bool
		JobModifyIndex uint64
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || req.Job == nil || req.Job.ID == nil {
		http.Error(w, "Job must be specified", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	id, old := *req.Job.ID, s.jobs[*req.Job.ID]
	switch {
	case !req.EnforceIndex:
	case req.JobModifyIndex == 0 && old != nil:
		s.mu.Unlock()
		http.Error(w, "Enforcing job modify index 0: job already exists", http.StatusInternalServerError)
		return
	case req.JobModifyIndex != 0 && (old == nil || *old.JobModifyIndex != req.JobModifyIndex):
		s.mu.Unlock()
		http.Error(w, fmt.Sprintf("Enforcing job modify index %d: job exists with conflicting job modify index: %d", req.JobModifyIndex, s.index), http.StatusInternalServerError)
		return
	}
	s.index++
	job := clone(req.Job)
	job.JobModifyIndex, job.ModifyIndex, job.Status, job.Stop, job.Namespace = new(s.index), new(s.index), new("pending"), new(false), new("default")
	job.CreateIndex, job.SubmitTime, job.Version = new(s.index), new(time.Now().UnixNano()), new(uint64(0))
	if old != nil {
		job.CreateIndex, job.Version = old.CreateIndex, new(*old.Version+1)
		job.Status = old.Status
	}
	s.jobs[id] = job
	eval := &api.Evaluation{ID: ident.New(), JobID: id, Namespace: "default", Status: "pending", TriggeredBy: "job-register", CreateIndex: s.index, ModifyIndex: s.index}
	s.evals[eval.ID] = eval
	registered := s.index
	tell := func() {
		s.publish("JobRegistered", event{"Job", id, map[string]any{"Job": job}}, event{"Evaluation", eval.ID, map[string]any{"Evaluation": eval}})
		s.place(job, eval, old == nil)
	}
	answer := api.JobRegisterResponse{EvalID: eval.ID, EvalCreateIndex: registered, JobModifyIndex: registered}
	if !s.opts.EventsLate {
		tell()
		s.mu.Unlock()
		s.answer(w, answer)
		return
	}
	s.mu.Unlock()
	answerAt(w, registered, answer)
	_ = http.NewResponseController(w).Flush()
	time.Sleep(5 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.jobs[id] == job {
		tell()
	}
}

// place is what follows a registration. The lock is held.
func (s *Server) place(job *api.Job, eval *api.Evaluation, isNew bool) {
	a := s.allocOf(*job.ID)
	var node Node
	var devices []*api.AllocatedDeviceResource
	if isNew || a == nil || s.noRoom {
		var why *api.AllocationMetric
		if node, devices, why = s.fit(job); why != nil {
			s.block(eval, why)
			return
		}
	}
	eval.Status = "complete"
	s.index++
	job.Status = new("running")
	if isNew || a == nil {
		a = &alloc{ID: ident.New(), EvalID: eval.ID, Name: *job.ID + ".default-group[0]", Namespace: "default", NodeID: node.ID, NodeName: node.Name,
			JobID: *job.ID, TaskGroup: "default-group", DesiredStatus: "run", ClientStatus: "pending", CreateIndex: s.index, CreateTime: time.Now().UnixNano(),
			AllocatedResources: &api.AllocatedResources{Tasks: map[string]*api.AllocatedTaskResources{"default-task": {Devices: devices}}}}
		for _, n := range job.TaskGroups[0].Networks {
			for i, p := range n.DynamicPorts {
				a.AllocatedResources.Shared.Ports = append(a.AllocatedResources.Shared.Ports, api.PortMapping{Label: p.Label, To: p.To, Value: 20000 + i, HostIP: "10.0.0.1"})
			}
		}
		s.allocs[a.ID] = a
	}
	s.touch(a)
	s.publish("PlanResult", event{"Evaluation", eval.ID, map[string]any{"Evaluation": eval}}, event{"Allocation", a.ID, map[string]any{"Allocation": a}},
		event{"Job", *job.ID, map[string]any{"Job": job}})
	s.index++
	s.publish("EvaluationUpdated", event{"Evaluation", eval.ID, map[string]any{"Evaluation": eval}})
	if a.ClientStatus != "pending" {
		return
	}
	s.update(a, "pending", &api.TaskState{State: "pending", Events: []*api.TaskEvent{{Type: "Received"}, {Type: "Task Setup"}}})
	s.update(a, "running", &api.TaskState{State: "running", StartedAt: time.Now(), Events: []*api.TaskEvent{{Type: "Received"}, {Type: "Task Setup"}, {Type: "Started"}}})
}

func (s *Server) allocOf(jobID string) *alloc {
	var newest *alloc
	for _, a := range s.allocs {
		if a.JobID == jobID && (newest == nil || a.CreateIndex > newest.CreateIndex) {
			newest = a
		}
	}
	return newest
}

func (s *Server) touch(a *alloc) {
	a.ModifyIndex, a.AllocModifyIndex, a.ModifyTime = s.index, s.index, time.Now().UnixNano()
}

func (s *Server) update(a *alloc, status string, task *api.TaskState) {
	s.index++
	a.ClientStatus, a.TaskStates = status, map[string]*api.TaskState{"default-task": task}
	s.touch(a)
	s.publish("AllocationUpdated", event{"Allocation", a.ID, map[string]any{"Allocation": a}})
}

type event struct {
	topic, key string
	payload    map[string]any
}

// publish tells of one entry of the log. The lock is held.
func (s *Server) publish(kind string, events ...event) {
	frame := map[string]any{"Index": s.index}
	var list []any
	for _, e := range events {
		one := map[string]any{"Topic": e.topic, "Type": kind, "Key": e.key, "Namespace": "default", "FilterKeys": nil, "Index": s.index, "Payload": e.payload}
		list = append(list, one)
		if s.opts.Twice {
			list = append(list, one)
		}
	}
	frame["Events"] = list
	line, err := json.Marshal(frame)
	if err != nil {
		panic(err)
	}
	line = append(line, '\n')
	if s.deaf {
		return
	}
	if s.buffer = append(s.buffer, line); len(s.buffer) > 100 {
		s.buffer = s.buffer[1:]
	}
	s.send(line)
	if s.opts.Twice {
		s.send(line)
	}
}

func (s *Server) send(line []byte) {
	for sub := range s.subs {
		select {
		case sub.lines <- line:
		default: // one that is too slow is closed
			close(sub.cut)
			delete(s.subs, sub)
		}
	}
}

func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	sub := &subscriber{lines: make(chan []byte, 4096), cut: make(chan struct{})}
	s.mu.Lock()
	if r.URL.Query().Get("index") == "0" {
		for _, line := range s.buffer {
			sub.lines <- line
		}
	}
	s.subs[sub] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.subs, sub)
		s.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("Connection", "close")
	_, _ = w.Write([]byte("{}\n"))
	_ = http.NewResponseController(w).Flush()
	alive := time.NewTicker(30 * time.Second)
	defer alive.Stop()
	for {
		select {
		case <-alive.C:
			_, _ = w.Write([]byte("{}\n"))
			_ = http.NewResponseController(w).Flush()
		case line := <-sub.lines:
			_, _ = w.Write(line)
			_ = http.NewResponseController(w).Flush()
		case <-sub.cut:
			return
		case <-s.stop:
			return
		case <-r.Context().Done():
			return
		}
	}
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	stubs := []*api.JobListStub{}
	for id, j := range s.jobs {
		if strings.HasPrefix(id, r.URL.Query().Get("prefix")) {
			stubs = append(stubs, &api.JobListStub{ID: id, Name: id, Namespace: "default", Type: "batch", Status: *j.Status, Stop: *j.Stop,
				JobModifyIndex: *j.JobModifyIndex, JobSummary: &api.JobSummary{JobID: id}})
		}
	}
	index := s.index
	s.mu.Unlock()
	slices.SortFunc(stubs, func(a, b *api.JobListStub) int { return strings.Compare(a.ID, b.ID) })
	answerAt(w, index, stubs)
}

// one answers with the one that a path names.
func one[T any](s *Server, all map[string]*T, what string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		found := all[r.PathValue("id")]
		if found != nil {
			found = clone(found)
		}
		s.mu.Unlock()
		if found == nil {
			http.Error(w, what+" not found", http.StatusNotFound)
			return
		}
		s.answer(w, found)
	}
}

func (s *Server) deregister(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	s.mu.Lock()
	j := s.jobs[id]
	var box *container
	if j != nil && r.URL.Query().Get("purge") == "true" {
		s.index++
		delete(s.jobs, id)
		eval := &api.Evaluation{ID: ident.New(), JobID: id, Namespace: "default", Status: "pending", TriggeredBy: "job-deregister"}
		gone := map[string]any{"Job": j}
		if s.since(2, 0) {
			gone["Deleted"] = true
		}
		s.publish("JobDeregistered", event{"Job", id, gone}, event{"Evaluation", eval.ID, map[string]any{"Evaluation": eval}})
		if a := s.allocOf(id); a != nil {
			box, a.box = a.box, nil
			if s.since(1, 8) {
				delete(s.allocs, a.ID)
			} else { // before 1.7.3 a purged job's allocations stayed until the next collection
				a.DesiredStatus, a.ClientStatus = "stop", "complete"
			}
		}
		eval.Status = "complete"
		s.index++
		s.publish("EvaluationUpdated", event{"Evaluation", eval.ID, map[string]any{"Evaluation": eval}})
		s.unblock()
	}
	s.mu.Unlock()
	if box != nil {
		box.stop()
	}
	s.answer(w, api.JobDeregisterResponse{})
}

func (s *Server) allocations(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	list := []*alloc{}
	for _, a := range s.allocs {
		stub := clone(a)
		if r.URL.Query().Get("resources") != "true" {
			stub.AllocatedResources = nil
		}
		list = append(list, stub)
	}
	index := s.index
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b *alloc) int { return strings.Compare(a.ID, b.ID) }) // in no order of time
	answerAt(w, index, list)
}

func (s *Server) node(w http.ResponseWriter, r *http.Request) {
	s.answer(w, api.Node{ID: r.PathValue("id"), Name: "n1", Status: "ready", SchedulingEligibility: "eligible"})
}

// box is an allocation's container, or why there is none.
func (s *Server) box(allocID, task string) (*container, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.booted(allocID, task)
}

// enter is box for one that runs a program in it, and says when that is done: the container's end waits for it.
func (s *Server) enter(allocID, task string) (*container, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	box, problem := s.booted(allocID, task)
	if box != nil {
		box.running.Add(1)
	}
	return box, problem
}

func (s *Server) booted(allocID, task string) (*container, string) {
	a := s.allocs[allocID]
	switch {
	case a == nil:
		return nil, fmt.Sprintf("Unknown allocation %q", allocID)
	case task != "default-task":
		return nil, fmt.Sprintf("task %q not found", task)
	case a.ClientStatus != "running":
		return nil, fmt.Sprintf("task %q is not running.", task)
	}
	if a.box == nil {
		dir := filepath.Join(s.dir, a.ID)
		err := os.Mkdir(dir, 0o700)
		if err == nil {
			a.box, err = boot(dir, !s.opts.Bare)
		}
		if err != nil {
			return nil, err.Error()
		}
	}
	return a.box, ""
}
