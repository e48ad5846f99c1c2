package command_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

var update = flag.Bool("update", false, "write the golden files anew")

func testJob(id string) *model.Job {
	return &model.Job{
		Namespace: "default", ID: id, Name: id, Type: model.JobTypeBatch, Priority: 50, Datacenters: []string{"*"}, NodePool: "default",
		Meta: map[string]string{"b": "2", "a": "1"},
		TaskGroups: []*model.TaskGroup{{Name: "g", Count: 1, Tasks: []*model.Task{{
			Name: "t", Driver: "docker", Config: map[string]any{"image": "x", "args": []any{"a", 1.5}}, Resources: model.Resources{CPU: 100, MemoryMB: 30},
		}}}},
	}
}

// markable is a job with a group that places nothing.
func markable() *model.Job {
	j := testJob("10-a")
	j.TaskGroups = append(j.TaskGroups, &model.TaskGroup{Name: "config", Meta: map[string]string{"used": "false"}, Tasks: j.TaskGroups[0].Tasks})
	return j
}

func eval(id, job string) *model.Evaluation {
	return &model.Evaluation{ID: id, Namespace: "default", JobID: job, Priority: 50, Type: "batch", Status: model.EvalPending, TriggeredBy: model.TriggerJobRegister}
}

// log is one entry of each kind, and a few more, in an order that works.
func log() []any {
	alloc := &model.Allocation{
		ID: "a1", Namespace: "default", EvalID: "e1", Name: "j1.g[0]", NodeID: "n1", JobID: "j1", TaskGroup: "g", DesiredStatus: model.DesiredRun,
		ClientStatus: model.ClientPending, Resources: model.AllocatedResources{Tasks: map[string]*model.AllocatedTask{"t": {CPU: 100, MemoryMB: 30}}},
	}
	return []any{
		&command.NodeRegister{Now: 10, Node: &model.Node{ID: "n1", SecretID: "s", Name: "one", Datacenter: "dc1", Status: model.NodeReady}},
		&command.JobRegister{Now: 20, Job: testJob("j1"), Eval: eval("e1", "j1")},
		&command.PlanResults{Now: 30, Plans: []*state.Placement{{EvalID: "e1", Namespace: "default", JobID: "j1", JobCreateIndex: 2, JobModifyIndex: 2, Place: []*model.Allocation{alloc}}}},
		&command.EvalUpdate{Now: 40, Finish: []*model.Evaluation{{ID: "e1", Namespace: "default", JobID: "j1", Status: model.EvalComplete}}},
		&command.AllocUpdates{Now: 50, NodeID: "n1", Allocs: []*model.AllocUpdate{{ID: "a1", ClientStatus: model.ClientRunning, ModifyTime: 49}}},
		&command.AllocStop{Now: 60, AllocID: "a1", Description: "why"},
		&command.NodeStatus{Now: 70, NodeID: "n1", Status: model.NodeDown},
		&command.NodeEligibility{Now: 80, NodeID: "n1", Eligibility: model.NodeIneligible},
		&command.SchedulerConfig{Now: 90, Config: &state.SchedulerConfig{Algorithm: "spread"}},
		&command.JobRegister{Now: 100, Job: testJob("j2"), Eval: eval("e2", "j2")},
		&command.JobDeregister{Now: 110, Namespace: "default", JobID: "j1", Purge: true, Eval: eval("e3", "j1")},
		&command.Collect{Now: 120, Evals: []string{"e1"}},
		batchOf(&command.EvalUpdate{Now: 130, Create: []*model.Evaluation{eval("e4", "j2")}}, &command.Collect{Now: 131, Evals: []string{"e3"}}),
	}
}

func batchOf(entries ...any) *command.Batch {
	b := &command.Batch{Now: 130}
	for _, e := range entries {
		data, err := command.Encode(e)
		if err != nil {
			panic(err)
		}
		b.Entries = append(b.Entries, data)
	}
	return b
}

