//go:build unix

package node

import (
	"strings"

	"golang.org/x/sys/unix"
)

// space is the size of the file system that holds dir, and what is free on it for us.
func space(dir string) (total, free int64) {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return 0, 0
	}
	return int64(s.Blocks) * int64(s.Bsize), int64(s.Bavail) * int64(s.Bsize)
}

func kernel() map[string]string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return nil
	}
	return map[string]string{
		"kernel.name":    strings.ToLower(unix.ByteSliceToString(u.Sysname[:])),
		"kernel.version": unix.ByteSliceToString(u.Release[:]),
		"kernel.arch":    unix.ByteSliceToString(u.Machine[:]),
	}
}
