package sched

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"

	"rockpool/internal/orchestrator/model"
)

// wish is one request for devices of a task.
type wish struct {
	task    string
	q       *model.DeviceRequest
	count   int
	weights float64 // of its affinities
}

func newWish(task string, q *model.DeviceRequest) wish {
	w := wish{task: task, q: q, count: int(max(q.Count, 1))}
	for _, a := range q.Affinities {
		w.weights += math.Abs(float64(a.Weight))
	}
	return w
}

// String is how people are told of it: 2 nvidia/gpu.
func (w wish) String() string {
	s := fmt.Sprintf("%d %s", w.count, w.q.Name)
	if len(w.q.Constraints) > 0 {
		s += " that meet its constraints"
	}
	return s
}

// means reports whether the wish can be met with instances of a device.
func (w wish) means(d *model.NodeDevice) bool {
	return named(d, w.q.Name) && unmet(d, w.q.Constraints) == nil
}

// liking is the sum of the weights of the affinities that a device meets.
func (w wish) liking(d *model.NodeDevice) (sum float64) {
	for _, a := range w.q.Affinities {
		if holds(d, a.LTarget, a.Operand, a.RTarget) {
			sum += float64(a.Weight)
		}
	}
	return sum
}

// named reports whether a request (type, vendor/type or vendor/type/name) means the device.
func named(d *model.NodeDevice, request string) bool { return meansDevice(request, d.ID()) }

func meansDevice(request, full string) bool {
	switch strings.Count(request, "/") {
	case 0:
		_, rest, _ := strings.Cut(full, "/")
		kind, _, _ := strings.Cut(rest, "/")
		return request == kind
	case 1:
		return strings.HasPrefix(full, request+"/")
	}
	return request == full
}

// Targets of conditions on devices.
const (
	targetVendor = "${device.vendor}"
	targetType   = "${device.type}"
	targetModel  = "${device.model}"
	targetIDs    = "${device.ids}"
	targetAttr   = "${device.attr."
)

// DeviceTarget reports whether a condition of a device request may look at a target: what is no ${…} stands for itself.
func DeviceTarget(target string) bool {
	if !strings.HasPrefix(target, "${") {
		return true
	}
	switch target {
	case targetVendor, targetType, targetModel, targetIDs:
		return true
	}
	name, is := strings.CutPrefix(target, targetAttr)
	return is && len(name) > 1 && strings.HasSuffix(name, "}")
}

// deviceValue is what a target is for a device.
func deviceValue(d *model.NodeDevice, target string) (string, bool) {
	switch target {
	case targetVendor:
		return d.Vendor, true
	case targetType:
		return d.Type, true
	case targetModel:
		return d.Name, true
	case targetIDs:
		ids := make([]string, len(d.Instances))
		for i := range d.Instances {
			ids[i] = d.Instances[i].ID
		}
		return strings.Join(ids, ","), true
	}
	if k, ok := strings.CutPrefix(target, targetAttr); ok {
		v, ok := d.Attributes[strings.TrimSuffix(k, "}")]
		return v.String(), ok
	}
	return target, true
}

func holds(d *model.NodeDevice, left, operand, right string) bool {
	l, lok := deviceValue(d, left)
	r, rok := deviceValue(d, right)
	return compareAttributes(l, lok, operand, r, rok)
}

// unmet is the first constraint that a device does not meet; nil = it meets all.
func unmet(d *model.NodeDevice, cs []model.Constraint) *model.Constraint {
	for i, c := range cs {
		if !holds(d, c.LTarget, c.Operand, c.RTarget) {
			return &cs[i]
		}
	}
	return nil
}

// chosen reports whether constraints on ids, which the device has met with all of its instances, are met by one of them.
func chosen(cs []model.Constraint, id string) bool {
	for _, c := range cs {
		other := ""
		switch targetIDs {
		case c.LTarget:
			other = c.RTarget
		case c.RTarget:
			other = c.LTarget
		default:
			continue
		}
		if !compare(other, true, c.Operand, id, true) {
			return false
		}
	}
	return true
}

