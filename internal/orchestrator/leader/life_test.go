package leader_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// place puts a running allocation of a job that is registered onto a node, as part of a deployment if one is named.
func (l *log) place(t *testing.T, j *model.Job, node, id, deployment string) {
	t.Helper()
	now := l.store.Snapshot().Job(nil, j.Namespace, j.ID)
	p := &state.Placement{Namespace: j.Namespace, JobID: j.ID, JobCreateIndex: now.CreateIndex, JobModifyIndex: now.JobModifyIndex, Place: []*model.Allocation{{
		ID: id, Namespace: j.Namespace, JobID: j.ID, TaskGroup: "g", NodeID: node, Name: id, DesiredStatus: model.DesiredRun, ClientStatus: model.ClientPending,
		DeploymentID: deployment,
	}}}
	if deployment != "" && l.store.Snapshot().Deployment(nil, deployment) == nil {
		u := now.TaskGroups[0].Update
		p.Deployment = &model.Deployment{
			ID: deployment, Namespace: j.Namespace, JobID: j.ID, JobVersion: now.Version, JobCreateIndex: now.CreateIndex, Status: model.DeploymentRunning,
			TaskGroups: map[string]*model.DeploymentGroup{"g": {
				DesiredTotal: now.TaskGroups[0].Count, AutoRevert: u.AutoRevert, ProgressDeadline: u.ProgressDeadline, DesiredCanaries: u.Canary, AutoPromote: u.AutoPromote,
			}},
		}
	}
	l.do(t, &command.PlanResults{Now: time.Now().UnixNano(), Plans: []*state.Placement{p}})
	l.say(t, node, id, model.ClientRunning, nil)
}

// say is a node's report.
func (l *log) say(t *testing.T, node, id, status string, healthy *bool) {
	t.Helper()
	now := time.Now().UnixNano()
	u := &model.AllocUpdate{ID: id, ClientStatus: status, ModifyTime: now, TaskStates: map[string]*model.TaskState{"t": {State: model.TaskRunning, StartedAt: now}}}
	if healthy != nil {
		u.Health = &model.AllocHealth{Healthy: healthy, Timestamp: now}
	}
	l.do(t, &command.AllocUpdates{Now: now, NodeID: node, Allocs: []*model.AllocUpdate{u}})
}

func svc(id string, u *model.UpdatePolicy) *model.Job {
	j := batch(id)
	j.Type = model.JobTypeService
	j.TaskGroups[0].Update = u
	return j
}

// paused keeps the scheduler out of it: what is tested are the services beside it.
func paused(t *testing.T, cfg leader.Config) (l *log, stop func()) {
	t.Helper()
	l = newLog()
	l.do(t, &command.SchedulerConfig{Config: &state.SchedulerConfig{PauseBroker: true}})
	cfg.Store, cfg.Log, cfg.HeartbeatTTL = l.store, l, 1000*time.Hour
	_, stop = elect(t, cfg)
	return l, stop
}

func TestADeploymentKeepsToItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, stop := paused(t, leader.Config{})
		defer stop()
		l.join(t, 1)
		j := svc("web", &model.UpdatePolicy{MaxParallel: 1, ProgressDeadline: 10 * time.Minute})
		j.TaskGroups[0].Count = 2
		l.do(t, &command.JobRegister{Now: time.Now().UnixNano(), Job: j})
		l.place(t, j, "n000", "a1", "d1")
		d := func() *model.Deployment { return l.store.Snapshot().Deployment(nil, "d1") }
		time.Sleep(9 * time.Minute)
		l.say(t, "n000", "a1", model.ClientRunning, new(true)) // progress: the time starts anew
		time.Sleep(9 * time.Minute)
		synctest.Wait()
		if d().Status != model.DeploymentRunning {
			t.Fatalf("it is %s: %s", d().Status, d().StatusDescription)
		}
		l.do(t, &command.DeploymentStatus{Now: time.Now().UnixNano(), Update: state.DeploymentStatus{DeploymentID: "d1", Status: model.DeploymentPaused}})
		time.Sleep(time.Hour)
		synctest.Wait()
		if d().Status != model.DeploymentPaused {
			t.Fatalf("while it is paused it is %s", d().Status)
		}
		l.do(t, &command.DeploymentStatus{Now: time.Now().UnixNano(), Update: state.DeploymentStatus{DeploymentID: "d1", Status: model.DeploymentRunning}})
		time.Sleep(9 * time.Minute)
		synctest.Wait()
		if d().Status != model.DeploymentRunning {
			t.Errorf("the time of the pause counts: %s", d().Status)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if d().Status != model.DeploymentFailed || d().StatusDescription != "Failed due to progress deadline" {
			t.Errorf("it is %s: %s", d().Status, d().StatusDescription)
		}
	})
}

func TestDeploymentsEndWithTheirJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, stop := paused(t, leader.Config{})
		defer stop()
		l.join(t, 1)
		u := &model.UpdatePolicy{MaxParallel: 1, ProgressDeadline: 10 * time.Minute}
		for i, c := range []struct {
			end  any
			want string
		}{
			{&command.JobDeregister{Namespace: "default", JobID: "j0"}, "Cancelled because job is stopped"},
			{&command.JobRegister{Job: func() *model.Job { j := svc("j1", u); j.Priority = 1; return j }()}, "Cancelled due to newer version of job"},
		} {
			j := svc(fmt.Sprint("j", i), u)
			l.do(t, &command.JobRegister{Now: time.Now().UnixNano(), Job: j})
			id := fmt.Sprint("d", i)
			l.place(t, j, "n000", fmt.Sprint("a", i), id)
			synctest.Wait()
			l.do(t, c.end)
			synctest.Wait()
			if d := l.store.Snapshot().Deployment(nil, id); d.Status != model.DeploymentCancelled || d.StatusDescription != c.want {
				t.Errorf("it is %s: %s, want %s", d.Status, d.StatusDescription, c.want)
			}
		}
	})
}

func TestADrainSurvivesAFailoverAndKeepsItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, stop := paused(t, leader.Config{})
		l.join(t, 2)
		j := svc("web", nil)
		j.TaskGroups[0].Count = 3
		j.TaskGroups[0].Migrate = &model.MigratePolicy{MaxParallel: 1, MinHealthyTime: 10 * time.Second}
		l.do(t, &command.JobRegister{Now: time.Now().UnixNano(), Job: j})
		for _, id := range []string{"a1", "a2", "a3"} {
			l.place(t, j, "n000", id, "")
		}
		b := batch("10-a")
		l.do(t, &command.JobRegister{Now: time.Now().UnixNano(), Job: b})
		l.place(t, b, "n000", "b1", "")
		leaving := func() (out []string) {
			for a := range l.store.Snapshot().AllocsByNode(nil, "n000") {
				if a.Transition != nil && a.Transition.Migrate {
					out = append(out, a.ID)
				}
			}
			return out
		}
		l.do(t, &command.NodeDrain{Now: time.Now().UnixNano(), Updates: []state.DrainUpdate{{NodeID: "n000", Spec: &state.DrainSpec{Deadline: time.Hour}}}})
		synctest.Wait()
		if got := leaving(); len(got) != 0 {
			t.Errorf("%v leave before they have run for the least time", got)
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if got := leaving(); len(got) != 1 {
			t.Errorf("%v leave, want one at a time", got)
		}
		stop()
		_, stop = elect(t, leader.Config{Store: l.store, Log: l, HeartbeatTTL: 1000 * time.Hour})
		defer stop()
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := leaving(); len(got) != 1 {
			t.Errorf("after a failover %v leave, though nothing took the first one's place", got)
		}
		l.place(t, j, "n001", "c1", "")
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if got := leaving(); len(got) != 2 {
			t.Errorf("with a replacement that is well %v leave", got)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := leaving(); len(got) != 4 {
			t.Errorf("at the deadline %v leave", got)
		}
		for _, id := range []string{"a1", "a2", "a3", "b1"} {
			l.say(t, "n000", id, model.ClientComplete, nil)
		}
		synctest.Wait()
		if n := l.store.Snapshot().Node(nil, "n000"); n.Drain != nil || n.LastDrain.Status != model.DrainComplete {
			t.Errorf("the node is %+v %+v", n.Drain, n.LastDrain)
		}
	})
}

func TestWhatWasMissedIsMadeUpForOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, stop := paused(t, leader.Config{})
		j := batch("often")
		j.Periodic = &model.Periodic{Enabled: true, Specs: []string{"*/10 * * * *"}, TimeZone: "Europe/Berlin"}
		l.do(t, &command.JobRegister{Now: time.Now().UnixNano(), Job: j})
		children := func() (n int) {
			for range l.store.Snapshot().ChildJobs(nil, "default", "often") {
				n++
			}
			return n
		}
		time.Sleep(31 * time.Minute)
		synctest.Wait()
		if children() != 3 {
			t.Fatalf("%d starts in half an hour, want 3", children())
		}
		stop()
		time.Sleep(3*time.Hour + 4*time.Minute) // nobody leads
		_, stop = elect(t, leader.Config{Store: l.store, Log: l})
		synctest.Wait()
		if children() != 4 {
			t.Errorf("%d starts after the pause, want one more", children())
		}
		stop()
		_, stop = elect(t, leader.Config{Store: l.store, Log: l})
		defer stop()
		synctest.Wait()
		if children() != 4 {
			t.Error("one more leader made one more start")
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if children() != 5 {
			t.Errorf("%d starts ten minutes later", children())
		}
		off := batch("often")
		off.Periodic = &model.Periodic{Specs: j.Periodic.Specs}
		l.do(t, &command.JobRegister{Now: time.Now().UnixNano(), Job: off})
		time.Sleep(time.Hour)
		synctest.Wait()
		if children() != 5 {
			t.Error("it is started though it is not enabled")
		}
	})
}

