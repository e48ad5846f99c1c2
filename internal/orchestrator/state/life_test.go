package state_test

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// world is a store and a second one that starts over from a snapshot now and then: they must never differ.
type world struct {
	t     *rapid.T
	a, b  *state.Store
	index uint64
}

func (w *world) do(f func(*state.Tx) error) {
	w.index++
	ea := w.a.Update(w.index, int64(w.index), "Test", f)
	eb := w.b.Update(w.index, int64(w.index), "Test", f)
	if (ea == nil) != (eb == nil) {
		w.t.Fatalf("one store says %v, the other %v", ea, eb)
	}
}

func (w *world) same() {
	if w.index%4 != 0 {
		return
	}
	ha, err := w.a.Hash()
	if err != nil {
		w.t.Fatal(err)
	}
	var snap bytes.Buffer
	if err := w.b.Snapshot().Persist(&snap); err != nil {
		w.t.Fatal(err)
	}
	w.b = state.New()
	if err := w.b.Restore(&snap); err != nil {
		w.t.Fatal(err)
	}
	if hb, _ := w.b.Hash(); ha != hb {
		w.t.Fatal("the store that was restored differs")
	}
}

func plain(id string, n int) *model.Job {
	return &model.Job{Namespace: "default", ID: id, Type: model.JobTypeBatch, Priority: n, TaskGroups: []*model.TaskGroup{{Name: "g", Count: 1}}}
}

// Whatever nodes and operators say, a deployment counts its allocations right, also when notes are made of versions that allocations still refer to.
func TestDeploymentsCountWhatIsWell(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t, a: state.New(), b: state.New()}
		register := func(n int) {
			w.do(func(tx *state.Tx) error { _, err := tx.RegisterJob(plain("web", n), false, 0); return err })
		}
		register(0)
		var allocs []string
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			id := ""
			if len(allocs) > 0 {
				id = rapid.SampledFrom(allocs).Draw(t, "alloc")
			}
			switch step := rapid.IntRange(0, 7).Draw(t, "step"); {
			case step == 0 && len(allocs) < 6 || id == "":
				a := fmt.Sprint("a", len(allocs))
				allocs = append(allocs, a)
				begin := w.a.Snapshot().Deployment(nil, "d") == nil
				w.do(func(tx *state.Tx) error {
					j := tx.Job(nil, "default", "web")
					p := &state.Placement{Namespace: "default", JobID: "web", JobCreateIndex: j.CreateIndex, JobModifyIndex: j.JobModifyIndex, Place: []*model.Allocation{{
						ID: a, Namespace: "default", JobID: "web", TaskGroup: "g", NodeID: "n", DeploymentID: "d", DesiredStatus: model.DesiredRun, ClientStatus: model.ClientPending,
						DeploymentStatus: &model.AllocHealth{Canary: true},
					}}}
					if begin {
						p.Deployment = &model.Deployment{ID: "d", Namespace: "default", JobID: "web", JobCreateIndex: j.CreateIndex, Status: model.DeploymentRunning,
							TaskGroups: map[string]*model.DeploymentGroup{"g": {DesiredTotal: 9, DesiredCanaries: 1}}}
					}
					tx.ApplyPlan(p)
					return nil
				})
			case step <= 2:
				healthy := rapid.SampledFrom([]*bool{nil, new(true), new(false)}).Draw(t, "healthy")
				status := rapid.SampledFrom([]string{model.ClientRunning, model.ClientRunning, model.ClientFailed}).Draw(t, "status")
				w.do(func(tx *state.Tx) error {
					tx.ReportAlloc("n", &model.AllocUpdate{ID: id, ClientStatus: status, Health: &model.AllocHealth{Healthy: healthy}})
					return nil
				})
			case step == 3:
				good := rapid.Bool().Draw(t, "good")
				w.do(func(tx *state.Tx) error {
					if good {
						return tx.SetHealth("d", []string{id}, nil)
					}
					return tx.SetHealth("d", nil, []string{id})
				})
			case step == 4:
				w.do(func(tx *state.Tx) error { return tx.Promote("d", nil) })
			case step == 5:
				v := uint64(rapid.IntRange(0, 9).Draw(t, "version"))
				w.do(func(tx *state.Tx) error {
					tx.SetStability("default", "web", v, true)
					return nil
				})
			case step == 6:
				v := uint64(rapid.IntRange(0, 9).Draw(t, "version"))
				w.do(func(tx *state.Tx) error {
					tx.TagVersion("default", "web", v, &model.VersionTag{Name: fmt.Sprint(v)})
					return nil
				})
			default:
				register(int(w.index))
			}
			w.same()
			d := w.a.Snapshot().Deployment(nil, "d")
			if d == nil {
				continue
			}
			placed, healthy, unhealthy := 0, 0, 0
			for a := range w.a.Snapshot().AllocsByJob(nil, "default", "web") {
				placed++
				if state.Healthy(a) {
					healthy++
				}
				if state.Unhealthy(a) {
					unhealthy++
				}
				if a.ClientStatus == model.ClientFailed && !state.Unhealthy(a) {
					t.Fatal("an allocation failed and is not unhealthy")
				}
			}
			if g := d.TaskGroups["g"]; g.Placed != placed || g.Healthy != healthy || g.Unhealthy != unhealthy {
				t.Fatalf("counted are %d %d %d, there are %d %d %d", g.Placed, g.Healthy, g.Unhealthy, placed, healthy, unhealthy)
			}
		}
	})
}