// lifeLog is one entry of each kind of the life area, in an order that works on an empty store.
func lifeLog() []any {
	template := testJob("often")
	template.Periodic = &model.Periodic{Enabled: true, Specs: []string{"* * * * *"}, ProhibitOverlap: true}
	grade := testJob("grade")
	grade.Parameterized = &model.Parameterized{Payload: "optional", MetaOptional: []string{"x"}}
	web := testJob("web")
	web.Type = model.JobTypeService
	web.TaskGroups[0].Update = &model.UpdatePolicy{MaxParallel: 1, ProgressDeadline: 1000, Canary: 1}
	alloc := &model.Allocation{
		ID: "a1", Namespace: "default", Name: "web.g[0]", NodeID: "n1", JobID: "web", TaskGroup: "g", DesiredStatus: model.DesiredRun, ClientStatus: model.ClientPending,
		DeploymentID: "d1", DeploymentStatus: &model.AllocHealth{Canary: true},
	}
	return []any{
		&command.NodeRegister{Now: 10, Node: &model.Node{ID: "n1", SecretID: "s", Name: "one", Status: model.NodeReady}},
		&command.JobRegister{Now: 20, Job: web, Submission: &state.Submission{Namespace: "default", JobID: "web", Source: "job {}", Format: "hcl2"}},
		&command.PlanResults{Now: 30, Plans: []*state.Placement{{Namespace: "default", JobID: "web", JobCreateIndex: 2, JobModifyIndex: 2, Place: []*model.Allocation{alloc},
			Deployment: &model.Deployment{ID: "d1", Namespace: "default", JobID: "web", JobCreateIndex: 2, Status: model.DeploymentRunning,
				TaskGroups: map[string]*model.DeploymentGroup{"g": {DesiredTotal: 1, DesiredCanaries: 1, ProgressDeadline: 1000}}}}}},
		&command.DeploymentHealth{Now: 40, DeploymentID: "d1", Healthy: []string{"a1"}},
		&command.DeploymentPromote{Now: 50, DeploymentID: "d1", Groups: []string{"g"}, Eval: eval("e1", "web")},
		&command.DeploymentStatus{Now: 60, Update: state.DeploymentStatus{DeploymentID: "d1", Status: model.DeploymentSuccessful, Description: "well"}},
		&command.JobScale{Now: 70, Namespace: "default", JobID: "web", Group: "g", Event: state.ScalingEvent{Count: new(int64(2)), Message: "more"}, Eval: eval("e2", "web")},
		&command.JobVersionTag{Now: 80, Namespace: "default", JobID: "web", Version: 0, Tag: &model.VersionTag{Name: "good", TaggedTime: 80}},
		&command.JobStability{Now: 90, Namespace: "default", JobID: "web", Version: 1, Stable: true},
		&command.AllocTransitions{Now: 100, Transitions: []state.Transition{{AllocID: "a1", DesiredTransition: model.DesiredTransition{Migrate: true}}}, Evals: []*model.Evaluation{eval("e3", "web")}},
		&command.NodeDrain{Now: 110, Updates: []state.DrainUpdate{{NodeID: "n1", Spec: &state.DrainSpec{Deadline: 5}, Meta: map[string]string{"why": "disk"}}}},
		&command.NodeSilence{Now: 120, Silent: []state.SilentNode{{NodeID: "n1", Since: 100}}},
		&command.JobRegister{Now: 130, Job: template},
		&command.PeriodicLaunch{Now: 140, Time: 130, Child: state.Child{Namespace: "default", ParentID: "often", ID: "often/periodic-130"}, Eval: eval("e4", "often")},
		&command.JobRegister{Now: 150, Job: grade},
		&command.JobDispatch{Now: 160, Child: state.Child{Namespace: "default", ParentID: "grade", ID: "grade/dispatch-1", Meta: map[string]string{"x": "1"}, Payload: []byte("p"), Token: "once"}, Eval: eval("e5", "grade")},
		&command.ReconcileSummaries{Now: 170},
		&command.EvalDelete{Now: 180, IDs: []string{"e1"}},
		&command.DeploymentDelete{Now: 190, IDs: []string{"d1"}},
		&command.JobRegister{Now: 200, Job: markable()},
		&command.JobMark{Now: 210, Namespace: "default", JobID: "10-a", Group: "config", AtIndex: 20, Meta: map[string]string{"used": "true", "timeout": "30"}},
		&command.NodeDeregister{Now: 200, NodeIDs: []string{"n1"}},
	}
}

func apply(t *testing.T, s *state.Store, index uint64, entry any) any {
	t.Helper()
	data, err := command.Encode(entry)
	if err != nil {
		t.Fatal(err)
	}
	r, err := command.Apply(s, index, data)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTagsAndBytesAreWhatIsOnDisks(t *testing.T) {
	var got strings.Builder
	for _, e := range append(log(), lifeLog()...) {
		data, err := command.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%T %s\n", e, hex.EncodeToString(data))
	}
	const file = "testdata/entries.golden"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("entries differ from %s: old logs could not be read any more\n%s", file, got.String())
	}
}

func TestEqualLogsGiveEqualHashesAlsoAcrossASnapshot(t *testing.T) {
	t.Run("core", func(t *testing.T) { equalHashes(t, log) })
	t.Run("life", func(t *testing.T) { equalHashes(t, lifeLog) })
}

func equalHashes(t *testing.T, log func() []any) {
	a, b := state.New(), state.New()
	for i, e := range log() {
		if err, failed := apply(t, a, uint64(i+1), e).(error); failed {
			t.Fatalf("entry %d: %v", i+1, err)
		}
		apply(t, b, uint64(i+1), log()[i])
		ha, err := a.Hash()
		if err != nil {
			t.Fatal(err)
		}
		if hb, _ := b.Hash(); ha != hb {
			t.Fatalf("after entry %d the hashes differ", i+1)
		}
		// b goes on from a snapshot of itself.
		var snap bytes.Buffer
		if err := b.Snapshot().Persist(&snap); err != nil {
			t.Fatal(err)
		}
		b = state.New()
		if err := b.Restore(&snap); err != nil {
			t.Fatal(err)
		}
		if hb, _ := b.Hash(); ha != hb {
			t.Fatalf("after entry %d the restored hash differs", i+1)
		}
		if b.Index() != a.Index() {
			t.Fatalf("index %d, want %d", b.Index(), a.Index())
		}
	}
}

