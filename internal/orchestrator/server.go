// Package orchestrator is the composition root of the orchestrator: constructors and Run, no logic.
package orchestrator

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"rockpool/internal/certs"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/metrics"
	"rockpool/internal/orchestrator/audit"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/consensus"
	"rockpool/internal/orchestrator/events"
	"rockpool/internal/orchestrator/httpapi"
	"rockpool/internal/orchestrator/keyring"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/link"
	"rockpool/internal/orchestrator/membership"
	"rockpool/internal/orchestrator/propose"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/timeline"
)

// ServerConfig is what a server needs to know.
type ServerConfig struct {
	DataDir    string // empty = everything in memory, for tests
	Name       string // of the server; default the host's name. It must not change while DataDir is kept.
	Datacenter string // default dc1
	Address    string // ip:port that clients are told; default 127.0.0.1:4646
	Version    string // default 0.0.0
	// Token is the management token; "" = no access control, everything is allowed.
	Token string
	// JoinToken is what a node that is not known yet may send in X-Nomad-Token instead of Token. With neither, any node may join.
	JoinToken string
	// ACL asks callers for tokens also where Token is not set. The first one comes from the route acl/bootstrap. Nomad's key is acl.enabled.
	ACL bool
	// KeyFile holds the secret, at least 32 random bytes, that the root keys of variables are wrapped by. It is in no log and no snapshot, and must be the
	// same on all servers of a cluster. "" = keyring/kek in DataDir, made at the first start, for a server that is alone; a server of a cluster then has no
	// variables. Whoever loses the file loses the variables.
	KeyFile string
	// AuditFile gets a line of JSON for each request: who asked what, with what outcome, and no contents. "" = none is written.
	AuditFile string
	// Namespaces are made when they are missing and this server leads.
	Namespaces []string
	// Timeline records where the time of requests goes. nil = nothing is recorded.
	Timeline *timeline.Recorder
	Log      logrus.FieldLogger

	HeartbeatTTL   time.Duration // default 10 s
	HeartbeatGrace time.Duration // default 10 s
	Keep           leader.Keep
	Cluster        ClusterConfig
	LogSegment     int // bytes of one file of the Raft log; default 64 MiB
	EventBuffer    int // bytes of events that are kept for readers who come back; default 128 MiB
	// Metrics takes the server's figures. nil = it has a registry of its own.
	Metrics *metrics.Registry
}

// ClusterConfig makes a server one of several. The zero value is a server alone.
type ClusterConfig struct {
	// Expect is how many servers, 1, 3 or 5, must have met before the first election; 0 = alone, or the cluster exists and this one joins it.
	Expect int
	Region string // default global
	// RPCAddress is the host:port at which other servers reach this one: Raft and forwarded requests. "" = alone.
	RPCAddress string
	// GossipAddress is the host:port of the membership protocol, TCP and UDP.
	GossipAddress string
	// AdvertiseRPC and AdvertiseGossip are the host, or host:port, that others are told; "" = that of the address.
	AdvertiseRPC, AdvertiseGossip string
	// Join are servers to find at start, host:port of their gossip; names are looked up anew at each attempt, and stand for all their addresses.
	Join []string
	// JoinInterval is the longest time between two attempts; 0 = 30 s.
	JoinInterval time.Duration
	// GossipKey encrypts the membership protocol: 16, 24 or 32 bytes. Empty = it is open.
	GossipKey []byte
	// Certs are those that servers show to one another. nil = they speak without TLS.
	Certs *certs.Store
	// HTTPS says that Address speaks TLS.
	HTTPS bool
	// StrictIntroduction lets only those nodes join that show an introduction token, JoinToken or Token.
	StrictIntroduction bool
	// RaftTimeout is how long a server hears nothing of the leader before it wants to be one; 0 = 500 ms.
	RaftTimeout time.Duration
	// GossipInterval is the time between two probes of another server, AutopilotInterval that between two looks at the servers' health; 0 = 1 s and 2 s.
	GossipInterval, AutopilotInterval time.Duration
	// Simulated takes the place of this machine; nil = the machine it is.
	Simulated *Simulated
}

// Simulated is what a server in a simulation stands on. Its id is its name.
type Simulated struct {
	Listen func(address string) (net.Listener, error)
	Dial   func(ctx context.Context, address string) (net.Conn, error)
	Stores *consensus.Stores
	Gossip membership.Transport
	Entry  func(entry any) // called with each entry before it is proposed
	// How much makes a snapshot; see consensus.Config.
	SnapshotEntries uint64
	SnapshotBytes   int64
}

