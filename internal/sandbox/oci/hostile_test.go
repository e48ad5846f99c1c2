//go:build linux && cgo

package oci_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"rockpool/internal/sandbox"
)

// attempts are calls that a program has no business with. Each line of its output is a name and what the kernel said.
const attempts = `
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#define TRY(name, call) do { errno = 0; long r = (long)(call); printf("%s %s\n", name, r < 0 ? strerrorname_np(errno) : "DONE"); } while (0)
int main(void) {
	TRY("mount", mount("none", "/tmp", "tmpfs", 0, 0));
	TRY("umount", umount2("/proc", MNT_DETACH));
	TRY("chroot", chroot("/tmp"));
	TRY("setns", setns(0, 0));
	TRY("setuid", setuid(65535));
	TRY("mknod", mknod("/tmp/disk", S_IFBLK | 0666, 8 << 8));
	TRY("handle", syscall(SYS_open_by_handle_at, 0, 0, 0));
	TRY("module", syscall(SYS_init_module, 0, 0, ""));
	TRY("reboot", syscall(SYS_reboot, 0, 0, 0, 0));
	TRY("kill process 1", kill(1, 9));
	TRY("kill our parent", kill(getppid(), 9));
	TRY("trace our parent", ptrace(PTRACE_ATTACH, getppid(), 0, 0));
	TRY("write our parent's program", open("/.rockpool/inside", O_WRONLY));
	TRY("replace our parent's program", rename("/.rockpool/inside", "/.rockpool/other"));
	TRY("remove our parent's program", unlink("/.rockpool/inside"));
	TRY("raw socket", socket(AF_PACKET, SOCK_RAW, 0));
	TRY("host name", sethostname("x", 1));
	TRY("swap", syscall(SYS_swapon, "/tmp/x", 0));
#ifdef NATIVE_FILTER
	TRY("unshare-user", unshare(CLONE_NEWUSER));
	TRY("unshare-ns", unshare(CLONE_NEWNS));
	TRY("clone3", syscall(SYS_clone3, 0, 0));
	TRY("io_uring", syscall(SYS_io_uring_setup, 8, 0));
	TRY("keyctl", syscall(SYS_keyctl, 0, -3, 1));
	TRY("add_key", syscall(SYS_add_key, "user", "x", "y", 1, -3));
	TRY("bpf", syscall(SYS_bpf, 0, 0, 0));
	TRY("perf", syscall(SYS_perf_event_open, 0, 0, 0, 0, 0));
	TRY("userfaultfd", syscall(SYS_userfaultfd, 0));
	TRY("vm_read", syscall(SYS_process_vm_readv, 1, 0, 0, 0, 0, 0));
	TRY("vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
	TRY("newest", syscall(600));
#endif
	return 0;
}`

func install(t *testing.T, m *machine, write func([]byte), source string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "x.c")
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-static", "-w", "-O1", "-o", filepath.Join(dir, "x"), file}
	if m.cfg.Name != "runsc" {
		args = append(args, "-DNATIVE_FILTER")
	}
	if text, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Skipf("gcc: %s", text)
	}
	program, err := os.ReadFile(filepath.Join(dir, "x"))
	if err != nil {
		t.Fatal(err)
	}
	write(program)
}

func TestForbiddenCalls(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t)
		install(t, m, func(program []byte) {
			var archive bytes.Buffer
			w := tar.NewWriter(&archive)
			_ = w.WriteHeader(&tar.Header{Name: "x", Mode: 0o755, Size: int64(len(program)), Typeflag: tar.TypeReg})
			_, _ = w.Write(program)
			_ = w.Close()
			if err := s.Files().Apply(t.Context(), nil, &archive); err != nil {
				t.Fatal(err)
			}
		}, attempts)
		for _, user := range []string{"root", "user"} {
			o := collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"/workspace/x"}, User: user}), "")
			if o.err != nil || o.ExitCode != 0 || strings.Count(o.stdout, "\n") < 18 {
				t.Fatalf("%+v", o)
			}
			for line := range strings.Lines(o.stdout) {
				if i := strings.LastIndexByte(strings.TrimSpace(line), ' '); line[i+1:] == "DONE\n" {
					t.Errorf("%s as %s was done", line[:i], user)
				}
			}
		}
	})
}

