//go:build linux && cgo

// The self-test: what a hostile program would try, tried by a child that went the whole way of an execution up to execve.
// It needs no program of the image. Each attempt reports the kernel's answer; selftest_linux.go says which ones are fine.
#include "supervisor_linux.h"

#include "bare_linux.h"

#include <linux/capability.h>
#include <linux/in.h>
#include <linux/magic.h>
#include <linux/personality.h>

#ifndef SYSFS_MAGIC
#define SYSFS_MAGIC 0x62656572
#endif

// What the node has put up outside for the attempts to reach, as arguments of the request.
enum { ARG_PORT, ARG_ABSTRACT, ARG_FILE, ARG_KEY, ARG_BYTES, ARG_FILES, ARG_PROCESSES, ARGS };

static char **arg;

static long number(int which) {
	long n = 0;
	for (const char *s = arg[which]; *s >= '0' && *s <= '9'; s++) n = n * 10 + (*s - '0');
	return n;
}

static long closed(int fd) {
	if (fd < 0) return -1;
	close(fd);
	return 0;
}

static long opened(const char *path, int flags) { return closed(open(path, flags | O_CLOEXEC | O_NONBLOCK, 0600)); }

static long content(const char *path) {
	char byte;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0) return -1;
	errno = ENODATA;
	ssize_t n = read(fd, &byte, 1);
	close(fd);
	return n > 0 ? 0 : -1;
}

static long socket_of(int family, int type, int protocol) { return closed(socket(family, type | SOCK_CLOEXEC, protocol)); }

static long connected(int family, const void *to, socklen_t size) {
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0) return -1;
	long done = connect(fd, to, size);
	int saved = errno;
	struct pollfd writable = {fd, POLLOUT, 0};
	if (done < 0 && saved == EINPROGRESS && poll(&writable, 1, 20) > 0) {
		socklen_t length = sizeof saved;
		getsockopt(fd, SOL_SOCKET, SO_ERROR, &saved, &length);
		done = saved ? -1 : 0;
	}
	close(fd);
	errno = saved;
	return done;
}

static long connect_ip(uint8_t a, uint8_t b, uint8_t c, uint8_t d, long port) {
	struct sockaddr_in to = {.sin_family = AF_INET};
	uint8_t host[4] = {a, b, c, d}, at[2] = {(uint8_t)(port >> 8), (uint8_t)port};
	memcpy(&to.sin_addr, host, sizeof host);
	memcpy(&to.sin_port, at, sizeof at);
	return connected(AF_INET, &to, sizeof to);
}

static long filled(const char *path, long bytes) {
	static char block[65536];
	int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	if (fd < 0) return -1;
	ssize_t n = 1;
	for (long done = 0; done < bytes && n > 0; done += n) n = write(fd, block, sizeof block);
	int saved = errno;
	close(fd);
	unlink(path);
	errno = saved;
	return n > 0 ? 0 : -1;
}

