//go:build linux && cgo

// The steady state of the supervisor: it waits, without timers, for connections of the node and for the end of processes.
// A connection is one request and becomes one child; the child reads and judges the request, never process 1 itself.
#include "supervisor_linux.h"

#include "bare_linux.h"

#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <linux/signalfd.h>

// scope puts a second wall round the sandbox, where the kernel has it (Landlock ABI 6, Linux 6.12): no signal to a process outside, and no connection to an
// abstract socket of one, whatever the namespaces say.
static void scope(struct setup *s) {
	struct { uint64_t fs, net, scoped; } rules = {0, 0, 1 /* abstract sockets */ | 2 /* signals */};
	int fd = (int)syscall(444 /* landlock_create_ruleset */, &rules, sizeof rules, 0);
	if (fd < 0) return;
	check(syscall(446 /* landlock_restrict_self */, fd, 0) == 0, "scope the sandbox with Landlock");
	close(fd);
	s->features |= FEATURE_LANDLOCK;
}

// drop_power enters the user namespace, last of all, and keeps there only what starting a program takes: its user, its
// groups, and the owner of its terminal. The system call filter stands for the supervisor too; children inherit it, so
// that an execution does not pay for it.
void drop_power(struct setup *s) {
	check(setns(s->user_ns, CLONE_NEWUSER) == 0, "enter the user namespace");
	check(setgroups(0, NULL) == 0 && setresgid(0, 0, 0) == 0 && setresuid(0, 0, 0) == 0, "become the namespace's root");
	close(s->user_ns);
	check(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_KEEP_CAPS_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE |
	            SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED, 0, 0, 0) == 0, "lock the secure bits");
	check(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) == 0, "clear the ambient set");
	for (int c = 0; prctl(PR_CAPBSET_READ, c, 0, 0, 0) >= 0; c++)
		check(prctl(PR_CAPBSET_DROP, c, 0, 0, 0) == 0, "empty the bounding set");
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	uint32_t kept = 1u << CAP_CHOWN | 1u << CAP_SETGID | 1u << CAP_SETUID;
	struct __user_cap_data_struct sets[2] = {{kept, kept, 0}, {0, 0, 0}};
	check(syscall(__NR_capset, &head, sets) == 0, "drop capabilities");
	check(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0, "become undumpable");
	check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "set no_new_privs");
	// The terminals' file system moves next to the listening socket; nothing else stays open.
	check(dup3(s->pts, FIRST_FD, O_CLOEXEC) == FIRST_FD || s->pts == FIRST_FD, "keep the terminals' directory");
	s->pts = FIRST_FD;
	check(syscall(__NR_close_range, FIRST_FD + 1, ~0u, 0) == 0, "close descriptors");
	scope(s);
	struct sock_fprog program = {(unsigned short)(s->filter_length / sizeof(struct sock_filter)), (struct sock_filter *)s->filter};
	check(syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0, "install the system call filter");
}

// receive_header takes the header of a request and its descriptors. The peer is the node: the socket's path lies in its
// private directory. A node that dies or hangs here must not stop the sandbox, hence the time limit on the socket.
static int receive_header(int connection, struct header *h, int *fds, int *count) {
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int) * MAX_FDS)];
	} control;
	struct iovec vector = {h, sizeof *h};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	struct timeval limit = {.tv_sec = 5};
	setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	*count = 0;
	ssize_t n = recvmsg(connection, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
	if (n >= 0)
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = next_cmsg(&message, c))
			if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
				*count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
				memcpy(fds, CMSG_DATA(c), sizeof(int) * (size_t)*count);
			}
	int good = n == sizeof *h && h->magic == FRAME_MAGIC && h->length <= MAX_REQUEST && (int)h->fds == *count &&
		   !(message.msg_flags & MSG_CTRUNC);
	return good ? 0 : -1;
}

struct running {
	pid_t pid;
	int connection;
};

enum { MAX_RUNNING = 1024 };

// kept is the one program whose end and output outlive the node that asked for it. The ends of its pipes that are read stay open here: without a node the
// program waits when they are full, and what it wrote is there for the next node. Nothing is read here, and nobody inside can open what process 1 holds.
static struct {
	pid_t pid; // 0 = there was none
	int ended, status;
	int streams[KEPT_STREAMS];
} kept;

// tell sends one event, with descriptors.
static void tell(int connection, uint32_t kind, int32_t value, const int *fds, int count) {
	struct event e = {.magic = FRAME_MAGIC, .kind = kind, .value = value};
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int) * (KEPT_STREAMS + 1))];
	} control;
	memset(&control, 0, sizeof control);
	struct iovec vector = {&e, sizeof e};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
	if (count > 0) {
		size_t size = sizeof(int) * (size_t)count;
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(size);
		struct cmsghdr *c = CMSG_FIRSTHDR(&message);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(size);
		memcpy(CMSG_DATA(c), fds, size);
	}
	// Never waits: the buffer is empty but for one frame, and a node that is gone needs no answer.
	if (sendmsg(connection, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) return;
}

