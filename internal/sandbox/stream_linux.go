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

// meter counts what the streams of one execution deliver together, and grants no more than the limit.
type meter struct {
	limit int64         // bytes; 0 = none
	full  chan struct{} // closed when there was a byte beyond the limit

	mu   sync.Mutex
	used int64
	over bool
}

func newMeter(limit int64) *meter { return &meter{limit: limit, full: make(chan struct{})} }

// take grants as many of n bytes as the limit leaves.
func (m *meter) take(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	granted := n
	if m.limit > 0 {
		granted = int(min(int64(n), m.limit-m.used))
	}
	m.used += int64(granted)
	if granted < n && !m.over {
		m.over = true
		close(m.full)
	}
	return granted
}

// read is what was granted so far, and whether there was more.
func (m *meter) read() (used int64, over bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used, m.over
}

// output is the node's end of a pipe or terminal that a program writes to. The poller of the Go runtime serves it, so a
// silent program costs nothing; nothing is read ahead, so a program cannot fill the node's memory.
type output struct {
	terminal bool
	meter    *meter
	stop     chan struct{} // closed by end

	mu    sync.Mutex // one Read at a time
	file  *os.File
	ended bool
	left  int    // bytes of a pipe still to deliver after the end; they are counted already
	rest  []byte // the same of a terminal, whose kernel buffer does not tell its size

	once sync.Once // stop
}

func newOutput(f *os.File, terminal bool, m *meter) *output {
	return &output{file: f, terminal: terminal, meter: m, stop: make(chan struct{})}
}

// end is called when the execution has ended. A reader that waits is woken, takes what the kernel still holds, and
// is done: another process that was given the other side cannot delay or lengthen that.
func (o *output) end() {
	o.once.Do(func() {
		_ = o.file.SetReadDeadline(time.Unix(1, 0))
		close(o.stop)
	})
	o.mu.Lock()
	defer o.mu.Unlock()
	o.settle()
}

func (o *output) close() {
	o.end()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.left, o.rest = 0, nil
	_ = o.file.Close()
}

// terminalRest bounds what is taken of a terminal when its program has ended: the kernel's buffers are smaller.
const terminalRest = 256 << 10

func (o *output) Read(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	if !o.ended {
		n, err := o.file.Read(p)
		if n > 0 {
			if n = o.meter.take(n); n > 0 {
				return n, nil
			}
			// Beyond the limit nothing is read: the program waits for its end as it would for a slow reader.
			<-o.stop
			err = os.ErrDeadlineExceeded
		}
		if err == nil {
			return 0, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, o.finish(err)
		}
		o.settle()
	}
	return o.drain(p)
}

// Splicer takes bytes straight out of a pipe, at most limit at a time, and never waits for them: EAGAIN says that there are none yet. What it did not take
// stays in the pipe, whatever becomes of this process.
type Splicer interface {
	Splice(pipe, limit int) (int, error)
}

// WriteTo carries the whole output to w. A [Splicer] gets it without it ever being in this process's hands: a node that is killed in the middle has
// neither lost a byte nor will it carry one twice.
func (o *output) WriteTo(w io.Writer) (total int64, err error) {
	to, direct := w.(Splicer)
	direct = direct && !o.terminal && o.meter.limit == 0
	buffer := make([]byte, 16<<10)
	for {
		var n int
		if direct {
			if n, err = o.spliceTo(to); err == nil {
				total += int64(n)
				continue
			}
			if errors.Is(err, io.EOF) {
				return total, nil
			}
		}
		if n, err = o.Read(buffer); n > 0 { // also where the splicer has failed: its Write says what becomes of the bytes
			written, writeErr := w.Write(buffer[:n])
			total += int64(written)
			if writeErr != nil {
				return total, writeErr
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// spliceTo moves what there is, and waits until there is something.
func (o *output) spliceTo(w Splicer) (n int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	raw, err := o.file.SyscallConn()
	if err != nil {
		return 0, o.finish(err)
	}
	if !o.ended {
		waitErr := raw.Read(func(fd uintptr) bool {
			n, err = w.Splice(int(fd), spliceBytes)
			return !errors.Is(err, syscall.EAGAIN)
		})
		switch {
		case waitErr == nil && err == nil && n > 0:
			return o.meter.take(n), nil
		case waitErr == nil && err == nil:
			return 0, o.finish(io.EOF)
		case waitErr == nil:
			return 0, err
		case !errors.Is(waitErr, os.ErrDeadlineExceeded):
			return 0, o.finish(waitErr)
		}
		o.settle()
	}
	if o.left == 0 {
		return 0, o.finish(io.EOF)
	}
	if controlErr := raw.Control(func(fd uintptr) { n, err = w.Splice(int(fd), min(o.left, spliceBytes)) }); controlErr != nil || n == 0 && err == nil {
		return 0, o.finish(io.EOF)
	}
	o.left -= n
	return n, err
}

// spliceBytes is as much as a pipe holds.
const spliceBytes = 64 << 10

// finish turns what ends a stream into io.EOF: a terminal without writers reads as EIO.
func (o *output) finish(err error) error {
	o.ended, o.left, o.rest = true, 0, nil
	_ = o.file.Close()
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.EIO) || errors.Is(err, os.ErrClosed) {
		return io.EOF
	}
	return err
}

// settle decides, once, what is still delivered: what the kernel holds now, as far as the limit goes.
func (o *output) settle() {
	if o.ended {
		return
	}
	o.ended = true
	if o.terminal {
		part := make([]byte, 4096) // what the kernel gives at a time
		for len(o.rest) < terminalRest {
			got := o.now(part)
			if len(got) == 0 {
				break
			}
			o.rest = append(o.rest, got...)
		}
		o.rest = o.rest[:o.meter.take(len(o.rest))]
		return
	}
	held := 0
	if raw, err := o.file.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { held, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	o.left = o.meter.take(held)
}

// drain delivers what was settled.
func (o *output) drain(p []byte) (int, error) {
	if len(o.rest) > 0 {
		n := copy(p, o.rest)
		o.rest = o.rest[n:]
		return n, nil
	}
	if o.left > 0 {
		if n := len(o.now(p[:min(len(p), o.left)])); n > 0 {
			o.left -= n
			return n, nil
		}
	}
	return 0, o.finish(io.EOF)
}

// now fills p as far as that needs no waiting; the poller refuses to read after its deadline.
func (o *output) now(p []byte) []byte {
	got := 0
	raw, err := o.file.SyscallConn()
	if err != nil {
		return nil
	}
	_ = raw.Control(func(fd uintptr) {
		for got < len(p) {
			n, err := unix.Read(int(fd), p[got:])
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			if n <= 0 {
				return
			}
			got += n
		}
	})
	return p[:got]
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
