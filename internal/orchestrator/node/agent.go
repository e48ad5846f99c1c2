package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"

	"rockpool/internal/fault"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/device"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/timeline"
)

// OnStop says what becomes of the tasks when the agent stops.
type OnStop int

const (
	Keep   OnStop = iota // they run on, and the next start takes them back
	Remove               // they are stopped and destroyed
)

const (
	// removeTimeout bounds how long Run takes to stop all tasks.
	removeTimeout = 45 * time.Second
	// stopWithin is how long a task may take to end by itself when the node stops.
	stopWithin = 10 * time.Second
	// flushTimeout bounds the last report.
	flushTimeout = 5 * time.Second
)

// Config is what an agent is made of.
type Config struct {
	DataDir    string
	Name       string // empty = the host name
	Datacenter string // empty = dc1
	NodePool   string // empty = default
	NodeClass  string
	HTTPAddr   string // where the HTTP API reaches this agent; empty = only through a server
	TLS        bool   // HTTPAddr speaks TLS
	Version    string // of Rockpool
	Meta       map[string]string
	Volumes    map[string]*model.HostVolume // directories that jobs may name
	Drivers    []driver.Driver
	Networks   Networks                   // nil = allocations have none
	Attributes func() map[string]string   // extra ones, asked again from time to time
	Devices    *device.Manager            // nil = none; its Run is the agent's
	StopAiling bool                       // allocations fail when a device of theirs becomes unhealthy, so that they are placed elsewhere
	Resources  func(*model.NodeResources) // overrides what was found; nil = nothing
	Reserved   model.NodeResources        // kept away from allocations
	OnStop     OnStop
	Servers    ServerConn
	MaxStarts  int // tasks being started at a time; 0 = twice the number of cores
	// KeepEnded is of how many allocations that have ended the logs and files stay, the newest; 0 = 50. KeepEndedFor is how long they stay at most; 0 = for ever.
	// Their records stay until the servers purge them.
	KeepEnded    int
	KeepEndedFor time.Duration
	Timeline     *timeline.Recorder // of the starts of tasks; nil = nothing is recorded
	Log          logging.Logger
}

// Agent runs allocations on this machine.
type Agent struct {
	cfg        Config
	log        logging.Logger
	identity   Identity
	machine    machine
	drivers    map[string]driver.Driver
	db         *stateDB
	reporter   *reporter
	registrar  *registrar    // nil = nobody is told of services
	slots      chan struct{} // one per start in progress
	recoveries chan struct{} // one per task being taken back
	executions executions
	describing chan struct{}   // level trigger: the description is to be made again
	registered chan struct{}   // closed once the servers know the node
	goroutines lifecycle.Tasks // executions being watched

	changing sync.Mutex      // held over a change of the metadata, and over reading the processors' times
	times    []cpu.TimesStat // as last asked for

	mu         sync.Mutex
	runners    map[string]*allocRunner
	ended      map[string]ended   // allocations that were retired; none is in runners too
	generation uint64             // of the newest push applied
	described  *model.Node        // replaced whole
	dynamic    map[string]*string // metadata that was changed; nil values are removed keys
	heard      time.Time          // of the servers, last
	ailing     map[string]string  // what tasks have been told of their devices, by the ids of these
	stopping   bool
	allocs     sync.WaitGroup // runners; Add only with mu held and stopping false
	letGo      context.CancelCauseFunc
}

