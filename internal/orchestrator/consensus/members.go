package consensus

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/peer"
)

// Peer is one server of the cluster's configuration.
type Peer struct {
	ID, Address string
	Voter       bool
}

func configuration(peers []Peer) raft.Configuration {
	var c raft.Configuration
	for _, p := range peers {
		s := raft.Server{ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.Address), Suffrage: raft.Nonvoter}
		if p.Voter {
			s.Suffrage = raft.Voter
		}
		c.Servers = append(c.Servers, s)
	}
	return c
}

// stream is a peer.Network as Raft's transport wants it.
type stream struct {
	net.Listener
	network *peer.Network
}

func (s stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.network.Dial(ctx, peer.Raft, string(address))
}

const (
	rpcTimeout = 2 * time.Second // of one message between servers
	connPool   = 3               // connections kept for each server
)

func (r *Raft) transport() raft.Transport {
	switch {
	case r.cfg.Transport != nil:
		return r.cfg.Transport
	case r.cfg.Network != nil:
		return transport{raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: stream{r.cfg.Network.Listener(peer.Raft), r.cfg.Network}, MaxPool: connPool, Timeout: rpcTimeout, Logger: bridge(r.cfg.Log),
		})}
	}
	_, t := raft.NewInmemTransport(raft.ServerAddress(r.cfg.ServerID))
	return t
}

func closeTransport(t raft.Transport) error {
	if n, ok := t.(transport); ok {
		n.CloseStreams()
		if err := n.Close(); err != nil {
			return fmt.Errorf("close the transport: %w", err)
		}
	}
	return nil
}

func voters(n *raft.Raft) int {
	count := 0
	for _, s := range n.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			count++
		}
	}
	return count
}

// changes tells all who wait that the leader may be another one.
type changes struct {
	mu   sync.Mutex
	next chan struct{} // guarded by mu; nil = nobody waits
}

func (c *changes) tell() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next != nil {
		close(c.next)
		c.next = nil
	}
}

func (c *changes) wait() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		c.next = make(chan struct{})
	}
	return c.next
}

// Changed is closed when the leader has changed, or may have. Who asks who leads asks for this channel first.
func (r *Raft) Changed() <-chan struct{} { return r.changes.wait() }

// Tell closes the channel of Changed: something that depends on leadership is ready.
func (r *Raft) Tell() { r.changes.tell() }

// Leader reports whether this server leads, and the id of the leader if one is known.
func (r *Raft) Leader() (leads bool, id string) {
	n := r.raft.Load()
	if n == nil {
		return false, ""
	}
	_, lid := n.LeaderWithID()
	return n.State() == raft.Leader, string(lid)
}

// LeaderAddress is where the leader is reached; "" = none is known.
func (r *Raft) LeaderAddress() string {
	n := r.raft.Load()
	if n == nil {
		return ""
	}
	a, _ := n.LeaderWithID()
	return string(a)
}

// LastContact is how long ago this server heard of the leader: 0 when it leads, less than 0 when it never has.
func (r *Raft) LastContact() time.Duration {
	n := r.raft.Load()
	switch {
	case n == nil:
		return -1
	case n.State() == raft.Leader:
		return 0
	}
	t := n.LastContact()
	if t.IsZero() {
		return -1
	}
	return max(time.Since(t), 0)
}

// Progress is how far a server is.
type Progress struct {
	LastIndex   uint64
	LastTerm    uint64
	LastContact time.Duration // less than 0 = never
	Configured  bool          // it has a configuration: its cluster exists
}

// Progress reports how far this server is; false when it does not run.
func (r *Raft) Progress() (Progress, bool) {
	n := r.raft.Load()
	if n == nil {
		return Progress{}, false
	}
	p := Progress{LastIndex: n.LastIndex(), LastContact: r.LastContact(), Configured: len(n.GetConfiguration().Configuration().Servers) > 0}
	_, _ = fmt.Sscan(n.Stats()["last_log_term"], &p.LastTerm)
	return p, true
}

// CaughtUp reports whether this server has applied what was known to be committed when it first heard of a leader after its start.
func (r *Raft) CaughtUp() bool {
	if r.caught.Load() {
		return true
	}
	n := r.raft.Load()
	if n == nil {
		return false
	}
	_, leader := n.LeaderWithID()
	c := n.CommitIndex()
	if leader == "" || c == 0 || n.AppliedIndex() < c {
		return false
	}
	r.caught.Store(true)
	return true
}

