//go:build linux && cgo

// The root file system of a sandbox, built by process 1 as real root before it enters its user namespace. Mounts are made
// as descriptors and moved to descriptors; a target is resolved once, confined to the new root (CVE-2021-30465).
#include "supervisor_linux.h"

#include "bare_linux.h"

#include <linux/openat2.h>

enum {
	ATTR_RDONLY = 0x1, ATTR_NOSUID = 0x2, ATTR_NODEV = 0x4, ATTR_NOEXEC = 0x8, ATTR_IDMAP = 0x00100000,
	TREE_CLONE = 1, TREE_CLOEXEC = O_CLOEXEC, MOVE_FROM_EMPTY = 0x4, MOVE_TO_EMPTY = 0x40,
	OWN_INODES = 17, // /dev with its 13 entries, and the three of the cover
};
struct attributes { // struct mount_attr, which older C libraries lack
	uint64_t set, clear, propagation, user_ns;
};

static int change_attributes(int mount, const struct attributes *a) { return (int)syscall(__NR_mount_setattr, mount, "", AT_EMPTY_PATH, a, sizeof *a); }

static int set_attributes(int mount, uint64_t set, int user_ns) {
	struct attributes a = {.set = set, .user_ns = user_ns >= 0 ? (uint64_t)user_ns : 0};
	return change_attributes(mount, &a);
}

static void move_to(int mount, int target, const char *step) {
	check(syscall(__NR_move_mount, mount, "", target, "", MOVE_FROM_EMPTY | MOVE_TO_EMPTY) == 0, step);
}

static int clone_tree(int dir, const char *path, const char *step) {
	int fd = (int)syscall(__NR_open_tree, dir, path, TREE_CLONE | TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW | (*path ? 0 : AT_EMPTY_PATH));
	check(fd >= 0, step);
	return fd;
}

static int new_tmpfs(uint64_t bytes, uint64_t inodes, const char *mode, uint64_t attributes) {
	char text[32];
	int context = (int)syscall(__NR_fsopen, "tmpfs", 1);
	check(context >= 0, "open a tmpfs");
	snprintf(text, sizeof text, "%llu", (unsigned long long)bytes);
	check(syscall(__NR_fsconfig, context, 1, "size", text, 0) == 0, "set the size of a tmpfs");
	snprintf(text, sizeof text, "%llu", (unsigned long long)inodes);
	check(syscall(__NR_fsconfig, context, 1, "nr_inodes", text, 0) == 0, "set the inodes of a tmpfs");
	check(syscall(__NR_fsconfig, context, 1, "mode", mode, 0) == 0, "set the mode of a tmpfs");
	check(syscall(__NR_fsconfig, context, 6, NULL, NULL, 0) == 0, "create a tmpfs");
	int fd = (int)syscall(__NR_fsmount, context, 1, attributes);
	check(fd >= 0, "mount a tmpfs");
	close(context);
	return fd;
}

static int open_below(int root, const char *path, uint64_t flags) {
	struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
	return (int)syscall(__NR_openat2, root, path, &how, sizeof how);
}

// make_below opens a directory below root and makes what is missing of it. Images are hostile too: a link in one of its
// components stays confined to the root.
static int make_below(int root, const char *path, uid_t owner) {
	static char step[48];
	char part[4096];
	snprintf(step, sizeof step, "find %s in the image", path);
	size_t n = strlen(path);
	errno = ENAMETOOLONG;
	check(n < sizeof part, step);
	for (size_t i = 1; i <= n; i++) {
		if (i < n && path[i] != '/') continue;
		memcpy(part, path, i);
		part[i] = 0;
		int fd = open_below(root, part, O_PATH | O_DIRECTORY);
		if (fd < 0 && errno == ENOENT) {
			char *name = strrchr(part, '/');
			*name = 0;
			int parent = open_below(root, *part ? part : "/", O_PATH | O_DIRECTORY);
			check(parent >= 0, step);
			check(mkdirat(parent, name + 1, 0755) == 0, step);
			check(fchownat(parent, name + 1, owner, owner, AT_SYMLINK_NOFOLLOW) == 0, step);
			close(parent);
			*name = '/';
			fd = open_below(root, part, O_PATH | O_DIRECTORY);
		}
		check(fd >= 0, step);
		if (i == n) return fd;
		close(fd);
	}
	return open_below(root, "/", O_PATH | O_DIRECTORY);
}