// New prepares an agent. It reads or makes the node's identity and starts nothing.
func New(cfg Config) (*Agent, error) {
	if cfg.Servers == nil {
		return nil, errors.New("node agent: no connection to servers is given")
	}
	if cfg.Log == nil {
		cfg.Log = logging.Discard()
	}
	identity, err := LoadIdentity(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	if cfg.Datacenter == "" {
		cfg.Datacenter = "dc1"
	}
	if cfg.NodePool == "" {
		cfg.NodePool = "default"
	}
	if cfg.MaxStarts <= 0 {
		cfg.MaxStarts = 2 * runtime.NumCPU()
	}
	if cfg.KeepEnded <= 0 {
		cfg.KeepEnded = defaultKeepEnded
	}
	dir, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("node agent: %w", err)
	}
	cfg.DataDir = dir
	a := &Agent{cfg: cfg, log: cfg.Log.WithField("node_id", identity.ID), identity: identity, drivers: map[string]driver.Driver{},
		db: newStateDB(dir), slots: make(chan struct{}, cfg.MaxStarts),
		recoveries: make(chan struct{}, cfg.MaxStarts), registered: make(chan struct{}), describing: make(chan struct{}, 1), runners: map[string]*allocRunner{}, ended: map[string]ended{}}
	for _, d := range cfg.Drivers {
		if a.drivers[d.Name()] != nil {
			return nil, fmt.Errorf("node agent: two drivers are named %q", d.Name())
		}
		a.drivers[d.Name()] = d
	}
	a.db.failed = func(err error) {
		a.log.WithError(err).Warn("the state of the node is larger than it need be, it will be tried again")
	}
	a.reporter = newReporter(cfg.Servers.UpdateAllocations, a.log)
	if servers, ok := cfg.Servers.(ServiceConn); ok {
		a.registrar = newRegistrar(servers, a.log)
	}
	if a.dynamic, err = loadMetadata(dir); err != nil {
		return nil, err
	}
	return a, nil
}

// Registered is closed once the servers know this node for the first time since it started.
func (a *Agent) Registered() <-chan struct{} { return a.registered }

// Run takes back what an earlier process left, connects to the servers and runs what they place here, until ctx ends. It
// returns when every goroutine has ended. An agent runs once.
func (a *Agent) Run(ctx context.Context) error {
	defer a.watchDevices(ctx)()
	a.look()
	a.describe(ctx)
	// Allocations outlive ctx until they were stopped, or let go.
	life, letGo := context.WithCancelCause(context.WithoutCancel(ctx))
	defer letGo(nil)
	if err := a.restore(ctx, life); err != nil {
		return err
	}
	a.mu.Lock()
	a.letGo = letGo
	a.mu.Unlock()

	var reporting sync.WaitGroup
	rctx, stopReporting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopReporting()
	reporting.Go(func() { a.reporter.Run(rctx, flushTimeout) })
	reporting.Go(func() { a.collectEnded(rctx) })
	if a.registrar != nil {
		reporting.Go(func() { a.registrar.run(rctx) })
	}

	a.connect(ctx, life)

	err := a.stopAll(life)
	stopReporting()
	reporting.Wait()
	return errors.Join(err, a.db.close())
}

// look describes the machine anew. The room on its disk is that of the agent's start: what tasks fill of it was theirs to fill.
func (a *Agent) look() {
	m := look(a.cfg.DataDir)
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.machine; old.attributes != nil {
		m.resources.DiskMB = old.resources.DiskMB
		m.attributes["unique.storage.bytesfree"] = old.attributes["unique.storage.bytesfree"]
		m.resources.CPU = old.resources.CPU // a clock that changes with the load is no new machine
		for _, k := range []string{"cpu.frequency", "cpu.totalcompute"} {
			m.attributes[k] = old.attributes[k]
		}
	}
	a.machine = m
}

// stopAll ends the executions, then the tasks or the agent's hold on them.
func (a *Agent) stopAll(life context.Context) error {
	a.mu.Lock()
	a.stopping = true
	runners := make([]*allocRunner, 0, len(a.runners))
	for _, r := range a.runners {
		runners = append(runners, r)
	}
	a.mu.Unlock()
	for _, e := range a.executions.all() {
		_ = e.Kill() // nobody is left to read from them
	}
	var errs []error
	if a.cfg.OnStop == Remove {
		errs = append(errs, a.removeAll(life, runners))
	}
	if a.cfg.OnStop == Keep && len(runners) > 0 {
		a.log.WithField("allocations", len(runners)).Info("allocations keep running and are taken back by the next start")
	}
	a.letGo(errLetGo)
	a.allocs.Wait()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(life), removeTimeout)
	defer cancel()
	for _, d := range a.cfg.Drivers {
		if d, ok := d.(driver.Detacher); ok {
			errs = append(errs, d.Detach(bounded))
		}
	}
	return errors.Join(append(errs, a.goroutines.Wait(bounded))...)
}

