package nomad

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/runner"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/pool"
)

// allocation is what the feed reads of one, in listings and in events.
type allocation struct {
	ID, JobID, TaskGroup, NodeID string
	DesiredStatus, ClientStatus  string
	ClientDescription            string
	PreviousAllocation           string
	TaskStates                   map[string]*api.TaskState
	AllocatedResources           *api.AllocatedResources
	CreateIndex                  uint64
	CreateTime, ModifyTime       int64 // nanoseconds of Unix
}

// view is what is known of the runners in the course of one connection of the feed.
type view struct {
	told                   string // the last progress, which runners that wait for the same thing all report
	jobsIndex, allocsIndex uint64 // of the listing: what is not newer is contained in it
	runners                map[string]*tracked
}

type tracked struct {
	runner.Seen
	scarce     bool // it asks for devices, so that being placed is news
	allocIndex uint64
}

func newView() *view { return &view{runners: map[string]*tracked{}} }

func (v *view) knows(id string) bool { return v.runners[id] != nil }

func (v *view) forget(id string) { delete(v.runners, id) }

func (v *view) seen(id string) runner.Seen { return v.runners[id].Seen }

func (v *view) all() []runner.Seen {
	list := make([]runner.Seen, 0, len(v.runners))
	for _, t := range v.runners {
		list = append(list, t.Seen)
	}
	slices.SortFunc(list, func(a, b runner.Seen) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// job takes in a runner's job and reports whether that changed anything.
func (v *view) job(job *api.Job) bool {
	env, ok := runnerEnvironment(*job.ID)
	if !ok {
		return false
	}
	t := v.runners[*job.ID]
	isNew := t == nil
	if isNew {
		t = &tracked{Seen: runner.Seen{Observed: pool.Observed{ID: *job.ID, Env: env}}}
		v.runners[*job.ID] = t
	}
	made := settingsOf(job, env)
	settings := made.Settings()
	t.scarce = len(made.Devices) > 0
	used, mark := claimOf(job)
	changed := isNew || settings != t.Settings || used != t.Used || mark != t.Mark
	t.Settings, t.Used, t.Mark, t.Gateway = settings, used, mark, gatewayOf(job)
	if job.Status != nil && *job.Status == "dead" && t.State != pool.Ended && t.Place.AllocID == "" {
		t.State, t.Cause, changed = pool.Ended, execution.ErrGone, true
	}
	return changed
}

// allocation takes in a runner's allocation and reports whether that changed anything.
func (v *view) allocation(a *allocation) bool {
	t := v.runners[a.JobID]
	if t.State == pool.Ended || a.CreateIndex < t.allocIndex {
		return false
	}
	before, placed := t.State, t.scarce && !t.Placed
	t.Placed, t.NoRoom = true, false
	switch {
	case a.PreviousAllocation != "", t.Place.AllocID != "" && t.Place.AllocID != a.ID:
		t.State, t.Cause = pool.Ended, execution.ErrGone // rescheduled
	default:
		t.State, t.Cause = judge(a, before)
	}
	told := t.Reason
	t.Reason = reasonOf(a, t.State)
	t.Place = execution.Place{AllocID: a.ID, NodeID: a.NodeID}
	t.allocIndex = a.CreateIndex
	if r := a.AllocatedResources; r != nil {
		t.Ports = nil
		for _, p := range r.Shared.Ports {
			t.Ports = append(t.Ports, runner.Port{Exposed: uint(p.To), Address: net.JoinHostPort(p.HostIP, strconv.Itoa(p.Value))})
		}
	}
	return t.State != before || t.Reason != told || placed
}

// progress is what a pending runner's driver says that has not been told yet, such as how far the download of its image is; "" = nothing.
func (v *view) progress(a *allocation) string {
	task := a.TaskStates[mainTask]
	if a.ClientStatus != "pending" || task == nil || len(task.Events) == 0 {
		return ""
	}
	last := task.Events[len(task.Events)-1]
	if last == nil || last.Type != "Driver" || last.DisplayMessage == v.told {
		return ""
	}
	v.told = last.DisplayMessage
	return v.told
}

// judge says what an allocation's state means for its runner. before is what the runner was.
func judge(a *allocation, before pool.State) (pool.State, error) {
	task := a.TaskStates[mainTask]
	oom := outOfMemory(task)
	gone := execution.ErrGone
	if oom {
		gone = execution.ErrOutOfMemory
	}
	switch {
	case a.ClientStatus == "failed", a.ClientStatus == "lost", a.ClientStatus == "unknown":
		return pool.Ended, gone
	case a.ClientStatus == "complete" && oom:
		return pool.Ended, gone
	case a.ClientStatus == "complete", a.DesiredStatus != "run":
		return pool.Ended, execution.ErrCompleted
	case task != nil && task.Restarts > 0, a.ClientStatus == "pending" && before == pool.Ready:
		return pool.Ended, gone // restarted: another container under the same id
	case a.ClientStatus == "running" && (task == nil || task.State == "running"):
		return pool.Ready, nil
	}
	return pool.Pending, nil
}

func outOfMemory(task *api.TaskState) bool {
	if task == nil {
		return false
	}
	for _, e := range slices.Backward(task.Events) {
		if e.Type == "Terminated" {
			return e.Details["oom_killed"] == "true"
		}
	}
	return false
}

// evaluation is what is read of one.
type evaluation struct {
	ID, JobID, Status, StatusDescription string
	ModifyIndex                          uint64
	FailedTGAllocs                       map[string]*refusal
}

// refusal is why a group could not be placed: counts by reason.
type refusal struct {
	NodesEvaluated, NodesFiltered, NodesExhausted int
	ConstraintFiltered, DimensionExhausted        map[string]int
}

func (r *refusal) String() string {
	if r == nil || r.NodesEvaluated == 0 {
		return "there is no node for it"
	}
	var why []string
	for _, reasons := range []map[string]int{r.ConstraintFiltered, r.DimensionExhausted} {
		for _, reason := range slices.Sorted(maps.Keys(reasons)) {
			why = append(why, fmt.Sprintf("%s (on %d of %d nodes)", reason, reasons[reason], r.NodesEvaluated))
		}
	}
	if len(why) == 0 {
		return "no node has room for it or fits it"
	}
	return strings.Join(why, ", ")
}

// evalWaits hands the end of evaluations to whoever waits for it. An end may be told before the wait for it begins.
type evalWaits struct {
	mu      sync.Mutex
	waiting map[string]chan evaluation
	recent  map[string]evaluation
	order   []string // of recent, oldest first
}

const recentEvaluations = 1024

func (w *evalWaits) init() {
	w.waiting, w.recent = map[string]chan evaluation{}, map[string]evaluation{}
}

func (w *evalWaits) done(e evaluation) {
	if e.Status != "complete" && e.Status != "failed" && e.Status != "canceled" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if ch, ok := w.waiting[e.ID]; ok {
		delete(w.waiting, e.ID)
		ch <- e // holds one
		return
	}
	if _, ok := w.recent[e.ID]; !ok {
		if len(w.order) == recentEvaluations {
			delete(w.recent, w.order[0])
			w.order = w.order[1:]
		}
		w.order = append(w.order, e.ID)
	}
	w.recent[e.ID] = e
}

func (w *evalWaits) wait(ctx context.Context, id string) (evaluation, bool) {
	w.mu.Lock()
	if e, ok := w.recent[id]; ok {
		w.mu.Unlock()
		return e, true
	}
	ch := make(chan evaluation, 1)
	w.waiting[id] = ch
	w.mu.Unlock()
	select {
	case e := <-ch:
		return e, true
	case <-ctx.Done():
		w.mu.Lock()
		delete(w.waiting, id)
		w.mu.Unlock()
		return evaluation{}, false
	}
}

// jobCache saves reading jobs again that have not changed since the last full listing.
type jobCache struct {
	mu   sync.Mutex
	jobs map[string]*api.Job
}

func (c *jobCache) init() { c.jobs = map[string]*api.Job{} }

func (c *jobCache) get(id string, index uint64) *api.Job {
	c.mu.Lock()
	defer c.mu.Unlock()
	if j := c.jobs[id]; j != nil && j.JobModifyIndex != nil && *j.JobModifyIndex == index {
		return j
	}
	return nil
}

func (c *jobCache) replace(jobs []*api.Job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.jobs = make(map[string]*api.Job, len(jobs))
	for _, j := range jobs {
		if j != nil {
			c.jobs[*j.ID] = j
		}
	}
}

// note takes in what an event shows of a job: one that nobody has claimed yet is kept for its claim.
func (c *jobCache) note(job *api.Job) {
	used, _ := claimOf(job)
	c.mu.Lock()
	defer c.mu.Unlock()
	if used || job.Stop != nil && *job.Stop {
		delete(c.jobs, *job.ID)
		return
	}
	c.jobs[*job.ID] = job
}

// take hands a job over; it is the caller's to change.
func (c *jobCache) take(id string) *api.Job {
	c.mu.Lock()
	defer c.mu.Unlock()
	job := c.jobs[id]
	delete(c.jobs, id)
	return job
}
