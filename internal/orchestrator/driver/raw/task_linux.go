package raw

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"rockpool/internal/orchestrator/driver"
)

type task struct {
	driver  *Driver
	cfg     driver.TaskConfig
	dir     string
	process *process
	output  *output
	done    chan struct{}

	mu         sync.Mutex
	exit       driver.Exit // valid once done is closed
	closed     bool        // no execution may start
	executions map[*execution]bool
}

// watch waits for the end of a task's process in the background.
func (d *Driver) watch(cfg driver.TaskConfig, c command, p *process, out *output) *task {
	t := &task{driver: d, cfg: cfg, dir: workDir(c.dir, cfg), process: p, output: out, done: make(chan struct{}), executions: map[*execution]bool{}}
	d.mu.Lock()
	d.tasks[cfg.ID] = t
	d.mu.Unlock()
	out.read(cfg, &d.goroutines)
	d.goroutines.Go(func() {
		status, err := p.wait()
		if errors.Is(err, os.ErrClosed) {
			return // let go
		}
		_ = p.handle.Close()
		out.lastWords()
		t.killExecutions()
		exit := driver.Exit{Err: err}
		if err == nil {
			exit.ExitCode, exit.Signal = outcome(status)
		}
		t.mu.Lock()
		t.exit = exit
		t.mu.Unlock()
		close(t.done)
	})
	return t
}

func outcome(s syscall.WaitStatus) (code, signal int) {
	if s.Signaled() {
		return 128 + int(s.Signal()), int(s.Signal())
	}
	return s.ExitStatus(), 0
}

func (t *task) Done() <-chan struct{} { return t.done }

func (t *task) Exit() driver.Exit {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.exit
}

func (t *task) Files() driver.Files { return nil }

func (t *task) ended() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

// Signal signals the task's process group.
func (t *task) Signal(_ context.Context, n int) error {
	if t.ended() {
		return driver.ErrTaskGone
	}
	if err := syscall.Kill(-t.process.pid, syscall.Signal(n)); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal process group: %w", err)
	}
	return nil
}

// Stop asks with a signal, and kills after the timeout.
func (t *task) Stop(ctx context.Context, signal int, timeout time.Duration) error {
	if signal == 0 {
		signal = int(syscall.SIGTERM)
	}
	t.killExecutions()
	_ = t.Signal(ctx, signal)
	if driver.EndsWithin(ctx, t, timeout) {
		return nil
	}
	t.kill()
	<-t.done
	return nil
}

func (t *task) kill() {
	t.killExecutions()
	_ = t.Signal(context.Background(), int(syscall.SIGKILL))
}

func (t *task) killExecutions() {
	t.mu.Lock()
	t.closed = true
	running := make([]*execution, 0, len(t.executions))
	for e := range t.executions {
		running = append(running, e)
	}
	t.mu.Unlock()
	for _, e := range running {
		e.cutOff()
	}
}

func (t *task) detach() {
	t.killExecutions()
	t.output.close()
	_ = t.process.handle.Close()
}

// Usage is that of the main process.
// Usage is that of the task's process group and those of its executions.
func (t *task) Usage(context.Context) (driver.Usage, error) {
	if t.ended() {
		return driver.Usage{}, driver.ErrTaskGone
	}
	groups := map[int]bool{t.process.pid: true}
	t.mu.Lock()
	for e := range t.executions {
		groups[e.cmd.Process.Pid] = true
	}
	t.mu.Unlock()
	u := usageOf(groups)
	if u.PIDs == 0 {
		return driver.Usage{}, driver.ErrTaskGone
	}
	return u, nil
}

func workDir(dir string, cfg driver.TaskConfig) string {
	if filepath.IsAbs(dir) {
		return dir
	}
	return filepath.Join(cfg.StateDir, dir)
}

// environ is an environment for a process: what every program expects, then the given ones, the later ones winning.
func environ(env map[string]string, more []string) []string {
	all := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "LANG=C.UTF-8"}
	for k, v := range env {
		all = append(all, k+"="+v)
	}
	return append(all, more...)
}

// become makes a process run as another user.
func become(attr *syscall.SysProcAttr, name string) error {
	if name == "" {
		return nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return fmt.Errorf("run as %s: %w", name, err)
	}
	uid, uerr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gerr := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(uerr, gerr); err != nil {
		return fmt.Errorf("run as %s: %w", name, err)
	}
	if int(uid) != os.Geteuid() {
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	return nil
}
