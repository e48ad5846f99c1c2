//go:build linux && cgo

// The program that runs inside a container: process 1, which only reaps, and one for each execution, which starts the
// tenant's program, takes the node's commands, and ends what the program leaves behind. An image has nothing that could do
// this, and the node's own binary needs the node's libraries. So this file stands alone: no library, no call out of it, no
// data but its own section. The node writes its two sections to a file with an ELF header (program_linux.go); that the
// compiler kept to them is tested.
#define _GNU_SOURCE
#include "inside_linux.h"

#include <asm/ioctls.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <linux/types.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

// Nothing here may become a constant in another section, a table of jumps, or a call of memcpy.
#ifdef __GNUC__
#ifndef __clang__
#pragma GCC optimize("no-jump-tables", "no-tree-loop-distribute-patterns", "no-tree-vectorize")
#endif
#endif
#define CODE __attribute__((section("rockpool_code"), noinline, target("general-regs-only")))
#define DATA __attribute__((section("rockpool_data"), aligned(1)))
#define TEXT(name, text) static const char name[] DATA = text

TEXT(text_proc, "/proc");
TEXT(text_oom, "/proc/self/oom_score_adj");
TEXT(text_500, "500");
TEXT(text_ptmx, "/dev/pts/ptmx");
TEXT(text_pts, "/dev/pts/");
TEXT(text_path, "PATH=");
TEXT(text_default_path, "/usr/local/bin:/usr/bin:/bin");

#ifndef TIOCGPTPEER
#define TIOCGPTPEER 0x5441
#endif
#ifndef __NR_close_range
#define __NR_close_range 436
#endif

enum { MAX_REQUEST = 4 << 20, MAX_ARGS = 65536, MAX_GROUPS = 64, MAX_SEEN = 65536, TICK = 10000, LOOK_EVERY = 50, BUFFER = 4096 };

#if defined(__x86_64__)
static inline __attribute__((always_inline, target("general-regs-only"))) long call(long n, long a, long b, long c, long d, long e, long f) {
	long r;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return r;
}
__asm__(".pushsection rockpool_code,\"ax\",@progbits\n"
	"rockpool_entry: xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call rockpool_inside\n ud2\n"
	".popsection\n");
#elif defined(__aarch64__)
static inline __attribute__((always_inline, target("general-regs-only"))) long call(long n, long a, long b, long c, long d, long e, long f) {
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}
__asm__(".pushsection rockpool_code,\"ax\",@progbits\n"
	"rockpool_entry: mov x29, xzr\n mov x0, sp\n bl rockpool_inside\n brk #1\n"
	".popsection\n");
#else
#error "the program inside is written for amd64 and arm64"
#endif

#define CALL(n, a, b, c, d, e) call(__NR_##n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0L)

struct text {
	const char *at, *end;
	int bad;
};

struct seen {
	int pid, parent;
	uint32_t ticks;
	char state;
	char ours;
};

struct request {
	uint32_t uid, gid, groups, flags, width, height;
	uint32_t group[MAX_GROUPS];
	uint64_t cpu_limit; // microseconds, 0 = none
	const char *dir, *filter;
	uint32_t filter_length;
	char **argv, **env;
};

struct run {
	struct request *request;
	int self, child, signals, master, slave;
	int status, ended, killed, orphaned;
	long peak;
	struct seen *seen;
	int count;
};

struct window { // struct winsize, whose header does not go with that of the ioctls
	unsigned short rows, columns, width, height;
};

struct kernel_set {
	unsigned long bits;
};

static CODE __attribute__((noreturn)) void leave(int code) {
	for (;;) CALL(exit_group, code, 0, 0, 0, 0);
}

