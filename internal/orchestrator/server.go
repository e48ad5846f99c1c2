// Package orchestrator is the composition root of the orchestrator: constructors and Run, no logic.
package orchestrator

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/consensus"
	"rockpool/internal/orchestrator/events"
	"rockpool/internal/orchestrator/httpapi"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/link"
	"rockpool/internal/orchestrator/state"
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
	Log       logrus.FieldLogger

	HeartbeatTTL   time.Duration // default 10 s
	HeartbeatGrace time.Duration // default 10 s
	Keep           leader.Keep
	Cluster        ClusterConfig
	LogSegment     int // bytes of one file of the Raft log; default 64 MiB
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
	// Advertise is the host that others are told; "" = that of the addresses.
	Advertise string
	// Join are servers to find at start, host:port of their gossip; names are looked up anew at each attempt, and stand for all their addresses.
	Join []string
	// GossipKey encrypts the membership protocol: 16, 24 or 32 bytes. Empty = it is open.
	GossipKey []byte
	TLS       TLSConfig
}

// TLSConfig names the files of mutual TLS between servers, nodes and clients. Files are read again on Reload.
type TLSConfig struct {
	CAFile, CertFile, KeyFile string // empty = no TLS
	// VerifyServerHostname asks that servers' certificates carry the name server.<region>.nomad (or .rockpool), so that a node's certificate cannot speak
	// as a server.
	VerifyServerHostname bool
	// HTTP asks for TLS on the HTTP API; VerifyHTTPSClient also for a certificate of its clients.
	HTTP, VerifyHTTPSClient bool
}

// Server is one orchestrator server.
type Server struct {
	store  *state.Store
	raft   *consensus.Raft
	leader *leader.Leader
	events *events.Broker
	api    *httpapi.API
	nodes  *link.Hub

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
	s := &Server{store: state.New(), nodes: link.NewHub(), ready: make(chan struct{})}
	s.events = events.New(events.DefaultLimits, 0)
	s.store.Observe(s.events.Publish)
	s.raft = consensus.New(consensus.Config{
		Dir: cfg.DataDir, ServerID: cfg.Name, Machine: machine{s.store, s.events}, Log: cfg.Log, SegmentBytes: cfg.LogSegment,
	})
	log := entryLog{s.raft}
	s.leader = leader.New(leader.Config{
		Store: s.store, Log: log, Logger: cfg.Log, HeartbeatTTL: cfg.HeartbeatTTL, Grace: cfg.HeartbeatGrace, Keep: cfg.Keep,
		Leading: func() { s.once.Do(func() { close(s.ready) }) },
	})
	s.api = httpapi.New(httpapi.Config{
		Store: s.store, Log: log, Leader: s.leader, Events: s.events, Logger: cfg.Log, Name: cfg.Name, Token: cfg.Token,
		JoinToken: cfg.JoinToken, Datacenter: cfg.Datacenter, Address: cmp.Or(cfg.Address, "127.0.0.1:4646"),
		Version: cmp.Or(cfg.Version, "0.0.0"), Nodes: s.nodes,
	})
	return s, nil
}

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

// Run runs the server until ctx ends: first streams and WebSockets end, then the leader's services, then Raft. It returns when
// everything has.
func (s *Server) Run(ctx context.Context) error {
	defer s.events.Close()
	return lifecycle.Run(ctx,
		lifecycle.Service{Name: "raft", Run: s.raft.Run},
		lifecycle.Service{Name: "leader", Run: func(ctx context.Context) error { return s.leader.Run(ctx, s.raft.Leadership()) }},
		lifecycle.Service{Name: "http api", Run: s.api.Run},
	)
}

// entryLog brings entries of the command table onto the log.
type entryLog struct{ *consensus.Raft }

// Apply encodes and applies an entry.
func (l entryLog) Apply(ctx context.Context, entry any) (any, uint64, error) {
	data, err := command.Encode(entry)
	if err != nil {
		return nil, 0, err
	}
	return l.Raft.Apply(ctx, data)
}

// machine is the state as consensus sees it.
type machine struct {
	store  *state.Store
	events *events.Broker
}

func (m machine) Apply(index uint64, entry []byte) (any, error) {
	return command.Apply(m.store, index, entry)
}

func (m machine) Snapshot() func(io.Writer) error { return m.store.Snapshot().Persist }

func (m machine) Restore(r io.Reader) error {
	err := m.store.Restore(r)
	if err == nil {
		m.events.Reset(m.store.Index())
	}
	return err
}
