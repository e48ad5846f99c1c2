package leader

import (
	"context"
	"fmt"
	"slices"
	"time"

	"rockpool/internal/ident"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
)

// Descriptions of deployments, as Nomad's clients show and know them.
const (
	DeploymentPaused     = "Deployment is paused"
	DeploymentFailedByUs = "Deployment marked as failed"
	deploymentSuccessful = "Deployment completed successfully"
	deploymentStopped    = "Cancelled because job is stopped"
	deploymentNewer      = "Cancelled due to newer version of job"
	deploymentUnhealthy  = "Failed due to unhealthy allocations"
	deploymentLate       = "Failed due to progress deadline"
)

// progress is what a deployment had reached when its scheduler was told last.
type progress struct{ healthy, unhealthy int }

// watchDeployments brings deployments to their ends. It keeps nothing that a later term could not find out anew.
func (t *term) watchDeployments(ctx context.Context) error {
	told := map[string]progress{}
	for {
		watch := state.NewWatch()
		snap := t.cfg.Store.Snapshot()
		entries, next := deploymentSteps(snap, watch, told, time.Now().UnixNano())
		if err := t.applyAll(ctx, "a deployment's next step", entries); err != nil {
			clear(told)
			next = time.Now().Add(time.Second).UnixNano()
		} else if len(entries) > 0 {
			continue // on what came of them
		}
		if !wait(ctx, watch, next) {
			return nil
		}
	}
}

// applyAll brings entries onto the log, each under a bound, and stops at the first that fails.
func (t *term) applyAll(ctx context.Context, what string, entries []any) error {
	for _, e := range entries {
		actx, cancel := context.WithTimeout(ctx, logBound)
		_, _, err := t.cfg.Log.Apply(actx, e)
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				t.cfg.Logger.WithFields(logging.Fields{"step": what, "error": err.Error()}).Warn("a step of the leader's will be tried again")
			}
			return err
		}
	}
	return nil
}

// wait returns when something watched has changed, or at the time next (unix ns; 0 = never). False means that ctx has ended.
func wait(ctx context.Context, w state.Watch, next int64) bool {
	wctx := ctx
	if next != 0 {
		var cancel context.CancelFunc
		wctx, cancel = context.WithDeadline(ctx, time.Unix(0, next))
		defer cancel()
	}
	_ = w.WatchCtx(wctx)
	return ctx.Err() == nil
}