// Server is one orchestrator server.
type Server struct {
	store  *state.Store
	raft   *consensus.Raft
	leader *leader.Leader
	events *events.Broker
	api    *httpapi.API
	// proposer is between everything that writes and raft.
	proposer *propose.Proposer
	nodes    *link.Hub

	cluster *cluster
	audit   *audit.Log // nil = none is kept

	ready chan struct{}
	once  sync.Once
}

// NewServer puts a server together. It starts nothing.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = logging.Discard()
	}
	if cfg.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("find a name for the server: %w", err)
		}
		cfg.Name = host
	}
	cfg.Datacenter = cmp.Or(cfg.Datacenter, "dc1")
	if cfg.Metrics == nil {
		cfg.Metrics = metrics.New(nil)
	}
	cfg.Address = cmp.Or(cfg.Address, "127.0.0.1:4646")
	s := &Server{store: state.New(), nodes: link.NewHub(), ready: make(chan struct{})}
	s.cluster = &cluster{store: s.store}
	id, err := s.connect(cfg)
	if err != nil {
		return nil, err
	}
	held := events.DefaultLimits
	held.Bytes = cmp.Or(cfg.EventBuffer, held.Bytes)
	s.events = events.New(held, 0)
	s.store.Observe(s.events.Publish)
	rc := consensus.Config{
		Dir: cfg.DataDir, ServerID: id, Machine: measured{machine{s.store, s.events, func() { s.api.Restored() }}, cfg.Metrics}, Log: cfg.Log, SegmentBytes: cfg.LogSegment,
		Network: s.cluster.network, Timeout: cfg.Cluster.RaftTimeout,
	}
	allows := s.cluster.allows
	if sim := cfg.Cluster.Simulated; sim != nil {
		rc.Stores, rc.SnapshotEntries, rc.SnapshotBytes = sim.Stores, sim.SnapshotEntries, sim.SnapshotBytes
		allows = func(entry any) error { sim.Entry(entry); return s.cluster.allows(entry) }
	}
	s.raft = consensus.New(rc)
	s.cluster.Raft = s.raft
	if s.cluster.members != nil {
		s.cluster.founder = membership.NewFounder(s.cluster.members, s.raft, s.cluster.transport)
	}
	s.cluster.pilot = consensus.NewAutopilot(s.raft, fellows{s.cluster}, cfg.Cluster.AutopilotInterval)
	s.proposer = propose.New(s.raft, func() bool { return s.cluster.allows(&command.Batch{}) == nil })
	log := entryLog{s.raft, s.proposer, allows}
	kek, err := keyEncryptionKey(cfg)
	if err != nil {
		return nil, err
	}
	var auditor httpapi.Auditor
	if cfg.AuditFile != "" {
		s.audit = audit.New(cfg.AuditFile, cfg.Log)
		auditor = s.audit
	}
	resetFile := ""
	if cfg.DataDir != "" {
		resetFile = filepath.Join(cfg.DataDir, "acl-bootstrap-reset")
	}
	s.leader = leader.New(leader.Config{
		Store: s.store, Log: log, Logger: cfg.Log, HeartbeatTTL: cfg.HeartbeatTTL, Grace: cfg.HeartbeatGrace, Keep: cfg.Keep,
		Crowded: func() bool { n, of := s.proposer.Waiting(); return n > of/4*3 },
		Measure: cfg.Metrics.Since, Encode: log.Encode,
		Leading: func() {
			s.once.Do(func() { close(s.ready) })
			s.raft.Tell()
		},
		Namespaces: cfg.Namespaces, KEK: kek, Prober: s.nodes,
		Services: []lifecycle.Service{{Name: "autopilot", Run: s.cluster.pilot.Run}, {Name: "configuration of Raft", Run: s.reconcile}},
	})
	s.api = httpapi.New(httpapi.Config{
		Store: s.store, Log: log, Leader: s.leader, Events: s.events, Logger: cfg.Log, Name: cfg.Name, Token: cfg.Token,
		JoinToken: cfg.JoinToken, Datacenter: cfg.Datacenter, Address: cfg.Address,
		Version: cmp.Or(cfg.Version, "0.0.0"), Region: cfg.Cluster.Region, Cluster: s.cluster, StrictIntroduction: cfg.Cluster.StrictIntroduction,
		ACL: cfg.ACL, ACLResetFile: resetFile, KEK: kek, Audit: auditor, Nodes: s.nodes, Servers: s.ServerURLs, Timeline: cfg.Timeline,
	})
	cfg.Metrics.Read(s.api.Figures)
	s.api.SetProcess(httpapi.Process{Metrics: cfg.Metrics})
	return s, nil
}

