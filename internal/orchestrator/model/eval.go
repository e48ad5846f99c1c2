package model

// Evaluation statuses.
const (
	EvalPending  = "pending"
	EvalBlocked  = "blocked"
	EvalComplete = "complete"
	EvalFailed   = "failed"
	EvalCanceled = "canceled"
)

// What triggered an evaluation.
const (
	TriggerJobRegister   = "job-register"
	TriggerJobDeregister = "job-deregister"
	TriggerNodeUpdate    = "node-update"
	TriggerAllocStop     = "alloc-stop"
	TriggerAllocFailure  = "alloc-failure"
	TriggerQueuedAllocs  = "queued-allocs"
	TriggerMaxPlans      = "max-plan-attempts"
	TriggerFollowUp      = "failed-follow-up"
	TriggerPeriodic      = "periodic-job"
	TriggerNodeDrain     = "node-drain"
	TriggerScheduled     = "scheduled"
	TriggerRolling       = "rolling-update"
	TriggerDeployment    = "deployment-watcher"
	TriggerPreemption    = "preemption"
	TriggerScaling       = "job-scaling"
	TriggerDisconnect    = "max-disconnect-timeout"
	TriggerReconnect     = "reconnect"
	TriggerReschedule    = "alloc-reschedule"
)

// Evaluation is one occasion to bring a job's allocations to what the job asks for.
type Evaluation struct {
	ID                string
	Namespace         string
	Priority          int
	Type              string
	TriggeredBy       string
	JobID             string
	JobModifyIndex    uint64
	NodeID            string
	Status            string
	StatusDescription string
	WaitUntil         int64 // unix ns; 0 = at once
	NextEval          string
	PreviousEval      string
	BlockedEval       string
	FailedTGAllocs    map[string]*AllocMetric
	QueuedAllocations map[string]int
	DeploymentID      string          `codec:",omitempty"`
	ClassEligibility  map[string]bool `codec:",omitempty"` // of a blocked one: computed node classes that were looked at
	EscapedClass      bool            `codec:",omitempty"` // a blocked one that any node may help, whatever its class
	QuotaReached      string          `codec:",omitempty"` // a blocked one that waits for this quota
	SnapshotIndex     uint64
	CreateIndex       uint64
	ModifyIndex       uint64
	CreateTime        int64
	ModifyTime        int64
}

// Terminal reports whether the evaluation has ended.
func (e *Evaluation) Terminal() bool {
	switch e.Status {
	case EvalComplete, EvalFailed, EvalCanceled:
		return true
	}
	return false
}
