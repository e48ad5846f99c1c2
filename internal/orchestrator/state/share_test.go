package state_test

import (
	"bytes"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"pgregory.net/rapid"

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

// restored is a store that was read from a snapshot of another one.
func restored(t interface{ Fatal(...any) }, s *state.Store, dense bool) *state.Store {
	var b bytes.Buffer
	persist := s.Snapshot().Persist
	if dense {
		persist = s.Snapshot().PersistDense
	}
	if err := persist(&b); err != nil {
		t.Fatal(err)
	}
	other := state.New()
	if err := other.Restore(&b); err != nil {
		t.Fatal(err)
	}
	return other
}

// A job that has ended has each of its ids once in memory: whoever has many of them has little to keep and to walk through.
func TestIdsAreOneInMemory(t *testing.T) {
	made := finished(t)
	want, err := made.Hash()
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*state.Store{"made": made, "restored": restored(t, made, false), "restored from the dense form": restored(t, made, true)} {
		now := s.Snapshot()
		j, e, a := now.Job(nil, "default", "job"), now.Eval(nil, "e1"), now.Alloc(nil, "a1")
		if j == nil || e == nil || a == nil || j.Status != model.JobDead || e.Status != model.EvalComplete || a.ClientStatus != model.ClientComplete {
			t.Fatalf("%s: %+v, %+v, %+v", name, j, e, a)
		}
		for what, pair := range map[string][2]string{
			"name": {j.ID, j.Name}, "the evaluation's job": {j.ID, e.JobID}, "the allocation's evaluation": {e.ID, a.EvalID},
			"the version": {j.ID, a.Job.ID}, "the allocation's job": {j.ID, a.JobID}, "its namespace": {a.Job.Namespace, a.Namespace},
		} {
			if pair[0] != pair[1] || unsafe.StringData(pair[0]) != unsafe.StringData(pair[1]) {
				t.Errorf("%s: %s: %q and %q are two", name, what, pair[0], pair[1])
			}
		}
		if err := now.CheckTrees(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := s.Hash(); err != nil || got != want {
			t.Errorf("%s: the hash is %s, not %s, %v", name, got, want, err)
		}
	}
}

// Whatever is written, in however many steps of one update, indexes are those of the objects, ids are the texts of their keys, allocations have the evaluation and
// the job that they were placed for, and a job that was touched has the status that a walk over all it has gives.
func TestTheStoreAgreesWithItself(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, index, made := state.New(), uint64(0), 0
		jobs := []string{"j", "j0", "j1", "p"}
		evalOf, jobOf := map[string]string{}, map[string]string{}
		next := func(kind string) string { made++; return fmt.Sprint(kind, made) }
		some := func(of map[string]string) string {
			if len(of) == 0 {
				return ""
			}
			return rapid.SampledFrom(slices.Sorted(maps.Keys(of))).Draw(t, "of")
		}
		evals := map[string]string{}
		// An operation writes, and says of which jobs.
		operation := func() func(*state.Tx) []string {
			job := rapid.SampledFrom(jobs).Draw(t, "job")
			switch rapid.SampledFrom([]string{"register", "eval", "plan", "plan", "report", "report", "stop", "deregister", "dispatch", "collect"}).Draw(t, "operation") {
			case "register":
				j := model.Job{Namespace: own("default"), ID: own(job), Name: own(job), Type: model.JobTypeBatch, Priority: rapid.IntRange(1, 3).Draw(t, "priority"),
					TaskGroups: []*model.TaskGroup{{Name: "g", Count: 1}}}
				switch {
				case job == "p":
					j.Parameterized = &model.Parameterized{}
				case rapid.IntRange(0, 3).Draw(t, "scaling") == 0:
					j.TaskGroups[0].Scaling = &model.Scaling{}
				case rapid.IntRange(0, 3).Draw(t, "periodic") == 0:
					j.Periodic = &model.Periodic{}
				}
				return func(tx *state.Tx) []string {
					j := j
					if _, err := tx.RegisterJob(&j, false, 0); err != nil {
						t.Fatal(err)
					}
					return []string{job}
				}
			case "eval":
				id := next("e")
				if rapid.Bool().Draw(t, "again") && len(evals) > 0 {
					id = some(evals)
					job = evals[id]
				}
				evals[id] = job
				status := rapid.SampledFrom([]string{model.EvalPending, model.EvalComplete}).Draw(t, "status")
				return func(tx *state.Tx) []string {
					tx.PutEval(&model.Evaluation{ID: own(id), Namespace: own("default"), JobID: own(job), Status: status})
					return []string{job}
				}
			case "plan":
				eval, ids := next("e"), []string{next("a"), next("a")}
				evals[eval] = job
				previous := ""
				if rapid.Bool().Draw(t, "replaces") {
					previous = some(evalOf)
				}
				for _, id := range ids {
					evalOf[id], jobOf[id] = eval, job
				}
				return func(tx *state.Tx) []string {
					tx.PutEval(&model.Evaluation{ID: own(eval), Namespace: own("default"), JobID: own(job), Status: model.EvalPending})
					j := tx.Job(nil, "default", job)
					if j == nil {
						return []string{job}
					}
					p := &state.Placement{EvalID: own(eval), Namespace: own("default"), JobID: own(job), JobCreateIndex: j.CreateIndex, JobModifyIndex: j.JobModifyIndex}
					for _, id := range ids {
						p.Place = append(p.Place, &model.Allocation{ID: own(id), Namespace: own("default"), JobID: own(job), EvalID: own(eval), NodeID: own("n"), TaskGroup: "g",
							DesiredStatus: model.DesiredRun, ClientStatus: model.ClientPending, PreviousAllocation: previous})
					}
					tx.ApplyPlan(p)
					tx.FinishEval(&model.Evaluation{ID: own(eval), Namespace: own("default"), JobID: own(job), Status: model.EvalComplete})
					return []string{job}
				}
			case "report":
				id := some(jobOf)
				status := rapid.SampledFrom([]string{model.ClientRunning, model.ClientComplete, model.ClientFailed}).Draw(t, "status")
				return func(tx *state.Tx) []string {
					tx.ReportAlloc("n", &model.AllocUpdate{ID: own(id), ClientStatus: status})
					return nil // or it was refused
				}
			case "stop":
				id := some(jobOf)
				return func(tx *state.Tx) []string {
					tx.StopAlloc(id, "not needed")
					return nil
				}
			case "deregister":
				purge := rapid.Bool().Draw(t, "purge")
				return func(tx *state.Tx) []string {
					if tx.DeregisterJob("default", job, purge) == nil || purge {
						return nil
					}
					return []string{job}
				}
			case "dispatch":
				id, token := "p/"+next("d"), rapid.SampledFrom([]string{"", "t"}).Draw(t, "token")
				return func(tx *state.Tx) []string {
					_, _, _ = tx.Dispatch(state.Child{Namespace: "default", ParentID: "p", ID: own(id), Token: token}) // or p is not there, or stopped
					return nil
				}
			}
			alloc, eval := some(jobOf), some(evals)
			return func(tx *state.Tx) []string {
				tx.Collect([]string{eval}, []string{alloc}, [][2]string{{"default", job}}, []string{alloc})
				return nil
			}
		}
		for range rapid.IntRange(1, 30).Draw(t, "updates") {
			index++
			var steps []state.Step
			last := map[string]int{} // touched, by the last step that did
			for i := range rapid.IntRange(1, 4).Draw(t, "steps") {
				var all []func(*state.Tx) []string
				for range rapid.IntRange(1, 3).Draw(t, "operations") {
					all = append(all, operation())
				}
				steps = append(steps, state.Step{Now: int64(index), Kind: "Test", Do: func(tx *state.Tx) error {
					for _, f := range all {
						for _, job := range f(tx) {
							last[job] = i
						}
					}
					return nil
				}})
			}
			for _, err := range s.UpdateAll(index, int64(index), "Test", steps) {
				if err != nil {
					t.Fatal(err)
				}
			}
			if rapid.IntRange(0, 5).Draw(t, "restore") == 0 {
				s = restored(t, s, rapid.Bool().Draw(t, "dense"))
			}
			now := s.Snapshot()
			if err := now.CheckTrees(); err != nil {
				t.Fatal(err)
			}
			for job, step := range last {
				if j := now.Job(nil, "default", job); j != nil && step == len(steps)-1 && j.Status != now.WalkedStatus(j) {
					t.Fatalf("job %s is %s, and has what makes it %s", job, j.Status, now.WalkedStatus(j))
				}
			}
			for a := range now.Allocs(nil, "") {
				if a.EvalID != evalOf[a.ID] || a.JobID != jobOf[a.ID] || a.Job == nil || a.Job.ID != a.JobID {
					t.Fatalf("allocation %s is of %s and %s, not of %s and %s", a.ID, a.JobID, a.EvalID, jobOf[a.ID], evalOf[a.ID])
				}
			}
			for e := range now.Evals(nil, "") {
				if e.JobID != evals[e.ID] {
					t.Fatalf("evaluation %s is of %s, not of %s", e.ID, e.JobID, evals[e.ID])
				}
			}
		}
	})
}

