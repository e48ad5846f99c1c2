package node_test

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/device"
	"rockpool/internal/orchestrator/device/fake"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/mock"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node"
)

// server plays the servers: it holds what is placed on the node and what the node reported.
type server struct {
	mu         sync.Mutex
	index      uint64
	allocs     map[string]*model.Allocation
	streams    []chan model.AllocPush
	latest     map[string]model.AllocUpdate
	reports    [][]model.AllocUpdate
	registered int
	node       *model.Node // as last registered
	beats      int
	down       bool // answers nothing
	offered    map[string][]*model.ServiceRegistration
	unknown    bool          // does not know the node until it registers again
	failing    int           // reports to refuse
	hold       chan struct{} // reports wait for it
	poison     string        // refuses reports that name this allocation
	reported   chan struct{} // level trigger
}

func newServer() *server {
	return &server{index: 10, reported: make(chan struct{}, 1), allocs: map[string]*model.Allocation{}, latest: map[string]model.AllocUpdate{}}
}

var errDown = fault.New(fault.Unavailable, "connection refused")

func (s *server) UpdateServices(_ context.Context, all []model.AllocServices) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.offered == nil {
		s.offered = map[string][]*model.ServiceRegistration{}
	}
	for _, a := range all {
		s.offered[a.AllocID] = a.Services
	}
	return nil
}

func (s *server) services(id string) []*model.ServiceRegistration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.offered[id]
}

var errUnknownNode = fault.New(fault.NotFound, "unknown node")

func (s *server) Register(_ context.Context, n *model.Node) (model.NodeLease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return model.NodeLease{}, errDown
	}
	s.node = n
	s.registered++
	s.unknown = false
	s.index++
	return model.NodeLease{HeartbeatTTL: 15 * time.Second, Index: s.index}, nil
}

func (s *server) Heartbeat(context.Context) (model.NodeLease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return model.NodeLease{}, errDown
	}
	if s.unknown {
		return model.NodeLease{}, errUnknownNode
	}
	s.beats++
	return model.NodeLease{HeartbeatTTL: 15 * time.Second}, nil
}

func (s *server) UpdateAllocations(ctx context.Context, updates []model.AllocUpdate) error {
	s.mu.Lock()
	hold := s.hold
	s.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return errDown
	}
	if s.failing > 0 {
		s.failing--
		return errors.New("no leader")
	}
	if slices.ContainsFunc(updates, func(u model.AllocUpdate) bool { return u.ID == s.poison }) {
		return fault.New(fault.Invalid, "a state that is no state")
	}
	defer func() {
		select {
		case s.reported <- struct{}{}:
		default:
		}
	}()
	s.reports = append(s.reports, slices.Clone(updates))
	for _, u := range updates {
		s.latest[u.ID] = u
		if a := s.allocs[u.ID]; a != nil {
			c := *a
			c.ClientStatus, c.TaskStates = u.ClientStatus, u.TaskStates
			s.allocs[u.ID] = &c
		}
	}
	return nil
}

func (s *server) Watch(ctx context.Context, f func(model.AllocPush) error) error {
	s.mu.Lock()
	if s.down {
		s.mu.Unlock()
		return errDown
	}
	if s.unknown {
		s.mu.Unlock()
		return errUnknownNode
	}
	ch := make(chan model.AllocPush, 1000)
	ch <- s.full()
	s.streams = append(s.streams, ch)
	s.mu.Unlock()
	for {
		select {
		case p, ok := <-ch:
			if !ok {
				return errors.New("stream cut")
			}
			if err := f(p); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *server) full() model.AllocPush {
	p := model.AllocPush{Generation: s.index, Full: true}
	for _, id := range slices.Sorted(maps.Keys(s.allocs)) {
		p.Allocs = append(p.Allocs, s.allocs[id])
	}
	return p
}

// send pushes a change to all open streams. The caller holds mu.
func (s *server) send(p model.AllocPush) {
	s.index++
	p.Generation = s.index
	for _, ch := range s.streams {
		ch <- p
	}
}

func (s *server) place(allocs ...*model.Allocation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range allocs {
		a.CreateIndex = s.index + 1
		s.allocs[a.ID] = a
	}
	s.send(model.AllocPush{Allocs: allocs})
}

// change replaces an allocation by a changed copy.
func (s *server) change(id string, f func(*model.Allocation)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := *s.allocs[id]
	f(&c)
	s.allocs[id] = &c
	s.send(model.AllocPush{Allocs: []*model.Allocation{&c}})
}

func (s *server) purge(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.allocs, id)
	delete(s.latest, id)
	s.send(model.AllocPush{Purged: []string{id}})
}

// cut ends all streams.
func (s *server) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ch := range s.streams {
		close(ch)
	}
	s.streams = nil
}

