//go:build linux && cgo

package sandbox_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"rockpool/internal/image"
	"rockpool/internal/sandbox"
)

func realHost(t testing.TB) sandbox.Root {
	t.Helper()
	store, err := image.New(image.Config{Dir: filepath.Join(t.TempDir(), "images")})
	if err != nil {
		t.Fatal(err)
	}
	host, err := store.Acquire(t.Context(), image.Host, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return host.Root
}

// build compiles a C program for the sandbox, statically so that it needs nothing there.
func build(t *testing.T, source string, flags ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "x.c")
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "x")
	if text, err := exec.Command("gcc", append(flags, "-O1", "-o", out, file)...).CombinedOutput(); err != nil {
		t.Skipf("gcc: %s", text)
	}
	program, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

func install(t *testing.T, s *sandbox.Sandbox, program []byte) {
	t.Helper()
	o := collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "cat > /workspace/x && chmod 755 /workspace/x"}}), string(program))
	if o.ExitCode != 0 {
		t.Fatalf("%+v", o)
	}
}

const attempts = `
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#define TRY(name, call) do { errno = 0; long r = (long)(call); printf("%s %s\n", name, r < 0 ? strerrorname_np(errno) : "DONE"); } while (0)
int main(void) {
	TRY("unshare-user", unshare(CLONE_NEWUSER));
	TRY("unshare-ns", unshare(CLONE_NEWNS));
	TRY("clone-user", syscall(SYS_clone, CLONE_NEWUSER | 17, 0, 0, 0, 0));
	TRY("clone-high-bits", syscall(SYS_clone, 0x100000000UL | CLONE_NEWNET | 17, 0, 0, 0, 0));
	TRY("clone3", syscall(SYS_clone3, 0, 0));
	TRY("setns", setns(0, 0));
	TRY("mount", mount("none", "/tmp", "tmpfs", 0, 0));
	TRY("umount", umount2("/proc/sys", MNT_DETACH));
	TRY("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
	TRY("open_tree", syscall(SYS_open_tree, -100, "/", 1));
	TRY("chroot", chroot("/tmp"));
	TRY("io_uring", syscall(SYS_io_uring_setup, 8, 0));
	TRY("keyctl", syscall(SYS_keyctl, 0, -3, 1));
	TRY("add_key", syscall(SYS_add_key, "user", "x", "y", 1, -3));
	TRY("bpf", syscall(SYS_bpf, 0, 0, 0));
	TRY("perf", syscall(SYS_perf_event_open, 0, 0, 0, 0, 0));
	TRY("userfaultfd", syscall(SYS_userfaultfd, 0));
	TRY("ptrace", syscall(SYS_ptrace, 16, 1, 0, 0));
	TRY("vm_read", syscall(SYS_process_vm_readv, 1, 0, 0, 0, 0, 0));
	TRY("handle", syscall(SYS_open_by_handle_at, 0, 0, 0));
	TRY("fanotify", syscall(SYS_fanotify_init, 0, 0));
	TRY("module", syscall(SYS_init_module, 0, 0, ""));
	TRY("reboot", syscall(SYS_reboot, 0, 0, 0, 0));
	TRY("tiocsti", ioctl(0, TIOCSTI, "x"));
	TRY("tiocsti-high", syscall(SYS_ioctl, 0, 0x100000000UL | TIOCSTI, "x"));
	TRY("tioclinux", ioctl(0, TIOCLINUX, "x"));
	TRY("personality", personality(READ_IMPLIES_EXEC));
	TRY("vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
	TRY("packet", socket(AF_PACKET, SOCK_RAW, 0));
	TRY("alg", socket(AF_ALG, SOCK_SEQPACKET, 0));
	TRY("netfilter", socket(AF_NETLINK, SOCK_RAW, 12));
	TRY("raw", socket(AF_INET, SOCK_RAW, 1));
	TRY("fifo-sched", sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){1}));
	TRY("newest", syscall(600));
	return 0;
}`

