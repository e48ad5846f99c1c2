package leader

import (
	"context"
	"fmt"
	"time"

	"rockpool/internal/ident"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
)

// planAttempts bounds how often one evaluation plans again because something was refused.
const planAttempts = 10

// work takes evaluations until ctx ends.
func (t *term) work(ctx context.Context) error {
	for {
		e, err := t.broker.Dequeue(ctx)
		if err != nil {
			return nil
		}
		if err := t.evaluate(ctx, e); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			t.cfg.Logger.WithFields(logging.Fields{"eval_id": e.ID, "job_id": e.JobID, "error": err.Error()}).
				Warn("evaluation will be tried again")
			t.broker.Nack(e.ID)
			continue
		}
		t.broker.Ack(e.ID)
	}
}

// evaluate brings one evaluation to its end.
func (t *term) evaluate(ctx context.Context, e *model.Evaluation) error {
	if now := t.cfg.Store.Snapshot().Eval(nil, e.ID); now == nil || now.Terminal() {
		return nil // it was canceled or collected meanwhile
	}
	for range planAttempts {
		snap := t.cfg.Store.Snapshot()
		start := time.Now()
		d := sched.Schedule(view{snap}, e, start.UnixNano())
		t.measure("nomad.nomad.worker.invoke_scheduler."+e.Type, start)
		start = time.Now()
		done, err := t.submit(ctx, snap, e, d)
		t.measure("nomad.nomad.worker.submit_plan", start)
		if err != nil {
			return err
		}
		if done {
			return t.finish(ctx, e, d, snap.Index())
		}
	}
	c := *e
	c.Status, c.StatusDescription = model.EvalFailed, "maximum attempts reached"
	retry := followUp(e, model.TriggerMaxPlans, time.Now().Add(time.Second).UnixNano())
	c.NextEval = retry.ID
	if err := t.create(ctx, retry); err != nil {
		return err
	}
	t.completions.finish(&c)
	return nil
}

// submit hands in what was decided. False means that a part was refused.
func (t *term) submit(ctx context.Context, snap *state.Snapshot, e *model.Evaluation, d *sched.Decision) (bool, error) {
	if d.Empty() {
		return true, nil
	}
	p := &state.Placement{EvalID: e.ID, Namespace: e.Namespace, JobID: e.JobID, Place: d.Place}
	if j := snap.Job(nil, e.Namespace, e.JobID); j != nil {
		p.JobCreateIndex, p.JobModifyIndex = j.CreateIndex, j.JobModifyIndex
	}
	for _, a := range d.Update {
		p.Update = append(p.Update, a.ID)
	}
	for _, s := range d.Stop {
		st := state.Stop{AllocID: s.Alloc.ID, Desired: model.DesiredStop, Description: s.Description}
		if s.Lost {
			st.ClientStatus = model.ClientLost
		}
		p.Stop = append(p.Stop, st)
	}
	if len(d.FollowUps) > 0 {
		p.FollowUps = map[string]string{}
		evals := make([]*model.Evaluation, 0, len(d.FollowUps))
		for _, f := range d.FollowUps {
			ev := followUp(e, model.TriggerFollowUp, f.At)
			p.FollowUps[f.AllocID] = ev.ID
			evals = append(evals, ev)
		}
		if err := t.create(ctx, evals...); err != nil {
			return false, err
		}
	}
	r, err := t.plans.Submit(ctx, p)
	if err != nil {
		return false, err
	}
	return !r.Partial, nil
}

// finish records the outcome. What found no room stays behind as a blocked evaluation.
func (t *term) finish(ctx context.Context, e *model.Evaluation, d *sched.Decision, snapshot uint64) error {
	c := *e
	c.Status, c.SnapshotIndex = model.EvalComplete, snapshot
	c.FailedTGAllocs, c.QueuedAllocations = nil, d.Queued
	if len(d.Failed) > 0 {
		c.FailedTGAllocs = d.Failed
		if e.Status == model.EvalBlocked {
			t.supersede(t.broker.Block(e, snapshot))
			return nil // as before: nothing to write
		}
		b := followUp(e, model.TriggerQueuedAllocs, 0)
		b.Status, b.StatusDescription = model.EvalBlocked, "created to place remaining allocations"
		b.FailedTGAllocs, b.QueuedAllocations = d.Failed, d.Queued
		if err := t.create(ctx, b); err != nil {
			return err
		}
		c.BlockedEval = b.ID
		t.supersede(t.broker.Block(b, snapshot))
	} else {
		t.supersede(t.broker.TakeBlocked(e.Namespace, e.JobID))
	}
	t.completions.finish(&c)
	return nil
}

// supersede cancels a blocked evaluation that a newer one of its job stands for.
func (t *term) supersede(e *model.Evaluation) {
	if e != nil {
		c := *e
		c.Status, c.StatusDescription = model.EvalCanceled, "a newer evaluation of the job waits for room"
		t.completions.finish(&c)
	}
}

func (t *term) create(ctx context.Context, evals ...*model.Evaluation) error {
	ctx, cancel := context.WithTimeout(ctx, logBound)
	defer cancel()
	if _, _, err := t.cfg.Log.Apply(ctx, &command.EvalUpdate{Now: time.Now().UnixNano(), Create: evals}); err != nil {
		return fmt.Errorf("create follow-up evaluations: %w", err)
	}
	return nil
}

const logBound = 10 * time.Second

func followUp(e *model.Evaluation, trigger string, at int64) *model.Evaluation {
	return &model.Evaluation{
		ID: ident.New(), Namespace: e.Namespace, Priority: e.Priority, Type: e.Type, TriggeredBy: trigger, JobID: e.JobID,
		JobModifyIndex: e.JobModifyIndex, Status: model.EvalPending, PreviousEval: e.ID, WaitUntil: at,
	}
}

// sweepFailed ends evaluations that were delivered too often, and tries again in a while.
func (t *term) sweepFailed(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		for _, e := range t.broker.Failures() {
			retry := followUp(e, model.TriggerFollowUp, time.Now().Add(time.Minute).UnixNano())
			if err := t.create(ctx, retry); err != nil {
				t.broker.Enqueue(e)
				continue
			}
			c := *e
			c.Status, c.StatusDescription, c.NextEval = model.EvalFailed, "evaluation reached delivery limit", retry.ID
			t.completions.finish(&c)
		}
	}
}