// merged follows the link of a merged /usr: at is the root, and link one in it. 0 = it is none of these.
static int merged(int at, int link, const char *name) {
	char text[264], want[264];
	ssize_t n = readlinkat(link, "", text, sizeof text - 1);
	if (n < 0) return 0;
	text[n] = 0;
	snprintf(want, sizeof want, "/usr/%s", name);
	if (strcmp(text, want) != 0 && strcmp(text, want + 1) != 0) return 0;
	int usr = openat(at, "usr", O_PATH | O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC);
	if (usr < 0) return 0;
	int fd = openat(usr, name, O_PATH | O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC);
	close(usr);
	return fd < 0 ? 0 : fd;
}

// place_below opens where something of the node is to show, and makes what is missing of it, a file too. An image has no say in where that is: its
// links are not followed.
static int place_below(int root, const char *path, int directory, uid_t owner) {
	static char step[52];
	char name[256];
	snprintf(step, sizeof step, "place %s in the image", path);
	int at = fcntl(root, F_DUPFD_CLOEXEC, 0);
	check(at >= 0, step);
	for (const char *rest = path + 1;;) {
		struct stat found;
		size_t n = strcspn(rest, "/");
		int last = rest[n] == 0, dir = !last || directory;
		errno = EINVAL;
		check(n > 0 && n < sizeof name, step);
		memcpy(name, rest, n);
		name[n] = 0;
		check(strcmp(name, ".") != 0 && strcmp(name, "..") != 0, step);
		int next = openat(at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		if (next < 0 && errno == ENOENT) {
			int made = dir ? mkdirat(at, name, 0755) : openat(at, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0444);
			check(made >= 0, step);
			if (!dir) close(made);
			check(fchownat(at, name, owner, owner, AT_SYMLINK_NOFOLLOW) == 0, step);
			next = openat(at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		}
		check(next >= 0 && fstat(next, &found) == 0, step);
		if (S_ISLNK(found.st_mode)) {
			int to = rest == path + 1 && !last ? merged(at, next, name) : 0;
			errno = ELOOP;
			check(to > 0, step);
			close(next);
			next = to;
		} else {
			errno = dir ? ENOTDIR : EISDIR;
			check(dir ? S_ISDIR(found.st_mode) : S_ISREG(found.st_mode), step);
		}
		close(at);
		at = next;
		if (last) return at;
		rest += n + 1;
	}
}

// make_node makes a device that the sandbox was given. All that is in dev was made here.
static void make_node(int dev, const struct device *d, uid_t owner) {
	static char step[52];
	char name[256];
	snprintf(step, sizeof step, "make the device %s", d->path);
	int at = fcntl(dev, F_DUPFD_CLOEXEC, 0);
	check(at >= 0, step);
	for (const char *rest = d->path + strlen("/dev/");;) {
		size_t n = strcspn(rest, "/");
		errno = EINVAL;
		check(n > 0 && n < sizeof name, step);
		memcpy(name, rest, n);
		name[n] = 0;
		if (rest[n] == 0) break;
		check(mkdirat(at, name, 0755) == 0 || errno == EEXIST, step);
		int next = openat(at, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		check(next >= 0 && fchownat(at, name, owner, owner, AT_SYMLINK_NOFOLLOW) == 0, step);
		close(at);
		at = next;
		rest += n + 1;
	}
	check(mknodat(at, name, (d->block ? S_IFBLK : S_IFCHR) | d->mode, device_number(d->major, d->minor)) == 0, step);
	check(fchownat(at, name, owner, owner, AT_SYMLINK_NOFOLLOW) == 0, step);
	close(at);
}

// make_devices makes /dev in a directory of the writable layer, which only a read-only mount shows: each file system has every memory group of
// the machine take more.
static void make_devices(int root, struct setup *s, int scratch) {
	static const struct { char name[8]; unsigned major, minor; } nodes[] = {
		{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
	};
	static const struct { char name[8], target[16]; } links[] = {
		{"ptmx", "pts/ptmx"}, {"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"},
		{"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
	};
	check(mkdirat(scratch, "dev", 0755) == 0, "make a directory for /dev");
	int dev = openat(scratch, "dev", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	check(dev >= 0 && fchownat(dev, "", s->id_base, s->id_base, AT_EMPTY_PATH) == 0, "own /dev");
	for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
		check(mknodat(dev, nodes[i].name, S_IFCHR | 0666, device_number(nodes[i].major, nodes[i].minor)) == 0, "make a device");
		check(fchownat(dev, nodes[i].name, s->id_base, s->id_base, AT_SYMLINK_NOFOLLOW) == 0, "own a device");
	}
	for (size_t i = 0; i < sizeof links / sizeof *links; i++)
		check(symlinkat(links[i].target, dev, links[i].name) == 0, "link a device");
	check(mkdirat(dev, "pts", 0755) == 0 && mkdirat(dev, "shm", 0755) == 0, "make directories in /dev");
	for (uint32_t i = 0; i < s->devices; i++) make_node(dev, &s->device[i], s->id_base);
	close(dev);

	dev = clone_tree(scratch, "dev", "clone /dev");
	struct attributes ours = {.set = ATTR_RDONLY | ATTR_NOSUID | ATTR_NOEXEC, .clear = ATTR_NODEV};
	check(change_attributes(dev, &ours) == 0, "make /dev read-only");
	int target = make_below(root, "/dev", s->id_base);
	move_to(dev, target, "mount /dev");
	close(target);

	char text[16];
	int context = (int)syscall(__NR_fsopen, "devpts", 1);
	check(context >= 0, "open a devpts");
	snprintf(text, sizeof text, "%u", s->id_base + 5);
	check(syscall(__NR_fsconfig, context, 1, "gid", text, 0) == 0 && syscall(__NR_fsconfig, context, 1, "mode", "0620", 0) == 0 &&
	      syscall(__NR_fsconfig, context, 1, "ptmxmode", "0666", 0) == 0 && syscall(__NR_fsconfig, context, 1, "max", "1024", 0) == 0,
	      "set the options of devpts");
	check(syscall(__NR_fsconfig, context, 6, NULL, NULL, 0) == 0, "create a devpts");
	s->pts = (int)syscall(__NR_fsmount, context, 1, ATTR_NOSUID | ATTR_NOEXEC);
	check(s->pts >= 0, "mount a devpts");
	close(context);
	target = openat(dev, "pts", O_PATH | O_DIRECTORY | O_CLOEXEC);
	move_to(s->pts, target, "mount /dev/pts");
	close(target);

	int shm = new_tmpfs(s->shm_bytes, 4096, "01777", ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC);
	check(fchownat(shm, "", s->id_base, s->id_base, AT_EMPTY_PATH) == 0, "own /dev/shm");
	target = openat(dev, "shm", O_PATH | O_DIRECTORY | O_CLOEXEC);
	move_to(shm, target, "mount /dev/shm");
	close(target);
	close(shm);
	close(dev);
}

// What /proc tells about the host, or could change, is covered: with an empty directory and an empty file of the writable layer that only read-only mounts
// show, never with a null device that something could have swapped (CVE-2025-31133).
static void mask_proc(struct setup *s, int scratch) {
	static const char empty_dirs[][16] = {"acpi", "asound", "bus", "driver", "fs", "irq", "scsi", "tty", "sysvipc"};
	static const char empty_files[][16] = {
		"kcore", "keys", "key-users", "kallsyms", "kmsg", "latency_stats", "timer_list", "sched_debug", "config.gz", "cmdline",
		"interrupts", "kpagecount", "kpageflags", "kpagecgroup", "modules", "iomem", "ioports", "slabinfo", "vmallocinfo",
		"pagetypeinfo", "partitions", "diskstats", "swaps", "zoneinfo", "softirqs", "schedstat", "sysrq-trigger", "mtrr",
	};
	static const char read_only[][8] = {"sys"};
	check(mkdirat(scratch, "cover", 0555) == 0 && mkdirat(scratch, "cover/dir", 0555) == 0, "make an empty directory");
	int file = openat(scratch, "cover/empty", O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0444);
	check(file >= 0, "make an empty file");
	close(file);
	int cover = clone_tree(scratch, "cover", "clone the cover");
	check(set_attributes(cover, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC, -1) == 0, "make the cover read-only");
	// A detached tree cannot be cloned on older kernels: attach it for as long as it is needed.
	int place = openat(s->proc, "sys", O_PATH | O_DIRECTORY | O_CLOEXEC);
	move_to(cover, place, "attach the cover");
	for (int pass = 0; pass < 2; pass++) {
		const char(*names)[16] = pass ? empty_files : empty_dirs;
		size_t count = pass ? sizeof empty_files / sizeof *empty_files : sizeof empty_dirs / sizeof *empty_dirs;
		for (size_t i = 0; i < count; i++) {
			int target = openat(s->proc, names[i], O_PATH | O_NOFOLLOW | O_CLOEXEC);
			if (target < 0 && errno == ENOENT) continue;
			check(target >= 0, "find what to mask in /proc");
			int mount = clone_tree(cover, pass ? "empty" : "dir", "clone the cover");
			move_to(mount, target, "mask a part of /proc");
			close(mount);
			close(target);
		}
	}
	check(fchdir(cover) == 0 && umount2(".", MNT_DETACH) == 0, "detach the cover");
	close(place);
	close(cover);
	for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++) {
		int mount = clone_tree(s->proc, read_only[i], "clone a part of /proc");
		check(set_attributes(mount, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC, -1) == 0, "make a part of /proc read-only");
		int target = openat(s->proc, read_only[i], O_PATH | O_NOFOLLOW | O_CLOEXEC);
		check(target >= 0, "find a part of /proc");
		move_to(mount, target, "cover a part of /proc");
		close(mount);
		close(target);
	}
}

// seal_mount turns a mount handed over by the node read-only, nosuid and nodev, and maps its ids so that what
// belongs to root on the node belongs to root inside. File systems that cannot be mapped show their files as nobody's; one to be written to has to be mapped.
static int seal_mount(int fd, struct setup *s, int writable) {
	uint64_t attributes = (writable ? 0 : ATTR_RDONLY) | ATTR_NOSUID | ATTR_NODEV;
	if (writable) {
		check(set_attributes(fd, attributes | ATTR_IDMAP, s->user_ns) == 0, "map the ids of a writable directory");
		return 1;
	}
	if (s->map_ids && set_attributes(fd, attributes | ATTR_IDMAP, s->user_ns) == 0) return 1;
	check(set_attributes(fd, attributes, -1) == 0, "make a mount read-only");
	return 0;
}

void build_root(struct setup *s) {
	int first_lower = FIRST_FD + (int)s->cgroups, first_bind = first_lower + (int)s->lowers, mapped = 1;
	char options[4096], name[16];
	uid_t root_id = s->id_base;

	for (uint32_t i = 0; i < s->lowers; i++) mapped &= seal_mount(first_lower + (int)i, s, 0);
	for (uint32_t i = 0; i < s->binds; i++) mapped &= seal_mount(first_bind + (int)i, s, (int)s->bind_writable[i]);
	if (mapped) s->features |= FEATURE_IDMAP;

	// One bounded tmpfs holds all that can be written: the overlay's upper layer, the workspace, /tmp and the homes. What is made here of /dev and of what
	// covers /proc is not counted.
	int scratch = new_tmpfs(s->disk_bytes, s->disk_inodes + OWN_INODES + 8 * (uint64_t)s->devices, "0700", ATTR_NOSUID | ATTR_NODEV);
	int place = open(s->mount_point, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	check(place >= 0, "open the mount point");
	move_to(scratch, place, "mount the writable layer");
	close(place);
	check(fchdir(scratch) == 0, "enter the writable layer");
	check(mkdir("upper", 0755) == 0 && mkdir("work", 0700) == 0 && mkdir("root", 0755) == 0, "make the writable layer");
	check(chown("upper", root_id, root_id) == 0, "own the writable layer");
	size_t used = (size_t)snprintf(options, sizeof options, "upperdir=upper,workdir=work,lowerdir=");
	for (uint32_t i = 0; i < s->lowers; i++) {
		snprintf(name, sizeof name, "l%u", i);
		check(mkdir(name, 0700) == 0, "make a place for a lower layer");
		place = open(name, O_PATH | O_DIRECTORY | O_CLOEXEC);
		move_to(first_lower + (int)i, place, "mount a lower layer");
		close(place);
		used += (size_t)snprintf(options + used, sizeof options - used, "%s%s", i ? ":" : "", name);
	}
	// Mounted by real root the overlay acts on its layers with real root's power: its files belong to the mapped ids, and
	// nosuid takes away what a setuid file could give (CVE-2023-0386).
	if (mount("overlay", "root", "overlay", MS_NOSUID | MS_NODEV, options) < 0) {
		// Before Linux 5.19 an overlay refuses mapped layers, and a map cannot be taken off: the node tries without.
		set_step(s->map_ids ? STEP_MAPPED_OVERLAY : "mount the overlay");
		fail();
	}
	int root = open("root", O_PATH | O_DIRECTORY | O_CLOEXEC);
	check(root >= 0, "open the new root");

	for (uint32_t i = 0; i < s->dirs; i++) {
		struct own_dir *d = &s->dir[i];
		snprintf(name, sizeof name, "d%u", i);
		check(mkdir(name, d->mode) == 0 && chown(name, root_id + d->uid, root_id + d->gid) == 0, "make a writable directory");
		check(chmod(name, d->mode) == 0, "set the mode of a writable directory");
		int tree = clone_tree(scratch, name, "clone a writable directory");
		int target = make_below(root, d->path, root_id);
		move_to(tree, target, "mount a writable directory");
		close(tree);
		close(target);
	}
	for (uint32_t i = 0; i < s->binds; i++) {
		struct stat source;
		check(fstat(first_bind + (int)i, &source) == 0, "look at the source of a bind");
		int target = s->bind_made[i]           ? place_below(root, s->bind_target[i], S_ISDIR(source.st_mode), root_id)
			     : S_ISDIR(source.st_mode) ? make_below(root, s->bind_target[i], root_id)
						       : open_below(root, s->bind_target[i], O_PATH | O_NOFOLLOW);
		check(target >= 0, "find the target of a bind");
		move_to(first_bind + (int)i, target, "mount a bind");
		close(target);
	}
	if (*s->work_dir) close(make_below(root, s->work_dir, root_id + s->work_uid));
	make_devices(root, s, scratch);
	int target = make_below(root, "/proc", root_id);
	move_to(s->proc, target, "mount /proc");
	close(target);
	mask_proc(s, scratch);

	// pivot_root stacks the old root on the new one; detaching it leaves no path to the node's files.
	check(fchdir(root) == 0, "enter the new root");
	check(syscall(__NR_pivot_root, ".", ".") == 0, "pivot the root");
	check(umount2(".", MNT_DETACH) == 0, "detach the old root");
	check(chdir("/") == 0, "enter the new root");
	check(syscall(__NR_close_range, first_lower, first_bind + (int)s->binds - 1, 0) == 0, "close the sources of mounts");
	close(root);
	close(scratch);
}
