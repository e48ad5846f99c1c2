//go:build linux && cgo

package oci

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"rockpool/internal/sandbox"
)

// Execution is one running program of a sandbox, as [sandbox.Execution] is.
type Execution struct {
	sandbox  *Sandbox
	spec     sandbox.ExecSpec
	status   *os.File // what the program inside says
	commands *os.File // what it is told; its end is the end of the execution
	stdin    *input
	stdout   *output
	stderr   *output // nil when merged
	started  time.Time
	oomKills int64 // in the sandbox, when it began

	mu        sync.Mutex
	verdict   sandbox.Verdict // of whoever asked for the end; "" = nobody did
	abandoned bool            // the runtime is closing
	over      bool            // the main process has ended
	written   int64           // bytes that may be read
	cut       bool            // there were more
	timers    []*time.Timer

	done   chan struct{}
	result sandbox.Result // written before done is closed
	err    error          // likewise
}

// ID is the id of the ExecSpec.
func (e *Execution) ID() string { return e.spec.ID }

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
func (e *Execution) Result() (sandbox.Result, error) {
	select {
	case <-e.done:
		return e.result, e.err
	default:
		return sandbox.Result{}, errors.New("execution is still running")
	}
}

// Resize sets the size of the terminal's window.
func (e *Execution) Resize(width, height uint16) error {
	if !e.spec.TTY {
		return fmt.Errorf("%w resize: the execution has no terminal", sandbox.ErrInvalid)
	}
	return e.tell(commandResize, uint32(width), uint32(height))
}

// Signal sends a signal to the main process.
func (e *Execution) Signal(n int) error {
	if n < 1 || n > 64 {
		return fmt.Errorf("%w signal %d", sandbox.ErrInvalid, n)
	}
	return e.tell(commandSignal, uint32(n), 0)
}

// Kill ends everything of the execution. Done follows.
func (e *Execution) Kill() error { return e.end(sandbox.VerdictKilled, 0) }

// tell says one thing to the program inside.
func (e *Execution) tell(kind, first, second uint32) error {
	e.mu.Lock()
	over := e.over
	e.mu.Unlock()
	if over && kind != commandKill { // what is left of a terminal's output can still be given up
		return os.ErrProcessDone
	}
	_, err := e.commands.Write(command(kind, first, second))
	if errors.Is(err, os.ErrClosed) || errors.Is(err, syscall.EPIPE) {
		return os.ErrProcessDone
	}
	return err
}

// end ends the execution for a reason, of which the first counts: with QUIT to the main process, and KILL for all after the
// grace, or KILL at once.
func (e *Execution) end(why sandbox.Verdict, grace time.Duration) error {
	e.mu.Lock()
	if e.verdict == "" && !e.over {
		e.verdict = why
	}
	if grace > 0 && !e.over {
		e.timers = append(e.timers, time.AfterFunc(grace, func() { _ = e.tell(commandKill, 0, 0) }))
	}
	e.mu.Unlock()
	err := error(nil)
	if grace > 0 {
		err = e.tell(commandSignal, uint32(syscall.SIGQUIT), 0)
	} else {
		err = e.tell(commandKill, 0, 0)
	}
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// count bounds the output: what is beyond the limit is not handed on.
func (e *Execution) count(n int) int {
	e.mu.Lock()
	allowed := n
	if limit := e.spec.OutputLimit; limit > 0 {
		allowed = int(min(int64(n), limit-e.written))
	}
	e.written += int64(allowed)
	e.cut = e.cut || allowed < n
	e.mu.Unlock()
	if allowed < n {
		_ = e.end(sandbox.VerdictOutput, e.spec.Grace)
	}
	return allowed
}

// follow waits for the end in a goroutine of the runtime.
func (e *Execution) follow(call *invocation) error {
	r := e.sandbox.runtime
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		_ = e.commands.Close()
		r.wg.Go(func() { _ = call.wait() })
		return fs.ErrClosed
	}
	if limit := e.spec.TimeLimit; limit > 0 {
		e.mu.Lock()
		e.timers = append(e.timers, time.AfterFunc(limit, func() { _ = e.end(sandbox.VerdictTime, e.spec.Grace) }))
		e.mu.Unlock()
	}
	r.wg.Go(func() { e.await(call) })
	return nil
}

