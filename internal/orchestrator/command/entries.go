package command

import (
	"slices"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/packed"
	"rockpool/internal/orchestrator/state"
)

// Names of entries as the event stream shows them.
const (
	NameJobRegistered   = "JobRegistered"
	NameJobDeregistered = "JobDeregistered"
	NameEvalUpdated     = "EvaluationUpdated"
	NamePlanResult      = "PlanResult"
	NameAllocUpdated    = "AllocationUpdated"
	NameAllocDesired    = "AllocationUpdateDesiredStatus"
	NameNodeRegistered  = "NodeRegistration"
	NameNodeStatus      = "NodeStatus"
	NameNodeEligibility = "NodeEligibility"
	NameSchedulerConfig = "SchedulerConfig"
	NameCollected       = "JobBatchDeregistered"
)

// core are the entries of jobs, evaluations, plans and nodes. Other areas have files and lists of their own; see table.
var core = []row{
	batchable(define(1, NameJobRegistered, applyJobRegister), func(e *JobRegister) string { return jobName(e.Job.Namespace, e.Job.ID) }),
	batchable(define(2, NameJobDeregistered, applyJobDeregister), func(e *JobDeregister) string { return jobName(e.Namespace, e.JobID) }),
	batchable(define(3, NameEvalUpdated, applyEvalUpdate), nothing[EvalUpdate]),
	batchable(define(4, NamePlanResult, applyPlanResults), nothing[PlanResults]),
	batchable(define(5, NameAllocUpdated, applyAllocUpdates), nothing[AllocUpdates]),
	define(6, NameAllocDesired, applyAllocStop),
	define(7, NameNodeRegistered, applyNodeRegister),
	define(8, NameNodeStatus, applyNodeStatus),
	define(9, NameNodeEligibility, applyNodeEligibility),
	define(10, NameSchedulerConfig, applySchedulerConfig),
	batchable(define(11, NameCollected, applyCollect), nothing[Collect]),
}

// JobRegister puts a job and the evaluation that brings it about. The result is a *Registered, or a conflict when
// EnforceIndex does not hold.
type JobRegister struct {
	Now          int64
	Job          *model.Job
	Eval         *model.Evaluation // nil = none
	EnforceIndex bool
	AtIndex      uint64
	Submission   *state.Submission `codec:",omitempty"` // the text it was made of; nil = not known
}

// Registered is the result of a JobRegister.
type Registered struct{ JobModifyIndex uint64 }

func (e *JobRegister) at() int64 { return e.Now }

// read reads the entry, whose job may share its groups with others.
func (e *JobRegister) read(data []byte) error {
	in := struct {
		*JobRegister
		Job packed.JobIn // in place of the entry's
	}{JobRegister: e}
	err := packed.Decode(data, &in)
	e.Job = in.Job.Job
	return err
}

func applyJobRegister(tx *state.Tx, e *JobRegister) (any, error) {
	j, err := tx.RegisterJob(e.Job, e.EnforceIndex, e.AtIndex)
	if err != nil {
		return nil, err
	}
	if e.Submission != nil {
		tx.PutSubmission(e.Submission)
	}
	if e.Eval != nil {
		e.Eval.JobModifyIndex = j.JobModifyIndex
		tx.PutEval(e.Eval)
	}
	return &Registered{j.JobModifyIndex}, nil
}

// JobDeregister stops or purges a job. The result is a bool: there was one.
type JobDeregister struct {
	Now       int64
	Namespace string
	JobID     string
	Purge     bool
	Eval      *model.Evaluation

	NoShutdownDelay bool `codec:",omitempty"`
}

func (e *JobDeregister) at() int64 { return e.Now }

func applyJobDeregister(tx *state.Tx, e *JobDeregister) (any, error) {
	if e.NoShutdownDelay && !e.Purge {
		for _, a := range slices.Collect(tx.AllocsByJob(nil, e.Namespace, e.JobID)) {
			if !a.Terminal() {
				tx.Transit(state.Transition{AllocID: a.ID, DesiredTransition: model.DesiredTransition{NoShutdownDelay: true}})
			}
		}
	}
	if tx.DeregisterJob(e.Namespace, e.JobID, e.Purge) == nil {
		return false, nil
	}
	if e.Eval != nil {
		tx.PutEval(e.Eval)
	}
	return true, nil
}

// EvalUpdate creates evaluations and finishes others.
type EvalUpdate struct {
	Now    int64
	Create []*model.Evaluation
	Finish []*model.Evaluation // ignored where they have ended meanwhile
}

func (e *EvalUpdate) at() int64 { return e.Now }

