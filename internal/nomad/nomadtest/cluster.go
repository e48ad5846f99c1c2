// Package nomadtest is a cluster in memory that speaks the part of Nomad's HTTP API that the gateway uses, with the extensions of
// docs/native-api.md. Placement is at once unless a test holds it; programs are those of program.go.
package nomadtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/ident"
)

// Cluster is the fake. Its fields are set before it is used.
type Cluster struct {
	URL string

	mu         sync.Mutex
	index      uint64
	jobs       map[string]*api.Job
	allocs     map[string]*Alloc // by job id
	evals      map[string]*api.Evaluation
	subs       map[*sub]bool
	held       bool            // new allocations stay pending
	noRoom     bool            // new jobs cannot be placed
	broken     map[string]bool // "METHOD /path prefix" that answers 503
	calls      map[string]int
	running    map[string]*process
	files      map[string][]File
	uploads    []Upload
	vars       variables
	images     map[string]string // digests by reference; nil = they cannot be asked for
	stopping   chan struct{}
	whole      bool // lists of jobs have the jobs in them
	silent     bool
	marks      bool     // jobs can be marked
	evaluating bool     // and are not, for an evaluation
	kept       [][]byte // lines of events, while it is silent
}

// Alloc is an allocation on the wire.
type Alloc struct {
	ID, JobID, TaskGroup, NodeID, DesiredStatus, ClientStatus string
	PreviousAllocation                                        string `json:",omitempty"`
	TaskStates                                                map[string]*api.TaskState
	AllocatedResources                                        *api.AllocatedResources
	CreateIndex, ModifyIndex                                  uint64
}

type sub struct {
	lines chan []byte
	cut   chan struct{}
}

// New starts a cluster that ends with the test.
func New(t testing.TB) *Cluster {
	c := &Cluster{
		index: 10, jobs: map[string]*api.Job{}, allocs: map[string]*Alloc{}, evals: map[string]*api.Evaluation{}, subs: map[*sub]bool{},
		broken: map[string]bool{}, calls: map[string]int{}, running: map[string]*process{}, files: map[string][]File{}, stopping: make(chan struct{}),
	}
	s := httptest.NewServer(c.routes())
	c.URL = s.URL
	t.Cleanup(func() {
		close(c.stopping)
		s.CloseClientConnections()
		s.Close()
	})
	return c
}

func (c *Cluster) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h func(w http.ResponseWriter, r *http.Request)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			c.mu.Lock()
			c.calls[pattern]++
			broken := false
			for prefix := range c.broken {
				broken = broken || strings.HasPrefix(r.Method+" "+r.URL.Path, prefix)
			}
			c.mu.Unlock()
			if broken {
				http.Error(w, "No cluster leader", http.StatusInternalServerError)
				return
			}
			h(w, r)
		})
	}
	handle("GET /v1/agent/self", func(w http.ResponseWriter, _ *http.Request) {
		c.mu.Lock()
		offers := map[string]bool{"NativeExec": true, "ImageResolve": c.images != nil, "JobMark": c.marks}
		c.mu.Unlock()
		c.answer(w, map[string]any{"config": map[string]any{"Rockpool": offers}})
	})
	handle("PUT /v1/rockpool/image/resolve", c.resolve)
	handle("PUT /v1/rockpool/job/{id}/mark", c.mark)
	handle("PUT /v1/jobs/parse", func(w http.ResponseWriter, _ *http.Request) { c.answer(w, template()) })
	handle("PUT /v1/jobs", c.register)
	handle("GET /v1/jobs", c.list)
	handle("GET /v1/job/{id}", c.job)
	handle("DELETE /v1/job/{id}", c.deregister)
	handle("PUT /v1/job/{id}/plan", c.plan)
	handle("GET /v1/nodes", func(w http.ResponseWriter, _ *http.Request) { c.answer(w, []api.NodeListStub{}) })
	handle("GET /v1/allocations", c.allocations)
	handle("GET /v1/evaluation/{id}", c.evaluation)
	handle("GET /v1/node/{id}", func(w http.ResponseWriter, _ *http.Request) { c.answer(w, api.Node{ID: "n1", Status: "ready"}) })
	handle("GET /v1/event/stream", c.events)
	c.execRoutes(handle)
	c.variableRoutes(handle)
	c.allocationRoutes(handle)
	return mux
}

