package command

import (
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

// dense are the entries that are others in a denser form.
var dense = []row{
	batchable(define(107, NamePlanResult, applyPackedPlans), nothing[PackedPlans]),
	batchable(define(108, NameAllocUpdated, applyPackedUpdates), nothing[PackedUpdates]),
}

func applyPackedPlans(tx *state.Tx, e *PackedPlans) (any, error) {
	for i, b := range e.Place {
		if b == nil {
			continue
		}
		list, err := packed.ReadAllocs(b, nil)
		if err != nil {
			return nil, err
		}
		e.Plans[i].Place = list
	}
	return applyPlanResults(tx, &PlanResults{e.Now, e.Plans})
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
		p := &PackedPlans{Now: e.Now, Plans: make([]*state.Placement, len(e.Plans)), Place: make([][]byte, len(e.Plans))}
		for i, plan := range e.Plans {
			bare := *plan
			bare.Place = nil
			p.Plans[i] = &bare
			if len(plan.Place) == 0 {
				continue
			}
			var err error
			if p.Place[i], err = packed.Allocs(plan.Place, packed.Options{}); err != nil {
				return nil, err
			}
		}
		return p, nil
	case *AllocUpdates:
		b, err := packed.Reports(e.Allocs)
		return &PackedUpdates{e.Now, e.NodeID, b, e.Evals}, err
	}
	return nil, nil
}
