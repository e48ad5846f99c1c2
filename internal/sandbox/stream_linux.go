//go:build linux && cgo

package sandbox

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// output is the node's end of a pipe or terminal that a program writes to. The poller of the Go runtime serves it, so a
// silent program costs nothing; nothing is read ahead, so a program cannot fill the node's memory.
type output struct {
	terminal bool

	mu    sync.Mutex // one Read at a time
	file  *os.File
	ended bool
	left  int // bytes still to deliver after the end

	over sync.Once
}

func newOutput(f *os.File, terminal bool) *output {
	return &output{file: f, terminal: terminal}
}

// end is called when the execution has ended. A reader that waits is woken, takes what the kernel still holds, and
// is done: another process that was given the other side cannot delay or lengthen that.
func (o *output) end() {
	o.over.Do(func() { _ = o.file.SetReadDeadline(time.Unix(1, 0)) })
}

func (o *output) close() {
	o.end()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended, o.left = true, 0
	_ = o.file.Close()
}

// terminalRest bounds what a terminal can still hold when its program has ended: the kernel's buffers are smaller.
const terminalRest = 256 << 10

func (o *output) Read(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	if !o.ended {
		n, err := o.file.Read(p)
		if n > 0 || err == nil {
			return n, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, o.finish(err)
		}
		o.ended, o.left = true, o.held()
	}
	return o.drain(p)
}

// finish turns what ends a stream into io.EOF: a terminal without writers reads as EIO.
func (o *output) finish(err error) error {
	o.ended, o.left = true, 0
	_ = o.file.Close()
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.EIO) || errors.Is(err, os.ErrClosed) {
		return io.EOF
	}
	return err
}

// held is how many bytes wait in the kernel.
func (o *output) held() int {
	if o.terminal {
		return terminalRest
	}
	n := 0
	if raw, err := o.file.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	return n
}

// drain reads without waiting; the poller refuses to read after its deadline.
func (o *output) drain(p []byte) (int, error) {
	n, err := 0, error(io.EOF)
	if o.left > 0 {
		raw, connErr := o.file.SyscallConn()
		if connErr != nil {
			return 0, o.finish(io.EOF)
		}
		_ = raw.Control(func(fd uintptr) {
			for err = syscall.EINTR; errors.Is(err, syscall.EINTR); {
				n, err = unix.Read(int(fd), p[:min(len(p), o.left)])
			}
		})
	}
	if n > 0 {
		o.left -= n
		return n, nil
	}
	if err == nil || errors.Is(err, syscall.EAGAIN) {
		err = io.EOF
	}
	return 0, o.finish(err)
}

// stdin is the node's end of what a program reads. On a terminal it is shared with output, which closes it.
type stdin struct {
	file     *os.File
	terminal bool

	mu     sync.Mutex // guards closed; a Write in progress is ended by closing the file
	closed bool
}

func newStdin(f *os.File, terminal bool) *stdin { return &stdin{file: f, terminal: terminal} }

// Write waits while the program does not read; there is no buffer but the kernel's.
func (s *stdin) Write(p []byte) (int, error) {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return 0, os.ErrClosed
	}
	n, err := s.file.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = os.ErrClosed
	}
	return n, err
}

// Close ends the input of a pipe. On a terminal it only stops accepting: an end-of-file character is the client's to type.
func (s *stdin) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.terminal {
		return nil
	}
	return s.file.Close()
}

// shut is Close at the end of the execution: a writer that still waits is woken.
func (s *stdin) shut() error {
	if s.terminal {
		_ = s.file.SetWriteDeadline(time.Unix(1, 0))
	}
	return s.Close()
}