// compareAttributes is compare for values that may have units: 40960 MiB is 40 GiB. A text is never ordered beside a number.
func compareAttributes(l string, lok bool, operand, r string, rok bool) bool {
	a, b := model.ParseAttribute(l), model.ParseAttribute(r)
	if !lok || !rok || a.Unit == "" && b.Unit == "" {
		return compare(l, lok, operand, r, rok)
	}
	order, comparable := a.Compare(b)
	switch operand {
	case "!=", "not":
		return !comparable || order != 0
	case "", "=", "==", "is":
		return comparable && order == 0
	case "<":
		return comparable && order < 0
	case "<=":
		return comparable && order <= 0
	case ">":
		return comparable && order > 0
	case ">=":
		return comparable && order >= 0
	}
	return compare(l, lok, operand, r, rok)
}

// taken reports whether an instance that is promised so much memory cannot be had beside what is held: it is held itself, or it is a part of what is held, or
// what is held is a part of it, or its device would be promised more memory than it has.
func taken(u *Usage, in *model.DeviceInstance, memoryMB int) bool {
	if u.Device(in.ID) {
		return true
	}
	if in.Parent == "" {
		slots, _ := u.Slots(in.ID)
		return slots > 0
	}
	if u.Device(in.Parent) {
		return true
	}
	slots, promised := u.Slots(in.Parent)
	if _, is := model.SlotParent(in.ID); !is {
		return slots > 0
	}
	return in.ParentMemoryMB > 0 && promised+memoryMB > in.ParentMemoryMB
}

// roomForDevices says which instance of r cannot be had beside what is used; empty = all can.
func roomForDevices(n *model.Node, used *Usage, r *model.AllocatedResources) string {
	var after *Usage // with those of r that were looked at
	for d, id := range r.Instances {
		if after == nil {
			after = new(*used)
		}
		_, in := findInstance(n, d, id)
		switch {
		case in == nil:
			return "devices: " + id + " is not there"
		case !in.Healthy:
			return "devices: " + id + " is unhealthy"
		case taken(after, in, d.MemoryMB):
			return "devices: " + id + " is taken"
		}
		after.Hold(d, id)
	}
	return ""
}

func findInstance(n *model.Node, of *model.AllocatedDevice, id string) (*model.NodeDevice, *model.DeviceInstance) {
	for i := range n.Resources.Devices {
		d := &n.Resources.Devices[i]
		if d.Vendor != of.Vendor || d.Type != of.Type || d.Name != of.Name {
			continue
		}
		for k := range d.Instances {
			if d.Instances[k].ID == id {
				return d, &d.Instances[k]
			}
		}
	}
	return nil, nil
}

// freeInstances is how many instances of a node can be had, each by itself.
func freeInstances(n *model.Node, u *Usage) (free int) {
	for i := range n.Resources.Devices {
		d := &n.Resources.Devices[i]
		mb := d.MemoryMB()
		for k := range d.Instances {
			if d.Instances[k].Healthy && !taken(u, &d.Instances[k], mb) {
				free++
			}
		}
	}
	return free
}

// lacks says why a node can never meet a request, whatever is free there; empty = it may.
func (w wish) lacks(n *model.Node) string {
	var no *model.Constraint
	there, most := false, 0
	for i := range n.Resources.Devices {
		d := &n.Resources.Devices[i]
		if !named(d, w.q.Name) {
			continue
		}
		if c := unmet(d, w.q.Constraints); c != nil {
			no, there = c, true
			continue
		}
		own := 0
		parents := map[string]bool{}
		for k := range d.Instances {
			in := &d.Instances[k]
			if !chosen(w.q.Constraints, in.ID) {
				continue
			}
			if device, slot := model.SlotParent(in.ID); slot {
				if parents[device] {
					continue
				}
				parents[device] = true
			}
			own++
		}
		most = max(most, own)
	}
	switch {
	case most >= w.count:
		return ""
	case most > 0:
		return fmt.Sprintf("%s: %s asked for, %d on a node", missingDevices, w, most)
	case there:
		return fmt.Sprintf("%s: no %s with %s", missingDevices, w.q.Name, strings.TrimSpace(no.LTarget+" "+cmp.Or(no.Operand, "=")+" "+no.RTarget))
	}
	return missingDevices
}

