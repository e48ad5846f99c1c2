package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/consensus"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node"
	"rockpool/internal/orchestrator/sim"
	"rockpool/internal/orchestrator/sim/fabric"
	"rockpool/internal/orchestrator/state"
)

const (
	httpPort = ":4646"
	rpcPort  = ":4647"

	dialBound = 2 * time.Second
)

// server is one machine of the cluster, through all lives of the process on it.
type server struct {
	c    *cluster
	name string
	skew atomic.Int64 // what its clock is off by, in ns

	mu   sync.Mutex
	disk *fabric.Disk // guarded by mu
	life *life        // guarded by mu; nil = it is down
}

// life is one process.
type life struct {
	host    *fabric.Host
	server  *orchestrator.Server
	disk    *fabric.Disk
	cancel  context.CancelFunc
	crashed atomic.Bool
	done    chan struct{}
	unwatch func()
}

// cluster is all that is simulated.
type cluster struct {
	cfg     Config
	net     *fabric.Network
	servers []*server
	fleets  []*fleet
	monitor *Monitor
	log     logging.Logger
	lives   lifecycle.Tasks
	term    int // at rest

	mu     sync.Mutex
	begun  time.Time
	story  []string // guarded by mu
	failed error    // guarded by mu; a server that ended by itself
}

func newCluster(cfg Config) (*cluster, error) {
	c := &cluster{
		cfg: cfg, net: fabric.NewNetwork(cfg.Seed, fabric.Latency{Least: 50 * time.Microsecond, Most: 500 * time.Microsecond}),
		monitor: NewMonitor(), log: cfg.Log, begun: time.Now(),
	}
	for i := range cfg.Servers {
		c.servers = append(c.servers, &server{c: c, name: fmt.Sprint("s", i+1), disk: fabric.NewDisk(cfg.Seed + uint64(i))})
	}
	for i := range cfg.NodeHosts {
		f, err := c.newFleet(fmt.Sprint("n", i+1), uint64(i), cfg.Nodes/cfg.NodeHosts)
		if err != nil {
			return nil, err
		}
		c.fleets = append(c.fleets, f)
	}
	return c, nil
}

// tell notes what happened.
func (c *cluster) tell(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.story = append(c.story, fmt.Sprintf("%9.3fs ", time.Since(c.begun).Seconds())+fmt.Sprintf(format, args...))
}

func (c *cluster) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == nil {
		c.failed = err
	}
}

// meeting is where servers find each other.
func (c *cluster) meeting() (out []string) {
	for _, s := range c.servers {
		out = append(out, ipOf(s.name)+gossipPort)
	}
	return out
}

func (c *cluster) names() (out []string) {
	for _, s := range c.servers {
		out = append(out, s.name)
	}
	return out
}

func (c *cluster) addresses() (out []string) {
	for _, s := range c.servers {
		out = append(out, s.name+httpPort)
	}
	return out
}

// start begins a life.
func (s *server) start() error {
	c := s.c
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life != nil {
		return nil
	}
	host, disk := c.net.Host(s.name), s.disk
	membership, err := newGossip(host)
	if err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	srv, err := orchestrator.NewServer(orchestrator.ServerConfig{
		Name: s.name, Address: s.name + httpPort, Log: c.log.WithField("server", s.name),
		HeartbeatTTL: 2 * time.Second, HeartbeatGrace: 3 * time.Second, Keep: leader.Keep{},
		Cluster: orchestrator.ClusterConfig{
			RPCAddress: s.name + rpcPort, GossipAddress: ipOf(s.name) + gossipPort, Expect: len(c.servers), Join: c.meeting(),
			Simulated: &orchestrator.Simulated{
				Listen: host.Listen, Dial: host.Dial, Stores: &consensus.Stores{Log: disk, Stable: disk, Snapshots: disk}, Gossip: membership,
				Entry: s.stamp, SnapshotEntries: c.cfg.Keep, SnapshotBytes: int64(c.cfg.Keep) * 400,
			},
		},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	l := &life{host: host, server: srv, disk: disk, done: make(chan struct{}), unwatch: c.monitor.Watch(s.name, srv.State())}
	listener, err := host.Listen(httpPort)
	if err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	h := &http.Server{Handler: srv.Handler()}
	var serving sync.WaitGroup
	serving.Go(func() { _ = h.Serve(listener) })
	c.lives.Go(func() {
		defer close(l.done)
		err := srv.Run(ctx)
		l.unwatch()
		_ = h.Close()
		serving.Wait()
		if err != nil && !l.crashed.Load() {
			c.fail(fmt.Errorf("%s ended by itself: %w", s.name, err))
		}
	})
	s.life = l
	return nil
}

// stamp sets a wrong clock's time on what this server proposes.
func (s *server) stamp(entry any) {
	skew := s.skew.Load()
	if skew == 0 {
		return
	}
	if f := reflect.ValueOf(entry).Elem().FieldByName("Now"); f.IsValid() && f.CanSet() && f.Kind() == reflect.Int64 {
		f.SetInt(f.Int() + skew)
	}
}

// crash ends a life without warning. What is left of it reaches nobody, and its disk is one that nobody reads. False = it was down already.
func (s *server) crash(silent bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.life
	if l == nil {
		return false
	}
	l.crashed.Store(true)
	l.host.Crash(silent)
	s.disk = l.disk.Crash()
	l.unwatch()
	l.cancel()
	s.life = nil
	return true
}

// stop ends a life in order.
func (s *server) stop() {
	s.mu.Lock()
	l := s.life
	s.life = nil
	s.mu.Unlock()
	if l != nil {
		l.cancel()
		<-l.done
		l.host.Crash(false)
	}
}

func (s *server) now() *life {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life
}

func (s *server) onDisk(f func(*fabric.Disk)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.disk)
}

func (c *cluster) server(name string) *server {
	for _, s := range c.servers {
		if s.name == name {
			return s
		}
	}
	return nil
}

// leader is the server whose services of leadership run. Of several, while one has not noticed yet, it is any.
func (c *cluster) leader() *server {
	for _, s := range c.servers {
		if l := s.now(); l != nil && l.server.Leading() {
			return s
		}
	}
	return nil
}

func (c *cluster) stores() map[string]*state.Store {
	out := map[string]*state.Store{}
	for _, s := range c.servers {
		if l := s.now(); l != nil {
			out[s.name] = l.server.State()
		}
	}
	return out
}

// fleet is the node agents on one host.
type fleet struct {
	*sim.Fleet
	host      string
	transport *http.Transport
	devices   [][]model.NodeDevice // of each node, when all is well
	said      string               // the faults of devices that the nodes were told of last; one goroutine's

	mu   sync.Mutex
	stop func() // guarded by mu; nil = they do not run
}

// patient gives up to connect after a while, as clients do.
func patient(h *fabric.Host) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialBound)
		defer cancel()
		return h.Dial(ctx, address)
	}
}

