//go:build linux && cgo

// The supervisor: process 1 of a sandbox. It is compiled into the node's own binary, which is executed with another entry, so that it costs no second
// binary, no library, no Go heap and no threads. This file holds the entry and the order of the set-up; DESIGN.md explains the order.
#include "supervisor_linux.h"

#include "bare_linux.h"

#include <linux/sockios.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

enum { IFF_UP = 0x1, IFF_RUNNING = 0x40 };

int bare_errno;

static const char *current_step;

void set_step(const char *step) { current_step = step; }

static void answer(int error, uint32_t features) {
	struct verdict v = {.magic = FRAME_MAGIC, .error = error, .features = features};
	snprintf(v.step, sizeof v.step, "%s", current_step ? current_step : "start");
	if (send(CONTROL_FD, &v, sizeof v, MSG_NOSIGNAL) < 0) _exit(71);
}

void fail(void) {
	answer(errno ? errno : EINVAL, 0);
	_exit(70);
}

void check(int ok, const char *step) {
	if (ok) return;
	current_step = step;
	fail();
}

int read_full(int fd, void *into, size_t n) {
	for (char *p = into; n > 0;) {
		ssize_t got = read(fd, p, n);
		if (got < 0 && errno == EINTR) continue;
		if (got <= 0) {
			if (got == 0) errno = ECONNRESET;
			return -1;
		}
		p += got;
		n -= (size_t)got;
	}
	return 0;
}

int write_file(int dir, const char *path, const char *text) {
	int fd = openat(dir, path, O_WRONLY | O_CLOEXEC);
	if (fd < 0) return -1;
	ssize_t n = write(fd, text, strlen(text));
	int saved = errno;
	close(fd);
	errno = saved;
	return n == (ssize_t)strlen(text) ? 0 : -1;
}

const char *take_bytes(struct message *m, uint32_t *length) {
	*length = take_u32(m);
	if (m->bad || *length >= (size_t)(m->end - m->at) || m->at[*length] != 0) {
		m->bad = 1;
		*length = 0;
		return "";
	}
	const char *s = m->at;
	m->at += *length + 1;
	return s;
}

const char *take_str(struct message *m) {
	uint32_t n;
	return take_bytes(m, &n);
}

uint32_t take_u32(struct message *m) {
	uint32_t v = 0;
	if (m->bad || m->end - m->at < (ptrdiff_t)sizeof v) {
		m->bad = 1;
		return 0;
	}
	memcpy(&v, m->at, sizeof v);
	m->at += sizeof v;
	return v;
}

uint64_t take_u64(struct message *m) {
	uint64_t low = take_u32(m);
	return low | (uint64_t)take_u32(m) << 32;
}

