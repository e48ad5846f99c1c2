package node

import (
	"context"
	"fmt"
	"sync"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/network"
	"rockpool/internal/orchestrator/network/egress"
)

// networkOf is an allocation's network, which all its tasks share. It comes with the first task that starts and goes after the last has ended.
type networkOf struct {
	mu   sync.Mutex
	made *driver.Network
}

// attach makes the network for a task of d, unless it is there, or there is to be none. Its errors are of the type setupError.
func (n *networkOf) attach(ctx context.Context, r *allocRunner, d driver.Driver) (*driver.Network, error) {
	return n.get(r, d, func(networks Networks, q network.Request) (network.Attachment, error) {
		return networks.Attach(ctx, r.id, q)
	})
}

// recover finds the network of tasks that an earlier process of the agent started.
func (n *networkOf) recover(ctx context.Context, r *allocRunner, d driver.Driver) (*driver.Network, error) {
	return n.get(r, d, func(networks Networks, _ network.Request) (network.Attachment, error) {
		return networks.Recover(ctx, r.id)
	})
}

func (n *networkOf) get(r *allocRunner, d driver.Driver, from func(Networks, network.Request) (network.Attachment, error)) (*driver.Network, error) {
	q, err := r.wantedNetwork()
	if err != nil || q == nil {
		return nil, err
	}
	if own, ok := d.(driver.Networker); ok && own.OwnNetwork() {
		if q.Egress != "" || q.Bandwidth != "" { // a rule that nobody enforces is worse than none
			return nil, &setupError{fault.New(fault.Unsupported, "network: driver %s brings a network of its own, which limits neither what tasks reach nor how fast: "+
				"leave %s and %s (networkEgress of an environment) out, or use the driver \"sandbox\"", d.Name(), egress.MetaAllow, egress.MetaBandwidth)}
		}
		return nil, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.made != nil {
		return n.made, nil
	}
	networks := r.agent.cfg.Networks
	if networks == nil {
		return nil, &setupError{fault.New(fault.Unsupported, "network: this node offers no networks, and the mode %q is asked for", q.Mode)}
	}
	at, err := from(networks, *q)
	if err != nil {
		return nil, &setupError{fault.Wrap(fault.KindOf(err), err, "network: %v", err)}
	}
	n.made = &driver.Network{NetNS: at.NetNS, Address: at.Address, Hostname: at.Hostname, Nameservers: at.Nameservers, Searches: at.Searches, Options: at.Options}
	status := &model.NetworkStatus{InterfaceName: at.Interface, Address: at.Address}
	if len(at.Nameservers) > 0 {
		status.DNS = &model.DNS{Servers: at.Nameservers, Searches: at.Searches, Options: at.Options}
	}
	r.mu.Lock()
	r.networkStatus = status
	r.mu.Unlock()
	return n.made, nil
}

// detach takes the network back. That there is none is no error.
func (n *networkOf) detach(ctx context.Context, r *allocRunner) error {
	networks := r.agent.cfg.Networks
	if networks == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err := networks.Detach(bounded, r.id); err != nil {
		return fmt.Errorf("take back network: %w", err)
	}
	n.made = nil
	return nil
}

// wantedNetwork is what the allocation's group asks for; nil is none of its own.
func (r *allocRunner) wantedNetwork() (*network.Request, error) {
	r.mu.Lock()
	a := r.alloc
	r.mu.Unlock()
	g := a.Job.Group(a.TaskGroup)
	if g == nil {
		return nil, nil
	}
	var q *network.Request
	for _, w := range g.Networks {
		if w.Mode == "" || w.Mode == "none" || w.Mode == "host" { // a driver says what it makes of the last
			continue
		}
		if q != nil {
			return nil, &setupError{fault.New(fault.Invalid, "network: a group has one network, and %q asks for %q and %q", g.Name, q.Mode, w.Mode)}
		}
		q = &network.Request{Mode: w.Mode, Hostname: w.Hostname, DNS: w.DNS, Ports: a.Resources.Ports,
			Egress: g.Meta[egress.MetaAllow], Bandwidth: g.Meta[egress.MetaBandwidth]}
	}
	return q, nil
}

// networked are the allocations that may have a network: some task of theirs is not dead.
func networked(runners []*allocRunner) (ids []string) {
	for _, r := range runners {
		for _, t := range r.tasks {
			if t.record.State.State != model.TaskDead {
				ids = append(ids, r.id)
				break
			}
		}
	}
	return ids
}
