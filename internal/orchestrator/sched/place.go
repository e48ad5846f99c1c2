package sched

import (
	"cmp"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	"rockpool/internal/orchestrator/model"
)

// candidates are the ready nodes in the job's datacenters and pool.
func (p *pass) candidates(m *model.AllocMetric) []*model.Node {
	if p.nodes == nil {
		p.nodes = []*model.Node{}
		for n := range p.state.Nodes() {
			if n.Ready() && inDatacenters(p.job, n) && inPool(p.job, n) {
				p.nodes = append(p.nodes, n)
			}
		}
	}
	m.NodesAvailable = map[string]int{}
	for _, n := range p.nodes {
		m.NodesAvailable[n.Datacenter]++
	}
	return p.nodes
}

func inDatacenters(j *model.Job, n *model.Node) bool {
	return slices.ContainsFunc(j.Datacenters, func(pattern string) bool {
		ok, err := path.Match(pattern, n.Datacenter)
		return err == nil && ok
	})
}

func inPool(j *model.Job, n *model.Node) bool {
	return j.NodePool == "all" || cmp.Or(j.NodePool, "default") == cmp.Or(n.NodePool, "default")
}

// place finds a node for each of want. What finds none is queued, and the first failure explains the rest.
func (p *pass) place(g *model.TaskGroup, want []missing) {
	for _, w := range want {
		if m := p.out.Failed[g.Name]; m != nil {
			m.CoalescedFailures++
			p.out.Queued[g.Name]++
			continue
		}
		m := &model.AllocMetric{}
		a := p.placeOne(g, w, m, p.candidates(m))
		if a == nil {
			p.out.Failed[g.Name] = m
			p.out.Queued[g.Name]++
			continue
		}
		p.commit(a)
	}
}

func (p *pass) commit(a *model.Allocation) {
	if p.used[a.NodeID] == nil {
		p.used[a.NodeID] = p.state.Usage(a.NodeID).Clone()
	}
	p.used[a.NodeID].Add(&a.Resources)
	p.placed = append(p.placed, a)
	p.out.Place = append(p.out.Place, a)
}

// everywhere places a group of a system job once on each node that is feasible.
func (p *pass) everywhere(g *model.TaskGroup) {
	m := &model.AllocMetric{}
	covered := map[string]bool{}
	for _, a := range p.allocs {
		switch {
		case a.TaskGroup != g.Name || a.DesiredStatus != model.DesiredRun:
		case g.Count == 0:
			p.stop(a, "alloc not needed due to job update")
		case !a.ClientTerminal() && p.lost(a):
			p.out.Stop = append(p.out.Stop, Stop{Alloc: a, Description: "alloc is lost since its node is down", Lost: true})
		case a.ClientTerminal():
			covered[a.NodeID] = covered[a.NodeID] || !outdated(a, p.job)
		case a.Job.JobModifyIndex == p.job.JobModifyIndex:
			covered[a.NodeID] = true
		case a.Job.Group(g.Name) != nil && InPlace(a.Job, a.Job.Group(g.Name), p.job, g):
			covered[a.NodeID] = true
			p.out.Update = append(p.out.Update, a)
		default:
			p.stop(a, "alloc is being updated due to job update")
		}
	}
	if g.Count == 0 {
		return
	}
	for _, n := range p.candidates(m) {
		if covered[n.ID] {
			continue
		}
		one := &model.AllocMetric{NodesAvailable: m.NodesAvailable}
		if a := p.placeOne(g, missing{name: allocName(p.job.ID, g.Name, 0)}, one, []*model.Node{n}); a != nil {
			p.commit(a)
		} else if one.NodesExhausted > 0 {
			p.out.Failed[g.Name] = one
			p.out.Queued[g.Name]++
		}
	}
}

type option struct {
	node  *model.Node
	score float64
	share model.AllocatedResources
}

