package sched

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"iter"
	"slices"
	"strconv"

	"rockpool/internal/orchestrator/model"
)

// State is what scheduling needs to see. It must not change meanwhile.
type State interface {
	Index() uint64
	Job(namespace, id string) *model.Job
	AllocsByJob(namespace, id string) iter.Seq[*model.Allocation]
	AllocsByNode(nodeID string) iter.Seq[*model.Allocation]
	// Fleet is the nodes and what is held of each. It may be newer than the rest.
	Fleet() *Fleet
	// Options are those for a node pool.
	Options(pool string) Options
	// Deployment is the deployment of that id, or nil.
	Deployment(id string) *model.Deployment
	// LatestDeployment is the newest one of a job, or nil.
	LatestDeployment(namespace, job string) *model.Deployment
	// NamespaceQuota is the quota that bounds a namespace, and what is held under it, in all namespaces that share it; nil = there is none.
	NamespaceQuota(namespace string) (*model.Quota, Usage)
}

// Options are what operators may change.
type Options struct {
	Spread        bool // prefer empty nodes to full ones
	Oversubscribe bool // a task may use up to its memory_max
	NodeLimit     int  // nodes scored per placement; 0 = as many as the group needs to be placed well
	Preempt       Preemption
}

// Preemption says for which types of jobs allocations of lower priority may be ended.
type Preemption struct{ System, Sysbatch, Batch, Service bool }

func (o Preemption) of(jobType string) bool {
	switch jobType {
	case model.JobTypeSystem:
		return o.System
	case model.JobTypeSysbatch:
		return o.Sysbatch
	case model.JobTypeBatch:
		return o.Batch
	}
	return o.Service
}

// Decision is what one evaluation comes to.
type Decision struct {
	Place     []*model.Allocation
	Update    []*model.Allocation // in place
	Join      []*model.Allocation // those of Update that become part of DeploymentID
	Stop      []Stop
	FollowUps []FollowUp
	RollAt    int64                         // unix ns; when a system job goes on being updated; 0 = it need not
	Failed    map[string]*model.AllocMetric // groups that could not reach their count, with the reason
	Queued    map[string]int                // by group: how many are still to be placed
	Counts    map[string]*Counts            // by group: what becomes of its allocations; see Annotate

	Deployment        *model.Deployment // to begin
	DeploymentUpdates []DeploymentUpdate
	DeploymentID      string // the one that the job's version is rolled out by; "" = none

	Classes map[string]bool // computed node classes that were looked at for what found no room; true = it may run there
	Escaped bool            // a node may help whatever its class
	Quota   string          // that was reached
	Need    Size            // at least so much must come free on one node to be of use
}

// Size is what an allocation needs of a node, as far as it can be added up. Devices are instances of any kind.
type Size struct{ CPU, MemoryMB, DiskMB, Devices int }

// Stop ends an allocation, or with Unknown notes that nobody knows what becomes of it.
type Stop struct {
	Alloc       *model.Allocation
	Description string
	Lost        bool   // its node is down and cannot say
	Unknown     bool   // its node is cut off; it is to go on running
	PreemptedBy string // id of the allocation that it makes room for
}

// FollowUp looks at an allocation again later.
type FollowUp struct {
	AllocID string
	At      int64
	Trigger string
}

// DeploymentUpdate changes the status of a deployment.
type DeploymentUpdate struct{ ID, Status, Description string }

// Empty reports whether there is nothing to do.
func (d *Decision) Empty() bool {
	return len(d.Place)+len(d.Update)+len(d.Stop)+len(d.FollowUps)+len(d.DeploymentUpdates) == 0 && d.Deployment == nil
}

// Descriptions of allocations that are stopped. The first and the last are Nomad's words, which its clients show.
const (
	whyNotNeeded   = "alloc not needed due to job update"
	whyUpdating    = "alloc is being updated due to job update"
	whyLost        = "alloc is lost since its node is down"
	whyUnknown     = "alloc is unknown since its node is disconnected"
	whyReconnected = "alloc not needed due to disconnected client reconnect"
	whyRescheduled = "alloc was rescheduled because of a request"
	whyCanary      = "alloc not needed since its deployment has ended"
	whyMigrating   = "alloc is being migrated"
	whyPreempted   = "alloc makes room for one of higher priority"
)

// Schedule decides for one evaluation at time now.
func Schedule(s State, e *model.Evaluation, now int64) *Decision {
	p := &pass{
		state: s, eval: e, now: now, fleet: s.Fleet(), job: s.Job(e.Namespace, e.JobID), index: s.Index(),
		used: map[int32]*Usage{}, stopping: map[*model.Allocation]bool{}, next: map[string]*model.Allocation{},
		out: &Decision{Failed: map[string]*model.AllocMetric{}, Queued: map[string]int{}, Counts: map[string]*Counts{}},
	}
	p.allocs = slices.SortedFunc(s.AllocsByJob(e.Namespace, e.JobID), byAge)
	for _, a := range p.allocs {
		if a.PreviousAllocation != "" {
			p.next[a.PreviousAllocation] = a
		}
		p.again = p.again || a.EvalID == e.ID
	}
	p.findDeployment()
	if p.job == nil || p.job.Stop {
		for _, a := range p.allocs {
			p.stop(a, whyNotNeeded)
		}
		return p.out
	}
	if p.job.IsTemplate() {
		return p.out // what is made of it is placed
	}
	p.opts = s.Options(p.job.NodePool)
	p.quota, p.held = s.NamespaceQuota(e.Namespace)
	groups := map[string][]*model.Allocation{}
	for _, a := range p.allocs {
		if p.job.Group(a.TaskGroup) == nil {
			p.stop(a, whyNotNeeded)
			continue
		}
		groups[a.TaskGroup] = append(groups[a.TaskGroup], a)
	}
	for _, g := range p.job.TaskGroups {
		p.out.Queued[g.Name] = 0
		p.counts(g.Name)
		if p.job.Type == model.JobTypeSystem || p.job.Type == model.JobTypeSysbatch {
			p.everywhere(g, groups[g.Name])
		} else {
			p.counted(g, groups[g.Name])
		}
	}
	if p.job.AllAtOnce && len(p.out.Failed) > 0 {
		p.takeBack()
	}
	p.describe()
	return p.out
}

