// Package sim has what simulates a cluster in one process: nodes that run nothing, and a network without sockets between them and a server's handler.
//
// Everything in here asks the package time for the time and takes its randomness from a seed, so that a schedule may be run in a testing/synctest
// bubble, where an hour costs nothing, as well as against the clock.
package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node"
)

// FleetConfig says what simulated nodes are and do. Functions are called from many goroutines, but for one node from one at a time.
type FleetConfig struct {
	Count int
	Seed  uint64 // of the ids and of all randomness
	// Describe fills in a node, which has its ids, a name and the driver mock already. nil = 4,000 MHz, 8 GiB, 100 GB.
	Describe func(i int, n *model.Node)
	// Connect makes a node's connection to its servers.
	Connect func(id node.Identity) (node.ServerConn, error)
	// Start is how long the tasks of an allocation take to start; nil = no time.
	Start func(r *rand.Rand, a *model.Allocation) time.Duration
	// Lifetime is how long they run then, and whether they end well; nil, or a negative duration, = until they are told to stop.
	Lifetime func(r *rand.Rand, a *model.Allocation) (time.Duration, bool)
	// Joining bounds how many nodes register at a time; default 64.
	Joining int
}

// Fleet is many simulated nodes.
type Fleet struct {
	cfg     FleetConfig
	nodes   []*simNode
	joining chan struct{}
	all     chan struct{} // closed when every node has registered once
	joined  atomic.Int64

	// Figures since the start.
	Received, Running, Ended atomic.Int64 // allocations; each counts once in each
}

// NewFleet makes nodes. They do nothing before Run.
func NewFleet(cfg FleetConfig) (*Fleet, error) {
	if cfg.Joining == 0 {
		cfg.Joining = 64
	}
	f := &Fleet{cfg: cfg, joining: make(chan struct{}, cfg.Joining), all: make(chan struct{})}
	for i := range cfg.Count {
		r := rand.New(rand.NewPCG(cfg.Seed, uint64(i)))
		id := node.Identity{ID: uuid(r), Secret: uuid(r)}
		conn, err := cfg.Connect(id)
		if err != nil {
			return nil, fmt.Errorf("connect simulated node %d: %w", i, err)
		}
		n := &model.Node{
			ID: id.ID, SecretID: id.Secret, Name: fmt.Sprintf("sim-%d", i), Datacenter: "dc1", NodePool: "default",
			Attributes: map[string]string{"kernel.name": "linux", "cpu.arch": "amd64", "driver.mock": "1"},
			Resources:  model.NodeResources{CPU: 4000, Cores: 4, MemoryMB: 8192, DiskMB: 100_000},
			Drivers:    map[string]*model.DriverInfo{"mock": {Detected: true, Healthy: true}},
		}
		if cfg.Describe != nil {
			cfg.Describe(i, n)
		}
		f.nodes = append(f.nodes, &simNode{
			fleet: f, conn: conn, id: n.ID, description: n, rnd: r, allocs: map[string]*simAlloc{}, wake: make(chan struct{}, 1), changed: make(chan struct{}, 1),
		})
	}
	if cfg.Count == 0 {
		close(f.all)
	}
	return f, nil
}

// uuid makes an id of the form of version 4.
func uuid(r *rand.Rand) string {
	a, b := r.Uint64(), r.Uint64()
	return fmt.Sprintf("%08x-%04x-4%03x-%04x-%012x", uint32(a>>32), uint16(a>>16), a&0xfff, 0x8000|b>>48&0x3fff, b&0xffffffffffff)
}

// Change has the i-th node describe itself anew. change gets a copy, whose maps and lists it must replace and not write to.
func (f *Fleet) Change(i int, change func(n *model.Node)) {
	n := f.nodes[i]
	n.mu.Lock()
	c := *n.description
	change(&c)
	n.description = &c
	n.mu.Unlock()
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// Joined is closed when every node has registered once.
func (f *Fleet) Joined() <-chan struct{} { return f.all }

// Run is the life of all nodes, until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, n := range f.nodes {
		wg.Go(func() { n.run(ctx) })
	}
	wg.Wait()
	return nil
}

// simNode is one node. It does what a node agent does with a driver whose tasks take no time beyond what the configuration says.
type simNode struct {
	fleet      *Fleet
	conn       node.ServerConn
	id         string
	registered sync.Once
	wake       chan struct{} // of 1
	changed    chan struct{} // of 1; the description is another one

	mu          sync.Mutex
	description *model.Node                  // guarded by mu; replaced, never changed
	rnd         *rand.Rand                   // guarded by mu
	generation  uint64                       // guarded by mu; of the newest message seen
	allocs      map[string]*simAlloc         // guarded by mu
	dirty       map[string]model.AllocUpdate // guarded by mu; what is to be reported, the newest of each allocation
}

