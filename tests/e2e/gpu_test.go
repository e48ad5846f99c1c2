//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rockpool/internal/orchestrator/device/nvidia/standin"
	"rockpool/tests/platform"
	"rockpool/tests/service"
)

// gpuMachine is a machine whose GPUs are a library that answers as NVIDIA's does, and two other devices of its kernel.
type gpuMachine struct {
	t   *testing.T
	dir string
	gpu [2]uint32 // minor numbers
}

func newGPUMachine(t *testing.T) *gpuMachine {
	t.Helper()
	needRoot(t)
	m := &gpuMachine{t: t, dir: t.TempDir()}
	standin.Build(t, m.dir)
	m.devices()
	spec := fmt.Sprintf(`cdiVersion: 0.7.0
kind: nvidia.com/gpu
containerEdits: {env: [NVIDIA_VISIBLE_DEVICES=void]}
devices:
- {name: %[2]s, containerEdits: {deviceNodes: [{path: /dev/nvidia0, hostPath: %[1]s/nvidia0}]}}
- {name: %[3]s, containerEdits: {deviceNodes: [{path: /dev/nvidia1, hostPath: %[1]s/nvidia1}]}}
`, m.dir, standin.UUID(0), standin.UUID(1))
	cdi := filepath.Join(m.dir, "cdi")
	if err := errors.Join(os.Mkdir(cdi, 0o755), os.WriteFile(filepath.Join(cdi, "nvidia.yaml"), []byte(spec), 0o644)); err != nil {
		t.Fatal(err)
	}
	m.say()
	return m
}

// devices makes nodes of two that can be opened without doing anything to the machine.
func (m *gpuMachine) devices() {
	text, err := os.ReadFile("/proc/misc")
	if err != nil {
		m.t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(text)) {
		var minor uint32
		var name string
		if _, err := fmt.Sscanf(line, "%d %s", &minor, &name); err != nil || found == 2 || !slices.Contains([]string{"fuse", "vga_arbiter", "userfaultfd", "cpu_dma_latency"}, name) {
			continue
		}
		node := filepath.Join(m.dir, fmt.Sprintf("nvidia%d", found))
		if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(10, minor))); err != nil {
			m.t.Skipf("no device node can be made: %v", err)
		}
		f, err := os.Open(node)
		if err != nil {
			_ = os.Remove(node)
			continue
		}
		_ = f.Close()
		m.gpu[found] = minor
		found++
	}
	if found < 2 {
		m.t.Skip("this kernel has no two devices that could stand in for GPUs")
	}
}

// say writes the scenario: two equal GPUs, and more.
func (m *gpuMachine) say(more ...string) {
	m.t.Helper()
	s := standin.GPUs(2)
	s.Say(more...)
	s.Write(m.t, filepath.Join(m.dir, "scenario"))
}

func (m *gpuMachine) options(o *service.Options) {
	o.Env = append(o.Env, "LD_LIBRARY_PATH="+m.dir, standin.Variable+"="+filepath.Join(m.dir, "scenario"), "ROCKPOOL_ORCHESTRATOR_CDIDIRS="+filepath.Join(m.dir, "cdi"))
}

// visible prints what a program has of GPUs: their ids, their nodes with the numbers, and whether each of both can be opened.
const visible = `echo $NVIDIA_VISIBLE_DEVICES; stat -c '%n %t:%T' /dev/nvidia*; for i in 0 1; do (: < /dev/nvidia$i) 2>/dev/null && echo open $i; done; env | grep -c NVML_SCENARIO`

// sees checks that a runner has one GPU and nothing of the other one, and returns which.
func (m *gpuMachine) sees(ctx context.Context, s *service.Service, runner string) int {
	m.t.Helper()
	o := run(ctx, m.t, s, runner, visible)
	for i := range 2 {
		if slices.Equal(lines(o.Stdout), []string{standin.UUID(i), fmt.Sprintf("/dev/nvidia%d a:%x", i, m.gpu[i]), fmt.Sprintf("open %d", i), "0"}) {
			return i
		}
	}
	m.t.Fatalf("a program sees %q (%q)", o.Stdout, o.Stderr)
	return 0
}

// exhausted checks that a claim finds nothing.
func exhausted(ctx context.Context, t *testing.T, s *service.Service) {
	t.Helper()
	status, body, err := s.Do(ctx, http.MethodPost, "/runners", `{"executionEnvironmentId":10,"inactivityTimeout":60}`)
	if err != nil || status != http.StatusInternalServerError || !strings.Contains(string(body), `"errorCode":"NOMAD_OVERLOAD"`) {
		t.Fatalf("a claim with all GPUs in use: %d %s %v", status, body, err)
	}
}

const onGPUs = `{"prewarmingPoolSize":%d,"cpuLimit":100,"memoryLimit":64,"image":"host","networkAccess":false,"exposedPorts":[],"devices":[{"name":"%s","count":%d}]}`

