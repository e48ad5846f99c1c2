//go:build linux && cgo

package sandbox

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// openBelow opens a path as the sandbox would see it, and never leaves the root: links and ".." are resolved by the kernel
// inside it, and the magic links of /proc are refused (CVE-2018-15664, CVE-2019-14271).
func openBelow(root *os.File, path string, flags uint64, mode uint64) (int, error) {
	how := unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Mode: mode,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd := -1
	raw, err := root.SyscallConn()
	if err != nil {
		return -1, ErrEnded
	}
	controlErr := raw.Control(func(dir uintptr) {
		// EAGAIN: a rename raced with the resolution of ".." (openat2(2)); a tenant who keeps renaming is refused in the end.
		for range 64 {
			fd, err = unix.Openat2(int(dir), path, &how)
			if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	if controlErr != nil {
		return -1, ErrEnded
	}
	return fd, err
}

// openRegular opens a regular file for reading. It is found first, judged, and then opened through its own descriptor:
// a FIFO cannot make us wait, a device is never opened, and there is no moment to exchange one for another.
func openRegular(root *os.File, path string) (*os.File, unix.Stat_t, error) {
	found, err := openBelow(root, path, unix.O_PATH, 0)
	if err != nil {
		return nil, unix.Stat_t{}, err
	}
	defer func() { _ = unix.Close(found) }()
	return reopenRegular(found, path)
}

func reopenRegular(found int, name string) (*os.File, unix.Stat_t, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(found, &stat); err != nil {
		return nil, stat, err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, stat, ErrNotRegular
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/thread-self/fd/%d", found), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, stat, err
	}
	return os.NewFile(uintptr(fd), name), stat, nil
}
