package sched_test

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
)

// service is a world with a service of so many allocations that is rolled out by the policy.
func service(count int, u model.UpdatePolicy) *world {
	w := &world{job: job(count)}
	w.job.Type = model.JobTypeService
	w.job.TaskGroups[0].Update = &u
	w.job.TaskGroups[0].Reschedule = model.ReschedulePolicy{Unlimited: true, DelayFunction: "constant"}
	for i := range 5 {
		w.nodes = append(w.nodes, node(fmt.Sprint("n", i), 10_000, 10_000))
	}
	return w
}

// register makes the next version of the job; change may change its group and task, which are copies.
func (w *world) register(change func(*model.TaskGroup, *model.Task)) {
	j := *w.job
	g := *j.TaskGroups[0]
	t := *g.Tasks[0]
	change(&g, &t)
	g.Tasks, j.TaskGroups = []*model.Task{&t}, []*model.TaskGroup{&g}
	j.Version++
	j.JobModifyIndex++
	w.job = &j
}

func newImage(w *world) {
	w.register(func(_ *model.TaskGroup, t *model.Task) {
		t.Env = map[string]string{"version": fmt.Sprint(w.job.Version + 1)}
	})
}

// settle has nodes do what they were told: what is to stop ends, what is to run runs, and is healthy if well says so.
func (w *world) settle(well func(*model.Allocation) bool) {
	for _, a := range w.allocs {
		switch {
		case a.ClientTerminal():
		case a.DesiredStatus != model.DesiredRun:
			a.ClientStatus = model.ClientComplete
		default:
			a.ClientStatus = model.ClientRunning
			if a.DeploymentID != "" && (a.DeploymentStatus == nil || a.DeploymentStatus.Healthy == nil) && well(a) {
				h := model.AllocHealth{}
				if a.DeploymentStatus != nil {
					h = *a.DeploymentStatus
				}
				h.Healthy = new(true)
				a.DeploymentStatus = &h
				w.Deployment(a.DeploymentID).TaskGroups[a.TaskGroup].Healthy++
			}
		}
	}
}

func all(*model.Allocation) bool  { return true }
func none(*model.Allocation) bool { return false }

func (w *world) versions() map[uint64]int {
	m := map[uint64]int{}
	for _, a := range w.living() {
		m[a.Job.Version]++
	}
	return m
}

func (w *world) expect(t *testing.T, what string, want map[uint64]int) {
	t.Helper()
	if got := w.versions(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: by version there are %v, want %v", what, got, want)
	}
}

func (w *world) deployment() *model.Deployment { return w.deployments[len(w.deployments)-1] }

func TestARollOutFollowsTheHealth(t *testing.T) {
	w := service(4, model.UpdatePolicy{MaxParallel: 2})
	d := w.schedule(1)
	if len(d.Place) != 4 || d.Deployment == nil || d.Deployment.TaskGroups["g"].DesiredTotal != 4 || d.Place[0].DeploymentID != d.Deployment.ID {
		t.Fatalf("the first version: %+v", d)
	}
	w.settle(all)
	if d = w.schedule(2); !d.Empty() {
		t.Fatalf("with nothing to do: %+v", d)
	}
	newImage(w)
	d = w.schedule(3)
	if sched.Annotate(d)["g"] != (sched.Counts{Ignore: 2, DestructiveUpdate: 2}) {
		t.Errorf("annotated as %+v", sched.Annotate(d)["g"])
	}
	if len(d.DeploymentUpdates) != 1 || d.DeploymentUpdates[0].Status != model.DeploymentCancelled {
		t.Errorf("the old deployment: %+v", d.DeploymentUpdates)
	}
	w.expect(t, "at first", map[uint64]int{0: 2, 1: 2})
	w.settle(none)
	w.schedule(4)
	w.expect(t, "without health", map[uint64]int{0: 2, 1: 2})
	healthyOnes := 0
	w.settle(func(*model.Allocation) bool { healthyOnes++; return healthyOnes == 1 })
	w.schedule(5)
	w.expect(t, "with one healthy", map[uint64]int{0: 1, 1: 3})
	w.deployment().Status = model.DeploymentPaused
	w.settle(all)
	w.schedule(6)
	w.expect(t, "while it is paused", map[uint64]int{0: 1, 1: 3})
	w.deployment().Status = model.DeploymentRunning
	w.schedule(7)
	w.expect(t, "when it goes on", map[uint64]int{1: 4})
	w.settle(all)
	if g := w.deployment().TaskGroups["g"]; g.Healthy != 4 || g.Placed != 4 {
		t.Errorf("the deployment has %+v", g)
	}
}