// placeOne makes an allocation on the best of nodes, or fills in why there is none.
func (p *pass) placeOne(g *model.TaskGroup, w missing, m *model.AllocMetric, nodes []*model.Node) *model.Allocation {
	id, seed := p.newID(w.name)
	limit := p.opts.NodeLimit
	var best *option
	for i := range nodes {
		// Start anywhere, so that equal nodes share the load.
		n := nodes[(i+int(seed%uint64(len(nodes))))%len(nodes)]
		m.NodesEvaluated++
		if why := p.infeasible(n, g); why != "" {
			m.NodesFiltered++
			count(&m.ConstraintFiltered, why)
			if n.NodeClass != "" {
				count(&m.ClassFiltered, n.NodeClass)
			}
			continue
		}
		share, why := allocate(n, p.usage(n.ID), g, p.opts.Oversubscribe, seed)
		if why != "" {
			m.NodesExhausted++
			count(&m.DimensionExhausted, why)
			continue
		}
		s := p.score(n, g, &share, w.avoid)
		keepScore(m, n.ID, s)
		if best == nil || s > best.score {
			best = &option{node: n, score: s, share: share}
		}
		if limit--; limit == 0 {
			break
		}
	}
	if best == nil {
		return nil
	}
	a := &model.Allocation{
		ID: id, Namespace: p.job.Namespace, EvalID: p.eval.ID, Name: w.name, NodeID: best.node.ID, NodeName: best.node.Name,
		JobID: p.job.ID, Job: p.job, TaskGroup: g.Name, Resources: best.share, DesiredStatus: model.DesiredRun,
		ClientStatus: model.ClientPending, Metrics: m,
	}
	if w.previous != nil {
		a.PreviousAllocation = w.previous.ID
	}
	return a
}

const keptScores = 5 // of the best nodes, for those who ask why; allocations carry them

func keepScore(m *model.AllocMetric, id string, score float64) {
	if m.Scores == nil {
		m.Scores = map[string]float64{}
	}
	m.Scores[id] = score
	if len(m.Scores) <= keptScores {
		return
	}
	worst := id
	for k, v := range m.Scores {
		if v < m.Scores[worst] || v == m.Scores[worst] && k > worst {
			worst = k
		}
	}
	delete(m.Scores, worst)
}

func count(m *map[string]int, key string) {
	if *m == nil {
		*m = map[string]int{}
	}
	(*m)[key]++
}

// infeasible says in words why a group cannot run on a node, whatever is free there.
func (p *pass) infeasible(n *model.Node, g *model.TaskGroup) string {
	sets := [][]model.Constraint{p.job.Constraints, g.Constraints}
	for _, t := range g.Tasks {
		d, ok := n.Drivers[t.Driver]
		if !ok || d == nil || !d.Detected || !d.Healthy {
			return "missing drivers"
		}
		if name, asked := t.Config["runtime"].(string); asked && name != "" && !offers(d, "runtimes", name) {
			return fmt.Sprintf("driver %s offers no runtime %q", t.Driver, name)
		}
		sets = append(sets, t.Constraints)
	}
	for _, nw := range g.Networks {
		switch nw.Mode {
		case "", "none", "host":
		default:
			if n.Attributes["network."+nw.Mode] == "" {
				return fmt.Sprintf("missing network %q", nw.Mode)
			}
		}
	}
	for _, cs := range sets {
		for _, c := range cs {
			switch c.Operand {
			case opDistinctHosts:
				if c.RTarget != "false" && p.onNode(n.ID, nil) > 0 {
					return opDistinctHosts
				}
			case opDistinctProperty:
				if !p.distinctProperty(n, c) {
					return opDistinctProperty + ": " + c.LTarget
				}
			default:
				if !Matches(n, c.LTarget, c.Operand, c.RTarget) {
					return strings.TrimSpace(c.LTarget + " " + cmp.Or(c.Operand, "=") + " " + c.RTarget)
				}
			}
		}
	}
	return ""
}

// offers reports whether a driver can provide something by name, such as an image. One that does not list what it has in an attribute, separated by
// commas, takes any.
func offers(d *model.DriverInfo, attribute, name string) bool {
	list, limited := d.Attributes[attribute]
	return !limited || slices.Contains(strings.Split(list, ","), name)
}

// alive yields the job's allocations that are there or will be: those that stay, and those this pass placed.
func (p *pass) alive(yield func(*model.Allocation) bool) {
	for _, a := range p.allocs {
		if !a.Terminal() && !slices.ContainsFunc(p.out.Stop, func(s Stop) bool { return s.Alloc == a }) && !yield(a) {
			return
		}
	}
	for _, a := range p.placed {
		if !yield(a) {
			return
		}
	}
}

// onNode counts the job's allocations on a node; with g, only that group's.
func (p *pass) onNode(nodeID string, g *model.TaskGroup) int {
	n := 0
	for a := range p.alive {
		if a.NodeID == nodeID && (g == nil || a.TaskGroup == g.Name) {
			n++
		}
	}
	return n
}

