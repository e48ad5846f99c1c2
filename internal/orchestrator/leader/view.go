package leader

import (
	"iter"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
)

// view shows a snapshot to the scheduler.
type view struct {
	snap  *state.Snapshot
	fleet *sched.Fleet
}

// View shows a snapshot to the scheduler, for those who want to know what it would decide; see [sched.Proposed].
func (l *Leader) View(snap *state.Snapshot) sched.State {
	if t := l.current(); t != nil {
		return t.view(snap)
	}
	return view{snap, sched.NewFleet(snap.Nodes(nil, ""), snap.Allocs(nil, ""))}
}

func (t *term) view(snap *state.Snapshot) view { return view{snap, t.ledger.current()} }

func (v view) Index() uint64                       { return v.snap.Index() }
func (v view) Job(namespace, id string) *model.Job { return v.snap.Job(nil, namespace, id) }
func (v view) AllocsByJob(namespace, id string) iter.Seq[*model.Allocation] {
	return v.snap.AllocsByJob(nil, namespace, id)
}
func (v view) AllocsByNode(id string) iter.Seq[*model.Allocation] {
	return v.snap.AllocsByNode(nil, id)
}
func (v view) Fleet() *sched.Fleet                    { return v.fleet }
func (v view) Deployment(id string) *model.Deployment { return v.snap.Deployment(nil, id) }
func (v view) LatestDeployment(namespace, job string) *model.Deployment {
	return v.snap.LatestDeployment(nil, namespace, job)
}

// Options are the cluster's, and where the pool has its own, those.
func (v view) Options(pool string) sched.Options {
	c := v.snap.SchedulerConfig()
	p := c.Preempts()
	o := sched.Options{
		Spread: c.Algorithm == state.AlgorithmSpread, Oversubscribe: c.MemoryOversubscribed, NodeLimit: c.NodeLimit,
		Preempt: sched.Preemption{System: p.System, Sysbatch: p.Sysbatch, Batch: p.Batch, Service: p.Service},
	}
	if np := v.snap.NodePool(nil, pool); np != nil && np.Scheduler != nil {
		if np.Scheduler.Algorithm != "" {
			o.Spread = np.Scheduler.Algorithm == state.AlgorithmSpread
		}
		if np.Scheduler.MemoryOversubscribed != nil {
			o.Oversubscribe = *np.Scheduler.MemoryOversubscribed
		}
	}
	return o
}

// NamespaceQuota is the quota that a namespace names. What allocations hold under it is counted until their nodes say that they have ended.
func (v view) NamespaceQuota(namespace string) (*model.Quota, sched.Usage) {
	var held sched.Usage
	n := v.snap.Namespace(nil, namespace)
	if n == nil || n.Quota == "" {
		return nil, held
	}
	q := v.snap.Quota(nil, n.Quota)
	if q == nil {
		return nil, held
	}
	for o := range v.snap.Namespaces(nil, "") {
		if o.Quota == q.Name {
			used := v.fleet.Namespace(o.Name)
			held.Merge(&used)
		}
	}
	return q, held
}
