package sched

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

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
	percent, err := strconv.Atoi(n.Meta[MetaMemoryMax])
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
	for _, id := range r.Instances {
		if used.Device(id) {
			return "devices: " + id + " is taken"
		}
	}
	return ""
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
	hardest int // MiB, the highest limit of a task
	devices bool
	ports   int
	wanted  map[string]int // devices asked for, by name
}

func shareOf(g *model.TaskGroup, oversubscribe bool) share {
	s := share{tasks: make(map[string]*model.AllocatedTask, len(g.Tasks))}
	for _, t := range g.Tasks {
		at := &model.AllocatedTask{CPU: t.Resources.CPU, MemoryMB: t.Resources.MemoryMB}
		if oversubscribe {
			at.MemoryMaxMB = t.Resources.MemoryMaxMB
		}
		s.hardest = max(s.hardest, at.MemoryMaxMB)
		for _, d := range t.Resources.Devices {
			if s.wanted == nil {
				s.devices, s.wanted = true, map[string]int{}
			}
			s.wanted[d.Name] += int(max(d.Count, 1))
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
	if ask.devices {
		r.Tasks = make(map[string]*model.AllocatedTask, len(g.Tasks))
		taken := map[string]bool{}
		for _, t := range g.Tasks {
			at := *ask.tasks[t.Name]
			for i := range t.Resources.Devices {
				d, why := pickDevices(n, used, taken, &t.Resources.Devices[i])
				if why != "" {
					return r, why
				}
				at.Devices = append(at.Devices, d)
			}
			r.Tasks[t.Name] = &at
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

// pickDevices takes the first free, healthy instances of a device that meets the request.
func pickDevices(n *model.Node, used *Usage, taken map[string]bool, q *model.DeviceRequest) (model.AllocatedDevice, string) {
	want := int(max(q.Count, 1))
	reason := "missing devices"
	for i := range n.Resources.Devices {
		d := &n.Resources.Devices[i]
		if !named(d, q.Name) || !deviceMeets(d, q.Constraints) {
			continue
		}
		reason = "devices: not enough free " + q.Name
		var ids []string
		for _, in := range d.Instances {
			if in.Healthy && !used.Device(in.ID) && !taken[in.ID] && len(ids) < want {
				ids = append(ids, in.ID)
			}
		}
		if len(ids) == want {
			for _, id := range ids {
				taken[id] = true
			}
			return model.AllocatedDevice{Vendor: d.Vendor, Type: d.Type, Name: d.Name, DeviceIDs: ids}, ""
		}
	}
	return model.AllocatedDevice{}, reason
}

// named reports whether a request (type, vendor/type or vendor/type/name) means the device.
func named(d *model.NodeDevice, request string) bool {
	return meansDevice(request, d.Vendor+"/"+d.Type+"/"+d.Name)
}

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

func deviceMeets(d *model.NodeDevice, cs []model.Constraint) bool {
	value := func(target string) (string, bool) {
		switch target {
		case "${device.vendor}":
			return d.Vendor, true
		case "${device.type}":
			return d.Type, true
		case "${device.model}":
			return d.Name, true
		case "${device.ids}":
			var ids []string
			for _, in := range d.Instances {
				ids = append(ids, in.ID)
			}
			return strings.Join(ids, ","), true
		}
		if k, ok := strings.CutPrefix(target, "${device.attr."); ok {
			v, ok := d.Attributes[strings.TrimSuffix(k, "}")]
			return v.String(), ok
		}
		return target, true
	}
	return !slices.ContainsFunc(cs, func(c model.Constraint) bool {
		l, lok := value(c.LTarget)
		r, rok := value(c.RTarget)
		return !compareAttributes(l, lok, c.Operand, r, rok)
	})
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
