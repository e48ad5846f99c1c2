//go:build linux && cgo

package nvidia

import (
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// slowFor is how many looks in a row a GPU has to be seen slowed down by its hardware until it is unhealthy, and as many without until it is healthy again.
const slowFor = 2

// examine says why a GPU is unhealthy, by what can be read of it; "" = it is not.
func (p *Plugin) examine(r *reader, g *gpu) string {
	h := g.handle
	if rows, ok := get(r, func() (remapped, nvml.Return) {
		_, uncorrectable, pending, failed, code := h.GetRemappedRows()
		return remapped{uncorrectable, pending, failed}, code
	}, "nvmlDeviceGetRemappedRows"); ok {
		switch {
		case rows.failed:
			return "a row of its memory could not be remapped"
		case rows.pending:
			return "rows of its memory are to be remapped: the GPU needs a reset"
		}
	}
	if s, ok := get(r, h.GetRetiredPagesPendingStatus, "nvmlDeviceGetRetiredPagesPendingStatus"); ok && s == nvml.FEATURE_ENABLED {
		return "pages of its memory are to be retired: the GPU needs a reset"
	}
	if n, ok := get(r, func() (uint64, nvml.Return) {
		return h.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC)
	},
		"nvmlDeviceGetTotalEccErrors"); ok && n > 0 {
		return fmt.Sprintf("memory errors that could not be corrected since the driver was loaded: %d", n)
	}
	if s := p.strain(r, g); s != "" {
		return s
	}
	return ""
}

type remapped struct {
	uncorrectable   int
	pending, failed bool
}

// strain says what slows a GPU down, once that has lasted for a while.
func (p *Plugin) strain(r *reader, g *gpu) string {
	why, found := r.slowed(g.handle)
	n := p.strained[g.uuid]
	switch {
	case why != "" && n < 0: // it was on the way to its health
		n = slowFor
	case why != "":
		n = min(n+1, slowFor)
	case n == slowFor:
		n = 1 - slowFor
	case n < 0:
		n++
	default:
		n = 0
	}
	if !found {
		n = 0
	}
	p.strained[g.uuid] = n
	switch {
	case n == slowFor:
		return why
	case n < 0:
		return "its hardware slowed it down until just now"
	}
	return ""
}

// slowed says what slows a GPU down at this moment, if that can be found out.
func (r *reader) slowed(h nvml.Device) (why string, found bool) {
	reasons, ok := get(r, h.GetCurrentClocksEventReasons, "nvmlDeviceGetCurrentClocksEventReasons")
	if !ok {
		if reasons, ok = get(r, h.GetCurrentClocksThrottleReasons, "nvmlDeviceGetCurrentClocksThrottleReasons"); !ok {
			return "", false
		}
	}
	switch {
	case reasons&nvml.ClocksThrottleReasonHwThermalSlowdown != 0:
		t, _ := get(r, func() (uint32, nvml.Return) { return h.GetTemperature(nvml.TEMPERATURE_GPU) }, "nvmlDeviceGetTemperature")
		return "it is too hot and its hardware slows it down: " + degrees(t), true
	case reasons&nvml.ClocksThrottleReasonHwPowerBrakeSlowdown != 0:
		return "its power supply slows it down", true
	}
	return "", true
}

// degrees is a temperature in steps of ten, so that the sentence does not change with each look.
func degrees(celsius uint32) string {
	if celsius == 0 {
		return "its temperature is not known"
	}
	return fmt.Sprintf("%d °C or more", celsius/10*10)
}
