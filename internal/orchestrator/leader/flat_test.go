package leader_test

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// Finished jobs leave memory as it was, and the last costs what the first did. Costs are counted in allocations: time says more about the machine.
// ROCKPOOL_FLAT_JOBS=1000000 runs it for as many.
func TestFinishedJobsLeaveMemoryFlat(t *testing.T) {
	jobs := 3_000
	if n, err := strconv.Atoi(os.Getenv("ROCKPOOL_FLAT_JOBS")); err == nil {
		jobs = n
	}
	const each = 100 // jobs at a time
	rounds := jobs / each
	l := newLog()
	do := func(e any) any {
		r, _, err := l.Apply(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	do(&command.NodeRegister{Node: readyNode()})
	sweep := leader.Sweep{Keep: leader.Keep{Evals: time.Hour, EvalCount: 500, Allocs: time.Hour, AllocCount: 500, Jobs: time.Hour, JobCount: 500, Tombstones: 5 * time.Second}}
	now := int64(time.Hour)
	round := func(r int) {
		now += int64(time.Second)
		plans := &command.PlanResults{Now: now}
		reports := &command.AllocUpdates{Now: now, NodeID: "n1"}
		ends := &command.EvalUpdate{Now: now}
		for i := range each {
			id := fmt.Sprintf("j-%d-%d", r, i)
			index := do(&command.JobRegister{Now: now, Job: batch(id), Eval: &model.Evaluation{ID: "e-" + id, Namespace: "default", JobID: id, Status: model.EvalPending}}).(*command.Registered).JobModifyIndex
			plans.Plans = append(plans.Plans, &state.Placement{EvalID: "e-" + id, Namespace: "default", JobID: id, JobCreateIndex: index, JobModifyIndex: index,
				Place: []*model.Allocation{{ID: "a-" + id, Namespace: "default", EvalID: "e-" + id, Name: id + ".g[0]", NodeID: "n1", JobID: id, TaskGroup: "g",
					DesiredStatus: model.DesiredRun, ClientStatus: model.ClientPending,
					Resources: model.AllocatedResources{Tasks: map[string]*model.AllocatedTask{"t": {CPU: 1, MemoryMB: 1}}}}}})
			reports.Allocs = append(reports.Allocs, &model.AllocUpdate{ID: "a-" + id, ClientStatus: model.ClientComplete, ModifyTime: now,
				TaskStates: map[string]*model.TaskState{"t": {State: model.TaskDead, FinishedAt: now, Events: []*model.TaskEvent{{Type: model.TaskTerminated, Time: now}}}}})
			ends.Finish = append(ends.Finish, &model.Evaluation{ID: "e-" + id, Namespace: "default", JobID: id, Status: model.EvalComplete})
		}
		do(plans)
		do(reports)
		do(ends)
		for more := true; more; {
			var step *command.Collect
			step, _, more = sweep.Next(l.store.Snapshot(), now)
			step.Now = now
			do(step)
		}
	}
	var heap, mallocs []uint64 // at the end of each tenth
	for r := range rounds {
		round(r)
		if (r+1)%(rounds/10) == 0 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			heap, mallocs = append(heap, m.HeapAlloc), append(mallocs, m.Mallocs)
		}
	}
	second, last := mallocs[2]-mallocs[1], mallocs[9]-mallocs[8]
	t.Logf("%d jobs: heap %d KiB after two tenths, %d at the end; %d allocations in the third tenth, %d in the last", jobs, heap[1]>>10, heap[9]>>10, second, last)
	// What is kept is there after a few rounds: from then on nothing may grow.
	if from := max(heap[1], heap[len(heap)/2]); float64(heap[9]) > 1.2*float64(from)+1<<20 {
		t.Errorf("the heap grew: %v", heap)
	}
	if float64(last) > 1.5*float64(second) {
		t.Errorf("jobs became more expensive: %v", mallocs)
	}
	n := 0
	for range l.store.Snapshot().Jobs(nil, "*", "") {
		n++
	}
	if n > 500+each {
		t.Errorf("%d jobs were kept", n)
	}
}

// A job of many allocations goes in small steps too, and what has not ended stays.
func TestALargeJobIsCollectedInSteps(t *testing.T) {
	l := newLog()
	do := func(e any) {
		if _, _, err := l.Apply(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	do(&command.NodeRegister{Node: readyNode()})
	do(&command.JobRegister{Job: batch("large")})
	do(&command.JobRegister{Job: batch("alive"), Eval: &model.Evaluation{ID: "e", Namespace: "default", JobID: "alive", Status: model.EvalPending}})
	plan := &state.Placement{Namespace: "default", JobID: "large", JobCreateIndex: 2, JobModifyIndex: 2}
	reports := &command.AllocUpdates{NodeID: "n1"}
	for i := range 1000 {
		id := fmt.Sprintf("a%04d", i)
		plan.Place = append(plan.Place, &model.Allocation{ID: id, Namespace: "default", NodeID: "n1", JobID: "large", TaskGroup: "g", DesiredStatus: model.DesiredRun})
		reports.Allocs = append(reports.Allocs, &model.AllocUpdate{ID: id, ClientStatus: model.ClientComplete})
	}
	do(&command.PlanResults{Plans: []*state.Placement{plan}})
	do(reports)
	sweep := leader.Sweep{Keep: leader.Keep{Evals: -1, Allocs: -1, Jobs: -1, Tombstones: time.Hour}}
	steps := 0
	for more := true; more; steps++ {
		var step *command.Collect
		step, _, more = sweep.Next(l.store.Snapshot(), int64(time.Hour))
		if n := len(step.Allocs) + len(step.Jobs); n > 512 {
			t.Fatalf("a step of %d records", n)
		}
		do(step)
	}
	snap := l.store.Snapshot()
	if snap.Job(nil, "default", "large") != nil || snap.Job(nil, "default", "alive") == nil || steps < 4 {
		t.Errorf("after %d steps the wrong job is there", steps)
	}
}
