package sched

import (
	"fmt"
	"slices"
	"strconv"

	"rockpool/internal/orchestrator/model"
)

// Range of dynamic ports.
const (
	MinDynamicPort = 20000
	MaxDynamicPort = 32000
)

// Available is what a node has for allocations.
func Available(n *model.Node) (cpu, memoryMB, diskMB int) {
	return n.Resources.CPU - n.Reserved.CPU, n.Resources.MemoryMB - n.Reserved.MemoryMB, n.Resources.DiskMB - n.Reserved.DiskMB
}

// MetaMemoryMax is the key of a node's meta that bounds how far memory may be promised beyond what there is: the hard limits of all tasks there together
// may reach this percentage of the memory that the node has for allocations. Without it only what is reserved counts.
const MetaMemoryMax = "rockpool_memory_max_percent"

// memoryMax is that bound in MiB, 0 = none.
func memoryMax(n *model.Node, mem int) int {
	text, ok := n.Meta[MetaMemoryMax]
	if !ok { // as nearly everywhere, for each node that is looked at: no number is an error, which costs an allocation
		return 0
	}
	percent, err := strconv.Atoi(text)
	if err != nil || percent <= 0 {
		return 0
	}
	return mem * percent / 100
}

// Dimensions of a node that may be used up.
const (
	dimCPU       = "cpu"
	dimMemory    = "memory"
	dimMemoryMax = "memory limits"
	dimDisk      = "disk"
)

// Fits says which dimension does not fit when r is added to what is used; empty = all fit.
func Fits(n *model.Node, used *Usage, r *model.AllocatedResources) string {
	cpu, mem, disk := Available(n)
	if why := room(n, cpu, mem, disk, used, r.Sum()); why != "" {
		return why
	}
	for _, p := range r.Ports {
		if used.Port(p.Value) {
			return fmt.Sprintf("network: port %d is taken", p.Value)
		}
	}
	return roomForDevices(n, used, r)
}

// room is Fits for the dimensions that are sums.
func room(n *model.Node, cpu, mem, disk int, used *Usage, ask Usage) string {
	switch {
	case used.CPU+ask.CPU > cpu:
		return dimCPU
	case used.MemoryMB+ask.MemoryMB > mem:
		return dimMemory
	case used.DiskMB+ask.DiskMB > disk:
		return dimDisk
	}
	if bound := memoryMax(n, mem); bound > 0 && used.MemoryMaxMB+ask.MemoryMaxMB > bound {
		return dimMemoryMax
	}
	return ""
}

// share is what an allocation of a group holds wherever it is placed.
type share struct {
	tasks   map[string]*model.AllocatedTask // shared by all of the group that hold no devices
	size    Usage
	hardest int    // MiB, the highest limit of a task
	wishes  []wish // its requests for devices
	ports   int
	wanted  map[string]int // devices asked for, by name
	weights float64        // of all affinities for devices
}

func shareOf(g *model.TaskGroup, oversubscribe bool) share {
	s := share{tasks: make(map[string]*model.AllocatedTask, len(g.Tasks))}
	for _, t := range g.Tasks {
		at := &model.AllocatedTask{CPU: t.Resources.CPU, MemoryMB: t.Resources.MemoryMB}
		if oversubscribe {
			at.MemoryMaxMB = t.Resources.MemoryMaxMB
		}
		s.hardest = max(s.hardest, at.MemoryMaxMB)
		for i := range t.Resources.Devices {
			if s.wanted == nil {
				s.wanted = map[string]int{}
			}
			w := newWish(t.Name, &t.Resources.Devices[i])
			s.wishes = append(s.wishes, w)
			s.wanted[w.q.Name] += w.count
			s.weights += w.weights
		}
		s.tasks[t.Name] = at
	}
	for i := range g.Networks {
		s.ports += len(g.Networks[i].ReservedPorts) + len(g.Networks[i].DynamicPorts)
	}
	s.size = (&model.AllocatedResources{Tasks: s.tasks, DiskMB: g.EphemeralDisk.SizeMB}).Sum()
	return s
}

// allocate gives a group its share of a node: sizes from the specification, ports and device instances that are free. seed
// spreads dynamic ports so that plans made at the same time seldom collide. The text names the dimension that does not fit.
func allocate(s *Seat, used *Usage, g *model.TaskGroup, ask *share, seed uint64) (model.AllocatedResources, string) {
	n := s.Node
	r := model.AllocatedResources{Tasks: ask.tasks, DiskMB: g.EphemeralDisk.SizeMB}
	if ask.hardest > n.Resources.MemoryMB { // a limit that the machine would not live to see
		return r, "memory limit above the node's memory"
	}
	if why := room(n, s.cpu, s.mem, s.disk, used, ask.size); why != "" {
		return r, why
	}
	if len(ask.wishes) > 0 {
		p := picker{node: n, used: *used, wishes: ask.wishes}
		if why := p.pick(); why != "" {
			return r, why
		}
		r.Tasks = make(map[string]*model.AllocatedTask, len(g.Tasks))
		for name, at := range ask.tasks {
			r.Tasks[name] = new(*at)
		}
		for i, w := range ask.wishes {
			r.Tasks[w.task].Devices = append(r.Tasks[w.task].Devices, p.got[i])
		}
	}
	if ask.ports == 0 {
		return r, ""
	}
	taken := func(v int) bool {
		return used.Port(v) || slices.ContainsFunc(r.Ports, func(p model.AllocatedPort) bool { return p.Value == v })
	}
	add := func(p model.Port, value int) {
		to := p.To
		if to == -1 {
			to = value
		}
		r.Ports = append(r.Ports, model.AllocatedPort{Label: p.Label, Value: value, To: to, HostIP: n.Attributes["unique.network.ip-address"]})
	}
	for i := range g.Networks {
		for _, p := range g.Networks[i].ReservedPorts {
			if taken(p.Value) {
				return r, fmt.Sprintf("network: reserved port collision %s=%d", p.Label, p.Value)
			}
			add(p, p.Value)
		}
	}
	const span = MaxDynamicPort - MinDynamicPort + 1
	next := int(seed % span)
	for i := range g.Networks {
		for _, p := range g.Networks[i].DynamicPorts {
			tries := 0
			for ; tries < span && taken(MinDynamicPort+next); tries++ {
				next = (next + 1) % span
			}
			if tries == span {
				return r, "network: dynamic port selection failed"
			}
			add(p, MinDynamicPort+next)
		}
	}
	return r, ""
}
