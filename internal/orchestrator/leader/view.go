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
	known uint64     // index up to which both have everything: what came free after it was not seen
	next  *model.Job // that is to be registered; nil = none
}

// View shows a snapshot to the scheduler, for those who want to know what it would decide.
func (l *Leader) View(snap *state.Snapshot) sched.State {
	if t := l.current(); t != nil {
		return t.view(snap)
	}
	return view{snap, sched.NewFleet(snap.Nodes(nil, ""), snap.Allocs(nil, "")), snap.Index(), nil}
}

func (t *term) view(snap *state.Snapshot) view {
	fleet, index := t.ledger.current()
	return view{snap, fleet, min(index, snap.Index()), nil}
}

func (v view) Index() uint64 { return v.snap.Index() }

func (v view) Job(namespace, id string) *model.Job {
	if v.next != nil && v.next.Namespace == namespace && v.next.ID == id {
		return v.next
	}
	return v.snap.Job(nil, namespace, id)
}

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

// Options are the cluster's, but for what a pool has decided for itself.
func (v view) Options(pool string) sched.Options {
	c := v.snap.SchedulerConfig()
	p := c.Preempts()
	o := sched.Options{
		Spread: c.Algorithm == state.AlgorithmSpread, Oversubscribe: c.MemoryOversubscribed, NodeLimit: c.NodeLimit,
		Preempt: sched.Preemption{System: p.System, Sysbatch: p.Sysbatch, Batch: p.Batch, Service: p.Service},
	}
	if n := v.snap.NodePool(nil, pool); n != nil && n.Scheduler != nil {
		if n.Scheduler.Algorithm != "" {
			o.Spread = n.Scheduler.Algorithm == state.AlgorithmSpread
		}
		if n.Scheduler.MemoryOversubscribed != nil {
			o.Oversubscribe = *n.Scheduler.MemoryOversubscribed
		}
	}
	return o
}

// NamespaceQuota sums up what the namespaces of one quota hold.
func (v view) NamespaceQuota(namespace string) (*model.Quota, sched.Usage) {
	var used sched.Usage
	quota := v.snap.QuotaOf(namespace)
	if quota == nil {
		return nil, used
	}
	for n := range v.snap.NamespacesOfQuota(quota.Name) {
		held := v.fleet.Namespace(n.Name)
		used.Merge(&held)
	}
	return quota, used
}
