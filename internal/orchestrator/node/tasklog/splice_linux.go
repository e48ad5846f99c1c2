package tasklog

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Splice moves up to limit bytes from a pipe to the log within one system call: a process that is killed has either both taken them out of the pipe and
// kept them, or neither. It does not wait for bytes: EAGAIN says that there are none yet, 0 without an error that none will come. After any other error
// they are still in the pipe, to be read and written.
func (w *Writer) Splice(pipe, limit int) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, os.ErrClosed
	}
	if err := w.ready(); err != nil {
		return 0, err
	}
	raw, err := w.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int64
	controlErr := raw.Control(func(file uintptr) {
		for {
			at := w.size
			n, err = unix.Splice(pipe, nil, int(file), &at, int(min(int64(limit), w.limits.FileBytes-w.size)), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	if err = errors.Join(controlErr, err); err != nil {
		return 0, err
	}
	w.size += n
	return int(n), nil
}
