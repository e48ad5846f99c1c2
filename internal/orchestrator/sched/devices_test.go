package sched_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
)

// wholes is a group of n whole GPUs of a node.
func wholes(node, name string, gib, n int) model.NodeDevice {
	d := model.NodeDevice{Vendor: "nvidia", Type: "gpu", Name: name, Attributes: map[string]model.Attribute{"memory": model.IntOf(int64(gib)<<10, "MiB")}}
	for i := range n {
		d.Instances = append(d.Instances, model.DeviceInstance{ID: fmt.Sprint(node, "-", name, "-", i), Healthy: true})
	}
	return d
}

// sliced is a group of the slots of n GPUs of a node.
func sliced(node, name string, gib, n, slots int) model.NodeDevice {
	return resliced(wholes(node, name, gib, n), slots)
}

func resliced(whole model.NodeDevice, slots int) model.NodeDevice {
	all := whole.MemoryMB()
	d := whole
	d.Name = fmt.Sprintf("%s slot %dmb", whole.Name, all/slots)
	d.Attributes = map[string]model.Attribute{"memory": model.IntOf(int64(all/slots), "MiB"), "share": model.TextOf("slot")}
	d.Instances = nil
	for _, in := range whole.Instances {
		for s := range slots {
			d.Instances = append(d.Instances, model.DeviceInstance{ID: model.SlotID(in.ID, s), Healthy: in.Healthy, Parent: in.ID, ParentMemoryMB: all, NUMANode: in.NUMANode, Peers: in.Peers})
		}
	}
	return d
}

// migs is a group of the parts of n GPUs.
func migs(node, name string, gib, n, parts int) model.NodeDevice {
	d := model.NodeDevice{Vendor: "nvidia", Type: "gpu", Name: name + " MIG", Attributes: map[string]model.Attribute{
		"memory": model.IntOf(int64(gib)<<10/int64(parts), "MiB"), "share": model.TextOf("mig")}}
	for i := range n {
		for p := range parts {
			d.Instances = append(d.Instances, model.DeviceInstance{ID: fmt.Sprint("MIG-", node, "-", i, "-", p), Healthy: true, Parent: fmt.Sprint(node, "-", name, "-", i)})
		}
	}
	return d
}

func equipped(id string, groups ...model.NodeDevice) *model.Node {
	n := node(id, 100_000, 100_000)
	n.Resources.Devices = groups
	return n
}

// wanting is a job whose one task has these requests.
func wanting(requests ...model.DeviceRequest) *model.Job {
	j := job(1)
	j.TaskGroups[0].Tasks[0].Resources.Devices = requests
	return j
}

func gpus(n uint64, cs ...model.Constraint) model.DeviceRequest {
	return model.DeviceRequest{Name: "nvidia/gpu", Count: n, Constraints: cs}
}

func where(attribute, operand, value string) model.Constraint {
	return model.Constraint{LTarget: "${device.attr." + attribute + "}", Operand: operand, RTarget: value}
}

// holding has an allocation of another job hold instances.
func (w *world) holding(id, node string, priority int, ids ...string) *model.Allocation {
	a := w.others(id, node, priority, 1)
	for _, d := range w.Node(node).Resources.Devices {
		held := model.AllocatedDevice{Vendor: d.Vendor, Type: d.Type, Name: d.Name, MemoryMB: d.MemoryMB()}
		for _, in := range d.Instances {
			if slices.Contains(ids, in.ID) {
				held.DeviceIDs = append(held.DeviceIDs, in.ID)
			}
		}
		if len(held.DeviceIDs) > 0 {
			a.Resources.Tasks["t"].Devices = append(a.Resources.Tasks["t"].Devices, held)
		}
	}
	return a
}

