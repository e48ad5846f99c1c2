package sandboxed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/sandbox"
	"rockpool/pkg/nullio"
)

// destroyTimeout bounds clean-up that nobody's deadline covers.
const destroyTimeout = 30 * time.Second

// drainTimeout bounds how long the output of a command that has ended is waited for.
const drainTimeout = 2 * time.Second

// What is meant for bash runs in sh where an image has only that, as Alpine's.
const (
	bash = "/bin/bash"
	sh   = "/bin/sh"
)

type task struct {
	cfg      driver.TaskConfig
	env      []string // of executions: the task's own, without what describes the placement
	sandbox  Sandbox
	release  func()    // of the image; a task that was taken back has none: its sandbox itself keeps the image
	main     Execution // nil when the command only waits
	accounts accounts
	warmUp   *warmUp        // nil = none
	warmTook time.Duration  // the first, while the task started; 0 = it is not known
	warmers  sync.WaitGroup // of interpreters to come
	done     chan struct{}
	letGo    chan struct{}
	once     sync.Once // letGo

	mu       sync.Mutex
	stopping bool
	over     bool // no interpreter is to wait any more
	begun    int  // executions, where there is a warm-up
	others   bool // one of them was another user's, who may write what the warm-up's user may not
	signal   int  // that the task was stopped with
	exit     driver.Exit
}

func newTask(cfg driver.TaskConfig, s Sandbox) *task {
	t := &task{cfg: cfg, sandbox: s, release: func() {}, done: make(chan struct{}), letGo: make(chan struct{})}
	for k, v := range cfg.Env {
		if !strings.HasPrefix(k, "NOMAD_") {
			t.env = append(t.env, k+"="+v)
		}
	}
	slices.Sort(t.env)
	return t
}

// startMain runs the task's command with the whole environment of the placement.
func (t *task) startMain(ctx context.Context, argv []string) (err error) {
	if len(argv) == 0 {
		return nil
	}
	env := t.accounts.environment(ctx, t.sandbox.Files(), t.cfg.Task.User)
	for k, v := range t.cfg.Env {
		env = append(env, k+"="+v)
	}
	t.main, err = t.sandbox.Exec(ctx, sandbox.ExecSpec{ID: mainID, Argv: argv, Env: env, User: t.cfg.Task.User, Keep: true})
	return err
}

// watch waits for the end of the command, or of the sandbox.
func (t *task) watch() {
	var ended <-chan struct{}
	var draining sync.WaitGroup
	defer draining.Wait()
	defer t.endWarming()
	drained := make(chan struct{})
	if t.main != nil {
		ended = t.main.Done()
		_ = t.main.Stdin().Close()
		draining.Go(func() {
			defer close(drained)
			drain(t.cfg.Stdout, t.main.Stdout(), t.cfg.Stderr, t.main.Stderr())
		})
	}
	var exit driver.Exit
	select {
	case <-ended:
		exit = t.mainExit()
		lastWords(drained)
	case <-t.sandbox.Done():
		exit = t.sandboxExit()
	case <-t.letGo:
		if k, ok := t.main.(Keeper); ok {
			k.LetGo()
		} else if t.main != nil {
			_ = t.main.Kill() // or its output would be waited for
		}
		return
	}
	t.mu.Lock()
	t.exit = exit
	t.mu.Unlock()
	close(t.done)
}

// lastWords waits until all is read that the command has written. What it left behind may hold its streams open: they are not waited for.
func lastWords(drained <-chan struct{}) {
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
	}
}

// drain carries both streams of a command to where they are wanted, to their ends.
func drain(toOut io.Writer, out io.Reader, toErr io.Writer, errs io.Reader) {
	var both sync.WaitGroup
	for _, s := range []struct {
		to   io.Writer
		from io.Reader
	}{{toOut, out}, {toErr, errs}} {
		if s.from == nil {
			continue
		}
		if s.to == nil {
			s.to = nullio.Discard{}
		}
		both.Go(func() {
			if w, ok := s.from.(io.WriterTo); ok { // it may have a way by which nothing is lost when this process is killed
				_, _ = w.WriteTo(s.to)
				return
			}
			_, _ = io.CopyBuffer(plain{s.to}, s.from, make([]byte, 16<<10))
		})
	}
	both.Wait()
}

// plain hides all that a writer can do besides, so that the buffer of a copy is the given one.
type plain struct{ io.Writer }

func (t *task) mainExit() driver.Exit {
	r, err := t.main.Result()
	if err != nil {
		select {
		case <-t.sandbox.Done(): // its end says more
			return t.sandboxExit()
		default:
			return driver.Exit{Err: fmt.Errorf("command: %w", err)}
		}
	}
	return driver.Exit{ExitCode: r.ExitCode, Signal: r.Signal, OOMKilled: r.OOMKilled}
}

// sandboxExit says how a task ended whose sandbox did: as we told it to, for want of memory, or nobody knows how.
func (t *task) sandboxExit() driver.Exit {
	e := t.sandbox.Exit()
	t.mu.Lock()
	signal := t.signal
	t.mu.Unlock()
	switch {
	case e.OOMKilled:
		return driver.Exit{ExitCode: 128 + int(syscall.SIGKILL), Signal: int(syscall.SIGKILL), OOMKilled: true}
	case e.Removed:
		if signal == 0 {
			signal = int(syscall.SIGKILL)
		}
		return driver.Exit{ExitCode: 128 + signal, Signal: signal}
	}
	return driver.Exit{Err: errors.New("the sandbox ended by itself")}
}

