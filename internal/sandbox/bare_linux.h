//go:build linux && cgo

// What the supervisor has instead of a C library: a program that begins in one asks the processor for its caches and features, which leaves a virtual
// machine dozens of times, and has itself linked; that would be most of a sandbox's start. Nothing here has a state but errno, and no header of a library's
// functions is included: what is not here cannot be called.
#ifndef ROCKPOOL_BARE_H
#define ROCKPOOL_BARE_H

#include <asm/ioctls.h>
#include <asm/stat.h>
#include <asm/statfs.h>
#include <asm/termios.h>
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/mman.h>
#include <linux/mount.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/sched.h>
#include <linux/signal.h>
#include <linux/socket.h>
#include <linux/stat.h>
#include <linux/time.h>
#include <linux/uio.h>
#include <linux/un.h>
#include <linux/wait.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <asm/socket.h>

typedef int pid_t;
typedef unsigned uid_t, gid_t, mode_t, socklen_t;
typedef long ssize_t;

extern int bare_errno __attribute__((visibility("hidden")));
#define errno bare_errno

// Names that only libraries give to numbers of the kernel.
enum { SOCK_STREAM = 1, SOCK_DGRAM = 2, SOCK_RAW = 3, SOCK_SEQPACKET = 5, SOCK_NONBLOCK = O_NONBLOCK, SOCK_CLOEXEC = O_CLOEXEC };
enum { AF_UNIX = 1, AF_INET = 2, AF_NETLINK = 16, AF_PACKET = 17, SCM_RIGHTS = 1 };
enum { MSG_CTRUNC = 0x8, MSG_DONTWAIT = 0x40, MSG_WAITALL = 0x100, MSG_NOSIGNAL = 0x4000, MSG_CMSG_CLOEXEC = 0x40000000 };
enum { MNT_DETACH = 2 };

#ifndef S_IFMT // the kernel's header leaves these to a library that it finds
#define S_IFMT 0170000
#define S_IFREG 0100000
#define S_IFBLK 0060000
#define S_IFDIR 0040000
#define S_IFCHR 0020000
#define S_IFLNK 0120000
#define S_ISREG(mode) (((mode) & S_IFMT) == S_IFREG)
#define S_ISDIR(mode) (((mode) & S_IFMT) == S_IFDIR)
#define S_ISLNK(mode) (((mode) & S_IFMT) == S_IFLNK)
#endif

struct msghdr {
	void *msg_name;
	socklen_t msg_namelen;
	struct iovec *msg_iov;
	size_t msg_iovlen;
	void *msg_control;
	size_t msg_controllen;
	int msg_flags;
};

struct cmsghdr {
	size_t cmsg_len;
	int cmsg_level, cmsg_type;
};

#define CMSG_ALIGN(n) (((n) + sizeof(size_t) - 1) & ~(sizeof(size_t) - 1))
#define CMSG_LEN(n) (sizeof(struct cmsghdr) + (n))
#define CMSG_SPACE(n) (sizeof(struct cmsghdr) + CMSG_ALIGN(n))
#define CMSG_DATA(c) ((void *)((c) + 1))
#define CMSG_FIRSTHDR(m) ((m)->msg_controllen >= sizeof(struct cmsghdr) ? (struct cmsghdr *)(m)->msg_control : NULL)

// next_cmsg is the one after c, where the kernel has written another whole one.
static inline struct cmsghdr *next_cmsg(const struct msghdr *m, struct cmsghdr *c) {
	char *end = (char *)m->msg_control + m->msg_controllen, *next = (char *)c + CMSG_ALIGN(c->cmsg_len);
	return end - next >= (ptrdiff_t)sizeof *c ? (struct cmsghdr *)(void *)next : NULL;
}

static inline long kernel(long number, long a, long b, long c, long d, long e, long f) {
#if defined(__x86_64__)
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return result;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
#else
#error "the supervisor does not know the system calls of this architecture"
#endif
}

static inline long answered(long result) {
	if (result >= 0 || result < -4095) return result;
	errno = (int)-result;
	return -1;
}

#define CALL_SIX(n, a, b, c, d, e, f, ...) answered(kernel(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f)))
#define syscall(...) CALL_SIX(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

// The compiler calls these by itself, too. The barriers keep it from doing so in here.
#define BARRIER __asm__ volatile("" ::: "memory")

__attribute__((used)) static void *memcpy(void *to, const void *from, size_t n) {
	for (size_t i = 0; i < n; i++) {
		((char *)to)[i] = ((const char *)from)[i];
		BARRIER;
	}
	return to;
}

__attribute__((used)) static void *memset(void *to, int c, size_t n) {
	for (size_t i = 0; i < n; i++) {
		((char *)to)[i] = (char)c;
		BARRIER;
	}
	return to;
}

__attribute__((used)) static size_t strlen(const char *s) {
	size_t n = 0;
	for (; s[n]; n++) BARRIER;
	return n;
}

