package leader_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
)

// led is a leader in a bubble with one entry after the other.
type led struct {
	t *testing.T
	*log
	*leader.Leader
	evals int
}

// lead has a leader lead until the test, which is in a bubble, ends.
func lead(t *testing.T, cfg leader.Config) *leader.Leader {
	t.Helper()
	ld := leader.New(cfg)
	signal := make(chan bool, 1)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := ld.Run(ctx, signal); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	signal <- true
	synctest.Wait()
	return ld
}

func bubble(t *testing.T, f func(l *led)) {
	synctest.Test(t, func(t *testing.T) {
		l := &led{t: t, log: newLog()}
		l.Leader = lead(t, leader.Config{Store: l.store, Log: l.log, HeartbeatTTL: 1000 * time.Hour})
		f(l)
	})
}

func (l *led) do(e any) {
	l.t.Helper()
	if _, _, err := l.Apply(l.t.Context(), e); err != nil {
		l.t.Fatal(err)
	}
	synctest.Wait()
}

func (l *led) eval(j *model.Job, trigger string) *model.Evaluation {
	l.evals++
	return &model.Evaluation{ID: fmt.Sprint("eval-", l.evals), Namespace: j.Namespace, JobID: j.ID, Type: j.Type, Priority: j.Priority, TriggeredBy: trigger, Status: model.EvalPending}
}

func (l *led) register(j *model.Job) {
	l.t.Helper()
	l.do(&command.JobRegister{Now: time.Now().UnixNano(), Job: j, Eval: l.eval(j, model.TriggerJobRegister)})
}

func (l *led) report(a *model.Allocation, status string) {
	l.t.Helper()
	l.do(&command.AllocUpdates{Now: time.Now().UnixNano(), NodeID: a.NodeID, Allocs: []*model.AllocUpdate{{ID: a.ID, ClientStatus: status}}})
}

func (l *led) allocs(job string) (out []*model.Allocation) {
	for a := range l.store.Snapshot().AllocsByJob(nil, "default", job) {
		out = append(out, a)
	}
	return out
}

// sums compares what the leader keeps with what the state adds up to.
func (l *led) sums() {
	l.t.Helper()
	snap := l.store.Snapshot()
	kept, naive := l.View(snap).Fleet(), sched.NewFleet(snap.Nodes(nil, ""), snap.Allocs(nil, ""))
	for n := range snap.Nodes(nil, "") {
		if got, want := fmt.Sprintf("%+v", kept.Seat(n.ID).Used), fmt.Sprintf("%+v", naive.Seat(n.ID).Used); got != want {
			l.t.Errorf("node %s: kept %s, added up %s", n.ID, got, want)
		}
	}
}

func smallNode(id string, cpu int) *model.Node {
	n := readyNode()
	n.ID, n.Name, n.Resources.CPU = id, id, cpu
	return n
}

func asking(id string, cpu, priority int) *model.Job {
	j := batch(id)
	j.Priority = priority
	j.TaskGroups[0].Tasks[0].Resources.CPU = cpu
	return j
}

func TestABlockedEvaluationIsWokenByRoom(t *testing.T) {
	bubble(t, func(l *led) {
		l.do(&command.NodeRegister{Node: smallNode("n1", 100)})
		l.register(asking("first", 80, 50))
		l.register(asking("second", 60, 50))
		l.register(asking("third", 1000, 50))
		if len(l.allocs("second")) != 0 {
			t.Fatal("there is no room for the second")
		}
		var waits *model.Evaluation
		for e := range l.store.Snapshot().EvalsByJob(nil, "default", "second") {
			if e.Status == model.EvalBlocked {
				waits = e
			}
		}
		if waits == nil || len(waits.ClassEligibility) != 1 || waits.FailedTGAllocs["g"].DimensionExhausted["cpu"] != 1 {
			t.Fatalf("it waits as %+v", waits)
		}
		l.report(l.allocs("first")[0], model.ClientComplete)
		if len(l.allocs("second")) != 1 || len(l.allocs("third")) != 0 {
			t.Error("the room that came free is not used as it should be")
		}
		l.sums()
		time.Sleep(time.Second)
		synctest.Wait()
		if e := l.store.Snapshot().Eval(nil, waits.ID); e.Status != model.EvalComplete {
			t.Errorf("its evaluation is %s", e.Status)
		}
		l.do(&command.NodeRegister{Node: smallNode("n2", 2000)})
		if len(l.allocs("third")) != 1 {
			t.Error("a new node is not used")
		}
		l.sums()
	})
}

