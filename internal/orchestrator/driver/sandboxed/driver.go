package sandboxed

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"rockpool/internal/fault"
	"rockpool/internal/image"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/cdi"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/sandbox"
)

// Names the driver is registered under.
const (
	Name       = "sandbox"
	NameDocker = "docker"
	NameExec   = "exec"
)

// mainID is the id of the execution that runs a task's command.
const mainID = "main"

// sharedData is where the tasks of an allocation find what they share.
const sharedData = driver.SharedDir + "/data"

// Config is what the drivers are made of.
type Config struct {
	Runtime Runtime          // the native one, for tasks that ask for no other
	Classes map[string]Class // OCI runtimes by the name that a task's configuration asks for; a stronger class of wall
	Images  Images
	Devices func(ctx context.Context, names []string) (cdi.Grant, error) // what devices are made of; nil = none are given
	CoreMHz int                                                          // clock of one core, to turn a task's CPU share into a hard limit; 0 = 1000
}

// Class is a runtime that tasks can ask for by name.
type Class struct {
	Runtime Runtime
	Version string // of its program
	// OwnKernel says that programs inside have a kernel of their own: the node's devices are out of their reach.
	OwnKernel bool
}

// Driver runs tasks in sandboxes.
type Driver struct {
	name string
	core *core
}

// core is what all names of the driver share: the sandboxes of this node.
type core struct {
	cfg      Config
	watchers sync.WaitGroup
	starts   *starts

	mu    sync.Mutex
	tasks map[string]*task
}

// New makes one driver for each name.
func New(cfg Config, names ...string) []driver.Driver {
	if cfg.CoreMHz <= 0 {
		cfg.CoreMHz = 1000
	}
	c := &core{cfg: cfg, starts: newStarts(), tasks: map[string]*task{}}
	all := make([]driver.Driver, len(names))
	for i, n := range names {
		all[i] = &Driver{n, c}
	}
	return all
}

// Name is what a job's task says in its driver field.
func (d *Driver) Name() string { return d.name }

// Fingerprint tells the fences of the sandbox as attributes.
func (d *Driver) Fingerprint(context.Context) model.DriverInfo {
	info := model.DriverInfo{Detected: true, Healthy: true, HealthDescription: "Healthy", Attributes: map[string]string{}}
	names := d.core.classes()
	info.Attributes["runtimes"] = strings.Join(names, ",")
	info.Attributes["runtimes.devices"] = strings.Join(slices.DeleteFunc(names, func(n string) bool { return d.core.cfg.Classes[n].OwnKernel }), ",")
	for name, c := range d.core.cfg.Classes {
		info.Attributes["sandbox.runtime."+name] = c.Version
		for _, f := range c.Runtime.Fences() {
			info.Attributes["sandbox.runtime."+name+".fence."+f.Name] = fmt.Sprint(f.InForce)
		}
	}
	var missing []string
	for _, f := range d.core.cfg.Runtime.Fences() {
		info.Attributes["sandbox.fence."+f.Name] = fmt.Sprint(f.InForce)
		if !f.InForce && !f.Note {
			missing = append(missing, f.Name)
		}
	}
	if len(missing) > 0 {
		info.HealthDescription = "Healthy; not in force on this kernel: " + strings.Join(missing, ", ")
	}
	return info
}

// Fences is the containment table of the node's sandboxes: the native ones, then those of each OCI runtime, whose rows begin with its name.
func (d *Driver) Fences() []driver.Fence {
	var rows []driver.Fence
	add := func(of Runtime, wall, prefix string) {
		for _, f := range of.Fences() {
			rows = append(rows, driver.Fence{Wall: cmp.Or(wall, string(f.Wall)), Name: prefix + f.Name, InForce: f.InForce, Detail: f.Detail, Note: f.Note})
		}
	}
	add(d.core.cfg.Runtime, "", "")
	for _, name := range d.core.classes() {
		add(d.core.cfg.Classes[name].Runtime, "OCI runtime "+name, name+".")
	}
	return rows
}

