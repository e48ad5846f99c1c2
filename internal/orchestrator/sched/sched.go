package sched

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"

	"rockpool/internal/orchestrator/model"
)

// State is what scheduling needs to see. It must not change meanwhile.
type State interface {
	Index() uint64
	Job(namespace, id string) *model.Job
	AllocsByJob(namespace, id string) iter.Seq[*model.Allocation]
	AllocsByNode(nodeID string) iter.Seq[*model.Allocation]
	Usage(nodeID string) *Usage // what is held of a node; the scheduler does not change it
	Nodes() iter.Seq[*model.Node]
	Node(id string) *model.Node
	Options() Options
}

// Options are what operators may change.
type Options struct {
	Spread        bool // prefer empty nodes to full ones
	Oversubscribe bool // a task may use up to its memory_max
	NodeLimit     int  // nodes scored per placement; 0 = all
}

// Decision is what one evaluation comes to.
type Decision struct {
	Place     []*model.Allocation
	Update    []*model.Allocation // in place
	Stop      []Stop
	FollowUps []FollowUp
	Failed    map[string]*model.AllocMetric // groups that could not reach their count, with the reason
	Queued    map[string]int                // by group: how many are still to be placed
	Counts    map[string]*Counts            // by group: what becomes of its allocations; see Annotate
}

// Stop ends an allocation.
type Stop struct {
	Alloc       *model.Allocation
	Description string
	Lost        bool // its node is down and cannot say
}

// FollowUp replaces a failed allocation later.
type FollowUp struct {
	AllocID string
	At      int64
}

// Empty reports whether there is nothing to do.
func (d *Decision) Empty() bool {
	return len(d.Place)+len(d.Update)+len(d.Stop)+len(d.FollowUps) == 0
}

// Schedule decides for one evaluation at time now.
func Schedule(s State, e *model.Evaluation, now int64) *Decision {
	p := &pass{
		state: s, eval: e, now: now, opts: s.Options(), job: s.Job(e.Namespace, e.JobID),
		used: map[string]*Usage{},
		out:  &Decision{Failed: map[string]*model.AllocMetric{}, Queued: map[string]int{}},
	}
	p.allocs = slices.SortedFunc(s.AllocsByJob(e.Namespace, e.JobID), byAge)
	if p.job == nil || p.job.Stop {
		for _, a := range p.allocs {
			p.stop(a, "alloc not needed due to job update")
		}
		return p.out
	}
	for _, a := range p.allocs {
		if g := p.job.Group(a.TaskGroup); g == nil {
			p.stop(a, "alloc not needed due to job update")
		}
	}
	for _, g := range p.job.TaskGroups {
		p.out.Queued[g.Name] = 0
		if p.job.Type == model.JobTypeSystem || p.job.Type == model.JobTypeSysbatch {
			p.everywhere(g)
		} else {
			p.counted(g)
		}
	}
	return p.out
}

func byAge(a, b *model.Allocation) int {
	return cmp.Or(cmp.Compare(a.CreateIndex, b.CreateIndex), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
}

// pass is one evaluation under way.
type pass struct {
	state  State
	eval   *model.Evaluation
	now    int64
	opts   Options
	job    *model.Job
	allocs []*model.Allocation
	used   map[string]*Usage // of the nodes that this pass placed something on, with that
	nodes  []*model.Node     // ready ones of the job's datacenters and pool; set by candidates
	placed []*model.Allocation
	out    *Decision
}

func (p *pass) stop(a *model.Allocation, why string) {
	if a.DesiredStatus != model.DesiredRun {
		return
	}
	if a.ClientTerminal() {
		return
	}
	p.out.Stop = append(p.out.Stop, Stop{Alloc: a, Description: why})
}

// usage is what is held of a node.
func (p *pass) usage(nodeID string) *Usage {
	if u := p.used[nodeID]; u != nil {
		return u
	}
	return p.state.Usage(nodeID)
}

// newID derives an allocation's id from what it is for, as a UUID. The snapshot is part of it, so that an evaluation that is delivered
// again after its first allocation has ended makes another one.
func (p *pass) newID(name string) (string, uint64) {
	h := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d/%d", p.eval.ID, name, p.state.Index(), len(p.out.Place)))
	b := h[:16]
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80 // version 8: made by a rule of our own
	x := hex.EncodeToString(b)
	return x[:8] + "-" + x[8:12] + "-" + x[12:16] + "-" + x[16:20] + "-" + x[20:], binary.BigEndian.Uint64(h[16:])
}
