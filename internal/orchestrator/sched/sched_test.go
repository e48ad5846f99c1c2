package sched_test

import (
	"fmt"
	"iter"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
)

// world is a State of slices.
type world struct {
	index  uint64
	job    *model.Job
	allocs []*model.Allocation
	nodes  []*model.Node
	opts   sched.Options

	deployments []*model.Deployment // newest last
	quota       *model.Quota
}

func (w *world) Index() uint64 { return w.index }
func (w *world) Job(_, id string) *model.Job {
	if w.job != nil && w.job.ID == id {
		return w.job
	}
	return nil
}
func (w *world) Options(string) sched.Options { return w.opts }
func (w *world) Fleet() *sched.Fleet {
	return sched.NewFleet(slices.Values(w.nodes), slices.Values(w.allocs))
}
func (w *world) Deployment(id string) *model.Deployment {
	for _, d := range w.deployments {
		if d.ID == id {
			return d
		}
	}
	return nil
}
func (w *world) LatestDeployment(_, job string) *model.Deployment {
	if n := len(w.deployments); n > 0 && w.deployments[n-1].JobID == job {
		return w.deployments[n-1]
	}
	return nil
}
func (w *world) NamespaceQuota(ns string) (*model.Quota, sched.Usage) {
	return w.quota, w.Fleet().Namespace(ns)
}
func (w *world) AllocsByJob(_, id string) iter.Seq[*model.Allocation] {
	return w.where(func(a *model.Allocation) bool { return a.JobID == id })
}
func (w *world) AllocsByNode(id string) iter.Seq[*model.Allocation] {
	return w.where(func(a *model.Allocation) bool { return a.NodeID == id })
}
func (w *world) Usage(id string) *sched.Usage {
	u := &sched.Usage{}
	for a := range w.AllocsByNode(id) {
		if a.Holds() {
			u.Add(&a.Resources)
		}
	}
	return u
}
func (w *world) where(f func(*model.Allocation) bool) iter.Seq[*model.Allocation] {
	return func(yield func(*model.Allocation) bool) {
		for _, a := range w.allocs {
			if f(a) && !yield(a) {
				return
			}
		}
	}
}
func (w *world) Node(id string) *model.Node {
	for _, n := range w.nodes {
		if n.ID == id {
			return n
		}
	}
	return nil
}

var evaluation = &model.Evaluation{ID: "e", Namespace: "default", JobID: "j"}

// schedule decides and carries out what was decided.
func (w *world) schedule(now int64) *sched.Decision {
	e := *evaluation
	e.ID = fmt.Sprint("e", w.index)
	d := sched.Schedule(w, &e, now)
	w.index++
	for _, s := range d.Stop {
		switch {
		case s.Unknown:
			s.Alloc.ClientStatus, s.Alloc.UnknownSince = model.ClientUnknown, now
			continue
		case s.PreemptedBy != "":
			s.Alloc.DesiredStatus, s.Alloc.PreemptedBy = model.DesiredEvict, s.PreemptedBy
			continue
		}
		s.Alloc.DesiredStatus, s.Alloc.DesiredDescription = model.DesiredStop, s.Description
		if s.Lost {
			s.Alloc.ClientStatus = model.ClientLost
		}
	}
	for _, a := range d.Update {
		a.Job = w.job
	}
	w.carryOut(d)
	for _, a := range d.Place {
		a.CreateIndex, a.CreateTime = w.index, now
		for _, p := range w.allocs {
			if p.ID == a.ID {
				panic("an id is used twice: " + a.ID)
			}
			if p.ID == a.PreviousAllocation {
				p.NextAllocation = a.ID
			}
		}
	}
	w.allocs = append(w.allocs, d.Place...)
	return d
}

// carryOut does with deployments what the state does.
func (w *world) carryOut(d *sched.Decision) {
	for _, u := range d.DeploymentUpdates {
		w.Deployment(u.ID).Status = u.Status
	}
	if d.Deployment != nil {
		w.deployments = append(w.deployments, d.Deployment)
	}
	yes := true
	for _, a := range d.Join {
		a.DeploymentID, a.DeploymentStatus = d.DeploymentID, &model.AllocHealth{Healthy: &yes}
	}
	for _, a := range d.Place {
		if dep := w.Deployment(a.DeploymentID); dep != nil {
			g := dep.TaskGroups[a.TaskGroup]
			g.Placed++
			if a.DeploymentStatus != nil && a.DeploymentStatus.Canary {
				g.PlacedCanaries = append(g.PlacedCanaries, a.ID)
			}
		}
	}
}