// simAlloc is what a node remembers of an allocation: little, as there may be a million in the process that is measured.
type simAlloc struct {
	id      string
	group   *model.TaskGroup // nil = its specification has none of this name
	started int64            // unix ns; 0 = it has not
	dead    bool
	timer   *time.Timer // of what happens next; nil = nothing
}

func newSimAlloc(al *model.Allocation) *simAlloc {
	return &simAlloc{id: al.ID, group: al.Job.Group(al.TaskGroup)}
}

const retryAfter = time.Second

func (n *simNode) run(ctx context.Context) {
	for ctx.Err() == nil {
		lease, err := n.register(ctx)
		if err == nil {
			g, gctx := errgroup.WithContext(ctx)
			g.Go(func() error { return n.report(gctx, lease) })
			g.Go(func() error { return n.watch(gctx) })
			err = g.Wait()
		}
		if ctx.Err() == nil && !fault.Is(err, fault.NotFound) {
			pause(ctx, retryAfter)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.allocs {
		a.cancel()
	}
}

func (n *simNode) register(ctx context.Context) (model.NodeLease, error) {
	f := n.fleet
	select {
	case f.joining <- struct{}{}:
	case <-ctx.Done():
		return model.NodeLease{}, ctx.Err()
	}
	defer func() { <-f.joining }()
	n.mu.Lock()
	description := n.description
	n.mu.Unlock()
	lease, err := n.conn.Register(ctx, description)
	if err != nil {
		return lease, err
	}
	n.mu.Lock()
	if lease.Index != 0 && lease.Index < n.generation {
		n.generation = 0 // the servers' state is older than what was seen
	}
	n.mu.Unlock()
	n.registered.Do(func() {
		if f.joined.Add(1) == int64(len(f.nodes)) {
			close(f.all)
		}
	})
	return lease, nil
}

// watch returns only when the servers do not know the node, or ctx ends.
func (n *simNode) watch(ctx context.Context) error {
	for {
		err := n.conn.Watch(ctx, func(p model.AllocPush) error { n.take(&p); return nil })
		if fault.Is(err, fault.NotFound) || ctx.Err() != nil {
			return err
		}
		if !pause(ctx, retryAfter) {
			return ctx.Err()
		}
	}
}

// report sends heartbeats and reports. What happens while a report is under way gathers and leaves together.
func (n *simNode) report(ctx context.Context, lease model.NodeLease) error {
	n.mu.Lock()
	first := max(lease.HeartbeatTTL/3, 10*time.Millisecond)
	first = time.Duration(n.rnd.Int64N(int64(first))) // so that nodes that joined together do not beat together
	n.mu.Unlock()
	beat := time.NewTimer(first)
	defer beat.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-beat.C:
			if lease, err = n.conn.Heartbeat(ctx); err == nil {
				beat.Reset(max(lease.HeartbeatTTL/3, 10*time.Millisecond))
			} else {
				beat.Reset(retryAfter)
			}
		case <-n.changed:
			if lease, err = n.register(ctx); err != nil {
				select { // once more, after a while
				case n.changed <- struct{}{}:
				default:
				}
				if !fault.Is(err, fault.NotFound) && !pause(ctx, retryAfter) {
					return ctx.Err()
				}
			}
		case <-n.wake:
			n.mu.Lock()
			batch := n.dirty
			n.dirty = nil
			n.mu.Unlock()
			updates := make([]model.AllocUpdate, 0, len(batch))
			for _, u := range batch {
				updates = append(updates, u)
			}
			if len(updates) == 0 {
				continue
			}
			if err = n.conn.UpdateAllocations(ctx, updates); err != nil {
				n.putBack(updates)
				if !fault.Is(err, fault.NotFound) && !pause(ctx, retryAfter) {
					return ctx.Err()
				}
			}
		}
		if fault.Is(err, fault.NotFound) {
			return err
		}
	}
}

func (n *simNode) putBack(updates []model.AllocUpdate) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, u := range updates {
		if _, newer := n.dirty[u.ID]; !newer {
			n.say(u)
		}
	}
}

