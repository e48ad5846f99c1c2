package state_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// naive counts what a node's allocations hold.
func naive(s *state.Snapshot, node string) *model.Usage {
	u := &model.Usage{}
	for a := range s.AllocsByNode(nil, node) {
		if a.Holds() {
			u.Add(&a.Resources)
		}
	}
	return u
}

// Whatever becomes of allocations, the usage that the store keeps is what counting them gives, also after a restore.
func TestUsageIsTheSumOfWhatIsHeld(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := state.New()
		index := uint64(0)
		update := func(f func(*state.Tx)) {
			index++
			if err := s.Update(index, int64(index), "Test", func(tx *state.Tx) error { f(tx); return nil }); err != nil {
				t.Fatal(err)
			}
		}
		nodes, jobs := []string{"n0", "n1", "n2"}, []string{"j0", "j1"}
		var allocs []string
		register := func(id string) {
			update(func(tx *state.Tx) {
				if _, err := tx.RegisterJob(&model.Job{Namespace: "default", ID: id, Priority: int(index),
					TaskGroups: []*model.TaskGroup{{Name: "g", Count: 1, Tasks: []*model.Task{{Name: "t"}}}}}, false, 0); err != nil {
					t.Fatal(err)
				}
			})
		}
		t.Repeat(map[string]func(*rapid.T){
			"place": func(t *rapid.T) {
				id := rapid.SampledFrom(jobs).Draw(t, "job")
				if s.Snapshot().Job(nil, "default", id) == nil {
					register(id)
				}
				j := s.Snapshot().Job(nil, "default", id)
				p := &state.Placement{Namespace: "default", JobID: id, JobCreateIndex: j.CreateIndex, JobModifyIndex: j.JobModifyIndex}
				for range rapid.IntRange(1, 3).Draw(t, "count") {
					a := &model.Allocation{ID: fmt.Sprint("a", len(allocs)), Namespace: "default", JobID: id, TaskGroup: "g",
						NodeID: rapid.SampledFrom(nodes).Draw(t, "node"), DesiredStatus: model.DesiredRun, ClientStatus: model.ClientPending,
						Resources: model.AllocatedResources{DiskMB: 7, Tasks: map[string]*model.AllocatedTask{"t": {CPU: 3, MemoryMB: 5}}}}
					if v := rapid.IntRange(0, 3).Draw(t, "port"); v > 0 {
						a.Resources.Ports = []model.AllocatedPort{{Label: "p", Value: v}}
						a.Resources.Tasks["t"].Devices = []model.AllocatedDevice{{Name: "gpu", DeviceIDs: []string{fmt.Sprint(v)}}}
					}
					allocs = append(allocs, a.ID)
					p.Place = append(p.Place, a)
				}
				update(func(tx *state.Tx) { tx.ApplyPlan(p) })
			},
			"report": func(t *rapid.T) {
				if len(allocs) == 0 {
					t.Skip()
				}
				id := rapid.SampledFrom(allocs).Draw(t, "alloc")
				a := s.Snapshot().Alloc(nil, id)
				if a == nil {
					t.Skip()
				}
				status := rapid.SampledFrom([]string{model.ClientRunning, model.ClientComplete, model.ClientFailed}).Draw(t, "status")
				update(func(tx *state.Tx) { tx.ReportAlloc(a.NodeID, &model.AllocUpdate{ID: id, ClientStatus: status}) })
			},
			"stop": func(t *rapid.T) {
				if len(allocs) == 0 {
					t.Skip()
				}
				id := rapid.SampledFrom(allocs).Draw(t, "alloc")
				lost := rapid.SampledFrom([]string{"", model.ClientLost}).Draw(t, "lost")
				update(func(tx *state.Tx) {
					tx.ApplyPlan(&state.Placement{Namespace: "default", JobID: "j0", Stop: []state.Stop{{AllocID: id, Desired: model.DesiredStop, ClientStatus: lost}}})
				})
			},
			"purge": func(t *rapid.T) {
				id := rapid.SampledFrom(jobs).Draw(t, "job")
				update(func(tx *state.Tx) { tx.DeregisterJob("default", id, true) })
			},
			"collect": func(*rapid.T) { update(func(tx *state.Tx) { tx.Collect(nil, slices.Clone(allocs), nil, nil) }) },
			"restore": func(t *rapid.T) { s = restored(t, s, rapid.Bool().Draw(t, "dense")) },
			"": func(t *rapid.T) {
				snap := s.Snapshot()
				for _, n := range nodes {
					if diff := cmp.Diff(naive(snap, n), snap.Usage(n), cmpopts.EquateEmpty(), cmp.AllowUnexported(model.Usage{})); diff != "" {
						t.Fatalf("usage of %s (- counted, + kept):\n%s", n, diff)
					}
				}
			},
		})
	})
}

// What the servers changed since an index is a range, whatever else is on the node.
func TestChangesOfANodeSinceAnIndex(t *testing.T) {
	s := state.New()
	for i := uint64(1); i <= 20; i++ {
		if err := s.Update(i, int64(i), "Test", func(tx *state.Tx) error {
			j, err := tx.RegisterJob(&model.Job{Namespace: "default", ID: fmt.Sprint("j", i), TaskGroups: []*model.TaskGroup{{Name: "g"}}}, false, 0)
			tx.ApplyPlan(&state.Placement{Namespace: "default", JobID: j.ID, JobCreateIndex: i, JobModifyIndex: i, Place: []*model.Allocation{
				{ID: fmt.Sprint("a", i), Namespace: "default", JobID: j.ID, NodeID: fmt.Sprint("n", i%2), DesiredStatus: model.DesiredRun},
			}})
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for a := range s.Snapshot().AllocsByNodeSince("n0", 15) {
		got = append(got, a.ID)
	}
	if want := []string{"a16", "a18", "a20"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A step that fails after it has written leaves nothing behind, whatever ran before it in the same update.
func TestAFailedStepIsUndone(t *testing.T) {
	s := state.New()
	put := func(id string) func(*state.Tx) error {
		return func(tx *state.Tx) error {
			tx.PutEval(&model.Evaluation{ID: id, Namespace: "default", JobID: "j", Status: model.EvalPending})
			return nil
		}
	}
	changes := 0
	s.Observe(func(c state.Commit) { changes += len(c.Changes) })
	refused := errors.New("no")
	errs := s.UpdateAll(7, 1, "Test", []state.Step{
		{Kind: "a", Do: put("a")},
		{Kind: "b", Do: func(tx *state.Tx) error { _ = put("b")(tx); return refused }},
		{Kind: "c", Do: put("c")},
	})
	if errs[0] != nil || !errors.Is(errs[1], refused) || errs[2] != nil {
		t.Errorf("the steps came to %v", errs)
	}
	if snap := s.Snapshot(); snap.Eval(nil, "a") == nil || snap.Eval(nil, "b") != nil || snap.Eval(nil, "c") == nil || changes != 2 {
		t.Errorf("the failed step is still there, or another is not; %d changes", changes)
	}
	s.UpdateAll(8, 1, "Test", []state.Step{{Do: func(*state.Tx) error { return refused }}})
	if s.Index() != 7 {
		t.Errorf("an update that failed moved the index to %d", s.Index())
	}
}