// got are the instances of an allocation, of all tasks.
func got(a *model.Allocation) (ids []string) {
	for _, id := range a.Resources.Instances {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func TestWhichInstancesAreTaken(t *testing.T) {
	like := func(q model.DeviceRequest, target, operand, value string, weight int8) model.DeviceRequest {
		q.Affinities = append(q.Affinities, model.Affinity{LTarget: target, Operand: operand, RTarget: value, Weight: weight})
		return q
	}
	isSet, isNotSet := where("share", "is_set", ""), where("share", "is_not_set", "")
	zero, one := 0, 1
	linked := func(d model.NodeDevice, sets ...[]int) model.NodeDevice {
		for _, set := range sets {
			for _, i := range set {
				for _, k := range set {
					if i != k {
						d.Instances[i].Peers = append(d.Instances[i].Peers, d.Instances[k].ID)
					}
				}
			}
		}
		return d
	}
	beside := func(d model.NodeDevice) model.NodeDevice { // two NUMA nodes, in turn
		for i := range d.Instances {
			d.Instances[i].NUMANode = []*int{&zero, &one}[i%2]
		}
		return d
	}
	mixed := []model.NodeDevice{wholes("n", "H100", 80, 2), wholes("n", "T4", 16, 2), sliced("n", "A100", 40, 2, 4), migs("n", "A30", 24, 1, 4)}
	for _, c := range []struct {
		name    string
		devices []model.NodeDevice
		held    []string
		ask     []model.DeviceRequest
		want    string // instances, with commas; "" = there is no room
	}{
		{"the smallest", mixed, nil, []model.DeviceRequest{gpus(1)}, "MIG-n-0-0"},
		{"the smallest whole", mixed, nil, []model.DeviceRequest{gpus(1, isNotSet)}, "n-T4-0"},
		{"the smallest share of enough memory", mixed, nil, []model.DeviceRequest{gpus(1, isSet, where("memory", ">=", "8 GiB"))}, "n-A100-0::0"},
		{"the only one of enough memory", mixed, nil, []model.DeviceRequest{gpus(1, where("memory", ">", "40 GiB"))}, "n-H100-0"},
		{"what is liked", mixed, nil, []model.DeviceRequest{like(gpus(1), "${device.model}", "=", "H100", 50)}, "n-H100-0"},
		{"not what is disliked", mixed, nil, []model.DeviceRequest{like(gpus(1), "${device.attr.share}", "is_set", "", -100)}, "n-T4-0"},
		{"a model by name", mixed, nil, []model.DeviceRequest{{Name: "nvidia/gpu/T4", Count: 2}}, "n-T4-0,n-T4-1"},
		{"an instance by id", mixed, nil, []model.DeviceRequest{gpus(1, model.Constraint{LTarget: "${device.ids}", Operand: "set_contains", RTarget: "n-H100-1"})}, "n-H100-1"},
		{"slots are of different GPUs", mixed, nil, []model.DeviceRequest{gpus(2, where("share", "=", "slot"))}, "n-A100-0::0,n-A100-1::0"},
		{"no more slots than GPUs", mixed, nil, []model.DeviceRequest{gpus(3, where("share", "=", "slot"))}, ""},
		{"slots of two requests of a task are of different GPUs", mixed, nil, []model.DeviceRequest{gpus(1, where("share", "=", "slot")), gpus(1, where("share", "=", "slot"))},
			"n-A100-0::0,n-A100-1::0"},
		{"the GPU that fewest share", mixed, []string{"n-A100-0::0"}, []model.DeviceRequest{gpus(1, where("share", "=", "slot"))}, "n-A100-1::0"},
		{"the GPU of which most parts are in use", []model.NodeDevice{migs("n", "A30", 24, 2, 4)}, []string{"MIG-n-1-3"}, []model.DeviceRequest{gpus(1)}, "MIG-n-1-0"},
		{"a second choice where the first would leave nothing for another", []model.NodeDevice{wholes("n", "T4", 16, 1), wholes("n", "H100", 80, 1)}, nil,
			[]model.DeviceRequest{gpus(1), {Name: "nvidia/gpu/T4", Count: 1}}, "n-H100-0,n-T4-0"},
		{"no room for all", []model.NodeDevice{wholes("n", "T4", 16, 1), wholes("n", "H100", 80, 1)}, nil, []model.DeviceRequest{gpus(1), gpus(2)}, ""},
		{"all of one group", mixed, nil, []model.DeviceRequest{gpus(3, isNotSet)}, ""},
		{"the set that is linked", []model.NodeDevice{linked(wholes("n", "V100", 16, 6), []int{0, 3}, []int{1, 2, 4, 5})}, nil, []model.DeviceRequest{gpus(4)},
			"n-V100-1,n-V100-2,n-V100-4,n-V100-5"},
		{"the smallest linked set", []model.NodeDevice{linked(wholes("n", "V100", 16, 6), []int{0, 2, 3, 4}, []int{1, 5})}, nil, []model.DeviceRequest{gpus(2)}, "n-V100-1,n-V100-5"},
		{"one without links", []model.NodeDevice{linked(wholes("n", "V100", 16, 5), []int{0, 1, 2, 3})}, nil, []model.DeviceRequest{gpus(1)}, "n-V100-4"},
		{"one beside one in use", []model.NodeDevice{linked(wholes("n", "V100", 16, 4), []int{0, 1}, []int{2, 3})}, []string{"n-V100-2"}, []model.DeviceRequest{gpus(1)}, "n-V100-3"},
		{"one NUMA node", []model.NodeDevice{beside(wholes("n", "T4", 16, 4))}, []string{"n-T4-0"}, []model.DeviceRequest{gpus(2)}, "n-T4-1,n-T4-3"},
		{"the NUMA node with less left", []model.NodeDevice{beside(wholes("n", "T4", 16, 4))}, []string{"n-T4-1"}, []model.DeviceRequest{gpus(1)}, "n-T4-3"},
		{"eight of sixteen", []model.NodeDevice{linked(wholes("n", "V100", 16, 16), []int{1, 3, 5, 7, 9, 11, 13, 15})}, nil, []model.DeviceRequest{gpus(8)},
			"n-V100-1,n-V100-11,n-V100-13,n-V100-15,n-V100-3,n-V100-5,n-V100-7,n-V100-9"},
		{"slots of GPUs that are linked", []model.NodeDevice{resliced(linked(wholes("n", "V100", 16, 4), []int{0, 3}, []int{1, 2}), 4)}, []string{"n-V100-0::0", "n-V100-1::0", "n-V100-1::1"},
			[]model.DeviceRequest{gpus(2)}, "n-V100-0::1,n-V100-3::0"},
		{"a slot of the GPU that fewest share, whatever its links", []model.NodeDevice{resliced(linked(wholes("n", "V100", 16, 4), []int{0, 1}, []int{2, 3}), 2)},
			[]string{"n-V100-0::0", "n-V100-0::1", "n-V100-1::0", "n-V100-2::0"}, []model.DeviceRequest{gpus(1)}, "n-V100-3::0"},
		{"more than are compared", []model.NodeDevice{wholes("n", "T4", 16, 40)}, nil, []model.DeviceRequest{gpus(1)}, "n-T4-0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{job: wanting(c.ask...), nodes: []*model.Node{equipped("n", c.devices...)}}
			if c.held != nil {
				w.holding("other", "n", 50, c.held...)
			}
			d := w.schedule(1)
			if c.want == "" {
				if len(d.Place) != 0 || d.Failed["g"] == nil {
					t.Errorf("placed with %v", got(d.Place[0]))
				}
				return
			}
			if len(d.Place) != 1 {
				t.Fatalf("it is not placed: %+v", d.Failed["g"])
			}
			if ids := strings.Join(got(d.Place[0]), ","); ids != c.want {
				t.Errorf("it has %s, not %s", ids, c.want)
			}
		})
	}
}

func TestTasksOfAGroupDoNotShareInstances(t *testing.T) {
	w := &world{job: wanting(gpus(1)), nodes: []*model.Node{equipped("n", wholes("n", "T4", 16, 2))}}
	g := w.job.TaskGroups[0]
	second := *g.Tasks[0]
	second.Name = "u"
	g.Tasks = append(g.Tasks, &second)
	d := w.schedule(1)
	if len(d.Place) != 1 || !slices.Equal(got(d.Place[0]), []string{"n-T4-0", "n-T4-1"}) {
		t.Fatalf("placed: %+v", d.Place)
	}
	third := second
	third.Name = "v"
	g.Tasks = append(g.Tasks, &third)
	w.job.JobModifyIndex++
	if d := w.schedule(2); len(d.Place) != 0 {
		t.Errorf("three tasks have two GPUs: %v", got(d.Place[0]))
	}
}

func TestWhatWasHeldBeforeAGPUWasDividedCounts(t *testing.T) {
	whole := wholes("n", "A100", 40, 1)
	for _, c := range []struct {
		name     string
		was, now model.NodeDevice
		held     []string
		want     int // of four single requests
	}{
		{"a whole that became slots", whole, resliced(whole, 4), []string{"n-A100-0"}, 0},
		{"slots that became a whole", resliced(whole, 4), whole, []string{"n-A100-0::2"}, 0},
		{"large slots that became small", resliced(whole, 2), resliced(whole, 4), []string{"n-A100-0::0"}, 2},
		{"small slots that became large", resliced(whole, 4), resliced(whole, 2), []string{"n-A100-0::3"}, 1},
		{"slots that became parts", resliced(whole, 4), migs("n", "A100", 40, 1, 4), []string{"n-A100-0::0"}, 0},
		{"a whole that became parts", whole, migs("n", "A100", 40, 1, 4), []string{"n-A100-0"}, 0},
	} {
		w := &world{job: wanting(gpus(1)), nodes: []*model.Node{equipped("n", c.was)}}
		w.job.TaskGroups[0].Count = 4
		w.holding("other", "n", 50, c.held...)
		w.nodes[0] = equipped("n", c.now)
		if d := w.schedule(1); len(d.Place) != c.want {
			t.Errorf("%s: %d more are placed, not %d", c.name, len(d.Place), c.want)
		}
	}
}

func TestNodesWithFewGPUsLeftAreFilledFirst(t *testing.T) {
	w := &world{job: wanting(gpus(1)), nodes: []*model.Node{equipped("a", wholes("a", "T4", 16, 4)), equipped("b", wholes("b", "T4", 16, 4)), equipped("c", wholes("c", "T4", 16, 1))}}
	w.nodes[1].Resources.CPU = 200 // nearly full otherwise
	w.holding("other", "a", 50, "a-T4-1", "a-T4-3")
	for i, want := range []string{"c", "a", "a", "b"} {
		w.job.TaskGroups[0].Count = i + 1
		w.job.JobModifyIndex++
		if d := w.schedule(1); len(d.Place) != 1 || d.Place[0].NodeID != want {
			t.Fatalf("placement %d is %+v, not on %s", i, d.Place, want)
		}
	}
	w = &world{job: wanting(gpus(1)), nodes: w.nodes, opts: sched.Options{Spread: true}}
	w.holding("other", "a", 50, "a-T4-1")
	if d := w.schedule(1); d.Place[0].NodeID != "b" {
		t.Errorf("of nodes that are filled last it is on %s", d.Place[0].NodeID)
	}
}

func TestJobsWithoutDevicesKeepOffNodesThatHaveSome(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{job: job(rapid.IntRange(1, 30).Draw(t, "count"))}
		if rapid.Bool().Draw(t, "service") {
			w.job.Type = model.JobTypeService
		}
		room := 0
		for i := range rapid.IntRange(1, 5).Draw(t, "plain") {
			n := node(fmt.Sprint("p", i), rapid.IntRange(0, 900).Draw(t, "cpu"), 10_000)
			room += n.Resources.CPU / 100
			w.nodes = append(w.nodes, n)
		}
		for i := range rapid.IntRange(1, 5).Draw(t, "equipped") {
			n := equipped(fmt.Sprint("e", i), wholes(fmt.Sprint("e", i), "T4", 16, 1))
			n.Resources.CPU = rapid.IntRange(100, 900).Draw(t, "cpu")
			w.nodes = append(w.nodes, n)
		}
		plain := 0
		d := w.schedule(1)
		for _, a := range d.Place {
			if a.NodeID[0] == 'p' {
				plain++
			}
		}
		if want := min(room, w.job.TaskGroups[0].Count); plain != want {
			t.Fatalf("%d of %d are on plain nodes, which have room for %d", plain, len(d.Place), room)
		}
	})
}