// say notes what is to be reported. It is called with mu held.
func (n *simNode) say(u model.AllocUpdate) {
	if n.dirty == nil {
		n.dirty = map[string]model.AllocUpdate{}
	}
	n.dirty[u.ID] = u
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// take does what the servers want.
func (n *simNode) take(p *model.AllocPush) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.Generation <= n.generation {
		return
	}
	n.generation = p.Generation
	if p.Full {
		there := make(map[string]bool, len(p.Allocs))
		for _, a := range p.Allocs {
			there[a.ID] = true
		}
		for id := range n.allocs {
			if !there[id] {
				n.drop(id)
			}
		}
	}
	for _, id := range p.Purged {
		n.drop(id)
		n.say(model.AllocUpdate{ID: id, Buried: true})
	}
	for _, a := range p.Allocs {
		n.want(a)
	}
}

func (n *simNode) drop(id string) {
	if a := n.allocs[id]; a != nil {
		a.cancel()
		delete(n.allocs, id)
	}
}

func (a *simAlloc) cancel() {
	if a.timer != nil {
		a.timer.Stop()
	}
}

// want is called with mu held, for an allocation that is new or was changed by the servers.
func (n *simNode) want(al *model.Allocation) {
	a := n.allocs[al.ID]
	switch {
	case a == nil && al.DesiredStatus == model.DesiredRun && !al.ClientTerminal():
		n.fleet.Received.Add(1)
		a = newSimAlloc(al)
		n.allocs[al.ID] = a
		n.after(a, n.startDelay(al), func() { n.start(a, al) })
	case a == nil:
		if !al.ClientTerminal() { // nothing of it runs here
			n.end(newSimAlloc(al), true)
		}
	default:
		a.group = al.Job.Group(al.TaskGroup)
		if al.DesiredStatus != model.DesiredRun && !a.dead {
			a.cancel()
			n.end(a, true)
		}
	}
}

func (n *simNode) startDelay(al *model.Allocation) time.Duration {
	if n.fleet.cfg.Start == nil {
		return 0
	}
	return n.fleet.cfg.Start(n.rnd, al)
}

// after calls f with mu held, at once when there is nothing to wait for.
func (n *simNode) after(a *simAlloc, d time.Duration, f func()) {
	if d <= 0 {
		f()
		return
	}
	a.timer = time.AfterFunc(d, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.allocs[a.id] == a && !a.dead {
			f()
		}
	})
}

func (n *simNode) start(a *simAlloc, al *model.Allocation) {
	a.started = time.Now().UnixNano()
	n.fleet.Running.Add(1)
	n.tell(a, model.ClientRunning, a.state(), a.started)
	if n.fleet.cfg.Lifetime == nil {
		return
	}
	if d, well := n.fleet.cfg.Lifetime(n.rnd, al); d >= 0 {
		n.after(a, max(d, 1), func() { n.end(a, well) })
	}
}

// state is of each of its tasks, until they end.
func (a *simAlloc) state() *model.TaskState {
	if a.started == 0 {
		return &model.TaskState{}
	}
	return &model.TaskState{State: model.TaskRunning, StartedAt: a.started, Events: []*model.TaskEvent{
		{Type: model.TaskReceived, Time: a.started, DisplayMessage: "Task received by client"},
		{Type: model.TaskSetup, Time: a.started, DisplayMessage: "Building Task Directory"},
		{Type: model.TaskStarted, Time: a.started, DisplayMessage: "Task started by client"},
	}}
}

func (n *simNode) end(a *simAlloc, well bool) {
	now, s, status := time.Now().UnixNano(), a.state(), model.ClientComplete
	last := &model.TaskEvent{Type: model.TaskTerminated, Time: now, DisplayMessage: "Exit Code: 0", Details: map[string]string{"exit_code": "0"}}
	if !well {
		status = model.ClientFailed
		last.DisplayMessage, last.Details = "Exit Code: 1", map[string]string{"exit_code": "1"}
	}
	s.State, s.Failed, s.FinishedAt, s.Events = model.TaskDead, !well, now, append(s.Events, last)
	a.dead = true
	n.fleet.Ended.Add(1)
	n.tell(a, status, s, now)
}

func (n *simNode) tell(a *simAlloc, status string, s *model.TaskState, now int64) {
	u := model.AllocUpdate{ID: a.id, ClientStatus: status, ModifyTime: now, TaskStates: map[string]*model.TaskState{}}
	if a.group != nil {
		for _, t := range a.group.Tasks {
			u.TaskStates[t.Name] = s
		}
	}
	n.say(u)
}

// pause reports whether it was not ctx that ended it.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
