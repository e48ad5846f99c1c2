package mock

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"rockpool/internal/orchestrator/driver"
	"rockpool/pkg/nullio"
)

// Process is what a mock program sees.
type Process struct {
	Args           []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Killed         <-chan struct{}
	Size           func() (width, height uint16)
}

// Programs are what executions can run, by the name in Argv[0]. They return their exit code.
var Programs = map[string]func(p *Process) int{
	"cat": func(p *Process) int {
		if _, err := io.Copy(p.Stdout, p.Stdin); err != nil {
			return 1
		}
		return 0
	},
	"echo": func(p *Process) int {
		fmt.Fprintln(p.Stdout, strings.Join(p.Args[1:], " "))
		return 0
	},
	// both OUT ERR: one word on each stream.
	"both": func(p *Process) int {
		fmt.Fprint(p.Stdout, p.Args[1])
		fmt.Fprint(p.Stderr, p.Args[2])
		return 0
	},
	"exit": func(p *Process) int {
		n, _ := strconv.Atoi(p.Args[1])
		return n
	},
	"sleep": func(p *Process) int {
		d, err := time.ParseDuration(p.Args[1])
		if err != nil {
			return 2
		}
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-p.Killed:
		}
		return 0
	},
	// size: the terminal's rows and columns, once a line was read.
	"size": func(p *Process) int {
		_, _ = bufio.NewReader(p.Stdin).ReadString('\n')
		w, h := p.Size()
		fmt.Fprintf(p.Stdout, "%d %d\n", h, w)
		return 0
	},
}

type execution struct {
	spec           driver.ExecSpec
	process        Process
	stdin          *nullio.Stdin
	stdout, stderr *nullio.Stdin // as bounded pipes; stderr is nil when merged
	begun          time.Time
	killed         context.CancelFunc
	done           chan struct{}

	mu            sync.Mutex
	width, height uint16
	result        driver.ExecResult
	err           error
	ended         bool
}

func newExecution(spec driver.ExecSpec) *execution {
	e := &execution{spec: spec, stdin: nullio.NewStdin(0), stdout: nullio.NewStdin(0), begun: time.Now(),
		done: make(chan struct{}), width: spec.Width, height: spec.Height}
	ctx, cancel := context.WithCancel(context.Background())
	e.killed = cancel
	e.process = Process{Args: spec.Argv, Stdin: e.stdin, Stdout: e.stdout, Stderr: e.stdout, Killed: ctx.Done(), Size: e.size}
	if !spec.TTY || spec.SplitStderr {
		e.stderr = nullio.NewStdin(0)
		e.process.Stderr = e.stderr
	}
	return e
}

// end makes the execution's outcome known; only the first call counts.
func (e *execution) end(r driver.ExecResult, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return
	}
	e.ended = true
	r.WallTime = time.Since(e.begun)
	e.result, e.err = r, err
	e.killed()
	e.stdin.CloseWithError(io.ErrClosedPipe)
	_ = e.stdout.Close()
	if e.stderr != nil {
		_ = e.stderr.Close()
	}
	close(e.done)
}

func (e *execution) size() (uint16, uint16) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.width, e.height
}

func (e *execution) Stdin() io.WriteCloser { return e.stdin }
func (e *execution) Stdout() io.Reader     { return e.stdout }
func (e *execution) Done() <-chan struct{} { return e.done }

func (e *execution) Stderr() io.Reader {
	if e.stderr == nil {
		return nil
	}
	return e.stderr
}

func (e *execution) Resize(w, h uint16) error {
	if !e.spec.TTY {
		return driver.ErrNotSupported
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.width, e.height = w, h
	return nil
}

func (e *execution) Signal(n int) error {
	e.end(driver.ExecResult{ExitCode: 128 + n, Signal: n}, nil)
	return nil
}

func (e *execution) Kill() error { return e.Signal(int(syscall.SIGKILL)) }

func (e *execution) Result() (driver.ExecResult, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.result, e.err
}
