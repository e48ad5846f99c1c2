//go:build linux && cgo

package sandbox_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rockpool/internal/sandbox"
)

// standIns are two character devices of this kernel that no sandbox has by itself, and that can be opened without doing anything to the machine.
func standIns(t *testing.T) (one, other sandbox.Device) {
	t.Helper()
	text, err := os.ReadFile("/proc/misc")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var found []sandbox.Device
	try := func(name string, major, minor uint32) {
		path := filepath.Join(dir, name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(major, minor))); err != nil {
			t.Skipf("no device node can be made: %v", err)
		}
		if f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
			_ = f.Close()
			found = append(found, sandbox.Device{Path: fmt.Sprintf("/dev/gpus/gpu%d", len(found)), Source: path, Major: major, Minor: minor, Access: "r"})
		}
	}
	for _, name := range []string{"fuse", "vga_arbiter", "userfaultfd", "cpu_dma_latency", "hpet", "loop-control", "autofs"} {
		for line := range strings.Lines(string(text)) {
			var minor uint32
			var is string
			if _, err := fmt.Sscanf(line, "%d %s", &minor, &is); err == nil && is == name {
				try(name, 10, minor)
			}
		}
	}
	if len(found) < 2 {
		t.Skip("this kernel has no two devices that could stand in for those of a vendor")
	}
	return found[0], found[1]
}

func with(devices ...sandbox.Device) func(*sandbox.Spec) {
	return func(spec *sandbox.Spec) { spec.Devices = devices }
}

// listing prints all device nodes below /dev but the pseudo-terminals, with their numbers.
const listing = `import os, stat
for dir, _, files in sorted(os.walk("/dev")):
    for name in sorted(files):
        s = os.lstat(os.path.join(dir, name))
        if not dir.startswith("/dev/pts") and (stat.S_ISCHR(s.st_mode) or stat.S_ISBLK(s.st_mode)):
            print(os.path.join(dir, name), os.major(s.st_rdev), os.minor(s.st_rdev), oct(s.st_mode & 0o7777), s.st_uid, s.st_gid)
`

// opening tries to open each of its arguments.
const opening = `import os, sys
for path in sys.argv[1:]:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK)); print("open", path)
    except OSError as e:
        print(e.strerror, path)
`

func python(t *testing.T, s *sandbox.Sandbox, user, program string, args ...string) outcome {
	t.Helper()
	return collect(t, begin(t, s, sandbox.ExecSpec{Argv: append([]string{"python3", "-c", program}, args...), User: user}), "")
}

// Two sandboxes side by side see, and open, each its own device and nothing of the other's, as root and as a user.
func TestDevicesAreThoseThatWereGiven(t *testing.T) {
	r := newRuntime(t)
	one, other := standIns(t)
	own := []string{"/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"}
	for i, s := range []*sandbox.Sandbox{create(t, r, with(one)), create(t, r, with(other)), create(t, r, with(one, other)), create(t, r)} {
		given := [][]sandbox.Device{{one}, {other}, {one, other}, nil}[i]
		for _, user := range []string{"root", "user"} {
			o := python(t, s, user, listing)
			var names []string
			for line := range strings.Lines(o.stdout) {
				path, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
				if !strings.HasPrefix(path, "/dev/gpus/") {
					names = append(names, path)
					continue
				}
				at := slices.IndexFunc(given, func(d sandbox.Device) bool { return d.Path == path })
				if at < 0 || rest != fmt.Sprintf("%d %d 0o444 0 0", given[at].Major, given[at].Minor) {
					t.Errorf("sandbox %d as %s has %s %s, and was given %+v", i, user, path, rest, given)
				}
			}
			if o.ExitCode != 0 || !slices.Equal(names, own) || strings.Count(o.stdout, "/dev/gpus/") != len(given) {
				t.Errorf("sandbox %d as %s: %+v", i, user, o)
			}
			want := map[bool]string{true: "open", false: "No such file or directory"}
			o = python(t, s, user, opening, one.Path, other.Path, "/dev/null", "/dev/urandom")
			expected := want[slices.Contains(given, one)] + " " + one.Path + "\n" + want[slices.Contains(given, other)] + " " + other.Path + "\nopen /dev/null\nopen /dev/urandom\n"
			if o.stdout != expected {
				t.Errorf("sandbox %d as %s: %q, want %q (%s)", i, user, o.stdout, expected, o.stderr)
			}
		}
		if o := collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"tty"}, TTY: true, User: "user"}), ""); !strings.HasPrefix(o.stdout, "/dev/pts/") {
			t.Errorf("sandbox %d has no terminal: %+v", i, o)
		}
	}
}