func TestACutSnapshotIsRefusedAndChangesNothing(t *testing.T) {
	s := state.New()
	apply(t, s, 1, log()[0])
	before, _ := s.Hash()
	var snap bytes.Buffer
	if err := s.Snapshot().Persist(&snap); err != nil {
		t.Fatal(err)
	}
	if err := s.Restore(bytes.NewReader(snap.Bytes()[:snap.Len()-5])); err == nil {
		t.Error("it was accepted")
	}
	if after, _ := s.Hash(); after != before {
		t.Error("the state changed")
	}
}

func TestWhatIsNotKnownStopsTheServer(t *testing.T) {
	for _, data := range [][]byte{{}, {1}, {200, 1}, {1, 99}, {1, 1, 0xc1}} {
		if _, err := command.Apply(state.New(), 1, data); !errors.Is(err, command.ErrUnknown) {
			t.Errorf("%v gave %v", data, err)
		}
	}
}

func TestStatusesOfAJob(t *testing.T) {
	s := state.New()
	entries := log()
	status := func() string {
		j := s.Snapshot().Job(nil, "default", "j1")
		if j == nil {
			return "gone"
		}
		return j.Status
	}
	for i, want := range []string{"gone", "pending", "running", "running", "running", "dead", "dead", "dead", "dead", "dead", "gone"} {
		apply(t, s, uint64(i+1), entries[i])
		if got := status(); got != want {
			t.Errorf("after entry %d it is %s, want %s", i+1, got, want)
		}
	}
	snap := s.Snapshot()
	if snap.Alloc(nil, "a1") != nil {
		t.Error("the purged job's allocation is there")
	}
	stones := 0
	for d := range snap.Tombstones(nil, "n1") {
		stones++
		if d.AllocID != "a1" || d.Index != 11 {
			t.Errorf("the tombstone is %+v", d)
		}
	}
	if stones != 1 {
		t.Errorf("%d tombstones", stones)
	}
	// A report that crossed the purge must not keep the news of it from the node.
	apply(t, s, 20, &command.AllocUpdates{NodeID: "n1", Allocs: []*model.AllocUpdate{{ID: "a1", ClientStatus: model.ClientRunning}, {ID: "a1", ClientStatus: model.ClientComplete}}})
	stones = 0
	for range s.Snapshot().Tombstones(nil, "n1") {
		stones++
	}
	if stones != 1 {
		t.Error("a node that said how it runs is never told that it is gone")
	}
	apply(t, s, 21, &command.AllocUpdates{NodeID: "n1", Allocs: []*model.AllocUpdate{{ID: "a1", Buried: true}}})
	for range s.Snapshot().Tombstones(nil, "n1") {
		t.Error("the tombstone stays after the node confirmed")
	}
}

func TestAPlanForAJobThatIsGoneIsRefused(t *testing.T) {
	s := state.New()
	entries := log()
	apply(t, s, 1, entries[0])
	apply(t, s, 2, entries[1])
	apply(t, s, 3, &command.JobDeregister{Namespace: "default", JobID: "j1", Purge: true})
	apply(t, s, 4, &command.JobRegister{Job: testJob("j1")})
	done := apply(t, s, 5, entries[2]).([]state.Placed)
	if !done[0].Refused || s.Snapshot().Alloc(nil, "a1") != nil {
		t.Errorf("it was applied: %+v", done)
	}
}

func TestEnforceIndex(t *testing.T) {
	s := state.New()
	try := func(index, at uint64, meta string) any {
		j := testJob("j1")
		j.Meta["x"] = meta
		return apply(t, s, index, &command.JobRegister{Job: j, EnforceIndex: true, AtIndex: at})
	}
	if err, ok := try(1, 7, "a").(error); !ok || !strings.HasPrefix(err.Error(), "Enforcing job modify index 7: job does not exist") {
		t.Error(err)
	}
	if r := try(2, 0, "a").(*command.Registered); r.JobModifyIndex != 2 {
		t.Errorf("%+v", r)
	}
	if err, ok := try(3, 0, "b").(error); !ok || !fault.Is(err, fault.Conflict) {
		t.Error(err)
	}
	if r := try(4, 2, "b").(*command.Registered); r.JobModifyIndex != 4 {
		t.Errorf("%+v", r)
	}
	if _, ok := try(5, 2, "c").(error); !ok {
		t.Error("an old index was accepted")
	}
	for i := range 10 {
		apply(t, s, uint64(10+i), &command.JobRegister{Job: func() *model.Job { j := testJob("j1"); j.Priority = i + 1; return j }()})
	}
	n := 0
	for range s.Snapshot().JobVersions(nil, "default", "j1") {
		n++
	}
	if n != 6 {
		t.Errorf("%d versions are kept", n)
	}
}
