package sched_test

import (
	"testing"
	"time"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
)

func TestTheSentence(t *testing.T) {
	blockedBy := func(m *model.AllocMetric) []*model.Evaluation {
		return []*model.Evaluation{{ID: "e", Status: model.EvalBlocked, FailedTGAllocs: map[string]*model.AllocMetric{"g": m},
			QueuedAllocations: map[string]int{"g": 2}, QuotaReached: "course"}}
	}
	dep := func(status string, g model.DeploymentGroup) *model.Deployment {
		return &model.Deployment{ID: "d", Status: status, JobCreateIndex: 1, StatusDescription: "Failed due to progress deadline", TaskGroups: map[string]*model.DeploymentGroup{"g": &g}}
	}
	running := &model.Allocation{Job: job(1), TaskGroup: "g", DesiredStatus: model.DesiredRun, ClientStatus: model.ClientRunning}
	for _, c := range []struct {
		name   string
		change func(*sched.Circumstances)
		want   string
	}{
		{"a stopped job", func(c *sched.Circumstances) { c.Job.Stop = true }, `The job is stopped.`},
		{"a template", func(c *sched.Circumstances) { c.Job.Parameterized = &model.Parameterized{} }, `The job is a template: it runs when somebody dispatches it.`},
		{"a job of the clock", func(c *sched.Circumstances) { c.Job.Periodic = &model.Periodic{Enabled: true} }, `The job is a template: the clock starts it at its times.`},
		{"an earlier run", func(c *sched.Circumstances) { c.Prohibited = "an earlier run of it has not ended" }, `It may not start: an earlier run of it has not ended.`},
		{"a paused broker", func(c *sched.Circumstances) {
			c.Paused, c.Evaluations = true, []*model.Evaluation{{Status: model.EvalPending}}
		}, `Scheduling is paused by an operator (PauseEvalBroker): nothing is placed until it goes on.`},
		{"a queue", func(c *sched.Circumstances) { c.Evaluations = []*model.Evaluation{{Status: model.EvalPending}} }, `Its evaluation waits for its turn in the queue.`},
		{"a delay", func(c *sched.Circumstances) {
			c.Evaluations = []*model.Evaluation{{Status: model.EvalPending, WaitUntil: int64(time.Hour), TriggeredBy: model.TriggerFollowUp}}
		}, `It waits until 1970-01-01T01:00:00Z: an allocation failed, and its replacement is delayed by the reschedule policy.`},
		{"an empty pool", func(c *sched.Circumstances) {
			c.Job.NodePool = "gpu"
			c.Evaluations = blockedBy(&model.AllocMetric{})
		}, `Group "g" waits with 2 allocations: no node of the pool "gpu" is ready.`},
		{"another datacenter", func(c *sched.Circumstances) {
			c.Job.Datacenters = []string{"eu"}
			c.Evaluations = blockedBy(&model.AllocMetric{NodesInPool: 3})
		}, `Group "g" waits with 2 allocations: none of the 3 ready nodes of the pool "default" is in its datacenters (eu).`},
		{"constraints", func(c *sched.Circumstances) {
			c.Evaluations = blockedBy(&model.AllocMetric{NodesInPool: 3, NodesAvailable: map[string]int{"dc1": 3}, NodesEvaluated: 3, NodesFiltered: 3,
				ConstraintFiltered: map[string]int{"missing drivers": 1, "${attr.arch} = arm64": 2}})
		}, `Group "g" waits with 2 allocations: all 3 nodes are ruled out (${attr.arch} = arm64 on 2, missing drivers on 1).`},
		{"full nodes", func(c *sched.Circumstances) {
			c.Evaluations = blockedBy(&model.AllocMetric{NodesInPool: 5, NodesAvailable: map[string]int{"dc1": 5}, NodesEvaluated: 5, NodesFiltered: 1,
				ConstraintFiltered: map[string]int{"missing drivers": 1}, NodesExhausted: 4, DimensionExhausted: map[string]int{"memory": 3, "cpu": 1}})
		}, `Group "g" waits with 2 allocations: there is no room on 4 of 5 nodes (memory on 3, cpu on 1), the others are ruled out (missing drivers on 1).`},
		{"a quota", func(c *sched.Circumstances) {
			c.Evaluations = blockedBy(&model.AllocMetric{QuotaExhausted: []string{"cpu", "memory"}})
		},
			`Group "g" waits with 2 allocations: the quota "course" of its namespace is used up (cpu, memory).`},
		{"canaries", func(c *sched.Circumstances) {
			c.Deployment = dep(model.DeploymentRunning, model.DeploymentGroup{DesiredCanaries: 1, Healthy: 1, DesiredTotal: 3})
		}, `Its deployment d waits for somebody to promote the canaries of group "g".`},
		{"health", func(c *sched.Circumstances) {
			c.Job.TaskGroups[0].Update = &model.UpdatePolicy{MaxParallel: 2}
			c.Deployment = dep(model.DeploymentRunning, model.DeploymentGroup{Healthy: 1, DesiredTotal: 3})
		}, `Its deployment d goes on when those of group "g" that were placed are healthy: 1 of 3 are, and max_parallel is 2.`},
		{"a paused deployment", func(c *sched.Circumstances) { c.Deployment = dep(model.DeploymentPaused, model.DeploymentGroup{}) }, `Its deployment d is paused.`},
		{"a failed deployment", func(c *sched.Circumstances) { c.Deployment = dep(model.DeploymentFailed, model.DeploymentGroup{}) },
			`Its deployment d failed: Failed due to progress deadline.`},
		{"attempts used up", func(c *sched.Circumstances) {
			c.Allocs = []*model.Allocation{{ID: "a", Job: job(1), TaskGroup: "g", DesiredStatus: model.DesiredRun, ClientStatus: model.ClientFailed}}
		}, `1 allocation of group "g" failed, and the reschedule policy allows no more attempts.`},
		{"a failed evaluation", func(c *sched.Circumstances) {
			c.Evaluations = []*model.Evaluation{{Status: model.EvalFailed, StatusDescription: "maximum attempts reached"}}
		}, `The last evaluation failed: maximum attempts reached.`},
		{"all is well", func(c *sched.Circumstances) { c.Allocs = []*model.Allocation{running, running} }, `Nothing is missing: 2 allocations run.`},
		{"nothing asked for", func(*sched.Circumstances) {}, `It asks for no allocations.`},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := sched.Circumstances{Job: job(1)}
			c.change(&in)
			if got := sched.Explain(in); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// What a decision could not do is what the sentence says.
func TestTheSentenceTellsWhatWasDecided(t *testing.T) {
	w := &world{job: job(3), nodes: []*model.Node{node("n1", 250, 1000)}}
	d := w.schedule(1)
	e := &model.Evaluation{Status: model.EvalBlocked, FailedTGAllocs: d.Failed, QueuedAllocations: d.Queued}
	want := `Group "g" waits with 1 allocation: there is no room on 1 of 1 node (cpu on 1).`
	if got := sched.Explain(sched.Circumstances{Job: w.job, Allocs: w.allocs, Evaluations: []*model.Evaluation{e}}); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if m := w.living()[0].Metrics; m.NodesEvaluated != 1 || m.NodesInPool != 1 || m.NodesAvailable["dc1"] != 1 || m.ScoreMeta[0].NodeID != "n1" ||
		m.ScoreMeta[0].Norm == 0 || m.ScoreMeta[0].Scores["binpack"] == 0 {
		t.Errorf("a placement says %+v", m)
	}
}
