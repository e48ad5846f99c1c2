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
