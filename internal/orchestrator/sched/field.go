package sched

import (
	"cmp"
	"iter"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	"rockpool/internal/orchestrator/model"
)

const (
	defaultPool = "default"
	allPools    = "all"
)

func inDatacenters(j *model.Job, n *model.Node) bool { return inDatacenter(j, n.Datacenter) }

func inDatacenter(j *model.Job, dc string) bool {
	return slices.ContainsFunc(j.Datacenters, func(pattern string) bool {
		ok, err := path.Match(pattern, dc)
		return err == nil && ok
	})
}

func inPool(j *model.Job, n *model.Node) bool { return ofPool(j, poolOf(n)) }

func ofPool(j *model.Job, pool string) bool {
	return j.NodePool == allPools || pool == j.NodePool || j.NodePool == "" && pool == defaultPool
}

// field is the search for nodes for one group. Nodes are looked at as far as they are needed, from a place that the evaluation decides. Those on which the
// group fits are candidates, kept in order of their scores, so that a placement costs the logarithm of their number.
type field struct {
	*pass
	job        *model.Job
	g          *model.TaskGroup
	ask        share
	m          *metric
	available  map[string]int // ready nodes by datacenter
	inPool     int
	tiers      [2]tier // those that are looked at first, and the others
	tier       int     // that is looked at now
	limit      int     // candidates that are enough
	hopeless   bool
	constraint [][]model.Constraint
	verdicts   map[string]string // of classes: why not, "" = it may run there
	ownWay     bool              // a condition looks at what is a node's own: classes do not decide
	affinities []model.Affinity
	weights    float64
	liked      map[string]float64 // the affinity of classes; nil = it looks at what is a node's own
	spreads    []*spread
	distinct   []distinct
	same       map[int32]int // allocations of the group, by slot
	bySlot     map[int32]*candidate
	sections   []*section
	byKey      map[string]*section
	live       int
	drawn      int
	avoided    string
	full       []*Seat // where only room is missing; for preemption
	placed     []*model.Allocation
	parts      float64           // of a score
	short      map[int]*scarcity // of devices, by the wish that is not met
}

// tier is a part of the nodes, in the order in which they are looked at. Nodes with devices and without are two: who asks for devices looks at those that have
// some first, and everybody else at the others.
type tier struct {
	lists         [][]int32
	total, looked int
	start         int
}

// candidate is a node that the group fits on.
type candidate struct {
	seat   *Seat
	order  int32
	pos    int32   // in its bucket
	fixed  float64 // parts of the score that stay
	base   float64 // parts of the score but for the spread
	suited *suited // of a group that asks for devices
	bucket *bucket
}

func (c *candidate) before(d *candidate) bool {
	return c.base > d.base || c.base == d.base && c.tighter(d)
}

// tighter is the order of candidates with equal scores.
func (c *candidate) tighter(d *candidate) bool {
	if c.suited == nil {
		return c.order < d.order
	}
	return cmp.Or(c.suited.compare(d.suited), cmp.Compare(c.order, d.order)) < 0
}
func (c *candidate) at(i int) { c.pos = int32(i) }