func TestPreemptionEndsAndReplaces(t *testing.T) {
	bubble(t, func(l *led) {
		l.do(&command.SchedulerConfig{Config: &state.SchedulerConfig{Preemption: &state.Preemption{Batch: true}}})
		l.do(&command.NodeRegister{Node: smallNode("n1", 100)})
		l.register(asking("low", 80, 20))
		l.register(asking("high", 80, 70))
		low, high := l.allocs("low"), l.allocs("high")
		if len(low) != 1 || len(high) != 1 || low[0].DesiredStatus != model.DesiredEvict || low[0].PreemptedBy != high[0].ID ||
			len(high[0].Preempts) != 1 || high[0].Preempts[0] != low[0].ID {
			t.Fatalf("low %+v, high %+v", low, high)
		}
		l.sums()
		l.report(low[0], model.ClientComplete)
		l.report(high[0], model.ClientComplete)
		if low = l.allocs("low"); len(low) != 2 {
			t.Errorf("the job that had to make room has %d allocations", len(low))
		}
		l.sums()
	})
}

func TestACutOffNodeIsWaitedFor(t *testing.T) {
	bubble(t, func(l *led) {
		l.do(&command.NodeRegister{Node: smallNode("n1", 100)})
		j := asking("j", 80, 50)
		j.TaskGroups[0].Disconnect = &model.DisconnectPolicy{LostAfter: time.Hour, Replace: true}
		l.register(j)
		a := l.allocs("j")[0]
		l.report(a, model.ClientRunning)
		away := l.eval(j, model.TriggerNodeUpdate)
		away.NodeID = "n1"
		l.do(&command.NodeStatus{Now: time.Now().UnixNano(), NodeID: "n1", Status: model.NodeDisconnected, Evals: []*model.Evaluation{away}})
		a = l.allocs("j")[0]
		if a.ClientStatus != model.ClientUnknown || a.UnknownSince == 0 || a.DesiredStatus != model.DesiredRun || a.FollowupEvalID == "" {
			t.Fatalf("it is %+v", a)
		}
		l.do(&command.NodeRegister{Now: time.Now().UnixNano(), Node: smallNode("n2", 100)})
		if n := len(l.allocs("j")); n != 2 {
			t.Fatalf("%d allocations, want one in its place", n)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		for _, b := range l.allocs("j") {
			if b.ID == a.ID && (b.ClientStatus != model.ClientLost || b.DesiredStatus != model.DesiredStop) {
				t.Errorf("after its time it is %s, %s", b.ClientStatus, b.DesiredStatus)
			}
		}
		if n := len(l.allocs("j")); n != 2 {
			t.Errorf("%d allocations in the end", n)
		}
		l.sums()
	})
}

func TestAServiceIsRolledOut(t *testing.T) {
	bubble(t, func(l *led) {
		l.do(&command.NodeRegister{Node: smallNode("n1", 1000)})
		j := asking("web", 10, 50)
		j.Type = model.JobTypeService
		j.TaskGroups[0].Count, j.TaskGroups[0].Update = 3, &model.UpdatePolicy{MaxParallel: 1, ProgressDeadline: time.Minute}
		l.register(j)
		d := l.store.Snapshot().LatestDeployment(nil, "default", "web")
		if d == nil || d.TaskGroups["g"].Placed != 3 || d.Status != model.DeploymentRunning || d.TaskGroups["g"].RequireProgressBy == 0 {
			t.Fatalf("the deployment is %+v", d)
		}
		more := *j
		g := *j.TaskGroups[0]
		g.Count = 4
		more.TaskGroups = []*model.TaskGroup{&g}
		for _, a := range l.allocs("web") {
			l.report(a, model.ClientRunning)
		}
		l.register(&more)
		next := l.store.Snapshot().LatestDeployment(nil, "default", "web")
		if next.ID == d.ID || next.TaskGroups["g"].Placed != 4 || next.TaskGroups["g"].Healthy != 3 {
			t.Errorf("the next deployment is %+v of %+v", next, next.TaskGroups["g"])
		}
		if old := l.store.Snapshot().Deployment(nil, d.ID); old.Status != model.DeploymentCancelled {
			t.Errorf("the first one is %s", old.Status)
		}
		l.sums()
	})
}

func TestAQuotaHoldsBackAndLetsGo(t *testing.T) {
	bubble(t, func(l *led) {
		l.do(&command.NodeRegister{Node: smallNode("n1", 1000)})
		l.do(&command.QuotaUpsert{Quota: &model.Quota{Name: "course", CPU: 100}})
		l.do(&command.NamespaceUpsert{Namespace: &model.Namespace{Name: "default", Quota: "course"}})
		l.register(asking("first", 80, 50))
		l.register(asking("second", 80, 50))
		l.register(asking("third", 150, 50))
		if len(l.allocs("first")) != 1 || len(l.allocs("second")) != 0 {
			t.Fatal("the quota does not hold")
		}
		for e := range l.store.Snapshot().EvalsByJob(nil, "default", "second") {
			if e.Status == model.EvalBlocked && (e.QuotaReached != "course" || len(e.FailedTGAllocs["g"].QuotaExhausted) != 1) {
				t.Errorf("it waits as %+v", e)
			}
		}
		l.report(l.allocs("first")[0], model.ClientComplete)
		if len(l.allocs("second")) != 1 {
			t.Error("what came free of the quota is not used")
		}
		l.do(&command.QuotaUpsert{Quota: &model.Quota{Name: "course", CPU: 500}})
		if len(l.allocs("third")) != 1 {
			t.Error("a larger quota is not used")
		}
	})
}

// A job of which a part waits for the quota, and a part for room, is tried for either.
func TestAQuotaDoesNotHideThatThereIsNoRoom(t *testing.T) {
	bubble(t, func(l *led) {
		l.do(&command.NodeRegister{Node: smallNode("n1", 100)})
		l.do(&command.QuotaUpsert{Quota: &model.Quota{Name: "course", CPU: 300}})
		l.do(&command.NamespaceUpsert{Namespace: &model.Namespace{Name: "default", Quota: "course"}})
		j := asking("j", 200, 50)
		large := asking("", 350, 50).TaskGroups[0]
		large.Name = "large"
		j.TaskGroups = append(j.TaskGroups, large)
		l.register(j)
		if n := len(l.allocs("j")); n != 0 {
			t.Fatalf("%d are placed", n)
		}
		l.do(&command.NodeRegister{Node: smallNode("n2", 1000)})
		if placed := l.allocs("j"); len(placed) != 1 || placed[0].TaskGroup != "g" {
			t.Errorf("with a node that has room, %d are placed", len(placed))
		}
		l.do(&command.QuotaUpsert{Quota: &model.Quota{Name: "course", CPU: 600}})
		if n := len(l.allocs("j")); n != 2 {
			t.Errorf("with a larger quota, %d are placed", n)
		}
	})
}

func TestAPoolHasItsOwnAlgorithm(t *testing.T) {
	bubble(t, func(l *led) {
		l.do(&command.NodePoolUpsert{Pool: &model.NodePool{Name: "wide", Scheduler: &model.PoolScheduling{Algorithm: state.AlgorithmSpread}}})
		snap := l.store.Snapshot()
		if v := l.View(snap); !v.Options("wide").Spread || v.Options("default").Spread {
			t.Error("the pool's algorithm does not count, or counts for others")
		}
	})
}

// open are the evaluations of a job that have not ended.
func (l *led) open(job string) (ids []string) {
	for e := range l.store.Snapshot().EvalsByJob(nil, "default", job) {
		if !e.Terminal() {
			ids = append(ids, e.ID)
		}
	}
	return ids
}

// A worker that is not told that its blocked evaluation is on the log makes another one: the first must not wait beside it for ever, for its job would never count as ended.
func TestABlockedEvaluationThatItsWorkerDoesNotKnowOfEnds(t *testing.T) {
	bubble(t, func(l *led) {
		l.do(&command.NodeRegister{Node: smallNode("n1", 100)})
		l.register(asking("first", 80, 50))
		second := asking("second", 60, 50)
		l.register(second)
		unknown := l.eval(second, model.TriggerQueuedAllocs)
		unknown.Status = model.EvalBlocked
		l.do(&command.EvalUpdate{Now: time.Now().UnixNano(), Create: []*model.Evaluation{unknown}})
		time.Sleep(time.Second)
		synctest.Wait()
		if open := l.open("second"); len(open) != 1 {
			t.Errorf("%q wait", open)
		}
		l.report(l.allocs("first")[0], model.ClientComplete)
		time.Sleep(time.Second)
		synctest.Wait()
		if open := l.open("second"); len(l.allocs("second")) != 1 || len(open) != 0 {
			t.Errorf("there is room, %d are placed and %q wait", len(l.allocs("second")), open)
		}
	})
}

// A leadership may end before the end of an evaluation is written that a newer one of its job stands for.
func TestOfTwoBlockedEvaluationsOfAJobATermKeepsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &led{t: t, log: newLog()}
		j := asking("j", 60, 50)
		e := l.eval(j, model.TriggerJobRegister)
		l.do(&command.JobRegister{Now: time.Now().UnixNano(), Job: j, Eval: e})
		c := *e
		c.Status = model.EvalComplete
		old, newer := l.eval(j, model.TriggerQueuedAllocs), l.eval(j, model.TriggerQueuedAllocs)
		old.Status, newer.Status = model.EvalBlocked, model.EvalBlocked
		l.do(&command.EvalUpdate{Now: time.Now().UnixNano(), Finish: []*model.Evaluation{&c}, Create: []*model.Evaluation{old, newer}})
		l.Leader = leader.New(leader.Config{Store: l.store, Log: l.log, HeartbeatTTL: 1000 * time.Hour})
		signal := make(chan bool, 1)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _ = l.Run(ctx, signal) })
		signal <- true
		time.Sleep(time.Second)
		synctest.Wait()
		if open := l.open("j"); len(open) != 1 {
			t.Errorf("%q wait", open)
		}
		cancel()
		wg.Wait()
	})
}
