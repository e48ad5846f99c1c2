//go:build linux && cgo

// Shared between the parts of the supervisor: see DESIGN.md for the order of events and the frames.
#ifndef ROCKPOOL_SUPERVISOR_H
#define ROCKPOOL_SUPERVISOR_H

#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

#define SUPERVISOR_NAME "rockpool-supervisor"
#define STEP_MAPPED_OVERLAY "mount the overlay on mapped layers"
#define FRAME_MAGIC 0x6b636f72u // "rock"
#define MAX_SETUP (1u << 20)
#define MAX_REQUEST (4u << 20)
#define MAX_FDS 16
#define MAX_MOUNTS 384

enum { CONTROL_FD = 3, LISTEN_FD = 4, FIRST_FD = 5 };
enum { KIND_PING = 1, KIND_EXEC = 2, KIND_HOLD = 3, KIND_PROBE = 4, KIND_KEEP = 5, KIND_RESUME = 6 };
enum { KIND_STARTING = 16, KIND_EXITED = 17, KIND_PONG = 18, KIND_NONE = 19 };
enum { KEPT_STREAMS = 2 }; // stdout and stderr of a kept program
enum { FLAG_TTY = 1, FLAG_MERGE = 2, FLAG_TIMED = 4, FLAG_EXTRA = 8 };
enum { EXTRA_STREAMS = 2 }; // what an interpreter that waits finds open from EXTRA_FD on: see warm_linux.go
enum { FEATURE_IDMAP = 1, FEATURE_TIME = 2, FEATURE_LANDLOCK = 4 };

// header starts each request; the descriptors travel with it.
struct header {
	uint32_t magic, kind, length, fds;
};

// event is what the supervisor says on a connection.
struct event {
	uint32_t magic, kind;
	int32_t value; // wait status, or the pid inside
	uint32_t micros; // of a start that was asked for with FLAG_TIMED: since the request came
};

// verdict ends the set-up, and reports a program that could not be started.
struct verdict {
	uint32_t magic;
	int32_t error; // errno, 0 = fine
	uint32_t features;
	char step[52];
};

// trial is how one attempt of a self-test ended: 0 = it got through.
struct trial {
	char name[28];
	int32_t error;
};

// message reads a body of length-prefixed fields; a field out of bounds sets bad, and all later reads give nothing.
struct message {
	const char *at, *end;
	int bad;
};

uint32_t take_u32(struct message *m);
uint64_t take_u64(struct message *m);
const char *take_str(struct message *m); // NUL-terminated inside the message; "" when bad
const char *take_bytes(struct message *m, uint32_t *length);
int read_full(int fd, void *into, size_t n);

struct own_dir {
	const char *path;
	uint32_t mode, uid, gid;
};

struct device {
	const char *path; // below /dev
	uint32_t block, mode, major, minor;
};

struct setup {
	uint32_t cgroups, lowers, binds, network, rlimits, dirs, devices;
	uint32_t id_base, features, map_ids;
	uint64_t disk_bytes, disk_inodes, shm_bytes;
	const char *hostname, *mount_point;
	struct { uint32_t resource; uint64_t value; } rlimit[16];
	const char *bind_target[MAX_MOUNTS];
	uint32_t bind_writable[MAX_MOUNTS], bind_made[MAX_MOUNTS];
	struct device device[MAX_MOUNTS];
	struct own_dir dir[MAX_MOUNTS];
	const char *work_dir; // made when the image does not have it
	uint32_t work_uid;
	const char *filter;
	uint32_t filter_length;
	int user_ns, proc, pts;
};

// set_step names what is being attempted; fail reports it with errno and ends the supervisor.
void set_step(const char *step);
void fail(void) __attribute__((noreturn));
void check(int ok, const char *step);

struct timespec;
extern struct timespec asked; // when the request that is served came

void build_root(struct setup *s);
void drop_power(struct setup *s);
void serve(struct setup *s) __attribute__((noreturn));
void run_request(int connection, const struct header *h, int *fds, int pts) __attribute__((noreturn));
void probe(char **argv) __attribute__((noreturn));
int write_file(int dir, const char *path, const char *text);

// enter_supervisor is where the kernel begins to execute the copy that the node has of its own program: see sealedSelf.
void enter_supervisor(void);

#pragma GCC visibility pop
#endif
