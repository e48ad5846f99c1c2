package docker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
)

// removeTimeout bounds clean-up that nobody's deadline covers.
const removeTimeout = 30 * time.Second

// Config is what the driver is made of.
type Config struct {
	Endpoint    string   // of the engine: unix:///run/docker.sock, tcp://host:2376 (with DOCKER_CERT_PATH and DOCKER_TLS_VERIFY)
	Node        string   // id of this node: containers of other nodes on the same engine are left alone
	Credentials string   // a Docker config file; "" = that of the user
	Networks    []string // of the engine, that tasks may have: the operator has seen to what is reached from there; empty = none
	CoreMHz     int      // clock of one core, to turn a task's CPU share into a hard limit; 0 = 1000
	// Files makes access to the files below a root, which stays the driver's. Root inside is idBase, and relative paths start at
	// workDir. nil = there is none.
	Files func(root *os.File, idBase uint32, workDir string) driver.Files
	Log   logging.Logger
}

// Driver runs tasks in containers of one engine.
type Driver struct {
	cfg        Config
	api        *client.Client
	life       context.Context //nolint:containedctx // that of watchers and pulls; Detach ends it
	letGo      context.CancelFunc
	goroutines sync.WaitGroup
	pulls      pulls

	mu          sync.Mutex
	tasks       map[string]*task // nil while it is being started
	engine      *engine          // as last asked
	diskRefused bool             // the engine has refused to bound a container's disk
	noInit      bool             // the engine has no init to give to containers
	unswept     []string         // what to keep of a sweep that the engine's absence put off; nil = none
}

// New makes a driver. The engine is not asked for anything yet: it may come later.
func New(cfg Config) (*Driver, error) {
	if cfg.CoreMHz <= 0 {
		cfg.CoreMHz = 1000
	}
	if cfg.Log == nil {
		cfg.Log = logging.Discard()
	}
	api, err := client.New(client.WithTLSClientConfigFromEnv(), client.WithHost(cfg.Endpoint))
	if err != nil {
		return nil, fmt.Errorf("orchestrator.dockerengine: %w: an endpoint such as unix:///run/docker.sock is wanted", err)
	}
	life, letGo := context.WithCancel(context.Background())
	return &Driver{cfg: cfg, api: api, life: life, letGo: letGo, tasks: map[string]*task{}, pulls: pulls{byID: map[string]*pull{}}}, nil
}

// Name is what a job's task says in its driver field.
func (*Driver) Name() string { return Name }

// OwnNetwork says that a container's network is the engine's: it cannot be put into a namespace that the node made.
func (*Driver) OwnNetwork() bool { return true }

// Rooted says that a task's paths begin at the root of its container.
func (d *Driver) Rooted() bool { return true }

// Validate checks a task's driver configuration.
func (*Driver) Validate(t *model.Task) error {
	_, err := parse(t.Config)
	return err
}

// containerName is as unique as the task's id, and fit for the engine.
func containerName(taskID string) string {
	sum := sha256.Sum256([]byte(taskID))
	return "rockpool-" + hex.EncodeToString(sum[:20])
}

// Start provides the image, makes the container and starts it.
func (d *Driver) Start(ctx context.Context, cfg driver.TaskConfig) (_ driver.Task, err error) {
	c, err := parse(cfg.Task.Config)
	if err != nil {
		return nil, err
	}
	if len(cfg.Resources.Devices) > 0 && len(cfg.Devices) == 0 {
		return nil, fault.New(fault.Unsupported, "driver %s: this node has no names for the devices that the task was given (see the Container Device Interface)", Name)
	}
	if err := d.offersRuntime(ctx, c.runtime); err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.tasks[cfg.ID] = nil
	d.mu.Unlock()
	defer func() {
		if err != nil {
			d.forget(cfg.ID)
		}
	}()
	if err := d.provide(ctx, c, cfg.Emit); err != nil {
		return nil, err
	}
	t, err := d.launch(ctx, c, cfg)
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		return nil, errors.Join(err, d.remove(clean, containerName(cfg.ID)))
	}
	return d.adopt(t), nil
}

