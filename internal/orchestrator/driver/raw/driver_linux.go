package raw

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
)

// Driver starts plain processes.
type Driver struct {
	cfg        Config
	goroutines sync.WaitGroup // watchers of tasks and executions

	mu    sync.Mutex
	tasks map[string]*task
}

// New makes a driver.
func New(cfg Config) *Driver {
	if cfg.Enabled {
		unignore()
	}
	return &Driver{cfg: cfg, tasks: map[string]*task{}}
}

// unignore keeps tasks from being deaf to signals that this process was started to ignore, as under nohup: what is ignored stays so in a program that is
// started, what is caught does not. Those that are caught here are dropped, so that for this process nothing changes.
func unignore() {
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} { // which the Go runtime leaves ignored
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
}

// Fingerprint says whether the driver is enabled.
func (d *Driver) Fingerprint(context.Context) model.DriverInfo {
	if !d.cfg.Enabled {
		return disabled()
	}
	return model.DriverInfo{Detected: true, Healthy: true, HealthDescription: "Healthy"}
}

// record is what is kept of a process to find it again.
type record struct {
	Task  string
	PID   int
	Start uint64 // in clock ticks since the machine's start
}

func (d *Driver) path(taskID string) string {
	return filepath.Join(d.cfg.Dir, url.PathEscape(taskID)+".json")
}

// Start starts the task's process.
func (d *Driver) Start(ctx context.Context, cfg driver.TaskConfig) (driver.Task, error) {
	if err := d.Validate(cfg.Task); err != nil {
		return nil, err
	}
	if len(cfg.Mounts) > 0 {
		return nil, fault.New(fault.Unsupported, "driver %s: a plain process sees the node's own files, and no volumes: use their paths", Name)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("start process: %w", context.Cause(ctx))
	}
	c, err := parse(cfg.Task.Config)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{d.cfg.Dir, cfg.StateDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("start process: %w", err)
		}
	}
	cmd := exec.Command(c.argv[0], c.argv[1:]...)
	cmd.Dir = workDir(c.dir, cfg)
	cmd.Env = environ(cfg.Env, nil)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := become(cmd.SysProcAttr, cfg.Task.User); err != nil {
		return nil, err
	}
	out, err := d.openOutput(cfg, true)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = out.stdio(0), out.stdio(1)
	if err := cmd.Start(); err != nil {
		out.close()
		return nil, errors.Join(fmt.Errorf("start process: %w", err), d.removeOutput(cfg.ID))
	}
	p, err := attach(cmd.Process.Pid)
	if err == nil {
		err = d.keep(record{Task: cfg.ID, PID: p.pid, Start: p.start})
	}
	if err != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		out.close()
		return nil, errors.Join(fmt.Errorf("start process: %w", err), d.removeOutput(cfg.ID))
	}
	_ = cmd.Process.Release() // it is waited for by p
	return d.watch(cfg, c, p, out), nil
}

func (d *Driver) keep(r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(d.path(r.Task), b, 0o600)
}

// find opens the process of a record, if it still runs.
func (d *Driver) find(taskID string) (*process, error) {
	b, err := os.ReadFile(d.path(taskID))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", driver.ErrTaskGone, err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	p, err := attach(r.PID)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", driver.ErrTaskGone, err)
	}
	if p.start != r.Start || p.zombie {
		_ = p.handle.Close()
		return nil, fmt.Errorf("%w: process %d has ended", driver.ErrTaskGone, r.PID)
	}
	return p, nil
}

// Recover takes back a process that still runs.
func (d *Driver) Recover(_ context.Context, cfg driver.TaskConfig) (driver.Task, error) {
	c, err := parse(cfg.Task.Config)
	if err != nil {
		return nil, err
	}
	p, err := d.find(cfg.ID)
	if err != nil {
		return nil, fmt.Errorf("recover %s: %w", cfg.ID, err)
	}
	out, err := d.openOutput(cfg, false)
	if err != nil {
		_ = p.handle.Close()
		return nil, fmt.Errorf("recover %s: %w", cfg.ID, err)
	}
	return d.watch(cfg, c, p, out), nil
}

// Cleanup kills the task's process group.
func (d *Driver) Cleanup(ctx context.Context, taskID string) error {
	d.mu.Lock()
	t := d.tasks[taskID]
	delete(d.tasks, taskID)
	d.mu.Unlock()
	if t != nil {
		t.kill()
		select {
		case <-t.done:
		case <-ctx.Done():
			return fmt.Errorf("kill process group: %w", context.Cause(ctx))
		}
		t.output.close() // what has left the group may hold it open
	} else if p, err := d.find(taskID); err == nil {
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
		_, err := p.wait()
		_ = p.handle.Close()
		if err != nil && !errors.Is(err, errNotOurs) {
			return fmt.Errorf("kill process group: %w", err)
		}
	}
	if err := d.removeOutput(taskID); err != nil {
		return err
	}
	if err := os.Remove(d.path(taskID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove process record: %w", err)
	}
	return nil
}

// Sweep kills all recorded processes but those to keep.
func (d *Driver) Sweep(ctx context.Context, keep []string) error {
	entries, err := os.ReadDir(d.cfg.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("sweep processes: %w", err)
	}
	var errs []error
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		id, err := url.PathUnescape(name)
		if ok && err == nil && !slices.Contains(keep, id) {
			errs = append(errs, d.Cleanup(ctx, id))
		}
	}
	return errors.Join(errs...)
}

// Detach lets go of all processes and kills the executions.
func (d *Driver) Detach(context.Context) error {
	d.mu.Lock()
	tasks := d.tasks
	d.tasks = map[string]*task{}
	d.mu.Unlock()
	for _, t := range tasks {
		t.detach()
	}
	d.goroutines.Wait()
	return nil
}
