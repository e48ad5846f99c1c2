package nomad

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/peers"
)

// leasePrefix is where the gateways' variables lie.
const leasePrefix = "rockpool/gateways/"

// lockDelay is how long a lock stays taken beyond its time. Its holder has let go before; Nomad would take none for 15 s.
const lockDelay = time.Second

// beatItem counts the renewals of a variable on a cluster without locks.
const beatItem = "beat"

// Leases are variables of the cluster with locks on them. A Nomad before 1.7 has variables without locks: there a lease is held by whoever goes on
// changing its variable, by compare-and-set, and is free once it has not changed for the time to live, by the clock of who looks.
type Leases struct {
	client *Client
	ttl    time.Duration
	plain  atomic.Bool // the cluster has no locks

	mu   sync.Mutex
	seen map[string]change // by name; of a cluster without locks
}

type change struct {
	index uint64
	at    time.Time
}

// NewLeases makes leases of ttl each, at least 10 s, as Nomad wants it.
func NewLeases(c *Client, ttl time.Duration) *Leases {
	return &Leases{client: c, ttl: ttl, seen: map[string]change{}}
}

type lease struct {
	of    *Leases
	name  string
	items map[string]string
	lock  string // "" = a cluster without locks
	index uint64
}

// Acquire takes a name, and reports false when another holds it. The first name that is taken must be one that nobody else uses: it shows whether
// there are locks.
func (l *Leases) Acquire(ctx context.Context, name string, items map[string]string) (peers.Lease, bool, error) {
	if l.plain.Load() {
		return l.compete(ctx, name, items)
	}
	v := api.NewVariable(leasePrefix + name)
	v.Items = items
	v.Lock = &api.VariableLock{TTL: l.ttl.String(), LockDelay: lockDelay.String()}
	got, _, err := l.client.api.Variables().AcquireLock(v, l.client.write(ctx))
	switch {
	case conflicts(err):
		return nil, false, nil
	case err != nil:
		return nil, false, classify(err, "take the lease "+name)
	case got.Lock == nil || got.Lock.ID == "":
		// It was written, but not locked.
		l.plain.Store(true)
		l.client.log.Info("the cluster has no locks on variables (Nomad before 1.7): leases are kept by compare-and-set")
		return &lease{of: l, name: name, items: maps.Clone(items), index: got.ModifyIndex}, true, nil
	}
	return &lease{of: l, name: name, items: items, lock: got.Lock.ID}, true, nil
}

// conflicts reports that somebody else holds or has changed it.
func conflicts(err error) bool {
	if _, ok := errors.AsType[api.ErrCASConflict](err); ok {
		return true
	}
	e, ok := errors.AsType[api.UnexpectedResponseError](err)
	return ok && e.HasStatusCode() && e.StatusCode() == 409
}

// compete takes a name on a cluster without locks.
func (l *Leases) compete(ctx context.Context, name string, items map[string]string) (peers.Lease, bool, error) {
	vars := l.client.api.Variables()
	found, _, err := vars.Peek(leasePrefix+name, l.client.query(ctx))
	if err != nil {
		return nil, false, classify(err, "read the lease "+name)
	}
	index := uint64(0)
	if found != nil {
		if l.beats(name, found.ModifyIndex) {
			return nil, false, nil
		}
		index = found.ModifyIndex
	}
	mine := &lease{of: l, name: name, items: maps.Clone(items), index: index}
	if err := mine.Renew(ctx); errors.Is(err, peers.ErrLost) {
		return nil, false, nil
	} else if err != nil {
		return nil, false, err
	}
	return mine, true, nil
}

// beats reports whether a variable changed within the time to live.
func (l *Leases) beats(name string, index uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last, ok := l.seen[name]; ok && last.index == index {
		return time.Since(last.at) < l.ttl
	}
	l.seen[name] = change{index, time.Now()}
	return true
}

// Renew holds a lease for another time to live, from when the call began.
func (h *lease) Renew(ctx context.Context) error {
	vars, write := h.of.client.api.Variables(), h.of.client.write(ctx)
	v := api.NewVariable(leasePrefix + h.name)
	var err error
	if h.lock != "" {
		v.Lock = &api.VariableLock{ID: h.lock}
		_, _, err = vars.RenewLock(v, write)
		// Once its time is over it is unlocked, and after a restore perhaps not there.
		if e, ok := errors.AsType[api.UnexpectedResponseError](err); ok && e.HasStatusCode() && (e.StatusCode() == 404 || e.StatusCode() == 400) {
			return fmt.Errorf("%w: %w", peers.ErrLost, err)
		}
	} else {
		v.Items = maps.Clone(api.VariableItems(h.items))
		v.Items[beatItem] = ident.New()
		v.ModifyIndex = h.index
		var got *api.Variable
		if got, _, err = vars.CheckedUpdate(v, write); err == nil {
			h.index = got.ModifyIndex
		}
	}
	if conflicts(err) {
		return fmt.Errorf("%w: %w", peers.ErrLost, err)
	}
	return classify(err, "renew the lease "+h.name)
}

// Release gives a lease back and leaves no variable.
func (h *lease) Release(ctx context.Context) error {
	vars := h.of.client.api.Variables()
	index := h.index
	if h.lock != "" {
		v := api.NewVariable(leasePrefix + h.name)
		v.Lock = &api.VariableLock{ID: h.lock}
		got, _, err := vars.ReleaseLock(v, h.of.client.write(ctx))
		if err != nil && !conflicts(err) {
			return classify(err, "release the lease "+h.name)
		}
		if err != nil {
			return nil // it was lost before
		}
		index = got.ModifyIndex
	}
	return h.of.Remove(ctx, h.name, index)
}

// Names are all leases that are held, or were.
func (l *Leases) Names(ctx context.Context) (map[string]peers.Entry, error) {
	q := l.client.query(ctx)
	list, _, err := l.client.api.Variables().PrefixList(leasePrefix, q)
	if err != nil {
		return nil, classify(err, "list the leases")
	}
	found := make(map[string]peers.Entry, len(list))
	for _, m := range list {
		name, ok := strings.CutPrefix(m.Path, leasePrefix)
		if !ok {
			continue
		}
		held := m.Lock != nil
		if l.plain.Load() {
			held = l.beats(name, m.ModifyIndex)
		}
		found[name] = peers.Entry{Held: held, Index: m.ModifyIndex}
	}
	l.mu.Lock()
	for name := range l.seen {
		if _, ok := found[name]; !ok {
			delete(l.seen, name)
		}
	}
	l.mu.Unlock()
	return found, nil
}

// Items are what a lease's holder wrote; nil when there is no such lease.
func (l *Leases) Items(ctx context.Context, name string) (map[string]string, error) {
	v, _, err := l.client.api.Variables().Peek(leasePrefix+name, l.client.query(ctx))
	if err != nil || v == nil {
		return nil, classify(err, "read the lease "+name)
	}
	return v.Items, nil
}

// Remove takes a lease away that nobody has touched since index.
func (l *Leases) Remove(ctx context.Context, name string, index uint64) error {
	_, err := l.client.api.Variables().CheckedDelete(leasePrefix+name, index, l.client.write(ctx))
	if err = classify(ignoreConflict(err), "remove the lease "+name+" at "+strconv.FormatUint(index, 10)); fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

func ignoreConflict(err error) error {
	if conflicts(err) {
		return nil
	}
	return err
}
