package model

import (
	"iter"
	"slices"
	"strings"
)

// Usage is what allocations hold. It is a sum: what was added can be taken away again, and ports and instances that are held twice are counted twice.
// A copy is a value of its own: nothing that a copy can see is written to.
type Usage struct {
	CPU, MemoryMB, MemoryMaxMB, DiskMB int
	Allocs                             int
	ports                              []int    // sorted
	devices                            []string // ids of instances, sorted
	kinds                              []string // vendor/type/name of each instance, sorted
	shared                             []shared // devices of which slots are held, sorted
}

// shared is what is held of the slots of one device.
type shared struct {
	device          string
	slots, memoryMB int
}

// Add takes what an allocation holds.
func (u *Usage) Add(r *AllocatedResources) {
	u.sum(r, 1)
	for _, p := range r.Ports {
		insert(&u.ports, p.Value)
	}
	for d, id := range r.Instances {
		u.Hold(d, id)
	}
}

// Sub gives it back.
func (u *Usage) Sub(r *AllocatedResources) {
	u.sum(r, -1)
	for _, p := range r.Ports {
		remove(&u.ports, p.Value)
	}
	for d, id := range r.Instances {
		remove(&u.devices, id)
		remove(&u.kinds, d.Vendor+"/"+d.Type+"/"+d.Name)
		u.share(id, -1, -d.MemoryMB)
	}
}

// Hold takes one instance of a device.
func (u *Usage) Hold(d *AllocatedDevice, id string) {
	insert(&u.devices, id)
	insert(&u.kinds, d.Vendor+"/"+d.Type+"/"+d.Name)
	u.share(id, 1, d.MemoryMB)
}

// share counts an instance that is a slot for its device. It never writes to memory that a copy of u can see.
func (u *Usage) share(id string, slots, memoryMB int) {
	device, is := SlotParent(id)
	if !is {
		return
	}
	i, held := u.findShared(device)
	next := shared{device, slots, memoryMB}
	if held {
		next.slots, next.memoryMB = next.slots+u.shared[i].slots, next.memoryMB+u.shared[i].memoryMB
	}
	rest := u.shared[i:]
	if held {
		rest = rest[1:]
	}
	if next == (shared{device: device}) {
		u.shared = slices.Concat(u.shared[:i], rest)
	} else {
		u.shared = slices.Concat(u.shared[:i], []shared{next}, rest)
	}
}

func (u *Usage) findShared(device string) (int, bool) {
	return slices.BinarySearchFunc(u.shared, device, func(s shared, d string) int { return strings.Compare(s.device, d) })
}

// Slots is how many slots of a device are held, and how many MiB they were promised.
func (u *Usage) Slots(device string) (n, memoryMB int) {
	if i, held := u.findShared(device); held {
		return u.shared[i].slots, u.shared[i].memoryMB
	}
	return 0, 0
}

func (u *Usage) sum(r *AllocatedResources, sign int) {
	for _, t := range r.Tasks {
		u.CPU += sign * t.CPU
		u.MemoryMB += sign * t.MemoryMB
		u.MemoryMaxMB += sign * max(t.MemoryMB, t.MemoryMaxMB)
	}
	u.DiskMB += sign * r.DiskMB
	u.Allocs += sign
}

// Instances yields the instances of devices that r names, in no order.
func (r *AllocatedResources) Instances(yield func(d *AllocatedDevice, id string) bool) {
	for _, t := range r.Tasks {
		for i := range t.Devices {
			for _, id := range t.Devices[i].DeviceIDs {
				if !yield(&t.Devices[i], id) {
					return
				}
			}
		}
	}
}

// Sum is r's part of the dimensions that are sums: no ports, no devices.
func (r *AllocatedResources) Sum() Usage {
	var u Usage
	u.sum(r, 1)
	return u
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
	for _, s := range o.shared {
		u.share(SlotID(s.device, 0), s.slots, s.memoryMB)
	}
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

// Kinds yields vendor/type/name of each instance that is held, sorted.
func (u *Usage) Kinds() iter.Seq[string] { return slices.Values(u.kinds) }

// Empty reports whether nothing is held.
func (u *Usage) Empty() bool { return u.Allocs == 0 }

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

// Holds reports whether the allocation holds resources of its node. What is told to stop holds on to them until its node says that it has ended. What has
// to make room for another one gives them to that one at once: the node starts the other one when this one has ended.
func (a *Allocation) Holds() bool {
	return !a.ClientTerminal() && a.DesiredStatus != DesiredEvict
}
