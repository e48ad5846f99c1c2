package sched_test

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
)

// setNode puts a changed copy of a node.
func (w *world) setNode(id string, change func(*model.Node)) {
	for i, n := range w.nodes {
		if n.ID == id {
			c := *n
			change(&c)
			w.nodes[i] = &c
		}
	}
}

func TestADisconnectedNode(t *testing.T) {
	const minute = int64(time.Minute)
	setup := func(pol *model.DisconnectPolicy) (*world, *model.Allocation) {
		w := service(1, model.UpdatePolicy{})
		w.job.TaskGroups[0].Update, w.job.TaskGroups[0].Disconnect = nil, pol
		w.schedule(1)
		w.settle(all)
		a := w.living()[0]
		w.setNode(a.NodeID, func(n *model.Node) { n.Status = model.NodeDisconnected })
		return w, a
	}
	t.Run("without a policy what runs there is lost", func(t *testing.T) {
		w, a := setup(nil)
		if d := w.schedule(minute); a.ClientStatus != model.ClientLost || len(d.Place) != 1 {
			t.Errorf("it is %s, %d were placed", a.ClientStatus, len(d.Place))
		}
	})
	t.Run("with one that replaces nothing it is waited for, and given up in the end", func(t *testing.T) {
		w, a := setup(&model.DisconnectPolicy{LostAfter: time.Hour})
		d := w.schedule(minute)
		if a.ClientStatus != model.ClientUnknown || len(d.Place) != 0 || len(d.FollowUps) != 1 ||
			d.FollowUps[0] != (sched.FollowUp{AllocID: a.ID, At: minute + int64(time.Hour), Trigger: model.TriggerDisconnect}) {
			t.Fatalf("it is %s: %+v", a.ClientStatus, d)
		}
		if d = w.schedule(2 * minute); !d.Empty() {
			t.Errorf("a second time: %+v", d)
		}
		if d = w.schedule(minute + int64(time.Hour)); a.ClientStatus != model.ClientLost || len(d.Place) != 1 {
			t.Errorf("when its time is over it is %s, %d were placed", a.ClientStatus, len(d.Place))
		}
	})
	t.Run("what is heard of before its node is back is not noted again, and is when the node is cut off again", func(t *testing.T) {
		w, a := setup(&model.DisconnectPolicy{LostAfter: time.Hour})
		w.setNode(a.NodeID, func(n *model.Node) { n.StatusUpdatedAt = minute })
		w.schedule(minute)
		a.ClientStatus = model.ClientRunning
		if d := w.schedule(2 * minute); !d.Empty() {
			t.Errorf("reported: %+v", d)
		}
		w.setNode(a.NodeID, func(n *model.Node) { n.StatusUpdatedAt = 3 * minute })
		if w.schedule(3 * minute); a.ClientStatus != model.ClientUnknown || a.UnknownSince != 3*minute {
			t.Errorf("cut off again it is %s since %d", a.ClientStatus, a.UnknownSince)
		}
	})
	for name, c := range map[string]struct {
		strategy string
		original bool
		change   func(original, other *model.Allocation)
	}{
		"keep_original":    {model.ReconcileKeepOriginal, true, nil},
		"keep_replacement": {model.ReconcileKeepReplacement, false, nil},
		"longest_running, the other": {model.ReconcileLongestRunning, false, func(a, b *model.Allocation) {
			a.TaskStates = map[string]*model.TaskState{"t": {State: model.TaskRunning, StartedAt: 100}}
			b.TaskStates = map[string]*model.TaskState{"t": {State: model.TaskRunning, StartedAt: 50}}
		}},
		"longest_running": {model.ReconcileLongestRunning, true, nil},
		"best_score":      {model.ReconcileBestScore, true, nil},
		"best_score, the other": {"", false, func(_, b *model.Allocation) {
			b.Metrics = &model.AllocMetric{ScoreMeta: []model.NodeScore{{NodeID: b.NodeID, Norm: 2}}}
		}},
	} {
		t.Run("when it is back: "+name, func(t *testing.T) {
			w, a := setup(&model.DisconnectPolicy{LostAfter: time.Hour, Replace: true, Reconcile: c.strategy})
			d := w.schedule(minute)
			if a.ClientStatus != model.ClientUnknown || a.DesiredStatus != model.DesiredRun || len(d.Place) != 1 || d.Place[0].PreviousAllocation != a.ID ||
				d.Place[0].NodeID == a.NodeID {
				t.Fatalf("it is %s: %+v", a.ClientStatus, d)
			}
			other := d.Place[0]
			other.ClientStatus = model.ClientRunning
			if d = w.schedule(2 * minute); !d.Empty() {
				t.Errorf("while it is away: %+v", d)
			}
			w.setNode(a.NodeID, func(n *model.Node) { n.Status = model.NodeReady })
			if d = w.schedule(3 * minute); !d.Empty() {
				t.Errorf("before the node has told of it: %+v", d)
			}
			a.ClientStatus = model.ClientRunning
			if c.change != nil {
				c.change(a, other)
			}
			d = w.schedule(4 * minute)
			if len(d.Stop) != 1 || len(d.Place) != 0 || (a.DesiredStatus == model.DesiredRun) != c.original {
				t.Errorf("%+v", d.Stop)
			}
			other.ClientStatus = model.ClientRunning
			w.settle(all)
			if d = w.schedule(5 * minute); !d.Empty() || len(w.living()) != 1 {
				t.Errorf("afterwards: %+v, %d live", d, len(w.living()))
			}
		})
	}
}