func TestFailuresOfDevicesSayWhatThereIs(t *testing.T) {
	ill := wholes("b", "T4", 16, 4)
	ill.Instances[0].Healthy = false
	for _, c := range []struct {
		name                string
		ask                 []model.DeviceRequest
		filtered, exhausted map[string]int
	}{
		{"no such device", []model.DeviceRequest{{Name: "amd/gpu", Count: 1}}, map[string]int{"missing devices": 3}, nil},
		{"a constraint", []model.DeviceRequest{gpus(1, where("memory", ">=", "80 GiB"))},
			map[string]int{"missing devices": 1, "missing devices: no nvidia/gpu with ${device.attr.memory} >= 80 GiB": 2}, nil},
		{"too many", []model.DeviceRequest{gpus(5)}, map[string]int{"missing devices": 1, "missing devices: 5 nvidia/gpu asked for, 4 on a node": 2}, nil},
		{"in use", []model.DeviceRequest{gpus(4)}, map[string]int{"missing devices": 1},
			map[string]int{"devices: 4 nvidia/gpu asked for on one node; of 8 on 2 nodes 2 in use, 1 unhealthy, 5 free": 2}},
		{"in use, under constraints", []model.DeviceRequest{gpus(3, where("memory", ">", "20 GiB"))},
			map[string]int{"missing devices": 1, "missing devices: no nvidia/gpu with ${device.attr.memory} > 20 GiB": 1},
			map[string]int{"devices: 3 nvidia/gpu that meet its constraints asked for on one node; of 4 on 1 node 2 in use, 0 unhealthy, 2 free": 1}},
		{"each by itself", []model.DeviceRequest{gpus(2), gpus(2)}, map[string]int{"missing devices": 1},
			map[string]int{"devices: 2 nvidia/gpu and 2 nvidia/gpu asked for on one node; of 8 on 2 nodes 2 in use, 1 unhealthy, 5 free": 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{job: wanting(c.ask...), nodes: []*model.Node{node("plain", 1000, 1000), equipped("a", wholes("a", "A100", 40, 4)), equipped("b", ill)}}
			w.holding("other", "a", 50, "a-A100-0", "a-A100-1")
			m := w.schedule(1).Failed["g"]
			if m == nil || fmt.Sprint(m.ConstraintFiltered) != fmt.Sprint(c.filtered) || fmt.Sprint(m.DimensionExhausted) != fmt.Sprint(c.exhausted) {
				t.Errorf("got %+v", m)
			}
		})
	}
}

