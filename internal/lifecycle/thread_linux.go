package lifecycle

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// OnOwnThread runs f on an operating system thread that ends with it, so that f may change what belongs to a thread: its ids, its capabilities, its
// namespaces. It is never the first thread of the process, which cannot end, and which /proc/<pid> shows to everybody.
func OnOwnThread(f func() error) (err error) {
	var running sync.WaitGroup
	running.Go(func() { err = locked(f) })
	running.Wait()
	return err
}

// locked keeps the first thread to itself while another one does the work.
func locked(f func() error) error {
	runtime.LockOSThread() // never unlocked on the thread that f has changed
	if unix.Gettid() != unix.Getpid() {
		return f()
	}
	err := OnOwnThread(f)
	runtime.UnlockOSThread()
	return err
}