func TestDelaysOfRescheduling(t *testing.T) {
	for function, want := range map[string][]time.Duration{
		"constant":    {10, 10, 10, 10, 10},
		"exponential": {10, 20, 40, 50, 50},
		"fibonacci":   {10, 10, 20, 30, 50},
	} {
		w := &world{job: job(1), nodes: []*model.Node{node("n1", 1000, 1000), node("n2", 1000, 1000)}}
		w.job.TaskGroups[0].Reschedule = model.ReschedulePolicy{Unlimited: true, Delay: 10, MaxDelay: 50, DelayFunction: function}
		w.schedule(1)
		now := int64(1)
		for i, delay := range want {
			a := w.living()[0]
			a.ClientStatus, a.ModifyTime = model.ClientFailed, now
			d := w.schedule(now)
			if len(d.FollowUps) != 1 || d.FollowUps[0].At != now+int64(delay) {
				t.Fatalf("%s, attempt %d: %+v, want after %d", function, i+1, d.FollowUps, delay)
			}
			a.FollowupEvalID = "later"
			now += int64(delay)
			d = w.schedule(now)
			if len(d.Place) != 1 || d.Place[0].NodeID == a.NodeID || d.Place[0].Reschedules[len(d.Place[0].Reschedules)-1].PrevAlloc != a.ID {
				t.Fatalf("%s, attempt %d: %+v", function, i+1, d.Place)
			}
		}
		if n := len(w.living()[0].Reschedules); n != 5 {
			t.Errorf("%s: the history has %d entries", function, n)
		}
	}
}

func TestWhatIsDoneIsNotDoneAgain(t *testing.T) {
	w := &world{job: job(3), nodes: []*model.Node{node("n1", 1000, 1000)}}
	w.schedule(1)
	for i, a := range w.living() {
		switch i {
		case 0:
			a.ClientStatus = model.ClientComplete
		case 1:
			a.DesiredStatus, a.DesiredDescription, a.ClientStatus = model.DesiredStop, sched.StoppedByUser, model.ClientComplete
		}
	}
	if d := w.schedule(2); len(d.Place) != 1 || d.Place[0].PreviousAllocation == "" {
		t.Errorf("of one that completed and one that was stopped, %+v are placed anew", d.Place)
	}
	w.job.Stop = true
	if d := w.schedule(3); len(d.Stop) != 2 || len(d.Place) != 0 {
		t.Errorf("a stopped job: %+v", d)
	}
}

func TestAllAtOnce(t *testing.T) {
	w := &world{job: job(3), nodes: []*model.Node{node("n1", 200, 1000)}}
	w.job.AllAtOnce = true
	if d := w.schedule(1); len(d.Place) != 0 || d.Queued["g"] != 3 || d.Failed["g"] == nil {
		t.Errorf("%+v", d)
	}
	w.nodes[0] = node("n1", 300, 1000)
	if d := w.schedule(2); len(d.Place) != 3 {
		t.Errorf("with room: %+v", d)
	}
}