// template stands for the parsed job file.
func template() *api.Job {
	return &api.Job{
		ID: new("template-0"), Name: new("template-0"), Type: new("batch"), Datacenters: []string{"dc1"},
		TaskGroups: []*api.TaskGroup{
			{Name: new("default-group"), Count: new(1), Tasks: []*api.Task{{Name: "default-task", Driver: "docker",
				Config: map[string]any{"command": "sleep"}, Resources: &api.Resources{CPU: new(40), MemoryMB: new(50)}}}},
			{Name: new("config"), Count: new(0), Tasks: []*api.Task{{Name: "config", Driver: "exec"}}, Meta: map[string]string{"used": "false"}},
		},
	}
}

func (c *Cluster) answer(w http.ResponseWriter, v any) {
	c.mu.Lock()
	index := c.index
	c.mu.Unlock()
	answerAt(w, index, v)
}

// answerAt tells the index of what is answered, which must not be newer than that.
func answerAt(w http.ResponseWriter, index uint64, v any) {
	w.Header().Set("X-Nomad-Index", fmt.Sprint(index))
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func clone(j *api.Job) *api.Job {
	data, _ := json.Marshal(j)
	var out api.Job
	_ = json.Unmarshal(data, &out)
	return &out
}

func (c *Cluster) register(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Job            *api.Job
		EnforceIndex   bool
		JobModifyIndex uint64
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	id := *req.Job.ID
	c.mu.Lock()
	old := c.jobs[id]
	if req.EnforceIndex && (old == nil) != (req.JobModifyIndex == 0) || (req.EnforceIndex && old != nil && *old.JobModifyIndex != req.JobModifyIndex) {
		c.mu.Unlock()
		http.Error(w, fmt.Sprintf("Enforcing job modify index %d: it differs", req.JobModifyIndex), http.StatusInternalServerError)
		return
	}
	c.index++
	job := clone(req.Job)
	job.JobModifyIndex, job.Status, job.Stop = new(c.index), new("running"), new(false)
	c.jobs[id] = job
	eval := &api.Evaluation{ID: ident.New(), JobID: id, Status: "complete"}
	if c.noRoom {
		eval.FailedTGAllocs = map[string]*api.AllocationMetric{"default-group": {}}
	}
	c.evals[eval.ID] = eval
	c.publish("Job", "JobRegistered", id, map[string]any{"Job": job})
	registered := c.index
	if old == nil && !c.noRoom {
		c.place(job)
	}
	c.index++
	c.publish("Evaluation", "EvaluationUpdated", eval.ID, map[string]any{"Evaluation": eval})
	c.mu.Unlock()
	c.answer(w, api.JobRegisterResponse{EvalID: eval.ID, JobModifyIndex: registered})
}

// mark changes the meta of a group.
func (c *Cluster) mark(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Group          string
		Meta           map[string]string
		JobModifyIndex uint64
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	id := r.PathValue("id")
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.jobs[id]
	switch {
	case old == nil:
		http.Error(w, "job not found", http.StatusNotFound)
		return
	case *old.JobModifyIndex != req.JobModifyIndex:
		http.Error(w, fmt.Sprintf("Enforcing job modify index %d: it differs", req.JobModifyIndex), http.StatusInternalServerError)
		return
	case c.evaluating:
		http.Error(w, "the job is being evaluated: register it instead", http.StatusUnprocessableEntity)
		return
	}
	c.index++
	job := clone(old)
	job.JobModifyIndex = new(c.index)
	for _, g := range job.TaskGroups {
		if *g.Name == req.Group {
			maps.Copy(g.Meta, req.Meta)
		}
	}
	c.jobs[id] = job
	c.publish("Job", "JobRegistered", id, map[string]any{"Job": job})
	answerAt(w, c.index, map[string]uint64{"JobModifyIndex": c.index, "Index": c.index})
}

// Evaluates has jobs be registered instead of marked, as where an evaluation is on its way.
func (c *Cluster) Evaluates(always bool) { c.mu.Lock(); defer c.mu.Unlock(); c.evaluating = always }

// plan answers what a registration would come to.
func (c *Cluster) plan(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	resp := api.JobPlanResponse{}
	if c.noRoom {
		resp.FailedTGAllocs = map[string]*api.AllocationMetric{"default-group": {}}
	}
	c.mu.Unlock()
	c.answer(w, resp)
}

// place starts a job's allocation. The lock is held.
func (c *Cluster) place(job *api.Job) {
	c.index++
	a := &Alloc{ID: ident.New(), JobID: *job.ID, TaskGroup: "default-group", NodeID: "n1", DesiredStatus: "run", ClientStatus: "pending",
		CreateIndex: c.index, AllocatedResources: &api.AllocatedResources{}}
	for _, n := range job.TaskGroups[0].Networks {
		for i, p := range n.DynamicPorts {
			a.AllocatedResources.Shared.Ports = append(a.AllocatedResources.Shared.Ports,
				api.PortMapping{Label: p.Label, To: p.To, Value: 20000 + i, HostIP: "10.0.0.1"})
		}
	}
	c.allocs[*job.ID] = a
	c.publishAlloc(a)
	if !c.held {
		c.start(a)
	}
}

func (c *Cluster) start(a *Alloc) {
	a.ClientStatus = "running"
	a.TaskStates = map[string]*api.TaskState{"default-task": {State: "running"}}
	c.index++
	c.publishAlloc(a)
}

func (c *Cluster) publishAlloc(a *Alloc) {
	a.ModifyIndex = c.index
	c.publish("Allocation", "AllocationUpdated", a.ID, map[string]any{"Allocation": a})
}

// publish sends one event. The lock is held.
func (c *Cluster) publish(topic, kind, key string, payload any) {
	line, err := json.Marshal(map[string]any{"Index": c.index, "Events": []any{
		map[string]any{"Topic": topic, "Type": kind, "Key": key, "Index": c.index, "Payload": payload},
	}})
	if err != nil {
		panic(err)
	}
	line = append(line, '\n')
	if c.silent {
		c.kept = append(c.kept, line)
		return
	}
	c.send(line)
}

func (c *Cluster) send(line []byte) {
	for s := range c.subs {
		select {
		case s.lines <- line:
		default:
			panic("nomadtest: a subscriber is too slow")
		}
	}
}

// WholeLists has lists of jobs carry the jobs, as Rockpool's orchestrator does where it is asked to.
func (c *Cluster) WholeLists() { c.mu.Lock(); c.whole = true; c.mu.Unlock() }

// Silence keeps events back until it is lifted, as a cluster does whose events are late.
func (c *Cluster) Silence(silent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.silent = silent
	if !silent {
		for _, line := range c.kept {
			c.send(line)
		}
		c.kept = nil
	}
}

func (c *Cluster) events(w http.ResponseWriter, r *http.Request) {
	s := &sub{lines: make(chan []byte, 1<<16), cut: make(chan struct{})}
	c.mu.Lock()
	c.subs[s] = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.subs, s)
		c.mu.Unlock()
	}()
	_, _ = w.Write([]byte("{}\n"))
	_ = http.NewResponseController(w).Flush()
	for {
		select {
		case line := <-s.lines:
			_, _ = w.Write(line)
			_ = http.NewResponseController(w).Flush()
		case <-s.cut:
			return
		case <-c.stopping:
			return
		case <-r.Context().Done():
			return
		}
	}
}