func (c *cluster) newFleet(host string, seed uint64, count int) (*fleet, error) {
	h := c.net.Host(host)
	f := &fleet{host: host, transport: &http.Transport{DialContext: patient(h), MaxIdleConnsPerHost: 2 * count}}
	urls := make([]string, 0, len(c.servers))
	for _, a := range c.addresses() {
		urls = append(urls, "http://"+a)
	}
	i := 0
	var err error
	f.Fleet, err = sim.NewFleet(sim.FleetConfig{
		Count: count, Seed: c.cfg.Seed<<8 + seed,
		Describe: func(i int, n *model.Node) {
			if c.cfg.Devices {
				n.Resources.Devices = equip(int(seed)*count+i, n.ID)
			}
			f.devices = append(f.devices, n.Resources.Devices)
		},
		Connect: func(id node.Identity) (node.ServerConn, error) {
			i++
			turned := append(slices.Clone(urls[i%len(urls):]), urls[:i%len(urls)]...)
			return node.NewRemote(turned, id, "", &http.Client{Transport: f.transport})
		},
	})
	return f, err
}

// afflict has the nodes say what the faults make of their devices.
func (f *fleet) afflict(now []active) {
	var faults []Fault
	for _, a := range now {
		if a.Target == f.host && slices.Contains([]Kind{GPUFailure, GPUGone, GPUDivided}, a.Kind) {
			faults = append(faults, a.Fault)
		}
	}
	if s := fmt.Sprint(faults); s == f.said || f.said == "" && len(faults) == 0 {
		return
	} else {
		f.said = s
	}
	for i, groups := range f.devices {
		f.Change(i, func(n *model.Node) { n.Resources.Devices = afflicted(groups, faults) })
	}
}

func (f *fleet) start() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stop != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = f.Run(ctx) })
	f.stop = func() { cancel(); wg.Wait() }
}

// end stops the agents; what they run goes on.
func (f *fleet) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stop != nil {
		f.stop()
		f.stop = nil
		f.transport.CloseIdleConnections()
	}
}

func (c *cluster) held() map[string][]string {
	out := map[string][]string{}
	for _, f := range c.fleets {
		for id, list := range f.Held() {
			out[id] = list
		}
	}
	return out
}

// shutDown ends everything and waits for it.
func (c *cluster) shutDown() error {
	for _, f := range c.fleets {
		f.end()
	}
	var wg sync.WaitGroup
	for _, s := range c.servers {
		wg.Go(s.stop)
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	err := c.lives.Wait(ctx)
	if err != nil {
		err = fmt.Errorf("servers that had crashed or been stopped: %w", err)
	}
	if n := c.net.Open(); n > 0 && err == nil {
		err = fmt.Errorf("%d connections are still open after the end", n)
	}
	return err
}

// err is what went wrong so far.
func (c *cluster) err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.failed, c.monitor.Err())
}

func (c *cluster) told() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.story, "\n")
}
