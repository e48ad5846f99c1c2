package node

import (
	"cmp"
	"context"

	"github.com/shirou/gopsutil/v4/host"

	"rockpool/internal/orchestrator/model"
)

// Figures sets what this node runs and has left, under Nomad's names, in MHz and MB, and the machine's memory and disk in bytes. There is none per allocation or task.
func (a *Agent) Figures(set func(name string, v float64)) {
	const prefix = "nomad.client."
	count := map[string]float64{"pending": 0, "running": 0, "terminal": 0}
	held := &model.Usage{}
	a.mu.Lock()
	n := a.described
	for _, r := range a.runners {
		r.mu.Lock()
		switch cmp.Or(r.reported.ClientStatus, r.alloc.ClientStatus) {
		case model.ClientRunning:
			count["running"]++
			held.Add(&r.alloc.Resources)
		case model.ClientPending, "":
			count["pending"]++
			held.Add(&r.alloc.Resources)
		default:
			count["terminal"]++
		}
		r.mu.Unlock()
	}
	a.mu.Unlock()
	for status, n := range count {
		set(prefix+"allocations."+status, n)
	}
	set(prefix+"executions.running", float64(len(a.executions.all())))
	set(prefix+"allocated.cpu", float64(held.CPU))
	set(prefix+"allocated.memory", float64(held.MemoryMB))
	set(prefix+"allocated.disk", float64(held.DiskMB))
	if n != nil {
		set(prefix+"unallocated.cpu", float64(n.Resources.CPU-n.Reserved.CPU-held.CPU))
		set(prefix+"unallocated.memory", float64(n.Resources.MemoryMB-n.Reserved.MemoryMB-held.MemoryMB))
		set(prefix+"unallocated.disk", float64(n.Resources.DiskMB-n.Reserved.DiskMB-held.DiskMB))
	}
	// What the machine does not tell is left out.
	if up, err := host.UptimeWithContext(context.Background()); err == nil {
		set(prefix+"uptime", float64(up))
	}
	if d := diskStats(context.Background(), a.cfg.DataDir); d != nil {
		set(prefix+"host.disk.size", float64(d.Size))
		set(prefix+"host.disk.used", float64(d.Used))
		set(prefix+"host.disk.available", float64(d.Available))
		set(prefix+"host.disk.used_percent", d.UsedPercent)
		set(prefix+"host.disk.inodes_percent", d.InodesUsedPercent)
	}
	if m, err := memory(context.Background()); err == nil {
		set(prefix+"host.memory.total", float64(m.Total))
		set(prefix+"host.memory.available", float64(m.Available))
		set(prefix+"host.memory.used", float64(m.Used))
		set(prefix+"host.memory.free", float64(m.Free))
	}
}
