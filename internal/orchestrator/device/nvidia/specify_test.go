//go:build linux && cgo

package nvidia_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver/cdi"
	"rockpool/internal/sandbox"
)

// machine makes a root directory with the nodes and libraries that a driver would have put there.
func machine(t *testing.T, gpus int) string {
	t.Helper()
	root := t.TempDir()
	nodes := []string{"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"}
	for i := range gpus {
		nodes = append(nodes, fmt.Sprintf("nvidia%d", i))
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "dev"), 0o755), os.MkdirAll(filepath.Join(root, "usr/lib64"), 0o755), os.MkdirAll(filepath.Join(root, "usr/bin"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for i, n := range nodes {
		if err := unix.Mknod(filepath.Join(root, "dev", n), unix.S_IFCHR|0o666, int(unix.Mkdev(195, uint32(i)))); err != nil {
			t.Skipf("no device node can be made: %v", err)
		}
	}
	for _, f := range []string{"usr/lib64/libcuda.so.550.54.15", "usr/lib64/libnvidia-ml.so.550.54.15", "usr/bin/nvidia-smi"} {
		if err := os.WriteFile(filepath.Join(root, f), []byte("of a driver"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// What is made by the vendor's library for the devices of a task has what a sandbox needs, and the library's hooks and sockets not.
func TestASpecificationIsMade(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(2)
	cfg := w.config()
	cfg.Root = machine(t, 2)
	p := w.watch(cfg)
	p.until("there are two GPUs", found(2))
	r := cdi.New(nil, p.plugin.Specify, t.TempDir())
	for range 2 { // and the session goes on
		g, err := r.Resolve(t.Context(), []string{"nvidia.com/gpu=" + uuid(1)})
		if err != nil {
			t.Fatal(err)
		}
		var nodes, files []string
		for _, d := range g.Devices {
			nodes = append(nodes, d.Path)
			if d.Source != filepath.Join(cfg.Root, d.Path) || d.Major != 195 || d.Access != "rw" {
				t.Errorf("a device is %+v", d)
			}
		}
		slices.Sort(nodes)
		if want := []string{"/dev/nvidia-modeset", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia1", "/dev/nvidiactl"}; !slices.Equal(nodes, want) {
			t.Errorf("device nodes are %q, want %q", nodes, want)
		}
		for _, b := range g.Binds {
			if files = append(files, b.Target); b.Writable || !b.Made {
				t.Errorf("a file is %+v", b)
			}
		}
		for _, want := range []string{"/usr/lib64/libcuda.so.550.54.15", "/usr/lib64/libnvidia-ml.so.550.54.15", "/usr/bin/nvidia-smi"} {
			if !slices.ContainsFunc(g.Binds, func(b sandbox.Bind) bool { return b.Target == want && b.Source == filepath.Join(cfg.Root, want) }) {
				t.Errorf("%s is not among the files: %q", want, files)
			}
		}
		if !slices.Contains(g.Env, "NVIDIA_VISIBLE_DEVICES="+uuid(1)) || len(g.Ignored) != 0 {
			t.Errorf("the environment is %q, not used are %q", g.Env, g.Ignored)
		}
	}
	if _, err := r.Resolve(t.Context(), []string{"nvidia.com/gpu=GPU-9"}); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "GPU-9") {
		t.Errorf("of a GPU that is not there: %v", err)
	}
	p.until("the session goes on", found(2))
	if in, err := p.plugin.Reserve([]string{uuid(0)}); err != nil {
		t.Errorf("afterwards a GPU is reserved with %v, %v", in, err)
	}
}

func TestASpecificationIsMadeOnceForEachLook(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(2)
	cfg := w.config()
	cfg.Root, cfg.Poll = machine(t, 2), time.Hour
	p := w.watch(cfg)
	p.until("there are two GPUs", found(2))
	specify := func(ids ...string) string {
		text, err := p.plugin.Specify(t.Context(), ids)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	first := specify(uuid(0), uuid(1))
	if err := os.Remove(filepath.Join(cfg.Root, "usr/bin/nvidia-smi")); err != nil {
		t.Fatal(err)
	}
	if again := specify(uuid(1), uuid(0)); again != first {
		t.Errorf("it is made once more:\n%s\nafter\n%s", again, first)
	}
	if other := specify(uuid(1)); strings.Contains(other, uuid(0)) || strings.Contains(other, "nvidia-smi") {
		t.Errorf("that of other GPUs is\n%s", other)
	}
	w.say("xid 1", "0 79 8")
	p.ill(uuid(0), "XID 79")
	if after := specify(uuid(0), uuid(1)); strings.Contains(after, "nvidia-smi") {
		t.Errorf("after another look it is still\n%s", after)
	}
}

func TestASpecificationThatCannotBeMadeSaysWhatToInstall(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(1)
	cfg := w.config()
	cfg.Root = t.TempDir() // there are no files of a driver
	p := w.watch(cfg)
	p.until("there is a GPU", found(1))
	dir := t.TempDir()
	_, err := cdi.New(nil, p.plugin.Specify, dir).Resolve(t.Context(), []string{"nvidia.com/gpu=" + uuid(0)})
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "nvidia-ctk cdi generate --output="+dir) || !strings.Contains(err.Error(), "libcuda.so") {
		t.Errorf("the error is %v", err)
	}
}

func TestAnOldLibraryMakesNoSpecification(t *testing.T) {
	w, child := inChild(t, "-DOLD")
	if !child {
		return
	}
	w.gpus(1)
	p := w.watch(w.config())
	p.until("there is a GPU", found(1))
	if _, err := p.plugin.Specify(t.Context(), []string{uuid(0)}); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "too old") {
		t.Errorf("the error is %v", err)
	}
}
