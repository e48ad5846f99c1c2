package model

import "slices"

// Usage is what allocations hold of a node. One that a store gave out is never changed: Clone it first.
type Usage struct {
	CPU, MemoryMB, DiskMB int
	Allocs                int      // that hold something
	Ports                 []int    // sorted; a port is in here as often as it is held
	Devices               []string // ids of instances, alike
}

// Holds reports whether an allocation still holds resources of its node. What is told to stop holds on to them until its node says that it has ended.
func (a *Allocation) Holds() bool { return !a.ClientTerminal() }

// Clone makes a copy that may be changed.
func (u *Usage) Clone() *Usage {
	c := *u
	c.Ports, c.Devices = slices.Clone(u.Ports), slices.Clone(u.Devices)
	return &c
}

// Add takes an allocation's resources.
func (u *Usage) Add(r *AllocatedResources) {
	u.sum(r, 1)
	for _, p := range r.Ports {
		u.Ports = with(u.Ports, p.Value)
	}
	for _, id := range r.instances() {
		u.Devices = with(u.Devices, id)
	}
}

// Remove takes back what Add took.
func (u *Usage) Remove(r *AllocatedResources) {
	u.sum(r, -1)
	for _, p := range r.Ports {
		u.Ports = without(u.Ports, p.Value)
	}
	for _, id := range r.instances() {
		u.Devices = without(u.Devices, id)
	}
}

// HasPort reports whether somebody holds a port.
func (u *Usage) HasPort(value int) bool { _, ok := slices.BinarySearch(u.Ports, value); return ok }

// HasDevice reports whether somebody holds an instance of a device.
func (u *Usage) HasDevice(id string) bool { _, ok := slices.BinarySearch(u.Devices, id); return ok }

// Empty reports whether nothing is held.
func (u *Usage) Empty() bool { return u.Allocs == 0 }

func (u *Usage) sum(r *AllocatedResources, sign int) {
	cpu, memory := r.Sum()
	u.CPU += sign * cpu
	u.MemoryMB += sign * memory
	u.DiskMB += sign * r.DiskMB
	u.Allocs += sign
}

// Sum is what all tasks hold together.
func (r *AllocatedResources) Sum() (cpu, memoryMB int) {
	for _, t := range r.Tasks {
		cpu += t.CPU
		memoryMB += t.MemoryMB
	}
	return cpu, memoryMB
}

func (r *AllocatedResources) instances() []string {
	var ids []string
	for _, t := range r.Tasks {
		for _, d := range t.Devices {
			ids = append(ids, d.DeviceIDs...)
		}
	}
	return ids
}

func with[T int | string](s []T, v T) []T {
	i, _ := slices.BinarySearch(s, v)
	return slices.Insert(s, i, v)
}

func without[T int | string](s []T, v T) []T {
	if i, ok := slices.BinarySearch(s, v); ok {
		return slices.Delete(s, i, i+1)
	}
	return s
}
