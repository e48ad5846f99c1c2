//go:build linux && cgo

package nvidia_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rockpool/internal/orchestrator/device"
	"rockpool/internal/orchestrator/device/nvidia"
	"rockpool/internal/orchestrator/device/nvidia/standin"
	"rockpool/internal/orchestrator/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	childTimeout = 90 * time.Second
	patience     = 20 * time.Second // for something that takes milliseconds on a machine that does nothing else
	poll         = 30 * time.Millisecond
)

// world is the stand-in library's: what it says, and what the kernel would say.
type world struct {
	t     *testing.T
	lines standin.Scenario
	proc  string
	sys   string
}

// inChild reports whether the test runs in a process whose loader finds the stand-in library. Where it does not, it runs the test in such a process.
func inChild(t *testing.T, flags ...string) (*world, bool) {
	t.Helper()
	if os.Getenv(standin.Variable) != "" {
		w := &world{t: t, lines: standin.GPUs(0), proc: t.TempDir(), sys: t.TempDir()}
		w.say()
		return w, true
	}
	t.Parallel() // each has a process and a library of its own, and mostly waits
	dir := t.TempDir()
	standin.Build(t, dir, flags...)
	ctx, cancel := context.WithTimeout(t.Context(), childTimeout)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	child.Env = append(os.Environ(), "LD_LIBRARY_PATH="+dir, standin.Variable+"="+filepath.Join(dir, "scenario"),
		"GORACE=atexit_sleep_ms=0") // the race detector's pause at the end of each process
	out, err := child.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("with the stand-in library: %v\n%s", err, out)
	}
	return nil, false
}

// say changes the scenario: pairs of key and value. An empty value removes a line.
func (w *world) say(pairs ...string) {
	w.t.Helper()
	w.lines.Say(pairs...)
	w.lines.Write(w.t, os.Getenv(standin.Variable))
}

func bus(i int) string { return standin.Bus(i) }

func kernelBus(i int) string { return fmt.Sprintf("0000:%02x:00.0", 0x3b+i) }

func uuid(i int) string { return standin.UUID(i) }

// gpus makes n equal ones.
func (w *world) gpus(n int) {
	w.t.Helper()
	maps.Copy(w.lines, standin.GPUs(n))
	for i := range n {
		w.plug(i)
	}
	w.say()
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