func TestForbiddenCalls(t *testing.T) {
	s := create(t, newRuntime(t), func(spec *sandbox.Spec) { spec.Root = realHost(t) })
	install(t, s, build(t, attempts, "-static"))
	for _, user := range []string{"root", "user"} {
		o := collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"/workspace/x"}, User: user, TTY: true}), "")
		if o.ExitCode != 0 || strings.Count(o.stdout, "\n") < 30 {
			t.Fatalf("%+v", o)
		}
		for line := range strings.Lines(o.stdout) {
			name, got, _ := strings.Cut(strings.TrimSpace(line), " ")
			want := "EPERM"
			switch name {
			case "clone3", "newest":
				want = "ENOSYS"
			case "vsock", "packet", "alg", "netfilter":
				want = "EAFNOSUPPORT"
			}
			if got != want {
				t.Errorf("%s as %s: %s, want %s", name, user, got, want)
			}
		}
	}
}

func TestSelfTestOnTheHostsImage(t *testing.T) {
	r := newRuntime(t)
	if err := r.SelfTest(t.Context(), realHost(t)); err != nil {
		t.Error(err)
	}
	for _, f := range r.Fences() {
		t.Logf("%-15s %-20s %-5v %s", f.Wall, f.Name, f.InForce, f.Detail)
	}
}

func TestOtherArchitecturesCallsKill(t *testing.T) {
	s := create(t, newRuntime(t))
	for name, source := range map[string]string{
		"int 0x80": `int main(void){ long r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(20)); return 0; }`,
		"x32":      `#include <unistd.h>` + "\n" + `int main(void){ syscall(0x40000000 + 39); return 0; }`,
	} {
		install(t, s, build(t, source, "-static"))
		if o := run(t, s, "/workspace/x"); o.Signal != 31 {
			t.Errorf("%s: %+v", name, o)
		}
	}
}

func TestPowerless(t *testing.T) {
	s := create(t, newRuntime(t), func(spec *sandbox.Spec) { spec.Root = realHost(t) })
	for _, user := range []string{"root", "user"} {
		o := shell(t, s, user, "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; ls /proc/self/fd | wc -l; cat /proc/self/oom_score_adj; ulimit -c")
		want := "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n4\n500\n0\n"
		if o.stdout != want { // the fourth descriptor is ls's own directory
			t.Errorf("%s: %q %q", user, o.stdout, o.stderr)
		}
	}
	e := begin(t, s, sandbox.ExecSpec{Argv: []string{"/usr/bin/env"}, Env: []string{"A=b"}})
	if o := collect(t, e, ""); o.stdout != "A=b\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nLANG=C.UTF-8\n" {
		t.Errorf("environment: %q", o.stdout)
	}
}

// Each line is a shell test that must fail inside, for both users.
func TestNothingOfTheNodeShows(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := create(t, newRuntime(t), func(spec *sandbox.Spec) { spec.Root = realHost(t) })
	for _, user := range []string{"root", "user"} {
		for _, attempt := range []string{
			"test -e " + secret, "ls /sys/kernel", "ls /proc/1", "ls /proc/1/root/", "cat /proc/1/environ", "cat /etc/shadow", "test -s /proc/kcore",
			"test -s /proc/kallsyms", "test -s /proc/cmdline", "dmesg", "echo x > /proc/sys/kernel/core_pattern", "echo x > /proc/sys/kernel/hostname",
			"echo b > /proc/sysrq-trigger", "ls /home | grep -v '^user$'", "ls -d /work", "test -e /dev/mem", "test -e /dev/kvm", "mknod /tmp/d b 8 0",
			"touch /usr/x", "touch /dev/x", "rm /dev/null", "kill -9 1 && sleep 0.2 && ! kill -0 1", "echo -500 > /proc/self/oom_score_adj",
			"cp /bin/bash /tmp/b && chmod 4755 /tmp/b && test $(/tmp/b -pc 'id -u') != $(id -u)", "mount -o remount,rw /usr",
			"ls /sys/fs/cgroup", "test $(cat /proc/net/dev | grep -vc -e lo: -e '|') != 0", "(exec 3<>/dev/tcp/169.254.169.254/80)",
			"grep -q rockpool /proc/self/mountinfo", "cat /proc/self/cgroup | grep rockpool", "ls /usr/local/etc/*", "nice -n -5 true 2>&1 | grep -vq .",
			"ls /proc | grep -qx 1",
		} {
			o := shell(t, s, user, attempt)
			if o.ExitCode == 0 {
				t.Errorf("%s could: %s: %s%s", user, attempt, o.stdout, o.stderr)
			}
		}
	}
	if o := run(t, s, "true"); o.ExitCode != 0 {
		t.Error("the supervisor did not survive")
	}
}