// soonest is the earlier of two times, of which 0 is none.
func soonest(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// deploymentSteps is what active deployments need now, and when one of them needs something next.
func deploymentSteps(snap *state.Snapshot, w state.Watch, told map[string]progress, now int64) (entries []any, next int64) {
	seen := map[string]bool{}
	for d := range snap.ActiveDeployments(w) {
		seen[d.ID] = true
		e, at := deploymentStep(snap, w, d, told, now)
		if e != nil {
			entries = append(entries, e)
		}
		next = soonest(next, at)
	}
	for id := range told {
		if !seen[id] {
			delete(told, id)
		}
	}
	return entries, next
}

func deploymentStep(snap *state.Snapshot, w state.Watch, d *model.Deployment, told map[string]progress, now int64) (entry any, next int64) {
	set := func(status, why string, e *model.Evaluation) any {
		return &command.DeploymentStatus{Now: now, Update: state.DeploymentStatus{DeploymentID: d.ID, Status: status, Description: why}, Eval: e}
	}
	j := snap.Job(w, d.Namespace, d.JobID)
	switch {
	case j == nil || j.CreateIndex != d.JobCreateIndex || j.Stop:
		return set(model.DeploymentCancelled, deploymentStopped, nil), 0
	case j.Version > d.JobVersion:
		return set(model.DeploymentCancelled, deploymentNewer, nil), 0
	case d.Status != model.DeploymentRunning:
		return nil, 0 // somebody has paused it, or it has not begun
	}
	g := gauge(snap, d, now)
	switch {
	case g.failed != "":
		return FailDeployment(snap, d, g.failed, g.revert, now), 0
	case g.complete:
		return set(model.DeploymentSuccessful, deploymentSuccessful, DeploymentEval(d, j)), 0
	case g.promote:
		return &command.DeploymentPromote{Now: now, DeploymentID: d.ID, Eval: DeploymentEval(d, j)}, 0
	}
	before, ok := told[d.ID]
	told[d.ID] = g.progress
	switch {
	case ok && before == g.progress, !ok && g.progress == progress{}:
		return nil, g.next
	}
	tr := &command.AllocTransitions{Now: now, Evals: []*model.Evaluation{DeploymentEval(d, j)}}
	if g.unhealthy > before.unhealthy {
		tr.Transitions = replaceUnhealthy(snap, d, j)
	}
	return tr, 0
}

// measure is how far a deployment has got.
type measure struct {
	progress
	complete bool
	promote  bool   // its canaries are well, and nobody has to be asked
	failed   string // why; "" = it has not
	revert   bool   // the group that failed wants the last stable version back
	next     int64  // deadline, unix ns
}

func gauge(snap *state.Snapshot, d *model.Deployment, now int64) measure {
	m := measure{complete: true}
	waiting, promotable := 0, 0
	for _, name := range sortedNames(d.TaskGroups) {
		g := d.TaskGroups[name]
		m.healthy += g.Healthy
		m.unhealthy += g.Unhealthy
		canaries := g.DesiredCanaries > 0 && !g.Promoted
		if canaries {
			m.complete = false
			waiting++
			if snap.CanariesAreHealthy(g) {
				if g.AutoPromote {
					promotable++
				}
				continue // for as long as it takes
			}
		} else if g.Healthy >= g.DesiredTotal {
			continue
		}
		m.complete = false
		why := ""
		switch {
		case g.ProgressDeadline == 0 && g.Unhealthy > 0:
			why = deploymentUnhealthy
		case g.RequireProgressBy != 0 && now >= g.RequireProgressBy:
			why = deploymentLate
		case g.RequireProgressBy != 0:
			m.next = soonest(m.next, g.RequireProgressBy)
		}
		if why != "" {
			m.failed, m.revert = why, m.revert || g.AutoRevert
		}
	}
	m.promote = waiting > 0 && promotable == waiting
	return m
}

// replaceUnhealthy asks for the replacement of allocations that run and do not do their work, where the group's policy replaces any.
func replaceUnhealthy(snap *state.Snapshot, d *model.Deployment, j *model.Job) []state.Transition {
	var out []state.Transition
	for a := range snap.AllocsByJob(nil, d.Namespace, d.JobID) {
		g := j.Group(a.TaskGroup)
		if a.DeploymentID != d.ID || a.Terminal() || !state.Unhealthy(a) || g == nil || !sched.MayReschedule(g.Reschedule) {
			continue
		}
		out = append(out, state.Transition{AllocID: a.ID, DesiredTransition: model.DesiredTransition{Reschedule: true}})
	}
	return out
}

// FailDeployment is the entry that ends a deployment as failed. With revert the job goes back to its last stable version, if there is one that differs.
func FailDeployment(snap *state.Snapshot, d *model.Deployment, why string, revert bool, now int64) *command.DeploymentStatus {
	e := &command.DeploymentStatus{Now: now, Update: state.DeploymentStatus{DeploymentID: d.ID, Status: model.DeploymentFailed, Description: why}}
	j := snap.Job(nil, d.Namespace, d.JobID)
	if j == nil {
		return e
	}
	e.Eval = DeploymentEval(d, j)
	if !revert {
		return e
	}
	stable := snap.StableVersion(d.Namespace, d.JobID, d.JobVersion)
	switch {
	case stable == nil:
		e.Update.Description = why + " - no stable job version to auto revert to"
	case state.SameSpec(stable, j):
		e.Update.Description = fmt.Sprintf("%s - not rolling back to stable job version %d as current job has same specification", why, stable.Version)
	default:
		e.Update.Description = fmt.Sprintf("%s - rolling back to job version %d", why, stable.Version)
		e.Rollback = &stable.Version
	}
	return e
}

// RevertsOnFailure reports whether any group of a deployment wants the last stable version back when it fails.
func RevertsOnFailure(d *model.Deployment) bool {
	for _, g := range d.TaskGroups {
		if g.AutoRevert {
			return true
		}
	}
	return false
}

// DeploymentEval is the evaluation that carries a deployment on.
func DeploymentEval(d *model.Deployment, j *model.Job) *model.Evaluation {
	e := JobEval(j, model.TriggerDeployment)
	e.DeploymentID = d.ID
	if d.EvalPriority > 0 {
		e.Priority = d.EvalPriority
	}
	return e
}

// JobEval is an occasion to bring a job to what it asks for.
func JobEval(j *model.Job, trigger string) *model.Evaluation {
	return &model.Evaluation{
		ID: ident.NewNear(), Namespace: j.Namespace, Priority: j.Priority, Type: j.Type, TriggeredBy: trigger, JobID: j.ID,
		JobModifyIndex: j.JobModifyIndex, Status: model.EvalPending,
	}
}

func sortedNames[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for name := range m {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