static void read_setup(struct setup *s) {
	struct header h;
	check(read_full(CONTROL_FD, &h, sizeof h) == 0, "read the set-up");
	errno = EPROTO;
	check(h.magic == FRAME_MAGIC && h.length <= MAX_SETUP, "read the set-up");
	char *body = anonymous(h.length);
	check(body != NULL, "allocate the set-up");
	check(read_full(CONTROL_FD, body, h.length) == 0, "read the set-up");
	struct message m = {body, body + h.length, 0};
	s->cgroups = take_u32(&m);
	s->lowers = take_u32(&m);
	s->binds = take_u32(&m);
	s->network = take_u32(&m);
	s->id_base = take_u32(&m);
	s->map_ids = take_u32(&m);
	s->disk_bytes = take_u64(&m);
	s->disk_inodes = take_u64(&m);
	s->shm_bytes = take_u64(&m);
	s->hostname = take_str(&m);
	s->mount_point = take_str(&m);
	s->rlimits = take_u32(&m);
	errno = EPROTO;
	check(s->cgroups <= MAX_FDS && s->lowers <= MAX_MOUNTS && s->binds <= MAX_MOUNTS && s->network <= 1 && s->rlimits <= 16, "decode the set-up");
	for (uint32_t i = 0; i < s->rlimits; i++) {
		s->rlimit[i].resource = take_u32(&m);
		s->rlimit[i].value = take_u64(&m);
	}
	for (uint32_t i = 0; i < s->binds; i++) {
		s->bind_target[i] = take_str(&m);
		s->bind_writable[i] = take_u32(&m);
		s->bind_made[i] = take_u32(&m);
	}
	s->devices = take_u32(&m);
	check(s->devices <= MAX_MOUNTS, "decode the set-up");
	for (uint32_t i = 0; i < s->devices; i++) {
		s->device[i].path = take_str(&m);
		s->device[i].block = take_u32(&m);
		s->device[i].mode = take_u32(&m);
		s->device[i].major = take_u32(&m);
		s->device[i].minor = take_u32(&m);
	}
	s->dirs = take_u32(&m);
	check(s->dirs <= MAX_MOUNTS, "decode the set-up");
	for (uint32_t i = 0; i < s->dirs; i++) {
		s->dir[i].path = take_str(&m);
		s->dir[i].mode = take_u32(&m);
		s->dir[i].uid = take_u32(&m);
		s->dir[i].gid = take_u32(&m);
	}
	s->work_dir = take_str(&m);
	s->work_uid = take_u32(&m);
	s->filter = take_bytes(&m, &s->filter_length);
	check(!m.bad && m.at == m.end, "decode the set-up");
}

// The clocks that count from boot start near zero inside: the host's uptime is none of a tenant's business. A kernel
// without time namespaces only loses that.
static void hide_uptime(struct setup *s) {
	struct timespec mono, boot;
	char line[96];
	if (unshare(CLONE_NEWTIME) < 0) return;
	clock_gettime(CLOCK_MONOTONIC, &mono);
	clock_gettime(CLOCK_BOOTTIME, &boot);
	snprintf(line, sizeof line, "monotonic %lld 0\nboottime %lld 0\n", -(long long)(mono.tv_sec - 1), -(long long)(boot.tv_sec - 1));
	if (write_file(AT_FDCWD, "/proc/self/timens_offsets", line) == 0) s->features |= FEATURE_TIME;
}

static void loopback_up(void) {
	struct { char name[16]; short flags; char rest[22]; } request = {.name = "lo", .flags = IFF_UP | IFF_RUNNING}; // an ifreq
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	check(fd >= 0, "open a socket for the loopback interface");
	check(ioctl(fd, SIOCSIFFLAGS, &request) == 0, "bring the loopback interface up");
	close(fd);
}

// make_user_ns makes the user namespace early, in a child that only waits: the mounts of the node are mapped with it, and
// process 1 enters it last of all. The maps are written here, by the real root of the parent namespace.
static void make_user_ns(struct setup *s) {
	char path[64], map[64];
	pid_t child = (pid_t)syscall(__NR_clone, CLONE_NEWUSER | SIGCHLD);
	check(child >= 0, "create a user namespace");
	if (child == 0)
		for (;;) pause();
	snprintf(map, sizeof map, "0 %u 65536\n", s->id_base);
	snprintf(path, sizeof path, "%d/uid_map", (int)child);
	check(write_file(s->proc, path, map) == 0, "write the uid map");
	snprintf(path, sizeof path, "%d/gid_map", (int)child);
	check(write_file(s->proc, path, map) == 0, "write the gid map");
	snprintf(path, sizeof path, "%d/ns/user", (int)child);
	s->user_ns = openat(s->proc, path, O_RDONLY | O_CLOEXEC);
	check(s->user_ns >= 0, "open the user namespace");
	kill(child, SIGKILL);
	check(waitpid(child, NULL, 0) == child, "end the helper of the user namespace");
}