static long loopback(void) { return connect_ip(127, 0, 0, 1, number(ARG_PORT)); }
static long metadata(void) { return connect_ip(169, 254, 169, 254, 80); }
static long abstract(void) {
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	size_t n = strlen(arg[ARG_ABSTRACT]);
	if (n > sizeof to.sun_path - 1) n = sizeof to.sun_path - 1;
	memcpy(to.sun_path + 1, arg[ARG_ABSTRACT], n);
	return connected(AF_UNIX, &to, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n));
}
static long shared_memory(void) { return syscall(__NR_shmget, number(ARG_KEY), 0, 0); }
static long node_file(void) { return opened(arg[ARG_FILE], O_PATH); }
static long lower(void) { return opened("/rockpool-self-test", O_CREAT | O_WRONLY); }
static long proc_root(void) { return opened("/proc/1/root", O_RDONLY); }
static long proc_environ(void) { return content("/proc/1/environ"); }
static long proc_sys(void) { return opened("/proc/sys/kernel/core_pattern", O_WRONLY); }
static long sysrq(void) { return opened("/proc/sysrq-trigger", O_WRONLY); }
static long kcore(void) { return content("/proc/kcore"); }
static long kallsyms(void) { return content("/proc/kallsyms"); }
static long sysfs(void) {
	struct statfs found;
	if (statfs("/sys", &found) < 0) return -1;
	errno = ENOENT;
	return found.f_type == SYSFS_MAGIC ? 0 : -1;
}
static long dev_mem(void) { return opened("/dev/mem", O_RDONLY); }
static long dev_kvm(void) { return opened("/dev/kvm", O_RDWR); }
static long dev_write(void) { return opened("/dev/rockpool", O_CREAT | O_WRONLY); }
static long device(void) { return mknod("/tmp/rockpool", S_IFBLK | 0600, 0x800); }
static long oom_score(void) { return write_file(AT_FDCWD, "/proc/self/oom_score_adj", "-1"); }
static long foreign_uid(void) { return setresuid(100000, 100000, 100000); }
static long groups(void) {
	gid_t g = 5;
	return syscall(__NR_setgroups, 1, &g);
}
static long capabilities(void) {
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct sets[2] = {{~0u, ~0u, 0}, {0, 0, 0}};
	return syscall(__NR_capset, &head, sets);
}
static long more_files(void) {
	struct limit most = {1u << 30, 1u << 30};
	return setrlimit(RLIMIT_NOFILE, &most);
}
static long realtime(void) {
	int priority = 1; // a sched_param
	return syscall(__NR_sched_setscheduler, 0, SCHED_FIFO, &priority);
}
static long hostname(void) { return sethostname("escaped", 7); }
static long keyctl(void) { return syscall(__NR_keyctl, 0, -3, 1); }
static long add_key(void) { return syscall(__NR_add_key, "user", "rockpool", "x", 1, -3); }
static long io_uring(void) { return syscall(__NR_io_uring_setup, 8, NULL); }
static long bpf(void) { return syscall(__NR_bpf, 0, NULL, 0); }
static long perf(void) { return syscall(__NR_perf_event_open, NULL, 0, -1, -1, 0); }
static long userfault(void) { return syscall(__NR_userfaultfd, 0); }
static long trace(void) { return syscall(__NR_ptrace, 16, 1, NULL, NULL); }
static long read_memory(void) { return syscall(__NR_process_vm_readv, 1, NULL, 0, NULL, 0, 0); }
static long handles(void) { return syscall(__NR_open_by_handle_at, -1, NULL, 0); }
static long module(void) { return syscall(__NR_init_module, NULL, 0, ""); }
static long kexec(void) { return syscall(__NR_kexec_load, 0, 1000, NULL, 0); } // more segments than there may be: it cannot succeed
static long restart(void) { return syscall(__NR_reboot, 0, 0, 0, NULL); }
static long type_ahead(void) { return ioctl(0, TIOCSTI, "x"); }
static long persona(void) { return syscall(__NR_personality, READ_IMPLIES_EXEC); }
static long clone_new(void) { return syscall(__NR_clone3, NULL, 0); }
static long unknown(void) { return syscall(1000, 0); }
static long vsock(void) { return socket_of(40, SOCK_STREAM, 0); }
static long packet(void) { return socket_of(AF_PACKET, SOCK_RAW, 0); }
static long algorithm(void) { return socket_of(38, SOCK_SEQPACKET, 0); }
static long netfilter(void) { return socket_of(AF_NETLINK, SOCK_RAW, 12); }
static long raw(void) { return socket_of(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
static long disk(void) { return filled("/tmp/rockpool", number(ARG_BYTES)); }
static long shm(void) { return filled("/dev/shm/rockpool", number(ARG_BYTES)); }
static long inodes(void) {
	char name[64];
	long done = 0, i = 0;
	for (; done == 0 && i < number(ARG_FILES); i++) {
		snprintf(name, sizeof name, "/tmp/rockpool-%ld", i);
		done = opened(name, O_CREAT | O_WRONLY);
	}
	int saved = errno;
	while (i-- > 0) {
		snprintf(name, sizeof name, "/tmp/rockpool-%ld", i);
		unlink(name);
	}
	errno = saved;
	return done;
}
// What follows would change the ground for others if it got through.
static long mounted(void) { return mount("none", "/tmp", "tmpfs", 0, NULL); }
static long mount_groups(void) { return mount("none", "/tmp", "cgroup", 0, NULL); }
static long new_mount(void) { return closed((int)syscall(__NR_fsopen, "tmpfs", 1)); }
static long uncover(void) { return umount2("/proc/sys", MNT_DETACH); }
static long pivot(void) { return syscall(__NR_pivot_root, ".", "."); }
static long change_root(void) { return chroot("/tmp"); }
static long enter_namespace(void) { return setns(0, 0); }
static long clone_user(void) {
	long child = syscall(__NR_clone, CLONE_NEWUSER | SIGCHLD);
	if (child == 0) _exit(0);
	if (child > 0) waitpid((pid_t)child, NULL, 0);
	return child;
}
static long new_user(void) { return unshare(CLONE_NEWUSER); }
// They stay: the end of the execution must end them.
static long processes(void) {
	for (long i = number(ARG_PROCESSES); i > 0; i--) {
		pid_t child = fork();
		if (child < 0) return -1;
		if (child == 0)
			for (;;) pause();
	}
	return 0;
}

static void try(const char *name, long (*attempt)(void)) {
	struct trial t = {0};
	snprintf(t.name, sizeof t.name, "%s", name);
	errno = 0;
	if (attempt() < 0) t.error = errno ? errno : -1;
	if (write(1, &t, sizeof t) != sizeof t) _exit(1);
}

void probe(char **argv) {
	for (int i = 0; i < ARGS; i++)
		if (!argv[i]) _exit(2);
	arg = argv;
	try("loopback", loopback); try("metadata", metadata); try("abstract", abstract); try("shared-memory", shared_memory); try("node-file", node_file);
	try("lower", lower); try("proc-root", proc_root); try("proc-environ", proc_environ); try("proc-sys", proc_sys); try("sysrq", sysrq);
	try("kcore", kcore); try("kallsyms", kallsyms); try("sysfs", sysfs); try("dev-mem", dev_mem); try("dev-kvm", dev_kvm); try("dev-write", dev_write);
	try("mknod", device); try("oom-score", oom_score); try("setuid", foreign_uid); try("setgroups", groups); try("capset", capabilities);
	try("rlimit", more_files); try("realtime", realtime); try("sethostname", hostname); try("keyctl", keyctl); try("add_key", add_key);
	try("io_uring", io_uring); try("bpf", bpf); try("perf", perf); try("userfaultfd", userfault); try("ptrace", trace); try("vm_readv", read_memory);
	try("file-handle", handles); try("init_module", module); try("kexec", kexec); try("reboot", restart); try("TIOCSTI", type_ahead);
	try("personality", persona); try("clone3", clone_new); try("unknown-call", unknown); try("vsock", vsock); try("packet", packet);
	try("alg", algorithm); try("netfilter", netfilter); try("raw", raw); try("disk", disk); try("shm", shm); try("inodes", inodes);
	try("mount", mounted); try("mount-cgroup", mount_groups); try("fsopen", new_mount); try("umount", uncover); try("pivot_root", pivot);
	try("chroot", change_root); try("setns", enter_namespace); try("clone-user", clone_user); try("unshare-user", new_user);
	try("processes", processes);
	_exit(0);
}