func node(id string, cpu, mem int) *model.Node {
	return &model.Node{
		ID: id, Name: id, Datacenter: "dc1", NodePool: "default", Status: model.NodeReady, SchedulingEligibility: model.NodeEligible,
		Resources:  model.NodeResources{CPU: cpu, MemoryMB: mem, DiskMB: 10_000},
		Drivers:    map[string]*model.DriverInfo{"mock": {Detected: true, Healthy: true}},
		Attributes: map[string]string{"kernel.name": "linux", "cpu.numcores": "8", "os.version": "22.04", "sets": "a, b,c"},
		Meta:       map[string]string{"rack": "r" + id[len(id)-1:]},
	}
}

func job(count int) *model.Job {
	return &model.Job{
		Namespace: "default", ID: "j", Type: model.JobTypeBatch, Priority: 50, Datacenters: []string{"dc*"}, NodePool: "default",
		CreateIndex: 1, JobModifyIndex: 1,
		TaskGroups: []*model.TaskGroup{{
			Name: "g", Count: count, EphemeralDisk: model.EphemeralDisk{SizeMB: 10},
			Tasks: []*model.Task{{Name: "t", Driver: "mock", Resources: model.Resources{CPU: 100, MemoryMB: 100}}},
		}},
	}
}

func (w *world) living() []*model.Allocation {
	return slices.Collect(w.where(func(a *model.Allocation) bool { return !a.Terminal() }))
}

func TestNeverMoreIsPromisedThanANodeHas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{job: job(0), opts: sched.Options{
			Spread: rapid.Bool().Draw(t, "spread"), Oversubscribe: true, NodeLimit: rapid.IntRange(0, 3).Draw(t, "limit")}}
		for i := range rapid.IntRange(0, 4).Draw(t, "nodes") {
			n := node(fmt.Sprint("n", i), rapid.IntRange(50, 800).Draw(t, "cpu"), rapid.IntRange(50, 800).Draw(t, "memory"))
			for d := range rapid.IntRange(0, 3).Draw(t, "gpus") {
				if d == 0 {
					n.Resources.Devices = []model.NodeDevice{{Vendor: "nvidia", Type: "gpu", Name: "x"}}
				}
				dev := &n.Resources.Devices[0]
				dev.Instances = append(dev.Instances, model.DeviceInstance{ID: fmt.Sprint(n.ID, "-gpu", d), Healthy: rapid.Bool().Draw(t, "healthy")})
			}
			w.nodes = append(w.nodes, n)
		}
		now := int64(1000)
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			now += int64(time.Minute)
			j := *w.job
			g := *j.TaskGroups[0]
			task := *g.Tasks[0]
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				g.Count = rapid.IntRange(0, 10).Draw(t, "count")
			case 1:
				task.Resources.MemoryMB = rapid.IntRange(10, 400).Draw(t, "task memory")
			case 2:
				g.Networks = []model.Network{{ReservedPorts: []model.Port{{Label: "a", Value: 80}}, DynamicPorts: []model.Port{{Label: "b"}, {Label: "c"}}}}
			case 3:
				if len(w.nodes) > 0 {
					n := *rapid.SampledFrom(w.nodes).Draw(t, "node")
					n.Status = rapid.SampledFrom([]string{model.NodeReady, model.NodeDown}).Draw(t, "status")
					for i, o := range w.nodes {
						if o.ID == n.ID {
							w.nodes[i] = &n
						}
					}
				}
			case 4:
				for _, a := range w.allocs {
					switch {
					case a.DesiredStatus == model.DesiredStop && rapid.Bool().Draw(t, "ended"):
						a.ClientStatus = model.ClientComplete
					case !a.ClientTerminal() && rapid.Bool().Draw(t, "failed"):
						a.ClientStatus = model.ClientFailed
					}
				}
				g.Reschedule = model.ReschedulePolicy{Attempts: 1, Interval: time.Hour}
			case 5:
				task.Resources.Devices = []model.DeviceRequest{{Name: "nvidia/gpu", Count: 1}}
			}
			g.Tasks = []*model.Task{&task}
			j.TaskGroups = []*model.TaskGroup{&g}
			j.JobModifyIndex++
			j.Version++
			w.job = &j
			before := *w
			before.allocs = slices.Clone(w.allocs)
			again := sched.Schedule(&before, &model.Evaluation{ID: fmt.Sprint("e", w.index), Namespace: "default", JobID: "j"}, now)
			d := w.schedule(now)
			if !reflect.DeepEqual(ids(d), ids(again)) {
				t.Fatalf("two decisions on one state differ: %v, %v", ids(d), ids(again))
			}
			w.check(t, &g, d)
		}
	})
}

