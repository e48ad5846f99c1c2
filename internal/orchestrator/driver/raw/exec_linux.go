package raw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"

	"rockpool/internal/orchestrator/driver"
)

// execution is a process group beside the task's own.
type execution struct {
	cmd            *exec.Cmd
	stdin          io.WriteCloser
	stdout, stderr io.Reader
	terminal       *os.File // nil without one
	begun          time.Time
	done           chan struct{}

	mu     sync.Mutex
	cut    bool // the task's end took it along
	ended  bool // its process id may mean another process
	result driver.ExecResult
	err    error
}

// Exec starts a program beside the task's process.
func (t *task) Exec(ctx context.Context, spec driver.ExecSpec) (driver.Execution, error) {
	if len(spec.Argv) == 0 {
		return nil, fmt.Errorf("empty command: %w", driver.ErrNoCommand)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("exec: %w", context.Cause(ctx))
	}
	e := &execution{cmd: exec.Command(spec.Argv[0], spec.Argv[1:]...), begun: time.Now(), done: make(chan struct{})}
	if e.cmd.Err != nil {
		return nil, fmt.Errorf("%s: %w", spec.Argv[0], driver.ErrNoCommand)
	}
	own := maps.Clone(t.cfg.Env)
	maps.DeleteFunc(own, func(k, _ string) bool { return strings.HasPrefix(k, "NOMAD_") })
	e.cmd.Env = environ(own, spec.Env)
	e.cmd.Dir = spec.Dir
	if spec.Dir == "" {
		e.cmd.Dir = t.dir
	}
	if info, err := os.Stat(e.cmd.Dir); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("exec: working directory %s: %w", e.cmd.Dir, driver.ErrNotFound)
	}
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: spec.TTY, Setctty: spec.TTY, Setpgid: !spec.TTY}
	if err := become(e.cmd.SysProcAttr, spec.User); err != nil {
		return nil, err
	}
	theirs, err := e.streams(spec)
	if err == nil {
		err = t.launch(e)
	}
	closeAll(theirs)
	if err != nil {
		e.closeOurs()
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.ENOEXEC) {
			err = fmt.Errorf("%s: %w", spec.Argv[0], driver.ErrNoCommand)
		}
		return nil, err
	}
	return e, nil
}

// launch starts the process unless the task has ended.
func (t *task) launch(e *execution) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return driver.ErrTaskGone
	}
	if err := e.cmd.Start(); err != nil {
		return err
	}
	t.executions[e] = true
	t.driver.goroutines.Go(func() {
		e.wait()
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.executions, e)
	})
	return nil
}

// streams ties up the process's standard streams and returns its ends of them.
func (e *execution) streams(spec driver.ExecSpec) (theirs []*os.File, err error) {
	pipe := func() (r, w *os.File) {
		if err == nil {
			r, w, err = os.Pipe()
		}
		return r, w
	}
	if spec.TTY {
		ours, tty, err := pty.Open()
		if err != nil {
			return nil, fmt.Errorf("open terminal: %w", err)
		}
		theirs = append(theirs, tty)
		e.terminal, e.stdin, e.stdout = ours, &ttyInput{ours}, &stream{file: ours}
		e.cmd.Stdin, e.cmd.Stdout, e.cmd.Stderr = tty, tty, tty
		if spec.Width > 0 || spec.Height > 0 {
			if err := e.Resize(spec.Width, spec.Height); err != nil {
				return theirs, err
			}
		}
	} else {
		inR, inW := pipe()
		outR, outW := pipe()
		theirs = append(theirs, inR, outW)
		e.stdin, e.stdout = inW, &stream{file: outR}
		e.cmd.Stdin, e.cmd.Stdout = inR, outW
	}
	if !spec.TTY || spec.SplitStderr {
		errR, errW := pipe()
		theirs = append(theirs, errW)
		e.stderr, e.cmd.Stderr = &stream{file: errR}, errW
	}
	if err != nil {
		return theirs, fmt.Errorf("make pipes: %w", err)
	}
	return theirs, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // closing nil is harmless
	}
}

func (e *execution) closeOurs() {
	if e.terminal != nil {
		_ = e.terminal.Close()
	}
	for _, s := range []any{e.stdin, e.stdout, e.stderr} {
		if c, ok := s.(io.Closer); ok {
			_ = c.Close()
		}
	}
}

// wait makes the outcome known. What the program left running in its group is killed, or its streams would stay open.
func (e *execution) wait() {
	if p, err := attach(e.cmd.Process.Pid); err == nil {
		_ = p.ended()
		_ = p.handle.Close()
	}
	_ = syscall.Kill(-e.cmd.Process.Pid, syscall.SIGKILL)
	e.mu.Lock()
	e.ended = true
	e.mu.Unlock()
	err := e.cmd.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	state := e.cmd.ProcessState
	switch {
	case e.cut:
		e.err = fmt.Errorf("execution was cut off: %w", driver.ErrTaskGone)
	case state == nil:
		e.err = fmt.Errorf("wait for execution: %w", err)
	default:
		e.result = driver.ExecResult{CPUTime: state.UserTime() + state.SystemTime(), WallTime: time.Since(e.begun)}
		if status, ok := state.Sys().(syscall.WaitStatus); ok {
			e.result.ExitCode, e.result.Signal = outcome(status)
		}
		if usage, ok := state.SysUsage().(*syscall.Rusage); ok {
			e.result.PeakMemory = usage.Maxrss << 10
		}
	}
	if e.terminal == nil {
		_ = e.stdin.Close()
	}
	close(e.done)
}

func (e *execution) Stdin() io.WriteCloser { return e.stdin }
func (e *execution) Stdout() io.Reader     { return e.stdout }
func (e *execution) Stderr() io.Reader     { return e.stderr }
func (e *execution) Done() <-chan struct{} { return e.done }

func (e *execution) Resize(w, h uint16) error {
	if e.terminal == nil {
		return driver.ErrNotSupported
	}
	if err := pty.Setsize(e.terminal, &pty.Winsize{Cols: w, Rows: h}); err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}

// Signal signals the main process.
func (e *execution) Signal(n int) error { return e.send(e.cmd.Process.Pid, n) }

// Kill kills the process group.
func (e *execution) Kill() error { return e.send(-e.cmd.Process.Pid, int(syscall.SIGKILL)) }

func (e *execution) send(pid, n int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return nil
	}
	if err := syscall.Kill(pid, syscall.Signal(n)); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal execution: %w", err)
	}
	return nil
}

// cutOff kills the execution because its task ends.
func (e *execution) cutOff() {
	e.mu.Lock()
	e.cut = e.cut || !e.ended
	e.mu.Unlock()
	_ = e.Kill()
}

func (e *execution) Result() (driver.ExecResult, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.result, e.err
}

// stream is our end of an output. It closes itself at its end.
type stream struct{ file *os.File }

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.file.Read(p)
	if err != nil {
		_ = s.file.Close()
		if errors.Is(err, syscall.EIO) || errors.Is(err, os.ErrClosed) { // how a terminal says that nobody is left
			err = io.EOF
		}
	}
	return n, err
}

func (s *stream) Close() error { return s.file.Close() }

// ttyInput is the keyboard of a terminal: its end is a character.
type ttyInput struct{ terminal *os.File }

func (t *ttyInput) Write(p []byte) (int, error) { return t.terminal.Write(p) }

func (t *ttyInput) Close() error {
	_, err := t.terminal.Write([]byte{0x04})
	return err
}