func (t *task) Done() <-chan struct{} { return t.done }

func (t *task) Exit() driver.Exit {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.exit
}

// Stop signals the command, and destroys the sandbox once that has ended or the timeout is over. Where no command runs there
// is nobody to wait for.
func (t *task) Stop(ctx context.Context, signal int, timeout time.Duration) error {
	if signal == 0 {
		signal = int(syscall.SIGTERM)
	}
	t.end(signal)
	if t.main != nil && !t.ended() {
		if err := t.main.Signal(signal); err == nil {
			driver.EndsWithin(ctx, t, timeout)
		}
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyTimeout)
	defer cancel()
	return t.destroy(clean, signal)
}

// end takes no more executions and opens no more files. The first signal is the one that the task counts as ended by.
func (t *task) end(signal int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopping, t.signal = true, cmp.Or(t.signal, signal)
}

// gone says whether the task is being stopped, or has ended.
func (t *task) gone() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stopping || t.ended()
}

func (t *task) destroy(ctx context.Context, signal int) error {
	t.end(signal)
	if err := t.sandbox.Destroy(ctx); err != nil {
		return fmt.Errorf("destroy sandbox: %w", err)
	}
	t.release()
	select {
	case <-t.done:
	case <-t.letGo:
	case <-ctx.Done():
		return fmt.Errorf("destroy sandbox: %w", context.Cause(ctx))
	}
	return nil
}

func (t *task) detach() { t.once.Do(func() { close(t.letGo) }) }

func (t *task) ended() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

// Signal signals the command; where there is none, nobody takes notice.
func (t *task) Signal(_ context.Context, n int) error {
	switch {
	case t.ended():
		return driver.ErrTaskGone
	case t.main == nil:
		return nil
	}
	if err := t.main.Signal(n); err != nil {
		return fmt.Errorf("signal command: %w", err)
	}
	return nil
}

// Files is the view that the inside has.
func (t *task) Files() driver.Files { return driver.FilesUntil(t.gone, t.sandbox.Files()) }

func (t *task) Usage(context.Context) (driver.Usage, error) {
	u, err := t.sandbox.Usage()
	if err != nil {
		return driver.Usage{}, fmt.Errorf("usage of sandbox: %w", err)
	}
	return driver.Usage{MemoryBytes: u.MemoryBytes, PeakMemory: u.PeakMemory, CPUTime: u.CPUTime, PIDs: u.PIDs}, nil
}

// Exec runs a program inside. The environment is, the later winning: what the image gives, the user's home and name, the
// task's own variables, and those of the execution.
func (t *task) Exec(ctx context.Context, spec driver.ExecSpec) (driver.Execution, error) {
	if t.gone() {
		return nil, driver.ErrTaskGone
	}
	if len(spec.Argv) == 0 {
		return nil, fmt.Errorf("empty command: %w", driver.ErrNoCommand)
	}
	env := slices.Concat(t.accounts.environment(ctx, t.sandbox.Files(), spec.User), t.env, spec.Env)
	inside := sandbox.ExecSpec{ID: spec.ID, Argv: spec.Argv, Env: env, Dir: spec.Dir, User: spec.User, TTY: spec.TTY,
		Width: spec.Width, Height: spec.Height, MergeStderr: spec.TTY && !spec.SplitStderr,
		TimeLimit: spec.TimeLimit, CPULimit: spec.CPULimit, OutputLimit: spec.OutputLimit, Grace: spec.Grace, Background: spec.Background}
	e, err := t.sandbox.Exec(ctx, inside)
	if errors.Is(err, driver.ErrNoCommand) && spec.Argv[0] == bash {
		inside.Argv = append([]string{sh}, spec.Argv[1:]...)
		if again, shErr := t.sandbox.Exec(ctx, inside); shErr == nil {
			e, err = again, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("exec %s: %w", spec.Argv[0], err)
	}
	t.warmAgain(e, spec.User)
	return execution{e, t.warmUp != nil}, nil
}

// execution translates results.
type execution struct {
	inner Execution
	warm  bool // its task is kept warm
}

func (e execution) Stdin() io.WriteCloser    { return e.inner.Stdin() }
func (e execution) Stdout() io.Reader        { return e.inner.Stdout() }
func (e execution) Stderr() io.Reader        { return e.inner.Stderr() }
func (e execution) Resize(w, h uint16) error { return e.inner.Resize(w, h) }
func (e execution) Signal(n int) error       { return e.inner.Signal(n) }
func (e execution) Kill() error              { return e.inner.Kill() }
func (e execution) Done() <-chan struct{}    { return e.inner.Done() }

func (e execution) Result() (driver.ExecResult, error) {
	r, err := e.inner.Result()
	if err != nil {
		return driver.ExecResult{}, err
	}
	return driver.ExecResult{Verdict: string(r.Verdict), ExitCode: r.ExitCode, Signal: r.Signal, OOMKilled: r.OOMKilled, CPUTime: r.CPUTime,
		WallTime: r.WallTime, PeakMemory: r.PeakMemory, OutputBytes: r.OutputBytes, Warm: r.Warm, Cold: e.warm && !r.Warm}, nil
}
