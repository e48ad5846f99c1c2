//go:build linux && cgo

package nvidia

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	mock "github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"

	"rockpool/internal/orchestrator/device"
	"rockpool/internal/orchestrator/model"
)

// watchDGX watches a plugin on NVIDIA's own mock until a report is as asked for. Functions that the mock does not have panic, as a defect in a binding would.
func watchDGX(t *testing.T, server *mock.Server, is func(device.Report) bool) device.Report {
	t.Helper()
	p := newPlugin(Config{Poll: 10 * time.Millisecond, Proc: t.TempDir(), Sys: t.TempDir()}.withDefaults(), fromInterface(server, time.Second))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var r device.Report
	_ = p.Watch(ctx, func(got device.Report) { // the error is that of ctx
		if r = got; is(r) {
			cancel()
		}
	})
	if !is(r) {
		t.Fatalf("the last report is %+v", r)
	}
	return r
}

func TestAMachineOfEightGPUs(t *testing.T) {
	server := dgxa100.New()
	r := watchDGX(t, server, func(r device.Report) bool { return r.Healthy })
	if len(r.Groups) != 1 || len(r.Groups[0].Instances) != 8 || r.Groups[0].Name != "Mock NVIDIA A100-SXM4-40GB" {
		t.Fatalf("devices are %+v", r.Groups)
	}
	for k, want := range map[string]model.Attribute{
		"memory": model.IntOf(40960, "MiB"), "driver_version": model.TextOf("550.54.15"), "cuda_version": model.TextOf("12.4"), "compute_capability": model.TextOf("8.0"),
	} {
		if got := r.Groups[0].Attributes[k]; got != want {
			t.Errorf("%s is %v, not %v", k, got, want)
		}
	}
	for _, d := range server.Devices {
		if _, in := r.Instance(d.(*mock.Device).UUID); in == nil || !in.Healthy {
			t.Errorf("%s is %+v", d.(*mock.Device).UUID, in)
		}
	}
}

func TestAGPUThatIsLostFromTheStartIsSpokenOf(t *testing.T) {
	server := dgxa100.New()
	server.Devices[3].(*mock.Device).GetUUIDFunc = func() (string, nvml.Return) { return "", nvml.ERROR_GPU_IS_LOST }
	r := watchDGX(t, server, func(r device.Report) bool { return r.Healthy })
	if len(r.Groups[0].Instances) != 7 || !strings.Contains(r.Description, "GPU 3: nvmlDeviceGetUUID: the GPU has fallen off the bus") {
		t.Errorf("%d GPUs are offered; the report says %q", len(r.Groups[0].Instances), r.Description)
	}
}

func TestAPanicInTheBindingIsAnError(t *testing.T) {
	server := dgxa100.New()
	server.DeviceGetCountFunc = func() (int, nvml.Return) { panic("a defect") }
	r := watchDGX(t, server, func(r device.Report) bool { return r.Description != "" })
	if r.Healthy || !strings.Contains(r.Description, "a defect") {
		t.Errorf("the report is %+v", r)
	}
}

func TestDiagnosesOfTheDriversErrors(t *testing.T) {
	for code, want := range map[uint64]string{31: "", 45: "", 79: "XID 79: the GPU has fallen off the bus", 4711: "XID 4711: the driver reports an error that is not known to be harmless"} {
		if got := diagnosis(code); got != want {
			t.Errorf("XID %d is %q, not %q", code, got, want)
		}
	}
}