// SetProcess tells the API of the process around the server.
func (s *Server) SetProcess(p httpapi.Process) { s.api.SetProcess(p) }

// Handler serves the HTTP API. It must be served by HTTP/1.1 only, for the sake of WebSockets.
func (s *Server) Handler() http.Handler { return s.api }

// SetLocalNode makes the node in this process reachable, by what answers for it.
func (s *Server) SetLocalNode(id string, node http.Handler) { s.nodes.SetLocal(id, node) }

// Nodes knows the nodes that this server can reach. It is how the leader asks one for a sign of life.
func (s *Server) Nodes() *link.Hub { return s.nodes }

// Ready is closed once this server has taken leadership for the first time: everything can be asked of it.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// WaitLeader waits for Ready.
func (s *Server) WaitLeader(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for leadership: %w", context.Cause(ctx))
	}
}

// Close gives back what a server that is not run holds.
func (s *Server) Close() error {
	if s.cluster.network == nil {
		return nil
	}
	return s.cluster.network.Close()
}

// Run runs the server until ctx ends: first streams and WebSockets end, then the leader's services, then Raft. It returns when
// everything has.
func (s *Server) Run(ctx context.Context) error {
	defer s.events.Close()
	below, above := s.clusterServices()
	if s.audit != nil {
		below = append([]lifecycle.Service{{Name: "audit", Run: s.audit.Run}}, below...) // first, so that it ends last
	}
	return lifecycle.Run(ctx, slices.Concat(below, []lifecycle.Service{
		{Name: "raft", Run: s.raft.Run},
		{Name: "proposer", Run: s.proposer.Run},
		{Name: "leader", Run: func(ctx context.Context) error { return s.leader.Run(ctx, s.raft.Leadership()) }},
	}, above, []lifecycle.Service{{Name: "http api", Run: s.api.Run}})...)
}

// keyEncryptionKey is the key that wraps root keys; nil where a server of a cluster was given none.
func keyEncryptionKey(cfg ServerConfig) (*keyring.Key, error) {
	switch {
	case cfg.KeyFile != "":
		return keyring.Load(cfg.KeyFile)
	case cfg.Cluster.RPCAddress != "" || cfg.Cluster.Expect > 1 || len(cfg.Cluster.Join) > 0:
		return nil, nil
	case cfg.DataDir == "":
		return keyring.Ephemeral()
	}
	return keyring.LoadOrCreate(filepath.Join(cfg.DataDir, "keyring", "kek"))
}

// entryLog brings entries of the command table onto the log.
type entryLog struct {
	*consensus.Raft
	proposer *propose.Proposer
	allows   func(entry any) error
}

// Apply applies an entry, together with others where many wait.
func (l entryLog) Apply(ctx context.Context, entry any) (any, uint64, error) {
	entry, err := l.densest(entry)
	if err != nil {
		return nil, 0, err
	}
	return l.proposer.Apply(ctx, entry)
}

// Encode makes the form of an entry that becomes part of a batch.
func (l entryLog) Encode(entry any) ([]byte, error) {
	if err := l.allows(&command.Batch{}); err != nil {
		return nil, err
	}
	entry, err := l.densest(entry)
	if err != nil {
		return nil, err
	}
	return command.Encode(entry)
}

// densest is the densest form of an entry that all servers know.
func (l entryLog) densest(entry any) (any, error) {
	if err := l.allows(entry); err != nil {
		return nil, err
	}
	if dense, err := command.Pack(entry); err != nil {
		return nil, err
	} else if dense != nil && l.allows(dense) == nil {
		return dense, nil
	}
	return entry, nil
}

// machine is the state as consensus sees it.
type machine struct {
	store    *state.Store
	events   *events.Broker
	restored func()
}

func (m machine) Apply(index uint64, entry []byte) (any, error) {
	return command.Apply(m.store, index, entry)
}

func (m machine) Snapshot() func(io.Writer) error { return m.store.Snapshot().PersistDense }

func (m machine) Restore(r io.Reader) error {
	err := m.store.Restore(r)
	if err == nil {
		m.events.Reset(m.store.Index())
		m.restored()
	}
	return err
}