func TestCanariesWaitForPromotion(t *testing.T) {
	w := service(3, model.UpdatePolicy{MaxParallel: 1, Canary: 1})
	w.schedule(1)
	w.settle(all)
	if w.deployment().TaskGroups["g"].DesiredCanaries != 0 {
		t.Error("the first version needs no canaries")
	}
	w.deployment().Status = model.DeploymentSuccessful
	newImage(w)
	d := w.schedule(2)
	if c := sched.Annotate(d)["g"]; c != (sched.Counts{Ignore: 3, Canary: 1}) || !d.Deployment.NeedsPromotion() {
		t.Errorf("annotated as %+v", c)
	}
	w.settle(all)
	w.schedule(3)
	w.expect(t, "before promotion", map[uint64]int{0: 3, 1: 1})

	// What is lost meanwhile comes back as it was.
	gone := *w.Node(w.living()[0].NodeID)
	gone.Status = model.NodeDown
	for i, n := range w.nodes {
		if n.ID == gone.ID {
			w.nodes[i] = &gone
		}
	}
	w.schedule(4)
	w.settle(all)
	w.schedule(5)
	w.settle(all)
	w.expect(t, "after a node was lost", map[uint64]int{0: 3, 1: 1})

	g := w.deployment().TaskGroups["g"]
	g.Promoted = true
	for step := range 8 {
		w.schedule(int64(6 + step))
		w.settle(all)
		if n := len(w.living()); n > 3 {
			t.Fatalf("%d live after promotion", n)
		}
	}
	w.expect(t, "after promotion", map[uint64]int{1: 3})
}

func TestCanariesGoWithTheirDeployment(t *testing.T) {
	for name, end := range map[string]func(*world){
		"it failed":          func(w *world) { w.deployment().Status = model.DeploymentFailed },
		"there is a new one": func(w *world) { newImage(w); w.job.TaskGroups[0].Update = nil; w.job.TaskGroups[0].Count = 2 },
	} {
		w := service(2, model.UpdatePolicy{MaxParallel: 1, Canary: 2})
		w.schedule(1)
		w.settle(all)
		newImage(w)
		w.schedule(2)
		w.settle(none)
		end(w)
		w.schedule(3)
		w.settle(none)
		w.schedule(4)
		if v := w.versions(); v[1] != 0 || len(w.living()) != 2 {
			t.Errorf("%s: %v live", name, v)
		}
	}
}

func TestAFailedDeploymentDoesNotSpread(t *testing.T) {
	w := service(4, model.UpdatePolicy{MaxParallel: 1})
	w.schedule(1)
	w.settle(all)
	newImage(w)
	w.schedule(2)
	w.settle(none)
	for _, a := range w.living() {
		if a.Job.Version == 1 {
			a.ClientStatus = model.ClientFailed
		}
	}
	w.deployment().Status = model.DeploymentFailed
	d := w.schedule(3)
	if !d.Empty() {
		t.Errorf("what failed in it is replaced: %+v", d)
	}
	w.expect(t, "after the failure", map[uint64]int{0: 3})
	lost := w.living()[0]
	lost.Transition = &model.DesiredTransition{Migrate: true}
	d = w.schedule(4)
	if len(d.Place) != 1 || d.Place[0].Job.Version != 0 || d.Place[0].DeploymentID != "" || sched.Annotate(d)["g"].Migrate != 1 {
		t.Errorf("what moves gets %+v", d.Place)
	}
}

func TestACountChangesInPlace(t *testing.T) {
	w := service(2, model.UpdatePolicy{MaxParallel: 1})
	w.schedule(1)
	w.settle(all)
	w.register(func(g *model.TaskGroup, _ *model.Task) { g.Count = 5 })
	d := w.schedule(2)
	if c := sched.Annotate(d)["g"]; c != (sched.Counts{InPlaceUpdate: 2, Place: 3}) || len(d.Join) != 2 || d.Deployment == nil {
		t.Errorf("annotated as %+v", c)
	}
	w.settle(all)
	w.register(func(g *model.TaskGroup, _ *model.Task) { g.Count = 1 })
	d = w.schedule(3)
	if c := sched.Annotate(d)["g"]; c.Stop != 4 || c.InPlaceUpdate != 1 || w.living()[0].Name != "j.g[0]" {
		t.Errorf("annotated as %+v", c)
	}
	w.settle(all)
	w.register(func(g *model.TaskGroup, _ *model.Task) { g.Count = 2 })
	if d = w.schedule(4); len(d.Place) != 1 || d.Place[0].Name != "j.g[1]" {
		t.Errorf("the free name is not used: %+v", d.Place)
	}
}

