//go:build linux && cgo

package sandbox

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"rockpool/internal/lifecycle"
)

// thread is an operating system thread that acts as a user of a sandbox, so that the kernel checks that user's
// permissions and not the node's. It is never given back: the Go runtime ends it with its goroutine, so no path can leave
// it with the wrong identity for other work.
type thread struct{ permitted uint32 }

const (
	// rootWrites is what the node needs to act on all files of a sandbox as root does on a machine. Inside, root has no
	// such power; outside, paths are confined to the sandbox by openat2.
	rootWrites = 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_FOWNER | 1<<unix.CAP_CHOWN | 1<<unix.CAP_FSETID
	rootReads  = 1 << unix.CAP_DAC_READ_SEARCH
	// seesProcesses makes hidden entries of /proc exist for a look-up, as ls shows them without hidepid. Reading a link or a
	// file happens without it.
	seesProcesses = 1 << unix.CAP_SYS_PTRACE
)

// runAs runs f on a thread with a user's ids, as they are on the host, and at most the given capabilities.
func (s *Sandbox) runAs(user identity, permitted uint32, f func(t *thread) error) error {
	return lifecycle.OnOwnThread(func() error {
		t := &thread{permitted}
		if err := t.become(s.runtime.idBase(s.slot), user); err != nil {
			return fmt.Errorf("act as user %d: %w", user.uid, err)
		}
		return f(t)
	})
}

// become uses raw calls: the wrappers of the C library and of Go change all threads of a process.
func (t *thread) become(base uint32, user identity) error {
	groups := make([]uint32, 0, len(user.groups)+1)
	for _, g := range append(user.groups, user.gid) {
		groups = append(groups, base+g)
	}
	uid, gid := uintptr(base+user.uid), uintptr(base+user.gid)
	if err := setGroups(groups); err != nil {
		return err
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return errno
	}
	return t.use(t.permitted)
}

// use sets what is in effect, of what is permitted.
func (t *thread) use(effective uint32) error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	sets := [2]unix.CapUserData{{Effective: effective & t.permitted, Permitted: t.permitted}}
	return unix.Capset(&head, &sets[0])
}

// with runs f with some of the permitted capabilities in effect, and none afterwards.
func (t *thread) with(effective uint32, f func() error) error {
	if err := t.use(effective); err != nil {
		return err
	}
	return errors.Join(f(), t.use(0))
}
