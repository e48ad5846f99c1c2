package plan

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
)

func holding(cpu int) model.AllocatedResources {
	return model.AllocatedResources{Tasks: map[string]*model.AllocatedTask{"t": {CPU: cpu, MemoryMB: 1}}}
}

func spec(id string, all bool) *model.Job {
	return &model.Job{Namespace: "default", ID: id, Type: model.JobTypeBatch, AllAtOnce: all, TaskGroups: []*model.TaskGroup{{Name: "g", Count: 1}}}
}

// world is a store with the jobs j and all, and nodes of 100 MHz.
func world(t interface{ Fatal(...any) }, nodes ...*model.Node) *state.Store {
	s := state.New()
	err := s.Update(1, 0, "", func(tx *state.Tx) error {
		for _, n := range nodes {
			n.Resources = model.NodeResources{CPU: 100, MemoryMB: 100, DiskMB: 100}
			drained := n.Drain != nil // which a registration cannot begin
			tx.RegisterNode(n)
			if drained {
				tx.SetDrain(state.DrainUpdate{NodeID: n.ID, Spec: &state.DrainSpec{}})
			}
		}
		for _, j := range []*model.Job{spec("j", false), spec("all", true)} {
			if _, err := tx.RegisterJob(j, false, 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ready(id string) *model.Node { return &model.Node{ID: id, Status: model.NodeReady} }

func placed(job, id, node string, cpu int) *model.Allocation {
	return &model.Allocation{
		ID: id, Namespace: "default", JobID: job, NodeID: node, TaskGroup: "g", Resources: holding(cpu), DesiredStatus: model.DesiredRun, ClientStatus: model.ClientPending,
	}
}

func apply(t interface{ Fatal(...any) }, s *state.Store, index uint64, p *state.Placement) {
	p.Namespace, p.JobCreateIndex, p.JobModifyIndex = "default", 1, 1
	if err := s.Update(index, 0, "", func(tx *state.Tx) error { tx.ApplyPlan(p); return nil }); err != nil {
		t.Fatal(err)
	}
}

func TestWhatGoesMakesRoomInTheSamePlan(t *testing.T) {
	s := world(t, ready("n1"))
	apply(t, s, 2, &state.Placement{JobID: "j", Place: []*model.Allocation{placed("j", "low", "n1", 80)}})
	evict := func(by string) state.Stop {
		return state.Stop{AllocID: "low", Desired: model.DesiredEvict, PreemptedBy: by}
	}
	for _, c := range []struct {
		name    string
		plan    state.Placement
		refused bool
		stops   int
	}{
		{"without anything going", state.Placement{JobID: "j", Place: []*model.Allocation{placed("j", "a", "n1", 80)}}, true, 0},
		{"in its room", state.Placement{JobID: "j", Place: []*model.Allocation{placed("j", "a", "n1", 80)}, Stop: []state.Stop{evict("a")}}, false, 1},
		{"too large even so", state.Placement{JobID: "j", Place: []*model.Allocation{placed("j", "a", "n1", 101)}, Stop: []state.Stop{evict("a")}}, true, 0},
		{"for another one", state.Placement{JobID: "j", Place: []*model.Allocation{placed("j", "a", "n1", 80)}, Stop: []state.Stop{evict("b")}}, true, 0},
		{"all or nothing", state.Placement{
			JobID: "all", Place: []*model.Allocation{placed("all", "a", "n1", 80), placed("all", "b", "n1", 80)}, Stop: []state.Stop{evict("a")}}, true, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := newCheck(s.Snapshot())
			c.plan.Namespace = "default"
			if refused := check.admit(&c.plan, false); refused != c.refused || len(c.plan.Stop) != c.stops || c.refused && len(c.plan.Place) != 0 {
				t.Errorf("refused is %v, %d are placed, %d stopped", refused, len(c.plan.Place), len(c.plan.Stop))
			}
			// What was given up is there for the next plan.
			next := state.Placement{JobID: "j", Place: []*model.Allocation{placed("j", "z", "n1", 20)}}
			if check.admit(&next, false); len(next.Place) != 1 {
				t.Error("20 MHz are free and were refused")
			}
		})
	}
}

func TestNodesThatTakeNothing(t *testing.T) {
	for name, change := range map[string]func(tx *state.Tx) bool{
		"cut off":    func(tx *state.Tx) bool { return tx.SetNodeStatus("n1", model.NodeDisconnected, "") },
		"down":       func(tx *state.Tx) bool { return tx.SetNodeStatus("n1", model.NodeDown, "") },
		"drained":    func(tx *state.Tx) bool { return tx.SetDrain(state.DrainUpdate{NodeID: "n1", Spec: &state.DrainSpec{}}) },
		"ineligible": func(tx *state.Tx) bool { return tx.SetNodeEligibility("n1", model.NodeIneligible) },
	} {
		s := world(t, ready("n1"))
		if err := s.Update(2, 0, "", func(tx *state.Tx) error {
			if !change(tx) {
				t.Errorf("%s: nothing changed", name)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		p := &state.Placement{Namespace: "default", JobID: "j", Place: []*model.Allocation{placed("j", "a", "n1", 1)}}
		if !newCheck(s.Snapshot()).admit(p, false) || len(p.Place) != 0 {
			t.Errorf("a node that is %s took something", name)
		}
	}
}

func TestWhatIsAcceptedFits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := world(t, ready("n0"), ready("n1"))
		var there []string
		for step := range rapid.IntRange(1, 6).Draw(t, "entries") {
			check := newCheck(s.Snapshot())
			var plans []*state.Placement
			for k := range rapid.IntRange(1, 4).Draw(t, "plans") {
				p := &state.Placement{Namespace: "default", JobID: rapid.SampledFrom([]string{"j", "all"}).Draw(t, "job")}
				for i := range rapid.IntRange(1, 3).Draw(t, "allocations") {
					id := fmt.Sprint(step, "-", k, "-", i)
					p.Place = append(p.Place, placed(p.JobID, id, fmt.Sprint("n", rapid.IntRange(0, 1).Draw(t, "node")), rapid.IntRange(1, 60).Draw(t, "cpu")))
					if len(there) > 0 && rapid.Bool().Draw(t, "preempts") {
						p.Stop = append(p.Stop, state.Stop{AllocID: rapid.SampledFrom(there).Draw(t, "victim"), Desired: model.DesiredEvict, PreemptedBy: id})
					}
				}
				check.admit(p, false)
				plans = append(plans, p)
			}
			for i, p := range plans {
				apply(t, s, uint64(3+step*10+i), p)
				for _, a := range p.Place {
					there = append(there, a.ID)
				}
			}
			for n := range 2 {
				var u sched.Usage
				for a := range s.Snapshot().AllocsByNode(nil, fmt.Sprint("n", n)) {
					if a.Holds() {
						u.Add(&a.Resources)
					}
				}
				if u.CPU > 100 {
					t.Fatalf("n%d has 100 MHz and promised %d", n, u.CPU)
				}
			}
		}
	})
}

// gpuNode has one GPU of 40 GiB: whole, or as so many slots.
func gpuNode(slots int) *model.Node {
	d := model.NodeDevice{Vendor: "nvidia", Type: "gpu", Name: "A100"}
	if slots == 0 {
		d.Instances = []model.DeviceInstance{{ID: "g", Healthy: true}}
	}
	for i := range slots {
		d.Instances = append(d.Instances, model.DeviceInstance{ID: model.SlotID("g", i), Healthy: true, Parent: "g", ParentMemoryMB: 40960})
	}
	return &model.Node{ID: "n1", Status: model.NodeReady, Resources: model.NodeResources{CPU: 100, MemoryMB: 100, DiskMB: 100, Devices: []model.NodeDevice{d}}}
}

func withDevices(id string, memoryMB int, instances ...string) *model.Allocation {
	a := placed("j", id, "n1", 1)
	a.Resources.Tasks["t"].Devices = []model.AllocatedDevice{{Vendor: "nvidia", Type: "gpu", Name: "A100", DeviceIDs: instances, MemoryMB: memoryMB}}
	return a
}

func TestDevicesAreGivenOnce(t *testing.T) {
	for _, c := range []struct {
		name         string
		was, now     int // slots
		held         *model.Allocation
		first, other *model.Allocation
		want         int // of first and other
	}{
		{"one GPU to two plans", 0, 0, nil, withDevices("a", 40960, "g"), withDevices("b", 40960, "g"), 1},
		{"one instance twice to one", 4, 4, nil, withDevices("a", 10240, "g::0", "g::0"), withDevices("b", 10240, "g::0"), 1},
		{"two slots to two plans", 4, 4, nil, withDevices("a", 10240, "g::0"), withDevices("b", 10240, "g::1"), 2},
		{"more memory than there is", 4, 4, nil, withDevices("a", 10240, "g::0"), withDevices("b", 40000, "g::1"), 1},
		{"a slot of a GPU that is held as a whole", 0, 4, withDevices("h", 40960, "g"), withDevices("a", 10240, "g::0"), withDevices("b", 10240, "g::1"), 0},
		{"a GPU of which a slot is held", 4, 0, withDevices("h", 10240, "g::3"), withDevices("a", 40960, "g"), withDevices("b", 40960, "g"), 0},
		{"one that is not there any more", 0, 2, nil, withDevices("a", 40960, "g"), withDevices("b", 20480, "g::1"), 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := world(t)
			register := func(index uint64, slots int) {
				if err := s.Update(index, 0, "", func(tx *state.Tx) error { tx.RegisterNode(gpuNode(slots)); return nil }); err != nil {
					t.Fatal(err)
				}
			}
			register(2, c.was)
			if c.held != nil {
				apply(t, s, 3, &state.Placement{JobID: "j", Place: []*model.Allocation{c.held}})
			}
			register(4, c.now)
			check, accepted := newCheck(s.Snapshot()), 0
			for _, a := range []*model.Allocation{c.first, c.other} {
				p := &state.Placement{Namespace: "default", JobID: "j", Place: []*model.Allocation{a}}
				check.admit(p, false)
				accepted += len(p.Place)
			}
			if accepted != c.want {
				t.Errorf("%d are accepted, not %d", accepted, c.want)
			}
		})
	}
}

func TestADeviceThatHasFailedSinceIsNotGiven(t *testing.T) {
	s := world(t)
	n := gpuNode(0)
	n.Resources.Devices[0].Instances[0].Healthy = false
	if err := s.Update(2, 0, "", func(tx *state.Tx) error { tx.RegisterNode(n); return nil }); err != nil {
		t.Fatal(err)
	}
	p := &state.Placement{Namespace: "default", JobID: "j", Place: []*model.Allocation{withDevices("a", 40960, "g")}}
	if !newCheck(s.Snapshot()).admit(p, false) || len(p.Place) != 0 {
		t.Error("a GPU that is unhealthy is given")
	}
}
