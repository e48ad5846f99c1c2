package sched

import (
	"fmt"
	"slices"
	"strings"

	"rockpool/internal/orchestrator/model"
)

// Range of dynamic ports.
const (
	MinDynamicPort = 20000
	MaxDynamicPort = 32000
)

// Usage is what allocations hold of a node.
type Usage = model.Usage

// Available is what a node has for allocations.
func Available(n *model.Node) (cpu, memoryMB, diskMB int) {
	return n.Resources.CPU - n.Reserved.CPU, n.Resources.MemoryMB - n.Reserved.MemoryMB, n.Resources.DiskMB - n.Reserved.DiskMB
}

// Fits says which dimension does not fit when r is added to what is used; empty = all fit.
func Fits(n *model.Node, used *Usage, r *model.AllocatedResources) string {
	cpu, mem, disk := Available(n)
	needCPU, needMemory := r.Sum()
	switch {
	case used.CPU+needCPU > cpu:
		return "cpu"
	case used.MemoryMB+needMemory > mem:
		return "memory"
	case used.DiskMB+r.DiskMB > disk:
		return "disk"
	}
	for _, p := range r.Ports {
		if used.HasPort(p.Value) {
			return fmt.Sprintf("network: port %d is taken", p.Value)
		}
	}
	for _, t := range r.Tasks {
		for _, d := range t.Devices {
			for _, id := range d.DeviceIDs {
				if used.HasDevice(id) {
					return "devices: " + id + " is taken"
				}
			}
		}
	}
	return ""
}

// allocate gives a group its share of a node: sizes from the specification, ports and device instances that are free. seed
// spreads dynamic ports so that plans made at the same time seldom collide. The text names the dimension that does not fit.
func allocate(n *model.Node, used *Usage, g *model.TaskGroup, oversubscribe bool, seed uint64) (model.AllocatedResources, string) {
	r := model.AllocatedResources{Tasks: make(map[string]*model.AllocatedTask, len(g.Tasks)), DiskMB: g.EphemeralDisk.SizeMB}
	taken := map[string]bool{}
	for _, t := range g.Tasks {
		at := &model.AllocatedTask{CPU: t.Resources.CPU, MemoryMB: t.Resources.MemoryMB}
		if oversubscribe {
			at.MemoryMaxMB = t.Resources.MemoryMaxMB
		}
		if at.MemoryMaxMB > n.Resources.MemoryMB { // a limit that the machine would not live to see
			return r, "memory limit above the node's memory"
		}
		for i := range t.Resources.Devices {
			d, why := pickDevices(n, used, taken, &t.Resources.Devices[i])
			if why != "" {
				return r, why
			}
			at.Devices = append(at.Devices, d)
		}
		r.Tasks[t.Name] = at
	}
	if why := Fits(n, used, &r); why != "" {
		return r, why
	}
	ports := map[int]bool{}
	add := func(p model.Port, value int) {
		to := p.To
		if to == -1 {
			to = value
		}
		ports[value] = true
		r.Ports = append(r.Ports, model.AllocatedPort{Label: p.Label, Value: value, To: to, HostIP: n.Attributes["unique.network.ip-address"]})
	}
	for _, nw := range g.Networks {
		for _, p := range nw.ReservedPorts {
			if used.HasPort(p.Value) || ports[p.Value] {
				return r, fmt.Sprintf("network: reserved port collision %s=%d", p.Label, p.Value)
			}
			add(p, p.Value)
		}
	}
	const span = MaxDynamicPort - MinDynamicPort + 1
	next := int(seed % span)
	for _, nw := range g.Networks {
		for _, p := range nw.DynamicPorts {
			found := false
			for range span {
				v := MinDynamicPort + next
				next = (next + 1) % span
				if !used.HasPort(v) && !ports[v] {
					add(p, v)
					found = true
					break
				}
			}
			if !found {
				return r, "network: dynamic port selection failed"
			}
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
			if in.Healthy && !used.HasDevice(in.ID) && !taken[in.ID] && len(ids) < want {
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
	switch p := strings.SplitN(request, "/", 3); len(p) {
	case 1:
		return p[0] == d.Type
	case 2:
		return p[0] == d.Vendor && p[1] == d.Type
	default:
		return p[0] == d.Vendor && p[1] == d.Type && p[2] == d.Name
	}
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
			return v, ok
		}
		return target, true
	}
	return !slices.ContainsFunc(cs, func(c model.Constraint) bool {
		l, lok := value(c.LTarget)
		r, rok := value(c.RTarget)
		return !compare(l, lok, c.Operand, r, rok)
	})
}
