package docker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"rockpool/internal/orchestrator/driver"
)

// absence is how long an engine may be away before the fate of its containers counts as not known.
const absence = time.Minute

type task struct {
	driver    *Driver
	cfg       driver.TaskConfig
	config    *config
	id        string // of the container
	startedAt string
	placement []string // names of variables that executions do not see
	inside    *inside  // the container's processes; nil = they are not on this machine
	files     driver.Files
	output    *output       // of the main process; nil = nobody wants it
	starting  chan struct{} // holds one: executions start one after the other, see inside.admit
	done      chan struct{}

	mu         sync.Mutex
	stopping   bool
	signal     int // that the task was stopped with
	exit       driver.Exit
	executions map[*execution]bool
}

// task makes the view of a container that runs, or has ended just now.
func (d *Driver) task(c *config, cfg driver.TaskConfig, r container.InspectResponse) (*task, error) {
	t := &task{driver: d, cfg: cfg, config: c, id: r.ID, startedAt: r.State.StartedAt, starting: make(chan struct{}, 1), done: make(chan struct{}), executions: map[*execution]bool{}}
	for k := range cfg.Env {
		if strings.HasPrefix(k, "NOMAD_") {
			t.placement = append(t.placement, k)
		}
	}
	slices.Sort(t.placement)
	if !r.State.Running || r.State.Pid == 0 {
		return t, nil
	}
	var err error
	if t.inside, err = enter(r.State.Pid, r.ID, r.HostnamePath); err != nil {
		if !errors.Is(err, errElsewhere) {
			return nil, err
		}
		d.cfg.Log.WithField("task_id", cfg.ID).WithError(err).Info("the container's processes cannot be reached: its executions cannot be signalled, and killing one ends the task")
		return t, nil
	}
	if d.cfg.Files != nil && t.inside.idBase >= 0 {
		var ofImage string
		if r.Config != nil {
			ofImage = r.Config.WorkingDir
		}
		t.files = driver.FilesUntil(t.gone, d.cfg.Files(t.inside.root, uint32(t.inside.idBase), cmp.Or(c.workDir, ofImage, "/")))
	}
	return t, nil
}

// watch waits for the container's end.
func (t *task) watch() {
	exit, ok := t.wait(t.driver.life)
	if t.inside != nil {
		defer t.inside.close()
	}
	defer t.output.close()
	if !ok {
		return // let go
	}
	t.output.lastWords()
	t.cutOff()
	t.mu.Lock()
	t.exit = exit
	t.mu.Unlock()
	close(t.done)
}

// wait asks the engine to tell the end. While the engine is away the container may run on; one that has ended and runs again is another one.
func (t *task) wait(ctx context.Context) (exit driver.Exit, ok bool) {
	var away time.Time
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		w := t.driver.api.ContainerWait(ctx, t.id, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
		select {
		case r := <-w.Result:
			if r.Error == nil {
				return t.ended(ctx, int(r.StatusCode)), true
			}
		case <-w.Error:
		}
		if ctx.Err() != nil {
			return driver.Exit{}, false
		}
		r, err := t.inspect(ctx)
		switch {
		case cerrdefs.IsNotFound(err):
			return t.removed(), true
		case err == nil && r.State.StartedAt != t.startedAt:
			return driver.Exit{Err: errors.New("somebody else has started the container again")}, true
		case err == nil && !r.State.Running:
			return t.ended(ctx, r.State.ExitCode), true
		case err == nil:
			away = time.Time{}
		case away.IsZero():
			away = time.Now()
		case time.Since(away) > absence:
			return driver.Exit{Err: fmt.Errorf("the fate of the container is not known: %w", t.driver.explain(err, "look at container"))}, true
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return driver.Exit{}, false
		}
	}
}

func (t *task) inspect(ctx context.Context) (container.InspectResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	r, err := t.driver.api.ContainerInspect(ctx, t.id, client.ContainerInspectOptions{})
	return r.Container, err
}