// missingDevices is Nomad's word for it.
const missingDevices = "missing devices"

// dimDevices is the dimension of instances that are held or ail. What is told in the end says more; see scarcity.
const dimDevices = "devices"

// packing says how well a place is made use of. Less is better: small instances before large ones, and of equal ones those of nodes where few are left.
type packing struct {
	memoryMB int // of the instances
	free     int // instances that there were to choose from
}

func (p packing) compare(o packing) int {
	return cmp.Or(cmp.Compare(p.memoryMB, o.memoryMB), cmp.Compare(p.free, o.free))
}

// suited is how the devices of a candidate's node suit a group. Among equal scores packed decides, and then rest.
type suited struct {
	packed packing
	liked  float64 // the affinities for devices, from -1 to 1
	rest   float64 // fit and anti-affinity
}

func (s *suited) compare(o *suited) int {
	return cmp.Or(s.packed.compare(o.packed), cmp.Compare(o.rest, s.rest))
}

// score is for people: 1 where the last instances go, and near 0 where many stay free.
func (p packing) score() float64 { return 1 / float64(1+max(p.free, -p.free)) }

// picker finds instances of a node for all requests of a group. Where the first choice for one leaves nothing for another, it tries the next.
type picker struct {
	node   *model.Node
	used   Usage // with what was picked
	wishes []wish
	got    []model.AllocatedDevice // by wish
	liked  float64                 // weights of the affinities that are met
	packed packing
	steps  int
}

// mostSteps bounds how many choices are tried on one node.
const mostSteps = 256

// pick returns the dimension that does not suffice; empty = got has what each wish gets.
func (p *picker) pick() string {
	p.got = make([]model.AllocatedDevice, len(p.wishes))
	if !p.from(0) {
		return dimDevices
	}
	return ""
}

// choice is a group of instances that a wish can be met with.
type choice struct {
	device *model.NodeDevice
	free   []*model.DeviceInstance
	liking float64
	memory int
	size   int // memory, or more than any where it is not known
}

func (p *picker) from(i int) bool {
	if i == len(p.wishes) {
		return true
	}
	w := &p.wishes[i]
	for _, c := range p.choices(i) {
		if p.steps++; p.steps > mostSteps {
			return false
		}
		before, liked, packed := p.used, p.liked, p.packed
		a := model.AllocatedDevice{Vendor: c.device.Vendor, Type: c.device.Type, Name: c.device.Name, MemoryMB: c.memory}
		for _, in := range together(c.free, w.count) {
			a.DeviceIDs = append(a.DeviceIDs, in.ID)
			p.used.Hold(&a, in.ID)
		}
		slices.Sort(a.DeviceIDs)
		p.got[i] = a
		p.liked += c.liking
		p.packed.memoryMB += c.memory * w.count
		p.packed.free += len(c.free)
		if p.from(i + 1) {
			return true
		}
		p.used, p.liked, p.packed = before, liked, packed
	}
	return false
}

