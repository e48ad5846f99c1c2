package orchestrator_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/model"
)

// service is a job of n allocations that is updated as u says.
func service(id string, n int, u *api.UpdateStrategy) *api.Job {
	j := simple(id)
	j.Type = new("service")
	g := j.TaskGroups[0]
	g.Count = &n
	g.ReschedulePolicy = nil
	u.HealthCheck, u.MinHealthyTime, u.HealthyDeadline = new("task_states"), new(time.Millisecond), new(time.Second)
	if u.ProgressDeadline == nil {
		u.ProgressDeadline = new(time.Minute)
	}
	g.Update = u
	g.Migrate = &api.MigrateStrategy{MaxParallel: new(1), HealthCheck: new("task_states"), MinHealthyTime: new(time.Millisecond), HealthyDeadline: new(time.Second)}
	return j
}

// well says of an allocation that it does its work, unless its task is told to be ill.
func well(a *model.Allocation) *bool {
	return new(a.Job.Group(a.TaskGroup).Tasks[0].Env["ILL"] == "")
}

func (c *cluster) deployment(id, status string) *api.Deployment {
	c.tb.Helper()
	var d *api.Deployment
	eventually(c.tb, fmt.Sprintf("the newest deployment of %s is %s", id, status), func() bool {
		var err error
		if d, _, err = c.api.Jobs().LatestDeployment(id, nil); err != nil {
			c.tb.Fatal(err)
		}
		return d != nil && d.Status == status
	})
	return d
}

func withImage(j *api.Job, name string) *api.Job {
	t := j.TaskGroups[0].Tasks[0]
	t.Config = maps.Clone(t.Config)
	t.Config["image"] = name
	return j
}

func TestAnUpdateRollsThroughByHealth(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	n := c.join(newModelNode())
	var held []string
	n.mu.Lock()
	n.health = func(a *model.Allocation) *bool {
		if a.Job.Version == 0 {
			return new(true)
		}
		if !slices.Contains(held, a.ID) { // a node is told more than once of an allocation that changes as it starts
			held = append(held, a.ID)
		}
		return nil // until somebody says so
	}
	n.mu.Unlock()
	j := service("web", 3, &api.UpdateStrategy{MaxParallel: new(1)})
	c.register(j)
	first := c.deployment("web", "successful")
	if g := first.TaskGroups["default"]; g.HealthyAllocs != 3 || g.DesiredTotal != 3 || first.StatusDescription != "Deployment completed successfully" {
		t.Errorf("the first deployment is %+v %+v", first, g)
	}
	if v, _, _ := c.api.Jobs().Info("web", nil); !*v.Stable {
		t.Error("the version that was rolled out is not stable")
	}
	c.register(withImage(j, "python:4"))
	d := c.deployment("web", "running")
	deployments := c.api.Deployments()
	for i := range 3 {
		var waits []string
		eventually(t, "the next one is placed", func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			waits = slices.Clone(held)
			return len(waits) == i+1
		})
		if got, _, _ := deployments.Info(d.ID, nil); got.TaskGroups["default"].PlacedAllocs != i+1 || got.TaskGroups["default"].HealthyAllocs != i {
			t.Errorf("before the word for number %d the deployment is %+v", i, got.TaskGroups["default"])
		}
		if r, _, err := deployments.SetAllocHealth(d.ID, waits[i:], nil, nil); err != nil || r.EvalID == "" {
			t.Fatalf("health: %+v, %v", r, err)
		}
	}
	if got := c.deployment("web", "successful"); got.ID != d.ID {
		t.Error("it is another deployment")
	}
	allocs, _, err := deployments.Allocations(d.ID, nil)
	if err != nil || len(allocs) != 3 {
		t.Errorf("%d allocations are of the deployment, %v", len(allocs), err)
	}
	list, _, err := deployments.List(nil)
	if err != nil || len(list) != 2 {
		t.Errorf("%d deployments, %v", len(list), err)
	}
	says(t, second(deployments.Fail(d.ID, nil)), "can't fail terminal deployment")
	says(t, second(deployments.Pause(d.ID, true, nil)), "can't pause terminal deployment")
	says(t, second(deployments.PromoteAll(ident.New(), nil)), "deployment not found")
}

func TestCanariesWaitForTheirPromotion(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	n := c.join(newModelNode())
	n.mu.Lock()
	n.health = well
	n.mu.Unlock()
	j := service("web", 2, &api.UpdateStrategy{MaxParallel: new(2), Canary: new(1)})
	c.register(j)
	c.deployment("web", "successful")
	c.register(withImage(j, "python:4"))
	var d *api.Deployment
	eventually(t, "the canary is well", func() bool {
		d = c.deployment("web", "running")
		return d.TaskGroups["default"].HealthyAllocs == 1
	})
	if g := d.TaskGroups["default"]; g.DesiredCanaries != 1 || len(g.PlacedCanaries) != 1 || g.Promoted {
		t.Errorf("the deployment is %+v", g)
	}
	c.running("web", 3) // two old ones and the canary
	deployments := c.api.Deployments()
	says(t, second(c.api.Jobs().Scale("web", "default", new(4), "", false, nil, nil)), "job scaling blocked due to active deployment")
	if _, _, err := deployments.Pause(d.ID, true, nil); err != nil {
		t.Fatal(err)
	}
	if got := c.deployment("web", "paused"); got.StatusDescription != "Deployment is paused" {
		t.Errorf("it says %s", got.StatusDescription)
	}
	if _, _, err := deployments.Pause(d.ID, false, nil); err != nil {
		t.Fatal(err)
	}
	if r, _, err := deployments.PromoteAll(d.ID, nil); err != nil || r.EvalID == "" {
		t.Fatalf("promote: %+v, %v", r, err)
	}
	c.deployment("web", "successful")
	for _, a := range c.running("web", 2) {
		if a.JobVersion != 1 {
			t.Errorf("%s runs version %d", a.Name, a.JobVersion)
		}
	}

	j.TaskGroups[0].Update.AutoPromote = new(true)
	c.register(withImage(j, "python:5"))
	eventually(t, "the canary is promoted by itself", func() bool {
		d, _, err := c.api.Jobs().LatestDeployment("web", nil)
		return err == nil && d.JobVersion == 2 && d.Status == "successful" && d.TaskGroups["default"].Promoted
	})
}