static inline int strncmp(const char *a, const char *b, size_t n) {
	for (size_t i = 0; i < n; i++)
		if (a[i] != b[i] || !a[i]) return (unsigned char)a[i] - (unsigned char)b[i];
	return 0;
}

static inline int strcmp(const char *a, const char *b) { return strncmp(a, b, SIZE_MAX); }

// strcspn is for a single character.
static inline size_t strcspn(const char *s, const char *end) {
	size_t n = 0;
	for (; s[n] && s[n] != *end; n++) BARRIER;
	return n;
}

static inline char *strchr(const char *s, int c) {
	for (; *s; s++)
		if (*s == (char)c) return (char *)s;
	return NULL;
}

static inline char *strrchr(const char *s, int c) {
	char *found = NULL;
	for (; *s; s++)
		if (*s == (char)c) found = (char *)s;
	return found;
}

// snprintf knows %s, %d, %u and their forms with l and ll.
__attribute__((format(printf, 3, 4))) static inline int snprintf(char *to, size_t size, const char *format, ...) {
	size_t n = 0;
	va_list values;
	va_start(values, format);
	for (const char *f = format; *f; f++) {
		char digits[24];
		const char *part = f;
		size_t length = 1;
		if (*f == '%') {
			int longs = 0;
			while (*++f == 'l') longs++;
			if (*f == 's') {
				part = va_arg(values, const char *);
				length = strlen(part);
			} else {
				long long value = longs > 0 ? va_arg(values, long) : *f == 'u' ? (long long)va_arg(values, unsigned) : va_arg(values, int);
				int negative = *f == 'd' && value < 0;
				unsigned long long rest = negative ? 0ull - (unsigned long long)value : (unsigned long long)value;
				char *at = digits + sizeof digits;
				do *--at = (char)('0' + rest % 10);
				while (rest /= 10);
				if (negative) *--at = '-';
				part = at;
				length = (size_t)(digits + sizeof digits - at);
			}
		}
		for (size_t i = 0; i < length; i++, n++)
			if (n + 1 < size) to[n] = part[i];
	}
	va_end(values);
	if (size > 0) to[n < size ? n : size - 1] = 0;
	return (int)n;
}

static inline void __attribute__((noreturn)) _exit(int code) {
	for (;;) syscall(__NR_exit_group, code);
}

static inline int openat(int dir, const char *path, int flags, ...) {
	va_list values;
	va_start(values, flags);
	unsigned mode = flags & O_CREAT ? va_arg(values, unsigned) : 0;
	va_end(values);
	return (int)syscall(__NR_openat, dir, path, flags, mode);
}

#define open(path, ...) openat(AT_FDCWD, path, __VA_ARGS__)
#define ioctl(fd, request, value) ((int)syscall(__NR_ioctl, fd, request, value))

static inline int fcntl(int fd, int command, long value) { return (int)syscall(__NR_fcntl, fd, command, value); }
static inline int prctl(int option, long a, long b, long c, long d) { return (int)syscall(__NR_prctl, option, a, b, c, d); }
static inline int close(int fd) { return (int)syscall(__NR_close, fd); }
static inline ssize_t read(int fd, void *into, size_t n) { return syscall(__NR_read, fd, into, n); }
static inline ssize_t write(int fd, const void *from, size_t n) { return syscall(__NR_write, fd, from, n); }
static inline int dup3(int fd, int to, int flags) { return (int)syscall(__NR_dup3, fd, to, flags); }
static inline int dup2(int fd, int to) { return fd == to ? to : dup3(fd, to, 0); }
static inline int fstat(int fd, struct stat *s) { return (int)syscall(__NR_fstat, fd, s); }
static inline int statfs(const char *path, struct statfs *s) { return (int)syscall(__NR_statfs, path, s); }
static inline int mkdirat(int dir, const char *path, mode_t mode) { return (int)syscall(__NR_mkdirat, dir, path, mode); }
static inline int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
static inline int mknodat(int dir, const char *path, mode_t mode, unsigned device) { return (int)syscall(__NR_mknodat, dir, path, mode, device); }
static inline int mknod(const char *path, mode_t mode, unsigned device) { return mknodat(AT_FDCWD, path, mode, device); }
static inline int symlinkat(const char *target, int dir, const char *path) { return (int)syscall(__NR_symlinkat, target, dir, path); }
static inline ssize_t readlinkat(int dir, const char *path, char *into, size_t n) { return syscall(__NR_readlinkat, dir, path, into, n); }
static inline int unlink(const char *path) { return (int)syscall(__NR_unlinkat, AT_FDCWD, path, 0); }
static inline int chmod(const char *path, mode_t mode) { return (int)syscall(__NR_fchmodat, AT_FDCWD, path, mode); }
static inline int fchmod(int fd, mode_t mode) { return (int)syscall(__NR_fchmod, fd, mode); }
static inline int fchown(int fd, uid_t uid, gid_t gid) { return (int)syscall(__NR_fchown, fd, uid, gid); }
static inline int fchownat(int dir, const char *path, uid_t uid, gid_t gid, int flags) { return (int)syscall(__NR_fchownat, dir, path, uid, gid, flags); }
static inline int chown(const char *path, uid_t uid, gid_t gid) { return fchownat(AT_FDCWD, path, uid, gid, 0); }
static inline int chdir(const char *path) { return (int)syscall(__NR_chdir, path); }
static inline int fchdir(int fd) { return (int)syscall(__NR_fchdir, fd); }
static inline int chroot(const char *path) { return (int)syscall(__NR_chroot, path); }
static inline mode_t umask(mode_t mask) { return (mode_t)syscall(__NR_umask, mask); }
static inline int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data) {
	return (int)syscall(__NR_mount, source, target, type, flags, data);
}
static inline int umount2(const char *path, int flags) { return (int)syscall(__NR_umount2, path, flags); }