// choices are the groups that suffice for a wish: those that it likes first, then small instances before large ones, parts before whole devices, and groups of
// which little is left.
func (p *picker) choices(of int) (all []choice) {
	w := &p.wishes[of]
	for i := range p.node.Resources.Devices {
		d := &p.node.Resources.Devices[i]
		if !w.means(d) {
			continue
		}
		c := choice{device: d, memory: d.MemoryMB(), liking: w.liking(d)}
		c.size = c.memory
		if c.size == 0 {
			c.size = math.MaxInt
		}
		different := map[string]bool{} // devices, of slots
		slots := false
		for k := range d.Instances {
			in := &d.Instances[k]
			if !in.Healthy || taken(&p.used, in, c.memory) || !chosen(w.q.Constraints, in.ID) {
				continue
			}
			if device, slot := model.SlotParent(in.ID); slot {
				slots = true
				if p.sees(of, device) {
					continue // it would be the same device to the task
				}
				different[device] = true
			}
			c.free = append(c.free, in)
		}
		if enough := len(c.free); enough >= w.count && (!slots || len(different) >= w.count) {
			all = append(all, c)
		}
	}
	slices.SortStableFunc(all, func(a, b choice) int {
		return cmp.Or(cmp.Compare(b.liking, a.liking), cmp.Compare(a.size, b.size), -cmp.Compare(a.device.Share(), b.device.Share()),
			cmp.Compare(len(a.free), len(b.free)), cmp.Compare(a.device.Name, b.device.Name))
	})
	return all
}

// sees reports whether the task of a wish has got a slot of a device already, by an earlier one.
func (p *picker) sees(of int, device string) bool {
	for i, w := range p.wishes[:of] {
		if w.task != p.wishes[of].task {
			continue
		}
		for _, id := range p.got[i].DeviceIDs {
			if of, slot := model.SlotParent(id); slot && of == device {
				return true
			}
		}
	}
	return false
}

// mostCompared bounds the instances whose sets are compared, all of them: no machine has more GPUs.
const mostCompared = 16

// together chooses count of the free instances of one group. Where more than one is asked for they are as close to each other as can be: connected by fast
// links (slots by those of their devices), then of few NUMA nodes. What is left shall be as close too: a set breaks few links to others, and uses up NUMA nodes that have little left. Slots are of
// different devices, and of those with most free ones, which share with the fewest; parts that the hardware divides are of devices with fewest free ones.
func together(free []*model.DeviceInstance, count int) []*model.DeviceInstance {
	siblings := map[string]int{}
	numa := map[int]int{}
	for _, in := range free {
		siblings[in.Parent]++
		numa[numaOf(in)]++
	}
	var reps []*model.DeviceInstance // of slots, one of each device
	seen := map[string]bool{}
	for _, in := range free {
		if _, slot := model.SlotParent(in.ID); slot {
			if seen[in.Parent] {
				continue
			}
			seen[in.Parent] = true
		}
		reps = append(reps, in)
	}
	if count > len(reps) {
		return nil
	}
	crowd := func(in *model.DeviceInstance) int {
		switch _, slot := model.SlotParent(in.ID); {
		case slot:
			return -siblings[in.Parent]
		case in.Parent != "":
			return siblings[in.Parent]
		}
		return 0
	}
	if len(reps) > mostCompared {
		slices.SortStableFunc(reps, func(a, b *model.DeviceInstance) int {
			return cmp.Or(cmp.Compare(crowd(a), crowd(b)), cmp.Compare(numaOf(a), numaOf(b)))
		})
		if reps = reps[:max(mostCompared, count)]; count >= mostCompared {
			return reps[:count]
		}
	}
	links := make([]uint32, len(reps))
	for i, in := range reps {
		for k, other := range reps {
			if k != i && slices.Contains(in.Peers, deviceOf(other)) {
				links[i] |= 1 << k
			}
		}
	}
	type cost struct{ apart, numas, broken, crowd, room int }
	rate := func(set uint32) (c cost) {
		in, nodes := 0, map[int]bool{}
		for rest := set; rest != 0; rest &= rest - 1 {
			i := bits.TrailingZeros32(rest)
			in += bits.OnesCount32(links[i] & set)
			if _, slot := model.SlotParent(reps[i].ID); !slot { // who takes one leaves its device to others
				c.broken += bits.OnesCount32(links[i] &^ set)
			}
			c.crowd += crowd(reps[i])
			if at := numaOf(reps[i]); !nodes[at] {
				nodes[at] = true
				c.room += numa[at]
			}
		}
		c.apart, c.numas = -in, len(nodes)
		return c
	}
	less := func(a, b cost) bool {
		return cmp.Or(cmp.Compare(a.apart, b.apart), cmp.Compare(a.numas, b.numas), cmp.Compare(a.broken, b.broken), cmp.Compare(a.crowd, b.crowd),
			cmp.Compare(a.room, b.room)) < 0
	}
	var best uint32
	var least cost
	// All sets of so many, by Gosper's step from one to the next.
	for set := uint32(1)<<count - 1; set < 1<<len(reps); {
		if c := rate(set); best == 0 || less(c, least) {
			best, least = set, c
		}
		low := set & -set
		carry := set + low
		set = carry | (set^carry)/low>>2
	}
	out := make([]*model.DeviceInstance, 0, count)
	for ; best != 0; best &= best - 1 {
		out = append(out, reps[bits.TrailingZeros32(best)])
	}
	return out
}

