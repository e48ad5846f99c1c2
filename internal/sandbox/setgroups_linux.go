//go:build linux && cgo

package sandbox

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// setGroups is setgroups(2) for the calling thread alone.
func setGroups(groups []uint32) error {
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