func (c *Cluster) list(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	type line struct {
		api.JobListStub
		Job *api.Job `json:",omitempty"`
	}
	stubs := []line{}
	for id, j := range c.jobs {
		if strings.HasPrefix(id, r.URL.Query().Get("prefix")) {
			stubs = append(stubs, line{JobListStub: api.JobListStub{ID: id, Status: *j.Status, JobModifyIndex: *j.JobModifyIndex, JobSummary: &api.JobSummary{}}})
			if c.whole && r.URL.Query().Get("rockpool_jobs") == "true" {
				stubs[len(stubs)-1].Job = j
			}
		}
	}
	index := c.index
	data, err := json.Marshal(stubs) // jobs change
	c.mu.Unlock()
	if err != nil {
		panic(err)
	}
	answerAt(w, index, json.RawMessage(data))
}

func (c *Cluster) job(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	j := c.jobs[r.PathValue("id")]
	if j != nil {
		j = clone(j)
	}
	c.mu.Unlock()
	if j == nil {
		http.Error(w, "job not found", http.StatusNotFound)
		return
	}
	c.answer(w, j)
}

func (c *Cluster) deregister(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	c.mu.Lock()
	j, a := c.jobs[id], c.allocs[id]
	if j != nil {
		c.index++
		delete(c.jobs, id)
		delete(c.allocs, id)
		c.publish("Job", "JobDeregistered", id, map[string]any{"Job": j, "Deleted": true})
		if a != nil {
			for _, p := range c.running {
				if p.alloc == a.ID {
					p.kill()
				}
			}
		}
	}
	c.mu.Unlock()
	c.answer(w, api.JobDeregisterResponse{})
}

