//go:build linux && cgo

package sandbox

import "golang.org/x/sys/unix"

// allowedHere are the calls that only this architecture has, most of them older forms.
var allowedHere = []int{
	unix.SYS_NEWFSTATAT, unix.SYS_RENAMEAT,
}