func (p *pass) distinctProperty(n *model.Node, c model.Constraint) bool {
	v, ok := resolve(n, c.LTarget)
	if !ok {
		return false
	}
	allowed := 1
	if k := indexOf("[" + c.RTarget + "]"); k > 0 {
		allowed = k
	}
	for a := range p.alive {
		if o := p.state.Node(a.NodeID); o != nil {
			if w, ok := resolve(o, c.LTarget); ok && w == v {
				allowed--
			}
		}
	}
	return allowed > 0
}

// score is the mean of what speaks for and against a node, each part from -1 to 1.
func (p *pass) score(n *model.Node, g *model.TaskGroup, share *model.AllocatedResources, avoid string) float64 {
	parts := []float64{p.fit(n, share)}
	if same := p.onNode(n.ID, g); same > 0 {
		parts = append(parts, -float64(same+1)/float64(max(g.Count, same+1)))
	}
	if avoid == n.ID {
		parts = append(parts, -1)
	}
	if len(n.Resources.Devices) > 0 && !wantsDevices(g) {
		parts = append(parts, -1) // who needs no device keeps off the nodes that have one
	}
	if a, ok := p.affinity(n, g); ok {
		parts = append(parts, a)
	}
	if s, ok := p.spread(n, g); ok {
		parts = append(parts, s)
	}
	sum := 0.0
	for _, v := range parts {
		sum += v
	}
	return sum / float64(len(parts))
}

// fit is near 1 for a node that will be full, or with the spread algorithm for one that will be empty.
func (p *pass) fit(n *model.Node, share *model.AllocatedResources) float64 {
	u := p.usage(n.ID)
	shareCPU, shareMemory := share.Sum()
	cpu, mem, _ := Available(n)
	free := func(used, all int) float64 {
		if all <= 0 {
			return 0
		}
		return 1 - float64(used)/float64(all)
	}
	total := math.Pow(10, free(u.CPU+shareCPU, cpu)) + math.Pow(10, free(u.MemoryMB+shareMemory, mem)) // 2 when full, 20 when empty
	if p.opts.Spread {
		return (total - 2) / 18
	}
	return (20 - total) / 18
}

func wantsDevices(g *model.TaskGroup) bool {
	return slices.ContainsFunc(g.Tasks, func(t *model.Task) bool { return len(t.Resources.Devices) > 0 })
}

func (p *pass) affinity(n *model.Node, g *model.TaskGroup) (float64, bool) {
	all := slices.Concat(p.job.Affinities, g.Affinities)
	for _, t := range g.Tasks {
		all = append(all, t.Affinities...)
	}
	sum, weights := 0.0, 0.0
	for _, a := range all {
		weights += math.Abs(float64(a.Weight))
		if Matches(n, a.LTarget, a.Operand, a.RTarget) {
			sum += float64(a.Weight)
		}
	}
	if weights == 0 {
		return 0, false
	}
	return sum / weights, true
}

// spread is high where a value has fewer allocations than its share: the wanted one, or without targets an even one.
func (p *pass) spread(n *model.Node, g *model.TaskGroup) (float64, bool) {
	all := slices.Concat(p.job.Spreads, g.Spreads)
	sum, weights := 0.0, 0.0
	for _, s := range all {
		w := float64(s.Weight)
		if w == 0 {
			w = 50
		}
		weights += w
		value, ok := resolve(n, s.Attribute)
		if !ok {
			sum -= w
			continue
		}
		counts := map[string]int{}
		for a := range p.alive {
			if a.TaskGroup != g.Name {
				continue
			}
			if o := p.state.Node(a.NodeID); o != nil {
				if v, ok := resolve(o, s.Attribute); ok {
					counts[v]++
				}
			}
		}
		sum += w * boost(&s, value, counts, g.Count)
	}
	if weights == 0 {
		return 0, false
	}
	return sum / weights, true
}

func boost(s *model.Spread, value string, counts map[string]int, total int) float64 {
	if len(s.Targets) > 0 {
		rest := 100
		want := -1.0
		for _, t := range s.Targets {
			rest -= int(t.Percent)
			if t.Value == value {
				want = float64(t.Percent) / 100 * float64(total)
			}
		}
		if want < 0 {
			want = float64(max(rest, 0)) / 100 * float64(total)
		}
		if want == 0 {
			return -1
		}
		return max((want-float64(counts[value]+1))/want, -1)
	}
	least, most := math.MaxInt, 0
	for _, c := range counts {
		least, most = min(least, c), max(most, c)
	}
	if most == 0 {
		return 0
	}
	// Emptier than the fullest is good, fuller than the emptiest is bad.
	if c := counts[value]; c < most {
		return float64(most-c) / float64(most)
	} else if c > least || len(counts) == 1 {
		return -1
	}
	return 0
}