func applyEvalUpdate(tx *state.Tx, e *EvalUpdate) (any, error) {
	for _, ev := range e.Create {
		tx.PutEval(ev)
	}
	for _, ev := range e.Finish {
		tx.FinishEval(ev)
	}
	return nil, nil
}

// PlanResults carries many verified plans. The result is a []state.Placed, one for each.
type PlanResults struct {
	Now   int64
	Plans []*state.Placement
}

func (e *PlanResults) at() int64 { return e.Now }

func applyPlanResults(tx *state.Tx, e *PlanResults) (any, error) {
	done := make([]state.Placed, len(e.Plans))
	for i, p := range e.Plans {
		done[i] = tx.ApplyPlan(p)
	}
	return done, nil
}

// AllocUpdates is what a node reports, and the evaluations that follow from it.
type AllocUpdates struct {
	Now    int64
	NodeID string
	Allocs []*model.AllocUpdate
	Evals  []*model.Evaluation
}

func (e *AllocUpdates) at() int64 { return e.Now }

func applyAllocUpdates(tx *state.Tx, e *AllocUpdates) (any, error) {
	for _, u := range e.Allocs {
		tx.ReportAlloc(e.NodeID, u)
	}
	for _, ev := range e.Evals {
		tx.PutEval(ev)
	}
	return nil, nil
}

// AllocStop asks for an allocation's end and its replacement. The result is a bool: there was one.
type AllocStop struct {
	Now         int64
	AllocID     string
	Description string
	Eval        *model.Evaluation

	Reschedule      bool `codec:",omitempty"` // its replacement counts as a reschedule: it goes to another node
	NoShutdownDelay bool `codec:",omitempty"`
}

func (e *AllocStop) at() int64 { return e.Now }

func applyAllocStop(tx *state.Tx, e *AllocStop) (any, error) {
	if e.Reschedule || e.NoShutdownDelay {
		tx.Transit(state.Transition{AllocID: e.AllocID, DesiredTransition: model.DesiredTransition{Reschedule: e.Reschedule, NoShutdownDelay: e.NoShutdownDelay}})
	}
	if !tx.StopAlloc(e.AllocID, e.Description) {
		return false, nil
	}
	if e.Eval != nil {
		tx.PutEval(e.Eval)
	}
	return true, nil
}

// NodeRegister puts a node.
type NodeRegister struct {
	Now   int64
	Node  *model.Node
	Evals []*model.Evaluation
}

func (e *NodeRegister) at() int64 { return e.Now }

func applyNodeRegister(tx *state.Tx, e *NodeRegister) (any, error) {
	tx.RegisterNode(e.Node)
	for _, ev := range e.Evals {
		tx.PutEval(ev)
	}
	return nil, nil
}

// NodeStatus changes a node's status. The result is a bool: it was another one.
type NodeStatus struct {
	Now         int64
	NodeID      string
	Status      string
	Description string
	Evals       []*model.Evaluation
}

func (e *NodeStatus) at() int64 { return e.Now }

func applyNodeStatus(tx *state.Tx, e *NodeStatus) (any, error) {
	if !tx.SetNodeStatus(e.NodeID, e.Status, e.Description) {
		return false, nil
	}
	for _, ev := range e.Evals {
		tx.PutEval(ev)
	}
	return true, nil
}

// NodeEligibility changes whether a node gets new allocations. The result is a bool: there is such a node.
type NodeEligibility struct {
	Now         int64
	NodeID      string
	Eligibility string
	Evals       []*model.Evaluation
}

func (e *NodeEligibility) at() int64 { return e.Now }

func applyNodeEligibility(tx *state.Tx, e *NodeEligibility) (any, error) {
	if !tx.SetNodeEligibility(e.NodeID, e.Eligibility) {
		return false, nil
	}
	for _, ev := range e.Evals {
		tx.PutEval(ev)
	}
	return true, nil
}

// SchedulerConfig replaces the scheduler's configuration. The result is a bool: it was done.
type SchedulerConfig struct {
	Now     int64
	Config  *state.SchedulerConfig
	CAS     bool
	AtIndex uint64
}

func (e *SchedulerConfig) at() int64 { return e.Now }

func applySchedulerConfig(tx *state.Tx, e *SchedulerConfig) (any, error) {
	return tx.SetSchedulerConfig(e.Config, e.CAS, e.AtIndex), nil
}

// Collect removes what nobody needs any more. The result is an int: how many records went.
type Collect struct {
	Now        int64
	Evals      []string
	Allocs     []string
	Jobs       [][2]string // namespace, id
	Tombstones []string
}

func (e *Collect) at() int64 { return e.Now }

func applyCollect(tx *state.Tx, e *Collect) (any, error) {
	return tx.Collect(e.Evals, e.Allocs, e.Jobs, e.Tombstones), nil
}