func (c *Cluster) allocations(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	list := []Alloc{}
	for _, a := range c.allocs {
		list = append(list, *a)
	}
	index := c.index
	c.mu.Unlock()
	answerAt(w, index, list)
}

func (c *Cluster) evaluation(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	e := c.evals[r.PathValue("id")]
	c.mu.Unlock()
	if e == nil {
		http.Error(w, "eval not found", http.StatusNotFound)
		return
	}
	c.answer(w, e)
}

// Hold lets new allocations stay pending, or starts those that were held.
func (c *Cluster) Hold(held bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = held
	if held {
		return
	}
	for _, a := range c.allocs {
		if a.ClientStatus == "pending" {
			c.start(a)
		}
	}
}

// NoRoom says whether new jobs can be placed.
func (c *Cluster) NoRoom(b bool) { c.mu.Lock(); c.noRoom = b; c.mu.Unlock() }

// Break has requests whose "METHOD /path" begins so fail, or work again.
func (c *Cluster) Break(prefix string, broken bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if broken {
		c.broken[prefix] = true
	} else {
		delete(c.broken, prefix)
	}
}

// CutEvents ends all event streams.
func (c *Cluster) CutEvents() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.subs {
		close(s.cut)
		delete(c.subs, s)
	}
}

// Subscribers is how many event streams are open.
func (c *Cluster) Subscribers() int { c.mu.Lock(); defer c.mu.Unlock(); return len(c.subs) }

// Jobs are the ids of all jobs with a prefix, sorted.
func (c *Cluster) Jobs(prefix string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []string
	for id := range c.jobs {
		if strings.HasPrefix(id, prefix) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Image says what a reference means from now on. Before the first call the cluster does not offer to tell.
func (c *Cluster) Image(ref, digest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.images == nil {
		c.images = map[string]string{}
	}
	c.images[ref] = digest
}

func (c *Cluster) resolve(w http.ResponseWriter, r *http.Request) {
	var asked struct{ Image string }
	err := json.NewDecoder(r.Body).Decode(&asked)
	c.mu.Lock()
	digest, ok := c.images[asked.Image]
	c.mu.Unlock()
	if err != nil || !ok {
		http.Error(w, "the registry does not have "+asked.Image, http.StatusNotFound)
		return
	}
	repository, _, _ := strings.Cut(asked.Image, ":")
	c.answer(w, map[string]any{"Digest": digest, "Reference": repository + "@" + digest, "Bytes": 1})
}

// Task is the configuration of the main task of a job.
func (c *Cluster) Task(id string) map[string]any {
	c.mu.Lock()
	defer c.mu.Unlock()
	if j := c.jobs[id]; j != nil {
		return clone(j).TaskGroups[0].Tasks[0].Config
	}
	return nil
}

// Meta is that of a job's group config.
func (c *Cluster) Meta(id string) map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if j := c.jobs[id]; j != nil {
		return clone(j).TaskGroups[1].Meta
	}
	return nil
}

// Calls is how often a route was called.
func (c *Cluster) Calls(pattern string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[pattern]
}

// End has a job's allocation end, with or without memory to blame.
func (c *Cluster) End(jobID, status string, oom bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.allocs[jobID]
	a.ClientStatus = status
	a.TaskStates = map[string]*api.TaskState{"default-task": {State: "dead", Events: []*api.TaskEvent{
		{Type: "Terminated", Details: map[string]string{"oom_killed": fmt.Sprint(oom)}},
	}}}
	c.index++
	c.publishAlloc(a)
	for _, p := range c.running {
		if p.alloc == a.ID {
			p.lose()
		}
	}
}

// Fail has a job's allocation fail before it ran, for a reason.
func (c *Cluster) Fail(jobID, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.allocs[jobID]
	a.ClientStatus = "failed"
	a.TaskStates = map[string]*api.TaskState{"default-task": {State: "dead", Failed: true, Events: []*api.TaskEvent{
		{Type: "Driver Failure", DisplayMessage: reason}, {Type: "Not Restarting", DisplayMessage: "no restarts"},
	}}}
	c.index++
	c.publishAlloc(a)
}

// Purge removes a job behind everybody's back, without an event.
func (c *Cluster) Purge(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.index++
	delete(c.jobs, id)
	delete(c.allocs, id)
}