// launch makes the container and starts it. What only the attempt shows about the engine is remembered, and tried once more without.
func (d *Driver) launch(ctx context.Context, c *config, cfg driver.TaskConfig) (*task, error) {
	for {
		e, err := d.known(ctx)
		if err != nil {
			return nil, err
		}
		options, err := d.container(c, cfg, e)
		if err != nil {
			return nil, err
		}
		made, err := d.api.ContainerCreate(ctx, options)
		var out *output
		if err == nil {
			if err := d.furnish(ctx, made.ID, cfg.Files); err != nil {
				return nil, err
			}
			if out, err = d.attach(ctx, cfg, made.ID); err != nil { // before the start: nothing is missed
				return nil, err
			}
			_, err = d.api.ContainerStart(ctx, made.ID, client.ContainerStartOptions{})
		}
		if err == nil {
			t, err := d.open(ctx, c, cfg)
			if err != nil {
				out.close()
				return nil, err
			}
			t.output = out
			return t, nil
		}
		out.close()
		switch {
		case !d.learn(err, options):
			return nil, d.explain(err, "start container")
		}
		if err := d.remove(ctx, options.Name); err != nil {
			return nil, err
		}
	}
}

// learn reports whether an error tells something about the engine that another attempt can do without.
func (d *Driver) learn(err error, tried client.ContainerCreateOptions) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch text := err.Error(); {
	case tried.HostConfig.StorageOpt != nil && strings.Contains(text, "storage-opt"):
		d.diskRefused = true
		if d.engine != nil {
			d.engine = &engine{d.engine.Info, false}
		}
	case tried.HostConfig.Init != nil && strings.Contains(text, "docker-init"):
		d.noInit = true
		d.cfg.Log.Warn("the Docker Engine has no docker-init: in its containers nobody reaps what a program leaves behind, until they end")
	default:
		return false
	}
	return true
}

func (d *Driver) offersRuntime(ctx context.Context, name string) error {
	e, err := d.known(ctx)
	if err != nil || name == "" || e.offers(name) {
		return err
	}
	if e, err = d.ask(ctx); err != nil || e.offers(name) { // it may be new
		return err
	}
	return fault.New(fault.Unsupported, "driver %s: config key %q: the engine has no runtime %q, only %s", Name, "runtime", name, e.runtimes())
}

// record is what is kept of a container beside the engine's own knowledge: a container that was started again by somebody else is
// not the one that was handed out.
type record struct{ ID, StartedAt string }

func recordPath(cfg driver.TaskConfig) string { return filepath.Join(cfg.StateDir, "container.json") }