// ended says how the container ended. The engine tells a signal as 128 and its number, which a program may also return: it is a
// signal only where it is the one that was sent, or the kernel's for want of memory.
func (t *task) ended(ctx context.Context, code int) driver.Exit {
	exit := driver.Exit{ExitCode: code}
	if r, err := t.inspect(ctx); err == nil {
		if exit.OOMKilled = r.State.OOMKilled; r.State.Error != "" {
			exit.Err = errors.New(r.State.Error)
		}
	}
	if code == 126 || code == 127 { // how a shell and the container's init say it, the latter into a log that nobody keeps
		t.cfg.Emit(fmt.Sprintf("exit code %d: does image %s have the command %q?", code, t.config.image, append(t.config.entrypoint, command(t.config)...)))
	}
	t.mu.Lock()
	sent := t.signal
	t.mu.Unlock()
	switch killed := 128 + int(syscall.SIGKILL); {
	case sent != 0 && code == 128+sent:
		exit.Signal = sent
	case code == killed && (sent != 0 || exit.OOMKilled):
		exit.Signal = int(syscall.SIGKILL)
	}
	return exit
}

// removed is the exit of a container that is not there any more.
func (t *task) removed() driver.Exit {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.signal == 0 {
		return driver.Exit{Err: errors.New("somebody else has removed the container")}
	}
	return driver.Exit{ExitCode: 128 + t.signal, Signal: t.signal}
}

func (t *task) Done() <-chan struct{} { return t.done }

func (t *task) Exit() driver.Exit {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.exit
}

func (t *task) Files() driver.Files { return t.files }

// gone says whether the task is being stopped, or has ended.
func (t *task) gone() bool {
	select {
	case <-t.done:
		return true
	default:
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stopping
}

// Stop asks the command by a signal, and removes the container once that has ended or the timeout is over.
func (t *task) Stop(ctx context.Context, signal int, timeout time.Duration) error {
	signal = cmp.Or(signal, int(syscall.SIGTERM))
	t.end(signal)
	if t.Signal(ctx, signal) == nil {
		driver.EndsWithin(ctx, t, timeout)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	return t.destroy(ctx)
}

// end takes no more executions. The first signal is the one that the task counts as ended by.
func (t *task) end(signal int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopping, t.signal = true, cmp.Or(t.signal, signal)
}

// destroy removes the container with all that runs in it.
func (t *task) destroy(ctx context.Context) error {
	t.end(int(syscall.SIGKILL))
	t.cutOff()
	if err := t.driver.remove(ctx, t.id); err != nil {
		return err
	}
	select {
	case <-t.done:
		return nil
	case <-t.driver.life.Done(): // nobody watches any more
		return nil
	case <-ctx.Done():
		return fmt.Errorf("see the end of the container: %w", context.Cause(ctx))
	}
}

// abandon removes the container because a program in it must end and cannot be reached.
func (t *task) abandon() error {
	t.end(int(syscall.SIGKILL))
	t.cfg.Emit("The container is removed: a program in it had to end, and its processes cannot be reached")
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	return t.driver.remove(ctx, t.id)
}

// cutOff ends all executions.
func (t *task) cutOff() {
	t.mu.Lock()
	t.stopping = true
	running := make([]*execution, 0, len(t.executions))
	for e := range t.executions {
		running = append(running, e)
	}
	t.mu.Unlock()
	for _, e := range running {
		e.cutOff()
	}
}

// Signal signals the command, through the container's init.
func (t *task) Signal(ctx context.Context, n int) error {
	select {
	case <-t.done:
		return driver.ErrTaskGone
	default:
	}
	_, err := t.driver.api.ContainerKill(ctx, t.id, client.ContainerKillOptions{Signal: strconv.Itoa(n)})
	if cerrdefs.IsNotFound(err) || cerrdefs.IsConflict(err) {
		return driver.ErrTaskGone
	}
	return t.driver.explain(err, "signal container")
}

// Usage is one sample of the engine's own accounting.
func (t *task) Usage(ctx context.Context) (driver.Usage, error) {
	r, err := t.driver.api.ContainerStats(ctx, t.id, client.ContainerStatsOptions{})
	if err != nil {
		return driver.Usage{}, t.driver.explain(err, "usage of container")
	}
	defer r.Body.Close()
	var s container.StatsResponse
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
		return driver.Usage{}, t.driver.explain(err, "usage of container")
	}
	memory := int64(s.MemoryStats.Usage)
	for _, cache := range []string{"total_inactive_file", "inactive_file"} { // v1, v2: what docker stats leaves out
		if n, ok := s.MemoryStats.Stats[cache]; ok && int64(n) < memory {
			memory -= int64(n)
			break
		}
	}
	return driver.Usage{MemoryBytes: memory, PeakMemory: int64(s.MemoryStats.MaxUsage), CPUTime: time.Duration(s.CPUStats.CPUUsage.TotalUsage), PIDs: int64(s.PidsStats.Current)}, nil
}