// deviceAttempts try to come to a device by each way that is known: a node of their own, one of the image, a bind, a descriptor opened again.
const deviceAttempts = `
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#define TRY(name, call) do { errno = 0; long r = (long)(call); printf("%s %s\n", name, r < 0 ? strerrorname_np(errno) : "DONE"); } while (0)
int main(int argc, char **argv) {
	dev_t number = makedev(atoi(argv[1]), atoi(argv[2]));
	char path[64];
	TRY("mknod-own", mknod("/workspace/node", S_IFCHR | 0666, number));
	TRY("mknod-dev", mknod("/dev/node", S_IFCHR | 0666, number));
	TRY("mknod-shm", mknod("/dev/shm/node", S_IFCHR | 0666, number));
	TRY("image", open("/opt/node", O_RDONLY | O_NONBLOCK));
	TRY("bind", mount("/opt/node", "/dev/null", 0, MS_BIND, 0));
	TRY("remount", mount(0, "/", 0, MS_REMOUNT | MS_BIND, 0));
	TRY("tree", syscall(SYS_open_tree, AT_FDCWD, "/opt/node", 1));
	int fd = open("/opt/node", O_PATH);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	TRY("again", fd < 0 ? -1 : open(path, O_RDONLY | O_NONBLOCK));
	fd = open(argv[3], O_RDONLY | O_NONBLOCK);
	TRY("given", fd);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	TRY("beyond", open(path, O_RDWR | O_NONBLOCK));
	TRY("chmod", chmod(argv[3], 0666));
	TRY("unlink", unlink(argv[3]));
	return 0;
}`

func TestOtherDevicesCannotBeReached(t *testing.T) {
	r := newRuntime(t)
	one, other := standIns(t)
	program := build(t, deviceAttempts, "-static")
	s := create(t, r, with(one), func(spec *sandbox.Spec) {
		opt := filepath.Join(spec.Root.Lower[0], "opt")
		if err := errors.Join(os.Mkdir(opt, 0o755), unix.Mknod(filepath.Join(opt, "node"), unix.S_IFCHR|0o666, int(unix.Mkdev(other.Major, other.Minor))),
			os.Chmod(filepath.Join(opt, "node"), 0o666)); err != nil {
			t.Fatal(err)
		}
	})
	install(t, s, program)
	want := map[string][]string{"given": {"DONE"}, "image": {"EACCES"}, "again": {"EACCES"}, "beyond": {"EACCES", "EPERM"}, "mknod-dev": {"EPERM", "EROFS"}, "chmod": {"EROFS", "EPERM"},
		"unlink": {"EROFS", "EACCES"}}
	for _, user := range []string{"root", "user"} {
		o := collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"/workspace/x", fmt.Sprint(other.Major), fmt.Sprint(other.Minor), one.Path}, User: user}), "")
		if o.ExitCode != 0 || strings.Count(o.stdout, "\n") != 12 {
			t.Fatalf("%+v", o)
		}
		for line := range strings.Lines(o.stdout) {
			name, got, _ := strings.Cut(strings.TrimSpace(line), " ")
			allowed := want[name]
			if allowed == nil {
				allowed = []string{"EPERM"}
			}
			if !slices.Contains(allowed, got) {
				t.Errorf("%s as %s: %s, want %q", name, user, got, allowed)
			}
		}
	}
}

