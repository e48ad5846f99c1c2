//go:build linux && cgo

package sandbox

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// setupMessage says to process 1 what to build; supervisor_linux.c reads it in the same order.
func (r *Runtime) setupMessage(spec Spec, slot, cgroups int) []byte {
	limits := spec.Limits
	var b body
	b.u32(uint32(cgroups))
	b.u32(uint32(len(spec.Root.Lower)))
	b.u32(uint32(len(spec.Root.Binds)))
	b.u32(uint32(boolInt(spec.NetNS != "")))
	b.u32(r.idBase(slot))
	b.u32(uint32(boolInt(!r.noIDMap.Load())))
	b.u64(uint64(limits.DiskBytes))
	b.u64(uint64(limits.DiskInodes))
	b.u64(uint64(min(limits.DiskBytes, 64<<20)))
	b.str(spec.Hostname)
	b.str(r.mountPoint)

	rlimits := []struct {
		resource uint32
		value    int64
	}{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_NOFILE, limits.OpenFiles},
		{unix.RLIMIT_FSIZE, limits.FileSizeBytes},
		{unix.RLIMIT_MEMLOCK, 8 << 20},
		{unix.RLIMIT_MSGQUEUE, 800 << 10},
		{unix.RLIMIT_SIGPENDING, 4096},
		{unix.RLIMIT_NPROC, -1}, // processes are bounded by the control group; a count by host uid would bound nothing more
		{unix.RLIMIT_RTPRIO, 0},
		{unix.RLIMIT_NICE, 0},
	}
	b.u32(uint32(len(rlimits)))
	for _, l := range rlimits {
		b.u32(l.resource)
		b.u64(uint64(l.value))
	}
	for _, bind := range spec.Root.Binds {
		b.str(path.Clean(bind.Target))
		b.u32(uint32(boolInt(bind.Writable)))
		b.u32(uint32(boolInt(bind.Made)))
	}
	b.u32(uint32(len(spec.Devices)))
	for _, d := range spec.Devices {
		b.str(d.Path)
		b.u32(uint32(boolInt(d.Block)))
		b.u32(d.Mode())
		b.u32(d.Major)
		b.u32(d.Minor)
	}
	users := lowerUsers(spec.Root.Lower)
	dirs := ownDirs(spec.Root, users)
	b.u32(uint32(len(dirs)))
	for _, d := range dirs {
		b.str(d.path)
		b.u32(d.mode)
		b.u32(d.uid)
		b.u32(d.gid)
	}
	b.str(path.Clean(spec.Root.WorkDir))
	b.u32(workDirOwner(spec.Root, users))
	b.str(string(r.filter))
	return append(header(0, len(b), 0), b...)
}

type ownDir struct {
	path     string
	mode     uint32
	uid, gid uint32
}

// ownDirs are the directories that a sandbox starts with empty and writable; users are those of the image. They lie on the bounded tmpfs itself, not
// on the overlay, which is slower and refuses to rename directories.
func ownDirs(root Root, users []account) []ownDir {
	dirs := []ownDir{
		{defaultWorkDir, 0o1777, 0, 0},
		{"/tmp", 0o1777, 0, 0},
		{"/var/tmp", 0o1777, 0, 0},
	}
	if w := path.Clean(root.WorkDir); w == "/home" || strings.HasPrefix(w, "/home/") {
		return dirs
	}
	if !slices.ContainsFunc(users, func(u account) bool { return u.name == learner.name }) {
		users = append(users, learner)
	}
	for _, u := range users {
		home := path.Clean(u.home)
		if u.uid >= 1000 && u.uid < 60000 && strings.HasPrefix(home, "/home/") && len(dirs) < 16 &&
			!slices.ContainsFunc(dirs, func(d ownDir) bool { return d.path == home }) {
			dirs = append(dirs, ownDir{home, 0o755, u.uid, u.gid})
		}
	}
	return dirs
}

// workDirOwner is the uid that a working directory belongs to which the image does not have: that of the image's user.
func workDirOwner(root Root, users []account) uint32 {
	name, _, _ := strings.Cut(root.User, ":")
	for _, u := range users {
		if u.name == name {
			return u.uid
		}
	}
	uid, err := strconv.ParseUint(name, 10, 16)
	if err != nil {
		return 0
	}
	return uint32(uid)
}