func TestAnUpdateThatIsNotWellGoesBack(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	n := c.join(newModelNode())
	n.mu.Lock()
	n.health = well
	n.mu.Unlock()
	j := service("web", 2, &api.UpdateStrategy{MaxParallel: new(1), AutoRevert: new(true), ProgressDeadline: new(time.Duration(0))})
	c.register(j)
	c.deployment("web", "successful")
	j.TaskGroups[0].Tasks[0].Env = map[string]string{"ILL": "1"}
	c.register(j)
	eventually(t, "the job is back at its stable version", func() bool {
		info, _, err := c.api.Jobs().Info("web", nil)
		return err == nil && *info.Version == 2 && info.TaskGroups[0].Tasks[0].Env["ILL"] == ""
	})
	list, _, err := c.api.Jobs().Deployments("web", true, nil)
	if err != nil {
		t.Fatal(err)
	}
	failed := slices.IndexFunc(list, func(d *api.Deployment) bool { return d.Status == "failed" })
	if failed < 0 || list[failed].StatusDescription != "Failed due to unhealthy allocations - rolling back to job version 0" {
		t.Errorf("the deployments are %+v", list)
	}
	c.deployment("web", "successful")
	for _, a := range c.running("web", 2) {
		if a.JobVersion == 1 {
			t.Errorf("%s is still of the version that failed", a.Name)
		}
	}
	j.TaskGroups[0].Update.AutoRevert = new(false)
	c.register(j)
	if d := c.deployment("web", "failed"); d.StatusDescription != "Failed due to unhealthy allocations" {
		t.Errorf("it says %s", d.StatusDescription)
	}
}

func TestADrainMovesServicesWaitsForBatchAndThenForcesIt(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	n := c.join(newModelNode())
	n.mu.Lock()
	n.health = well
	n.mu.Unlock()
	c.register(service("web", 3, &api.UpdateStrategy{MaxParallel: new(3)}))
	c.register(simple("10-a"))
	sys := simple("everywhere")
	sys.Type = new("system")
	sys.TaskGroups[0].ReschedulePolicy = nil
	c.register(sys)
	c.running("web", 3)
	c.running("10-a", 1)
	c.running("everywhere", 1)
	c.deployment("web", "successful")
	other := newModelNode()
	other.Name = "node-2"
	m := c.join(other)
	m.mu.Lock()
	m.health = well
	m.mu.Unlock()
	c.running("everywhere", 2)

	nodes := c.api.Nodes()
	if _, err := nodes.UpdateDrain(n.id, &api.DrainSpec{Deadline: 1500 * time.Millisecond}, false, nil); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, "the service has moved", func() bool {
		return !slices.ContainsFunc(c.running("web", 3), func(a *api.AllocationListStub) bool { return a.NodeID == n.id })
	})
	if a := c.running("10-a", 1)[0]; a.NodeID != n.id && time.Since(began) < time.Second {
		t.Error("batch work did not get its time")
	}
	eventually(t, "the drain is complete", func() bool {
		info, _, err := nodes.Info(n.id, nil)
		return err == nil && !info.Drain && info.LastDrain.Status == "complete" && info.SchedulingEligibility == "ineligible"
	})
	if time.Since(began) < 1400*time.Millisecond {
		t.Error("it was complete before the deadline, with batch work on it")
	}
	if a := c.running("10-a", 1)[0]; a.NodeID != other.ID {
		t.Error("batch work was not moved at the deadline")
	}
	if list := c.running("everywhere", 1); list[0].NodeID != other.ID {
		t.Error("the system job is on the drained node")
	}

	// Forced, all goes at once; system jobs stay where that is wanted.
	if _, err := nodes.ToggleEligibility(n.id, true, nil); err != nil {
		t.Fatal(err)
	}
	c.running("everywhere", 2)
	if _, err := nodes.UpdateDrain(other.ID, &api.DrainSpec{Deadline: -1, IgnoreSystemJobs: true}, false, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the forced drain is complete", func() bool {
		info, _, err := nodes.Info(other.ID, nil)
		return err == nil && !info.Drain && info.LastDrain.Status == "complete"
	})
	c.running("everywhere", 2)
	for _, a := range append(c.running("web", 3), c.running("10-a", 1)...) {
		if a.NodeID != n.id {
			t.Errorf("%s is on the drained node", a.Name)
		}
	}
}