func (a *Agent) removeAll(life context.Context, runners []*allocRunner) error {
	bounded, cancel := context.WithTimeout(life, removeTimeout)
	defer cancel()
	for _, r := range runners {
		r.stop.set(&stopReason{text: "the node is stopping", fails: true, within: stopWithin, final: true})
	}
	for _, r := range runners {
		select {
		case <-r.quiet:
		case <-bounded.Done():
			return errors.New("stop tasks: not all of them ended in time")
		}
	}
	return nil
}

// restore takes back the allocations of an earlier process, and destroys what drivers find beyond them.
func (a *Agent) restore(ctx, life context.Context) error {
	all, broken, err := a.db.load()
	if err != nil {
		return errors.Join(err, a.db.close())
	}
	var keep []string
	var runners []*allocRunner
	for _, s := range all {
		r := newAllocRunner(a, s.alloc, s.tasks)
		runners = append(runners, r)
		for _, t := range r.tasks {
			if t.record.Started {
				keep = append(keep, t.id())
			}
			a.retakeDevices(t, s.alloc)
		}
		a.generation = max(a.generation, s.alloc.CreateIndex, s.alloc.ModifyIndex)
	}
	for _, d := range a.cfg.Drivers {
		if d, ok := d.(driver.Sweeper); ok {
			if err := d.Sweep(ctx, keep); err != nil {
				a.log.WithError(err).Error("what earlier tasks left behind could not be destroyed")
			}
		}
	}
	if a.cfg.Networks != nil {
		if err := a.cfg.Networks.Sweep(ctx, networked(runners)); err != nil {
			a.log.WithError(err).Error("the networks that earlier allocations left behind could not be taken back")
		}
	}
	for _, id := range broken {
		a.log.WithField("alloc_id", id).Error("allocation cannot be read from disk and counts as lost")
		if err := errors.Join(new(share).close(a.db.files(id)), a.db.remove(id)); err != nil {
			a.log.WithError(err).Error("allocation directory could not be removed")
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.startRunners(life, runners)
	return nil
}

// startRunners gives runners their goroutines, once all of them are known: some wait for others. The caller holds mu.
func (a *Agent) startRunners(life context.Context, runners []*allocRunner) {
	for _, r := range runners {
		a.runners[r.id] = r
	}
	for _, r := range runners {
		r.before = a.precedes(r)
	}
	for _, r := range runners {
		a.allocs.Go(func() { r.run(life) })
	}
}

// apply brings the runners to what a message wants. It waits for nothing.
func (a *Agent) apply(life context.Context, p model.AllocPush) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.Generation < a.generation || p.Generation == a.generation && !p.Full {
		a.log.WithFields(logging.Fields{"generation": p.Generation, "newest": a.generation}).Info("older message of a server ignored")
		return nil
	}
	if a.stopping {
		return fault.New(fault.Unavailable, "the node is stopping")
	}
	a.generation = p.Generation
	wanted := make(map[string]bool, len(p.Allocs))
	var fresh []*allocRunner
	var again []*model.Allocation
	for _, alloc := range p.Allocs {
		wanted[alloc.ID] = true
		if r := a.runners[alloc.ID]; r != nil {
			r.renew(alloc, p.Full)
		} else if e, ok := a.ended[alloc.ID]; ok {
			if !e.going && stale(e.status, alloc, p.Full) {
				again = append(again, alloc)
			}
		} else if !safeID(alloc.ID) || alloc.Job == nil {
			a.log.WithField("alloc_id", alloc.ID).Error("allocation without a valid id or job ignored")
		} else if !alloc.ClientTerminal() {
			r := newAllocRunner(a, alloc, nil)
			a.runners[alloc.ID], fresh = r, append(fresh, r)
		}
	}
	var gone []string
	for _, id := range p.Purged {
		if !wanted[id] {
			gone = append(gone, id)
		}
	}
	if p.Full {
		gone = slices.AppendSeq(slices.AppendSeq(gone, maps.Keys(a.runners)), maps.Keys(a.ended))
		gone = slices.DeleteFunc(gone, func(id string) bool { return wanted[id] })
	}
	for _, id := range gone {
		if r := a.runners[id]; r != nil {
			r.destroy()
		}
	}
	a.forgotten(life, gone)
	if len(again) > 0 {
		a.allocs.Go(func() { a.repeat(life, again) })
	}
	a.startRunners(life, fresh) // who waits for others sees which of them have to go
	return nil
}