func TestPreemptionForDevices(t *testing.T) {
	setup := func() *world {
		w := &world{job: wanting(gpus(2)), nodes: []*model.Node{equipped("n", wholes("n", "A100", 40, 4), wholes("n", "T4", 16, 1))}, opts: sched.Options{Preempt: sched.Preemption{Batch: true}}}
		w.job.Priority = 80
		w.others("cpu", "n", 1, 10)
		w.holding("t4", "n", 1, "n-T4-0")
		w.holding("one", "n", 20, "n-A100-0")
		w.holding("two", "n", 20, "n-A100-1", "n-A100-2")
		w.holding("near", "n", 75, "n-A100-3")
		return w
	}
	w := setup()
	d := w.schedule(1)
	if len(d.Place) != 1 || !slices.Equal(d.Place[0].Preempts, []string{"two"}) || !slices.Equal(got(d.Place[0]), []string{"n-A100-1", "n-A100-2"}) {
		t.Errorf("for two: %+v", d.Place)
	}
	w = setup()
	w.job.TaskGroups[0].Tasks[0].Resources.Devices[0].Count = 3
	if d = w.schedule(1); len(d.Place) != 1 || len(d.Place[0].Preempts) != 2 {
		t.Errorf("for three: %+v", d.Place)
	}
	w = setup()
	w.job.TaskGroups[0].Tasks[0].Resources.Devices[0].Count = 4 // one of which is not of lower priority
	if d = w.schedule(1); len(d.Place)+len(d.Stop) != 0 {
		t.Errorf("for four: %+v", d.Place)
	}
	w = setup()
	w.job.TaskGroups[0].Tasks[0].Resources.Devices[0].Count = 1
	if d = w.schedule(1); len(d.Place) != 1 || !slices.Equal(d.Place[0].Preempts, []string{"t4"}) {
		t.Errorf("for any one: %+v", d.Place)
	}
}