func (p *pass) field(job *model.Job, g *model.TaskGroup) *field {
	f := &field{
		pass: p, job: job, g: g, ask: shareOf(g, p.opts.Oversubscribe), m: &metric{}, available: map[string]int{}, verdicts: map[string]string{},
		same: map[int32]int{}, bySlot: map[int32]*candidate{}, byKey: map[string]*section{}, parts: 3,
	}
	f.constraint = p.conditions(job, g)
	places := slices.SortedFunc(maps.Keys(p.fleet.ready), func(a, b place) int {
		return cmp.Or(strings.Compare(a.pool, b.pool), strings.Compare(a.datacenter, b.datacenter), cmp.Compare(boolInt(a.devices), boolInt(b.devices)))
	})
	for _, at := range places {
		if list := p.fleet.ready[at]; len(list) > 0 && ofPool(job, at.pool) {
			f.inPool += len(list)
			if inDatacenter(job, at.datacenter) {
				t := &f.tiers[boolInt(at.devices != (len(f.ask.wishes) > 0))]
				t.lists = append(t.lists, list)
				t.total += len(list)
				f.available[at.datacenter] += len(list)
			}
		}
	}
	seed := seedOf(p.digest(g.Name))
	for i := range f.tiers {
		if t := &f.tiers[i]; t.total > 0 {
			t.start = int(seed % uint64(t.total))
		}
	}
	f.affinities = slices.Concat(job.Affinities, g.Affinities)
	for _, t := range g.Tasks {
		f.affinities = append(f.affinities, t.Affinities...)
	}
	for _, a := range f.affinities {
		f.weights += math.Abs(float64(a.Weight))
	}
	if f.ask.weights > 0 {
		f.parts++
	}
	if f.weights > 0 {
		f.parts++
		if !slices.ContainsFunc(f.affinities, func(a model.Affinity) bool { return unique(model.Constraint{LTarget: a.LTarget, RTarget: a.RTarget}) }) {
			f.liked = map[string]float64{}
		}
	}
	if all := slices.Concat(job.Spreads, g.Spreads); len(all) > 0 {
		f.parts++
		f.spreads = newSpreads(all, g.Count)
	}
	f.findDistinct()
	for a := range f.alive {
		s := f.fleet.Seat(a.NodeID)
		if s == nil || s.Node == nil {
			continue
		}
		for i := range f.distinct {
			if d := &f.distinct[i]; d.group == "" || d.group == a.TaskGroup {
				d.add(s.Node)
			}
		}
		if a.TaskGroup != g.Name {
			continue
		}
		f.same[s.slot]++
		for _, sp := range f.spreads {
			sp.know(valueOf(s.Node, sp.attribute), 1)
		}
	}
	return f
}

// alive yields the job's allocations that are there or will be: those that stay, and those this pass placed.
func (p *pass) alive(yield func(*model.Allocation) bool) {
	for _, a := range p.allocs {
		if !a.Terminal() && !p.stopping[a] && !yield(a) {
			return
		}
	}
	for _, a := range p.out.Place {
		if !yield(a) {
			return
		}
	}
}

// enough is how many candidates a placement is chosen from where nothing says that a certain node is wanted.
const enough = 64

// bound sets how many candidates are enough to place so many allocations. A preference for certain nodes needs all of them to be found. A service gets as
// many as it has allocations, so that it does not sit on a few nodes; batch work is packed.
func (f *field) bound(count int) {
	switch {
	case f.opts.NodeLimit > 0:
		f.limit = f.opts.NodeLimit
	case len(f.spreads) > 0 || f.weights > 0 || len(f.ask.wishes) > 0: // nodes with devices are few, and the fullest of them is looked for
		f.limit = math.MaxInt
	case f.job.Type == model.JobTypeService:
		f.limit = max(enough, count)
	default:
		f.limit = enough
	}
}

// nodes yields the ready nodes of the job's datacenters and pool that have not been looked at. Who asks for devices and has found some does not go on to nodes
// without.
func (f *field) nodes() iter.Seq[*Seat] {
	return func(yield func(*Seat) bool) {
		for ; f.tier < len(f.tiers); f.tier++ {
			if f.tier > 0 && len(f.ask.wishes) > 0 && f.live > 0 {
				return
			}
			for t := &f.tiers[f.tier]; t.looked < t.total; {
				i := (t.start + t.looked) % t.total
				t.looked++
				for _, l := range t.lists {
					if i < len(l) {
						if s := f.fleet.at(l[i]); s != nil && s.Node != nil && !yield(s) {
							return
						}
						break
					}
					i -= len(l)
				}
			}
		}
	}
}

// patience is how many nodes are looked at for each candidate that is wanted, once there is one.
const patience = 4

// draw looks at nodes until there are enough candidates.
func (f *field) draw() {
	if f.live >= f.limit || f.live > 0 && f.limit < math.MaxInt && f.drawn >= patience*f.limit {
		return
	}
	f.drawn = 0
	for s := range f.nodes() {
		f.drawn++
		if c := f.look(s, nil); c != nil {
			f.add(c)
		}
		if f.live >= f.limit || f.live > 0 && f.limit < math.MaxInt && f.drawn >= patience*f.limit {
			return
		}
	}
}

