package chaos_test

import (
	"strings"
	"testing"

	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sim/chaos"
	"rockpool/internal/orchestrator/state"
)

// world is a state with a job of count 1, j, and node n1.
type world struct {
	t     *testing.T
	store *state.Store
	index uint64
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, store: state.New()}
	w.apply(&command.NodeRegister{Now: 1, Node: &model.Node{ID: "n1", SecretID: "s", Name: "one", Datacenter: "dc1", Status: model.NodeReady}})
	w.apply(&command.JobRegister{
		Now: 2,
		Job: &model.Job{
			Namespace: "default", ID: "j", Name: "j", Type: model.JobTypeBatch, Priority: 50, Datacenters: []string{"*"}, NodePool: "default",
			TaskGroups: []*model.TaskGroup{{Name: "g", Count: 1, Tasks: []*model.Task{{Name: "t", Driver: "mock"}}}},
		},
		Eval: &model.Evaluation{ID: "e", Namespace: "default", JobID: "j", Status: model.EvalPending},
	})
	return w
}

func (w *world) apply(entry any) {
	w.t.Helper()
	w.index++
	data, err := command.Encode(entry)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := command.Apply(w.store, w.index, data); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) finish() {
	w.apply(&command.EvalUpdate{Now: 3, Finish: []*model.Evaluation{{ID: "e", Namespace: "default", JobID: "j", Status: model.EvalComplete}}})
}

func (w *world) place(ids ...string) {
	p := &state.Placement{EvalID: "e", Namespace: "default", JobID: "j", JobCreateIndex: 2, JobModifyIndex: 2}
	for _, id := range ids {
		p.Place = append(p.Place, &model.Allocation{
			ID: id, Namespace: "default", EvalID: "e", Name: "j.g[0]", NodeID: "n1", JobID: "j", TaskGroup: "g",
			DesiredStatus: model.DesiredRun, ClientStatus: model.ClientPending,
		})
	}
	w.apply(&command.PlanResults{Now: 4, Plans: []*state.Placement{p}})
}

func (w *world) report(id, status string) {
	w.apply(&command.AllocUpdates{Now: 5, NodeID: "n1", Allocs: []*model.AllocUpdate{{ID: id, ClientStatus: status, ModifyTime: 5}}})
}

func TestChecksPassWhatIsWellAndCatchWhatIsNot(t *testing.T) {
	for _, c := range []struct {
		name  string
		make  func(*world)
		check func(*state.Snapshot) error
		want  string // "" = it passes
	}{
		{"all is well", func(w *world) { w.place("a"); w.report("a", model.ClientRunning); w.finish() }, everything("a"), ""},
		{"two allocations for one slot", func(w *world) { w.place("a"); w.place("b"); w.report("a", model.ClientRunning); w.finish() }, everything("a"), "placed twice"},
		{"a second one after the first has ended", func(w *world) {
			w.place("a")
			w.report("a", model.ClientFailed)
			w.place("b")
			w.report("b", model.ClientRunning)
			w.finish()
		}, everything("b"), ""},
		{"an evaluation without an end", func(w *world) { w.place("a"); w.report("a", model.ClientRunning) }, everything("a"), "evaluation e of job j () is still pending"},
		{"a job without its allocation", func(w *world) { w.finish() }, everything(), "job j has 0 allocations"},
		{"a purged allocation runs on", func(w *world) {
			w.place("a")
			w.report("a", model.ClientRunning)
			w.finish()
			w.apply(&command.JobDeregister{Now: 6, Namespace: "default", JobID: "j", Purge: true})
		}, everything("a"), "still runs allocation a, which was purged"},
		{"a stopped allocation runs on", func(w *world) {
			w.place("a")
			w.report("a", model.ClientRunning)
			w.apply(&command.AllocStop{Now: 6, AllocID: "a"})
		}, everything("a"), "still runs allocation a (j.g[0]), which is stop"},
		{"a node forgot what it runs", func(w *world) { w.place("a"); w.report("a", model.ClientRunning); w.finish() }, everything(), "which does not hold it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.make(w)
			err := c.check(w.store.Snapshot())
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// everything is all checks of a state, with node n1 holding these allocations.
func everything(held ...string) func(*state.Snapshot) error {
	return func(s *state.Snapshot) error { return chaos.Settled(s, map[string][]string{"n1": held}) }
}

func TestDifferentStatesAreFound(t *testing.T) {
	a, b := newWorld(t), newWorld(t)
	stores := map[string]*state.Store{"one": a.store, "two": b.store}
	if err := chaos.Equal(stores); err != nil {
		t.Errorf("equal states: %v", err)
	}
	a.place("a")
	if err := chaos.Equal(stores); err == nil {
		t.Error("a state that is behind passes")
	}
	b.place("b")
	if err := chaos.Equal(stores); err == nil || !strings.Contains(err.Error(), "at index 3") {
		t.Errorf("two states of one index: %v", err)
	}
}

func TestTheMonitorSeesWhatComesAndGoes(t *testing.T) {
	m := chaos.NewMonitor()
	a, b := newWorld(t), newWorld(t)
	defer m.Watch("one", a.store)()
	defer m.Watch("two", b.store)()
	for _, w := range []*world{a, b} {
		w.place("a")
		w.report("a", model.ClientRunning)
	}
	if m.Err() != nil || m.Updates() != 4 {
		t.Fatalf("%d updates, %v", m.Updates(), m.Err())
	}
	a.report("a", model.ClientComplete)
	b.report("a", model.ClientFailed)
	if err := m.Err(); err == nil || !strings.Contains(err.Error(), "entry 5 did different things") {
		t.Errorf("servers that differ: %v", err)
	}

	m = chaos.NewMonitor()
	c := newWorld(t)
	defer m.Watch("one", c.store)()
	c.place("a", "b")
	c.report("a", model.ClientFailed) // at the end nothing is to be seen any more
	if err := m.Err(); err == nil || !strings.Contains(err.Error(), "placed twice at index 3") {
		t.Errorf("two allocations for a moment: %v", err)
	}
}