func TestQuotas(t *testing.T) {
	w := &world{job: job(5), nodes: []*model.Node{node("n1", 10_000, 10_000)}, quota: &model.Quota{Name: "course", CPU: 350, MemoryMB: 1000}}
	d := w.schedule(1)
	m := d.Failed["g"]
	if len(d.Place) != 3 || m == nil || !slices.Equal(m.QuotaExhausted, []string{"cpu"}) || d.Quota != "course" || d.Queued["g"] != 2 {
		t.Fatalf("%d placed: %+v", len(d.Place), m)
	}
	if d = w.schedule(2); len(d.Place) != 0 {
		t.Errorf("%d placed on top", len(d.Place))
	}
	w.quota.MemoryMB = -1
	for _, a := range w.allocs {
		a.ClientStatus = model.ClientComplete
	}
	if d = w.schedule(3); len(d.Place) != 0 || !slices.Equal(d.Failed["g"].QuotaExhausted, []string{"memory"}) {
		t.Errorf("a quota of nothing: %d placed", len(d.Place))
	}
}

func TestQuotasOfDevices(t *testing.T) {
	w := &world{job: job(3), nodes: []*model.Node{node("n1", 10_000, 10_000)}, quota: &model.Quota{Name: "q", Devices: map[string]int{"nvidia/gpu": 2}}}
	w.job.TaskGroups[0].Tasks[0].Resources.Devices = []model.DeviceRequest{{Name: "gpu", Count: 1}}
	w.nodes[0].Resources.Devices = []model.NodeDevice{{Vendor: "nvidia", Type: "gpu", Name: "x", Instances: []model.DeviceInstance{
		{ID: "a", Healthy: true}, {ID: "b", Healthy: true}, {ID: "c", Healthy: true}}}}
	if d := w.schedule(1); len(d.Place) != 2 || d.Failed["g"] == nil || !slices.Equal(d.Failed["g"].QuotaExhausted, []string{"devices: nvidia/gpu"}) {
		t.Errorf("%d placed: %+v", len(d.Place), d.Failed["g"])
	}
}

// others fills nodes with allocations of jobs of some priority.
func (w *world) others(id, node string, priority, cpu int) *model.Allocation {
	j := job(1)
	j.ID, j.Priority = "other-"+id, priority
	a := &model.Allocation{
		ID: id, Namespace: "default", JobID: j.ID, Job: j, TaskGroup: "g", Name: "x[0]", NodeID: node, DesiredStatus: model.DesiredRun,
		ClientStatus: model.ClientRunning, Resources: model.AllocatedResources{Tasks: map[string]*model.AllocatedTask{"t": {CPU: cpu, MemoryMB: 10}}},
	}
	w.allocs = append(w.allocs, a)
	return a
}

func TestPreemptionTakesFewAndTheLowest(t *testing.T) {
	w := &world{job: job(1), nodes: []*model.Node{node("n1", 300, 1000), node("n2", 300, 1000), node("n3", 300, 1000)}, opts: sched.Options{Preempt: sched.Preemption{Batch: true}}}
	w.job.Priority = 60
	w.others("near", "n1", 51, 300)
	w.others("high", "n2", 50, 250)
	low := w.others("low", "n3", 20, 100)
	w.others("lower", "n3", 10, 50)
	w.others("mid", "n3", 40, 150)
	w.opts.Preempt = sched.Preemption{}
	if d := w.schedule(1); len(d.Place)+len(d.Stop) != 0 {
		t.Fatalf("without being allowed to: %+v", d)
	}
	w.opts.Preempt.Batch = true
	d := w.schedule(2)
	if len(d.Place) != 1 || d.Place[0].NodeID != "n3" || !slices.Equal(d.Place[0].Preempts, []string{"low"}) || low.DesiredStatus != model.DesiredEvict ||
		low.PreemptedBy != d.Place[0].ID || sched.Annotate(d)["g"].Preemptions != 1 {
		t.Fatalf("%+v", d.Place)
	}
}

