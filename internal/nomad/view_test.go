package nomad

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/environment"
	"rockpool/internal/fault"
	"rockpool/internal/runner"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/files"
	"rockpool/internal/runner/pool"
)

const id = "10-6ba7b810-9dad-11d1-80b4-00c04fd430c8"

func job(used string, meta ...string) *api.Job {
	m := map[string]string{metaUsed: used}
	for i := 0; i < len(meta); i += 2 {
		m[meta[i]] = meta[i+1]
	}
	return &api.Job{ID: new(id), TaskGroups: []*api.TaskGroup{
		{Name: new(mainGroup), Tasks: []*api.Task{{Name: mainTask, Config: map[string]any{"image": "i"}}}},
		{Name: new(configGroup), Meta: m},
	}}
}

func state(s string, restarts uint64, oom bool) map[string]*api.TaskState {
	return map[string]*api.TaskState{mainTask: {State: s, Restarts: restarts, Events: []*api.TaskEvent{
		{Type: "Started"}, {Type: "Terminated", Details: map[string]string{"oom_killed": fmt.Sprint(oom)}}, {Type: "Restarting"},
	}}}
}

func TestWhatAllocationsMeanForTheirRunner(t *testing.T) {
	pending := allocation{ID: "a", JobID: id, ClientStatus: "pending", DesiredStatus: "run", CreateIndex: 5}
	running := allocation{ID: "a", JobID: id, ClientStatus: "running", DesiredStatus: "run", CreateIndex: 5, TaskStates: map[string]*api.TaskState{mainTask: {State: "running"}}}
	with := func(a allocation, change func(*allocation)) allocation { change(&a); return a }
	for _, c := range []struct {
		name   string
		events []allocation
		state  pool.State
		cause  error
	}{
		{"placed", []allocation{pending}, pool.Pending, nil},
		{"running but its task is not", []allocation{with(running, func(a *allocation) { a.TaskStates = map[string]*api.TaskState{mainTask: {State: "pending"}} })}, pool.Pending, nil},
		{"running", []allocation{pending, running}, pool.Ready, nil},
		{"told twice", []allocation{running, running}, pool.Ready, nil},
		{"restarting", []allocation{running, with(pending, func(a *allocation) { a.TaskStates = state("pending", 0, false) })}, pool.Ended, execution.ErrGone},
		{"restarting after it was out of memory", []allocation{running, with(pending, func(a *allocation) { a.TaskStates = state("pending", 0, true) })}, pool.Ended, execution.ErrOutOfMemory},
		{"restarted before it was seen", []allocation{with(running, func(a *allocation) { a.TaskStates = state("running", 1, false) })}, pool.Ended, execution.ErrGone},
		{"restarted and running again", []allocation{running, with(pending, func(a *allocation) { a.TaskStates = state("pending", 1, true) }), running}, pool.Ended, execution.ErrOutOfMemory},
		{"rescheduled", []allocation{running, with(pending, func(a *allocation) { a.ID, a.PreviousAllocation, a.CreateIndex = "b", "a", 9 })}, pool.Ended, execution.ErrGone},
		{"an older one after a newer", []allocation{running, with(pending, func(a *allocation) { a.ID, a.CreateIndex = "z", 3 })}, pool.Ready, nil},
		{"stopping", []allocation{running, with(running, func(a *allocation) { a.DesiredStatus = "stop" })}, pool.Ended, execution.ErrCompleted},
		{"complete", []allocation{running, with(running, func(a *allocation) { a.ClientStatus = "complete" })}, pool.Ended, execution.ErrCompleted},
		{"failed", []allocation{with(running, func(a *allocation) { a.ClientStatus = "failed" })}, pool.Ended, execution.ErrGone},
		{"failed, out of memory", []allocation{with(running, func(a *allocation) { a.ClientStatus, a.TaskStates = "failed", state("dead", 0, true) })}, pool.Ended, execution.ErrOutOfMemory},
		{"lost", []allocation{running, with(running, func(a *allocation) { a.ClientStatus = "lost" })}, pool.Ended, execution.ErrGone},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newView()
			v.job(job("false"))
			for _, a := range c.events {
				v.allocation(&a)
			}
			if s := v.seen(id); s.State != c.state || !errors.Is(s.Cause, c.cause) {
				t.Errorf("got %d %v, want %d %v", s.State, s.Cause, c.state, c.cause)
			}
		})
	}
}

func TestClaimsAreReadFromTheJob(t *testing.T) {
	for _, c := range []struct {
		job     *api.Job
		used    bool
		timeout time.Duration
	}{
		{job("false"), false, 0},
		{job("true", metaTimeout, "30"), true, 30 * time.Second},
		{job("true", metaTimeout, "0"), true, 0},
		{job("true"), true, time.Minute},
		{job("true", metaTimeout, "soon"), true, time.Minute},
		{job("true", metaTimeout, "-1"), true, time.Minute},
		{&api.Job{ID: new(id)}, false, 0},
	} {
		if used, mark := claimOf(c.job); used != c.used || mark != (runner.Mark{Timeout: c.timeout}) {
			t.Errorf("got %v %v, want %v %v", used, mark, c.used, c.timeout)
		}
	}
}