// Rooted says that a task's paths begin at the root of its sandbox.
func (d *Driver) Rooted() bool { return true }

// Shares says that tasks in the native sandbox can have a directory in common.
func (d *Driver) Shares(t *model.Task) bool {
	c, err := parse(d.name, t.Config)
	return err == nil && c.runtime == ""
}

// Validate checks a task's driver configuration.
func (d *Driver) Validate(t *model.Task) error {
	_, _, err := d.read(t)
	_, warmErr := warmUpOf(t)
	return errors.Join(err, warmErr)
}

// read gives a task's configuration and the runtime that it asks for.
func (d *Driver) read(t *model.Task) (*config, Runtime, error) {
	c, err := parse(d.name, t.Config)
	if err != nil {
		return nil, nil, err
	}
	if c.runtime == "" {
		return c, d.core.cfg.Runtime, nil
	}
	class, ok := d.core.cfg.Classes[c.runtime]
	if !ok {
		offered := "this node has none but the native sandbox"
		if names := d.core.classes(); len(names) > 0 {
			offered = "this node has " + strings.Join(names, ", ")
		}
		return nil, nil, fault.New(fault.Invalid, "driver %s: config key %q: %q is not offered; %s", d.name, "runtime", c.runtime, offered)
	}
	return c, class.Runtime, nil
}

// sandboxID derives the id of a task's sandbox: as unique as the task's, and fit for a path.
func sandboxID(taskID string) string {
	sum := sha256.Sum256([]byte(taskID))
	return "t-" + hex.EncodeToString(sum[:20])
}

// Prepare gets the task's image. With force_pull the registry is asked what a tag means now, here and not again in Start.
func (d *Driver) Prepare(ctx context.Context, cfg driver.TaskConfig) error {
	c, err := parse(d.name, cfg.Task.Config)
	if err != nil {
		return err
	}
	i, err := d.acquire(ctx, c, cfg, c.forcePull)
	if err != nil {
		return err
	}
	i.Release() // it has just been used: it is the last that would be collected
	return nil
}

func (d *Driver) acquire(ctx context.Context, c *config, cfg driver.TaskConfig, force bool) (*image.Image, error) {
	o := image.Options{Force: force, Credentials: c.credentials}
	if cfg.Emit != nil {
		o.Progress = func(p image.Progress) { cfg.Emit(p.String()) }
	}
	return d.core.cfg.Images.Acquire(ctx, c.image, o)
}

// Start makes a sandbox and starts the task's command in it, unless that only waits.
func (d *Driver) Start(ctx context.Context, cfg driver.TaskConfig) (_ driver.Task, err error) {
	c, runtime, err := d.read(cfg.Task)
	if err != nil {
		return nil, err
	}
	warm, err := warmUpOf(cfg.Task)
	if err != nil {
		return nil, err
	}
	if c.offline {
		cfg.Network, cfg.Networks = nil, nil
	}
	if err := d.offered(cfg); err != nil {
		return nil, err
	}
	lease, err := d.acquire(ctx, c, cfg, false)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lease.Release()
		}
	}()
	root := lease.Root
	if c.workDir != "" {
		root.WorkDir = c.workDir
	}
	for _, m := range cfg.Mounts {
		root.Binds = append(slices.Clip(root.Binds), sandbox.Bind{Source: m.Source, Target: m.Target})
	}
	if cfg.AllocDir != "" {
		root.Binds = append(slices.Clip(root.Binds), sandbox.Bind{Source: cfg.AllocDir, Target: sharedData, Writable: true})
	}
	if cfg.Task.User == "" {
		cfg.Task.User = root.User
	}
	spec := sandbox.Spec{ID: sandboxID(cfg.ID), Root: root, Limits: d.limits(c, cfg)}
	if n := cfg.Network; n != nil {
		spec.NetNS, spec.Hostname = n.NetNS, n.Hostname
	}
	if err := d.give(ctx, &spec, cfg); err != nil {
		return nil, err
	}
	if c.runtime != "" {
		cfg.Emit(fmt.Sprintf("Runs in %s %s", c.runtime, d.core.cfg.Classes[c.runtime].Version))
	}
	d.core.starts.begin()
	defer d.core.starts.end()
	s, err := runtime.Create(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("create sandbox: %w", err)
	}
	t := newTask(cfg, s, d.core.starts)
	t.release, t.warmUp = lease.Release, warm
	err = introduce(ctx, s.Files(), cfg.Network)
	if err == nil {
		err = furnish(ctx, s.Files(), c, cfg)
	}
	if err == nil {
		err = t.startMain(ctx, c.argv)
	}
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyTimeout)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("start command: %w", err), s.Destroy(clean))
	}
	t.warmFirst(ctx)
	d.core.adopt(t)
	return t, nil
}

