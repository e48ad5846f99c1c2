package consensus

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
	"golang.org/x/sync/errgroup"

	"rockpool/internal/fault"
)

// AutopilotConfig says when a server is healthy and what becomes of dead ones.
type AutopilotConfig struct {
	CleanupDeadServers      bool
	LastContactThreshold    time.Duration
	MaxTrailingLogs         uint64
	MinQuorum               uint
	ServerStabilizationTime time.Duration
}

// Status of a server as its fellows see it.
const (
	StatusAlive  = "alive"
	StatusFailed = "failed"
	StatusLeft   = "left"
)

// Known is a server as the membership knows it.
type Known struct {
	ID, Name, Address, Version string
	Status                     string
}

// Cluster is what autopilot needs besides Raft.
type Cluster interface {
	// Servers are all that the membership knows, also failed ones.
	Servers() []Known
	// Progress asks the server at that address.
	Progress(ctx context.Context, address string) (Progress, error)
	// RemoveFailed makes the membership forget a failed server. It must not take long.
	RemoveFailed(Known)
	AutopilotConfig() AutopilotConfig
}

// Health is one server's.
type Health struct {
	Known
	Leader, Voter bool
	Healthy       bool
	Progress      Progress
	StableSince   time.Time
}

// ClusterHealth is that of all.
type ClusterHealth struct {
	Healthy          bool
	FailureTolerance int // voters that may be lost while a majority stays
	Leader           string
	Servers          []Health
}

// Autopilot looks after the servers of a cluster for as long as this one leads: it makes new ones voters once they are stable and removes dead ones.
type Autopilot struct {
	raft    *Raft
	cluster Cluster
	every   time.Duration
	pilot   atomic.Pointer[autopilot.Autopilot]
	began   atomic.Int64 // unix nanoseconds of this leadership

	mu       sync.Mutex
	answered map[string]time.Time // guarded by mu; when a server last answered this one, by its id
}

// patience is how many looks a server may leave unanswered, after gossip took it for failed, before it counts as dead. Gossip alone is wrong now and then, when
// a machine is busy or loses datagrams; a server that still answers is not taken out.
const patience = 3

// answers reports whether a server has answered lately.
func (a *Autopilot) answers(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, ok := a.answered[id]
	return ok && time.Since(t) < patience*a.every
}

// acquaintance is how long a new leader gives servers of the configuration to be heard of by the membership before they count as gone: after a start of the
// whole cluster Raft may have a leader before gossip has found anybody.
const acquaintance = time.Minute

// NewAutopilot makes one. every is the time between two looks at the servers' health; what follows from it is done in every fifth of them. 0 = 2 s.
func NewAutopilot(r *Raft, c Cluster, every time.Duration) *Autopilot {
	if every == 0 {
		every = autopilot.DefaultUpdateInterval
	}
	return &Autopilot{raft: r, cluster: c, every: every, answered: map[string]time.Time{}}
}

// Run is a service of one leadership.
func (a *Autopilot) Run(ctx context.Context) error {
	n, err := a.raft.node()
	if err != nil {
		return nil //nolint:nilerr // the server ends
	}
	p := autopilot.New(patient{n}, delegate{a}, autopilot.WithLogger(bridge(a.raft.cfg.Log)),
		autopilot.WithUpdateInterval(a.every), autopilot.WithReconcileInterval(5*a.every))
	a.began.Store(time.Now().UnixNano())
	p.Start(ctx)
	a.pilot.Store(p)
	<-ctx.Done()
	a.pilot.Store(nil)
	<-p.Stop()
	return nil
}

