package command_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"testing"

	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// Entries in their dense form make of a state what they would make of it otherwise, and stay as they are on disk.
func TestDenseEntriesDoTheSame(t *testing.T) {
	plain, dense := state.New(), state.New()
	var lines bytes.Buffer
	extra := []any{&command.PlanResults{Now: 140, Plans: []*state.Placement{
		{EvalID: "e2", Namespace: "default", JobID: "j2", JobCreateIndex: 10, JobModifyIndex: 10, Place: []*model.Allocation{
			{ID: "0f0e0d0c-0b0a-4908-8706-050403020100", Namespace: "default", EvalID: "e2", Name: "j2.g[0]", NodeID: "n1", JobID: "j2", TaskGroup: "g", DesiredStatus: "run",
				ClientStatus: "pending", Metrics: &model.AllocMetric{NodesEvaluated: 1, ScoreMeta: []model.NodeScore{{NodeID: "n1", Scores: map[string]float64{"binpack": 0.5}, Norm: 0.5}}}},
			{ID: "1f0e0d0c-0b0a-4908-8706-050403020100", Namespace: "default", EvalID: "e2", Name: "j2.g[1]", NodeID: "n1", JobID: "j2", TaskGroup: "g", DesiredStatus: "run",
				ClientStatus: "pending", Metrics: &model.AllocMetric{NodesEvaluated: 1, ScoreMeta: []model.NodeScore{{NodeID: "n1", Scores: map[string]float64{"binpack": 0.5}, Norm: 0.5}}}},
		}},
		{EvalID: "e4", Namespace: "default", JobID: "j2", Stop: []state.Stop{{AllocID: "a1", Desired: "stop"}}},
	}}, &command.AllocUpdates{Now: 150, NodeID: "n1", Allocs: []*model.AllocUpdate{{
		ID: "0f0e0d0c-0b0a-4908-8706-050403020100", ClientStatus: model.ClientRunning, ModifyTime: 149,
		TaskStates: map[string]*model.TaskState{"t": {State: model.TaskRunning, StartedAt: 148, Events: []*model.TaskEvent{{Type: model.TaskStarted, Time: 148}}}},
	}}}}
	for i, e := range append(log(), extra...) {
		index := uint64(i + 1)
		d, err := command.Pack(e)
		if err != nil {
			t.Fatal(err)
		}
		if d == nil {
			d = e
		}
		for s, entry := range map[*state.Store]any{plain: e, dense: d} {
			data, err := command.Encode(entry)
			if err != nil {
				t.Fatal(err)
			}
			if s == dense && d != e {
				fmt.Fprintln(&lines, hex.EncodeToString(data))
			}
			if _, err := command.Apply(s, index, data); err != nil {
				t.Fatal(err)
			}
		}
		want, err := plain.Hash()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := dense.Hash(); got != want || err != nil {
			t.Fatalf("after entry %d, %T, the states differ (%v)", index, e, err)
		}
	}
	var snap bytes.Buffer
	if err := dense.Snapshot().PersistDense(&snap); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(&lines, hex.EncodeToString(snap.Bytes()))
	restored := state.New()
	if err := restored.Restore(&snap); err != nil {
		t.Fatal(err)
	}
	want, _ := plain.Hash()
	if got, err := restored.Hash(); got != want || err != nil {
		t.Errorf("the restored state differs (%v)", err)
	}
	if n := len(log()); plain.Snapshot().Alloc(nil, "1f0e0d0c-0b0a-4908-8706-050403020100") == nil || n == 0 {
		t.Error("nothing was placed")
	}
	if want := golden(t, "testdata/packed.golden", lines.String()); lines.String() != want {
		t.Errorf("entries differ from the golden file: old ones could not be read any more\n%s", lines.String())
	}
}

// A batch places what it has registered itself, and nothing that was there before. The bytes are on disks.
func TestABatchPlacesWhatItRegisters(t *testing.T) {
	job := func(id string) *model.Job {
		return &model.Job{Namespace: "default", ID: id, Type: model.JobTypeBatch, TaskGroups: []*model.TaskGroup{{Name: "g", Count: 1}}}
	}
	plan := func(id string) *state.Placement {
		return &state.Placement{EvalID: "e-" + id, Namespace: "default", JobID: id, Place: []*model.Allocation{{
			ID: "a-" + id, Namespace: "default", EvalID: "e-" + id, Name: id + ".g[0]", NodeID: "n1", JobID: id, TaskGroup: "g", DesiredStatus: "run", ClientStatus: "pending",
		}}}
	}
	s := state.New()
	apply(t, s, 1, &command.JobRegister{Now: 1, Job: job("old")})
	plans, err := command.NewJobPlans(3, []*state.Placement{plan("new"), plan("old"), plan("nobody")})
	if err != nil {
		t.Fatal(err)
	}
	var parts [][]byte
	for _, e := range []any{
		&command.JobRegister{Now: 2, Job: job("new"), Eval: &model.Evaluation{ID: "e-new", Namespace: "default", JobID: "new", Status: model.EvalPending}},
		&command.JobRegister{Now: 2, Job: job("old"), Eval: &model.Evaluation{ID: "e-old", Namespace: "default", JobID: "old", Status: model.EvalPending}},
		plans,
	} {
		b, err := command.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, b)
	}
	results := apply(t, s, 2, &command.Batch{Now: 3, Entries: parts}).([]any)
	for i, refused := range []bool{false, true, true} {
		if placed := results[2].([]state.Placed)[i]; placed.Refused != refused || len(placed.Place) == 0 != refused {
			t.Errorf("plan %d came to %+v, want refused %v", i, placed, refused)
		}
	}
	snap := s.Snapshot()
	if a := snap.Alloc(nil, "a-new"); a == nil || a.CreateIndex != 2 || a.Job != snap.Job(nil, "default", "new") && a.Job.JobModifyIndex != 2 {
		t.Errorf("placed was %+v", a)
	}
	if e := snap.Eval(nil, "e-new"); e.SnapshotIndex != 2 || e.CreateIndex != 2 {
		t.Errorf("the evaluation of what was placed is %+v", e)
	}
	if e := snap.Eval(nil, "e-old"); e.SnapshotIndex != 0 {
		t.Errorf("the evaluation of what was not placed is %+v", e)
	}
	text := hex.EncodeToString(parts[2]) + "\n"
	if want := golden(t, "testdata/jobplans.golden", text); text != want {
		t.Errorf("the entry differs from the golden file: old ones could not be read any more\n%s", text)
	}
}