// offered refuses what a task asks for beyond its configuration and no sandbox gives.
func (d *Driver) offered(cfg driver.TaskConfig) error {
	for _, n := range cfg.Networks {
		switch {
		case n.Mode == "" || n.Mode == "none":
		case n.Mode == "host":
			return fault.New(fault.Invalid, "driver %s: network mode \"host\" is not offered: a sandbox never shares the node's network; ask for \"bridge\"", d.name)
		case cfg.Network == nil:
			return fault.New(fault.Unsupported, "driver %s: this node gave the allocation no network, and the mode %q is asked for", d.name, n.Mode)
		}
	}
	for _, m := range cfg.Mounts {
		if !m.ReadOnly {
			return fault.New(fault.Unsupported, "driver %s: a directory of the node is shown inside for reading only: say read_only = true for %s", d.name, m.Target)
		}
	}
	if len(cfg.Resources.Devices) > 0 && len(cfg.Devices) == 0 || len(cfg.Devices) > 0 && d.core.cfg.Devices == nil {
		return fault.New(fault.Unsupported, "driver %s: this node has no specification of the devices that the task was given (see the Container Device Interface)", d.name)
	}
	return nil
}

// give adds the devices of the allocation to what a sandbox is made of.
func (d *Driver) give(ctx context.Context, spec *sandbox.Spec, cfg driver.TaskConfig) error {
	if len(cfg.Devices) == 0 {
		cdi.Withhold(spec)
		return nil
	}
	grant, err := d.core.cfg.Devices(ctx, cfg.Devices)
	if err != nil {
		return fmt.Errorf("give devices: %w", err)
	}
	grant.Apply(spec)
	cfg.Emit("Has the devices " + strings.Join(cfg.Devices, ", "))
	return nil
}

// dockerDisk is the least writable layer, in bytes, of a task that was made for Docker. It takes memory only as far as it is used.
const dockerDisk = 512 << 20

func (d *Driver) limits(c *config, cfg driver.TaskConfig) sandbox.Limits {
	memory := int64(max(cfg.Resources.MemoryMB, cfg.Resources.MemoryMaxMB))
	if memory == 0 {
		memory = int64(cfg.Task.Resources.HardMemoryMB())
	}
	if c.memoryHardMB > 0 {
		memory = c.memoryHardMB
	}
	cpu := cfg.Resources.CPU
	if cpu == 0 {
		cpu = cfg.Task.Resources.CPU
	}
	disk := int64(cfg.DiskMB) << 20
	if d.name == NameDocker {
		// Docker bounds only the allocation's directory by it, not what a container writes: jobs made for Docker ask for far
		// less than their programs need.
		disk = max(disk, dockerDisk)
	}
	l := sandbox.Limits{MemoryBytes: memory << 20, CPUShares: int64(cpu), PIDs: c.pids, DiskBytes: disk,
		OpenFiles: c.openFiles, FileSizeBytes: c.fileSizeBytes, IOBytes: c.ioBytes, IOPS: c.iops}
	if c.cpuHardLimit {
		l.CPUQuota = float64(cpu) / float64(d.core.cfg.CoreMHz)
	}
	return l
}

