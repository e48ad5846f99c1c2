package mock

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"rockpool/internal/orchestrator/driver"
)

type task struct {
	driver *Driver
	cfg    driver.TaskConfig
	script script
	done   chan struct{}

	mu         sync.Mutex
	exit       driver.Exit // valid once done is closed
	timer      *time.Timer // ends the task by itself; nil = runs until it is stopped
	executions map[*execution]bool
	signals    []int
}

func newTask(d *Driver, cfg driver.TaskConfig, s script, exitCode int) *task {
	t := &task{driver: d, cfg: cfg, script: s, done: make(chan struct{}), executions: map[*execution]bool{}}
	if s.runFor > 0 {
		exit := driver.Exit{ExitCode: exitCode, Signal: s.exitSignal, OOMKilled: s.oomKilled}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.timer = time.AfterFunc(s.runFor, func() { t.finish(exit) })
	}
	return t
}

func (t *task) Done() <-chan struct{} { return t.done }

func (t *task) Exit() driver.Exit {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.exit
}

// finish ends the task; only the first call counts.
func (t *task) finish(exit driver.Exit) {
	t.mu.Lock()
	if t.over() {
		t.mu.Unlock()
		return
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	t.exit = exit
	close(t.done)
	t.mu.Unlock()
	t.killExecutions()
}

func (t *task) over() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

func (t *task) killExecutions() {
	t.mu.Lock()
	var running []*execution
	for e := range t.executions {
		running = append(running, e)
	}
	t.mu.Unlock()
	for _, e := range running {
		e.end(driver.ExecResult{}, fmt.Errorf("execution %s: %w", e.spec.ID, driver.ErrTaskGone))
	}
}

func (t *task) Stop(ctx context.Context, signal int, timeout time.Duration) error {
	if signal == 0 {
		signal = int(syscall.SIGTERM)
	}
	if err := t.Signal(ctx, signal); err != nil {
		return nil // it has ended already
	}
	if timer := time.NewTimer(timeout); t.script.ignoreSignals {
		defer timer.Stop()
		select {
		case <-t.done:
		case <-timer.C:
		case <-ctx.Done():
		}
		signal = int(syscall.SIGKILL)
	}
	t.finish(driver.Exit{ExitCode: 128 + signal, Signal: signal})
	return nil
}

func (t *task) Signal(_ context.Context, signal int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over() {
		return driver.ErrTaskGone
	}
	t.signals = append(t.signals, signal)
	return nil
}

func (t *task) Files() driver.Files { return nil }

func (t *task) Usage(context.Context) (driver.Usage, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over() {
		return driver.Usage{}, driver.ErrTaskGone
	}
	return driver.Usage{MemoryBytes: 1 << 20, PIDs: int64(1 + len(t.executions))}, nil
}

func (t *task) Exec(_ context.Context, spec driver.ExecSpec) (driver.Execution, error) {
	if len(spec.Argv) == 0 {
		return nil, driver.ErrNoCommand
	}
	program, ok := Programs[spec.Argv[0]]
	if !ok {
		return nil, fmt.Errorf("%s: %w", spec.Argv[0], driver.ErrNoCommand)
	}
	e := newExecution(spec)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over() {
		return nil, driver.ErrTaskGone
	}
	t.executions[e] = true
	t.driver.programs.Go(func() {
		code := program(&e.process)
		e.end(driver.ExecResult{ExitCode: code}, nil)
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.executions, e)
	})
	return e, nil
}
