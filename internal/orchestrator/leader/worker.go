package leader

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"rockpool/internal/ident"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/broker"
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
		for _, d := range t.broker.Duplicates() {
			t.supersede(d)
		}
		idle := time.Now()
		e, err := t.broker.Dequeue(ctx)
		if err != nil {
			return nil
		}
		t.measure("nomad.nomad.worker.dequeue_eval", idle)
		if now := t.cfg.Store.Snapshot().Eval(nil, e.ID); now == nil || now.Terminal() {
			t.broker.Ack(e.ID) // it was canceled or collected meanwhile
			continue
		}
		begun := time.Now()
		err = t.evaluate(ctx, e)
		t.measure("nomad.nomad.broker.process_time", begun)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			t.cfg.Logger.WithFields(logging.Fields{"eval_id": e.ID, "job_id": e.JobID, "error": err.Error()}).
				Warn("evaluation will be tried again")
			if !t.settle(ctx, e.ID) {
				return nil
			}
			t.broker.Nack(e.ID)
			continue
		}
		t.broker.Ack(e.ID)
	}
}

// settle waits until all that may be on the log is in the state: an evaluation whose plan has an unknown outcome, decided again on a state without it, would
// place everything twice. Until then nobody else gets it. False = the term ends.
func (t *term) settle(ctx context.Context, id string) bool {
	for {
		t.broker.Renew(id)
		bound, cancel := context.WithTimeout(ctx, logBound)
		err := t.cfg.Log.Barrier(bound)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err == nil
		}
		select {
		case <-time.After(retryMost):
		case <-ctx.Done():
			return false
		}
	}
}