func TestOnlyLowerPrioritiesAreEnded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{job: job(rapid.IntRange(1, 4).Draw(t, "count")), opts: sched.Options{Preempt: sched.Preemption{Batch: true, System: true}}}
		w.job.Priority = rapid.IntRange(1, 100).Draw(t, "priority")
		if rapid.Bool().Draw(t, "system") {
			w.job.Type = model.JobTypeSystem
		}
		for i := range rapid.IntRange(1, 3).Draw(t, "nodes") {
			n := node(fmt.Sprint("n", i), 300, 1000)
			w.nodes = append(w.nodes, n)
			for k := range rapid.IntRange(0, 3).Draw(t, "held") {
				w.others(fmt.Sprint(n.ID, "-", k), n.ID, rapid.IntRange(1, 100).Draw(t, "of priority"), 100)
			}
		}
		d := w.schedule(1)
		for _, s := range d.Stop {
			if s.PreemptedBy == "" || s.Alloc.Job.Priority+10 > w.job.Priority {
				t.Fatalf("%s of priority %d goes for one of %d", s.Alloc.ID, s.Alloc.Job.Priority, w.job.Priority)
			}
		}
		for _, n := range w.nodes {
			cpu := 0
			for a := range w.AllocsByNode(n.ID) {
				if a.Holds() {
					cpu += a.Resources.Tasks["t"].CPU
				}
			}
			if cpu > 300 {
				t.Fatalf("%s has 300 MHz and promised %d", n.ID, cpu)
			}
		}
	})
}

func TestTheFleetIsTheSum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, allocs := map[string]*model.Node{}, map[string]*model.Allocation{}
		fleet := sched.NewFleet(maps.Values(nodes), maps.Values(allocs))
		type kept struct {
			fleet *sched.Fleet
			sums  string
		}
		var old []kept
		sums := func(f *sched.Fleet) string {
			s := ""
			for i := range 140 {
				id := fmt.Sprint("n", i)
				if seat := f.Seat(id); seat != nil && (seat.Node != nil || seat.Used.Allocs > 0) {
					s += fmt.Sprintf("%s %v %+v\n", id, seat.Node != nil, seat.Used)
				}
			}
			return s + fmt.Sprintf("%+v", f.Namespace("a")) + fmt.Sprintf("%+v", f.Namespace("b"))
		}
		for range rapid.IntRange(1, 20).Draw(t, "commits") {
			e := fleet.Edit()
			for range rapid.IntRange(1, 5).Draw(t, "changes") {
				// Few ids, over several blocks.
				nodeID := fmt.Sprint("n", 35*rapid.IntRange(0, 3).Draw(t, "node"))
				switch rapid.IntRange(0, 3).Draw(t, "change") {
				case 0:
					before := nodes[nodeID]
					n := node(nodeID, rapid.IntRange(1, 9).Draw(t, "cpu"), 10)
					n.Status = rapid.SampledFrom([]string{model.NodeReady, model.NodeDown}).Draw(t, "status")
					n.NodePool = rapid.SampledFrom([]string{"", "default", "gpu"}).Draw(t, "pool")
					nodes[nodeID] = n
					e.Node(before, n)
				case 1:
					if before := nodes[nodeID]; before != nil {
						delete(nodes, nodeID)
						e.Node(before, nil)
					}
				case 2:
					id := fmt.Sprint("a", rapid.IntRange(0, 5).Draw(t, "alloc"))
					before := allocs[id]
					after := &model.Allocation{ID: id, NodeID: nodeID, Namespace: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "namespace"),
						Resources: model.AllocatedResources{DiskMB: 1, Ports: []model.AllocatedPort{{Value: rapid.IntRange(1, 3).Draw(t, "port")}},
							Tasks: map[string]*model.AllocatedTask{"t": {CPU: 1, MemoryMB: 2, MemoryMaxMB: 3, Devices: []model.AllocatedDevice{
								{Vendor: "v", Type: "t", Name: "n", DeviceIDs: []string{fmt.Sprint(rapid.IntRange(1, 3).Draw(t, "device"))}}}}}}}
					if before != nil {
						after.NodeID, after.Namespace, after.Resources = before.NodeID, before.Namespace, before.Resources
					}
					after.DesiredStatus = rapid.SampledFrom([]string{model.DesiredRun, model.DesiredStop, model.DesiredEvict}).Draw(t, "desired")
					after.ClientStatus = rapid.SampledFrom([]string{model.ClientRunning, model.ClientComplete, model.ClientUnknown}).Draw(t, "client")
					allocs[id] = after
					e.Alloc(before, after)
				case 3:
					id := fmt.Sprint("a", rapid.IntRange(0, 5).Draw(t, "alloc"))
					if before := allocs[id]; before != nil {
						delete(allocs, id)
						e.Alloc(before, nil)
					}
				}
			}
			fleet = e.Done()
			old = append(old, kept{fleet, sums(fleet)})
			naive := sched.NewFleet(maps.Values(nodes), maps.Values(allocs))
			if got, want := sums(fleet), sums(naive); got != want {
				t.Fatalf("kept:\n%s\nsummed up:\n%s", got, want)
			}
			if got, want := fleet.Ready(), naive.Ready(); !reflect.DeepEqual(got, want) {
				t.Fatalf("ready: kept %v, summed up %v", got, want)
			}
		}
		for _, k := range old {
			if sums(k.fleet) != k.sums {
				t.Fatal("an earlier fleet has changed")
			}
		}
	})
}