func (s *server) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *server) status(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.latest[id].ClientStatus
}

func (s *server) task(id, task string) *model.TaskState {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.latest[id].TaskStates[task]; t != nil {
		return t
	}
	return &model.TaskState{}
}

func (s *server) reportCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.reports)
}

// machine is one node in a bubble: its disk, its driver, its servers.
type machine struct {
	t      *testing.T
	dir    string
	driver *mock.Driver
	server *server
	nets   node.Networks
	facade driver.Driver // what the agent sees of driver; nil = all of it
	onStop node.OnStop
	starts int
	agent  *node.Agent

	devices    *fake.Plugin // nil = none
	stopAiling bool

	keepEnded    int
	keepEndedFor time.Duration

	stop func() error
}

// inBubble runs f with a machine whose agent has registered.
func inBubble(t *testing.T, f func(t *testing.T, m *machine)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		m := &machine{t: t, dir: dir, driver: mock.New(), server: newServer()}
		m.start()
		f(t, m)
		if err := m.stop(); err != nil {
			t.Errorf("agent: %v", err)
		}
		for _, id := range m.driver.Tasks() {
			_ = m.driver.Cleanup(t.Context(), id) // timers would outlive the bubble
		}
	})
}

func (m *machine) start() {
	m.t.Helper()
	var devices *device.Manager
	if m.devices != nil {
		devices = device.NewManager(logging.Discard(), m.devices)
	}
	a, err := node.New(node.Config{Devices: devices, StopAiling: m.stopAiling, DataDir: m.dir, Datacenter: "dc1", Drivers: []driver.Driver{cmp.Or[driver.Driver](m.facade, m.driver)}, Servers: m.server, Networks: m.nets,
		OnStop: m.onStop, MaxStarts: m.starts, KeepEnded: m.keepEnded, KeepEndedFor: m.keepEndedFor, Log: logging.Discard()})
	if err != nil {
		m.t.Fatal(err)
	}
	m.agent = a
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	m.stop = sync.OnceValue(func() error {
		cancel()
		err := <-ended
		m.server.set(func() { m.server.streams = nil })
		return err
	})
	synctest.Wait()
}

func (m *machine) restart() {
	m.t.Helper()
	if err := m.stop(); err != nil {
		m.t.Fatal(err)
	}
	m.start()
}

// after lets time pass in the bubble.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (m *machine) expect(id, status string) {
	m.t.Helper()
	synctest.Wait()
	if got := m.server.status(id); got != status {
		m.t.Fatalf("allocation %s is reported as %q, want %q", id, got, status)
	}
}

// alloc makes an allocation with one task per configuration, named a, b, ….
func alloc(id string, configs ...map[string]any) *model.Allocation {
	g := &model.TaskGroup{Name: "group", Count: 1}
	for i, c := range configs {
		g.Tasks = append(g.Tasks, &model.Task{Name: string(rune('a' + i)), Driver: mock.Name, Config: c, KillTimeout: time.Second,
			Resources: model.Resources{CPU: 100, MemoryMB: 64}})
	}
	job := &model.Job{ID: "job", Name: "job", Namespace: "default", Type: model.JobTypeBatch, TaskGroups: []*model.TaskGroup{g}}
	return &model.Allocation{ID: id, Namespace: "default", Name: "job.group[0]", JobID: "job", Job: job, TaskGroup: "group",
		DesiredStatus: model.DesiredRun, ClientStatus: model.ClientPending}
}

func types(s *model.TaskState) (all []string) {
	for _, e := range s.Events {
		all = append(all, e.Type)
	}
	return all
}