func ids(d *sched.Decision) []string {
	var out []string
	for _, a := range d.Place {
		out = append(out, a.ID+a.NodeID)
	}
	return out
}

func (w *world) check(t *rapid.T, g *model.TaskGroup, d *sched.Decision) {
	for _, n := range w.nodes {
		cpu, mem := 0, 0
		ports, gpus := map[int]bool{}, map[string]bool{}
		for a := range w.AllocsByNode(n.ID) {
			if a.ClientTerminal() {
				continue
			}
			for _, r := range a.Resources.Tasks {
				cpu += r.CPU
				mem += r.MemoryMB
				for _, dev := range r.Devices {
					for _, id := range dev.DeviceIDs {
						if gpus[id] {
							t.Fatalf("%s has two owners", id)
						}
						gpus[id] = true
					}
				}
			}
			for _, p := range a.Resources.Ports {
				if ports[p.Value] {
					t.Fatalf("port %d of %s is given twice", p.Value, n.ID)
				}
				ports[p.Value] = true
			}
		}
		if cpu > n.Resources.CPU || mem > n.Resources.MemoryMB {
			t.Fatalf("%s has %d MHz, %d MB and promised %d, %d", n.ID, n.Resources.CPU, n.Resources.MemoryMB, cpu, mem)
		}
	}
	for _, a := range d.Place {
		if n := w.Node(a.NodeID); !n.Ready() {
			t.Fatalf("placed on %s, which is %s", n.ID, n.Status)
		}
	}
	living := len(w.living())
	if living > g.Count {
		t.Fatalf("%d live, want %d", living, g.Count)
	}
	spent := 0 // failed for good, or ended: they keep their slots
	for _, a := range w.allocs {
		if a.ClientTerminal() && a.DesiredStatus == model.DesiredRun && a.NextAllocation == "" && a.ClientStatus != model.ClientLost {
			spent++
		}
	}
	if living+spent < g.Count && d.Failed["g"] == nil && len(d.FollowUps) == 0 {
		t.Fatalf("%d live, %d are spent, want %d, and nothing says why", living, spent, g.Count)
	}
	if m := d.Failed["g"]; m != nil && len(w.nodes) > 0 && m.NodesEvaluated != m.NodesFiltered+m.NodesExhausted {
		t.Fatalf("%d nodes were looked at, %d filtered, %d full", m.NodesEvaluated, m.NodesFiltered, m.NodesExhausted)
	}
}

func TestConstraints(t *testing.T) {
	n := node("n1", 100, 100)
	n.NodeClass = "fast"
	for _, c := range []struct {
		left, operand, right string
		want                 bool
	}{
		{"${attr.kernel.name}", "=", "linux", true},
		{"${attr.kernel.name}", "", "darwin", false},
		{"${attr.kernel.name}", "!=", "darwin", true},
		{"${attr.missing}", "!=", "x", true},
		{"${attr.missing}", "=", "x", false},
		{"${attr.cpu.numcores}", ">", "10", false},
		{"${attr.cpu.numcores}", ">=", "8", true},
		{"${attr.cpu.numcores}", "<", "10", true},
		{"${attr.kernel.name}", "regexp", "^lin", true},
		{"${attr.kernel.name}", "regexp", "(", false},
		{"${attr.os.version}", "version", ">= 20.04, < 24", true},
		{"${attr.os.version}", "version", "> 22.04", false},
		{"${attr.sets}", "set_contains", "a,c", true},
		{"${attr.sets}", "set_contains", "a,d", false},
		{"${attr.sets}", "set_contains_any", "d,b", true},
		{"${attr.sets}", "is_set", "", true},
		{"${attr.missing}", "is_set", "", false},
		{"${attr.missing}", "is_not_set", "", true},
		{"${meta.rack}", "=", "r1", true},
		{"${node.datacenter}", "=", "dc1", true},
		{"${node.unique.name}", "=", "n1", true},
		{"${node.class}", "=", "fast", true},
		{"${odd.thing}", "=", "x", false},
		{"${attr.kernel.name}", "odd", "x", false},
	} {
		if got := sched.Matches(n, c.left, c.operand, c.right); got != c.want {
			t.Errorf("%s %s %s is %v", c.left, c.operand, c.right, got)
		}
	}
}

