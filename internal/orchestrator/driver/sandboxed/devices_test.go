//go:build linux && cgo

package sandboxed_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/image"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/cdi"
	"rockpool/internal/orchestrator/driver/sandboxed"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/sandbox"
)

// gpus makes nodes of two devices of this kernel that stand in for GPUs, a library that stands in for their driver's, and their specification.
func gpus(t *testing.T) (dir string, numbers [2]uint32) {
	t.Helper()
	dir = t.TempDir()
	text, err := os.ReadFile("/proc/misc")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(text)) {
		var minor uint32
		var name string
		if _, err := fmt.Sscanf(line, "%d %s", &minor, &name); err != nil || found == 2 || !slices.Contains([]string{"fuse", "vga_arbiter", "userfaultfd", "cpu_dma_latency"}, name) {
			continue
		}
		node := filepath.Join(dir, fmt.Sprintf("node%d", found))
		if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(10, minor))); err != nil {
			t.Skipf("no device node can be made: %v", err)
		}
		if f, err := os.Open(node); err == nil {
			_ = f.Close()
			numbers[found] = minor
			found++
		} else {
			_ = os.Remove(node)
		}
	}
	if found < 2 {
		t.Skip("this kernel has no two devices that could stand in for those of a vendor")
	}
	source := filepath.Join(dir, "gpu.c")
	if err := os.WriteFile(source, []byte("int gpu(void) { return 42; }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-Wl,-soname,libgpu.so.1", "-o", filepath.Join(dir, "libgpu.so.570.1"), source).CombinedOutput(); err != nil {
		t.Skipf("gcc: %s", out)
	}
	spec := fmt.Sprintf(`cdiVersion: 0.7.0
kind: nvidia.com/gpu
containerEdits:
  env: [NVIDIA_VISIBLE_DEVICES=void, GPU_DRIVER=570.1]
  mounts:
  - {hostPath: %[1]s/libgpu.so.570.1, containerPath: /opt/gpu/lib/libgpu.so.570.1, options: [rw, exec]}
  hooks:
  - {hookName: createContainer, path: %[1]s/hook}
devices:
- {name: GPU-0, containerEdits: {deviceNodes: [{path: /dev/nvidia0, hostPath: %[1]s/node0}]}}
- {name: GPU-1, containerEdits: {deviceNodes: [{path: /dev/nvidia1, hostPath: %[1]s/node1, permissions: r}]}}
`, dir)
	hook := "#!/bin/sh\ntouch " + filepath.Join(dir, "hook-ran") + "\n"
	if err := os.WriteFile(filepath.Join(dir, "nvidia.yaml"), []byte(spec), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hook"), []byte(hook), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, numbers
}

// inside lists what a program has of devices, and asks the driver's library by each name that programs use.
const inside = `import ctypes, os
print(sorted(n for n in os.listdir("/dev") if n.startswith("nvidia")), os.environ["NVIDIA_VISIBLE_DEVICES"], os.environ["GPU_DRIVER"])
print([ctypes.CDLL(n).gpu() for n in ("libgpu.so.1", "libgpu.so", "libgpu.so.570.1")])
for path in ("/dev/nvidia0", "/dev/nvidia1"):
    for mode in (os.O_RDONLY, os.O_RDWR):
        try:
            os.close(os.open(path, mode | os.O_NONBLOCK)); print("open", end=" ")
        except OSError as e:
            print(e.errno, end=" ")
`

func TestATaskHasItsDevicesAndNoOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	dir, numbers := gpus(t)
	images, err := image.New(image.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	r, err := sandbox.New(sandbox.Config{Dir: t.TempDir(), CgroupParent: fmt.Sprintf("rockpool-gpu-test-%d", os.Getpid()), IDBase: 0x38000000})
	if err != nil {
		t.Skipf("this machine cannot run sandboxes: %v", err)
	}
	t.Cleanup(func() {
		_ = r.Close()
		groups, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/rockpool-gpu-test-%d", os.Getpid()))
		for _, g := range groups {
			if err := os.Remove(g); err != nil {
				t.Error(err)
			}
		}
	})
	d := sandboxed.New(sandboxed.Config{Runtime: sandboxed.Native(r), Images: images, Devices: cdi.New(nil, nil, dir).Resolve}, sandboxed.NameDocker)[0]
	defer func() { _ = d.(driver.Detacher).Detach(context.Background()) }()
	start := func(devices ...string) (driver.Task, error) {
		cfg := driver.TaskConfig{ID: ident.New() + ".task.1", StateDir: t.TempDir(), DiskMB: 32, Emit: func(string) {}, Devices: devices, Task: &model.Task{Name: "task",
			Config: map[string]any{"image": "host", "command": "sleep", "args": []any{"infinity"}}}}
		task, err := d.Start(t.Context(), cfg)
		if err == nil {
			t.Cleanup(func() {
				if err := d.Cleanup(context.Background(), cfg.ID); err != nil {
					t.Error(err)
				}
			})
		}
		return task, err
	}
	for _, c := range []struct {
		devices []string
		want    string
	}{
		{[]string{"nvidia.com/gpu=GPU-0"}, "['nvidia0'] GPU-0 570.1\n[42, 42, 42]\nopen open 2 2 "},
		{[]string{"nvidia.com/gpu=GPU-1"}, "['nvidia1'] GPU-1 570.1\n[42, 42, 42]\n2 2 open 13 "},
		{[]string{"nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-0"}, "['nvidia0', 'nvidia1'] GPU-1,GPU-0 570.1\n[42, 42, 42]\nopen open open 13 "},
	} {
		task, err := start(c.devices...)
		if err != nil {
			t.Fatal(err)
		}
		for _, user := range []string{"", "user"} {
			e, err := task.Exec(t.Context(), driver.ExecSpec{ID: "as-" + user, User: user, Argv: []string{"python3", "-c", inside}})
			if err != nil {
				t.Fatal(err)
			}
			_ = e.Stdin().Close()
			out, _ := io.ReadAll(e.Stdout())
			errs, _ := io.ReadAll(e.Stderr())
			<-e.Done()
			if string(out) != c.want {
				t.Errorf("%v (minors %v) as %q: %q, want %q; %s", c.devices, numbers, user, out, c.want, errs)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "hook-ran")); err == nil {
		t.Error("a hook was run")
	}
	if _, err := start("nvidia.com/gpu=GPU-7"); !fault.Is(err, fault.Unsupported) || !strings.Contains(fault.Public(err), "GPU-0") {
		t.Errorf("a device that is not there: %v", err)
	}
	if left, err := r.List(); err != nil || len(left) != 3 {
		t.Errorf("sandboxes %q, %v", left, err)
	}
}

func TestDevicesWithoutASpecificationAreRefused(t *testing.T) {
	f := newFake()
	d := sandboxed.New(sandboxed.Config{Runtime: f, Images: f}, sandboxed.NameDocker)[0]
	for name, cfg := range map[string]driver.TaskConfig{
		"no names":          {Resources: model.AllocatedTask{Devices: []model.AllocatedDevice{{Vendor: "nvidia", Type: "gpu", DeviceIDs: []string{"GPU-0"}}}}},
		"no specifications": {Devices: []string{"nvidia.com/gpu=GPU-0"}},
	} {
		cfg.ID, cfg.Emit = name, func(string) {}
		cfg.Task = &model.Task{Name: "task", Config: map[string]any{"image": "host", "command": "sleep", "args": []any{"infinity"}}}
		if _, err := d.Start(t.Context(), cfg); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "Container Device Interface") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