// open looks at a container that was just started.
func (d *Driver) open(ctx context.Context, c *config, cfg driver.TaskConfig) (*task, error) {
	r, err := d.api.ContainerInspect(ctx, containerName(cfg.ID), client.ContainerInspectOptions{})
	if err != nil {
		return nil, d.explain(err, "look at container")
	}
	b, err := json.Marshal(record{r.Container.ID, r.Container.State.StartedAt})
	if err == nil {
		err = os.MkdirAll(cfg.StateDir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(recordPath(cfg), b, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("keep record of container: %w", err)
	}
	return d.task(c, cfg, r.Container)
}

// Recover takes back a container that has run ever since it was started. Its executions have lost their streams with the
// earlier agent: where they can be found, they are killed.
func (d *Driver) Recover(ctx context.Context, cfg driver.TaskConfig) (driver.Task, error) {
	c, err := parse(cfg.Task.Config)
	if err != nil {
		return nil, err
	}
	var was record
	b, err := os.ReadFile(recordPath(cfg))
	if err == nil {
		err = json.Unmarshal(b, &was)
	}
	if err != nil {
		return nil, fmt.Errorf("recover: %w: %w", driver.ErrTaskGone, err)
	}
	r, err := d.api.ContainerInspect(ctx, containerName(cfg.ID), client.ContainerInspectOptions{})
	switch {
	case cerrdefs.IsNotFound(err):
		return nil, fmt.Errorf("recover: %w: its container is gone", driver.ErrTaskGone)
	case err != nil:
		return nil, d.explain(err, "recover")
	case r.Container.ID != was.ID || r.Container.State.StartedAt != was.StartedAt || !r.Container.State.Running:
		return nil, fmt.Errorf("recover: %w: its container has ended since", driver.ErrTaskGone)
	}
	t, err := d.task(c, cfg, r.Container)
	if err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	if t.inside == nil && len(r.Container.ExecIDs) > 0 {
		return nil, fmt.Errorf("recover: %w: a program of an earlier agent still runs in it, and cannot be reached", driver.ErrTaskGone)
	}
	if t.output, err = d.attach(ctx, cfg, r.Container.ID); err != nil {
		d.cfg.Log.WithField("task_id", cfg.ID).WithError(err).Warn("the output of a container that was taken back is not kept")
	}
	return d.adopt(t), nil
}

func (d *Driver) adopt(t *task) driver.Task {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tasks[t.cfg.ID] = t
	d.goroutines.Go(t.watch)
	return t
}

func (d *Driver) forget(taskID string) *task {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.tasks[taskID]
	delete(d.tasks, taskID)
	return t
}

// Cleanup removes the task's container with its anonymous volumes.
func (d *Driver) Cleanup(ctx context.Context, taskID string) error {
	if t := d.forget(taskID); t != nil {
		return t.destroy(ctx)
	}
	return d.remove(ctx, containerName(taskID))
}

// remove kills and removes a container; one that is not there is no error.
func (d *Driver) remove(ctx context.Context, name string) error {
	pause := 10 * time.Millisecond
	for {
		_, err := d.api.ContainerRemove(ctx, name, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		switch {
		case err == nil || cerrdefs.IsNotFound(err):
			return nil
		case !cerrdefs.IsConflict(err): // a conflict is a removal that is under way
			return d.explain(err, "remove container")
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, time.Second)
		case <-ctx.Done():
			return d.explain(errors.Join(context.Cause(ctx), err), "remove container")
		}
	}
}

// Sweep removes all containers of this node but those of the tasks to keep. While the engine is away it is put off until it is back.
func (d *Driver) Sweep(ctx context.Context, keep []string) error {
	err := d.sweep(ctx, keep, false)
	if fault.Is(err, fault.Unavailable) {
		d.mu.Lock()
		d.unswept = append([]string{}, keep...)
		d.mu.Unlock()
	}
	return err
}

// sweepLate makes up for a sweep that was put off.
func (d *Driver) sweepLate(ctx context.Context) error {
	d.mu.Lock()
	keep := d.unswept
	d.mu.Unlock()
	if keep == nil {
		return nil
	}
	err := d.sweep(ctx, keep, true)
	if err == nil {
		d.mu.Lock()
		d.unswept = nil
		d.mu.Unlock()
	}
	return err
}

// sweep finds the containers first, so that one that is being made meanwhile is known as a task, which a late sweep spares.
func (d *Driver) sweep(ctx context.Context, keep []string, late bool) error {
	found, err := d.api.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("label", labelNode+"="+d.cfg.Node)})
	if err != nil {
		return d.explain(err, "find containers")
	}
	kept := map[string]bool{}
	for _, id := range keep {
		kept[id] = true
	}
	d.mu.Lock()
	for id := range d.tasks {
		kept[id] = kept[id] || late
	}
	d.mu.Unlock()
	var wg sync.WaitGroup
	turn := make(chan struct{}, 8)
	errs := make([]error, len(found.Items))
	for i, c := range found.Items {
		if kept[c.Labels[labelTask]] {
			continue
		}
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			errs[i] = d.remove(ctx, c.ID)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Detach stops watching the containers, which live on. Executions end.
func (d *Driver) Detach(ctx context.Context) error {
	d.mu.Lock()
	tasks := d.tasks
	d.tasks = map[string]*task{}
	d.mu.Unlock()
	for _, t := range tasks {
		if t != nil {
			t.cutOff()
		}
	}
	d.letGo()
	done := make(chan struct{})
	var waiter sync.WaitGroup
	waiter.Go(func() { d.goroutines.Wait(); close(done) })
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("let go of containers: %w", context.Cause(ctx))
	}
	return d.api.Close()
}