// Runners on GPUs from the driver's library to the program: each has its own, there are as many as GPUs, and one is handed out again once it is clean.
func TestRunnersOnGPUs(t *testing.T) {
	m := newGPUMachine(t)
	s, ctx := start(t, m.options), bounded(t)
	put := func(id, pool int, name string, count int) (int, string) {
		t.Helper()
		status, body, err := s.Do(ctx, http.MethodPut, fmt.Sprintf("/execution-environments/%d", id), fmt.Sprintf(onGPUs, pool, name, count))
		if err != nil {
			t.Fatal(err)
		}
		return status, string(body)
	}
	if status, body := put(10, 2, "nvidia/gpu", 1); status != http.StatusCreated {
		t.Fatalf("an environment with a GPU: %d %s", status, body)
	}
	for name, count := range map[string]int{"nvidia/gpu": 3, "nvidia/gpu/NVIDIA H100": 1, "amd/gpu": 1} {
		if status, body := put(11, 1, name, count); status != http.StatusBadRequest || !strings.Contains(body, `"message":"`) {
			t.Errorf("%d of %s, which no node has: %d %s", count, name, status, body)
		}
	}
	waitStatistics(ctx, t, s, 10, func(st platform.Statistics) bool { return st.IdleRunners == 2 })
	runners := [2]string{claim(ctx, t, s, 10), claim(ctx, t, s, 10)}
	has := [2]int{m.sees(ctx, s, runners[0]), m.sees(ctx, s, runners[1])}
	if has[0] == has[1] {
		t.Fatalf("both runners have GPU %d", has[0])
	}
	exhausted(ctx, t, s)

	m.say(fmt.Sprintf("gpu %d lingering", has[0]), "1000000 600 4711") // the driver takes its time
	if err := s.Release(ctx, runners[0]); err != nil {
		t.Fatal(err)
	}
	waitStatistics(ctx, t, s, 10, func(st platform.Statistics) bool { return st.UsedRunners == 1 })
	exhausted(ctx, t, s)
	if got := m.sees(ctx, s, runners[1]); got != has[1] {
		t.Errorf("the other runner has GPU %d now", got)
	}
	m.say()
	waitStatistics(ctx, t, s, 10, func(st platform.Statistics) bool { return st.IdleRunners == 1 })
	if got := m.sees(ctx, s, claim(ctx, t, s, 10)); got != has[0] {
		t.Errorf("the next runner has GPU %d, free was %d", got, has[0])
	}
	exhausted(ctx, t, s)
}

// A GPU is taken out while an idle runner has it, comes back, and is taken out while somebody uses it. Where the operator has runners leave such GPUs, nobody is handed one without
// its GPU, whoever used it is told that it is gone, and the others go on.
func TestRunnersLeaveAGPUThatIsTakenOut(t *testing.T) {
	m := newGPUMachine(t)
	s, ctx := start(t, func(o *service.Options) {
		m.options(o)
		o.Env = append(o.Env, "ROCKPOOL_ORCHESTRATOR_GPU_PERIOD=1", "ROCKPOOL_ORCHESTRATOR_GPU_ONUNHEALTHY=stop")
	}), bounded(t)
	if status, body, err := s.Do(ctx, http.MethodPut, "/execution-environments/10", fmt.Sprintf(onGPUs, 2, "nvidia/gpu", 1)); err != nil || status != http.StatusCreated {
		t.Fatalf("an environment with a GPU: %d %s %v", status, body, err)
	}
	waitStatistics(ctx, t, s, 10, func(st platform.Statistics) bool { return st.IdleRunners == 2 })
	m.say("gpus", "0")
	waitStatistics(ctx, t, s, 10, func(st platform.Statistics) bool { return st.IdleRunners == 1 })
	stays := claim(ctx, t, s, 10)
	if got := m.sees(ctx, s, stays); got != 0 {
		t.Errorf("a runner has GPU %d, which is not there", got)
	}
	exhausted(ctx, t, s)

	m.say()
	waitStatistics(ctx, t, s, 10, func(st platform.Statistics) bool { return st.IdleRunners == 1 })
	leaves := claim(ctx, t, s, 10)
	if got := m.sees(ctx, s, leaves); got != 1 {
		t.Errorf("the runner on what came back has GPU %d", got)
	}
	m.say("gpus", "0")
	waitStatistics(ctx, t, s, 10, func(st platform.Statistics) bool { return st.UsedRunners == 1 })
	if status, body, err := s.Do(ctx, http.MethodPost, "/runners/"+leaves+"/execute", `{"command":"true","timeLimit":5}`); err != nil || status != http.StatusGone {
		t.Errorf("of the runner whose GPU was taken out is said %d %s %v", status, body, err)
	}
	if got := m.sees(ctx, s, stays); got != 0 {
		t.Errorf("the other one has GPU %d now", got)
	}
	exhausted(ctx, t, s)
}
