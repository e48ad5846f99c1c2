package command

import (
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// Names of the entries of deployments, drains, templates of jobs and what goes along with jobs.
const (
	NameDeploymentStatus  = "DeploymentStatusUpdate"
	NameDeploymentPromote = "DeploymentPromotion"
	NameDeploymentHealth  = "DeploymentAllocHealth"
	NameNodeDrain         = "NodeDrain"
	NameNodeDeregistered  = "NodeDeregistration"
	NameEvalsDeleted      = "EvaluationsDeleted"
)

// life are the entries of what happens to jobs, deployments and nodes in the course of time.
var life = []row{
	define(30, NameDeploymentStatus, applyDeploymentStatus),
	define(31, NameDeploymentPromote, applyDeploymentPromote),
	define(32, NameDeploymentHealth, applyDeploymentHealth),
	define(33, NameNodeDrain, applyNodeDrain),
	define(34, NameAllocDesired, applyAllocTransitions),
	define(35, NameNodeDeregistered, applyNodeDeregister),
	define(36, "NodeSilence", applyNodeSilence),
	define(37, "JobStability", applyJobStability),
	define(38, "JobVersionTag", applyJobVersionTag),
	define(39, NameJobRegistered, applyPeriodicLaunch),
	define(40, NameJobRegistered, applyJobDispatch),
	define(41, NameJobRegistered, applyJobScale),
	define(42, NameEvalsDeleted, applyEvalDelete),
	define(43, "ReconcileSummaries", applyReconcileSummaries),
	define(44, "DeploymentsDeleted", applyDeploymentDelete),
	batchable(define(45, NameJobRegistered, applyJobMark), func(e *JobMark) string { return jobName(e.Namespace, e.JobID) }),
}

// Made is the result of what makes a job: the job as it is now, and whether the entry made it. Nil where there is no job.
type Made struct {
	Job *model.Job
	New bool
}

func putEvals(tx *state.Tx, evals ...*model.Evaluation) {
	for _, e := range evals {
		if e != nil {
			tx.PutEval(e)
		}
	}
}

// DeploymentStatus changes a deployment's status, and registers an earlier version of its job when it is to be rolled back. The result is a *Made with the
// job of the rollback, or a conflict when the deployment has ended already: then nothing was done.
type DeploymentStatus struct {
	Now      int64
	Update   state.DeploymentStatus
	Rollback *uint64 `codec:",omitempty"` // version
	Eval     *model.Evaluation
}

func (e *DeploymentStatus) at() int64 { return e.Now }

func applyDeploymentStatus(tx *state.Tx, e *DeploymentStatus) (any, error) {
	d := tx.Deployment(nil, e.Update.DeploymentID)
	if d == nil {
		return nil, fault.New(fault.NotFound, "deployment not found")
	}
	if !tx.SetDeploymentStatus(e.Update) {
		return nil, fault.New(fault.Conflict, "the deployment has ended: it is %s", d.Status)
	}
	made := &Made{}
	if j := tx.Job(nil, d.Namespace, d.JobID); e.Rollback != nil && j != nil && j.CreateIndex == d.JobCreateIndex && j.Version == d.JobVersion {
		var err error
		if made.Job, err = tx.Rollback(d.Namespace, d.JobID, *e.Rollback); err != nil {
			return nil, err
		}
		made.New = true
	}
	if e.Eval != nil {
		if made.Job != nil {
			e.Eval.JobModifyIndex = made.Job.JobModifyIndex
		}
		tx.PutEval(e.Eval)
	}
	return made, nil
}

// DeploymentPromote lets groups of a deployment go on after their canaries. No groups = all.
type DeploymentPromote struct {
	Now          int64
	DeploymentID string
	Groups       []string
	Eval         *model.Evaluation
}

func (e *DeploymentPromote) at() int64 { return e.Now }

func applyDeploymentPromote(tx *state.Tx, e *DeploymentPromote) (any, error) {
	if err := tx.Promote(e.DeploymentID, e.Groups); err != nil {
		return nil, err
	}
	putEvals(tx, e.Eval)
	return nil, nil
}

// DeploymentHealth takes an operator's word for the health of a deployment's allocations.
type DeploymentHealth struct {
	Now                int64
	DeploymentID       string
	Healthy, Unhealthy []string
	Eval               *model.Evaluation
}

func (e *DeploymentHealth) at() int64 { return e.Now }

func applyDeploymentHealth(tx *state.Tx, e *DeploymentHealth) (any, error) {
	if err := tx.SetHealth(e.DeploymentID, e.Healthy, e.Unhealthy); err != nil {
		return nil, err
	}
	putEvals(tx, e.Eval)
	return nil, nil
}

// DeploymentDelete removes deployments that have ended. The result is an int: how many.
type DeploymentDelete struct {
	Now int64
	IDs []string
}

func (e *DeploymentDelete) at() int64 { return e.Now }

func applyDeploymentDelete(tx *state.Tx, e *DeploymentDelete) (any, error) {
	return tx.DeleteDeployments(e.IDs), nil
}

// NodeDrain begins, changes or ends drains. The result is an int: how many nodes it concerned.
type NodeDrain struct {
	Now     int64
	Updates []state.DrainUpdate
	Evals   []*model.Evaluation
}

func (e *NodeDrain) at() int64 { return e.Now }

func applyNodeDrain(tx *state.Tx, e *NodeDrain) (any, error) {
	n := 0
	for _, u := range e.Updates {
		if tx.SetDrain(u) {
			n++
		}
	}
	if n > 0 {
		putEvals(tx, e.Evals...)
	}
	return n, nil
}

// AllocTransitions notes what is wanted of allocations, and the evaluations that see to it.
type AllocTransitions struct {
	Now         int64
	Transitions []state.Transition
	Evals       []*model.Evaluation
}

func (e *AllocTransitions) at() int64 { return e.Now }

func applyAllocTransitions(tx *state.Tx, e *AllocTransitions) (any, error) {
	for _, tr := range e.Transitions {
		tx.Transit(tr)
	}
	putEvals(tx, e.Evals...)
	return nil, nil
}

// NodeDeregister forgets nodes. The result is an int: how many there were.
type NodeDeregister struct {
	Now     int64
	NodeIDs []string
	Evals   []*model.Evaluation
}

func (e *NodeDeregister) at() int64 { return e.Now }

func applyNodeDeregister(tx *state.Tx, e *NodeDeregister) (any, error) {
	n := 0
	for _, id := range e.NodeIDs {
		if tx.DeregisterNode(id) {
			n++
		}
	}
	if n > 0 {
		putEvals(tx, e.Evals...)
	}
	return n, nil
}

// NodeSilence tells the next leader which nodes have not been heard of for a while.
type NodeSilence struct {
	Now    int64
	Silent []state.SilentNode
	Heard  []string
}

func (e *NodeSilence) at() int64 { return e.Now }

func applyNodeSilence(tx *state.Tx, e *NodeSilence) (any, error) {
	tx.NoteSilence(e.Silent, e.Heard)
	return nil, nil
}

// JobStability says whether a version of a job works. The result is a bool: there is such a version.
type JobStability struct {
	Now              int64
	Namespace, JobID string
	Version          uint64
	Stable           bool
}

func (e *JobStability) at() int64 { return e.Now }

func applyJobStability(tx *state.Tx, e *JobStability) (any, error) {
	return tx.SetStability(e.Namespace, e.JobID, e.Version, e.Stable), nil
}

// JobVersionTag names a version of a job, or with a nil tag takes its name away. The result is a bool: there is such a version.
type JobVersionTag struct {
	Now              int64
	Namespace, JobID string
	Version          uint64
	Tag              *model.VersionTag
}

func (e *JobVersionTag) at() int64 { return e.Now }

func applyJobVersionTag(tx *state.Tx, e *JobVersionTag) (any, error) {
	return tx.TagVersion(e.Namespace, e.JobID, e.Version, e.Tag), nil
}

// PeriodicLaunch starts a periodic job for one occasion. The result is a *Made; without a job when there was nothing to start.
type PeriodicLaunch struct {
	Now   int64
	Child state.Child
	Time  int64 // of the occasion, unix ns
	Force bool
	Eval  *model.Evaluation
}

func (e *PeriodicLaunch) at() int64 { return e.Now }

func applyPeriodicLaunch(tx *state.Tx, e *PeriodicLaunch) (any, error) {
	j, err := tx.LaunchPeriodic(e.Child, e.Time, e.Force)
	return made(tx, j, j != nil, e.Eval, err)
}

// JobDispatch makes a job of a parameterized one. The result is a *Made.
type JobDispatch struct {
	Now   int64
	Child state.Child
	Eval  *model.Evaluation
}

func (e *JobDispatch) at() int64 { return e.Now }

func applyJobDispatch(tx *state.Tx, e *JobDispatch) (any, error) {
	j, isNew, err := tx.Dispatch(e.Child)
	return made(tx, j, isNew, e.Eval, err)
}

func made(tx *state.Tx, j *model.Job, isNew bool, e *model.Evaluation, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	if isNew && e != nil && !j.IsTemplate() {
		e.JobID, e.Type, e.Priority, e.JobModifyIndex = j.ID, j.Type, j.Priority, j.JobModifyIndex
		tx.PutEval(e)
	}
	return &Made{j, isNew}, nil
}

// JobScale sets the count of a group, or notes why somebody who scales did not. The result is a *Registered, or a conflict when the job has changed.
type JobScale struct {
	Now                     int64
	Namespace, JobID, Group string
	AtIndex                 uint64 // JobModifyIndex; 0 = any
	Event                   state.ScalingEvent
	Eval                    *model.Evaluation
}

func (e *JobScale) at() int64 { return e.Now }

func applyJobScale(tx *state.Tx, e *JobScale) (any, error) {
	j, err := tx.CheckIndex(e.Namespace, e.JobID, e.AtIndex)
	if err != nil {
		return nil, err
	}
	event := e.Event
	event.Group = e.Group
	if g := j.Group(e.Group); g != nil {
		event.PreviousCount = int64(g.Count)
	}
	if event.Count != nil {
		if j, err = tx.ScaleJob(e.Namespace, e.JobID, e.Group, int(*event.Count)); err != nil {
			return nil, err
		}
		if e.Eval != nil {
			e.Eval.JobModifyIndex = j.JobModifyIndex
			tx.PutEval(e.Eval)
			event.EvalID = e.Eval.ID
		}
	}
	tx.AddScalingEvent(e.Namespace, e.JobID, event)
	return &Registered{j.JobModifyIndex}, nil
}

// JobMark sets keys in the meta of a group that places nothing, which needs no evaluation. The result is a *Registered; a conflict when the job has changed;
// Unprocessable where only a registration can do it.
type JobMark struct {
	Now                     int64
	Namespace, JobID, Group string
	AtIndex                 uint64 // JobModifyIndex
	Meta                    map[string]string
}

func (e *JobMark) at() int64 { return e.Now }

func applyJobMark(tx *state.Tx, e *JobMark) (any, error) {
	j, err := tx.MarkJob(e.Namespace, e.JobID, e.Group, e.Meta, e.AtIndex)
	if err != nil {
		return nil, err
	}
	return &Registered{j.JobModifyIndex}, nil
}

// EvalDelete removes evaluations. The result is an int: how many there were.
type EvalDelete struct {
	Now int64
	IDs []string
}

func (e *EvalDelete) at() int64 { return e.Now }

func applyEvalDelete(tx *state.Tx, e *EvalDelete) (any, error) { return tx.DeleteEvals(e.IDs), nil }

// ReconcileSummaries counts anew what is kept as counts. The result is an int: how many were wrong.
type ReconcileSummaries struct{ Now int64 }

func (e *ReconcileSummaries) at() int64 { return e.Now }

func applyReconcileSummaries(tx *state.Tx, _ *ReconcileSummaries) (any, error) {
	return tx.RecountChildren(), nil
}