func byAge(a, b *model.Allocation) int {
	return cmp.Or(cmp.Compare(a.CreateIndex, b.CreateIndex), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
}

// pass is one evaluation under way.
type pass struct {
	state    State
	eval     *model.Evaluation
	now      int64
	index    uint64
	opts     Options
	fleet    *Fleet
	job      *model.Job
	allocs   []*model.Allocation
	next     map[string]*model.Allocation // by the id of the one that it replaces
	used     map[int32]*Usage             // by slot, where this pass changed it
	stopping map[*model.Allocation]bool
	quota    *model.Quota
	held     Usage  // under the quota, with what this pass placed
	row      uint32 // where the ids of its allocations are, but for the first
	again    bool   // an earlier pass of this evaluation has placed something
	rollout  *model.Deployment
	wanting  bool           // out.Need is set
	evicted  map[string]int // allocations that were preempted, by job and group
	out      *Decision
}

func (p *pass) counts(group string) *Counts {
	c := p.out.Counts[group]
	if c == nil {
		c = &Counts{}
		p.out.Counts[group] = c
	}
	return c
}

// stop ends an allocation that is not needed.
func (p *pass) stop(a *model.Allocation, why string) {
	if a.Terminal() {
		return
	}
	p.end(Stop{Alloc: a, Description: why})
	p.counts(a.TaskGroup).Stop++
}

func (p *pass) end(s Stop) {
	p.out.Stop = append(p.out.Stop, s)
	if !s.Unknown {
		p.stopping[s.Alloc] = true
	}
}

// takeBack gives up what was placed of a job that wants all or nothing.
func (p *pass) takeBack() {
	for _, a := range p.out.Place {
		p.out.Queued[a.TaskGroup]++
		if p.out.Failed[a.TaskGroup] == nil {
			p.out.Failed[a.TaskGroup] = a.Metrics
		}
	}
	p.out.Place = nil
	p.out.Stop = slices.DeleteFunc(p.out.Stop, func(s Stop) bool { return s.PreemptedBy != "" })
}

// usage is what is held of a node, with what this pass did.
func (p *pass) usage(s *Seat) *Usage {
	if u := p.used[s.slot]; u != nil {
		return u
	}
	return &s.Used
}

// ownUsage is usage for writing.
func (p *pass) ownUsage(s *Seat) *Usage {
	u := p.used[s.slot]
	if u == nil {
		u = new(s.Used)
		p.used[s.slot] = u
	}
	return u
}

// allocID derives an allocation's id from what it is for, as a UUID. The snapshot is part of it, so that an evaluation that is delivered
// again after its first allocation has ended makes another one. Its first four bytes are chosen (near); the others are a digest. seed is for what else has to
// be decided by chance for it.
func (p *pass) allocID(name string) (id string, seed uint64) {
	h := p.digest(name)
	binary.BigEndian.PutUint32(h[:], p.near(binary.BigEndian.Uint32(h[:])))
	return uuidOf(h), seedOf(h)
}

// digest is of a name in this pass, and of how much it has placed.
func (p *pass) digest(name string) [sha256.Size]byte {
	var buf [256]byte
	b := append(buf[:0], p.eval.ID...)
	b = append(append(b, '/'), name...)
	b = strconv.AppendUint(append(b, '/'), p.index, 10)
	b = strconv.AppendInt(append(b, '/'), int64(len(p.out.Place)), 10)
	return sha256.Sum256(b)
}

func seedOf(h [sha256.Size]byte) uint64 { return binary.BigEndian.Uint64(h[16:]) }

func uuidOf(h [sha256.Size]byte) string {
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80 // version 8: made by a rule of our own
	var x [36]byte
	hex.Encode(x[0:8], h[0:4])
	hex.Encode(x[9:13], h[4:6])
	hex.Encode(x[14:18], h[6:8])
	hex.Encode(x[19:23], h[8:10])
	hex.Encode(x[24:36], h[10:16])
	x[8], x[13], x[18], x[23] = '-', '-', '-', '-'
	return string(x[:])
}

// near chooses what an id begins with. The store keeps allocations in the order of their ids, and a transaction copies the parts of its tree that it changes: ids of one pass lie side by
// side, in places of 16 bits, 64 apart for 1,024 of them and 16 apart for 4,096, which seven of the digits that people type tell apart (ident.NewNear). The first of an evaluation's first pass, most often its only one, lies beside those of the evaluations made with it.
func (p *pass) near(digest uint32) uint32 {
	if n := len(p.out.Place); n > 0 {
		return p.row&^0xffff | uint32(uint16(p.row)+uint16(n<<6|n>>10&3<<4|n>>12&0xf))
	}
	p.row = digest
	var head [4]byte
	if len(p.eval.ID) < 8 || p.again {
		return digest
	}
	if _, err := hex.Decode(head[:], []byte(p.eval.ID[:8])); err != nil {
		return digest
	}
	return binary.BigEndian.Uint32(head[:]) ^ apartFromEvals
}

// apartFromEvals makes the eight digits of an allocation others than those of its evaluation, and leaves their order.
const apartFromEvals = 0xa110_0000