// look makes a candidate of a node, or notes why it is none: in the field's metric, and in m if there is one.
func (f *field) look(s *Seat, m *model.AllocMetric) *candidate {
	f.m.NodesEvaluated++
	why := f.infeasible(s)
	for i := 0; why == "" && i < len(f.ask.wishes); i++ {
		why = f.ask.wishes[i].lacks(s.Node)
	}
	if why == "" {
		why = f.clash(s)
	}
	if why != "" {
		f.m.filter(why, s.Node.NodeClass)
		if m != nil {
			(*metric)(m).filter(why, s.Node.NodeClass)
		}
		return nil
	}
	if f.ask.hardest > s.Node.Resources.MemoryMB {
		why = "memory limit above the node's memory"
	} else {
		why = room(s.Node, s.cpu, s.mem, s.disk, f.usage(s), f.ask.size)
	}
	c := &candidate{seat: s, order: int32(f.m.NodesEvaluated)}
	if why == "" && len(f.ask.wishes) > 0 {
		why = f.pack(c)
	}
	if why != "" {
		f.exhausted(s, why)
		if m != nil {
			(*metric)(m).exhaust(why, s.Node.NodeClass)
		}
		return nil
	}
	c.fixed = -f.wasteful(s)
	if f.weights > 0 {
		c.fixed += f.affinity(s)
	}
	f.rate(c)
	return c
}

func (f *field) exhausted(s *Seat, why string) {
	f.m.exhaust(why, s.Node.NodeClass)
	if why == dimDevices {
		f.shortOf(s)
	}
	if len(f.full) < mostPreemptable {
		f.full = append(f.full, s)
	}
}

// avoid lowers the score of the node where a predecessor failed, for one placement.
func (f *field) avoid(id string) {
	if id == f.avoided {
		return
	}
	old := f.avoided
	f.avoided = id
	for _, node := range []string{old, id} {
		if s := f.fleet.Seat(node); node != "" && s != nil {
			if c := f.bySlot[s.slot]; c != nil {
				f.rate(c)
				f.moved(c)
			}
		}
	}
}

// explainFailure fills in why nothing was found. Every node has been looked at then.
func (f *field) explainFailure(m *model.AllocMetric) {
	quota := m.QuotaExhausted
	*m = model.AllocMetric(*f.m)
	m.ConstraintFiltered, m.ClassFiltered, m.DimensionExhausted = maps.Clone(m.ConstraintFiltered), maps.Clone(m.ClassFiltered), maps.Clone(m.DimensionExhausted)
	f.explainDevices(m.DimensionExhausted)
	m.NodesAvailable, m.NodesInPool, m.QuotaExhausted = f.available, f.inPool, quota
	f.eligibility()
}

// finish gives all that was placed what the search saw. They share it.
func (f *field) finish() {
	for _, a := range f.placed {
		scores := a.Metrics.ScoreMeta
		*a.Metrics = model.AllocMetric(*f.m)
		a.Metrics.ScoreMeta, a.Metrics.NodesAvailable, a.Metrics.NodesInPool = scores, f.available, f.inPool
	}
}

// eligibility notes which classes of nodes may help.
func (f *field) eligibility() {
	f.out.Escaped = f.out.Escaped || f.ownWay
	if f.out.Classes == nil {
		f.out.Classes = map[string]bool{}
	}
	for class, why := range f.verdicts {
		f.out.Classes[class] = f.out.Classes[class] || why == ""
	}
	if len(f.out.Classes) > mostClasses {
		f.out.Escaped = true
	}
	if f.out.Escaped { // then the classes say nothing
		f.out.Classes = nil
	}
}

// mostClasses bounds what a blocked evaluation carries. Nodes that all differ are no classes.
const mostClasses = 64

// metric counts why nodes drop out.
type metric model.AllocMetric

func (m *metric) filter(why, class string) {
	m.NodesFiltered++
	count(&m.ConstraintFiltered, why)
	if class != "" {
		count(&m.ClassFiltered, class)
	}
}

func (m *metric) exhaust(why, _ string) {
	m.NodesExhausted++
	count(&m.DimensionExhausted, why)
}

func count(m *map[string]int, key string) {
	if *m == nil {
		*m = map[string]int{}
	}
	(*m)[key]++
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
