package state_test

import (
	"bytes"
	"strings"
	"testing"
	"unsafe"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// own is a text that is in memory once more.
func own(s string) string { return strings.Clone(s) }

// finished is a store with one batch job that has ended, of texts that nobody shares.
func finished(t *testing.T) *state.Store {
	t.Helper()
	s := state.New()
	index := uint64(0)
	do := func(f func(*state.Tx)) {
		t.Helper()
		index++
		if err := s.Update(index, int64(index), "Test", func(tx *state.Tx) error { f(tx); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	eval := func(status string) *model.Evaluation {
		return &model.Evaluation{ID: own("e1"), Namespace: own("default"), JobID: own("job"), Status: status}
	}
	do(func(tx *state.Tx) {
		if _, err := tx.RegisterJob(&model.Job{Namespace: own("default"), ID: own("job"), Name: own("job"), Type: model.JobTypeBatch,
			TaskGroups: []*model.TaskGroup{{Name: "g", Count: 1, Tasks: []*model.Task{{Name: "t"}}}}}, false, 0); err != nil {
			t.Fatal(err)
		}
		tx.PutEval(eval(model.EvalPending))
	})
	do(func(tx *state.Tx) {
		tx.ApplyPlan(&state.Placement{EvalID: own("e1"), Namespace: own("default"), JobID: own("job"), JobCreateIndex: 1, JobModifyIndex: 1, Place: []*model.Allocation{{
			ID: own("a1"), Namespace: own("default"), JobID: own("job"), EvalID: own("e1"), NodeID: "n", TaskGroup: "g", DesiredStatus: model.DesiredRun, ClientStatus: model.ClientPending,
		}}})
		tx.FinishEval(eval(model.EvalComplete))
	})
	for _, status := range []string{model.ClientRunning, model.ClientComplete} {
		do(func(tx *state.Tx) { tx.ReportAlloc("n", &model.AllocUpdate{ID: own("a1"), ClientStatus: status}) })
	}
	return s
}

// A job that has ended has each of its ids once in memory: whoever has many of them has little to keep and to walk through.
func TestIdsAreOneInMemory(t *testing.T) {
	made := finished(t)
	var snap, dense bytes.Buffer
	if err := made.Snapshot().Persist(&snap); err != nil {
		t.Fatal(err)
	}
	if err := made.Snapshot().PersistDense(&dense); err != nil {
		t.Fatal(err)
	}
	restored := func(from *bytes.Buffer) *state.Store {
		s := state.New()
		if err := s.Restore(from); err != nil {
			t.Fatal(err)
		}
		return s
	}
	want, err := made.Hash()
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*state.Store{"made": made, "restored": restored(&snap), "restored from the dense form": restored(&dense)} {
		now := s.Snapshot()
		j, e, a := now.Job(nil, "default", "job"), now.Eval(nil, "e1"), now.Alloc(nil, "a1")
		if j == nil || e == nil || a == nil || j.Status != model.JobDead || e.Status != model.EvalComplete || a.ClientStatus != model.ClientComplete {
			t.Fatalf("%s: %+v, %+v, %+v", name, j, e, a)
		}
		for what, pair := range map[string][2]string{
			"name": {j.ID, j.Name}, "the evaluation's job": {j.ID, e.JobID}, "the allocation's evaluation": {e.ID, a.EvalID},
			"the allocation's job": {a.Job.ID, a.JobID}, "its namespace": {a.Job.Namespace, a.Namespace},
		} {
			if pair[0] != pair[1] || unsafe.StringData(pair[0]) != unsafe.StringData(pair[1]) {
				t.Errorf("%s: %s: %q and %q are two", name, what, pair[0], pair[1])
			}
		}
		if got, err := s.Hash(); err != nil || got != want {
			t.Errorf("%s: the hash is %s, not %s, %v", name, got, want, err)
		}
	}
}

// What was alive when it was written may have ended before the update has: the status of its job is that of the end of the update.
func TestTheStatusOfAJobIsThatOfTheEndOfAnUpdate(t *testing.T) {
	for _, c := range []struct {
		name    string
		reports []string
		removed bool
		want    string
	}{
		{"runs", []string{model.ClientRunning}, false, model.JobRunning},
		{"ran and ended", []string{model.ClientRunning, model.ClientComplete}, false, model.JobDead},
		{"ended", []string{model.ClientComplete, model.ClientRunning}, false, model.JobDead},
		{"ran and was removed", []string{model.ClientRunning}, true, model.JobDead},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := state.New()
			register := func(tx *state.Tx) error {
				_, err := tx.RegisterJob(&model.Job{Namespace: "default", ID: "job", Type: model.JobTypeBatch, TaskGroups: []*model.TaskGroup{{Name: "g", Count: 1}}}, false, 0)
				tx.PutEval(&model.Evaluation{ID: "e1", Namespace: "default", JobID: "job", Status: model.EvalComplete})
				return err
			}
			live := func(tx *state.Tx) error {
				tx.ApplyPlan(&state.Placement{EvalID: "e1", Namespace: "default", JobID: "job", JobCreateIndex: 1, JobModifyIndex: 1, Place: []*model.Allocation{{
					ID: "a1", Namespace: "default", JobID: "job", EvalID: "e1", NodeID: "n", TaskGroup: "g", DesiredStatus: model.DesiredRun, ClientStatus: model.ClientPending,
				}}})
				for _, status := range c.reports {
					tx.ReportAlloc("n", &model.AllocUpdate{ID: "a1", ClientStatus: status})
				}
				if c.removed {
					tx.StopAlloc("a1", "not needed")
					tx.ReportAlloc("n", &model.AllocUpdate{ID: "a1", ClientStatus: model.ClientComplete})
					tx.Collect(nil, []string{"a1"}, nil, nil)
				}
				return nil
			}
			for i, f := range []func(*state.Tx) error{register, live} {
				if err := s.Update(uint64(i)+1, 1, "Test", f); err != nil {
					t.Fatal(err)
				}
			}
			if got := s.Snapshot().Job(nil, "default", "job").Status; got != c.want {
				t.Errorf("the job is %s, not %s", got, c.want)
			}
		})
	}
}
