package node

import (
	"context"
	"maps"
	"slices"
	"time"

	"rockpool/internal/orchestrator/model"
)

// figuresTimeout bounds how long the machine is asked for its figures.
const figuresTimeout = 2 * time.Second

// Figures sets gauges of the node, under Nomad's names: what its allocations do and hold, and how the machine is. None is of one allocation or task, so that there
// are as many of them however many jobs run; of devices, there are as many as the machine has.
func (a *Agent) Figures(set func(name string, v float64)) {
	n := a.node()
	if n == nil {
		return // it has not described itself yet
	}
	a.mu.Lock()
	runners := slices.Collect(maps.Values(a.runners))
	count := map[string]int{model.ClientPending: 0, model.ClientRunning: 0, "terminal": len(a.ended)}
	a.mu.Unlock()
	var held model.NodeResources
	for _, r := range runners {
		status, res := r.standing()
		count[status]++
		if status == "terminal" {
			continue
		}
		held.DiskMB += res.DiskMB
		for _, t := range res.Tasks {
			held.CPU += t.CPU
			held.MemoryMB += t.MemoryMB
		}
	}
	for status, v := range count {
		set("nomad.client.allocations."+status, float64(v))
	}
	for _, x := range []struct {
		name             string
		all, kept, taken int
	}{
		{"cpu", n.Resources.CPU, n.Reserved.CPU, held.CPU}, {"memory", n.Resources.MemoryMB, n.Reserved.MemoryMB, held.MemoryMB},
		{"disk", n.Resources.DiskMB, n.Reserved.DiskMB, held.DiskMB},
	} {
		set("nomad.client.allocated."+x.name, float64(x.taken))
		set("nomad.client.unallocated."+x.name, float64(max(x.all-x.kept-x.taken, 0)))
	}
	set("nomad.client.executions.running", float64(len(a.executions.all())))
	a.machineFigures(set)
	a.deviceFigures(set)
}

func (a *Agent) machineFigures(set func(name string, v float64)) {
	ctx, cancel := context.WithTimeout(context.Background(), figuresTimeout)
	defer cancel()
	m, err := memory(ctx)
	if err != nil {
		return // what is not known is not told
	}
	set("nomad.client.host.memory.total", float64(m.Total))
	set("nomad.client.host.memory.available", float64(m.Available))
	set("nomad.client.host.memory.used", float64(m.Used))
	set("nomad.client.host.memory.free", float64(m.Free))
	if d := diskStats(ctx, a.cfg.DataDir); d != nil {
		set("nomad.client.host.disk.size", float64(d.Size))
		set("nomad.client.host.disk.used", float64(d.Used))
		set("nomad.client.host.disk.available", float64(d.Available))
		set("nomad.client.host.disk.used_percent", d.UsedPercent)
		set("nomad.client.host.disk.inodes_percent", d.InodesUsedPercent)
	}
}

// standing is what an allocation does, and what it holds.
func (r *allocRunner) standing() (status string, res model.AllocatedResources) {
	over := r.over()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case over:
		return "terminal", r.alloc.Resources
	case r.reported.ClientStatus == model.ClientPending, r.reported.ID == "":
		return model.ClientPending, r.alloc.Resources
	}
	return model.ClientRunning, r.alloc.Resources // also what is on its way to its end
}
