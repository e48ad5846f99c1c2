//go:build linux && cgo

package nvidia

import (
	"context"
	"slices"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"rockpool/internal/orchestrator/device"
	"rockpool/internal/orchestrator/model"
)

// Stats asks every instance for its figures. Of a part only the memory is its own; temperature and power are of the whole GPU. A slot has those of its GPU, which
// is asked once: whose they are among its slots the driver does not tell.
func (p *Plugin) Stats(ctx context.Context) (all []device.Sample, err error) {
	p.mu.Lock()
	targets := p.targets
	p.mu.Unlock()
	r := reader{ctx: ctx, library: p.library}
	asked := "" // the GPU whose slot was the last one
	for _, t := range targets {
		r.lost = nil
		s := t.sample
		whole, slot := model.SlotParent(s.ID)
		if slot && whole == asked {
			s.At, s.Values = all[len(all)-1].At, all[len(all)-1].Values
			all = append(all, s)
			continue
		}
		s.At = time.Now()
		add := func(m device.Measure, n, of float64) {
			s.Values = append(s.Values, device.Value{Measure: m, N: n, Of: of})
		}
		if m, ok := get(&r, t.own().GetMemoryInfo, "nvmlDeviceGetMemoryInfo"); ok {
			add(device.Memory, float64(m.Used>>20), float64(m.Total>>20))
		}
		if c, ok := get(&r, func() (uint32, nvml.Return) { return t.gpu.GetTemperature(nvml.TEMPERATURE_GPU) }, "nvmlDeviceGetTemperature"); ok {
			add(device.Temperature, float64(c), 0)
		}
		if mw, ok := get(&r, t.gpu.GetPowerUsage, "nvmlDeviceGetPowerUsage"); ok {
			limit, _ := get(&r, t.gpu.GetPowerManagementLimit, "nvmlDeviceGetPowerManagementLimit")
			add(device.Power, float64(mw)/1000, float64(limit)/1000)
		}
		if t.part == nil {
			r.whole(t.gpu, add)
		}
		if r.broken != nil {
			return all, r.broken
		}
		if len(s.Values) == 0 {
			continue
		}
		slices.SortFunc(s.Values, func(a, b device.Value) int { return int(a.Measure) - int(b.Measure) })
		all, asked = append(all, s), whole
	}
	return all, nil
}

// whole are the figures that only whole GPUs have.
func (r *reader) whole(h nvml.Device, add func(m device.Measure, n, of float64)) {
	if u, ok := get(r, h.GetUtilizationRates, "nvmlDeviceGetUtilizationRates"); ok {
		add(device.Utilization, float64(u.Gpu), 0)
		add(device.MemoryUtilization, float64(u.Memory), 0)
	}
	for m, f := range map[device.Measure]struct {
		name string
		ask  func() (uint32, uint32, nvml.Return)
	}{
		device.EncoderUtilization: {"nvmlDeviceGetEncoderUtilization", h.GetEncoderUtilization},
		device.DecoderUtilization: {"nvmlDeviceGetDecoderUtilization", h.GetDecoderUtilization},
	} {
		if u, ok := get(r, func() (uint32, nvml.Return) { u, _, code := f.ask(); return u, code }, f.name); ok {
			add(m, float64(u), 0)
		}
	}
	if b, ok := get(r, h.GetBAR1MemoryInfo, "nvmlDeviceGetBAR1MemoryInfo"); ok {
		add(device.BAR1, float64(b.Bar1Used>>20), float64(b.Bar1Total>>20))
	}
	for m, clock := range map[device.Measure]nvml.ClockType{device.CoresClock: nvml.CLOCK_GRAPHICS, device.MemoryClock: nvml.CLOCK_MEM} {
		if mhz, ok := get(r, func() (uint32, nvml.Return) { return h.GetClockInfo(clock) }, "nvmlDeviceGetClockInfo"); ok {
			most, _ := get(r, func() (uint32, nvml.Return) { return h.GetMaxClockInfo(clock) }, "nvmlDeviceGetMaxClockInfo")
			add(m, float64(mhz), float64(most))
		}
	}
	if n, ok := get(r, func() (uint64, nvml.Return) {
		return h.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC)
	},
		"nvmlDeviceGetTotalEccErrors"); ok {
		add(device.ECCErrors, float64(n), 0)
	}
}