func TestPowerless(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t)
		for _, user := range []string{"root", "user"} {
			o := shell(t, s, user, "grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs)' /proc/self/status; ulimit -c")
			for line := range strings.Lines(o.stdout) {
				name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
				if strings.HasPrefix(name, "Cap") && value != "0000000000000000" || name == "NoNewPrivs" && value != "1" {
					t.Errorf("%s: %s", user, line)
				}
			}
			if strings.Count(o.stdout, "\n") < 6 || !strings.HasSuffix(o.stdout, "\n0\n") {
				t.Errorf("%s: %q %q", user, o.stdout, o.stderr)
			}
		}
		o := collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"/usr/bin/env"}, Env: []string{"A=b"}}), "")
		if !strings.HasPrefix(o.stdout, "A=b\n") || strings.Contains(o.stdout, "HOME") {
			t.Errorf("environment: %q", o.stdout)
		}
		if o := shell(t, s, "", "ls /proc/self/fd | wc -l"); o.stdout != "4\n" { // the fourth is that of ls
			t.Errorf("descriptors: %q", o.stdout)
		}
	})
}

// Each line is a shell test that must fail inside.
func TestNothingOfTheNodeShows(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t)
		for _, user := range []string{"root", "user"} {
			for _, attempt := range []string{
				"test -e " + secret,
				"test -e " + m.cfg.Dir,
				"test -s /proc/kcore",
				"echo x > /proc/sys/kernel/core_pattern",
				"echo b > /proc/sysrq-trigger",
				"ls /sys/fs/cgroup/memory",
				"ls /sys/kernel/debug/*",
				"cat /proc/1/environ",
				"ls -l /proc/1/fd",
				"cat /dev/sda",
				"dd if=/dev/mem bs=1 count=1",
				"mkdir /proc/x",
				"cp /bin/sh /.rockpool/inside",
				"grep -v -E '^ *lo:' /proc/net/dev | grep :",
				"touch /etc/../../../../../../etc/shadow2 && test -e /etc/no-such",
			} {
				if o := shell(t, s, user, attempt); o.ExitCode == 0 || o.err != nil {
					t.Errorf("%s: %s: %q %v", user, attempt, o.stdout, o.err)
				}
			}
		}
		if o := shell(t, s, "", "ip addr show lo 2>/dev/null | grep -c 127.0.0.1 || (exec 3<>/dev/udp/127.0.0.1/9 && echo 1)"); o.stdout != "1\n" {
			t.Errorf("loopback: %+v", o)
		}
	})
}

// What a tenant makes of its own tree must not lead the node out of it.
func TestFilesAreConfined(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		secret := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(secret, []byte("the node's"), 0o644); err != nil {
			t.Fatal(err)
		}
		s := m.create(t)
		shell(t, s, "", "ln -s "+secret+" /workspace/link; ln -s / /workspace/top; ln -s ../../../../../.. /workspace/up; mkfifo /workspace/fifo; echo inside > /workspace/own; chmod 600 /workspace/own")
		for _, path := range []string{"link", "top" + secret, "up" + secret, secret, "fifo", "/proc/1/root" + secret} {
			if r, _, err := s.Files().Open(t.Context(), path, "root"); err == nil {
				b, _ := io.ReadAll(r)
				_ = r.Close()
				t.Errorf("%s was read: %q", path, b)
			}
		}
		if _, _, err := s.Files().Open(t.Context(), "own", "user"); err == nil {
			t.Error("another user's file was opened")
		}
		r, _, err := s.Files().Open(t.Context(), "own", "root")
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(r)
		_ = r.Close()
		if string(b) != "inside\n" {
			t.Errorf("%q", b)
		}
		var archive bytes.Buffer
		w := tar.NewWriter(&archive)
		_ = w.WriteHeader(&tar.Header{Name: "link/../up/../../new", Mode: 0o644, Size: 1, Typeflag: tar.TypeReg})
		_, _ = w.Write([]byte("x"))
		_ = w.Close()
		_ = s.Files().Apply(t.Context(), []string{"top" + secret, "link"}, &archive)
		if b, err := os.ReadFile(secret); err != nil || string(b) != "the node's" {
			t.Errorf("%q %v", b, err)
		}
		// What the node writes is seen inside at once, also where it was looked at before.
		for _, text := range []string{"one", "two"} {
			archive.Reset()
			w := tar.NewWriter(&archive)
			_ = w.WriteHeader(&tar.Header{Name: "seen", Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg})
			_, _ = w.Write([]byte(text))
			_ = w.Close()
			if err := s.Files().Apply(t.Context(), nil, &archive); err != nil {
				t.Fatal(err)
			}
			if o := shell(t, s, "user", "cat seen"); o.stdout != text {
				t.Errorf("inside it reads %q, want %q: %s", o.stdout, text, o.stderr)
			}
		}
	})
}

