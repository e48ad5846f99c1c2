package node

import (
	"context"
	"strings"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/mem"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/wire"
)

// HostStats are figures of the machine. Those of the processors are shares since the machine's start for the first question, and since the one before for
// all others. What cannot be found out is left out.
func (a *Agent) HostStats(ctx context.Context) (*wire.HostStats, error) {
	m, err := memory(ctx)
	if err != nil {
		return nil, err
	}
	out := &wire.HostStats{Memory: m}
	if up, err := host.UptimeWithContext(ctx); err == nil {
		out.Uptime = up
	}
	if times, err := cpu.TimesWithContext(ctx, true); err == nil {
		out.CPU, out.CPUTicksConsumed = a.processors(times)
	}
	if parts, err := disk.PartitionsWithContext(ctx, false); err == nil {
		for _, p := range parts {
			if d := diskStats(ctx, p.Mountpoint); d != nil {
				d.Device = p.Device
				out.DiskStats = append(out.DiskStats, d)
			}
		}
	}
	out.DeviceStats = a.deviceStats(ctx, nil)
	if out.AllocDirStats = diskStats(ctx, a.cfg.DataDir); out.AllocDirStats == nil {
		out.AllocDirStats = &wire.HostDiskStats{}
	}
	return out, nil
}

func memory(ctx context.Context) (*wire.HostMemoryStats, error) {
	m, err := mem.VirtualMemoryWithContext(ctx)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "figures of the machine's memory are not known")
	}
	return &wire.HostMemoryStats{Total: m.Total, Available: m.Available, Used: m.Used, Free: m.Free}, nil
}

func diskStats(ctx context.Context, path string) *wire.HostDiskStats {
	u, err := disk.UsageWithContext(ctx, path)
	if err != nil {
		return nil
	}
	return &wire.HostDiskStats{Mountpoint: path, Size: u.Total, Used: u.Used, Available: u.Free, UsedPercent: u.UsedPercent, InodesUsedPercent: u.InodesUsedPercent}
}

// processors are the shares of time, and the MHz that were used.
func (a *Agent) processors(times []cpu.TimesStat) (all []*wire.HostCPUStats, ticks float64) {
	a.changing.Lock()
	defer a.changing.Unlock()
	before := map[string]cpu.TimesStat{}
	for _, t := range a.times {
		before[t.CPU] = t
	}
	a.times = times
	for _, t := range times {
		b := before[t.CPU]
		user, system, idle := t.User+t.Nice-b.User-b.Nice, t.System+t.Irq+t.Softirq-b.System-b.Irq-b.Softirq, t.Idle+t.Iowait-b.Idle-b.Iowait
		total := user + system + idle + t.Steal - b.Steal
		s := &wire.HostCPUStats{CPU: strings.TrimSpace(t.CPU)}
		if total > 0 {
			s.User, s.System, s.Idle = 100*user/total, 100*system/total, 100*idle/total
			ticks += (user + system) / total * float64(a.CoreMHz())
		}
		all = append(all, s)
	}
	return all, ticks
}

// CoreMHz is the clock of one core.
func (a *Agent) CoreMHz() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.machine.resources.CPU / max(a.machine.resources.Cores, 1)
}