func TestNamesOfJobs(t *testing.T) {
	for name, want := range map[string]struct {
		template, runner int
	}{
		"template-7": {7, -1}, "template-": {-1, -1}, "template-7-8": {-1, -1}, id: {-1, 10}, "10-x": {-1, -1}, "x-6ba7b810-9dad-11d1-80b4-00c04fd430c8": {-1, -1},
		"-1-6ba7b810-9dad-11d1-80b4-00c04fd430c8": {-1, -1}, "010-6ba7b810-9dad-11d1-80b4-00c04fd430c8": {-1, -1}, "template-4294967296": {4294967296, -1},
		"4294967296-6ba7b810-9dad-11d1-80b4-00c04fd430c8": {-1, 4294967296},
	} {
		got := func(id environment.ID, ok bool) int {
			if !ok {
				return -1
			}
			return int(id)
		}
		if tmpl, run := got(templateEnvironment(name)), got(runnerEnvironment(name)); tmpl != want.template || run != want.runner {
			t.Errorf("%s: got %d and %d, want %+v", name, tmpl, run, want)
		}
	}
}

// What a cluster says of a node that is down is told apart from a cluster that cannot answer at all.
func TestWhatAnAnswerMeans(t *testing.T) {
	for _, c := range []struct {
		status int
		text   string
		kind   fault.Kind
		node   bool
	}{
		{500, "No path to node", fault.Unavailable, true}, {404, "No path to node", fault.NotFound, false}, {500, "rpc error: No path to node", fault.Unavailable, true},
		{500, "No cluster leader", fault.Unavailable, false}, {502, "", fault.Unavailable, false}, {429, "too many", fault.Unavailable, false},
		{500, "Enforcing job modify index 5: job exists", fault.Conflict, false}, {403, "Permission denied", fault.Forbidden, false}, {500, "1 error occurred:\n\t* wrong\n\n", fault.Internal, false},
	} {
		err := ofStatus(c.status, c.text, "ask")
		if fault.KindOf(err) != c.kind || errors.Is(err, files.ErrNodeDown) != c.node || strings.ContainsAny(fault.Public(err), "\n\t") {
			t.Errorf("%d %q: got %v", c.status, c.text, err)
		}
	}
}

func TestAnEnvironmentSurvivesItsJob(t *testing.T) {
	c := &Client{}
	data := []byte(`{"TaskGroups":[{"Name":"default-group","Tasks":[{"Name":"default-task"}]},{"Name":"config","Tasks":[{"Name":"config"}]}]}`)
	c.template.Store(&data)
	c.native.Store(true)
	for _, e := range []environment.Environment{
		{ID: 1, CPULimit: 20, MemoryLimit: 100, Image: "a/b:c"},
		{ID: 2, CPULimit: 1, NetworkAccess: true, Image: "host"},
		{ID: 3, NetworkAccess: true, ExposedPorts: []uint16{80, 22}},
		{ID: 4, NetworkAccess: true, Egress: []string{"pypi.org:443", "198.51.100.0/24"}, Runtime: "runsc"},
		{ID: 5, Devices: []environment.Device{
			{Name: "nvidia/gpu", Count: 2, Constraints: []environment.DeviceConstraint{{Attribute: "memory", Operator: ">=", Value: "40 GiB"}, {Attribute: "${device.model}", Operator: "regexp", Value: "A100"}}},
			{Name: "gpu", Count: 1, Share: environment.Either, Constraints: []environment.DeviceConstraint{{Attribute: "share", Operator: "=", Value: "mig"}}},
			{Name: "nvidia/gpu/Tesla T4 slot 4 GiB", Count: 1, Share: environment.OnlyPart, Constraints: []environment.DeviceConstraint{{Attribute: "memory", Operator: "is_set"}}},
		}},
		{ID: 6, WarmUp: environment.WarmUp{Command: []string{"python3", "-u"}, Imports: []string{"numpy"}}},
	} {
		for _, name := range []string{id, templateID(e.ID)} {
			j, err := c.derive(e, name, true)
			if err != nil {
				t.Fatal(err)
			}
			if got := settingsOf(j, e.ID).Settings(); got != e.Settings() {
				t.Errorf("%s: got %s, want %s", name, got, e.Settings())
			}
			if _, task := mainOf(j); name != id && task.Resources.Devices != nil {
				t.Errorf("the container of a template holds devices: %v", task.Resources.Devices)
			}
		}
	}
}

func TestProgressIsToldOnce(t *testing.T) {
	v := newView()
	at := func(status, kind, text string) *allocation {
		return &allocation{ClientStatus: status, TaskStates: map[string]*api.TaskState{mainTask: {Events: []*api.TaskEvent{{Type: "Received"}, {Type: kind, DisplayMessage: text}}}}}
	}
	for _, c := range []struct {
		a    *allocation
		want string
	}{
		{&allocation{ClientStatus: "pending"}, ""},
		{at("pending", "Task Setup", "Building"), ""},
		{at("pending", "Driver", "1 of 2"), "1 of 2"},
		{at("pending", "Driver", "1 of 2"), ""}, // another runner that waits for the same image
		{at("pending", "Driver", "2 of 2"), "2 of 2"},
		{at("running", "Driver", "late"), ""},
	} {
		if got := v.progress(c.a); got != c.want {
			t.Errorf("%+v: %q, want %q", c.a.TaskStates[mainTask], got, c.want)
		}
	}
}