// await takes reports until the program inside has ended, which it does when nothing of the execution is left.
func (e *Execution) await(call *invocation) {
	var last report
	var wall time.Duration
	for {
		next, err := e.next()
		if err != nil {
			break
		}
		switch next.kind {
		case reportCPULimit:
			_ = e.end(sandbox.VerdictCPU, e.spec.Grace)
		case reportExited:
			last, wall = next, time.Since(e.started)
			e.mu.Lock()
			e.over = true
			e.mu.Unlock()
		}
	}
	_ = call.wait() // the runtime stays for as long as the program inside, its child, and reaps it: a container cannot end before that
	e.mu.Lock()
	e.over = true
	verdict, abandoned := e.verdict, e.abandoned
	for _, t := range e.timers {
		t.Stop()
	}
	e.mu.Unlock()
	e.endStreams() // what is still in them counts, too
	switch {
	case abandoned:
		e.err = fmt.Errorf("%w: the runtime was closed", sandbox.ErrLost)
	case last.kind != reportExited:
		e.result, e.err = e.cutOff()
	default:
		e.result = e.judge(last, verdict)
		e.result.WallTime = wall
	}
	e.release()
	e.sandbox.dismiss(e)
	close(e.done)
}

// judge makes a result of what the kernel said of the main process.
func (e *Execution) judge(last report, asked sandbox.Verdict) sandbox.Result {
	e.mu.Lock()
	r, cut := sandbox.Result{CPUTime: last.cpu, PeakMemory: last.peak, OutputBytes: e.written}, e.cut
	e.mu.Unlock()
	status := syscall.WaitStatus(last.value)
	r.Verdict, r.ExitCode = sandbox.VerdictExit, status.ExitStatus()
	if status.Signaled() {
		r.Verdict, r.Signal = sandbox.VerdictSignal, int(status.Signal())
		r.ExitCode = 128 + r.Signal
	}
	switch {
	case asked != "":
		r.Verdict = asked
	case cut: // it ended by itself, but left more than it may write
		r.Verdict = sandbox.VerdictOutput
	case e.spec.CPULimit > 0 && r.CPUTime >= e.spec.CPULimit: // between two looks
		r.Verdict = sandbox.VerdictCPU
	case r.Signal == int(syscall.SIGKILL) && e.sandbox.groups.Counters().OOMKills > e.oomKills:
		// The kernel counts for the sandbox. A program that was killed by nobody else while it counted one more is the one.
		r.Verdict, r.OOMKilled = sandbox.VerdictMemory, true
	}
	return r
}

// cutOff judges an execution of which nothing was heard any more: its sandbox ended for want of memory, or nobody knows.
func (e *Execution) cutOff() (sandbox.Result, error) {
	patience := time.NewTimer(5 * time.Second)
	defer patience.Stop()
	select {
	case <-e.sandbox.done: // its end and that of the pipe come in no order
	case <-patience.C:
		return sandbox.Result{ExitCode: -1}, fmt.Errorf("%w: its parent inside has ended", sandbox.ErrLost)
	}
	if e.sandbox.exit.OOMKilled {
		return sandbox.Result{Verdict: sandbox.VerdictMemory, ExitCode: 128 + int(syscall.SIGKILL), Signal: int(syscall.SIGKILL), OOMKilled: true,
			WallTime: time.Since(e.started)}, nil
	}
	return sandbox.Result{ExitCode: -1}, fmt.Errorf("%w: the sandbox ended", sandbox.ErrLost)
}

// endStreams lets the readers take what the kernel still holds, and no more.
func (e *Execution) endStreams() {
	for _, o := range []*output{e.stdout, e.stderr} {
		if o != nil {
			o.end()
		}
	}
}

// release gives back the node's ends.
func (e *Execution) release() {
	e.endStreams()
	if e.stdin != nil {
		_ = e.stdin.Close()
	}
	for _, f := range []*os.File{e.status, e.commands} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// abandon lets go of the execution because the runtime closes. What runs ends with the pipe.
func (e *Execution) abandon() {
	e.mu.Lock()
	e.abandoned = true
	e.mu.Unlock()
	_ = e.commands.Close()
}
