//go:build linux && cgo

// The child that becomes an execution: from a request to execve. Every failure is reported with its step and errno on a
// pipe that a successful execve closes.
#include "supervisor_linux.h"

#include "bare_linux.h"

#include <linux/capability.h>
#include <linux/magic.h>

#ifndef TIOCGPTPEER
#define TIOCGPTPEER 0x5441
#endif

enum { STATUS_FD = 3, EXTRA_FD = 4, MAX_ARGS = 65536, MAX_GROUPS = 64 };

static int status_fd = -1;

static void __attribute__((noreturn)) refuse(const char *step) {
	struct verdict v = {.magic = FRAME_MAGIC, .error = errno ? errno : EINVAL};
	snprintf(v.step, sizeof v.step, "%s", step);
	if (write(status_fd, &v, sizeof v) < 0) _exit(126);
	_exit(127);
}

static void need(int ok, const char *step) {
	if (!ok) refuse(step);
}

// since is the microseconds from the arrival of the request; 0 where the clock was set meanwhile.
static uint32_t since(void) {
	struct timespec now;
	if (clock_gettime(CLOCK_REALTIME, &now) < 0) return 0;
	int64_t micros = ((int64_t)now.tv_sec - asked.tv_sec) * 1000000 + (now.tv_nsec - asked.tv_nsec) / 1000;
	return micros > 0 && micros < UINT32_MAX ? (uint32_t)micros : 0;
}

// announce hands the node a descriptor of this process, and the master of its terminal.
static void announce(int connection, int master, uint32_t micros) {
	struct event e = {.magic = FRAME_MAGIC, .kind = KIND_STARTING, .value = getpid(), .micros = micros};
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int) * 2)];
	} control;
	memset(&control, 0, sizeof control);
	int fds[2] = {(int)syscall(__NR_pidfd_open, getpid(), 0), master};
	need(fds[0] >= 0, "open a descriptor of the process");
	size_t size = sizeof(int) * (master >= 0 ? 2 : 1);
	struct iovec vector = {&e, sizeof e};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_SPACE(size)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&message);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(size);
	memcpy(CMSG_DATA(c), fds, size);
	need(sendmsg(connection, &message, MSG_NOSIGNAL) == sizeof e, "announce the process");
}

