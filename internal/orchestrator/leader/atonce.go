package leader

import (
	"context"
	"time"

	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/plan"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/timeline"
)

// What is placed at once is small, so that whoever registers does not wait for somebody else's thousand placements.
const (
	atOnceTasks = 16       // allocations of a job
	atOnceBytes = 64 << 10 // of a registration
	// Where more plans wait than this, jobs are registered alone: the answer need not wait for them, and the queue of evaluations says when it is too much.
	atOnceWaiting = 64
)

// Register brings a registration onto the log. A new batch job with little in it, for which there is room and which has nobody to wait for, is placed in the
// same entry. What becomes of any other is the evaluation's matter, as it is where a plan turns out not to fit.
func (l *Leader) Register(ctx context.Context, e *command.JobRegister) (result any, index uint64, err error) {
	if t := l.current(); t != nil && l.cfg.Encode != nil {
		_, span := timeline.Start(ctx, timeline.Schedule)
		r, p := t.atOnce(e)
		span.End()
		if p != nil {
			if result, index, taken, err := t.plans.Register(ctx, r, p); taken {
				return result, index, err
			}
		}
	}
	return l.cfg.Log.Apply(ctx, e)
}

// atOnce plans a job that is not registered yet; nil where that is not simple.
func (t *term) atOnce(e *command.JobRegister) (*plan.Registration, *state.Placement) {
	j := e.Job
	if e.Eval == nil || j.Type != model.JobTypeBatch || j.IsTemplate() || j.Stop || e.EnforceIndex && e.AtIndex != 0 ||
		!t.broker.Passes(e.Eval.Priority) || t.plans.Waiting() > atOnceWaiting {
		return nil, nil
	}
	tasks := 0
	for _, g := range j.TaskGroups {
		tasks += g.Count
	}
	snap := t.cfg.Store.Snapshot()
	if tasks == 0 || tasks > atOnceTasks || snap.Job(nil, j.Namespace, j.ID) != nil || snap.QuotaOf(j.Namespace) != nil {
		return nil, nil
	}
	if _, err := t.cfg.Encode(&command.JobPlans{}); err != nil {
		return nil, nil
	}
	began := time.Now()
	v := t.view(snap)
	v.next = j
	d := sched.Schedule(v, e.Eval, e.Now)
	timed(d, time.Since(began))
	t.measure("nomad.nomad.worker.invoke_scheduler."+e.Eval.Type, began)
	if len(d.Place) != tasks || len(d.Failed)+len(d.Update)+len(d.Stop)+len(d.FollowUps)+len(d.DeploymentUpdates) > 0 || d.Deployment != nil || d.RollAt != 0 {
		return nil, nil
	}
	entry, err := t.cfg.Encode(e)
	if err != nil || len(entry) > atOnceBytes {
		return nil, nil
	}
	return &plan.Registration{Entry: entry, Namespace: j.Namespace, JobID: j.ID},
		&state.Placement{EvalID: e.Eval.ID, Namespace: j.Namespace, JobID: j.ID, Place: d.Place}
}

// placed reports whether a new evaluation's job was placed in the entry that created it, in which case the evaluation has ended. A term that takes over finds
// it pending, and that there is nothing to do for it.
func (t *term) placed(e *model.Evaluation) bool {
	snap := t.cfg.Store.Snapshot()
	now := snap.Eval(nil, e.ID)
	if now == nil || now.SnapshotIndex != now.CreateIndex {
		return false
	}
	c := *now
	c.Status, c.QueuedAllocations = model.EvalComplete, map[string]int{}
	if j := snap.Job(nil, c.Namespace, c.JobID); j != nil {
		for _, g := range j.TaskGroups {
			c.QueuedAllocations[g.Name] = 0 // all of it was placed
		}
	}
	t.supersede(t.broker.TakeBlocked(c.Namespace, c.JobID))
	t.completions.finish(&c)
	return true
}
