//go:build linux && cgo

package oci

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// output is the node's end of a pipe that a program writes to. Nothing is read ahead, so a program cannot fill the node's
// memory.
type output struct {
	allow func(n int) int // told of what was read; answers how much of it may be handed on

	mu    sync.Mutex // one Read at a time
	file  *os.File
	ended bool
	left  int // bytes still to deliver after the end; they are counted already
	over  sync.Once
}

// end is called when the execution has ended. A reader that waits is woken, takes what the kernel still holds, and is done:
// another process that was given the other side cannot delay or lengthen that.
func (o *output) end() {
	o.over.Do(func() { _ = o.file.SetReadDeadline(time.Unix(1, 0)) })
	o.mu.Lock()
	defer o.mu.Unlock()
	o.settle()
}

// settle decides, once, what is still delivered: what the kernel holds now, as far as the limit goes. The caller holds mu.
func (o *output) settle() {
	if o.ended {
		return
	}
	o.ended, o.left = true, o.allow(int(o.held()))
}

func (o *output) Read(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for !o.ended {
		n, err := o.file.Read(p)
		if n > 0 {
			if n = o.allow(n); n > 0 {
				return n, nil
			}
			continue // a program beyond its limit is being ended, and must not be ended by a closed pipe
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, o.finish(err)
		}
		o.settle()
	}
	if o.left <= 0 {
		return 0, o.finish(io.EOF)
	}
	// The poller refuses to read after its deadline.
	n, err := 0, error(io.EOF)
	o.control(func(fd int) {
		for err = syscall.EINTR; errors.Is(err, syscall.EINTR); {
			n, err = unix.Read(fd, p[:min(len(p), o.left)])
		}
	})
	if n <= 0 {
		return 0, o.finish(err)
	}
	o.left -= n
	return n, nil
}

// finish ends the stream. The caller holds mu.
func (o *output) finish(err error) error {
	o.ended, o.left = true, 0
	_ = o.file.Close()
	if err == nil || errors.Is(err, os.ErrClosed) || errors.Is(err, syscall.EAGAIN) {
		return io.EOF
	}
	return err
}

// held is how many bytes wait in the kernel.
func (o *output) held() int64 {
	n := 0
	if o != nil {
		o.control(func(fd int) { n, _ = unix.IoctlGetInt(fd, unix.TIOCINQ) })
	}
	return int64(max(0, n))
}

func (o *output) control(f func(fd int)) {
	if raw, err := o.file.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}

// input is the node's end of what a program reads. Closing it ends the input of a pipe; on a terminal it only stops: an
// end-of-file character is the client's to type.
type input struct{ file *os.File }

func (i input) Write(p []byte) (int, error) { return i.file.Write(p) }

func (i input) Close() error {
	if err := i.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