func TestFencesSayWhatTheClassIs(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		r := m.runtime(t)
		m.createIn(t, r)
		fences := map[string]sandbox.Fence{}
		for _, f := range r.Fences() {
			if f.Detail == "" {
				t.Errorf("%s says nothing", f.Name)
			}
			fences[f.Name] = f
		}
		if fences["kernel"].InForce != (m.cfg.Name == "runsc") || !fences["privilege"].InForce || !fences["seccomp"].InForce || !fences["files.root"].InForce {
			t.Errorf("%+v", fences)
		}
	})
}

// A bind hides what an image has below it. Nobody inside may move it away.
func TestWhatABindHidesStaysHidden(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		layer := t.TempDir()
		if err := os.Chmod(layer, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{"hidden", "shown"} {
			if err := os.MkdirAll(filepath.Join(layer, dir), 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(layer, dir, "secret"), []byte("the node's"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		s := m.create(t, func(spec *sandbox.Spec) {
			spec.Root.Lower = append([]string{layer}, spec.Root.Lower...)
			spec.Root.Binds = append(spec.Root.Binds[:len(spec.Root.Binds):len(spec.Root.Binds)], sandbox.Bind{Target: "/hidden"})
		})
		o := shell(t, s, "root", "cat /shown/secret; mv /hidden /moved; rmdir /hidden; rm -rf /hidden; mkdir /other && mv -T /other /hidden; cat /hidden/secret /moved/secret; touch /hidden/x; ls -A /hidden")
		if o.stdout != "the node's" {
			t.Errorf("%q", o.stdout)
		}
		if o := shell(t, s, "root", "mv /.rockpool /elsewhere || rm -rf /.rockpool || touch /.rockpool/x"); o.ExitCode == 0 {
			t.Errorf("the program that starts programs could be moved: %+v", o)
		}
	})
}

// The network namespace of the node is the one inside.
func TestNetworkNamespaceOfTheNode(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		name := "rockpool-" + filepath.Base(m.cfg.MountDir)
		ip := func(args ...string) {
			if text, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				t.Skipf("ip %v: %v %s", args, err, text)
			}
		}
		ip("netns", "add", name)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
		ip("-n", name, "link", "set", "lo", "up")
		ip("-n", name, "link", "add", "pool0", "type", "veth", "peer", "name", "pool1")
		ip("-n", name, "addr", "add", "10.9.8.7/24", "dev", "pool0")
		ip("-n", name, "link", "set", "pool0", "up")
		spec := sandbox.Spec{ID: "networked", Root: m.root, NetNS: "/run/netns/" + name}
		r := m.runtime(t)
		s, err := r.Create(t.Context(), spec)
		if errors.Is(err, sandbox.ErrInvalid) && strings.Contains(err.Error(), "update it") {
			if left, _ := r.List(); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Destroy(context.Background()); err != nil {
				t.Error(err)
			}
		})
		if o := shell(t, s, "user", "cat /proc/net/dev"); !strings.Contains(o.stdout, "pool0:") || strings.Contains(o.stdout, "eth0") {
			t.Errorf("%q", o.stdout)
		}
	})
}