// naive is who holds what, found out without any of the sums.
type naive struct {
	owner    map[string]string // by instance
	promised map[string]int    // MiB by GPU
}

func look(t *rapid.T, w *world) naive {
	m := naive{map[string]string{}, map[string]int{}}
	for _, a := range w.allocs {
		if !a.Holds() {
			continue
		}
		for d, id := range a.Resources.Instances {
			if m.owner[id] != "" {
				t.Fatalf("%s is held by %s and %s", id, m.owner[id], a.ID)
			}
			m.owner[id] = a.ID
			gpu, _, slot := strings.Cut(id, "::")
			if slot || strings.HasPrefix(id, "MIG-") {
				m.promised[gpu] += d.MemoryMB
			}
		}
	}
	for id, owner := range m.owner {
		if gpu, _, slot := strings.Cut(id, "::"); slot && m.owner[gpu] != "" {
			t.Fatalf("%s is held by %s while %s has its GPU", id, owner, m.owner[gpu])
		}
	}
	for gpu, mb := range m.promised {
		if mb > 40<<10 {
			t.Fatalf("%s has 40 GiB and %d MiB are promised", gpu, mb)
		}
	}
	return m
}

func (m naive) free(in *model.DeviceInstance, mb int) bool {
	if !in.Healthy || m.owner[in.ID] != "" || m.owner[in.Parent] != "" {
		return false
	}
	for held := range m.owner {
		if gpu, _, slot := strings.Cut(held, "::"); slot && (gpu == in.ID || gpu == in.Parent && !strings.Contains(in.ID, "::")) {
			return false
		}
	}
	return !strings.Contains(in.ID, "::") || m.promised[in.Parent]+mb <= 40<<10
}

