package membership

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
)

// Role is the tag by which servers know one another.
const Role = "rockpool"

// Config is what a server tells and needs.
type Config struct {
	Name, ID, Region, Datacenter string
	Build                        string // version of the program
	Entries                      string // log entries that it knows; see package command
	Expect                       int    // servers of the first configuration; 0 = the cluster exists
	RPCAddress                   string // host:port
	HTTP                         string // URL of its HTTP API, for nodes
	Address                      string // host:port of gossip
	Advertise                    string // host or host:port that others are told; "" = that of Address
	Key                          []byte // 16, 24 or 32 bytes, until another is used; empty = gossip is open
	Join                         []string
	JoinInterval                 time.Duration // the longest between two attempts; 0 = 30 s
	Dir                          string        // what is remembered of other servers; "" = nothing
	Log                          logging.Logger
	// Interval is the time between two probes of other servers. 0 = 1 s.
	Interval time.Duration
	// Transport takes the place of TCP and UDP at Address; nil = it is those.
	Transport Transport
}

// Transport carries the protocol of the membership.
type Transport = memberlist.Transport

// Status of a member.
const (
	Alive   = "alive"
	Leaving = "leaving"
	Left    = "left"
	Failed  = "failed"
)

// Member is one server.
type Member struct {
	Name   string // <name>.<region>
	Addr   string
	Port   uint16
	Status string
	Tags   map[string]string

	ProtocolMin, ProtocolMax, ProtocolCur uint8
	DelegateMin, DelegateMax, DelegateCur uint8
}

// ID is the server's id in Raft.
func (m Member) ID() string { return m.Tags["id"] }

// RPCAddress is where other servers reach it.
func (m Member) RPCAddress() string { return net.JoinHostPort(m.Tags["rpc_addr"], m.Tags["port"]) }

// Expect is how many servers it waits for.
func (m Member) Expect() int {
	n, _ := strconv.Atoi(m.Tags["expect"])
	return n
}

// Membership is this server's view of the others.
type Membership struct {
	cfg     Config
	started chan struct{}

	mu      sync.Mutex
	serf    *serf.Serf    // guarded by mu; nil = not running
	changed chan struct{} // guarded by mu; closed at the next change
}

// New makes a server's view.
func New(cfg Config) (*Membership, error) {
	if cfg.Log == nil {
		cfg.Log = logging.Discard()
	}
	if cfg.Region == "" {
		cfg.Region = "global"
	}
	if cfg.JoinInterval == 0 {
		cfg.JoinInterval = 30 * time.Second
	}
	if n := len(cfg.Key); n != 0 && memberlist.ValidateKey(cfg.Key) != nil {
		return nil, fmt.Errorf("the gossip key has %d bytes: it must have 16, 24 or 32", n)
	}
	switch cfg.Expect {
	case 0, 1, 3, 5, 7:
	default:
		return nil, fmt.Errorf("a cluster of %d servers is expected: expect 1, 3 or 5, so that a majority is clear", cfg.Expect)
	}
	for _, a := range []string{cfg.RPCAddress, cfg.Address} {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return nil, fmt.Errorf("the address %q of a server in a cluster is no host:port: %w", a, err)
		}
	}
	return &Membership{cfg: cfg, started: make(chan struct{}), changed: make(chan struct{})}, nil
}

func (m *Membership) tags() map[string]string {
	host, port, _ := net.SplitHostPort(m.cfg.RPCAddress)
	t := map[string]string{
		"role": Role, "region": m.cfg.Region, "dc": m.cfg.Datacenter, "id": m.cfg.ID, "build": m.cfg.Build, "rpc_addr": host, "port": port,
		"raft_vsn": "3", "vsn": "1", "entries": m.cfg.Entries, "http": m.cfg.HTTP,
	}
	switch m.cfg.Expect {
	case 0:
	case 1:
		t["bootstrap"] = "1"
		fallthrough
	default:
		t["expect"] = strconv.Itoa(m.cfg.Expect)
	}
	return t
}