static CODE void *memory(size_t n) {
	long p = CALL(mmap, 0, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	if (p < 0 && p > -4096) leave(70);
	return (void *)p;
}

static CODE void say(uint32_t kind, int value, uint32_t step, long peak, uint64_t micro) {
	struct report r;
	r.kind = kind;
	r.value = value;
	r.step = step;
	r.peak = (uint32_t)peak;
	r.micro = micro;
	CALL(write, STATUS_FD, &r, sizeof r, 0, 0);
}

static CODE __attribute__((noreturn)) void give_up(long error, uint32_t step) {
	say(REPORT_FAILED, (int)-error, step, 0, 0);
	leave(71);
}

// need is for the time before the program is started.
static CODE long need(long result) {
	if (result < 0) give_up(result, STEP_SETUP);
	return result;
}

static CODE long read_full(int fd, void *into, size_t n) {
	char *p = into;
	while (n > 0) {
		long got = CALL(read, fd, p, n, 0, 0);
		if (got == -EINTR) continue;
		if (got <= 0) return -EPROTO;
		p += got;
		n -= (size_t)got;
	}
	return 0;
}

static CODE uint32_t take_u32(struct text *t) {
	uint32_t v = 0;
	if (t->bad || t->end - t->at < 4) {
		t->bad = 1;
		return 0;
	}
	for (int i = 3; i >= 0; i--) v = v << 8 | (unsigned char)t->at[i];
	t->at += 4;
	return v;
}

static CODE const char *take_text(struct text *t, uint32_t *length) {
	uint32_t n = take_u32(t);
	if (t->bad || n >= (size_t)(t->end - t->at) || t->at[n] != 0) {
		t->bad = 1;
		*length = 0;
		return text_proc + 5;
	}
	const char *s = t->at;
	*length = n;
	t->at += n + 1;
	return s;
}

static CODE char **take_list(struct text *t) {
	uint32_t n = take_u32(t), length;
	if (n > MAX_ARGS) give_up(-E2BIG, STEP_SETUP);
	char **list = memory((n + 1) * sizeof *list);
	for (uint32_t i = 0; i < n; i++) list[i] = (char *)take_text(t, &length);
	return list;
}

static CODE void read_request(struct request *r) {
	uint32_t size, length;
	need(read_full(COMMAND_FD, &size, sizeof size));
	if (size > MAX_REQUEST) give_up(-E2BIG, STEP_SETUP);
	char *body = memory(size + 1);
	need(read_full(COMMAND_FD, body, size));
	struct text t;
	t.at = body;
	t.end = body + size;
	t.bad = 0;
	r->uid = take_u32(&t);
	r->gid = take_u32(&t);
	r->groups = take_u32(&t);
	if (r->groups > MAX_GROUPS) give_up(-EPROTO, STEP_SETUP);
	for (uint32_t i = 0; i < r->groups; i++) r->group[i] = take_u32(&t);
	r->flags = take_u32(&t);
	r->width = take_u32(&t);
	r->height = take_u32(&t);
	r->cpu_limit = take_u32(&t);
	r->cpu_limit |= (uint64_t)take_u32(&t) << 32;
	r->dir = take_text(&t, &length);
	r->argv = take_list(&t);
	r->env = take_list(&t);
	r->filter = take_text(&t, &r->filter_length);
	if (t.bad || t.at != t.end || !r->argv[0]) give_up(-EPROTO, STEP_SETUP);
}

static CODE long set_capabilities(uint32_t kept) {
	struct __user_cap_header_struct head;
	struct __user_cap_data_struct sets[2];
	head.version = _LINUX_CAPABILITY_VERSION_3;
	head.pid = 0;
	for (int i = 0; i < 2; i++) {
		sets[i].effective = sets[i].permitted = i ? 0 : kept;
		sets[i].inheritable = 0;
	}
	return CALL(capset, &head, sets, 0, 0, 0);
}

// guard makes this process one that no tenant can signal, trace or look into: a user of its own, with just the power that
// starting and ending programs takes. The container's bounding set has nothing else either.
static CODE void guard(void) {
	CALL(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	need(CALL(prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0));
	need(CALL(setgroups, 0, 0, 0, 0, 0));
	need(CALL(setresgid, HELPER_ID, HELPER_ID, HELPER_ID, 0, 0));
	need(CALL(setresuid, HELPER_ID, HELPER_ID, HELPER_ID, 0, 0));
	need(set_capabilities(1u << CAP_CHOWN | 1u << CAP_KILL | 1u << CAP_SETUID | 1u << CAP_SETGID | 1u << CAP_SETPCAP));
	CALL(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	need(CALL(prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
}

static CODE long open_peer(int master) {
	long fd = CALL(ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC, 0, 0);
	if (fd >= 0) return fd;
	unsigned number;
	need(CALL(ioctl, master, TIOCGPTN, &number, 0, 0)); // a kernel of its own may not have TIOCGPTPEER
	char name[32];
	int n = 0, digits = 0;
	char reversed[12];
	for (; text_pts[n]; n++) name[n] = text_pts[n];
	do reversed[digits++] = (char)('0' + number % 10);
	while (number /= 10);
	while (digits > 0) name[n++] = reversed[--digits];
	name[n] = 0;
	return CALL(openat, AT_FDCWD, name, O_RDWR | O_NOCTTY | O_CLOEXEC, 0, 0);
}

static CODE void resize(int master, uint32_t width, uint32_t height) {
	struct window size;
	size.rows = (unsigned short)height;
	size.columns = (unsigned short)width;
	size.width = size.height = 0;
	CALL(ioctl, master, TIOCSWINSZ, &size, 0, 0);
}

static CODE void open_terminal(struct run *x) {
	int unlock = 0;
	x->master = (int)need(CALL(openat, AT_FDCWD, text_ptmx, O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK, 0, 0));
	need(CALL(ioctl, x->master, TIOCSPTLCK, &unlock, 0, 0));
	x->slave = (int)need(open_peer(x->master));
	need(CALL(fchmod, x->slave, 0620, 0, 0, 0));
	need(CALL(fchown, x->slave, x->request->uid, (gid_t)-1, 0, 0));
	resize(x->master, x->request->width, x->request->height);
}

static CODE __attribute__((noreturn)) void refuse(int fd, long error, uint32_t step) {
	int32_t words[2];
	words[0] = (int32_t)-error;
	words[1] = (int32_t)step;
	CALL(write, fd, words, sizeof words, 0, 0);
	leave(127);
}

// A working directory below /proc, also by a link, could be a way to another process's files (CVE-2024-21626).
static CODE long enter(const char *dir) {
	struct {
		long type;
		long rest[31];
	} reached;
	char where[4096];
	long r = CALL(chdir, dir, 0, 0, 0, 0);
	if (r < 0) return r;
	char dot[2];
	dot[0] = '.';
	dot[1] = 0;
	r = CALL(statfs, dot, &reached, 0, 0, 0);
	if (r < 0) return r;
	if (reached.type == PROC_SUPER_MAGIC) return -EPERM;
	r = CALL(getcwd, where, sizeof where, 0, 0, 0);
	if (r < 0) return r;
	return where[0] == '/' ? 0 : -EPERM;
}

static CODE int has_slash(const char *s) {
	for (; *s; s++)
		if (*s == '/') return 1;
	return 0;
}

// execute looks argv[0] up in the PATH of the given environment, without a fall-back to a shell.
static CODE long execute(char **argv, char **env) {
	if (has_slash(argv[0])) return CALL(execve, argv[0], argv, env, 0, 0);
	const char *path = text_default_path;
	for (char **e = env; *e; e++) {
		int i = 0;
		while (i < 5 && (*e)[i] == text_path[i]) i++;
		if (i == 5) path = *e + 5;
	}
	char file[4096];
	long worst = -ENOENT;
	for (;;) {
		size_t used = 0, name = 0;
		for (; *path && *path != ':'; path++)
			if (used < sizeof file - 1) file[used++] = *path;
		if (used == 0) file[used++] = '.';
		file[used++] = '/';
		while (argv[0][name] && used < sizeof file - 1) file[used++] = argv[0][name++];
		if (!argv[0][name] && used < sizeof file) {
			file[used] = 0;
			long r = CALL(execve, file, argv, env, 0, 0);
			if (r != -ENOENT && r != -ENOTDIR) worst = r;
			if (r != -ENOENT && r != -ENOTDIR && r != -EACCES) return r;
		}
		if (!*path++) return worst;
	}
}

// become is the child: from here to execve everything that fails is told on a pipe that execve closes.
static CODE __attribute__((noreturn)) void become(struct run *x, int tell) {
	struct request *r = x->request;
	int io[3];
	long error;
	// Without this a program could lower the score that the node gave it below others'.
	CALL(prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
	int score = (int)CALL(openat, AT_FDCWD, text_oom, O_WRONLY | O_CLOEXEC, 0, 0);
	if (score >= 0) CALL(write, score, text_500, 3, 0, 0);
	CALL(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	CALL(setsid, 0, 0, 0, 0, 0);
	io[0] = STDIN_FD;
	io[1] = STDOUT_FD;
	io[2] = r->flags & FLAG_MERGE ? STDOUT_FD : STDERR_FD;
	if (r->flags & FLAG_TTY) {
		if ((error = CALL(ioctl, x->slave, TIOCSCTTY, 0, 0, 0)) < 0) refuse(tell, error, STEP_SETUP);
		io[0] = io[1] = x->slave;
		if (r->flags & FLAG_MERGE) io[2] = x->slave;
	}
	// All descriptors move out of the way first: each of the low numbers may still be in use.
	for (int i = 0; i < 3; i++)
		if ((error = io[i] = (int)CALL(fcntl, io[i], F_DUPFD_CLOEXEC, 64, 0, 0)) < 0) refuse(tell, error, STEP_SETUP);
	if ((error = CALL(fcntl, tell, F_DUPFD_CLOEXEC, 64, 0, 0)) < 0) refuse(tell, error, STEP_SETUP);
	tell = (int)error;
	for (int i = 0; i < 3; i++)
		if ((error = CALL(dup3, io[i], i, 0, 0, 0)) < 0) refuse(tell, error, STEP_SETUP);
	if ((error = CALL(dup3, tell, 3, O_CLOEXEC, 0, 0)) < 0) refuse(tell, error, STEP_SETUP);
	tell = 3;
	CALL(close_range, 4, ~0u, 0, 0, 0);

	CALL(prctl, PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_KEEP_CAPS_LOCKED, 0, 0, 0);
	for (int c = 0; CALL(prctl, PR_CAPBSET_READ, c, 0, 0, 0) >= 0; c++)
		if ((error = CALL(prctl, PR_CAPBSET_DROP, c, 0, 0, 0)) < 0) refuse(tell, error, STEP_USER);
	if ((error = CALL(setgroups, r->groups, r->group, 0, 0, 0)) < 0 || (error = CALL(setresgid, r->gid, r->gid, r->gid, 0, 0)) < 0 ||
	    (error = CALL(setresuid, r->uid, r->uid, r->uid, 0, 0)) < 0 || (error = set_capabilities(0)) < 0 ||
	    (error = CALL(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) < 0)
		refuse(tell, error, STEP_USER);
	CALL(umask, 022, 0, 0, 0, 0);
	if ((error = enter(r->dir)) < 0) refuse(tell, error, STEP_DIRECTORY);
	struct kernel_set none;
	none.bits = 0;
	CALL(rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none, 0);
	if (r->filter_length) {
		struct sock_fprog program;
		program.len = (unsigned short)(r->filter_length / sizeof(struct sock_filter));
		program.filter = (struct sock_filter *)r->filter;
		if ((error = CALL(seccomp, SECCOMP_SET_MODE_FILTER, 0, &program, 0, 0)) < 0) refuse(tell, error, STEP_FILTER);
	}
	refuse(tell, execute(r->argv, r->env), STEP_EXECUTE);
}

static CODE void note_exit(struct run *x, int pid, int status, struct rusage *usage) {
	if (usage->ru_maxrss > x->peak) x->peak = usage->ru_maxrss;
	if (pid != x->child) return;
	x->status = status;
	x->ended = 1;
}

// reap takes what has ended, and waits for everything if told so. It answers whether a child is left.
static CODE int reap(struct run *x, int wait) {
	for (;;) {
		int status;
		struct rusage usage;
		long pid = CALL(wait4, -1, &status, wait ? 0 : WNOHANG, &usage, 0);
		if (pid == -EINTR) continue;
		if (pid <= 0) return pid == 0;
		note_exit(x, (int)pid, status, &usage);
	}
}

// look_at reads one line of /proc/<pid>/stat; the name in it may contain anything.
static CODE int look_at(int proc, const char *name, struct seen *s) {
	char path[32], line[1024];
	int n = 0;
	for (; name[n] && n < 16; n++) path[n] = name[n];
	path[n++] = '/';
	path[n++] = 's';
	path[n++] = 't';
	path[n++] = 'a';
	path[n++] = 't';
	path[n] = 0;
	long fd = CALL(openat, proc, path, O_RDONLY | O_CLOEXEC, 0, 0);
	if (fd < 0) return 0;
	long got = CALL(read, fd, line, sizeof line, 0, 0);
	CALL(close, fd, 0, 0, 0, 0);
	long at = got - 1;
	while (at > 0 && line[at] != ')') at--;
	if (at <= 0 || at + 4 >= got) return 0;
	s->state = line[at + 2];
	s->ticks = 0;
	int field = 3;
	uint32_t value = 0;
	for (at += 3; at < got && field <= 17; at++) {
		if (line[at] >= '0' && line[at] <= '9') {
			value = value * 10 + (uint32_t)(line[at] - '0');
			continue;
		}
		if (line[at] != ' ' && line[at] != '\n') continue;
		if (field == 4) s->parent = (int)value;
		if (field >= 14 && field <= 17) s->ticks += value; // its own, and that of the children that it has waited for
		value = 0;
		field++;
	}
	return field > 4;
}

// look finds all that descends from this process: as the nearest subreaper it is the root of that tree whatever a program
// does.
static CODE void look(struct run *x) {
	char buffer[8192];
	x->count = 0;
	long proc = CALL(openat, AT_FDCWD, text_proc, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0, 0);
	if (proc < 0) return;
	for (;;) {
		long got = CALL(getdents64, proc, buffer, sizeof buffer, 0, 0);
		if (got <= 0) break;
		for (long at = 0; at < got;) {
			const char *name = buffer + at + 19;
			uint16_t length = (uint16_t)((unsigned char)buffer[at + 16] | (unsigned char)buffer[at + 17] << 8);
			at += length;
			if (name[0] < '1' || name[0] > '9' || x->count == MAX_SEEN) continue;
			struct seen *s = &x->seen[x->count];
			s->pid = 0;
			for (int i = 0; name[i]; i++) s->pid = s->pid * 10 + (name[i] - '0');
			s->parent = 0;
			s->ours = 0;
			if (look_at((int)proc, name, s)) x->count++;
		}
	}
	CALL(close, proc, 0, 0, 0, 0);
	for (int more = 1; more;) {
		more = 0;
		for (int i = 0; i < x->count; i++) {
			struct seen *s = &x->seen[i];
			if (s->ours) continue;
			int ours = s->parent == x->self;
			for (int k = 0; k < x->count && !ours; k++) ours = x->seen[k].ours && x->seen[k].pid == s->parent;
			if (ours) s->ours = (char)(more = 1);
		}
	}
}

// settle waits until a child has ended, or for a moment.
static CODE void settle(struct run *x) {
	struct pollfd p;
	struct timespec limit;
	char information[128];
	p.fd = x->signals;
	p.events = POLLIN;
	p.revents = 0;
	limit.tv_sec = 0;
	limit.tv_nsec = 5000000;
	CALL(ppoll, &p, 1, &limit, NULL, 8);
	while (CALL(read, x->signals, information, sizeof information, 0, 0) > 0) continue;
}

// end_all leaves nothing of the execution. What is found is stopped first: it keeps its place in the limit of processes, so
// that a program that forks faster than it is killed comes to a halt.
static CODE void end_all(struct run *x) {
	while (reap(x, 0)) {
		for (int pass = 0, fresh = 1; pass < 64 && fresh; pass++) {
			fresh = 0;
			look(x);
			for (int i = 0; i < x->count; i++) {
				struct seen *s = &x->seen[i];
				if (!s->ours || s->state == 'T' || s->state == 'Z' || s->state == 'X') continue;
				fresh = 1;
				CALL(kill, s->pid, SIGSTOP, 0, 0, 0);
			}
			reap(x, 0);
		}
		look(x);
		for (int i = 0; i < x->count; i++)
			if (x->seen[i].ours) CALL(kill, x->seen[i].pid, SIGKILL, 0, 0, 0);
		settle(x);
	}
}

static CODE uint64_t cpu_time(struct run *x, int all) {
	struct rusage usage;
	usage.ru_utime.tv_sec = usage.ru_utime.tv_usec = usage.ru_stime.tv_sec = usage.ru_stime.tv_usec = 0;
	CALL(getrusage, RUSAGE_CHILDREN, &usage, 0, 0, 0);
	uint64_t micro = (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000u +
			 (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
	if (!all) return micro;
	look(x);
	for (int i = 0; i < x->count; i++)
		if (x->seen[i].ours) micro += (uint64_t)x->seen[i].ticks * TICK;
	return micro;
}

// obey takes one command of the node. A node that is gone took the streams with it.
static CODE void obey(struct run *x) {
	struct command c;
	if (read_full(COMMAND_FD, &c, sizeof c) < 0) {
		x->killed = x->orphaned = 1;
		return;
	}
	if (c.kind == COMMAND_SIGNAL && !x->ended) CALL(kill, x->child, c.first, 0, 0, 0);
	if (c.kind == COMMAND_RESIZE && x->master >= 0) resize(x->master, c.first, c.second);
	if (c.kind == COMMAND_KILL) x->killed = 1;
}

// pipe_buffer is what was read from one side and not yet written to the other.
struct pipe_buffer {
	int from, to, used, at;
	char bytes[BUFFER];
};

static CODE void fill(struct pipe_buffer *b) {
	if (b->from < 0 || b->at < b->used) return;
	long n = CALL(read, b->from, b->bytes, sizeof b->bytes, 0, 0);
	b->at = 0;
	b->used = n > 0 ? (int)n : 0;
	if (n == 0 || (n < 0 && n != -EAGAIN && n != -EINTR)) b->from = -1;
}

static CODE void flush(struct pipe_buffer *b) {
	if (b->at == b->used) return;
	long n = CALL(write, b->to, b->bytes + b->at, b->used - b->at, 0, 0);
	if (n > 0) b->at += (int)n;
	if (n < 0 && n != -EAGAIN && n != -EINTR) { // nobody reads any more: what is written is lost, as with a terminal
		b->at = b->used;
	}
}

static CODE void watch(struct pollfd *p, struct pipe_buffer *b, int used) {
	p[0].fd = used && b->from >= 0 && b->at == b->used ? b->from : -1;
	p[0].events = POLLIN;
	p[1].fd = used && b->at < b->used ? b->to : -1;
	p[1].events = POLLOUT;
	p[0].revents = p[1].revents = 0;
}

static CODE void pass_on(struct pollfd *p, struct pipe_buffer *b) {
	if (p[0].revents) fill(b);
	if (p[0].revents || p[1].revents) flush(b);
}

// once waits for the next event and deals with it.
static CODE void once(struct run *x, struct pipe_buffer *in, struct pipe_buffer *out) {
	struct pollfd p[6];
	struct timespec limit;
	limit.tv_sec = 0;
	limit.tv_nsec = LOOK_EVERY * 1000000L;
	p[0].fd = x->ended ? -1 : x->signals;
	p[1].fd = COMMAND_FD;
	p[0].events = p[1].events = POLLIN;
	p[0].revents = p[1].revents = 0;
	watch(p + 2, in, x->master >= 0 && !x->ended);
	watch(p + 4, out, x->master >= 0);
	if (CALL(ppoll, p, 6, x->request->cpu_limit && !x->ended ? &limit : NULL, 0, 8) < 0) return;
	if (p[0].revents) {
		char information[128];
		while (CALL(read, x->signals, information, sizeof information, 0, 0) > 0) continue;
		reap(x, 0);
	}
	if (p[1].revents) obey(x);
	pass_on(p + 2, in);
	pass_on(p + 4, out);
	if (x->request->cpu_limit && !x->ended && cpu_time(x, 1) > x->request->cpu_limit) {
		x->request->cpu_limit = 0;
		say(REPORT_CPU_LIMIT, 0, 0, 0, 0);
	}
}

static CODE void nonblocking(int fd) {
	long flags = CALL(fcntl, fd, F_GETFL, 0, 0, 0);
	if (flags >= 0) CALL(fcntl, fd, F_SETFL, flags | O_NONBLOCK, 0, 0);
}

static CODE void start(struct run *x) {
	int told[2];
	int32_t words[2];
	need(CALL(pipe2, told, O_CLOEXEC, 0, 0, 0));
	long pid = need(CALL(clone, SIGCHLD, 0, 0, 0, 0));
	if (pid == 0) become(x, told[1]);
	x->child = (int)pid;
	CALL(close, told[1], 0, 0, 0, 0);
	if (!(x->request->flags & FLAG_TTY)) {
		CALL(close, STDIN_FD, 0, 0, 0, 0);
		CALL(close, STDOUT_FD, 0, 0, 0, 0);
	}
	if (!(x->request->flags & FLAG_MERGE)) CALL(close, STDERR_FD, 0, 0, 0, 0);
	long got;
	while ((got = CALL(read, told[0], words, sizeof words, 0, 0)) == -EINTR) continue;
	CALL(close, told[0], 0, 0, 0, 0);
	if (got == sizeof words) {
		reap(x, 1);
		give_up(-(long)words[0], (uint32_t)words[1]);
	}
	say(REPORT_STARTED, x->child, 0, 0, 0);
}

static CODE __attribute__((noreturn)) void run(void) {
	struct run *x = memory(sizeof *x);
	struct pipe_buffer *in = memory(sizeof *in), *out = memory(sizeof *out);
	struct kernel_set all, children;
	all.bits = ~0ul;
	children.bits = 1ul << (SIGCHLD - 1);
	CALL(rt_sigprocmask, SIG_SETMASK, &all, 0, sizeof all, 0);
	guard();
	x->request = memory(sizeof *x->request);
	x->seen = memory(MAX_SEEN * sizeof *x->seen);
	x->master = x->slave = -1;
	x->self = (int)CALL(getpid, 0, 0, 0, 0, 0);
	x->signals = (int)need(CALL(signalfd4, -1, &children, sizeof children, O_CLOEXEC | O_NONBLOCK, 0));
	for (int fd = STATUS_FD; fd <= STDERR_FD; fd++) CALL(fcntl, fd, F_SETFD, FD_CLOEXEC, 0, 0);
	read_request(x->request);
	if (x->request->flags & FLAG_TTY) open_terminal(x);
	start(x);
	if (x->master >= 0) {
		nonblocking(STDIN_FD);
		nonblocking(STDOUT_FD);
	}
	in->from = STDIN_FD;
	in->to = out->from = x->master;
	out->to = STDOUT_FD;
	while (!x->ended && !x->killed) once(x, in, out);
	if (x->killed || !(x->request->flags & FLAG_BACKGROUND)) end_all(x);
	say(REPORT_EXITED, x->status, 0, x->peak, cpu_time(x, 0));
	if (x->master < 0) leave(0);
	// What the terminal still holds is the program's last words. Its other side stays open until they are read.
	int was_killed = x->killed;
	x->killed = 0;
	for (;;) {
		if (out->at == out->used) {
			fill(out);
			if (out->at == out->used) leave(0);
		}
		flush(out);
		if (out->at == out->used) continue;
		if (was_killed || x->killed) leave(0);
		once(x, in, out);
	}
}

static CODE __attribute__((noreturn)) void wait_for_ever(void) {
	struct kernel_set all;
	all.bits = ~0ul;
	CALL(rt_sigprocmask, SIG_SETMASK, &all, 0, sizeof all, 0);
	CALL(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	CALL(close_range, 0, ~0u, 0, 0, 0);
	for (;;) {
		int status;
		if (CALL(wait4, -1, &status, 0, 0, 0) >= 0) continue;
		struct kernel_set children;
		children.bits = 1ul << (SIGCHLD - 1);
		CALL(rt_sigtimedwait, &children, 0, 0, sizeof children, 0);
	}
}

static CODE int number_of(const char *s) {
	int n = 0;
	for (; *s >= '0' && *s <= '9'; s++) n = n * 10 + (*s - '0');
	return n;
}

// join is the only use outside: it enters the control groups that are open from a descriptor on, and becomes the runtime, in
// a mount namespace without one mount if so told.
static CODE __attribute__((noreturn)) void join(char **argv, char **env) {
	int first = number_of(argv[1]), count = number_of(argv[2]);
	char zero[1];
	zero[0] = '0';
	for (int fd = first; fd < first + count; fd++) {
		if (CALL(write, fd, zero, 1, 0, 0) != 1) leave(72);
		CALL(close, fd, 0, 0, 0, 0);
	}
	if (*argv[3]) {
		char root[2];
		root[0] = '/';
		root[1] = 0;
		if (CALL(unshare, CLONE_NEWNS, 0, 0, 0, 0) < 0 || CALL(mount, 0, root, 0, MS_REC | MS_PRIVATE, 0) < 0 ||
		    CALL(umount2, argv[3], MNT_DETACH, 0, 0, 0) < 0)
			leave(73);
	}
	CALL(execve, argv[4], argv + 4, env, 0, 0);
	leave(74);
}

// rockpool_inside is called with the first stack: argc, argv, a null, the environment. The number of arguments says what to do.
CODE __attribute__((noreturn, used, visibility("hidden"))) void rockpool_inside(long *stack);
void rockpool_inside(long *stack) {
	char **argv = (char **)(stack + 1);
	if (stack[0] > 5) join(argv, argv + stack[0] + 1);
	if (stack[0] > 1) run();
	wait_for_ever();
}

extern const char __start_rockpool_code[] __attribute__((visibility("hidden"))), __stop_rockpool_code[] __attribute__((visibility("hidden")));
extern const char __start_rockpool_data[] __attribute__((visibility("hidden"))), __stop_rockpool_data[] __attribute__((visibility("hidden")));
extern const char rockpool_entry[] __attribute__((visibility("hidden")));

const char *inside_code(long *length) {
	*length = __stop_rockpool_code - __start_rockpool_code;
	return __start_rockpool_code;
}

const char *inside_data(long *length) {
	*length = __stop_rockpool_data - __start_rockpool_data;
	return __start_rockpool_data;
}

const char *inside_entry(void) { return rockpool_entry; }