// best is what a node has for one request without conditions: the smallest instances of which there are enough, and how many are free. Slots count by their GPUs.
func (m naive) best(n *model.Node, count int, cs ...model.Constraint) (mb, free int, ok bool) {
	for _, d := range n.Resources.Devices {
		share := d.Attributes["share"].Text
		if len(cs) > 0 && (cs[0].Operand == "is_set") != (share != "") {
			continue
		}
		own, of := 0, map[string]bool{}
		for i := range d.Instances {
			if m.free(&d.Instances[i], d.MemoryMB()) {
				own++
				of[cmp.Or(map[bool]string{true: d.Instances[i].Parent}[share == "slot"], d.Instances[i].ID)] = true
			}
		}
		if len(of) >= count && (!ok || d.MemoryMB() < mb || d.MemoryMB() == mb && own < free) {
			mb, free, ok = d.MemoryMB(), own, true
		}
	}
	return mb, free, ok
}

// TestDevicesAgainstAModel places and ends jobs on nodes whose GPUs fail, heal, are divided and put together again.
func TestDevicesAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{opts: sched.Options{Preempt: sched.Preemption{Batch: rapid.Bool().Draw(t, "preempts")}}}
		kinds := []func(id string) []model.NodeDevice{
			func(string) []model.NodeDevice { return nil },
			func(id string) []model.NodeDevice { return []model.NodeDevice{wholes(id, "A100", 40, 4)} },
			func(id string) []model.NodeDevice { return []model.NodeDevice{sliced(id, "A100", 40, 4, 4)} },
			func(id string) []model.NodeDevice { return []model.NodeDevice{sliced(id, "A100", 40, 4, 2)} },
			func(id string) []model.NodeDevice {
				return []model.NodeDevice{migs(id, "A100", 40, 2, 5), wholes(id, "T4", 16, 2)}
			},
		}
		for i := range rapid.IntRange(1, 4).Draw(t, "nodes") {
			id := fmt.Sprint("n", i)
			w.nodes = append(w.nodes, equipped(id, rapid.SampledFrom(kinds).Draw(t, "kind")(id)...))
		}
		for step := range rapid.IntRange(1, 25).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0: // some end
				for _, a := range w.allocs {
					if !a.ClientTerminal() && rapid.IntRange(0, 2).Draw(t, "ends") == 0 {
						a.ClientStatus = model.ClientComplete
					}
				}
			case 1: // a GPU fails or heals
				i := rapid.IntRange(0, len(w.nodes)-1).Draw(t, "node")
				n := *w.nodes[i]
				n.Resources.Devices = slices.Clone(n.Resources.Devices)
				for k := range n.Resources.Devices {
					d := &n.Resources.Devices[k]
					d.Instances = slices.Clone(d.Instances)
					x := rapid.IntRange(0, len(d.Instances)-1).Draw(t, "instance")
					d.Instances[x].Healthy = !d.Instances[x].Healthy
				}
				w.nodes[i] = &n
			case 2: // a node is described anew, while things run there
				i := rapid.IntRange(0, len(w.nodes)-1).Draw(t, "node")
				w.nodes[i] = equipped(w.nodes[i].ID, rapid.SampledFrom(kinds).Draw(t, "kind")(w.nodes[i].ID)...)
			default:
				count := rapid.IntRange(1, 4).Draw(t, "count")
				var cs []model.Constraint
				if op := rapid.SampledFrom([]string{"", "is_set", "is_not_set"}).Draw(t, "share"); op != "" {
					cs = []model.Constraint{where("share", op, "")}
				}
				w.job = wanting(gpus(uint64(count), cs...))
				w.job.ID = fmt.Sprint("j", step)
				w.job.Priority = rapid.SampledFrom([]int{10, 50, 90}).Draw(t, "priority")
				before := look(t, w)
				w.index++
				d := sched.Schedule(w, &model.Evaluation{ID: fmt.Sprint("e", step), Namespace: "default", JobID: w.job.ID}, 1)
				for _, s := range d.Stop {
					if s.Alloc.Job.Priority+10 > w.job.Priority {
						t.Fatalf("%s had to go for one of priority %d", s.Alloc.ID, w.job.Priority)
					}
					s.Alloc.DesiredStatus = model.DesiredEvict
				}
				judge(t, w, before, d, count, cs)
				w.allocs = append(w.allocs, d.Place...)
			}
			look(t, w)
		}
	})
}