// Recover takes back the sandbox of a task, and its command with the output that nobody has read yet and how it ended, if it has. In an OCI runtime a command
// ends with its agent: only a task that waits can be taken back.
func (d *Driver) Recover(ctx context.Context, cfg driver.TaskConfig) (driver.Task, error) {
	c, runtime, err := d.read(cfg.Task)
	if err != nil {
		return nil, err
	}
	s, err := runtime.Attach(ctx, sandboxID(cfg.ID))
	if err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	t := newTask(cfg, s, d.core.starts)
	if t.warmUp, err = warmUpOf(cfg.Task); err != nil {
		t.warmUp = nil // it was taken by an earlier build, and changes nothing of what the task is
	}
	if len(c.argv) > 0 {
		if t.main, err = s.Resume(ctx); err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyTimeout)
			defer cancel()
			return nil, errors.Join(fmt.Errorf("recover: %w: how its command ended is not known: %w", driver.ErrTaskGone, err), s.Destroy(clean))
		}
	}
	if t.warmUp != nil {
		t.warmAgain(nil, t.warmUp.User)
	}
	d.core.adopt(t)
	return t, nil
}

// Cleanup destroys the task's sandbox.
func (d *Driver) Cleanup(ctx context.Context, taskID string) error {
	return d.core.cleanup(ctx, taskID)
}

// Sweep destroys all sandboxes but those of the tasks to keep, whatever name they were started under.
func (d *Driver) Sweep(ctx context.Context, keep []string) error { return d.core.sweep(ctx, keep) }

// Detach stops watching the sandboxes, which live on, and so do the commands of those that keep them. In an OCI runtime a command ends: nobody could tell how.
func (d *Driver) Detach(ctx context.Context) error { return d.core.detach(ctx) }

func (c *core) adopt(t *task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tasks[t.cfg.ID] = t
	c.watchers.Go(t.watch)
}

func (c *core) cleanup(ctx context.Context, taskID string) error {
	c.mu.Lock()
	t := c.tasks[taskID]
	delete(c.tasks, taskID)
	c.mu.Unlock()
	if t != nil {
		return t.destroy(ctx, 0)
	}
	var errs []error
	for _, r := range c.runtimes() { // which of them it was in is not known any more
		if err := r.Remove(ctx, sandboxID(taskID)); err != nil {
			errs = append(errs, fmt.Errorf("remove sandbox: %w", err))
		}
	}
	return errors.Join(errs...)
}

// classes are the names that a task can ask for.
func (c *core) classes() []string { return slices.Sorted(maps.Keys(c.cfg.Classes)) }

// runtimes are all that sandboxes of this node can be in.
func (c *core) runtimes() []Runtime {
	all := []Runtime{c.cfg.Runtime}
	for _, name := range c.classes() {
		all = append(all, c.cfg.Classes[name].Runtime)
	}
	return all
}

func (c *core) sweep(ctx context.Context, keep []string) error {
	var errs []error
	for _, r := range c.runtimes() {
		errs = append(errs, sweepOne(ctx, r, keep))
	}
	return errors.Join(errs...)
}

func sweepOne(ctx context.Context, r Runtime, keep []string) error {
	all, err := r.List()
	if err != nil {
		return fmt.Errorf("sweep sandboxes: %w", err)
	}
	kept := make(map[string]bool, len(keep))
	for _, id := range keep {
		kept[sandboxID(id)] = true
	}
	all = slices.DeleteFunc(all, func(id string) bool { return kept[id] })
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	turn := make(chan struct{}, 8)
	for i, id := range all {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			errs[i] = r.Remove(ctx, id)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (c *core) detach(context.Context) error {
	c.mu.Lock()
	tasks := c.tasks
	c.tasks = map[string]*task{}
	c.mu.Unlock()
	for _, t := range tasks {
		t.detach()
	}
	c.watchers.Wait()
	return nil
}
