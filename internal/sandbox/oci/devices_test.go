//go:build linux && cgo

package oci_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rockpool/internal/sandbox"
)

// A container has the device that it was given, and opens no other; files of a device show where the node says.
func TestDevicesOfContainers(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		library := filepath.Join(t.TempDir(), "libgpu.so.1.2")
		if err := os.WriteFile(library, []byte("a driver"), 0o644); err != nil {
			t.Fatal(err)
		}
		gpu := standIn(t)
		root := m.root
		root.Binds = append(append([]sandbox.Bind{}, root.Binds...), sandbox.Bind{Source: library, Target: "/opt/gpu/lib/libgpu.so.1.2", Made: true},
			sandbox.Bind{Target: "/run/gpu", Made: true, Links: map[string]string{"libgpu.so.1": "/opt/gpu/lib/libgpu.so.1.2"}})
		r := m.runtime(t)
		s, err := r.Create(t.Context(), sandbox.Spec{ID: "with", Root: root, Devices: []sandbox.Device{gpu}})
		if m.cfg.Name == "runsc" {
			if !errors.Is(err, sandbox.ErrInvalid) {
				t.Errorf("a kernel of its own was given a device: %v", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := s.Destroy(t.Context()); err != nil {
				t.Error(err)
			}
		}()
		for _, user := range []string{"root", "user"} {
			e, err := s.Exec(t.Context(), sandbox.ExecSpec{ID: "as-" + user, User: user, MergeStderr: true, Argv: []string{"bash", "-c", `
				stat -c '%n %t:%T %a %u' /dev/gpus/gpu0; ls -A /dev/gpus | wc -l
				(: < /dev/gpus/gpu0) && echo read; (: > /dev/gpus/gpu0) 2>/dev/null && echo WRITTEN
				(: < /dev/null) && echo null; mknod /tmp/x c 10 1 2>/dev/null && echo MADE
				cat /run/gpu/libgpu.so.1; (echo x > /run/gpu/libgpu.so.1) 2>/dev/null && echo WRITTEN; true`}})
			if err != nil {
				t.Fatal(err)
			}
			o := collect(t, e, "")
			if want := fmt.Sprintf("/dev/gpus/gpu0 %x:%x 444 0\n1\nread\nnull\na driver", gpu.Major, gpu.Minor); o.stdout != want {
				t.Errorf("as %s: %q, want %q", user, o.stdout, want)
			}
		}
		bare, err := r.Create(t.Context(), sandbox.Spec{ID: "without", Root: m.root})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := bare.Destroy(t.Context()); err != nil {
				t.Error(err)
			}
		}()
		e, err := bare.Exec(t.Context(), sandbox.ExecSpec{ID: "looks", MergeStderr: true, Argv: []string{"ls", "/dev"}})
		if err != nil {
			t.Fatal(err)
		}
		if o := collect(t, e, ""); strings.Contains(o.stdout, "gpu") {
			t.Errorf("a neighbour has %q", o.stdout)
		}
	})
}

// standIn is a device of this kernel that no container has by itself, and that can be opened without doing anything to the machine.
func standIn(t *testing.T) sandbox.Device {
	t.Helper()
	text, err := os.ReadFile("/proc/misc")
	if err != nil {
		t.Fatal(err)
	}
	node := filepath.Join(t.TempDir(), "node")
	for line := range strings.Lines(string(text)) {
		var minor uint32
		var name string
		if _, err := fmt.Sscanf(line, "%d %s", &minor, &name); err != nil || !slices.Contains([]string{"fuse", "vga_arbiter", "userfaultfd", "cpu_dma_latency"}, name) {
			continue
		}
		_ = os.Remove(node)
		if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(10, minor))); err != nil {
			t.Skipf("no device node can be made: %v", err)
		}
		if f, err := os.Open(node); err == nil {
			_ = f.Close()
			return sandbox.Device{Path: "/dev/gpus/gpu0", Source: node, Major: 10, Minor: minor, Access: "r"}
		}
	}
	t.Skip("this kernel has no device that could stand in for that of a vendor")
	return sandbox.Device{}
}

// Where something of the node shows is not for an image to say.
func TestPlacesInside(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"root/usr/lib", "root/etc", "root/opt", "outside"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for at, to := range map[string]string{"lib": "usr/lib", "bin": "/usr/lib", "opt/gpu": "/etc", "opt/out": "../../outside", "etc/file": "/etc/passwd", "sbin": "usr/sbin", "usr/sbin": "../../outside"} {
		if err := os.Symlink(to, filepath.Join(dir, "root", at)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenFile(filepath.Join(dir, "root"), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	for target, want := range map[string]string{
		"/usr/lib/gpu/libgpu.so": "usr/lib/gpu/libgpu.so", "/lib/other/libgpu.so": "usr/lib/other/libgpu.so", "/bin/smi": "", "/opt/gpu/libgpu.so": "", "/opt/out/libgpu.so": "",
		"/etc/file": "", "/opt/../etc/x": "", "/sbin/x": "", "/lib": "", "//x": "", "/etc": "",
	} {
		f, err := sandbox.PlaceInside(root, target, false, uint32(os.Getuid()))
		if (err == nil) != (want != "") {
			t.Errorf("%s: %v", target, err)
		}
		if err != nil {
			continue
		}
		at, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		if at != filepath.Join(dir, "root", want) {
			t.Errorf("%s is at %s", target, at)
		}
		_ = f.Close()
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "outside")); len(left) > 0 {
		t.Errorf("something was made outside: %v", left)
	}
}