func (m *Membership) config(events chan<- serf.Event) (*serf.Config, error) {
	host, port, err := net.SplitHostPort(m.cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("gossip address: %w", err)
	}
	n, err := gossipPort(port)
	if err != nil {
		return nil, err
	}
	told, toldPort := m.cfg.Advertise, n
	if h, p, err := net.SplitHostPort(told); err == nil {
		told = h
		if toldPort, err = gossipPort(p); err != nil {
			return nil, err
		}
	}
	lines := stdlog.New(writer{m.cfg.Log}, "", 0)
	c := serf.DefaultConfig()
	c.Init()
	c.NodeName = m.cfg.Name + "." + m.cfg.Region
	c.Tags = m.tags()
	c.EventCh = events
	c.Logger, c.LogOutput = lines, nil
	c.Merge = merge{m.cfg.Region}
	c.RejoinAfterLeave = true
	c.DisableCoordinates = true
	c.MemberlistConfig = memberlist.DefaultLANConfig()
	l := c.MemberlistConfig
	l.BindAddr, l.BindPort = host, n
	if host == "" {
		l.BindAddr = "0.0.0.0"
	}
	l.AdvertiseAddr, l.AdvertisePort = told, toldPort
	l.Logger, l.LogOutput = lines, nil
	if l.Keyring, err = m.keyring(); err != nil {
		return nil, err
	}
	c.KeyringFile = m.keyFile()
	// A server that failed may come back at another address.
	l.DeadNodeReclaimTime = 30 * time.Second
	if m.cfg.Interval > 0 {
		l.ProbeInterval, l.ProbeTimeout = m.cfg.Interval, m.cfg.Interval/2
		l.GossipInterval = min(l.GossipInterval, m.cfg.Interval)
		c.ReconnectInterval = 5 * m.cfg.Interval
	}
	if m.cfg.Transport != nil {
		l.Transport = m.cfg.Transport
	}
	if m.cfg.Dir != "" {
		dir := filepath.Join(m.cfg.Dir, "gossip")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the directory of the membership: %w", err)
		}
		c.SnapshotPath = filepath.Join(dir, "known-servers")
	}
	return c, nil
}

func gossipPort(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("gossip port %q: it must be a number of at most 65535", text)
	}
	return int(n), nil
}

// Run takes part in the gossip until ctx ends. It does not say farewell: a server that is restarted stays a member, and one that is gone for good is removed
// by an operator or by autopilot.
func (m *Membership) Run(ctx context.Context) error {
	events := make(chan serf.Event, 64)
	c, err := m.config(events)
	if err != nil {
		return err
	}
	s, err := serf.Create(c)
	if err != nil {
		return fmt.Errorf("start the membership on %s: %w", m.cfg.Address, err)
	}
	m.mu.Lock()
	m.serf = s
	m.mu.Unlock()
	close(m.started)
	var joining sync.WaitGroup
	joining.Go(func() { m.joinAll(ctx) })
	for ctx.Err() == nil {
		select {
		case <-events:
			m.tell()
		case <-s.ShutdownCh():
			err = errors.New("the membership ended by itself")
			goto ended
		case <-ctx.Done():
		}
	}
ended:
	m.mu.Lock()
	m.serf = nil
	m.mu.Unlock()
	// Serf waits for its events to be read while it ends.
	done := make(chan struct{})
	joining.Go(func() {
		for {
			select {
			case <-events:
			case <-done:
				return
			}
		}
	})
	err = errors.Join(err, s.Shutdown())
	close(done)
	joining.Wait()
	return err
}

// joinAll tries the configured servers until another one is seen. Names are looked up anew each time.
func (m *Membership) joinAll(ctx context.Context) {
	wait := min(time.Second/4, m.cfg.JoinInterval)
	for len(m.cfg.Join) > 0 && ctx.Err() == nil {
		alive := 0
		for _, o := range m.Members() {
			if o.Status == Alive {
				alive++
			}
		}
		if alive > 1 {
			return
		}
		if _, err := m.Join(m.cfg.Join); err != nil && ctx.Err() == nil {
			m.cfg.Log.WithFields(logging.Fields{"addresses": strings.Join(m.cfg.Join, " "), "error": err.Error()}).Info("no other server could be joined, it will be tried again")
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-m.Changed():
			t.Stop()
		case <-ctx.Done():
			t.Stop()
		}
		wait = min(2*wait, m.cfg.JoinInterval)
	}
}