func TestASpreadIsEven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{job: job(rapid.IntRange(1, 60).Draw(t, "count"))}
		if rapid.Bool().Draw(t, "service") {
			w.job.Type = model.JobTypeService
		}
		racks := rapid.IntRange(1, 4).Draw(t, "racks")
		for i := range racks * rapid.IntRange(1, 4).Draw(t, "nodes of a rack") {
			n := node(fmt.Sprint("n", i), 100_000, 100_000)
			n.Meta = map[string]string{"rack": fmt.Sprint(i % racks)}
			w.nodes = append(w.nodes, n)
		}
		w.job.Spreads = []model.Spread{{Attribute: "${meta.rack}", Weight: 100}}
		byName := rapid.Bool().Draw(t, "by name too")
		if byName {
			w.job.Spreads = append(w.job.Spreads, model.Spread{Attribute: "${node.unique.name}", Weight: 100})
		}
		w.schedule(1)
		perRack := map[string]int{}
		for r := range racks {
			perRack[fmt.Sprint(r)] = 0
		}
		for _, a := range w.living() {
			perRack[w.Node(a.NodeID).Meta["rack"]]++
		}
		least, most := slices.Min(slices.Collect(maps.Values(perRack))), slices.Max(slices.Collect(maps.Values(perRack)))
		if most-least > 1 {
			t.Fatalf("the racks have %v", perRack)
		}
		if nodes := perNode(w); byName && len(nodes) < min(len(w.nodes), w.job.TaskGroups[0].Count) {
			t.Fatalf("only %d nodes are used: %v", len(nodes), nodes)
		}
	})
}

func TestASystemJobSaysWhereItFindsNoRoom(t *testing.T) {
	w := &world{job: job(1), nodes: []*model.Node{node("n1", 1000, 1000), node("n2", 50, 1000), node("n3", 50, 1000), node("n4", 1000, 1000)}}
	w.job.Type = model.JobTypeSystem
	w.nodes[3].Drivers = nil
	d := w.schedule(1)
	m := d.Failed["g"]
	if len(d.Place) != 1 || m == nil || m.NodesEvaluated != 4 || m.NodesExhausted != 2 || m.NodesFiltered != 1 || m.CoalescedFailures != 1 || d.Queued["g"] != 2 {
		t.Errorf("%d placed: %+v", len(d.Place), m)
	}
	// What concerns another node only does not look at these.
	w.allocs = nil
	d = sched.Schedule(w, &model.Evaluation{ID: "e", Namespace: "default", JobID: "j", NodeID: "n4", TriggeredBy: model.TriggerNodeUpdate}, 2)
	if !d.Empty() || len(d.Failed) != 0 {
		t.Errorf("an evaluation for one node: %+v", d)
	}
}

