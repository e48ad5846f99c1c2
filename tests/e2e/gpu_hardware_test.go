//go:build linux && gpu

package e2e

import (
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"rockpool/tests/platform"
	"rockpool/tests/service"
)

// outside runs a program of the machine.
func outside(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.CommandContext(bounded(t), argv[0], argv[1:]...).Output()
	if err != nil {
		t.Fatalf("%q on the machine: %v", argv, err)
	}
	return string(out)
}

// onHardware starts a gateway with an environment whose runners have one GPU each.
func onHardware(t *testing.T, pool int) *service.Service {
	t.Helper()
	if _, err := exec.LookPath("nvidia-smi"); err != nil {
		t.Fatal("these tests are for a machine with NVIDIA's GPUs and their driver: nvidia-smi is not found")
	}
	s, ctx := start(t), bounded(t)
	body := fmt.Sprintf(`{"prewarmingPoolSize":%d,"cpuLimit":1000,"memoryLimit":4096,"image":"host","networkAccess":false,"exposedPorts":[],"devices":[{"name":"nvidia/gpu","count":1,"share":true}]}`, pool)
	status, answer, err := s.Do(ctx, http.MethodPut, "/execution-environments/10", body)
	if err != nil || status != http.StatusCreated {
		t.Fatalf("an environment with a GPU: %d %s %v", status, answer, err)
	}
	waitStatistics(ctx, t, s, 10, func(st platform.Statistics) bool { return int(st.IdleRunners) == pool })
	return s
}

const query = "nvidia-smi --query-gpu=uuid,name,memory.total,driver_version,pci.bus_id --format=csv,noheader"

// What nvidia-smi says inside is what it says outside of the GPU that the runner was given, and nothing of others.
func TestOnHardwareInsideAndOutsideAgree(t *testing.T) {
	s, ctx := onHardware(t, 1), bounded(t)
	runner := claim(ctx, t, s, 10)
	given := strings.TrimSpace(strings.ReplaceAll(run(ctx, t, s, runner, "echo $NVIDIA_VISIBLE_DEVICES").Stdout, "\r", ""))
	listed := lines(run(ctx, t, s, runner, "nvidia-smi -L").Stdout)
	if strings.HasPrefix(given, "MIG-") { // of the whole GPU a part shows what belongs to it
		if !slices.ContainsFunc(listed, func(l string) bool { return strings.Contains(l, "UUID: "+given) }) || strings.Count(strings.Join(listed, "\n"), "UUID: MIG-") != 1 {
			t.Fatalf("the runner was given %s and lists %q", given, listed)
		}
		return
	}
	if len(listed) != 1 || !strings.Contains(listed[0], "UUID: "+given) {
		t.Fatalf("the runner was given %s and lists %q", given, listed)
	}
	inside := lines(run(ctx, t, s, runner, query).Stdout)
	if want := lines(outside(t, append(strings.Fields(query), "-i", given)...)); !slices.Equal(inside, want) {
		t.Errorf("inside nvidia-smi says %q, outside %q", inside, want)
	}
	nodes := lines(run(ctx, t, s, runner, `ls /dev | grep -E '^nvidia[0-9]+$'`).Stdout)
	if len(nodes) != 1 {
		t.Errorf("inside are the nodes %q", nodes)
	}
}

// tenant uses CUDA's driver library alone: it takes nearly all memory of the first GPU that it sees, and either fills it with a pattern or counts where the pattern is.
const tenant = `
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *args):
    code = getattr(cuda, name)(*args)
    if code: sys.exit("%s: error %d" % (name, code))
device, context = ctypes.c_int(), ctypes.c_void_p()
call("cuInit", 0)
call("cuDeviceGet", ctypes.byref(device), 0)
call("cuCtxCreate_v2", ctypes.byref(context), 0, device)
free, total = ctypes.c_size_t(), ctypes.c_size_t()
call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
chunk, left, found, taken = 64 << 20, free.value - (256 << 20), 0, 0
pattern = b"\xa7\x3c\x91\x5e"
host = ctypes.create_string_buffer(chunk)
while left >= chunk:
    at = ctypes.c_uint64()
    if cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(chunk)): break
    if sys.argv[1] == "fill":
        call("cuMemsetD32_v2", at, ctypes.c_uint(int.from_bytes(pattern, "little")), ctypes.c_size_t(chunk // 4))
    else:
        call("cuMemcpyDtoH_v2", host, at, ctypes.c_size_t(chunk))
        found += host.raw.count(pattern * 4)
    left, taken = left - chunk, taken + chunk
call("cuCtxSynchronize")
print(taken >> 20, found)
`

// One tenant fills the memory of its GPU; the next one that gets the same GPU finds nothing of it.
func TestOnHardwareMemoryOfATenantIsNotReadable(t *testing.T) {
	s, ctx := onHardware(t, 1), bounded(t)
	which := func(runner string) string { return run(ctx, t, s, runner, "echo $NVIDIA_VISIBLE_DEVICES").Stdout }
	tenants := func(runner, what string) (mib, found int) {
		t.Helper()
		o := run(ctx, t, s, runner, "cat > tenant.py <<'END'"+tenant+"END\npython3 tenant.py "+what)
		if _, err := fmt.Sscan(o.Stdout, &mib, &found); err != nil || o.Final.Code != 0 || mib < 256 {
			t.Fatalf("%s: %+v", what, o)
		}
		return mib, found
	}
	first := claim(ctx, t, s, 10)
	gpu := which(first)
	tenants(first, "fill")
	if err := s.Release(ctx, first); err != nil {
		t.Fatal(err)
	}
	for range 64 { // as many as GPUs may come before it
		waitStatistics(ctx, t, s, 10, func(st platform.Statistics) bool { return st.IdleRunners == 1 })
		next := claim(ctx, t, s, 10)
		if which(next) == gpu {
			if mib, found := tenants(next, "look"); found > 0 {
				t.Errorf("in %d MiB, the tenant before is found %d times", mib, found)
			}
			return
		}
	}
	t.Fatal("the GPU of the first runner is not given to another one")
}
