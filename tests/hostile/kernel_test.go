package hostile

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
)

var kernel = []attack{
	{id: "C1", what: "new namespaces, and entering others", language: "c", root: true, program: `
int main(void) {
	char args[88] = {0};
	*(unsigned long *)args = CLONE_NEWUSER;
	ATTEMPT(unshare(CLONE_NEWUSER)); ATTEMPT(unshare(CLONE_NEWNS)); ATTEMPT(unshare(CLONE_NEWNET)); ATTEMPT(unshare(CLONE_NEWPID));
	ATTEMPT(syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
	ATTEMPT(syscall(SYS_clone, 0x100000000UL | CLONE_NEWNET | SIGCHLD, 0, 0, 0, 0));
	ATTEMPT(syscall(SYS_clone3, args, sizeof args));
	int fd = open("/proc/self/ns/net", O_RDONLY);
	ATTEMPT(setns(fd, 0));
	ATTEMPT(syscall(SYS_pidfd_open, 1, 0) >= 0 ? setns(syscall(SYS_pidfd_open, 1, 0), CLONE_NEWNS) : -1);
	return 0;
}`, want: "exit 0", stdout: silent},
	{id: "C4", what: "io_uring, bpf, perf, userfaultfd, modules", language: "c", root: true, program: `
int main(void) {
	char params[256] = {0};
	ATTEMPT(syscall(SYS_io_uring_setup, 8, params)); ATTEMPT(syscall(SYS_io_uring_enter, 0, 0, 0, 0, 0)); ATTEMPT(syscall(SYS_io_uring_register, 0, 0, 0, 0));
	ATTEMPT(syscall(SYS_bpf, 0, params, 128)); ATTEMPT(syscall(SYS_perf_event_open, params, 0, -1, -1, 0)); ATTEMPT(syscall(SYS_userfaultfd, 0));
	ATTEMPT(syscall(SYS_init_module, params, 1, "")); ATTEMPT(syscall(SYS_finit_module, 0, "", 0)); ATTEMPT(syscall(SYS_kexec_load, 0, 0, 0, 0));
	ATTEMPT(syscall(SYS_reboot, 0, 0, 0, 0)); ATTEMPT(syscall(SYS_open_by_handle_at, -100, params, 0)); ATTEMPT(syscall(SYS_fanotify_init, 0, 0));
	ATTEMPT(syscall(SYS_swapon, "x", 0)); ATTEMPT(syscall(SYS_acct, "x")); ATTEMPT(syscall(SYS_settimeofday, params, 0)); ATTEMPT(syscall(SYS_ptrace, 16, 1, 0, 0));
	ATTEMPT(syscall(SYS_process_vm_readv, 1, 0, 0, 0, 0, 0)); ATTEMPT(syscall(SYS_quotactl, 0, "", 0, 0)); ATTEMPT(syscall(SYS_syslog, 3, params, 100));
	return 0;
}`, want: "exit 0", stdout: silent},
	{id: "C7", what: "int 0x80 around the filter", language: "c", only: "amd64",
		program: `int main(void) { long r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(20)); puts("went on"); return 0; }`, want: "exit 159", stdout: silent},
	{id: "C7", what: "x32 calls around the filter", language: "c", only: "amd64",
		program: `int main(void) { syscall(0x40000000 + 39); puts("went on"); return 0; }`, want: "exit 159", stdout: silent},
	{id: "C17", what: "system calls at random, by root of the runner", language: "c", root: true, limit: 5, program: `
int main(void) {
	char page[65536];
	for (unsigned long seed = 1;; seed++) {
		pid_t child = fork();
		if (child < 0) { while (waitpid(-1, 0, 0) > 0); continue; }
		if (child > 0) { if (seed % 8 == 0) while (waitpid(-1, 0, 0) > 0); continue; }
		unsigned long x = seed * 0x9e3779b97f4a7c15UL ^ time(0);
#define NEXT (x ^= x << 13, x ^= x >> 7, x ^= x << 17)
		alarm(1);
		for (int i = 0; i < 400; i++) {
			unsigned long a[6], number = NEXT % 470;
			for (int k = 0; k < 6; k++) switch (NEXT % 6) {
				case 0: a[k] = NEXT % 8; break;
				case 1: a[k] = (unsigned long)page; break;
				case 2: a[k] = -1UL; break;
				case 3: a[k] = NEXT; break;
				case 4: a[k] = 1UL << NEXT % 64; break;
				default: a[k] = 0;
			}
			for (int k = 0; k < 64; k++) page[NEXT % sizeof page] = (char)x;
			syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
		}
		_exit(0);
	}
}`, want: "timeout|exit \\d+", then: func(ctx context.Context, a *arena, _ string) error { return a.Healthy(ctx) }},
	{id: "C19", what: "fine timers, which stay, tell nothing of the node", language: "py", program: `
a = time.perf_counter_ns(); b = time.perf_counter_ns()
print("fine", b - a < 1000000, "uptime of the node", float(open("/proc/uptime").read().split()[0]) > 86400 or time.clock_gettime(time.CLOCK_BOOTTIME) > 86400)
`, want: "exit 0", stdout: "fine True uptime of the node False\n"},
	{id: "C12", what: "inherited descriptors", language: "sh",
		program: `cd /proc/$$/fd; for f in *; do case $f in 0|1|2|255) ;; *) [ -L $f ] && ls -l $f;; esac; done; true`, want: "exit 0", stdout: silent},
	{id: "C12", what: "inherited descriptors, as root", language: "py", root: true,
		program: `print(sorted(os.listdir("/proc/self/fd"), key=int))`, want: "exit 0", stdout: `\['0', '1', '2', '3'\]` + "\n"}, // 3 is the listing's own
	{id: "C2", what: "release_agent of control groups", language: "sh", root: true, program: `
mkdir /tmp/cg; for t in cgroup cgroup2; do mount -t $t none /tmp/cg 2>/dev/null && echo "mounted $t"; done
find / -name release_agent -o -name cgroup.procs 2>/dev/null | head -3; ls /sys/fs 2>/dev/null; true`, want: "exit 0", stdout: silent},
	{id: "C3", what: "files of the kernel that run programs", language: "sh", root: true, program: `
for f in kernel/core_pattern kernel/modprobe kernel/hotplug kernel/poweroff_cmd kernel/sysrq vm/drop_caches vm/overcommit_memory fs/binfmt_misc/register kernel/hostname; do
  (echo x > /proc/sys/$f) 2>/dev/null && echo $f; done
(echo b > /proc/sysrq-trigger) 2>/dev/null && echo sysrq; (echo -1000 > /proc/self/oom_score_adj) 2>/dev/null && echo oom; (echo x > /proc/acpi/wakeup) 2>/dev/null && echo acpi
true`, want: "exit 0", stdout: silent},
	{id: "C5", what: "keys left for the next tenant", language: "c", root: true, program: `
int main(void) {
	for (int ring = -1; ring > -6; ring--) ATTEMPT(syscall(SYS_add_key, "user", "hostile", "x", 1, ring));
	ATTEMPT(syscall(SYS_keyctl, 0, -3, 1)); ATTEMPT(syscall(SYS_keyctl, 1, "hostile")); ATTEMPT(syscall(SYS_request_key, "user", "hostile", 0, -3));
	return 0;
}`, want: "exit 0", stdout: silent},
	{id: "C6", what: "socket families without a namespace, raw sockets", language: "c", root: true, program: `
int main(void) {
	for (int family = 0; family < 46; family++)
		for (int type = 1; type <= 5; type++) {
			if (family == AF_UNIX || family == AF_INET || family == AF_INET6 || family == AF_NETLINK) continue;
			if (socket(family, type, 0) >= 0) printf("DONE family %d type %d\n", family, type);
		}
	ATTEMPT(socket(AF_INET, SOCK_RAW, 1)); ATTEMPT(socket(AF_INET6, SOCK_RAW, 58)); ATTEMPT(socket(AF_NETLINK, SOCK_RAW, 12)); ATTEMPT(socket(AF_NETLINK, SOCK_RAW, 15));
	return 0;
}`, want: "exit 0", stdout: silent},
	{id: "C8", what: "personalities that weaken the layout", language: "c", program: `
int main(void) {
	ATTEMPT(personality(READ_IMPLIES_EXEC)); ATTEMPT(personality(ADDR_NO_RANDOMIZE)); ATTEMPT(personality(MMAP_PAGE_ZERO)); ATTEMPT(personality(PER_LINUX32));
	return 0;
}`, want: "exit 0", stdout: silent},
	{id: "C9", what: "shared memory, queues and semaphores left behind", language: "c", program: `
int main(void) {
	int id = shmget(0x1234, 8 << 20, IPC_CREAT | 0666);
	memset(shmat(id, 0, 0), 7, 8 << 20);
	msgget(0x1234, IPC_CREAT | 0666); semget(0x1234, 1, IPC_CREAT | 0666);
	int fd = shm_open("/hostile", O_CREAT | O_RDWR, 0666);
	ftruncate(fd, 4096);
	return id < 0 || fd < 0;
}`, want: "exit 0", then: inTheNextRunners(`ls /dev/shm; python3 -c 'import ctypes; c = ctypes.CDLL(None); print(c.shmget(0x1234, 1, 0), c.msgget(0x1234, 0), c.semget(0x1234, 1, 0))'`, "-1 -1 -1\n")},
	{id: "C10", what: "abstract sockets of the node", language: "sh", program: `sleep 0.3`, want: "exit 0", script: abstractSocket},
	{id: "C11", what: "our binary by way of /proc/self/exe", language: "c", root: true, program: `
int main(void) {
	ATTEMPT(open("/proc/1/exe", O_RDONLY)); ATTEMPT(open("/proc/1/exe", O_WRONLY)); ATTEMPT(open("/proc/1/mem", O_RDWR)); ATTEMPT(open("/proc/1/fd/0", O_RDWR));
	char link[64]; ATTEMPT(readlink("/proc/1/exe", link, 64));
	int fd = open("/usr/bin/env", O_RDONLY); char path[64];
	sprintf(path, "/proc/self/fd/%d", fd);
	ATTEMPT(open(path, O_WRONLY));
	return 0;
}`, want: "exit 0", stdout: silent},
	{id: "C13", what: "inherited environment", language: "sh", root: true,
		program: `cat /proc/*/environ 2>/dev/null | tr '\0' '\n' | grep -iE 'token|secret|rockpool|nomad|NOTIFY|http|passw|key'; true`, want: "exit 0", stdout: silent},
	{id: "C14", what: "who else is there", language: "py", program: `
for p in os.listdir("/proc"):
    if p.isdigit() and int(p) != os.getpid(): print(p, open("/proc/%s/cmdline" % p).read())
if os.getppid() > 1: print("parent", os.getppid())
print(len([l for l in open("/proc/mounts") if "rockpool" in l or "/var/lib" in l]))
`, want: "exit 0", stdout: "0\n"},
	{id: "C15", what: "signals for everyone", language: "c", root: true, program: `
int main(void) {
	for (int s = 1; s < 65; s++) { kill(1, s); if (s != SIGKILL && s != SIGSTOP) signal(s, SIG_IGN); }
	kill(1, SIGKILL); kill(1, SIGSTOP); killpg(1, SIGKILL);
	signal(SIGTERM, SIG_IGN);
	kill(-1, SIGTERM); kill(0, SIGTERM);
	int fd = syscall(SYS_pidfd_open, 1, 0);
	syscall(SYS_pidfd_send_signal, fd, SIGKILL, 0, 0);
	puts("sent");
	return 0;
}`, want: "exit 0", stdout: "sent\n", then: stillServes},
	{id: "C16", what: "zombies for process 1 to reap", language: "c", program: `
int main(void) {
	for (int i = 0; i < 3000; i++) {
		pid_t p = fork();
		if (p == 0) { if (fork() == 0) _exit(0); _exit(0); }
		waitpid(p, 0, 0);
	}
	puts("piled");
	return 0;
}`, want: "exit 0", stdout: "piled\n", then: func(ctx context.Context, a *arena, runner string) error {
		return errors.Join(stillServes(ctx, a, runner), nothingRuns(ctx, a, runner))
	}},
	{id: "C18", what: "the kernel's memory, symbols, log and devices", language: "sh", root: true, program: `
for f in /proc/kcore /proc/kallsyms /proc/kmsg /proc/modules /proc/slabinfo /proc/timer_list /proc/sched_debug /proc/keys /proc/iomem /proc/vmallocinfo; do
  [ -n "$(head -c 64 $f 2>/dev/null | tr -d '\0')" ] && echo $f; done
ls /dev | grep -vxE 'fd|full|null|ptmx|pts|random|shm|stderr|stdin|stdout|tty|urandom|zero|mqueue|core|console'
dmesg >/dev/null 2>&1 && echo dmesg; ls /sys 2>/dev/null; ls /sys/kernel 2>/dev/null; true`, want: "exit 0", stdout: silent},
}

