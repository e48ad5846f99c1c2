package command

import (
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/packed"
	"rockpool/internal/orchestrator/state"
)

// PackedPlans is PlanResults in a form that is many times as dense. What becomes of it is the same.
type PackedPlans struct {
	Now   int64
	Plans []*state.Placement // without what they place
	Place [][]byte           // by plan, see packed.Allocs; nil = nothing
}

func (e *PackedPlans) at() int64 { return e.Now }

// PackedUpdates is AllocUpdates alike.
type PackedUpdates struct {
	Now    int64
	NodeID string
	Allocs []byte // see packed.Reports
	Evals  []*model.Evaluation
}

func (e *PackedUpdates) at() int64 { return e.Now }

// JobPlans places what entries before it in the same batch have registered for the first time. A plan for a job that was there before, or is not there at all,
// is refused. The result is a []state.Placed, one for each.
type JobPlans struct {
	Now   int64
	Plans []*state.Placement // without what they place and without the job's indexes, which only the log gives
	Place [][]byte           // by plan, see packed.Allocs
}

func (e *JobPlans) at() int64 { return e.Now }

// NewJobPlans makes the entry. The plans stay as they are.
func NewJobPlans(now int64, plans []*state.Placement) (*JobPlans, error) {
	bare, place, err := pack(plans)
	return &JobPlans{now, bare, place}, err
}

func applyJobPlans(tx *state.Tx, e *JobPlans) (any, error) {
	if err := unpack(e.Plans, e.Place); err != nil {
		return nil, err
	}
	for _, p := range e.Plans {
		p.JobCreateIndex, p.JobModifyIndex = 0, 0
		if j := tx.Job(nil, p.Namespace, p.JobID); j != nil && j.CreateIndex == tx.At() {
			p.JobCreateIndex, p.JobModifyIndex = j.CreateIndex, j.JobModifyIndex
		}
	}
	return applyPlanResults(tx, &PlanResults{e.Now, e.Plans})
}

// dense are the entries that are others in a denser form.
var dense = []row{
	batchable(define(107, NamePlanResult, applyPackedPlans), nothing[PackedPlans]),
	batchable(define(108, NameAllocUpdated, applyPackedUpdates), nothing[PackedUpdates]),
	batchable(define(110, NamePlanResult, applyJobPlans), nothing[JobPlans]),
}

func applyPackedPlans(tx *state.Tx, e *PackedPlans) (any, error) {
	if err := unpack(e.Plans, e.Place); err != nil {
		return nil, err
	}
	return applyPlanResults(tx, &PlanResults{e.Now, e.Plans})
}

// pack parts plans from what they place.
func pack(plans []*state.Placement) (bare []*state.Placement, place [][]byte, err error) {
	bare, place = make([]*state.Placement, len(plans)), make([][]byte, len(plans))
	for i, plan := range plans {
		c := *plan
		c.Place = nil
		bare[i] = &c
		if len(plan.Place) == 0 {
			continue
		}
		if place[i], err = packed.Allocs(plan.Place, packed.Options{}); err != nil {
			return nil, nil, err
		}
	}
	return bare, place, nil
}

func unpack(plans []*state.Placement, place [][]byte) error {
	if len(place) != len(plans) {
		return fault.New(fault.Invalid, "an entry has %d plans and places for %d", len(plans), len(place))
	}
	for i, b := range place {
		if b == nil {
			continue
		}
		list, err := packed.ReadAllocs(b, nil)
		if err != nil {
			return err
		}
		plans[i].Place = list
	}
	return nil
}

func applyPackedUpdates(tx *state.Tx, e *PackedUpdates) (any, error) {
	list, err := packed.ReadReports(e.Allocs)
	if err != nil {
		return nil, err
	}
	return applyAllocUpdates(tx, &AllocUpdates{e.Now, e.NodeID, list, e.Evals})
}

// Pack is the denser form of an entry, or nil where it has none. The entry stays as it is.
func Pack(entry any) (any, error) {
	switch e := entry.(type) {
	case *PlanResults:
		bare, place, err := pack(e.Plans)
		return &PackedPlans{e.Now, bare, place}, err
	case *AllocUpdates:
		b, err := packed.Reports(e.Allocs)
		return &PackedUpdates{e.Now, e.NodeID, b, e.Evals}, err
	}
	return nil, nil
}
