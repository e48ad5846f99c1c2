//go:build linux && cgo

package nvidia_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rockpool/internal/orchestrator/device"
	"rockpool/internal/orchestrator/device/nvidia"
	"rockpool/internal/orchestrator/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	scenarioFile = "NVML_SCENARIO"
	childTimeout = 90 * time.Second
	patience     = 20 * time.Second // for something that takes milliseconds on a machine that does nothing else
	poll         = 30 * time.Millisecond
)

// world is the stand-in library's: what it says, and what the kernel would say.
type world struct {
	t     *testing.T
	lines map[string]string
	proc  string
	sys   string
}

// inChild reports whether the test runs in a process whose loader finds the stand-in library. Where it does not, it runs the test in such a process.
func inChild(t *testing.T, flags ...string) (*world, bool) {
	t.Helper()
	if file := os.Getenv(scenarioFile); file != "" {
		w := &world{t: t, lines: map[string]string{"driver": "550.54.15", "cuda": "12040"}, proc: t.TempDir(), sys: t.TempDir()}
		w.save()
		return w, true
	}
	dir := t.TempDir()
	build(t, filepath.Join(dir, "libnvidia-ml.so.1"), flags...)
	ctx, cancel := context.WithTimeout(t.Context(), childTimeout)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	child.Env = append(os.Environ(), "LD_LIBRARY_PATH="+dir, scenarioFile+"="+filepath.Join(dir, "scenario"))
	out, err := child.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("with the stand-in library: %v\n%s", err, out)
	}
	return nil, false
}

func build(t *testing.T, out string, flags ...string) {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("there is no gcc to build the stand-in for the driver's library with")
	}
	module, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/NVIDIA/go-nvml").Output()
	if err != nil {
		t.Skip("the go command cannot say where the header of the driver's library is: " + err.Error())
	}
	args := append([]string{
		"-shared", "-fPIC", "-Wall", "-O1", "-DNVML_NO_UNVERSIONED_FUNC_DEFS=1", "-I", filepath.Join(strings.TrimSpace(string(module)), "pkg/nvml"), "-o", out,
	}, flags...)
	if text, err := exec.CommandContext(t.Context(), gcc, append(args, "testdata/standin.c")...).CombinedOutput(); err != nil {
		t.Fatalf("build the stand-in library: %v\n%s", err, text)
	}
}

// say changes the scenario: pairs of key and value. An empty value removes a line.
func (w *world) say(pairs ...string) {
	for i := 0; i < len(pairs); i += 2 {
		if w.lines[pairs[i]] = pairs[i+1]; pairs[i+1] == "" {
			delete(w.lines, pairs[i])
		}
	}
	w.save()
}

func (w *world) save() {
	w.t.Helper()
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(w.lines)) {
		fmt.Fprintln(&b, k, w.lines[k])
	}
	file := os.Getenv(scenarioFile)
	if err := os.WriteFile(file+".new", []byte(b.String()), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		w.t.Fatal(err)
	}
}

func bus(i int) string { return fmt.Sprintf("00000000:%02X:00.0", 0x3b+i) }

func kernelBus(i int) string { return fmt.Sprintf("0000:%02x:00.0", 0x3b+i) }

func uuid(i int) string { return fmt.Sprintf("GPU-00000000-0000-4000-8000-%012d", i) }

// gpus makes n equal ones.
func (w *world) gpus(n int) {
	w.t.Helper()
	var all []string
	for i := range n {
		all = append(all, fmt.Sprint(i))
		for k, v := range map[string]string{
			"uuid": uuid(i), "bus": bus(i), "name": "NVIDIA A100-SXM4-40GB", "memory": "40960", "used": "1024", "bar1": "65536", "power_limit": "400000", "power": "61500",
			"temperature": "41", "cores_clock": "1410", "memory_clock": "1215", "pcie_generation": "4", "pcie_width": "16", "display": "0", "persistence": "1",
			"capability": "8.0", "utilization": "37", "ecc": "0", "mig": "0", "reasons": "0", "retiring": "0",
		} {
			w.lines[fmt.Sprintf("gpu %d %s", i, k)] = v
		}
		w.plug(i)
	}
	w.say("gpus", strings.Join(all, " "))
}

// plug has the kernel know a GPU.
func (w *world) plug(i int) {
	w.t.Helper()
	sys := filepath.Join(w.sys, "bus/pci/devices", kernelBus(i))
	for _, dir := range []string{filepath.Join(w.proc, "driver/nvidia/gpus", kernelBus(i)), sys} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(sys, "numa_node"), []byte(fmt.Sprintln(i%2)), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) unplug(i int) {
	w.t.Helper()
	if err := os.Remove(filepath.Join(w.proc, "driver/nvidia/gpus", kernelBus(i))); err != nil {
		w.t.Fatal(err)
	}
}

// part divides a GPU that says that it is divided.
func (w *world) part(gpu, i int, id, profile, memory string) {
	prefix := fmt.Sprintf("part %d %d ", gpu, i)
	w.say(prefix+"uuid", id, prefix+"name", "NVIDIA A100-SXM4-40GB MIG "+profile, prefix+"memory", memory, prefix+"used", "12", prefix+"instance", fmt.Sprint(7+i))
}

func (w *world) config() nvidia.Config {
	return nvidia.Config{Poll: poll, CallTimeout: 5 * time.Second, Proc: w.proc, Sys: w.sys}
}

// watched is a plugin that is being watched.
type watched struct {
	t       *testing.T
	plugin  *nvidia.Plugin
	reports chan device.Report
	last    device.Report
}

func (w *world) watch(cfg nvidia.Config) *watched {
	p := &watched{t: w.t, plugin: nvidia.New(cfg), reports: make(chan device.Report, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- p.plugin.Watch(ctx, func(r device.Report) {
			select { // only the newest counts
			case <-p.reports:
			default:
			}
			p.reports <- r
		})
	}()
	w.t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(patience):
			w.t.Error("the plugin does not stop")
		}
	})
	return p
}

// until waits for a report.
func (p *watched) until(what string, is func(r device.Report) bool) device.Report {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case p.last = <-p.reports:
			if is(p.last) {
				return p.last
			}
		case <-deadline:
			p.t.Fatalf("no report says that %s; the last one is %+v", what, p.last)
		}
	}
}

// ill waits until an instance is unhealthy with a reason that contains why, or with "" healthy, and every other one is healthy.
func (p *watched) ill(id, why string) {
	p.t.Helper()
	p.until(fmt.Sprintf("%s has %q", id, why), func(r device.Report) bool {
		found := false
		for in := range instances(r) {
			if in.ID != id {
				if !in.Healthy {
					return false
				}
				continue
			}
			found = in.Healthy == (why == "") && strings.Contains(in.HealthDescription, why)
		}
		return found
	})
}

func instances(r device.Report) func(func(model.DeviceInstance) bool) {
	return func(yield func(model.DeviceInstance) bool) {
		for _, g := range r.Groups {
			for _, in := range g.Instances {
				if !yield(in) {
					return
				}
			}
		}
	}
}

func ids(r device.Report) (all []string) {
	for in := range instances(r) {
		all = append(all, in.ID)
	}
	return all
}
