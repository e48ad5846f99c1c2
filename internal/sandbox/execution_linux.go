//go:build linux && cgo

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rockpool/internal/timeline"
)

// Execution is one running program of a sandbox.
//
// Done closes when the program has ended and everything left in its control group was killed. Stdout and Stderr then
// deliver what was written before and end, even if something outside the group still holds the other side. They must be
// read: a program whose output nobody takes waits, as it would in any shell.
type Execution struct {
	sandbox    *Sandbox
	id         string
	group      group
	before     counters // of the group, from executions that had it earlier
	connection connection
	pidfd      *os.File // of the main process
	terminal   *os.File // nil without a TTY
	peer       *os.File // the program's side of it, held until the end
	stdin      *stdin
	stdout     *output
	stderr     *output // nil when merged
	bounds     bounds
	warm       bool   // it took over an interpreter that waited
	kept       bool   // it goes on when the node's process ends
	meter      *meter // of stdout and stderr together
	started    time.Time
	abandoned  atomic.Bool             // the runtime is closing: the execution goes on without us
	cause      atomic.Pointer[Verdict] // why the node wanted its end; nil while it does not; &settled when it can want it no more

	call *timeline.Span // that asked for it; nil = it is not recorded
	lap  timeline.Laps  // of call, from the program's execution on

	over chan struct{} // closed when the main process has ended, or nobody knows any more

	done   chan struct{}
	result Result // written before done is closed
	err    error  // likewise
}

// ID is the id of the ExecSpec.
func (e *Execution) ID() string { return e.id }

// Stdin is the program's standard input. Closing a pipe ends the input; closing a terminal writes nothing.
func (e *Execution) Stdin() io.WriteCloser { return e.stdin }

// Stdout is the program's output, or that of its terminal.
func (e *Execution) Stdout() io.Reader { return e.stdout }

// Stderr is nil when it was merged into Stdout.
func (e *Execution) Stderr() io.Reader {
	if e.stderr == nil {
		return nil
	}
	return e.stderr
}

// Done is closed when nothing of the execution runs any more.
func (e *Execution) Done() <-chan struct{} { return e.done }

// Result is how it ended; it is valid when Done is closed. A lost outcome is an error, never a success.
func (e *Execution) Result() (Result, error) {
	select {
	case <-e.done:
		return e.result, e.err
	default:
		return Result{}, errors.New("execution is still running")
	}
}

// Resize sets the size of the terminal's window.
func (e *Execution) Resize(width, height uint16) error {
	if e.terminal == nil {
		return fmt.Errorf("%w resize: the execution has no terminal", ErrInvalid)
	}
	raw, err := e.terminal.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	})
	return errors.Join(controlErr, err)
}

// Signal sends a signal to the main process.
func (e *Execution) Signal(n int) error {
	if n < 1 || n > 64 {
		return fmt.Errorf("%w signal %d", ErrInvalid, n)
	}
	raw, err := e.pidfd.SyscallConn()
	if err != nil {
		return os.ErrProcessDone
	}
	controlErr := raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), syscall.Signal(n), nil, 0) })
	if controlErr != nil || errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// Kill ends the whole control group of the execution. Done follows.
func (e *Execution) Kill() error {
	select {
	case <-e.done:
		return nil
	default:
	}
	if !e.blame(VerdictKilled) {
		return nil
	}
	return e.killGroup()
}

func (e *Execution) killGroup() error {
	if err := e.group.killOnce(); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// follow waits for the end in a goroutine of the runtime.
func (e *Execution) follow() error {
	r := e.sandbox.runtime
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return fs.ErrClosed
	}
	r.wg.Go(e.await)
	if e.bounds.any() {
		r.wg.Go(e.enforce)
	}
	return nil
}

func (e *Execution) await() {
	last, fds, err := e.connection.receive()
	wall := time.Since(e.started)
	e.lap.Done(timeline.ExecProgram)
	close(e.over)
	closeNumbers(fds)
	e.connection.close()
	if e.abandoned.Load() {
		e.endStreams()
		e.end(Result{}, fmt.Errorf("%w: the runtime was closed", ErrLost))
		return
	}
	if err == nil && last.kind != kindExited {
		err = fmt.Errorf("%w: supervisor sent %d instead of an exit", ErrLost, last.kind)
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	// What a service left behind lives on; so does its group, until it is empty or the sandbox ends.
	stays := e.bounds.background && err == nil && e.settle()
	killed := false
	if !stays {
		var killErr error
		if killed, killErr = e.group.kill(ctx); killErr != nil {
			err = errors.Join(err, killErr)
		}
	}
	counted := e.group.spent()
	kernel := counted.since(e.before)
	e.endStreams()
	result := Result{OOMKilled: kernel.oomKills > 0, CPUTime: kernel.cpu, WallTime: wall, PeakMemory: kernel.peakMemory, Warm: e.warm}
	result.OutputBytes, _ = e.meter.read()
	if err != nil {
		result.ExitCode = -1
	} else {
		e.judge(syscall.WaitStatus(last.value), &result)
	}
	log := e.sandbox.runtime.logFor(e.sandbox.id).WithField("exec_id", e.id)
	if stays {
		if removeErr := e.sandbox.removeIdle(ctx); removeErr != nil {
			log.WithError(removeErr).Warn("the control group of a service that has ended is left")
		}
	} else if e.kept { // a later process of the node may still ask how it ended
	} else if err == nil && !killed && e.settle() && e.sandbox.putSpare(e.group, counted) { // the next execution has it
	} else if removeErr := e.group.remove(ctx); removeErr != nil {
		log.WithError(removeErr).Warn("control group of an execution is left")
	}
	e.lap.Done(timeline.ExecEnd)
	e.end(result, err)
}

// endStreams lets the readers take what the kernel still holds, and no more.
func (e *Execution) endStreams() {
	e.stdout.end()
	if e.stderr != nil {
		e.stderr.end()
	}
}

func (e *Execution) end(result Result, err error) {
	e.result, e.err = result, err
	if e.peer != nil {
		_ = e.peer.Close()
	}
	_ = e.stdin.shut()
	_ = e.pidfd.Close()
	e.sandbox.dismiss(e)
	close(e.done)
}

// LetGo ends the reading of a kept execution, which goes on: Done follows, with [ErrLost], and Resume takes it back.
func (e *Execution) LetGo() {
	if e.kept {
		e.abandon()
	}
}

// abandon lets go of the execution because the runtime closes.
func (e *Execution) abandon() {
	e.abandoned.Store(true)
	_ = e.connection.SetDeadline(time.Unix(1, 0))
}

// closeStreams gives back what a failed start has opened.
func (e *Execution) closeStreams() {
	if e.stdin != nil {
		_ = e.stdin.shut()
	}
	for _, o := range []*output{e.stdout, e.stderr} {
		if o != nil {
			o.close()
		}
	}
	for _, f := range []*os.File{e.pidfd, e.peer} {
		if f != nil {
			_ = f.Close()
		}
	}
}