// deviceOf is the device that links lead to: that of a slot, and else the instance itself.
func deviceOf(in *model.DeviceInstance) string {
	if device, slot := model.SlotParent(in.ID); slot {
		return device
	}
	return in.ID
}

// numaOf is the NUMA node of an instance; -1 = not known.
func numaOf(in *model.DeviceInstance) int {
	if in.NUMANode == nil {
		return -1
	}
	return *in.NUMANode
}

// scarcity is what there is of a wish on the nodes that could meet it if more were free.
type scarcity struct{ nodes, there, held, ill, free int }

// allWishes stands for the wishes of a group that could each be met alone.
const allWishes = -1

// shortOf notes what a node lacks: of the first wish that it cannot meet, or else of all.
func (f *field) shortOf(s *Seat) {
	used := f.usage(s)
	blame := allWishes
	for i := range f.ask.wishes {
		if p := (picker{node: s.Node, used: *used, wishes: f.ask.wishes[i : i+1]}); p.pick() != "" {
			blame = i
			break
		}
	}
	if f.short == nil {
		f.short = map[int]*scarcity{}
	}
	if f.short[blame] == nil {
		f.short[blame] = &scarcity{}
	}
	f.short[blame].add(s.Node, used, f.blamed(blame))
}

func (f *field) blamed(i int) []wish {
	if i == allWishes {
		return f.ask.wishes
	}
	return f.ask.wishes[i : i+1]
}

func (t *scarcity) add(n *model.Node, used *Usage, wishes []wish) {
	t.nodes++
	for i := range n.Resources.Devices {
		d := &n.Resources.Devices[i]
		if !slices.ContainsFunc(wishes, func(w wish) bool { return w.means(d) }) {
			continue
		}
		mb := d.MemoryMB()
		for k := range d.Instances {
			t.there++
			switch in := &d.Instances[k]; {
			case taken(used, in, mb):
				t.held++
			case !in.Healthy:
				t.ill++
			default:
				t.free++
			}
		}
	}
}

// explainDevices says in place of the bare dimension what was asked for, what there is, and what became of it.
func (f *field) explainDevices(dims map[string]int) {
	if dims[dimDevices] == 0 {
		return
	}
	delete(dims, dimDevices)
	for blame, t := range f.short {
		var asked []string
		for _, w := range f.blamed(blame) {
			asked = append(asked, w.String())
		}
		dims[fmt.Sprintf("%s: %s asked for on one node; of %d on %s %d in use, %d unhealthy, %d free", dimDevices, strings.Join(asked, " and "), t.there,
			plural(t.nodes, "node"), t.held, t.ill, t.free)] += t.nodes
	}
}