// Peers are the servers of the newest configuration, and its index.
func (r *Raft) Peers() (peers []Peer, index uint64, err error) {
	n := r.raft.Load()
	if n == nil {
		return nil, 0, fault.New(fault.Unavailable, "No cluster leader")
	}
	f := n.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, 0, fmt.Errorf("read the servers: %w", err)
	}
	for _, s := range f.Configuration().Servers {
		peers = append(peers, Peer{string(s.ID), string(s.Address), s.Suffrage == raft.Voter})
	}
	return peers, f.Index(), nil
}

// call makes one call of a node that leads.
func (r *Raft) call(ctx context.Context, what string, f func(n *raft.Raft) raft.Future) error {
	n, err := r.node()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, bound(ctx))
	defer cancel()
	if err := r.await(ctx, func() error { return f(n).Error() }); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// Add takes a server in, or changes its address or vote. A majority of voters must agree.
func (r *Raft) Add(ctx context.Context, p Peer) error {
	return r.call(ctx, "add a server", func(n *raft.Raft) raft.Future {
		if p.Voter {
			return n.AddVoter(raft.ServerID(p.ID), raft.ServerAddress(p.Address), 0, bound(ctx))
		}
		return n.AddNonvoter(raft.ServerID(p.ID), raft.ServerAddress(p.Address), 0, bound(ctx))
	})
}

// Remove takes a server out.
func (r *Raft) Remove(ctx context.Context, id string) error {
	return r.call(ctx, "remove a server", func(n *raft.Raft) raft.Future { return n.RemoveServer(raft.ServerID(id), 0, bound(ctx)) })
}

// Transfer hands leadership to that server; "" = to the one that is furthest.
func (r *Raft) Transfer(ctx context.Context, id string) error {
	if id == "" {
		return r.call(ctx, "transfer leadership", func(n *raft.Raft) raft.Future { return n.LeadershipTransfer() })
	}
	peers, _, err := r.Peers()
	if err != nil {
		return err
	}
	for _, p := range peers {
		if p.ID == id {
			return r.call(ctx, "transfer leadership", func(n *raft.Raft) raft.Future {
				return n.LeadershipTransferToServer(raft.ServerID(p.ID), raft.ServerAddress(p.Address))
			})
		}
	}
	return fault.New(fault.NotFound, "there is no server %q among the peers", id)
}

// Bootstrap makes the first configuration of a cluster. Exactly one server may do it, once.
func (r *Raft) Bootstrap(ctx context.Context, peers []Peer) error {
	return r.call(ctx, "bootstrap the cluster", func(n *raft.Raft) raft.Future { return n.BootstrapCluster(configuration(peers)) })
}

// rounds lets many readers share one question whether this server still leads.
type rounds struct {
	mu      sync.Mutex
	next    *round // guarded by mu; not asked yet
	running bool   // guarded by mu
}

type round struct {
	done chan struct{}
	err  error
}

// Verify returns once a majority has confirmed, after the call began, that this server leads. What it reads then is what every write answered before has made.
func (r *Raft) Verify(ctx context.Context) error {
	n, err := r.node()
	if err != nil {
		return err
	}
	if r.cfg.alone() {
		if n.State() != raft.Leader {
			return fault.Wrap(fault.Unavailable, ErrNotLeader, "No cluster leader")
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, bound(ctx))
	defer cancel()
	v := &r.rounds
	v.mu.Lock()
	if v.next == nil {
		v.next = &round{done: make(chan struct{})}
	}
	mine := v.next
	if !v.running {
		if v.running = r.tasks.Go(func() { v.run(n) }); !v.running {
			v.mu.Unlock()
			return fault.Wrap(fault.Unavailable, ErrNotLeader, "No cluster leader")
		}
	}
	v.mu.Unlock()
	select {
	case <-mine.done:
		if mine.err != nil {
			return fault.Wrap(fault.Unavailable, fmt.Errorf("%w: %w", ErrNotLeader, mine.err), "No cluster leader")
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("verify leadership: %w", ctx.Err())
	}
}

// run asks until nobody waits. Who comes while a question is under way waits for the next one.
func (v *rounds) run(n *raft.Raft) {
	for {
		v.mu.Lock()
		now := v.next
		v.next = nil
		v.running = now != nil
		v.mu.Unlock()
		if now == nil {
			return
		}
		now.err = n.VerifyLeader().Error()
		close(now.done)
	}
}

const memoryTimeout = 100 * time.Millisecond // of one message in memory; ten times that where the library waits longer

// InMemory is a transport within one process, for simulated clusters. Transports reach one another once they are connected; Disconnect of either side cuts it.
func InMemory(address string) *raft.InmemTransport {
	_, t := raft.NewInmemTransportWithTimeout(raft.ServerAddress(address), memoryTimeout)
	return t
}
