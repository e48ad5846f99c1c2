package node

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// sharedInodes bounds the number of files.
const sharedInodes = 65536

// mounted reports whether something is mounted on a directory.
func mounted(dir string) (bool, error) {
	var s unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &s)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && s.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, err
}

// mountShared makes a bounded file system on a directory. Nothing in it is ever a program with rights or a device, whoever wrote it.
func mountShared(dir string, size int64) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	there, err := mounted(dir)
	if err != nil || there {
		return err
	}
	return unix.Mount("rockpool", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d,nr_inodes=%d,mode=1777", size, sharedInodes))
}

// unmountShared lets go of it also where a task that is about to end still has it.
func unmountShared(dir string) error {
	there, err := mounted(dir)
	if err != nil || !there {
		return err
	}
	return unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}
