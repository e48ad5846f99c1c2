package sched

import (
	"slices"

	"rockpool/internal/orchestrator/model"
)

// Usage is what allocations hold. It is a sum: what was added can be taken away again, and ports and instances that are held twice are counted twice.
// A copy is a value of its own as long as only Add is called on either.
type Usage struct {
	CPU, MemoryMB, MemoryMaxMB, DiskMB int
	Allocs                             int
	ports                              []int    // sorted
	devices                            []string // ids of instances, sorted
	kinds                              []string // vendor/type/name of each instance, sorted
}

// Add takes what an allocation holds.
func (u *Usage) Add(r *model.AllocatedResources) {
	u.sum(r, 1)
	for _, p := range r.Ports {
		insert(&u.ports, p.Value)
	}
	each(r, func(d *model.AllocatedDevice, id string) {
		insert(&u.devices, id)
		insert(&u.kinds, d.Vendor+"/"+d.Type+"/"+d.Name)
	})
}

// Sub gives it back.
func (u *Usage) Sub(r *model.AllocatedResources) {
	u.sum(r, -1)
	for _, p := range r.Ports {
		remove(&u.ports, p.Value)
	}
	each(r, func(d *model.AllocatedDevice, id string) {
		remove(&u.devices, id)
		remove(&u.kinds, d.Vendor+"/"+d.Type+"/"+d.Name)
	})
}

func (u *Usage) sum(r *model.AllocatedResources, sign int) {
	for _, t := range r.Tasks {
		u.CPU += sign * t.CPU
		u.MemoryMB += sign * t.MemoryMB
		u.MemoryMaxMB += sign * max(t.MemoryMB, t.MemoryMaxMB)
	}
	u.DiskMB += sign * r.DiskMB
	u.Allocs += sign
}

func each(r *model.AllocatedResources, f func(d *model.AllocatedDevice, id string)) {
	for _, t := range r.Tasks {
		for i := range t.Devices {
			for _, id := range t.Devices[i].DeviceIDs {
				f(&t.Devices[i], id)
			}
		}
	}
}

// Merge takes all that another Usage holds.
func (u *Usage) Merge(o *Usage) {
	u.CPU += o.CPU
	u.MemoryMB += o.MemoryMB
	u.MemoryMaxMB += o.MemoryMaxMB
	u.DiskMB += o.DiskMB
	u.Allocs += o.Allocs
	u.ports = merged(u.ports, o.ports)
	u.devices = merged(u.devices, o.devices)
	u.kinds = merged(u.kinds, o.kinds)
}

func merged[T int | string](a, b []T) []T {
	if len(b) == 0 {
		return a
	}
	m := slices.Concat(a, b)
	slices.Sort(m)
	return m
}

// Port reports whether somebody holds a port.
func (u *Usage) Port(p int) bool { _, held := slices.BinarySearch(u.ports, p); return held }

// Device reports whether somebody holds an instance.
func (u *Usage) Device(id string) bool { _, held := slices.BinarySearch(u.devices, id); return held }

// Devices counts the instances held of the devices that a name (type, vendor/type or vendor/type/name) means.
func (u *Usage) Devices(name string) int {
	n := 0
	for _, k := range u.kinds {
		if meansDevice(name, k) {
			n++
		}
	}
	return n
}

// insert never writes to memory that a copy of the slice can see.
func insert[T int | string](s *[]T, v T) {
	i, _ := slices.BinarySearch(*s, v)
	n := make([]T, len(*s)+1)
	copy(n, (*s)[:i])
	n[i] = v
	copy(n[i+1:], (*s)[i:])
	*s = n
}

func remove[T int | string](s *[]T, v T) {
	i, held := slices.BinarySearch(*s, v)
	switch {
	case !held:
	case len(*s) == 1:
		*s = nil
	default:
		*s = slices.Concat((*s)[:i], (*s)[i+1:])
	}
}

// Holds reports whether an allocation holds resources of its node. What is told to stop holds on to them until its node says that it has ended. What has
// to make room for another one gives them to that one at once: the node starts the other one when this one has ended.
func Holds(a *model.Allocation) bool {
	return !a.ClientTerminal() && a.DesiredStatus != model.DesiredEvict
}