// evaluate brings one evaluation to its end.
func (t *term) evaluate(ctx context.Context, e *model.Evaluation) error {
	for range planAttempts {
		t.broker.Renew(e.ID)
		snap := t.cfg.Store.Snapshot()
		began := time.Now()
		v := t.view(snap)
		d := sched.Schedule(v, e, began.UnixNano())
		timed(d, time.Since(began))
		t.measure("nomad.nomad.worker.invoke_scheduler."+e.Type, began)
		planned := time.Now()
		done, err := t.submit(ctx, snap, e, d)
		t.measure("nomad.nomad.worker.submit_plan", planned)
		if err != nil {
			return err
		}
		if done {
			return t.finish(ctx, e, d, v)
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

// timed notes what deciding took, a placement at a time.
func timed(d *sched.Decision, took time.Duration) {
	each := int64(took) / int64(max(len(d.Place)+len(d.Failed), 1))
	for _, a := range d.Place {
		a.Metrics.AllocationTimeNS = each
	}
	for _, m := range d.Failed {
		m.AllocationTimeNS = each
	}
}

// submit hands in what was decided. False means that a part was refused.
func (t *term) submit(ctx context.Context, snap *state.Snapshot, e *model.Evaluation, d *sched.Decision) (bool, error) {
	if d.Empty() {
		return true, nil
	}
	plans := plansOf(snap, e, d)
	later, links := followUps(e, d)
	plans[0].FollowUps = links
	if len(later) > 0 {
		if err := t.create(ctx, later...); err != nil {
			return false, err
		}
	}
	done := true
	for _, p := range plans {
		r, err := t.plans.Submit(ctx, p, preempted(snap, e, p.Stop)...)
		if err != nil {
			return false, err
		}
		done = done && !r.Partial
		nodes := make([]string, len(r.Place))
		for i, a := range r.Place {
			nodes[i] = a.NodeID
		}
		t.broker.Used(e.ID, nodes...)
	}
	return done, nil
}

// plansOf puts a decision into plans: one for each specification that is placed, the job's own first.
func plansOf(snap *state.Snapshot, e *model.Evaluation, d *sched.Decision) []*state.Placement {
	first := &state.Placement{EvalID: e.ID, Namespace: e.Namespace, JobID: e.JobID, Deployment: d.Deployment, DeploymentID: d.DeploymentID}
	if j := snap.Job(nil, e.Namespace, e.JobID); j != nil {
		first.JobCreateIndex, first.JobModifyIndex = j.CreateIndex, j.JobModifyIndex
	}
	plans := []*state.Placement{first}
	of := map[uint64]*state.Placement{first.JobModifyIndex: first}
	at := map[string]*state.Placement{} // by allocation
	for _, a := range d.Place {
		p := of[a.Job.JobModifyIndex]
		if p == nil {
			p = &state.Placement{
				EvalID: e.ID, Namespace: e.Namespace, JobID: e.JobID, JobCreateIndex: first.JobCreateIndex, JobModifyIndex: a.Job.JobModifyIndex,
			}
			of[a.Job.JobModifyIndex] = p
			plans = append(plans, p)
		}
		p.Place = append(p.Place, a)
		at[a.ID] = p
	}
	for _, a := range d.Update {
		first.Update = append(first.Update, a.ID)
	}
	for _, a := range d.Join {
		first.Joins = append(first.Joins, a.ID)
	}
	for _, s := range d.Stop {
		st, p := state.Stop{AllocID: s.Alloc.ID, Desired: model.DesiredStop, Description: s.Description, PreemptedBy: s.PreemptedBy}, first
		switch {
		case s.Lost:
			st.ClientStatus = model.ClientLost
		case s.Unknown:
			st.Desired, st.ClientStatus = model.DesiredRun, model.ClientUnknown
		case s.PreemptedBy != "":
			st.Desired, p = model.DesiredEvict, at[s.PreemptedBy]
		}
		p.Stop = append(p.Stop, st)
	}
	for _, u := range d.DeploymentUpdates {
		first.DeploymentUpdates = append(first.DeploymentUpdates, state.DeploymentStatus{DeploymentID: u.ID, Status: u.Status, Description: u.Description})
	}
	return plans
}

// followUpWindow is how far apart allocations may be due that one evaluation looks at again, the last of them being due.
const followUpWindow = int64(time.Second)

// followUps makes the evaluations that look at allocations again, and says which allocation waits for which.
func followUps(e *model.Evaluation, d *sched.Decision) ([]*model.Evaluation, map[string]string) {
	list := slices.SortedStableFunc(slices.Values(d.FollowUps), func(a, b sched.FollowUp) int {
		return cmp.Or(cmp.Compare(a.Trigger, b.Trigger), cmp.Compare(a.At, b.At))
	})
	var out []*model.Evaluation
	var links map[string]string
	began := int64(0)
	for _, f := range list {
		n := len(out) - 1
		if n < 0 || out[n].TriggeredBy != f.Trigger || f.At-began > followUpWindow {
			out = append(out, followUp(e, f.Trigger, f.At))
			n++
			began = f.At
		}
		out[n].WaitUntil = f.At
		if links == nil {
			links = map[string]string{}
		}
		links[f.AllocID] = out[n].ID
	}
	if d.RollAt > 0 {
		out = append(out, followUp(e, model.TriggerRolling, d.RollAt))
	}
	return out, links
}

// preempted makes an evaluation for each job that is to lose an allocation to another one.
func preempted(snap *state.Snapshot, e *model.Evaluation, stops []state.Stop) []*model.Evaluation {
	var out []*model.Evaluation
	seen := map[[2]string]bool{}
	for _, s := range stops {
		if s.PreemptedBy == "" {
			continue
		}
		a := snap.Alloc(nil, s.AllocID)
		if a == nil {
			continue
		}
		if k := [2]string{a.Namespace, a.JobID}; !seen[k] {
			seen[k] = true
			if j := snap.Job(nil, a.Namespace, a.JobID); j != nil {
				out = append(out, &model.Evaluation{
					ID: ident.NewNear(), Namespace: j.Namespace, Priority: j.Priority, Type: j.Type, TriggeredBy: model.TriggerPreemption, JobID: j.ID,
					JobModifyIndex: j.JobModifyIndex, Status: model.EvalPending, PreviousEval: e.ID,
				})
			}
		}
	}
	return out
}

// finish records the outcome. What found no room stays behind as a blocked evaluation.
func (t *term) finish(ctx context.Context, e *model.Evaluation, d *sched.Decision, v view) error {
	c := *e
	c.Status, c.SnapshotIndex, c.DeploymentID = model.EvalComplete, v.Index(), cmp.Or(d.DeploymentID, e.DeploymentID)
	c.FailedTGAllocs, c.QueuedAllocations = nil, d.Queued
	switch {
	case len(d.Failed) > 0 && e.Status == model.EvalBlocked:
		b := *e // in the state it stays as it is: it still waits
		waits(&b, d)
		t.supersede(t.broker.Block(&b, v.known, broker.Room(d.Need)))
		return nil
	case len(d.Failed) > 0:
		c.FailedTGAllocs = d.Failed
		b := followUp(e, model.TriggerQueuedAllocs, 0)
		b.Status, b.StatusDescription = model.EvalBlocked, "created to place remaining allocations"
		waits(b, d)
		if err := t.create(ctx, b); err != nil {
			return err
		}
		c.BlockedEval = b.ID
		need := broker.Room(d.Need)
		if oneNode(e) { // what the job waits for on the others is not known: the next that comes free anywhere shows it
			need, b.EscapedClass = broker.Room{}, true
		}
		t.supersede(t.broker.Block(b, v.known, need))
	case !oneNode(e):
		t.supersede(t.broker.TakeBlocked(e.Namespace, e.JobID))
	}
	t.completions.finish(&c)
	return nil
}

// oneNode reports whether an evaluation may have looked at one node only.
func oneNode(e *model.Evaluation) bool {
	return e.NodeID != "" && e.TriggeredBy == model.TriggerNodeUpdate
}

// waits says what a blocked evaluation waits for.
func waits(b *model.Evaluation, d *sched.Decision) {
	b.FailedTGAllocs, b.QueuedAllocations = d.Failed, d.Queued
	b.ClassEligibility, b.EscapedClass, b.QuotaReached = d.Classes, d.Escaped, d.Quota
}

// supersede cancels an evaluation that a newer one of its job stands for.
func (t *term) supersede(e *model.Evaluation) {
	if e != nil {
		c := *e
		c.Status, c.StatusDescription = model.EvalCanceled, "a newer evaluation of the job stands for it"
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
		ID: ident.NewNear(), Namespace: e.Namespace, Priority: e.Priority, Type: e.Type, TriggeredBy: trigger, JobID: e.JobID,
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
