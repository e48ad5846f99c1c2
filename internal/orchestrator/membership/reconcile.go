package membership

import (
	"context"
	"time"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/consensus"
)

// Change is one thing to do so that Raft's configuration fits the servers there are.
type Change struct {
	Remove bool
	Peer   consensus.Peer
}

// Changes compares the members with Raft's configuration. Servers that are alive belong into it; those that have left do not. What becomes of failed ones is
// autopilot's or an operator's business. Who gossips has shown no certificate: it gets no vote by it, and takes none from a server that is alive.
func Changes(members []Member, peers []consensus.Peer) []Change {
	byID := map[string]consensus.Peer{}
	for _, p := range peers {
		byID[p.ID] = p
	}
	alive, twice := map[string]bool{}, map[string]bool{}
	var out []Change
	for _, m := range members {
		if id := m.ID(); m.Status == Alive && id != "" {
			twice[id] = alive[id]
			alive[id] = true
		}
	}
	for _, m := range members {
		id := m.ID()
		p, known := byID[id]
		switch {
		case id == "" || twice[id]: // of two that say to be the same server one lies, and a vote does not follow it
		case m.Status == Alive && !known:
			for _, o := range peers {
				if o.Address == m.RPCAddress() && !alive[o.ID] { // its predecessor, whose data are gone
					out = append(out, Change{Remove: true, Peer: o})
				}
			}
			out = append(out, Change{Peer: consensus.Peer{ID: id, Address: m.RPCAddress()}})
		case m.Status == Alive && p.Address != m.RPCAddress():
			out = append(out, Change{Peer: consensus.Peer{ID: id, Address: m.RPCAddress(), Voter: p.Voter}})
		case m.Status == Left && known && !alive[id]:
			out = append(out, Change{Remove: true, Peer: p})
		}
	}
	return out
}

const reconcileEvery = 30 * time.Second

// Reconcile keeps Raft's configuration equal to the membership until ctx ends. It is a service of one leadership.
func (m *Membership) Reconcile(ctx context.Context, r Raft) error {
	for {
		changed := m.Changed()
		wait := reconcileEvery
		peers, _, err := r.Peers()
		if err == nil {
			for _, c := range Changes(m.Members(), peers) {
				if err = m.do(ctx, r, c); err != nil {
					break
				}
			}
		}
		if err != nil && ctx.Err() == nil {
			m.cfg.Log.WithError(err).Warn("a change of the servers was not made, it will be tried again")
			wait = time.Second
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-changed:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		t.Stop()
	}
}

func (m *Membership) do(ctx context.Context, r Raft, c Change) error {
	log := m.cfg.Log.WithFields(logging.Fields{"server_id": c.Peer.ID, "address": c.Peer.Address})
	if c.Remove {
		if err := r.Remove(ctx, c.Peer.ID); err != nil {
			return err
		}
		log.Info("server removed")
		return nil
	}
	if err := r.Add(ctx, c.Peer); err != nil {
		return err
	}
	log.Info("server added")
	return nil
}