func TestDistinctProperties(t *testing.T) {
	w := &world{job: job(10)}
	for i := range 9 {
		n := node(fmt.Sprint("n", i), 10_000, 10_000)
		n.Meta = map[string]string{"rack": fmt.Sprint(i % 3)}
		w.nodes = append(w.nodes, n)
	}
	w.job.Constraints = []model.Constraint{{LTarget: "${meta.rack}", Operand: "distinct_property", RTarget: "2"}}
	d := w.schedule(1)
	perRack := map[string]int{}
	for _, a := range w.living() {
		perRack[w.Node(a.NodeID).Meta["rack"]]++
	}
	if !maps.Equal(perRack, map[string]int{"0": 2, "1": 2, "2": 2}) || d.Failed["g"].ConstraintFiltered["distinct_property: ${meta.rack}"] != 9 {
		t.Errorf("the racks have %v: %+v", perRack, d.Failed["g"])
	}
}

func TestTheLimitsOfTasksAreCapped(t *testing.T) {
	w := &world{job: job(5), nodes: []*model.Node{node("n1", 10_000, 1000)}, opts: sched.Options{Oversubscribe: true}}
	w.job.TaskGroups[0].Tasks[0].Resources.MemoryMaxMB = 500
	w.nodes[0].Meta[sched.MetaMemoryMax] = "150"
	if d := w.schedule(1); len(d.Place) != 3 || d.Failed["g"].DimensionExhausted["memory limits"] != 1 {
		t.Errorf("%d placed: %+v", len(d.Place), d.Failed["g"])
	}
}

func TestPoolsVolumesAndVersions(t *testing.T) {
	w := &world{job: job(1), nodes: []*model.Node{node("n1", 1000, 1000), node("n2", 1000, 1000)}}
	w.job.TaskGroups[0].Volumes = map[string]*model.VolumeRequest{"data": {Source: "data"}}
	w.nodes[0].HostVolumes = map[string]*model.HostVolume{"data": {ReadOnly: true}}
	m := w.schedule(1).Failed["g"]
	if m == nil || m.ConstraintFiltered[`host volume "data" is read only`] != 1 || m.ConstraintFiltered[`missing host volume "data"`] != 1 || m.NodesInPool != 2 {
		t.Errorf("%+v", m)
	}
	w.nodes[1].HostVolumes, w.nodes[1].NodePool = map[string]*model.HostVolume{"data": {}}, "gpu"
	w.job.NodePool = "all"
	if d := w.schedule(2); len(d.Place) != 1 || d.Place[0].NodeID != "n2" {
		t.Errorf("%+v", d.Failed["g"])
	}
	n := node("n1", 1, 1)
	n.Attributes["v"] = "1.3.0-beta1"
	for _, c := range []struct {
		operand, right string
		want           bool
	}{
		{"semver", ">= 0.6.1", true}, {"version", ">= 0.6.1", false}, {"semver", "> 1.3.0", false}, {"semver", ">= 1.2.0, < 1.3.0", true},
		{"semver", "1.3.0-beta1", true}, {"semver", "~> 1.3", false}, {"semver", "x", false},
	} {
		if got := sched.Matches(n, "${attr.v}", c.operand, c.right); got != c.want {
			t.Errorf("%s %s is %v", c.operand, c.right, got)
		}
	}
}

func TestNamesStayUniqueWhenAnUpdateAlsoAdds(t *testing.T) {
	for _, kind := range []string{model.JobTypeBatch, model.JobTypeService} {
		w := &world{job: job(1), nodes: []*model.Node{node("n1", 10_000, 10_000)}}
		w.job.Type = kind
		w.schedule(1)
		next := job(3)
		next.Type, next.Version, next.JobModifyIndex = kind, 1, 9
		next.TaskGroups[0].Tasks[0].Env = map[string]string{"CHANGED": "1"}
		w.job = next
		w.schedule(2)
		names := map[string]int{}
		for _, a := range w.living() {
			names[a.Name]++
		}
		if want := map[string]int{"j.g[0]": 1, "j.g[1]": 1, "j.g[2]": 1}; !maps.Equal(names, want) {
			t.Errorf("the names of a %s are %v", kind, names)
		}
	}
}
