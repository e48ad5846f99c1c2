package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/driver"
)

// ID is the node's id.
func (a *Agent) ID() string { return a.identity.ID }

// Fences is the containment table of the node.
func (a *Agent) Fences() []driver.Fence {
	return driver.Fences(slices.Values(a.cfg.Drivers), a.cfg.Networks)
}

// Task finds a running task. One that an earlier process of the agent started is waited for until it was taken back, or ctx ends.
func (a *Agent) Task(ctx context.Context, allocID, task string) (driver.Task, error) {
	_, handle, err := a.running(ctx, allocID, task)
	return handle, err
}

func (a *Agent) running(ctx context.Context, allocID, task string) (*taskRunner, driver.Task, error) {
	r, err := a.runner(allocID)
	if err != nil {
		return nil, nil, err
	}
	t := r.tasks[task]
	if t == nil {
		return nil, nil, notRunning(task, nil)
	}
	select {
	case <-t.found.done():
	case <-r.quiet:
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("wait for task %q to be taken back: %w", task, context.Cause(ctx))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.handle == nil {
		return nil, nil, notRunning(task, nil)
	}
	return t, t.handle, nil
}

func notRunning(task string, cause error) error {
	return &fault.Error{Kind: fault.NotFound, Public: fmt.Sprintf("task %q is not running.", task), Cause: cause}
}

// Exec runs a program inside a task. A spec without an id is a plain exec: it sees the variables that describe the placement, which the
// others do not. The execution outlives ctx; who asked for it kills it.
func (a *Agent) Exec(ctx context.Context, allocID, task string, spec driver.ExecSpec) (driver.Execution, error) {
	t, handle, err := a.running(ctx, allocID, task)
	if err != nil {
		return nil, err
	}
	switch {
	case spec.ID == "":
		spec.ID = ident.New()
		spec.Env = slices.Concat(t.placement(), spec.Env)
	case !ident.ValidName(spec.ID):
		return nil, fault.New(fault.Invalid, "the id of an execution is 1 to 64 letters, digits and hyphens")
	}
	k := execKey{allocID, task, spec.ID}
	if err := a.executions.reserve(k, time.Now()); err != nil {
		return nil, err
	}
	e, err := handle.Exec(ctx, spec)
	if err != nil {
		a.executions.release(k)
		if errors.Is(err, driver.ErrTaskGone) {
			return nil, notRunning(task, err)
		}
		return nil, fmt.Errorf("exec in task %q: %w", task, err)
	}
	a.executions.running(k, e)
	if !a.goroutines.Go(func() {
		<-e.Done()
		result, err := e.Result()
		a.executions.end(k, result, err, time.Now())
	}) {
		_ = e.Kill()
		a.executions.release(k)
		return nil, fault.New(fault.Unavailable, "the node is stopping")
	}
	return e, nil
}

// placement is the placement's part of the task's environment, as KEY=VALUE.
func (t *taskRunner) placement() []string {
	t.alloc.mu.Lock()
	defer t.alloc.mu.Unlock()
	env := make([]string, 0, len(t.nomad))
	for k, v := range t.nomad {
		env = append(env, k+"="+v)
	}
	slices.Sort(env)
	return env
}

// Execution answers what is known of an execution: ExecRunning, ExecExited with its result, or ExecLost.
func (a *Agent) Execution(allocID, task, id string) (state string, res driver.ExecResult, err error) {
	r, err := a.executions.get(execKey{allocID, task, id}, time.Now())
	return r.state, r.result, err
}

// SignalExecution signals an execution's main process; one that has ended takes no notice.
func (a *Agent) SignalExecution(allocID, task, id string, signal int) error {
	return a.onExecution(allocID, task, id, func(e driver.Execution) error { return e.Signal(signal) })
}

// KillExecution kills all of an execution; one that has ended takes no notice.
func (a *Agent) KillExecution(allocID, task, id string) error {
	return a.onExecution(allocID, task, id, driver.Execution.Kill)
}

func (a *Agent) onExecution(allocID, task, id string, f func(driver.Execution) error) error {
	r, err := a.executions.get(execKey{allocID, task, id}, time.Now())
	switch {
	case err != nil:
		return err
	case r.state != ExecRunning:
		return nil
	case r.execution == nil:
		return fault.New(fault.Unavailable, "execution %q is still starting", id)
	}
	if err := f(r.execution); err != nil {
		return fmt.Errorf("signal execution %s: %w", id, err)
	}
	return nil
}

// RestartTask ends a task's processes and starts it again, without counting against its restart policy; an empty name means
// all tasks of the allocation that run. It returns once the old processes are gone.
func (a *Agent) RestartTask(ctx context.Context, allocID, task string) error {
	names := []string{task}
	if task == "" {
		var err error
		if names, err = a.runningTasks(allocID); err != nil {
			return err
		}
	}
	if len(names) == 0 {
		return fault.New(fault.NotFound, "no task of the allocation is running.")
	}
	for _, name := range names {
		if err := a.restartOne(ctx, allocID, name); err != nil {
			return err
		}
	}
	return nil
}

func (a *Agent) restartOne(ctx context.Context, allocID, task string) error {
	t, handle, err := a.running(ctx, allocID, task)
	if err != nil {
		return err
	}
	answer := make(chan struct{})
	select {
	case t.restart <- answer:
	case <-handle.Done():
		return notRunning(task, nil)
	case <-t.alloc.quiet:
		return notRunning(task, nil)
	case <-ctx.Done():
		return fmt.Errorf("restart task %q: %w", task, context.Cause(ctx))
	}
	select {
	case <-answer:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("restart task %q: %w", task, context.Cause(ctx))
	}
}

func (a *Agent) runningTasks(allocID string) (names []string, err error) {
	r, err := a.runner(allocID)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, t := range r.tasks {
		if t.handle != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