// Children live in another time namespace than process 1: they have only this clock in common.
struct timespec asked;

static void say(int connection, uint32_t kind, int32_t value) { tell(connection, kind, value, NULL, 0); }

// keep takes the streams of the kept program out of a request; they stay open when the rest of its descriptors is closed.
static void keep(pid_t pid, int *fds) {
	kept.pid = pid;
	for (int i = 0; i < KEPT_STREAMS; i++) {
		kept.streams[i] = fds[1 + i];
		fds[1 + i] = -1;
	}
}

// resume gives the kept program to a node that has come after the one that asked for it, and returns 1 when its end is still to be told.
static int resume(int connection) {
	int fds[KEPT_STREAMS + 1], count = KEPT_STREAMS;
	memcpy(fds, kept.streams, sizeof kept.streams);
	if (kept.pid == 0) {
		say(connection, KIND_NONE, 0);
		return 0;
	}
	if (!kept.ended && (fds[count] = (int)syscall(__NR_pidfd_open, kept.pid, 0)) >= 0) count++;
	tell(connection, KIND_STARTING, kept.pid, fds, count);
	if (count > KEPT_STREAMS) close(fds[KEPT_STREAMS]);
	if (kept.ended) say(connection, KIND_EXITED, kept.status);
	return !kept.ended;
}

void serve(struct setup *s) {
	static struct running table[MAX_RUNNING];
	int count = 0;
	fcntl(LISTEN_FD, F_SETFL, O_NONBLOCK); // a connection may be gone again before it is accepted
	uint64_t all = ~0ull;
	int signals = (int)syscall(__NR_signalfd4, -1, &all, sizeof all, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0) _exit(73);
	for (;;) {
		// A full table stops accepting; the node's connections wait in the backlog.
		struct pollfd watched[2] = {{signals, POLLIN, 0}, {count < MAX_RUNNING ? LISTEN_FD : -1, POLLIN, 0}};
		if (poll(watched, 2, -1) < 0 && errno != EINTR) _exit(74);
		if (watched[0].revents) {
			struct signalfd_siginfo info[16];
			while (read(signals, info, sizeof info) > 0) continue;
			int status;
			// Orphans are adopted by process 1 and reaped here as well; only children of the table have a listener.
			for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
				if (pid == kept.pid && !kept.ended) kept.ended = 1, kept.status = status;
				for (int i = 0; i < count; i++)
					if (table[i].pid == pid) {
						say(table[i].connection, KIND_EXITED, status);
						close(table[i].connection);
						table[i] = table[--count];
						break;
					}
			}
		}
		if (!watched[1].revents) continue;
		int connection = accept4(LISTEN_FD, NULL, NULL, SOCK_CLOEXEC);
		if (connection < 0) continue;
		clock_gettime(CLOCK_REALTIME, &asked);
		struct header h = {0};
		int fds[MAX_FDS], given = 0;
		if (receive_header(connection, &h, fds, &given) < 0) {
			// Nothing in it can be relied on: the peer sees the connection end.
		} else if (h.kind == KIND_PING) {
			say(connection, KIND_PONG, 0);
		} else if (h.kind == KIND_RESUME) {
			if (resume(connection))
				for (int i = 0; i < count; i++)
					if (table[i].pid == kept.pid) { // whoever was told before is gone
						close(table[i].connection);
						table[i].connection = connection;
						connection = -1;
						break;
					}
		} else if (h.kind == KIND_KEEP && (kept.pid || given < 1 + KEPT_STREAMS)) {
			struct verdict v = {.magic = FRAME_MAGIC, .error = kept.pid ? EBUSY : EPROTO, .step = "keep the program"};
			if (given > 0 && write(fds[0], &v, sizeof v) < 0) errno = 0;
		} else if (h.kind == KIND_EXEC || h.kind == KIND_KEEP || h.kind == KIND_HOLD || h.kind == KIND_PROBE) {
			pid_t pid = fork();
			if (pid == 0) run_request(connection, &h, fds, s->pts);
			if (pid > 0) {
				if (h.kind == KIND_KEEP) keep(pid, fds);
				table[count++] = (struct running){pid, connection};
				connection = -1;
			} else if (given > 0) {
				struct verdict v = {.magic = FRAME_MAGIC, .error = errno, .step = "fork"};
				if (write(fds[0], &v, sizeof v) < 0) errno = 0;
			}
		}
		for (int i = 0; i < given; i++)
			if (fds[i] >= 0) close(fds[i]);
		if (connection >= 0) close(connection);
	}
}