func TestLanguages(t *testing.T) {
	s := create(t, newRuntime(t), func(spec *sandbox.Spec) {
		spec.Root = realHost(t)
		spec.Limits.MemoryBytes, spec.Limits.DiskBytes = 2<<30, 1<<30
	})
	for name, script := range map[string]string{
		"python3": `/usr/bin/python3 -c 'import ssl, multiprocessing, subprocess, threading; threading.Thread(target=print, args=("hello",)).start()'`,
		"gcc":     `printf '#include <stdio.h>\nint main(){puts("hello");}' > a.c && gcc a.c -o a && ./a`,
		"java":    `printf 'class A{public static void main(String[] a){System.out.println("hello");}}' > A.java && javac A.java && java A`,
		"node":    `node -e 'console.log("hello")'`,
		"perl":    `perl -e 'print "hello\n"'`,
		"go":      `mkdir -p g && cd g && printf 'package main\nfunc main(){println("hello")}' > m.go && PATH=$PATH:/usr/local/go/bin GOCACHE=/tmp/c GOTOOLCHAIN=local GOFLAGS=-p=2 go run m.go 2>&1`,
	} {
		program, _, _ := strings.Cut(script, " ")
		if name == "go" {
			program = "/usr/local/go/bin/go"
		}
		if name == "java" {
			program = "javac"
		}
		if name == "gcc" {
			program = "gcc"
		}
		t.Run(name, func(t *testing.T) {
			if shell(t, s, "user", "command -v "+program).ExitCode != 0 {
				t.Skipf("no %s on this machine", program)
			}
			e := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", script}, User: "user", Env: []string{"HOME=/home/user"}})
			if o := collect(t, e, ""); o.stdout != "hello\n" || o.ExitCode != 0 {
				t.Errorf("%+v", o)
			}
		})
	}
}

func TestDiskIsBounded(t *testing.T) {
	s := create(t, newRuntime(t), func(spec *sandbox.Spec) { spec.Limits.DiskBytes = 16 << 20; spec.Limits.DiskInodes = 200 })
	for _, dir := range []string{"/workspace", "/tmp", "/home/user", "/var/tmp", "/etc"} {
		o := shell(t, s, "root", "head -c 32M /dev/zero > "+dir+"/big; r=$?; rm -f "+dir+"/big; exit $r")
		if o.ExitCode == 0 {
			t.Errorf("%s is not bounded", dir)
		}
	}
	o := shell(t, s, "user", "for i in {1..300}; do : > /tmp/$i || exit 1; done")
	if o.ExitCode == 0 || !strings.Contains(o.stderr, "No space left") {
		t.Errorf("inodes: %+v", o)
	}
}

// Files in memory are charged: a tenant who fills it loses the program, and perhaps the sandbox, never the node.
func TestMemoryFilledWithFiles(t *testing.T) {
	s := create(t, newRuntime(t), func(spec *sandbox.Spec) { spec.Limits.MemoryBytes, spec.Limits.DiskBytes = 48<<20, 512<<20 })
	o := shell(t, s, "user", "cat /dev/zero > /tmp/full")
	if !o.OOMKilled || o.ExitCode != 137 {
		t.Errorf("%+v", o)
	}
	for i := range 3 {
		e, err := s.Exec(t.Context(), sandbox.ExecSpec{ID: "after-" + string(rune('a'+i)), Argv: []string{"true"}})
		if err != nil {
			t.Logf("refused: %v", err)
			continue
		}
		<-e.Done()
		result, err := e.Result()
		t.Logf("%+v %v", result, err)
		if err == nil && result.ExitCode == 137 && !result.OOMKilled {
			t.Error("killed without a verdict")
		}
	}
	select {
	case <-s.Done():
		if !s.Exit().OOMKilled {
			t.Error("the sandbox ended without a verdict")
		}
	default:
	}
}