// stillServes checks that a runner goes on to work.
func stillServes(ctx context.Context, a *arena, runner string) error {
	out, err := a.sh(ctx, runner, "echo alive")
	if err == nil && out != "alive\n" {
		err = fmt.Errorf("printed %q", out)
	}
	return err
}

// inTheNextRunners releases the runner and looks, in all that the pool had or makes next, at what a command prints.
func inTheNextRunners(command, want string) func(context.Context, *arena, string) error {
	return func(ctx context.Context, a *arena, runner string) (err error) {
		if err := a.Release(ctx, runner); err != nil {
			return err
		}
		for range poolSize + 1 {
			next, err := a.Claim(ctx, attackers, 0)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, a.Release(ctx, next)) }()
			out, err := a.sh(ctx, next, command)
			if err != nil {
				return err
			}
			if !matches(want, out) {
				return fmt.Errorf("the next tenant sees %q, want %q", out, want)
			}
		}
		return nil
	}
}

// abstractSocket listens on the node, where a program must not get to.
func abstractSocket(ctx context.Context, a *arena, runner string) error {
	name := "rockpool-hostile-" + a.secret
	l, err := net.Listen("unix", "@"+name)
	if err != nil {
		return err
	}
	defer l.Close()
	out, err := a.sh(ctx, runner, `python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); print(s.connect_ex("\0`+name+`"))'; grep -c hostile /proc/net/unix || true`)
	if f := strings.Fields(out); err == nil && (len(f) != 2 || f[0] == "0" || f[1] != "0") {
		err = fmt.Errorf("connecting answered %q", out)
	}
	return err
}