// What is mounted for a device shows where the node says, whatever the image has there, for reading only.
func TestAnImageCannotMoveTheFilesOfADevice(t *testing.T) {
	r := newRuntime(t)
	library := filepath.Join(t.TempDir(), "libgpu.so.1.2")
	if err := os.WriteFile(library, []byte("a driver"), 0o644); err != nil {
		t.Fatal(err)
	}
	driver := func(target string) func(*sandbox.Spec) {
		return func(spec *sandbox.Spec) {
			spec.Root.Binds = append(spec.Root.Binds, sandbox.Bind{Source: library, Target: target, Made: true})
		}
	}
	link := func(at, to string) func(*sandbox.Spec) {
		return func(spec *sandbox.Spec) {
			path := filepath.Join(spec.Root.Lower[0], at)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(to, path)); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := create(t, r, driver("/opt/gpu/lib/libgpu.so.1.2"), func(spec *sandbox.Spec) {
		spec.Root.Binds = append(spec.Root.Binds, sandbox.Bind{Target: "/run/gpu", Made: true, Links: map[string]string{"libgpu.so.1": "/opt/gpu/lib/libgpu.so.1.2"}})
	})
	for _, user := range []string{"root", "user"} {
		o := shell(t, s, user, `cat /run/gpu/libgpu.so.1 && for f in /run/gpu/libgpu.so.1 /opt/gpu/lib/libgpu.so.1.2 /run/gpu/new; do (echo x > $f) 2>/dev/null && echo WRITTEN; done
			rm -rf /opt/gpu/lib/libgpu.so.1.2 /run/gpu/libgpu.so.1 2>/dev/null && echo REMOVED; mv /run/gpu /run/gone 2>/dev/null && echo MOVED; grep -c "gpu.* ro,nosuid,nodev" /proc/self/mounts`)
		if o.stdout != "a driver2\n" {
			t.Errorf("as %s: %q %q", user, o.stdout, o.stderr)
		}
	}
	if text, err := os.ReadFile(library); err != nil || string(text) != "a driver" {
		t.Errorf("the node's file is %q, %v", text, err)
	}

	merged := create(t, r, func(spec *sandbox.Spec) {
		lower := t.TempDir()
		if err := errors.Join(os.MkdirAll(filepath.Join(lower, "usr/lib"), 0o755), os.Symlink("usr/lib", filepath.Join(lower, "lib")), os.Chmod(lower, 0o755)); err != nil {
			t.Fatal(err)
		}
		spec.Root = sandbox.Root{Lower: []string{lower}}
	}, driver("/lib/gpu/libgpu.so.1.2"))
	f, _, err := merged.Files().Open(t.Context(), "/usr/lib/gpu/libgpu.so.1.2", "0")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(f); err != nil || string(text) != "a driver" {
		t.Errorf("below the link of a merged /usr: %q, %v", text, err)
	}
	_ = f.Close()

	for name, edits := range map[string][]func(*sandbox.Spec){
		"a link to elsewhere in the image":   {driver("/opt/gpu/libgpu.so"), link("opt/gpu", "/etc")},
		"a link out of the image":            {driver("/opt/gpu/libgpu.so"), link("opt/gpu", "../../../../../../etc")},
		"a link in the place of the file":    {driver("/opt/gpu/libgpu.so"), link("opt/gpu/libgpu.so", "/etc/passwd")},
		"a link that looks like a merged":    {driver("/opt/gpu/libgpu.so"), link("opt", "usr/../etc")},
		"a directory in the place of a file": {driver("/opt/gpu"), func(spec *sandbox.Spec) { _ = os.MkdirAll(filepath.Join(spec.Root.Lower[0], "opt/gpu"), 0o755) }},
		"dots":                               {driver("/opt/../etc/passwd")},
		"no path":                            {driver("opt/gpu")},
		"/proc":                              {driver("/proc/sys/kernel/core_pattern")},
		"/sys":                               {driver("/sys/x")},
		"/dev":                               {driver("/dev/sda")},
	} {
		spec := sandbox.Spec{ID: fmt.Sprintf("s-%d", serial.Add(1)), Root: hostRoot(t)}
		for _, e := range edits {
			e(&spec)
		}
		if s, err := r.Create(t.Context(), spec); err == nil {
			t.Errorf("%s: it was mounted (%v)", name, s.Destroy(t.Context()))
		}
	}
}

func TestDevicesThatAreNone(t *testing.T) {
	r := newRuntime(t)
	many := make([]sandbox.Device, 300)
	for i := range many {
		many[i] = sandbox.Device{Path: fmt.Sprintf("/dev/gpu%d", i), Major: 10, Access: "rw"}
	}
	for name, devices := range map[string][]sandbox.Device{
		"outside":       {{Path: "/etc/gpu", Access: "rw"}},
		"dots":          {{Path: "/dev/../etc/gpu", Access: "rw"}},
		"/dev itself":   {{Path: "/dev", Access: "rw"}},
		"a directory":   {{Path: "/dev/gpu/", Access: "rw"}},
		"null":          {{Path: "/dev/null", Major: 1, Minor: 1, Access: "rw"}},
		"a terminal":    {{Path: "/dev/pts/7", Access: "rw"}},
		"shared memory": {{Path: "/dev/shm/gpu", Access: "rw"}},
		"no access":     {{Path: "/dev/gpu"}},
		"to make":       {{Path: "/dev/gpu", Access: "rwm"}},
		"twice":         {{Path: "/dev/gpu", Access: "r"}, {Path: "/dev/gpu", Access: "r"}},
		"below a node":  {{Path: "/dev/gpu", Access: "r"}, {Path: "/dev/gpu/0", Access: "r"}},
		"above a node":  {{Path: "/dev/gpu/0", Access: "r"}, {Path: "/dev/gpu", Access: "r"}},
		"too many":      many,
	} {
		s, err := r.Create(t.Context(), sandbox.Spec{ID: fmt.Sprintf("s-%d", serial.Add(1)), Root: hostRoot(t), Devices: devices})
		if !errors.Is(err, sandbox.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			_ = s.Destroy(t.Context())
		}
	}
}
