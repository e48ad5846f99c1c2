package orchestrator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/lifecycle"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/consensus"
	"rockpool/internal/orchestrator/httpapi"
	"rockpool/internal/orchestrator/membership"
	"rockpool/internal/orchestrator/peer"
	"rockpool/internal/orchestrator/state"
)

// cluster is what a server has to do with others. Alone it is consensus and nothing else.
type cluster struct {
	*consensus.Raft
	store     *state.Store
	network   *peer.Network          // nil = alone
	members   *membership.Membership // nil = alone
	founder   *membership.Founder
	pilot     *consensus.Autopilot
	transport *http.Transport
}

var _ httpapi.Cluster = (*cluster)(nil)

func (c *cluster) Members() *membership.Membership { return c.members }

func (c *cluster) Address() string {
	if c.network == nil {
		return ""
	}
	return c.network.Address()
}

func (c *cluster) Transport() http.RoundTripper {
	if c.transport == nil {
		return nil
	}
	return c.transport
}

func (c *cluster) Health() (consensus.ClusterHealth, error) { return c.pilot.Health() }

// fellows are the servers as autopilot sees them.
type fellows struct{ *cluster }

func (f fellows) Servers() []consensus.Known {
	if f.members == nil { // alone: what Raft knows is all there is
		peers, _, _ := f.Peers()
		var out []consensus.Known
		for _, p := range peers {
			out = append(out, consensus.Known{ID: p.ID, Name: p.ID, Address: p.Address, Version: Version(), Status: consensus.StatusAlive})
		}
		return out
	}
	var out []consensus.Known
	for _, m := range f.members.Members() {
		k := consensus.Known{ID: m.ID(), Name: m.Name, Address: m.RPCAddress(), Version: m.Tags["build"], Status: consensus.StatusFailed}
		switch m.Status {
		case membership.Alive:
			k.Status = consensus.StatusAlive
		case membership.Left:
			k.Status = consensus.StatusLeft
		}
		out = append(out, k)
	}
	return out
}

func (f fellows) Progress(ctx context.Context, address string) (consensus.Progress, error) {
	if f.founder == nil {
		return consensus.Progress{}, errors.New("this server is alone")
	}
	return f.founder.Progress(ctx, address)
}

func (f fellows) RemoveFailed(k consensus.Known) {
	if f.members != nil {
		_ = f.members.ForceLeave(k.Name, false) // it is tried again while the server stays failed
	}
}

func (f fellows) AutopilotConfig() consensus.AutopilotConfig {
	c := f.store.Snapshot().Autopilot()
	return consensus.AutopilotConfig{
		CleanupDeadServers: c.CleanupDeadServers, LastContactThreshold: c.LastContactThreshold, MaxTrailingLogs: c.MaxTrailingLogs,
		MinQuorum: c.MinQuorum, ServerStabilizationTime: c.ServerStabilizationTime,
	}
}

// allows is the gate of rolling upgrades: it refuses an entry that a server of the cluster does not know.
func (c *cluster) allows(entry any) error {
	if c.members == nil || command.Original(entry) {
		return nil
	}
	peers, _, err := c.Peers()
	if err != nil {
		return err
	}
	known := map[string]string{}
	for _, m := range c.members.Members() {
		if m.Status != membership.Left || known[m.ID()] == "" {
			known[m.ID()] = m.Tags["entries"]
		}
	}
	for _, p := range peers {
		if !command.Covers(known[p.ID], entry) {
			return fault.Wrap(fault.Unavailable, command.ErrNotKnownToAll, "server %s is not known to understand %s: upgrade all servers first", p.ID, command.Describe(entry))
		}
	}
	return nil
}

// serverID is the id of the server whose data are in dir. It belongs to the data: a server that lost them is another one, since it no longer knows what it has
// promised. Data from before there were ids belong to the server of that name.
func serverID(dir, name string) (string, error) {
	if dir == "" {
		return ident.New(), nil
	}
	path := filepath.Join(dir, "server-id")
	b, err := os.ReadFile(path)
	switch {
	case err == nil && ident.ValidName(strings.TrimSpace(string(b))):
		return strings.TrimSpace(string(b)), nil
	case err == nil:
		return "", fmt.Errorf("server id: %s holds none: restore the file, or remove the data directory to start a new server", path)
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("server id: %w", err)
	}
	id := ident.New()
	if _, err := os.Stat(filepath.Join(dir, "log")); err == nil {
		id = name
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("server id: %w", err)
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return "", fmt.Errorf("server id: %w", err)
	}
	_, err = f.WriteString(id + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return "", fmt.Errorf("server id: %w", err)
	}
	return id, nil
}

