package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/sim/fabric"
)

// Config says what is run.
type Config struct {
	Seed      uint64
	Servers   int // default 3
	Nodes     int // default 12
	NodeHosts int // default 3
	Clients   int // default 8
	Jobs      int // in use at a time; default 6
	Length    time.Duration
	Every     time.Duration // between two faults, on average; default 1 s
	Only      []Kind        // nil = all
	Schedule  Schedule      // nil = that of the seed
	Keep      uint64        // entries that make a snapshot; default 150, so few that servers that were away are sent one
	Devices   bool          // nodes have GPUs, jobs ask for them, and they fail
	Stale     bool          // clients read what may be old, which the check of their history must find
	Log       logging.Logger
}

func (c *Config) defaults() {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.Servers, 3)
	def(&c.Nodes, 12)
	def(&c.NodeHosts, 3)
	def(&c.Clients, 8)
	def(&c.Jobs, 6)
	if c.Keep == 0 {
		c.Keep = 150
	}
	if c.Every == 0 {
		c.Every = time.Second
	}
	if c.Length == 0 {
		c.Length = 20 * time.Second
	}
	if c.Log == nil {
		c.Log = logging.Discard()
	}
}

// Report is what a run saw.
type Report struct {
	Seed       uint64
	Operations int            // of clients
	Outcomes   map[string]int // of them
	Updates    int            // that were looked at, on all servers
	Holders    int            // allocations that had devices
	Waited     int            // evaluations that found no room
	Term       int            // of Raft, at the end
	Snapshots  int            // on all servers
	Story      string         // what went wrong, when
}

const (
	startBound  = 2 * time.Minute
	settleBound = 3 * time.Minute
	lingering   = time.Minute // what a probe of gossip that was under way may take to end; whatever stays longer is a leak, which the bubble finds
	checkBound  = time.Minute // of the clock outside of a bubble
)

// Run simulates one seed. It belongs into a synctest bubble, and returns what must not be as an error with the seed and the whole story. History has to be
// checked outside of the bubble, for its time is not the bubble's: see [Report.Check].
func Run(cfg Config) (*Result, error) {
	cfg.defaults()
	c, err := newCluster(cfg)
	if err != nil {
		return nil, err
	}
	r, err := c.run()
	err = errors.Join(err, c.shutDown(), c.err())
	time.Sleep(lingering)
	r.Report.Story = c.told()
	r.Report.Updates, r.Report.Holders, r.Report.Waited = c.monitor.Updates(), c.monitor.Holders(), c.monitor.Waited()
	return r, r.explain(err)
}

// Result is a report with the history of the clients' operations.
type Result struct {
	Report
	work *workload
}

// Check looks whether the history can be explained.
func (r *Result) Check() error { return r.explain(r.work.history.Check(checkBound)) }

func (r *Result) explain(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("seed %d: %w\nwhat happened:\n%s", r.Seed, err, r.Story)
}

func (c *cluster) run() (*Result, error) {
	cfg := c.cfg
	w := newWorkload(c.addresses(), cfg.Jobs, 25, cfg.Stale)
	w.devices = cfg.Devices
	r := &Result{Report: Report{Seed: cfg.Seed}, work: w}
	if err := c.adjust(nil); err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startBound)
	defer cancel()
	for _, f := range c.fleets {
		select {
		case <-f.Joined():
		case <-ctx.Done():
			return r, errors.New("the nodes did not join a cluster that is well")
		}
	}
	c.mu.Lock()
	c.begun = time.Now()
	c.mu.Unlock()
	plan := cfg.Schedule
	if plan == nil {
		plan = Plan(cfg.Seed, Shape{Servers: c.names(), Nodes: c.nodeHosts(), Clients: clientHosts, Length: cfg.Length, Every: cfg.Every, Only: cfg.Only, Devices: cfg.Devices})
	}
	clients, stop := context.WithCancel(context.Background())
	defer stop()
	var wg sync.WaitGroup
	transports := make([]*http.Transport, len(clientHosts))
	for i, h := range clientHosts {
		transports[i] = &http.Transport{DialContext: patient(c.net.Host(h)), MaxIdleConnsPerHost: cfg.Clients}
	}
	newClient := func(i int) *client {
		return &client{workload: w, n: i, rnd: rand.New(rand.NewPCG(cfg.Seed, uint64(i))), http: &http.Client{Transport: transports[i%len(transports)]}}
	}
	for i := range cfg.Clients {
		wg.Go(func() { newClient(i).run(clients) })
	}
	err := c.suffer(context.Background(), plan)
	if left := time.Until(c.begun.Add(cfg.Length)); left > 0 && err == nil {
		time.Sleep(left)
	}
	stop()
	wg.Wait()
	if err == nil {
		err = c.settle()
	}
	if err == nil {
		err = newClient(cfg.Clients).every(context.Background())
	}
	for _, t := range transports {
		t.CloseIdleConnections()
	}
	r.Term = c.term
	for _, s := range c.servers {
		s.onDisk(func(d *fabric.Disk) { r.Snapshots += d.Taken() })
	}
	r.Operations, r.Outcomes = w.history.Len(), w.seen
	return r, err
}

func (c *cluster) nodeHosts() (out []string) {
	for _, f := range c.fleets {
		out = append(out, f.host)
	}
	return out
}

// settle waits until nothing is under way any more, and says what does not come to rest.
func (c *cluster) settle() error {
	c.tell("all is well again")
	var err error
	for end := time.Now().Add(settleBound); time.Now().Before(end); time.Sleep(time.Second) {
		if failed := c.err(); failed != nil {
			return failed
		}
		l := c.leader()
		if l == nil {
			err = errors.New("nobody leads")
			continue
		}
		stores := c.stores()
		if err = Settled(stores[l.name].Snapshot(), c.held()); err != nil {
			continue
		}
		if err = Equal(stores); err == nil {
			c.tell("all is quiet")
			c.term, _ = strconv.Atoi(l.now().server.Raft().Stats()["term"])
			return nil
		}
	}
	return fmt.Errorf("%v after everything was well again: %w", settleBound, err)
}
