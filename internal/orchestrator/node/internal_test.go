package node

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/model"
)

// naiveStatus is the rule as it is written: any failed is failed; else any running is running; else any pending is pending;
// all dead and well is complete.
func naiveStatus(states []*model.TaskState) string {
	anyIs := func(f func(*model.TaskState) bool) bool { return slices.ContainsFunc(states, f) }
	switch {
	case anyIs(func(s *model.TaskState) bool { return s.State == model.TaskDead && s.Failed }):
		return model.ClientFailed
	case anyIs(func(s *model.TaskState) bool { return s.State == model.TaskRunning }):
		return model.ClientRunning
	case anyIs(func(s *model.TaskState) bool { return s.State == model.TaskPending }):
		return model.ClientPending
	}
	return model.ClientComplete
}

func TestClientStatusFollowsItsRule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		state := rapid.Custom(func(t *rapid.T) *model.TaskState {
			return &model.TaskState{Failed: rapid.Bool().Draw(t, "failed"),
				State: rapid.SampledFrom([]string{model.TaskPending, model.TaskRunning, model.TaskDead}).Draw(t, "state")}
		})
		states := rapid.MapOf(rapid.StringMatching(`[a-e]`), state).Draw(t, "tasks")
		got, description := clientStatus(states)
		if want := naiveStatus(slices.Collect(maps.Values(states))); got != want {
			t.Fatalf("%s, want %s", got, want)
		}
		if description == "" {
			t.Fatal("no description")
		}
	})
}

func TestRestartsNeverExceedThePolicy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := model.RestartPolicy{Attempts: rapid.IntRange(0, 4).Draw(t, "attempts"), Delay: time.Second,
			Interval: time.Duration(rapid.IntRange(1, 60).Draw(t, "interval")) * time.Second,
			Mode:     rapid.SampledFrom([]string{model.RestartModeFail, model.RestartModeDelay}).Draw(t, "mode")}
		var r restarts
		now := time.Unix(1_000_000, 0)
		var granted []time.Time // restarts, by when they happen
		for range 40 {
			now = now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "step")) * time.Second)
			d := r.next(p, now)
			if d.reason == "" {
				t.Fatal("no reason")
			}
			if !d.restart {
				if p.Mode == model.RestartModeDelay && p.Attempts > 0 {
					t.Fatal("mode delay gave up")
				}
				continue
			}
			if d.delay < p.Delay {
				t.Fatalf("restart after %v", d.delay)
			}
			now = now.Add(d.delay)
			granted = append(granted, now)
		}
		if p.Attempts == 0 && len(granted) > 0 {
			t.Fatal("restarted though none is allowed")
		}
	})
}

func TestTaskEnv(t *testing.T) {
	task := &model.Task{Name: "main", Resources: model.Resources{CPU: 50, MemoryMB: 30, MemoryMaxMB: 60}, Meta: map[string]string{"who": "task"},
		Env: map[string]string{"A": "${NOMAD_ALLOC_ID}/${meta.rack}", "B": "${unknown.x}", "C": `${env["NOMAD_JOB_NAME"]}`}}
	g := &model.TaskGroup{Name: "group", Tasks: []*model.Task{task}, Meta: map[string]string{"who": "group", "a.b": "c"}}
	a := &model.Allocation{ID: "0123456789", Name: "job.group[2]", JobID: "job", Namespace: "default", TaskGroup: "group",
		Job:       &model.Job{ID: "job", Name: "the job", Region: "global", TaskGroups: []*model.TaskGroup{g}, Meta: map[string]string{"who": "job"}},
		Resources: model.AllocatedResources{Ports: []model.AllocatedPort{{Label: "http", Value: 20001, To: 80, HostIP: "10.0.0.1"}, {Label: "six", Value: 20002, HostIP: "fd00::5"}}}}
	n := &model.Node{Datacenter: "dc1", Meta: map[string]string{"rack": "r1"}}
	want := map[string]string{
		"NOMAD_ALLOC_ID": "0123456789", "NOMAD_SHORT_ALLOC_ID": "01234567", "NOMAD_ALLOC_NAME": "job.group[2]", "NOMAD_ALLOC_INDEX": "2",
		"NOMAD_TASK_NAME": "main", "NOMAD_GROUP_NAME": "group", "NOMAD_JOB_ID": "job", "NOMAD_JOB_NAME": "the job",
		"NOMAD_NAMESPACE": "default", "NOMAD_REGION": "global", "NOMAD_DC": "dc1",
		"NOMAD_CPU_LIMIT": "50", "NOMAD_MEMORY_LIMIT": "30", "NOMAD_MEMORY_MAX_LIMIT": "60",
		"NOMAD_META_who": "task", "NOMAD_META_WHO": "task", "NOMAD_META_a_b": "c", "NOMAD_META_A_B": "c",
		"NOMAD_PORT_http": "80", "NOMAD_HOST_PORT_http": "20001", "NOMAD_IP_http": "10.0.0.1", "NOMAD_ADDR_http": "10.0.0.1:20001",
		"NOMAD_PORT_six": "20002", "NOMAD_HOST_PORT_six": "20002", "NOMAD_IP_six": "fd00::5", "NOMAD_ADDR_six": "[fd00::5]:20002",
		"A": "0123456789/r1", "B": "${unknown.x}", "C": "the job",
	}
	if diff := cmp.Diff(want, taskEnv(n, a, g, task)); diff != "" {
		t.Error(diff)
	}
}

func TestLookAtThisMachine(t *testing.T) {
	m := look(t.TempDir())
	if m.resources.CPU <= 0 || m.resources.Cores <= 0 {
		t.Errorf("%+v", m.resources)
	}
	for k, v := range m.attributes {
		if strings.TrimSpace(v) == "" {
			t.Errorf("attribute %s is empty", k)
		}
	}
}

func TestSignalNames(t *testing.T) {
	for name, want := range map[string]int{"SIGINT": 2, "int": 2, "9": 9, "": 0, "SIGNONE": 0, "-1": 0} {
		if got := signalNumber(name); got != want {
			t.Errorf("%q is %d, want %d", name, got, want)
		}
	}
}