func TestWhyThereIsNoPlace(t *testing.T) {
	w := &world{job: job(3), nodes: []*model.Node{node("n1", 50, 1000), node("n2", 1000, 50), node("n3", 1000, 1000), node("n4", 1000, 1000)}}
	w.nodes[2].Drivers = nil
	w.nodes[3].Attributes = nil
	w.job.Constraints = []model.Constraint{{LTarget: "${attr.kernel.name}", RTarget: "linux"}}
	m := w.schedule(0).Failed["g"]
	if m == nil || m.NodesEvaluated != 4 || m.NodesFiltered != 2 || m.NodesExhausted != 2 || m.CoalescedFailures != 2 ||
		m.DimensionExhausted["cpu"] != 1 || m.DimensionExhausted["memory"] != 1 || m.ConstraintFiltered["missing drivers"] != 1 ||
		m.ConstraintFiltered["${attr.kernel.name} = linux"] != 1 || m.NodesAvailable["dc1"] != 4 {
		t.Errorf("%+v", m)
	}
}

func TestWhatANodeCannotOfferIsNamed(t *testing.T) {
	for name, c := range map[string]struct {
		change   func(*model.Job, *model.Node)
		filtered string
		full     string
	}{
		"a network it has not": {func(j *model.Job, _ *model.Node) {
			j.TaskGroups[0].Networks = []model.Network{{Mode: "bridge"}}
		}, `missing network "bridge"`, ""},
		"a network it has": {func(j *model.Job, n *model.Node) {
			j.TaskGroups[0].Networks = []model.Network{{Mode: "bridge"}}
			n.Attributes["network.bridge"] = "1"
		}, "", ""},
		"a runtime its driver does not have": {func(j *model.Job, n *model.Node) {
			j.TaskGroups[0].Tasks[0].Config = map[string]any{"runtime": "kata"}
			n.Drivers["mock"] = &model.DriverInfo{Detected: true, Healthy: true, Attributes: map[string]string{"runtimes": "crun,runsc"}}
		}, `driver mock offers no runtime "kata"`, ""},
		"a runtime where there is none": {func(j *model.Job, n *model.Node) {
			j.TaskGroups[0].Tasks[0].Config = map[string]any{"runtime": "kata"}
			n.Drivers["mock"] = &model.DriverInfo{Detected: true, Healthy: true, Attributes: map[string]string{"runtimes": ""}}
		}, `driver mock offers no runtime "kata"`, ""},
		"a runtime its driver has": {func(j *model.Job, n *model.Node) {
			j.TaskGroups[0].Tasks[0].Config = map[string]any{"runtime": "runsc"}
			n.Drivers["mock"] = &model.DriverInfo{Detected: true, Healthy: true, Attributes: map[string]string{"runtimes": "crun,runsc"}}
		}, "", ""},
		"devices in a runtime that does not reach them": {func(j *model.Job, n *model.Node) {
			j.TaskGroups[0].Tasks[0].Config = map[string]any{"runtime": "runsc"}
			j.TaskGroups[0].Tasks[0].Resources.Devices = []model.DeviceRequest{{Name: "gpu", Count: 1}}
			n.Drivers["mock"] = &model.DriverInfo{Detected: true, Healthy: true, Attributes: map[string]string{"runtimes": "crun,runsc", "runtimes.devices": "crun"}}
		}, `driver mock gives no devices to runtime "runsc", in which programs have a kernel of their own`, ""},
		"devices in a runtime that reaches them, on a node that has none": {func(j *model.Job, n *model.Node) {
			j.TaskGroups[0].Tasks[0].Config = map[string]any{"runtime": "crun"}
			j.TaskGroups[0].Tasks[0].Resources.Devices = []model.DeviceRequest{{Name: "gpu", Count: 1}}
			n.Drivers["mock"] = &model.DriverInfo{Detected: true, Healthy: true, Attributes: map[string]string{"runtimes": "crun,runsc", "runtimes.devices": "crun"}}
		}, "missing devices", ""},
		"a limit above its memory": {func(j *model.Job, _ *model.Node) {
			j.TaskGroups[0].Tasks[0].Resources.MemoryMaxMB = 1001
		}, "", "memory limit above the node's memory"},
	} {
		w := &world{job: job(1), nodes: []*model.Node{node("n1", 1000, 1000)}, opts: sched.Options{Oversubscribe: true}}
		c.change(w.job, w.nodes[0])
		m := w.schedule(0).Failed["g"]
		if placed := c.filtered+c.full == ""; placed != (m == nil) {
			t.Errorf("%s: %+v", name, m)
			continue
		}
		if m != nil && (m.ConstraintFiltered[c.filtered]+m.DimensionExhausted[c.full] != 1) {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

func perNode(w *world) map[string]int {
	m := map[string]int{}
	for _, a := range w.living() {
		m[a.NodeID]++
	}
	return m
}

func TestPreferences(t *testing.T) {
	nodes := func() []*model.Node { return []*model.Node{node("n1", 10_000, 10_000), node("n2", 10_000, 10_000)} }
	for _, c := range []struct {
		name  string
		setup func(*world)
		want  map[string]int
	}{
		{"a spread over names is even", func(w *world) {
			w.job.TaskGroups[0].Spreads = []model.Spread{{Attribute: "${node.unique.name}", Weight: 100}}
		}, map[string]int{"n1": 5, "n2": 5}},
		{"a spread with targets follows them", func(w *world) {
			w.job.Spreads = []model.Spread{{Attribute: "${node.unique.name}", Weight: 100, Targets: []model.SpreadTarget{{Value: "n1", Percent: 80}}}}
		}, map[string]int{"n1": 8, "n2": 2}},
		{"a datacenter that is not the job's", func(w *world) { w.nodes[0].Datacenter = "eu" }, map[string]int{"n2": 10}},
		{"another pool", func(w *world) { w.nodes[0].NodePool = "gpu" }, map[string]int{"n2": 10}},
		{"an ineligible node", func(w *world) { w.nodes[0].SchedulingEligibility = model.NodeIneligible }, map[string]int{"n2": 10}},
		{"distinct hosts", func(w *world) {
			w.job.Constraints = []model.Constraint{{Operand: "distinct_hosts", RTarget: "true"}}
		}, map[string]int{"n1": 1, "n2": 1}},
		{"a system job is everywhere once", func(w *world) { w.job.Type, w.job.TaskGroups[0].Count = model.JobTypeSystem, 1 }, map[string]int{"n1": 1, "n2": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{job: job(10), nodes: nodes()}
			c.setup(w)
			w.schedule(0)
			if got := perNode(w); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
	t.Run("one allocation keeps off a node with GPUs and goes where its affinity is", func(t *testing.T) {
		w := &world{job: job(1), nodes: nodes()}
		w.nodes[0].Resources.Devices = []model.NodeDevice{{Vendor: "nvidia", Type: "gpu", Instances: []model.DeviceInstance{{ID: "g", Healthy: true}}}}
		w.schedule(0)
		if perNode(w)["n2"] != 1 {
			t.Errorf("it is on %v", perNode(w))
		}
		w = &world{job: job(1), nodes: nodes()}
		w.job.Affinities = []model.Affinity{{LTarget: "${meta.rack}", RTarget: "r1", Operand: "=", Weight: 100}}
		w.schedule(0)
		if perNode(w)["n1"] != 1 {
			t.Errorf("it is on %v", perNode(w))
		}
	})
}

func TestInPlace(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*model.Job, *model.TaskGroup, *model.Task)
		want   bool
	}{
		{"nothing", func(*model.Job, *model.TaskGroup, *model.Task) {}, true},
		{"another group's meta", func(j *model.Job, _ *model.TaskGroup, _ *model.Task) {
			j.TaskGroups = append(j.TaskGroups, &model.TaskGroup{Name: "config", Meta: map[string]string{"used": "true"}})
		}, true},
		{"the count", func(_ *model.Job, g *model.TaskGroup, _ *model.Task) { g.Count = 7 }, true},
		{"the restart policy", func(_ *model.Job, g *model.TaskGroup, _ *model.Task) { g.Restart.Attempts = 7 }, true},
		{"meta that the task sees", func(_ *model.Job, g *model.TaskGroup, _ *model.Task) { g.Meta = map[string]string{"a": "b"} }, false},
		{"the environment", func(_ *model.Job, _ *model.TaskGroup, t *model.Task) { t.Env = map[string]string{"a": "b"} }, false},
		{"the driver's configuration", func(_ *model.Job, _ *model.TaskGroup, t *model.Task) { t.Config = map[string]any{"a": 1} }, false},
		{"resources", func(_ *model.Job, _ *model.TaskGroup, t *model.Task) { t.Resources.CPU++ }, false},
		{"another task", func(_ *model.Job, g *model.TaskGroup, _ *model.Task) {
			g.Tasks = append(g.Tasks, &model.Task{Name: "u"})
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			old, j := job(1), job(1)
			c.change(j, j.TaskGroups[0], j.TaskGroups[0].Tasks[0])
			if got := sched.InPlace(old, old.TaskGroups[0], j, j.TaskGroups[0]); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestRescheduling(t *testing.T) {
	w := &world{job: job(1), nodes: []*model.Node{node("n1", 1000, 1000)}}
	w.job.TaskGroups[0].Reschedule = model.ReschedulePolicy{Attempts: 1, Interval: time.Hour, Delay: time.Minute}
	w.schedule(1)
	fail := func(at int64) { a := w.living()[0]; a.ClientStatus, a.ModifyTime = model.ClientFailed, at }
	fail(int64(time.Second))
	d := w.schedule(int64(2 * time.Second))
	if len(d.Place) != 0 || len(d.FollowUps) != 1 || d.FollowUps[0].At != int64(time.Second+time.Minute) {
		t.Fatalf("before the delay: %+v", d)
	}
	if d = w.schedule(int64(2 * time.Minute)); len(d.Place) != 1 {
		t.Fatalf("after the delay: %+v", d)
	}
	fail(int64(3 * time.Minute))
	if d = w.schedule(int64(10 * time.Minute)); !d.Empty() || len(d.Failed) != 0 {
		t.Errorf("after the last attempt: %+v", d)
	}
}

func TestConstraintsOfDevicesCompareByTheirUnits(t *testing.T) {
	d := model.NodeDevice{Vendor: "nvidia", Type: "gpu", Name: "A100", Attributes: map[string]model.Attribute{
		"memory": model.IntOf(40960, "MiB"), "driver_version": model.TextOf("550.54.15"), "compute_capability": model.TextOf("8.0"), "cores_clock": model.IntOf(1410, "MHz"),
	}, Instances: []model.DeviceInstance{{ID: "g", Healthy: true}}}
	for _, c := range []struct {
		attribute, operand, value string
		meets                     bool
	}{
		{"memory", ">=", "40 GiB", true}, {"memory", ">", "40 GiB", false}, {"memory", "=", "40 GiB", true}, {"memory", "<", "9 TB", true}, {"memory", "!=", "40 GiB", false},
		{"memory", ">=", "40", false}, {"memory", ">", "1 W", false}, {"cores_clock", ">=", "1.4 GHz", true}, {"cores_clock", "<=", "1.4 GHz", false},
		{"driver_version", "version", ">= 535", true}, {"driver_version", "version", "< 535", false}, {"nothing", ">", "1 GiB", false}, {"memory", "is_set", "", true},
		{"compute_capability", ">=", "7.5", true},
	} {
		w := &world{job: job(1), nodes: []*model.Node{node("n1", 10_000, 10_000)}}
		w.nodes[0].Resources.Devices = []model.NodeDevice{d}
		w.job.TaskGroups[0].Tasks[0].Resources.Devices = []model.DeviceRequest{{Name: "gpu", Count: 1, Constraints: []model.Constraint{
			{LTarget: "${device.attr." + c.attribute + "}", Operand: c.operand, RTarget: c.value}}}}
		if got := len(w.schedule(1).Place) == 1; got != c.meets {
			t.Errorf("%s %s %q is %v", c.attribute, c.operand, c.value, got)
		}
	}
}