// Health is what is known of the servers' health; only the leader knows.
func (a *Autopilot) Health() (ClusterHealth, error) {
	p := a.pilot.Load()
	if p == nil {
		return ClusterHealth{}, fault.Wrap(fault.Unavailable, ErrNotLeader, "No cluster leader")
	}
	s := p.GetState()
	h := ClusterHealth{Healthy: s.Healthy, FailureTolerance: s.FailureTolerance, Leader: string(s.Leader)}
	for id, srv := range s.Servers {
		h.Servers = append(h.Servers, Health{
			Known:  Known{string(id), srv.Server.Name, string(srv.Server.Address), srv.Server.Version, string(srv.Server.NodeStatus)},
			Leader: srv.State == autopilot.RaftLeader, Voter: srv.HasVotingRights(), Healthy: srv.Health.Healthy, StableSince: srv.Health.StableSince,
			Progress: Progress{srv.Stats.LastIndex, srv.Stats.LastTerm, srv.Stats.LastContact, true},
		})
	}
	slices.SortFunc(h.Servers, func(a, b Health) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return h, nil
}

// Clean removes dead servers now, as far as that is safe.
func (a *Autopilot) Clean() {
	if p := a.pilot.Load(); p != nil {
		p.RemoveDeadServers()
	}
}

// patient gives each change of the configuration a bound.
type patient struct{ *raft.Raft }

func (p patient) AddNonvoter(id raft.ServerID, a raft.ServerAddress, prev uint64, _ time.Duration) raft.IndexFuture {
	return p.Raft.AddNonvoter(id, a, prev, applyBound)
}

func (p patient) AddVoter(id raft.ServerID, a raft.ServerAddress, prev uint64, _ time.Duration) raft.IndexFuture {
	return p.Raft.AddVoter(id, a, prev, applyBound)
}

func (p patient) DemoteVoter(id raft.ServerID, prev uint64, _ time.Duration) raft.IndexFuture {
	return p.Raft.DemoteVoter(id, prev, applyBound)
}

func (p patient) RemoveServer(id raft.ServerID, prev uint64, _ time.Duration) raft.IndexFuture {
	return p.Raft.RemoveServer(id, prev, applyBound)
}

// delegate is the cluster as the library sees it.
type delegate struct{ *Autopilot }

func (d delegate) AutopilotConfig() *autopilot.Config {
	c := d.cluster.AutopilotConfig()
	return &autopilot.Config{
		CleanupDeadServers: c.CleanupDeadServers, LastContactThreshold: c.LastContactThreshold, MaxTrailingLogs: c.MaxTrailingLogs,
		MinQuorum: c.MinQuorum, ServerStabilizationTime: c.ServerStabilizationTime,
	}
}

func (delegate) NotifyState(*autopilot.State) {}

func (d delegate) KnownServers() map[raft.ServerID]*autopilot.Server {
	out := map[raft.ServerID]*autopilot.Server{}
	_, leader := d.raft.Leader()
	for _, k := range d.cluster.Servers() {
		s := &autopilot.Server{
			ID: raft.ServerID(k.ID), Name: k.Name, Address: raft.ServerAddress(k.Address), Version: k.Version, RaftVersion: 3,
			IsLeader: k.ID == leader, NodeType: autopilot.NodeVoter, NodeStatus: autopilot.NodeFailed,
		}
		switch k.Status {
		case StatusAlive:
			s.NodeStatus = autopilot.NodeAlive
		case StatusLeft:
			s.NodeStatus = autopilot.NodeLeft
		default:
			if d.answers(k.ID) {
				s.NodeStatus = autopilot.NodeAlive
			}
		}
		if old := out[s.ID]; old != nil && old.NodeStatus == autopilot.NodeAlive {
			continue // one that came back under another name is alive
		}
		out[s.ID] = s
	}
	if time.Since(time.Unix(0, d.began.Load())) < acquaintance {
		peers, _, _ := d.raft.Peers()
		for _, p := range peers {
			if out[raft.ServerID(p.ID)] == nil {
				out[raft.ServerID(p.ID)] = &autopilot.Server{
					ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.Address), NodeStatus: autopilot.NodeUnknown, NodeType: autopilot.NodeVoter, RaftVersion: 3,
				}
			}
		}
	}
	return out
}

func (d delegate) FetchServerStats(ctx context.Context, servers map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	stats := make([]*autopilot.ServerStats, len(servers))
	ids := make([]raft.ServerID, 0, len(servers))
	var g errgroup.Group
	for id, s := range servers {
		i := len(ids)
		ids = append(ids, id)
		g.Go(func() error {
			var p Progress
			var err error
			if string(id) == d.raft.cfg.ServerID {
				var ok bool
				if p, ok = d.raft.Progress(); !ok {
					err = fmt.Errorf("this server ends")
				}
			} else {
				p, err = d.cluster.Progress(ctx, string(s.Address))
			}
			if err == nil {
				stats[i] = &autopilot.ServerStats{LastContact: p.LastContact, LastTerm: p.LastTerm, LastIndex: p.LastIndex}
			}
			return nil
		})
	}
	_ = g.Wait()
	out := map[raft.ServerID]*autopilot.ServerStats{}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, id := range ids {
		if stats[i] != nil {
			out[id] = stats[i]
			d.answered[string(id)] = time.Now()
		}
	}
	for id := range d.answered {
		if servers[raft.ServerID(id)] == nil {
			delete(d.answered, id)
		}
	}
	return out
}

func (d delegate) RemoveFailedServer(s *autopilot.Server) {
	if s.NodeStatus == autopilot.NodeUnknown {
		return
	}
	d.cluster.RemoveFailed(Known{ID: string(s.ID), Name: s.Name, Address: string(s.Address), Version: s.Version, Status: StatusFailed})
}