// A namespace may become stricter than it was when a job came into it. What is due then waits, and is made up for once when nothing stands against it.
func TestWhatIsDueObeysItsNamespaceAsItIsNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, stop := paused(t, leader.Config{})
		defer stop()
		j := batch("often")
		j.TaskGroups[0].Tasks[0].Driver = "raw_exec"
		j.Periodic = &model.Periodic{Enabled: true, Specs: []string{"* * * * *"}}
		l.do(t, &command.JobRegister{Now: time.Now().UnixNano(), Job: j})
		children := func() (n int) {
			synctest.Wait()
			for range l.store.Snapshot().ChildJobs(nil, "default", "often") {
				n++
			}
			return n
		}
		allow := func(n *model.Namespace) {
			n.Name = "default"
			l.do(t, &command.NamespaceUpsert{Now: time.Now().UnixNano(), Namespace: n})
		}
		time.Sleep(2*time.Minute + time.Second)
		if children() != 2 {
			t.Fatalf("%d starts in two minutes", children())
		}
		allow(&model.Namespace{DisabledDrivers: []string{"raw_exec"}})
		time.Sleep(10 * time.Minute)
		if children() != 2 {
			t.Errorf("%d starts: it runs with a driver that its namespace forbids", children())
		}
		allow(&model.Namespace{AllowedPools: []string{"gpu"}, DefaultPool: "gpu"})
		time.Sleep(time.Minute)
		if children() != 2 {
			t.Errorf("%d starts: it runs in a pool that its namespace does not allow", children())
		}
		allow(&model.Namespace{})
		if children() != 3 {
			t.Errorf("%d starts once it is allowed again, want one more", children())
		}
		time.Sleep(time.Minute)
		if children() != 4 {
			t.Errorf("%d starts a minute later", children())
		}
	})
}

func TestAJobThatMayNotOverlapWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, stop := paused(t, leader.Config{})
		defer stop()
		j := batch("often")
		j.Periodic = &model.Periodic{Enabled: true, Specs: []string{"* * * * *"}, ProhibitOverlap: true}
		l.do(t, &command.JobRegister{Now: time.Now().UnixNano(), Job: j})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		c := l.store.Snapshot().Children(nil, "default", "often")
		if c.Pending != 1 || c.Dead != 0 {
			t.Fatalf("the children are %+v", c)
		}
		for child := range l.store.Snapshot().ChildJobs(nil, "default", "often") {
			l.do(t, &command.JobDeregister{Now: time.Now().UnixNano(), Namespace: "default", JobID: child.ID})
			for e := range l.store.Snapshot().EvalsByJob(nil, "default", child.ID) {
				done := *e
				done.Status = model.EvalComplete
				l.do(t, &command.EvalUpdate{Now: time.Now().UnixNano(), Finish: []*model.Evaluation{&done}})
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if c := l.store.Snapshot().Children(nil, "default", "often"); c.Pending != 1 || c.Dead != 1 {
			t.Errorf("then the children are %+v", c)
		}
	})
}

func TestNodesAndDeploymentsOfThePastAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, stop := paused(t, leader.Config{})
		defer stop()
		l.join(t, 3)
		j := svc("web", &model.UpdatePolicy{MaxParallel: 1})
		l.do(t, &command.JobRegister{Now: time.Now().UnixNano(), Job: j})
		l.place(t, j, "n001", "a1", "d1")
		end := func(id string) {
			l.do(t, &command.DeploymentStatus{Now: time.Now().UnixNano(), Update: state.DeploymentStatus{DeploymentID: id, Status: model.DeploymentSuccessful}})
		}
		end("d1")
		l.place(t, j, "n001", "a2", "d2")
		end("d2")
		for _, id := range []string{"n000", "n001"} {
			l.do(t, &command.NodeStatus{Now: time.Now().UnixNano(), NodeID: id, Status: model.NodeDown})
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		s := l.store.Snapshot()
		if s.Deployment(nil, "d1") != nil || s.Deployment(nil, "d2") == nil {
			t.Error("the older deployment stays, or the newest of its job went")
		}
		if s.Node(nil, "n000") == nil {
			t.Error("a node is forgotten after two hours")
		}
		time.Sleep(23 * time.Hour)
		synctest.Wait()
		s = l.store.Snapshot()
		if s.Node(nil, "n000") != nil || s.Node(nil, "n001") == nil || s.Node(nil, "n002") == nil {
			t.Error("the node that is down stays, or one went that lives or holds something")
		}
	})
}