// A record that an allocation is gone keeps nothing of it but its id.
func TestATombstoneIsSmall(t *testing.T) {
	const allocs = 5000
	s := state.New()
	long := strings.Repeat("x", 1000)
	do := func(index uint64, f func(*state.Tx)) {
		if err := s.Update(index, 1, "Test", func(tx *state.Tx) error { f(tx); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	do(1, func(tx *state.Tx) {
		if _, err := tx.RegisterJob(&model.Job{Namespace: "default", ID: long, TaskGroups: []*model.TaskGroup{{Name: "g"}}}, false, 0); err != nil {
			t.Fatal(err)
		}
	})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	do(2, func(tx *state.Tx) {
		p := &state.Placement{Namespace: "default", JobID: long, JobCreateIndex: 1, JobModifyIndex: 1}
		for i := range allocs {
			p.Place = append(p.Place, &model.Allocation{ID: fmt.Sprintf("%036d", i), Namespace: "default", JobID: long, NodeID: "n", DesiredStatus: model.DesiredRun})
		}
		tx.ApplyPlan(p)
	})
	do(3, func(tx *state.Tx) { tx.DeregisterJob("default", long, true) })
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := len(slices.Collect(s.Snapshot().Tombstones(nil, "n"))); n != allocs {
		t.Fatalf("there are %d", n)
	}
	if each := int(after.HeapAlloc-before.HeapAlloc) / allocs; each > 700 {
		t.Errorf("each takes %d bytes", each)
	}
	runtime.KeepAlive(s)
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
