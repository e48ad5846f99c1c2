//go:build linux && cgo

package nvidia

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"

	"rockpool/internal/orchestrator/device"
)

// Beside others on one GPU only a process that is no more, and that the driver still lists, is known to be of a task that has ended.
func TestWhatATaskLeavesBesideOthers(t *testing.T) {
	server, proc := dgxa100.New(), t.TempDir()
	for pid, state := range map[string]string{"10": "R", "11": "Z"} {
		dir := filepath.Join(proc, pid)
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "stat"), []byte(pid+" (a ) Z b) "+state+" 1 1"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	var listed []nvml.ProcessInfo
	code := nvml.SUCCESS
	gpu := server.Devices[0].(*dgxa100.Device)
	gpu.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) { return listed, code }
	gpu.GetMemoryInfo_v2Func = func() (nvml.Memory_v2, nvml.Return) {
		return nvml.Memory_v2{Used: 30 << 30, Total: 40 << 30}, nvml.SUCCESS
	}
	p := newPlugin(Config{Proc: proc}.withDefaults(), fromInterface(server, time.Second))
	if err := p.library.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.targets = []target{{sample: device.Sample{ID: "slot"}, gpu: gpu, shared: true}, {sample: device.Sample{ID: "whole"}, gpu: gpu}}
	for _, c := range []struct {
		pids  []uint32
		slot  string
		whole string
	}{
		{nil, "", "30720 MiB of its memory"},
		{[]uint32{10}, "", "1 process is still on it: 10"},
		{[]uint32{10, 11}, "1 process is still on it: 11", "2 processes are still on it: 10, 11"},
		{[]uint32{12, 10}, "1 process is still on it: 12", "2 processes are still on it: 10, 12"},
	} {
		listed = nil
		for _, pid := range c.pids {
			listed = append(listed, nvml.ProcessInfo{Pid: pid})
		}
		for id, want := range map[string]string{"slot": c.slot, "whole": c.whole} {
			if got, err := p.Residue(t.Context(), id); err != nil || (got == "") != (want == "") || !strings.HasPrefix(got, want) {
				t.Errorf("with %v: on %s is left %q, %v, want %q", c.pids, id, got, err, want)
			}
		}
	}
	code = nvml.ERROR_NOT_SUPPORTED
	if _, err := p.Residue(t.Context(), "slot"); err == nil || !strings.Contains(err.Error(), "does not list the processes") {
		t.Errorf("without a list: %v", err)
	}
}