func TestRollOutsNeverTakeMoreThanTheyMay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most, count := rapid.IntRange(1, 3).Draw(t, "max parallel"), rapid.IntRange(1, 6).Draw(t, "count")
		canaries := rapid.IntRange(0, 2).Draw(t, "canaries")
		w := service(count, model.UpdatePolicy{MaxParallel: most, Canary: canaries})
		w.schedule(1)
		w.settle(all)
		w.deployment().Status = model.DeploymentSuccessful
		for step := range rapid.IntRange(1, 12).Draw(t, "steps") {
			d := w.deployment()
			switch rapid.IntRange(0, 6).Draw(t, "step") {
			case 0:
				newImage(w)
			case 1, 2:
				w.settle(func(*model.Allocation) bool { return rapid.Bool().Draw(t, "healthy") })
			case 3:
				if g := d.TaskGroups["g"]; g.DesiredCanaries > 0 && g.Healthy >= g.DesiredCanaries {
					g.Promoted = true
				}
			case 4:
				if d.Active() {
					d.Status = rapid.SampledFrom([]string{model.DeploymentRunning, model.DeploymentPaused, model.DeploymentFailed}).Draw(t, "status")
				}
			case 5:
				for _, a := range w.living() {
					if a.ClientStatus == model.ClientRunning && rapid.IntRange(0, 3).Draw(t, "fails") == 0 {
						a.ClientStatus = model.ClientFailed
					}
				}
			case 6:
				if l := w.living(); len(l) > 0 {
					rapid.SampledFrom(l).Draw(t, "moved").Transition = &model.DesiredTransition{Migrate: true}
				}
			}
			moving := w.job.Version == d.JobVersion && d.Status == model.DeploymentRunning
			open := 0 // of the version that is rolled out, and not healthy yet
			for _, a := range w.living() {
				if a.DeploymentID == d.ID && (a.DeploymentStatus == nil || a.DeploymentStatus.Healthy == nil) {
					open++
				}
			}
			decision := w.schedule(int64(10 + step))
			c := sched.Annotate(decision)["g"]
			if c.DestructiveUpdate > most {
				t.Fatalf("%d are replaced at once, max_parallel is %d", c.DestructiveUpdate, most)
			}
			if moving && c.DestructiveUpdate > 0 && c.DestructiveUpdate+open > most {
				t.Fatalf("%d are replaced while %d are not healthy yet, max_parallel is %d", c.DestructiveUpdate, open, most)
			}
			if same := w.job.Version == d.JobVersion; same && (d.Status == model.DeploymentPaused || d.Status == model.DeploymentFailed) && c.DestructiveUpdate > 0 {
				t.Fatalf("a deployment that is %s went on", d.Status)
			}
			g := w.deployment().TaskGroups["g"]
			if live := len(w.living()); live > count+g.DesiredCanaries {
				t.Fatalf("%d live, the count is %d with %d canaries", live, count, g.DesiredCanaries)
			}
			names := map[string]int{}
			for _, a := range w.living() {
				if names[fmt.Sprint(a.Name, a.Job.Version)]++; names[fmt.Sprint(a.Name, a.Job.Version)] > 1 && canaries == 0 {
					t.Fatalf("%s lives twice", a.Name)
				}
			}
		}
		// Left alone and healthy, it ends where it should.
		if d := w.deployment(); d.JobVersion != w.job.Version || d.Active() {
			for step := range 40 {
				d := w.deployment()
				if d.Active() {
					d.Status = model.DeploymentRunning
				}
				if g := d.TaskGroups["g"]; g.DesiredCanaries > 0 && g.Healthy >= g.DesiredCanaries {
					g.Promoted = true
				}
				w.schedule(int64(time.Hour) * int64(step+1))
				w.settle(all)
			}
			if v := w.versions(); v[w.job.Version] != count || len(v) != 1 {
				t.Fatalf("in the end there are %v, want %d of version %d", v, count, w.job.Version)
			}
		}
	})
}

func TestSystemJobsAreUpdatedInParts(t *testing.T) {
	w := service(1, model.UpdatePolicy{MaxParallel: 2, Stagger: time.Minute})
	w.job.Type = model.JobTypeSystem
	w.schedule(1)
	w.settle(all)
	w.expect(t, "everywhere", map[uint64]int{0: 5})
	newImage(w)
	if d := w.schedule(2); d.RollAt != 2+int64(time.Minute) {
		t.Errorf("it goes on at %d", d.RollAt)
	}
	w.expect(t, "the first part", map[uint64]int{0: 3, 1: 2})
	w.schedule(3)
	w.expect(t, "before those run", map[uint64]int{0: 3, 1: 2})
	for step := range 3 {
		w.settle(all)
		w.schedule(int64(4 + step))
	}
	w.expect(t, "in the end", map[uint64]int{1: 5})
	w.settle(all)
	down := *w.nodes[0]
	down.Status = model.NodeDown
	w.nodes[0] = &down
	w.schedule(10)
	w.expect(t, "with a node lost", map[uint64]int{1: 4})
	back := down
	back.Status = model.NodeReady
	w.nodes[0] = &back
	w.schedule(11)
	w.expect(t, "with the node back", map[uint64]int{1: 5})
}
