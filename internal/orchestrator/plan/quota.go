package plan

import (
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// quotas are what a batch of plans has taken of the quotas so far. A scheduler looks at quotas too, but at a snapshot of its own: here is where a quota is
// held.
type quotas struct {
	snap *state.Snapshot
	held map[string]*model.QuotaUsage // by quota
}

// of is the quota that a namespace names and what is held of it; nil where there is none.
func (q *quotas) of(namespace string) (*model.Quota, *model.QuotaUsage) {
	quota, used := q.snap.NamespaceQuota(namespace)
	if quota == nil {
		return nil, nil
	}
	if q.held[quota.Name] == nil {
		if q.held == nil {
			q.held = map[string]*model.QuotaUsage{}
		}
		q.held[quota.Name] = &used
	}
	return quota, q.held[quota.Name]
}

// stop gives back what a plan's stops held.
func (q *quotas) stop(p *state.Placement) {
	for _, s := range p.Stop {
		if a := q.snap.Alloc(nil, s.AllocID); a != nil {
			if quota, held := q.of(a.Namespace); quota != nil {
				held.Add(a.QuotaUsage(a.Job), -1)
			}
		}
	}
}

// giveBack undoes admit.
func (q *quotas) giveBack(p *state.Placement, a *model.Allocation) {
	if quota, held := q.of(p.Namespace); quota != nil {
		held.Add(a.QuotaUsage(q.snap.Job(nil, p.Namespace, p.JobID)), -1)
	}
}

// admit takes an allocation's part, unless the quota does not allow it.
func (q *quotas) admit(p *state.Placement, a *model.Allocation) bool {
	quota, held := q.of(p.Namespace)
	if quota == nil {
		return true
	}
	use := a.QuotaUsage(q.snap.Job(nil, p.Namespace, p.JobID))
	held.Add(use, 1)
	held.VariableBytes = 0 // which a placement does not change
	if len(quota.Exceeded(*held)) == 0 {
		return true
	}
	held.Add(use, -1)
	return false
}