func (m *Membership) tell() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.changed)
	m.changed = make(chan struct{})
}

// Changed is closed at the next change of any member. Who asks for members asks for this channel first.
func (m *Membership) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

func (m *Membership) running() *serf.Serf {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.serf
}

// Started is closed once gossip has begun.
func (m *Membership) Started() <-chan struct{} { return m.started }

// Members are all servers that are known, by name; none while Run is not under way.
func (m *Membership) Members() []Member {
	s := m.running()
	if s == nil {
		return nil
	}
	var out []Member
	for _, o := range s.Members() {
		out = append(out, Member{
			Name: o.Name, Addr: o.Addr.String(), Port: o.Port, Status: o.Status.String(), Tags: o.Tags,
			ProtocolMin: o.ProtocolMin, ProtocolMax: o.ProtocolMax, ProtocolCur: o.ProtocolCur,
			DelegateMin: o.DelegateMin, DelegateMax: o.DelegateMax, DelegateCur: o.DelegateCur,
		})
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Local is this server; false while Run is not under way.
func (m *Membership) Local() (Member, bool) {
	for _, o := range m.Members() {
		if o.Name == m.cfg.Name+"."+m.cfg.Region {
			return o, true
		}
	}
	return Member{}, false
}

// Join meets the servers at these gossip addresses and returns how many were reached.
func (m *Membership) Join(addresses []string) (int, error) {
	s := m.running()
	if s == nil {
		return 0, fault.New(fault.Unavailable, "the membership is not running")
	}
	n, err := s.Join(addresses, true)
	if err != nil {
		return n, fmt.Errorf("join: %w", err)
	}
	return n, nil
}

// ForceLeave takes a failed server for left; with prune it is forgotten as well.
func (m *Membership) ForceLeave(name string, prune bool) error {
	s := m.running()
	if s == nil {
		return fault.New(fault.Unavailable, "the membership is not running")
	}
	known := slices.ContainsFunc(s.Members(), func(o serf.Member) bool { return o.Name == name })
	if !known && !strings.HasSuffix(name, "."+m.cfg.Region) {
		name += "." + m.cfg.Region
		known = slices.ContainsFunc(s.Members(), func(o serf.Member) bool { return o.Name == name })
	}
	if !known {
		return fault.New(fault.NotFound, "there is no member %q", name)
	}
	remove := s.RemoveFailedNode
	if prune {
		remove = s.RemoveFailedNodePrune
	}
	if err := remove(name); err != nil {
		return fmt.Errorf("force member %s to leave: %w", name, err)
	}
	return nil
}

// merge refuses to meet what is no server of this region.
type merge struct{ region string }

func (g merge) NotifyMerge(members []*serf.Member) error {
	for _, o := range members {
		if o.Tags["role"] != Role {
			return fmt.Errorf("%s is no server of Rockpool: its role is %q", o.Name, o.Tags["role"])
		}
		if o.Tags["region"] != g.region {
			return fmt.Errorf("%s is a server of region %q, this is %q", o.Name, o.Tags["region"], g.region)
		}
	}
	return nil
}

// writer brings lines of serf and memberlist, such as "[WARN] memberlist: …", into our log.
type writer struct{ log logging.Logger }

var _ io.Writer = writer{}

func (w writer) Write(p []byte) (int, error) {
	line := strings.TrimSpace(string(p))
	l := w.log.WithField("component", "gossip").WithField("line", line)
	switch {
	case strings.HasPrefix(line, "[ERR]"), strings.HasPrefix(line, "[ERROR]"):
		l.Warn("the membership reports an error") // it goes on by itself
	case strings.HasPrefix(line, "[WARN]"):
		l.Info("the membership warns")
	default:
		l.Debug("the membership speaks")
	}
	return len(p), nil
}