// judge holds a decision on one allocation against what the model would have decided.
func judge(t *rapid.T, w *world, before naive, d *sched.Decision, count int, cs []model.Constraint) {
	type fit struct{ mb, free int }
	var least *fit
	for _, n := range w.nodes {
		if mb, free, ok := before.best(n, count, cs...); ok && (least == nil || cmp.Or(cmp.Compare(mb, least.mb), cmp.Compare(free, least.free)) < 0) {
			least = &fit{mb, free}
		}
	}
	switch {
	case least == nil && len(d.Place) > 0 && len(d.Stop) == 0:
		t.Fatalf("%v is placed where nothing is free", got(d.Place[0]))
	case least != nil && len(d.Place) == 0:
		t.Fatalf("%d with %v are free and not given: %+v", count, cs, d.Failed["g"])
	case len(d.Place) == 0:
		return
	}
	a := d.Place[0]
	ids := got(a)
	if len(ids) != count {
		t.Fatalf("%d were asked for, %v given", count, ids)
	}
	visible := map[string]bool{}
	for _, id := range ids {
		gpu, _, _ := strings.Cut(id, "::")
		visible[gpu] = true
	}
	if len(visible) != count {
		t.Fatalf("%v are fewer GPUs than %d", ids, count)
	}
	for _, dev := range w.Node(a.NodeID).Resources.Devices {
		for _, in := range dev.Instances {
			if slices.Contains(ids, in.ID) && (!in.Healthy || len(cs) > 0 && (cs[0].Operand == "is_set") != (in.Parent != "")) {
				t.Fatalf("%s is given against its health or the request", in.ID)
			}
		}
	}
	if len(d.Stop) > 0 {
		for _, s := range d.Stop { // none goes in vain
			if len(got(s.Alloc)) == 0 {
				t.Fatalf("%s had to go and held nothing", s.Alloc.ID)
			}
		}
		return
	}
	mb, free, _ := before.best(w.Node(a.NodeID), count, cs...)
	if (fit{mb, free}) != *least {
		t.Fatalf("it is on %s, where %d of %d MiB are free; elsewhere it is %+v", a.NodeID, free, mb, *least)
	}
}