static void supervise(void) {
	static struct setup s; // static: the kernel gives it zeroed, and its size needs no stack
	set_mask(~0ull);
	errno = EINVAL;
	check(getpid() == 1, "be process 1 of a pid namespace");
	// Once for all: a node may ignore some, and what is ignored stays so across execve.
	for (int n = 1; n < 65; n++)
		if (n != SIGKILL && n != SIGSTOP) default_signal(n);
	umask(0);
	read_setup(&s);
	// Groups first: everything that the kernel allocates from here on is charged to the sandbox.
	for (uint32_t i = 0; i < s.cgroups; i++) {
		check(write(FIRST_FD + (int)i, "0", 1) == 1, "join the control group");
		close(FIRST_FD + (int)i);
	}
	// Written with CAP___NR_RESOURCE this is also the least value that anything inside can ever give itself
	// (oom_score_adj_min in fs/proc/base.c), so it must not be negative: a tenant would outlive the host's services.
	check(write_file(AT_FDCWD, "/proc/self/oom_score_adj", "0") == 0, "set the out-of-memory score");
	setsid();
	// As real root: these namespaces belong to the initial user namespace, nothing inside has power over them.
	check(unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | (s.network ? 0 : CLONE_NEWNET) | CLONE_NEWCGROUP) == 0, "unshare namespaces");
	if (s.network) { // one that the node has filled comes last of the descriptors
		int network = FIRST_FD + (int)(s.cgroups + s.lowers + s.binds);
		check(setns(network, CLONE_NEWNET) == 0, "enter the network namespace");
		close(network);
	}
	hide_uptime(&s);
	check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "make mounts private");
	check(sethostname(s.hostname, strlen(s.hostname)) == 0 && setdomainname("", 0) == 0, "set the host name");
	loopback_up();
	s.proc = (int)syscall(__NR_fsopen, "proc", 1 /* FSOPEN_CLOEXEC */);
	check(s.proc >= 0, "open a new proc file system");
	int context = s.proc;
	check(syscall(__NR_fsconfig, context, 1 /* SET_STRING */, "hidepid", "2", 0) == 0, "set hidepid");
	check(syscall(__NR_fsconfig, context, 6 /* CMD_CREATE */, NULL, NULL, 0) == 0, "create a proc file system");
	s.proc = (int)syscall(__NR_fsmount, context, 1 /* CLOEXEC */, 0x2 | 0x4 | 0x8 /* nosuid nodev noexec */);
	check(s.proc >= 0, "mount a new proc file system");
	close(context);
	make_user_ns(&s);
	build_root(&s);
	for (uint32_t i = 0; i < s.rlimits; i++) {
		// A node may lack CAP___NR_RESOURCE, in a container for instance: then a limit can fall but not rise.
		struct limit limit = {s.rlimit[i].value, s.rlimit[i].value}, had;
		check(getrlimit((int)s.rlimit[i].resource, &had) == 0, "read a resource limit");
		if (setrlimit((int)s.rlimit[i].resource, &limit) == 0) continue;
		limit.now = limit.most = had.most;
		check(errno == EPERM && setrlimit((int)s.rlimit[i].resource, &limit) == 0, "set a resource limit");
	}
	drop_power(&s);
	answer(0, s.features);
	close(CONTROL_FD);
	serve(&s);
}

// The kernel leaves nothing on the stack that is of use here but its alignment.
__attribute__((used)) static void __attribute__((noreturn)) begin_supervisor(void) {
	supervise();
	_exit(72);
}

#if defined(__x86_64__)
__asm__(".text\n.globl enter_supervisor\n.hidden enter_supervisor\n.type enter_supervisor, @function\n"
	"enter_supervisor:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall begin_supervisor\n");
#elif defined(__aarch64__)
__asm__(".text\n.globl enter_supervisor\n.hidden enter_supervisor\n.type enter_supervisor, %function\n"
	"enter_supervisor:\n\tmov x29, #0\n\tmov x30, #0\n\tb begin_supervisor\n");
#endif