// connect makes what a server needs to be one of several. Without an RPC address there is nothing to make.
func (s *Server) connect(cfg ServerConfig) (id string, err error) {
	cc := cfg.Cluster
	if cc.RPCAddress == "" {
		if cc.Expect > 1 || len(cc.Join) > 0 || cc.GossipAddress != "" {
			return "", errors.New("a server in a cluster needs an RPC address that the others reach it by")
		}
		return cfg.Name, nil
	}
	if cc.GossipAddress == "" {
		return "", errors.New("a server in a cluster needs an address for gossip, besides that for RPC")
	}
	pc := peer.Config{Address: cc.RPCAddress, Advertise: cc.AdvertiseRPC, Log: cfg.Log}
	var gossip membership.Transport
	if sim := cc.Simulated; sim != nil {
		id, pc.Listen, pc.Dial, gossip = cfg.Name, sim.Listen, sim.Dial, sim.Gossip
	} else if id, err = serverID(cfg.DataDir, cfg.Name); err != nil {
		return "", err
	}
	if cc.Certs != nil {
		pc.Listener, pc.Dialer = cc.Certs.RPCListener(), cc.Certs.RPCDialer()
	}
	if s.cluster.network, err = peer.Listen(pc); err != nil {
		return "", err
	}
	scheme := "http://"
	if cc.HTTPS {
		scheme = "https://"
	}
	s.cluster.members, err = membership.New(membership.Config{
		Name: cfg.Name, ID: id, Region: cc.Region, Datacenter: cfg.Datacenter, Build: cmp.Or(cfg.Version, "0.0.0"), Entries: command.Known(),
		Expect: cc.Expect, RPCAddress: s.cluster.network.Address(), HTTP: scheme + cfg.Address, Address: cc.GossipAddress, Advertise: cc.AdvertiseGossip,
		Key: cc.GossipKey, Join: cc.Join, JoinInterval: cc.JoinInterval, Dir: cfg.DataDir, Log: cfg.Log, Interval: cc.GossipInterval, Transport: gossip,
	})
	if err != nil {
		return "", errors.Join(err, s.cluster.network.Close())
	}
	s.cluster.transport = s.cluster.network.Transport()
	return id, nil
}

// ServerURLs are the HTTP APIs of all servers that are alive; empty for a server alone.
func (s *Server) ServerURLs() []string {
	if s.cluster.members == nil {
		return nil
	}
	return httpapi.ServerURLs(s.cluster.members.Members())
}

// Members is the view of the other servers; nil for a server alone.
func (s *Server) Members() *membership.Membership { return s.cluster.members }

// Raft is the server's part in consensus.
func (s *Server) Raft() *consensus.Raft { return s.raft }

// Hash is the digest of the state as this server has it, and the index it stands for.
func (s *Server) Hash() (hash string, index uint64, err error) {
	snap := s.store.Snapshot()
	hash, err = snap.Hash()
	return hash, snap.Index(), err
}

// State is this server's copy of the state.
func (s *Server) State() *state.Store { return s.store }

// Leading reports whether this server's services of leadership run.
func (s *Server) Leading() bool { return s.leader.Leading() }

// services of a server among others, in the order in which they start around those of one alone.
func (s *Server) clusterServices() (below, above []lifecycle.Service) {
	c := s.cluster
	if c.network == nil {
		return nil, nil
	}
	below = []lifecycle.Service{{Name: "rpc", Run: func(ctx context.Context) error {
		defer c.transport.CloseIdleConnections()
		return c.network.Run(ctx)
	}}}
	above = []lifecycle.Service{
		{Name: "membership", Run: c.members.Run},
		{Name: "founding", Run: c.founder.Run},
		{Name: "servers' http", Run: s.servePeers},
		{Name: "readiness of the server", Run: s.watchReady},
	}
	return below, above
}

// servePeers serves other servers: what only they may ask, and the requests that they forward.
func (s *Server) servePeers(ctx context.Context) error {
	forwarded := httpapi.Forwarded(s.api)
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	h := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, membership.PathPrefix) {
				s.cluster.founder.ServeHTTP(w, r)
				return
			}
			forwarded.ServeHTTP(w, r)
		}),
		Protocols: &protocols, ReadHeaderTimeout: 15 * time.Second,
		IdleTimeout: 5 * time.Minute, // longer than the other side keeps a connection, so that it is never used while it is being closed
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stopped := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(stopped)
		quick, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if h.Shutdown(quick) != nil {
			_ = h.Close()
		}
	})
	err := h.Serve(s.cluster.network.Listener(peer.HTTP))
	if !unhook() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve other servers: %w", err)
}

// watchReady closes Ready on a server that does not lead, once it has caught up with the leader.
func (s *Server) watchReady(ctx context.Context) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for !s.raft.CaughtUp() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
	// A leader is ready once its services run, which closes it too.
	if leads, _ := s.raft.Leader(); !leads {
		s.once.Do(func() { close(s.ready) })
	}
	<-ctx.Done()
	return nil
}

// reconcile is a service of one leadership.
func (s *Server) reconcile(ctx context.Context) error {
	if s.cluster.members == nil {
		<-ctx.Done()
		return nil
	}
	return s.cluster.members.Reconcile(ctx, s.raft)
}
