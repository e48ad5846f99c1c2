// Package mock is a driver without processes, for tests of everything above drivers. A task is an entry in memory that
// ends when its configuration says so; an execution is one of a few scripted programs (see [Programs]).
//
// The Driver value plays the machine: tasks stay in it when an agent lets go of them, and a second agent that is given the
// same value recovers them. All of it works in a testing/synctest bubble.
package mock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"
	"time"

	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
)

// Name is what jobs call the driver.
const Name = "mock"

// Driver starts mock tasks.
type Driver struct {
	programs sync.WaitGroup

	mu      sync.Mutex
	tasks   map[string]*task
	started []string       // ids of the tasks started last
	errors  map[string]int // start errors already given, by allocation and task
	active  int            // starts in progress
	peak    int            // most starts in progress at a time
}

// New makes a driver that has no tasks.
func New() *Driver {
	return &Driver{tasks: map[string]*task{}, errors: map[string]int{}}
}

func (d *Driver) Name() string { return Name }

// Fingerprint says that the driver works.
func (d *Driver) Fingerprint(context.Context) model.DriverInfo {
	return model.DriverInfo{Detected: true, Healthy: true, HealthDescription: "Healthy"}
}

// Bare says that a task is nothing but an entry in memory.
func (d *Driver) Bare() bool { return true }

// Validate checks the configuration.
func (d *Driver) Validate(t *model.Task) error {
	_, err := parse(t.Config)
	return err
}

// Start makes a task.
func (d *Driver) Start(ctx context.Context, cfg driver.TaskConfig) (driver.Task, error) {
	s, err := parse(cfg.Task.Config)
	if err != nil {
		return nil, err
	}
	d.begin()
	defer d.end()
	if s.startDelay > 0 {
		t := time.NewTimer(s.startDelay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("start mock task: %w", context.Cause(ctx))
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	key := cfg.AllocID + "/" + cfg.Task.Name
	if s.startError != "" && (s.startErrors == 0 || d.errors[key] < s.startErrors) {
		d.failed(key)
		return nil, errors.New(s.startError)
	}
	if d.tasks[cfg.ID] != nil {
		return nil, fmt.Errorf("task id %s was used before", cfg.ID)
	}
	t := newTask(d, cfg, s, d.exitCode(s, key))
	say(cfg, s)
	d.tasks[cfg.ID] = t
	if d.started = append(d.started, cfg.ID); len(d.started) >= 2*maxRemembered {
		d.started = slices.Clone(d.started[len(d.started)-maxRemembered:])
	}
	return t, nil
}

// maxRemembered bounds what is remembered of tasks that are gone: a driver may start millions.
const maxRemembered = 10_000

// failed counts a failure of a task. Where very many have failed, the driver forgets them all. The caller holds mu.
func (d *Driver) failed(key string) {
	if len(d.errors) >= maxRemembered && d.errors[key] == 0 {
		clear(d.errors)
	}
	d.errors[key]++
}

// say writes what the task's program would. It is so little that it is written before the start ends.
func say(cfg driver.TaskConfig, s script) {
	if cfg.Stdout != nil && s.stdout != "" {
		_, _ = io.WriteString(cfg.Stdout, s.stdout)
	}
	if cfg.Stderr != nil && s.stderr != "" {
		_, _ = io.WriteString(cfg.Stderr, s.stderr)
	}
}

// exitCode is 0 from the second time on where the task fails once.
func (d *Driver) exitCode(s script, key string) int {
	if s.failOnce {
		if d.errors[key] > 0 {
			return 0
		}
		d.failed(key)
	}
	return s.exitCode
}

func (d *Driver) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active++
	d.peak = max(d.peak, d.active)
}

func (d *Driver) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active--
}

// Recover finds a task that is still running.
func (d *Driver) Recover(_ context.Context, cfg driver.TaskConfig) (driver.Task, error) {
	d.mu.Lock()
	t := d.tasks[cfg.ID]
	d.mu.Unlock()
	if t == nil {
		return nil, fmt.Errorf("recover %s: %w", cfg.ID, driver.ErrTaskGone)
	}
	if t.script.recoverError != "" {
		return nil, errors.New(t.script.recoverError)
	}
	return t, nil
}

// Cleanup ends a task and forgets it.
func (d *Driver) Cleanup(_ context.Context, id string) error {
	d.mu.Lock()
	t := d.tasks[id]
	delete(d.tasks, id)
	d.mu.Unlock()
	if t != nil {
		t.finish(driver.Exit{ExitCode: 128 + int(syscall.SIGKILL), Signal: int(syscall.SIGKILL)})
	}
	return nil
}

// Sweep forgets all tasks but those to keep.
func (d *Driver) Sweep(ctx context.Context, keep []string) error {
	for _, id := range d.Tasks() {
		if !slices.Contains(keep, id) {
			_ = d.Cleanup(ctx, id)
		}
	}
	return nil
}

// Detach kills the executions and leaves the tasks.
func (d *Driver) Detach(context.Context) error {
	d.mu.Lock()
	var running []*task
	for _, t := range d.tasks {
		running = append(running, t)
	}
	d.mu.Unlock()
	for _, t := range running {
		t.killExecutions()
	}
	d.programs.Wait()
	return nil
}

// Tasks lists the ids of all tasks that were not cleaned up, sorted.
func (d *Driver) Tasks() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	ids := make([]string, 0, len(d.tasks))
	for id := range d.tasks {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Started lists the ids of the tasks that were started, in order: at least the last 10,000.
func (d *Driver) Started() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.started)
}

// PeakStarts is how many starts were in progress at most at one time.
func (d *Driver) PeakStarts() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.peak
}

// End makes a task's main process end, as if by itself.
func (d *Driver) End(id string, exit driver.Exit) {
	d.mu.Lock()
	t := d.tasks[id]
	d.mu.Unlock()
	if t != nil {
		t.finish(exit)
	}
}

// Lose makes a task vanish without a trace, as a crash of the machine does.
func (d *Driver) Lose(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.tasks, id)
}