// Whatever becomes of the children of a template, they are counted right.
func TestChildrenAreCountedAsTheyChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t, a: state.New(), b: state.New()}
		parents := []string{"p0", "p1"}
		w.do(func(tx *state.Tx) error {
			for _, p := range parents {
				j := plain(p, 1)
				j.Parameterized = &model.Parameterized{}
				if _, err := tx.RegisterJob(j, false, 0); err != nil {
					return err
				}
			}
			return nil
		})
		var children []string
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			id := ""
			if len(children) > 0 {
				id = rapid.SampledFrom(children).Draw(t, "child")
			}
			switch step := rapid.IntRange(0, 4).Draw(t, "step"); {
			case step == 0 || id == "":
				p := rapid.SampledFrom(parents).Draw(t, "parent")
				token := rapid.SampledFrom([]string{"", "", "t"}).Draw(t, "token")
				c := fmt.Sprintf("%s/dispatch-%d", p, w.index)
				w.do(func(tx *state.Tx) error {
					_, made, err := tx.Dispatch(state.Child{Namespace: "default", ParentID: p, ID: c, Token: token})
					if made {
						tx.PutEval(&model.Evaluation{ID: c, Namespace: "default", JobID: c, Status: model.EvalPending})
					}
					return err
				})
				if w.a.Snapshot().Job(nil, "default", c) != nil {
					children = append(children, c)
				}
			case step == 1:
				w.do(func(tx *state.Tx) error {
					tx.PutEval(&model.Evaluation{ID: id, Namespace: "default", JobID: id, Status: model.EvalComplete})
					return nil
				})
			case step == 2:
				purge := rapid.Bool().Draw(t, "purge")
				w.do(func(tx *state.Tx) error { tx.DeregisterJob("default", id, purge); return nil })
			case step == 3:
				w.do(func(tx *state.Tx) error {
					if n := tx.RecountChildren(); n != 0 {
						return fmt.Errorf("%d were wrong", n)
					}
					return nil
				})
			default:
				w.do(func(tx *state.Tx) error {
					j := tx.Job(nil, "default", id)
					if j == nil {
						return nil
					}
					tx.ApplyPlan(&state.Placement{Namespace: "default", JobID: id, JobCreateIndex: j.CreateIndex, JobModifyIndex: j.JobModifyIndex, Place: []*model.Allocation{{
						ID: fmt.Sprint("a", w.index), Namespace: "default", JobID: id, TaskGroup: "g", NodeID: "n", DesiredStatus: model.DesiredRun, ClientStatus: model.ClientPending,
					}}})
					return nil
				})
			}
			w.same()
			s := w.a.Snapshot()
			for _, p := range parents {
				want := state.Children{Namespace: "default", JobID: p}
				for j := range s.ChildJobs(nil, "default", p) {
					switch j.Status {
					case model.JobPending:
						want.Pending++
					case model.JobRunning:
						want.Running++
					default:
						want.Dead++
					}
				}
				if got := s.Children(nil, "default", p); got != want {
					t.Fatalf("counted are %+v, there are %+v", got, want)
				}
			}
		}
	})
}

func TestSupposingChangesNothing(t *testing.T) {
	s := state.New()
	if err := s.Update(1, 1, "Test", func(tx *state.Tx) error { _, err := tx.RegisterJob(plain("a", 1), false, 0); return err }); err != nil {
		t.Fatal(err)
	}
	before, _ := s.Hash()
	supposed, err := s.Suppose(2, func(tx *state.Tx) error { _, err := tx.RegisterJob(plain("a", 2), false, 0); return err })
	if err != nil || supposed.Job(nil, "default", "a").Version != 1 || supposed.Index() != 2 {
		t.Errorf("supposed is %+v, %v", supposed.Job(nil, "default", "a"), err)
	}
	if after, _ := s.Hash(); after != before || s.Index() != 1 {
		t.Error("the store has changed")
	}
}