// device_number is as mknod takes it.
static inline unsigned device_number(unsigned major, unsigned minor) { return (minor & 0xff) | (major & 0xfff) << 8 | (minor & ~0xffu) << 12; }

// anonymous is n zeroed bytes, or NULL.
static inline void *anonymous(size_t n) {
	long at = syscall(__NR_mmap, NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return at == -1 ? NULL : (void *)at;
}

static inline pid_t getpid(void) { return (pid_t)syscall(__NR_getpid); }
static inline pid_t fork(void) { return (pid_t)syscall(__NR_clone, SIGCHLD); }
static inline pid_t waitpid(pid_t pid, int *status, int flags) { return (pid_t)syscall(__NR_wait4, pid, status, flags, NULL); }
static inline int kill(pid_t pid, int n) { return (int)syscall(__NR_kill, pid, n); }
static inline pid_t setsid(void) { return (pid_t)syscall(__NR_setsid); }
static inline int execve(const char *path, char *const *argv, char *const *env) { return (int)syscall(__NR_execve, path, argv, env); }
static inline int unshare(int flags) { return (int)syscall(__NR_unshare, flags); }
static inline int setns(int fd, int kind) { return (int)syscall(__NR_setns, fd, kind); }
static inline int setgroups(size_t n, const gid_t *groups) { return (int)syscall(__NR_setgroups, n, groups); }
static inline int setresuid(uid_t r, uid_t e, uid_t s) { return (int)syscall(__NR_setresuid, r, e, s); }
static inline int setresgid(gid_t r, gid_t e, gid_t s) { return (int)syscall(__NR_setresgid, r, e, s); }
static inline int sethostname(const char *name, size_t n) { return (int)syscall(__NR_sethostname, name, n); }
static inline int setdomainname(const char *name, size_t n) { return (int)syscall(__NR_setdomainname, name, n); }

struct limit {
	uint64_t now, most;
};
static inline int getrlimit(int resource, struct limit *l) { return (int)syscall(__NR_prlimit64, 0, resource, NULL, l); }
static inline int setrlimit(int resource, const struct limit *l) { return (int)syscall(__NR_prlimit64, 0, resource, l, NULL); }

static inline int clock_gettime(int clock, struct timespec *t) { return (int)syscall(__NR_clock_gettime, clock, t); }

static inline int poll(struct pollfd *fds, unsigned n, int milliseconds) {
	struct timespec t = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
	return (int)syscall(__NR_ppoll, fds, n, milliseconds < 0 ? NULL : &t, NULL, sizeof(uint64_t));
}
static inline void pause(void) { poll(NULL, 0, -1); }

// Sets of signals: bit n-1 is signal n.
static inline int set_mask(uint64_t blocked) { return (int)syscall(__NR_rt_sigprocmask, SIG_SETMASK, &blocked, NULL, sizeof blocked); }
static inline int default_signal(int n) {
	uint64_t action[4] = {0}; // as the kernel has it: all zero is SIG_DFL without flags
	return (int)syscall(__NR_rt_sigaction, n, action, NULL, sizeof(uint64_t));
}

static inline int socket(int family, int type, int protocol) { return (int)syscall(__NR_socket, family, type, protocol); }
static inline int connect(int fd, const void *to, socklen_t size) { return (int)syscall(__NR_connect, fd, to, size); }
static inline int accept4(int fd, void *from, socklen_t *size, int flags) { return (int)syscall(__NR_accept4, fd, from, size, flags); }
static inline int setsockopt(int fd, int level, int option, const void *value, socklen_t n) { return (int)syscall(__NR_setsockopt, fd, level, option, value, n); }
static inline int getsockopt(int fd, int level, int option, void *value, socklen_t *n) { return (int)syscall(__NR_getsockopt, fd, level, option, value, n); }
static inline ssize_t send(int fd, const void *from, size_t n, int flags) { return syscall(__NR_sendto, fd, from, n, flags, NULL, 0); }
static inline ssize_t sendmsg(int fd, const struct msghdr *m, int flags) { return syscall(__NR_sendmsg, fd, m, flags); }
static inline ssize_t recvmsg(int fd, struct msghdr *m, int flags) { return syscall(__NR_recvmsg, fd, m, flags); }

#endif
