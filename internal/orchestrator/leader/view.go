package leader

import (
	"iter"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
)

// view shows a snapshot to the scheduler.
type view struct{ snap *state.Snapshot }

func (v view) Index() uint64                       { return v.snap.Index() }
func (v view) Job(namespace, id string) *model.Job { return v.snap.Job(nil, namespace, id) }
func (v view) AllocsByJob(namespace, id string) iter.Seq[*model.Allocation] {
	return v.snap.AllocsByJob(nil, namespace, id)
}
func (v view) AllocsByNode(id string) iter.Seq[*model.Allocation] {
	return v.snap.AllocsByNode(nil, id)
}
func (v view) Usage(id string) *sched.Usage { return v.snap.Usage(id) }
func (v view) Nodes() iter.Seq[*model.Node] { return v.snap.Nodes(nil, "") }
func (v view) Node(id string) *model.Node   { return v.snap.Node(nil, id) }

func (v view) Options() sched.Options {
	c := v.snap.SchedulerConfig()
	return sched.Options{Spread: c.Algorithm == "spread", Oversubscribe: c.MemoryOversubscribed, NodeLimit: c.NodeLimit}
}