// open_terminal opens both ends through descriptors: no path that could be raced (CVE-2025-52565). The terminal belongs to
// the user, so that the program can open it again as /dev/tty or /dev/stdin.
static int open_terminal(int pts, uint32_t width, uint32_t height, uint32_t uid, int *slave) {
	int unlock = 0;
	struct winsize size = {.ws_row = (unsigned short)height, .ws_col = (unsigned short)width};
	int master = openat(pts, "ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	need(master >= 0, "open a terminal");
	need(ioctl(master, TIOCSPTLCK, &unlock) == 0, "unlock the terminal");
	*slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	need(*slave >= 0, "open the terminal's other end");
	need(fchmod(*slave, 0620) == 0 && fchown(*slave, uid, (gid_t)-1) == 0, "hand the terminal to the user");
	need(ioctl(*slave, TIOCSWINSZ, &size) == 0, "set the window size");
	need(ioctl(*slave, TIOCSCTTY, 0) == 0, "set the controlling terminal");
	return master;
}

// Executions are the first to go when memory is short, long before process 1. An undumpable process may not write its own
// /proc files, so it is dumpable for this write; without CAP___NR_PTRACE nobody inside can use that moment, because this
// process still has capabilities that they lack (cap_ptrace_access_check).
static void prefer_for_oom(void) {
	prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
	int done = write_file(AT_FDCWD, "/proc/self/oom_score_adj", "500");
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	need(done == 0, "set the out-of-memory score");
}

static void become(uint32_t uid, uint32_t gid, const gid_t *groups, uint32_t count) {
	need(setgroups(count, groups) == 0, "set the groups");
	need(setresgid(gid, gid, gid) == 0, "set the group");
	need(setresuid(uid, uid, uid) == 0, "set the user");
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
	need(syscall(__NR_capset, &head, none) == 0, "drop capabilities");
}

// A working directory below /proc, also by a link, could be a way out through another process's files (CVE-2024-21626):
// the directory that was reached is judged, not its name.
static void enter(const char *dir) {
	struct statfs reached;
	char where[4096];
	need(chdir(dir) == 0, "enter the working directory");
	need(statfs(".", &reached) == 0, "look at the working directory");
	errno = EPERM;
	need(reached.f_type != PROC_SUPER_MAGIC, "enter the working directory");
	need(syscall(__NR_getcwd, where, sizeof where) > 0 && where[0] == '/', "find the working directory in the root");
}

// execute looks argv[0] up in the PATH of the given environment. There is no fall-back to a shell: what the kernel cannot
// execute is not a program.
static void __attribute__((noreturn)) execute(char **argv, char **env) {
	if (strchr(argv[0], '/')) {
		execve(argv[0], argv, env);
		refuse("execute");
	}
	const char *path = "/usr/local/bin:/usr/bin:/bin";
	for (char **e = env; *e; e++)
		if (strncmp(*e, "PATH=", 5) == 0) path = *e + 5;
	static char file[8192];
	int worst = ENOENT;
	for (const char *at = path;; at++) {
		size_t n = strcspn(at, ":"), name = strlen(argv[0]);
		if (n + name + 2 <= sizeof file) {
			memcpy(file, n ? at : ".", n ? n : 1);
			size_t used = n ? n : 1;
			file[used] = '/';
			memcpy(file + used + 1, argv[0], name + 1);
			execve(file, argv, env);
			if (errno != ENOENT && errno != ENOTDIR) worst = errno;
			if (errno != ENOENT && errno != ENOTDIR && errno != EACCES) break;
		}
		at += n;
		if (*at == 0) break;
	}
	errno = worst;
	refuse("execute");
}

static char **take_list(struct message *m) {
	uint32_t n = take_u32(m);
	errno = E2BIG;
	need(n <= MAX_ARGS, "decode the request");
	char **list = anonymous((n + 1) * sizeof *list);
	need(list != NULL, "allocate the request");
	for (uint32_t i = 0; i < n; i++) list[i] = (char *)take_str(m);
	return list;
}

// hold waits, as a process of the user, until the node closes the connection: a body for looking at /proc/self with.
static void hold(int connection) {
	char byte;
	// It stays undumpable: what it was forked from is nothing for the tenant to read.
	need(dup2(connection, 0) == 0 && syscall(__NR_close_range, 1, ~0u, 0) == 0, "close descriptors");
	struct timeval forever = {0};
	setsockopt(0, SOL_SOCKET, SO_RCVTIMEO, &forever, sizeof forever);
	if (read(0, &byte, 1) < 0) _exit(1);
	_exit(0);
}

void run_request(int connection, const struct header *h, int *fds, int pts) {
	int given = (int)h->fds, next = h->kind == KIND_KEEP ? 1 + KEPT_STREAMS : 1;
	status_fd = given > 0 ? fds[0] : -1;
	char *body = anonymous(h->length + 1);
	need(body != NULL, "allocate the request");
	need(read_full(connection, body, h->length) == 0, "read the request");
	struct message m = {body, body + h->length, 0};
	uint32_t uid = take_u32(&m), gid = take_u32(&m), count = take_u32(&m);
	gid_t groups[MAX_GROUPS];
	errno = EPROTO;
	need(count <= MAX_GROUPS, "decode the request");
	for (uint32_t i = 0; i < count; i++) groups[i] = take_u32(&m);
	uint32_t flags = take_u32(&m), width = take_u32(&m), height = take_u32(&m);
	const char *dir = take_str(&m);
	char **argv = take_list(&m), **env = take_list(&m);
	errno = EPROTO;
	need(!m.bad && m.at == m.end && (argv[0] || h->kind == KIND_HOLD), "decode the request");
	int streams = (flags & FLAG_TTY ? 0 : 2) + (flags & FLAG_MERGE ? 0 : 1), extra = flags & FLAG_EXTRA ? EXTRA_STREAMS : 0;
	if (h->kind == KIND_HOLD) streams = 0;
	need(given >= next + streams + extra, "decode the request");
	need(h->kind != KIND_KEEP || streams == 3, "decode the request");

	int io[3] = {-1, -1, -1}, master = -1;
	if (streams && !(flags & FLAG_TTY)) {
		io[0] = fds[next++];
		io[1] = fds[next++];
	}
	if (streams && !(flags & FLAG_MERGE)) io[2] = fds[next++];
	int *extras = fds + next;
	for (next += extra; next < given; next++) need(write(fds[next], "0", 1) == 1, "join the control group");
	prefer_for_oom();
	need(setsid() >= 0, "start a session");
	if (h->kind == KIND_EXEC && flags & FLAG_TTY) {
		master = open_terminal(pts, width, height, uid, &io[0]);
		io[1] = io[0];
	}
	if (flags & FLAG_MERGE) io[2] = io[1];
	become(uid, gid, groups, count);
	umask(022);
	enter(dir);
	announce(connection, master, flags & FLAG_TIMED ? since() : 0);
	if (h->kind == KIND_HOLD) hold(connection);

	// All descriptors move out of the way first: each of the low numbers may still be in use.
	int high = fcntl(status_fd, F_DUPFD_CLOEXEC, 64);
	need(high >= 0, "move descriptors");
	status_fd = high;
	for (int i = 0; i < 3; i++) need((io[i] = fcntl(io[i], F_DUPFD_CLOEXEC, 64)) >= 0, "move descriptors");
	for (int i = 0; i < extra; i++) need((extras[i] = fcntl(extras[i], F_DUPFD_CLOEXEC, 64)) >= 0, "move descriptors");
	for (int i = 0; i < 3; i++) need(dup2(io[i], i) == i, "set the standard streams");
	need(dup3(status_fd, STATUS_FD, O_CLOEXEC) == STATUS_FD, "move descriptors");
	status_fd = STATUS_FD;
	for (int i = 0; i < extra; i++) need(dup2(extras[i], EXTRA_FD + i) == EXTRA_FD + i, "move descriptors");
	need(syscall(__NR_close_range, EXTRA_FD + extra, ~0u, 0) == 0, "close descriptors");
	set_mask(0);
	if (h->kind == KIND_PROBE) {
		close(STATUS_FD);
		probe(argv);
	}
	execute(argv, env);
}
