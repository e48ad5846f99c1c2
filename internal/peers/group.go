package peers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/logging"
)

// TTL is how long a lease lasts without renewal: the least that Nomad takes.
const TTL = 10 * time.Second

// Times of a group.
const (
	lookTime   = time.Second           // between two looks at the leases
	gatherTime = 20 * time.Millisecond // before a look that was asked for
	renewTime  = 3 * time.Second       // between two renewals
	marginTime = 2 * time.Second       // a holder takes a lease for lost so long before others may
	callTime   = 3 * time.Second       // for one call
	keepTime   = time.Minute           // what is left of a gateway's lease stays that long
	tellTime   = 5 * time.Minute       // between two words about the same trouble
	leadName   = "lead"                // the lease of who leads
	memberPath = "instance/"           // and of each gateway
	urlItem    = "url"                 // where a gateway is reached by others
	proofItem  = "proof"               // that a gateway wrote it
	tagLength  = len("01234567")       // of an id, shared by the executions of a gateway
	header     = "Rockpool-Gateway"    // carries a gateway's word
)

// Options of a Group.
type Options struct {
	URL    string            // where other gateways reach this one: scheme, host and port
	Key    []byte            // that all gateways have, and nobody else
	Client http.RoundTripper // for connections to others
}

// Peer is another gateway that lives. One that has not proved that it is a gateway has no URL: it is told and sent nothing.
type Peer struct {
	ID  string
	URL string
}

// Group is the gateways that share a cluster, as one of them sees it.
type Group struct {
	opts    Options
	leases  Leases
	log     logging.Logger
	self    string
	http    *http.Client
	joined  chan struct{}
	changed func()

	member, lead holding   // of Run alone
	led          bool      // of Run alone: what was told last
	doubted      time.Time // of Run alone: when it was last told of a peer without a proof
	asked        chan struct{}

	mu      sync.RWMutex
	leadTil time.Time
	leadWas time.Time // when it began to lead
	peers   map[string]Peer
	gone    map[string]time.Time // whose lease is not held any more, and since when
	loss    time.Time            // when a gateway was last lost
	told    time.Time
	waiting []chan error // for a look that has not begun
}

// holding is a lease and until when it is surely held.
type holding struct {
	lease Lease
	since time.Time // the last renewal
}

// NewGroup makes a group of one. Nothing is called yet.
func NewGroup(o Options, leases Leases, log logging.Logger) *Group {
	if o.Client == nil {
		o.Client = http.DefaultTransport
	}
	return &Group{
		opts: o, leases: leases, log: log, self: ident.New(), http: &http.Client{Transport: o.Client, CheckRedirect: noRedirect},
		joined: make(chan struct{}), changed: func() {}, asked: make(chan struct{}, 1), peers: map[string]Peer{}, gone: map[string]time.Time{},
	}
}

// noRedirect keeps requests at the address that a gateway wrote.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// OnChange has f called after each change of who lives and who leads. It is set before Run.
func (g *Group) OnChange(f func()) { g.changed = f }

// Self is the id of this gateway, a new one at each start.
func (g *Group) Self() string { return g.self }

// Joined is closed once the others know of this gateway and it knows of them.
func (g *Group) Joined() <-chan struct{} { return g.joined }

// Leading reports whether this gateway keeps the pools.
func (g *Group) Leading() bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return time.Now().Before(g.leadTil)
}

// Lead is whether this gateway keeps the pools, since when, and how many others live.
func (g *Group) Lead() (leads bool, since time.Time, others int) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return time.Now().Before(g.leadTil), g.leadWas, len(g.peers)
}

// Alive reports whether a gateway lives. "" is none.
func (g *Group) Alive(id string) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	_, ok := g.peers[id]
	return ok || id == g.self
}

// Lives is Alive, but for a gateway that is not known: one that has come a moment ago is looked for before it counts as dead.
func (g *Group) Lives(ctx context.Context, id string) (bool, error) {
	if g.Alive(id) || !ident.Valid(id) {
		return g.Alive(id), nil
	}
	if err := g.refresh(ctx); err != nil {
		return false, err
	}
	return g.Alive(id), nil
}

// NewExecutionID names an execution that waits here, so that the others find it.
func (g *Group) NewExecutionID() string { return g.self[:tagLength] + ident.New()[tagLength:] }

// Owner is the gateway where an execution waits: false = here, or nowhere. One that has come a moment ago is looked for.
func (g *Group) Owner(ctx context.Context, executionID string) (Peer, bool, error) {
	if !ident.Valid(executionID) || strings.HasPrefix(executionID, g.self[:tagLength]) {
		return Peer{}, false, nil
	}
	if p, ok := g.tagged(executionID[:tagLength]); ok {
		return p, true, nil
	}
	if err := g.refresh(ctx); err != nil {
		return Peer{}, false, err
	}
	p, ok := g.tagged(executionID[:tagLength])
	return p, ok, nil
}

func (g *Group) tagged(tag string) (Peer, bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for _, p := range g.peers {
		if p.URL != "" && strings.EqualFold(p.ID[:tagLength], tag) {
			return p, true
		}
	}
	return Peer{}, false
}

// refresh returns after a look that began after the call, or with an error.
func (g *Group) refresh(ctx context.Context) error {
	done := make(chan error, 1)
	g.mu.Lock()
	g.waiting = append(g.waiting, done)
	g.mu.Unlock()
	select {
	case g.asked <- struct{}{}:
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fault.Wrap(fault.Unavailable, context.Cause(ctx), "which gateways live could not be learned in time")
	}
}

// Run holds this gateway's leases and follows those of the others until ctx ends, then gives them back. Before it has joined, a cluster that has no leases
// for it is an error.
func (g *Group) Run(ctx context.Context) error {
	tick := time.NewTicker(lookTime)
	defer tick.Stop()
	for {
		err := g.step(ctx)
		if err != nil && ctx.Err() == nil {
			if k := fault.KindOf(err); !g.hasJoined() && (k == fault.Forbidden || k == fault.Invalid || k == fault.Unsupported) {
				return fmt.Errorf("server.peeraddress: several gateways need variables of the cluster, below %q, that its token may list, read, write and destroy: %w",
					"rockpool/gateways/", err)
			}
			g.tell(err)
		}
		select {
		case <-ctx.Done():
			return g.leave(context.WithoutCancel(ctx))
		case <-tick.C:
		case <-g.asked:
			select { // whoever asks meanwhile gets the same look
			case <-ctx.Done():
			case <-time.After(gatherTime):
			}
		}
	}
}

func (g *Group) hasJoined() bool {
	select {
	case <-g.joined:
		return true
	default:
		return false
	}
}

func (g *Group) tell(err error) {
	if now := time.Now(); now.Sub(g.told) > tellTime {
		g.told = now
		g.log.WithField("error", err.Error()).Warn("the leases of the gateways could not be kept, it is tried again")
	}
}

// leave gives the lead up first, so that another takes it at once.
func (g *Group) leave(ctx context.Context) error {
	g.setLead(time.Time{})
	var errs []error
	for _, h := range []*holding{&g.lead, &g.member} {
		if h.lease == nil {
			continue
		}
		callCtx, cancel := context.WithTimeout(ctx, callTime)
		if err := h.lease.Release(callCtx); err != nil && !errors.Is(err, ErrLost) {
			errs = append(errs, err)
		}
		cancel()
	}
	if err := errors.Join(errs...); err != nil {
		// They end by themselves.
		g.log.WithField("error", err.Error()).Warn("a lease could not be given back")
	}
	return nil
}

// step is one look.
func (g *Group) step(ctx context.Context) error {
	err := g.hold(ctx, &g.member, memberPath+g.self, map[string]string{urlItem: g.opts.URL, proofItem: g.proof(g.self, g.opts.URL)}, true)
	g.mu.Lock()
	waiting := g.waiting
	g.waiting = nil
	g.mu.Unlock()
	found, lookErr := g.look(ctx)
	changed, readErr := false, lookErr
	if lookErr == nil {
		changed, readErr = g.follow(ctx, found)
	}
	for _, w := range waiting {
		w <- readErr
	}
	err = errors.Join(err, readErr)
	if g.member.lease != nil && lookErr == nil {
		err = errors.Join(err, g.hold(ctx, &g.lead, leadName, map[string]string{"instance": g.self, urlItem: g.opts.URL}, !found[leadName].Held))
		if g.lead.lease != nil {
			g.setLead(g.lead.since.Add(TTL - marginTime))
		} else {
			g.setLead(time.Time{})
		}
	}
	if g.Leading() && lookErr == nil {
		g.tidy(ctx, found)
	}
	// Compared with what was told, not with what was at the step's beginning: a lead may be lost between two steps.
	if leads := g.Leading(); leads != g.led || changed {
		if leads != g.led {
			g.log.WithField("leads", leads).Info("which gateway keeps the pools has changed")
		}
		g.led = leads
		g.changed()
	}
	if !g.hasJoined() && err == nil {
		close(g.joined)
	}
	return err
}

// hold renews a lease when it is time, or takes it if it may.
func (g *Group) hold(ctx context.Context, h *holding, name string, items map[string]string, mayTake bool) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if h.lease == nil {
		if !mayTake {
			return nil
		}
		l, ok, err := g.leases.Acquire(ctx, name, items)
		if err != nil || !ok {
			return err
		}
		h.lease, h.since = l, began
		return nil
	}
	if began.Sub(h.since) < renewTime {
		return nil
	}
	err := h.lease.Renew(ctx)
	switch {
	case err == nil:
		h.since = began
	case errors.Is(err, ErrLost):
		h.lease = nil
	}
	return err
}

func (g *Group) setLead(until time.Time) {
	g.mu.Lock()
	if now := time.Now(); now.Before(until) && !now.Before(g.leadTil) {
		g.leadWas = now
	}
	g.leadTil = until
	g.mu.Unlock()
}

func (g *Group) look(ctx context.Context) (map[string]Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return g.leases.Names(ctx)
}

// follow takes in who lives.
func (g *Group) follow(ctx context.Context, found map[string]Entry) (changed bool, err error) {
	var errs []error
	g.mu.RLock()
	known := maps.Clone(g.peers)
	g.mu.RUnlock()
	next := make(map[string]Peer, len(known))
	for name, e := range found {
		id, ok := strings.CutPrefix(name, memberPath)
		if !ok || !e.Held || id == g.self || !ident.Valid(id) {
			continue
		}
		p := known[id]
		if p.URL == "" {
			p, err = g.meet(ctx, id, name)
			errs = append(errs, err)
		}
		next[id] = p
	}
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, p := range known {
		if _, ok := next[id]; !ok {
			changed = true
			g.loss = now
			g.log.WithFields(logging.Fields{"gateway": id, "url": p.URL}).Info("another gateway has left")
		}
	}
	for id, p := range next {
		if _, ok := known[id]; !ok {
			changed = true
			g.log.WithFields(logging.Fields{"gateway": id, "url": p.URL}).Info("another gateway has come")
		}
	}
	g.peers = next
	return changed, errors.Join(errs...)
}

// meet reads what a gateway wrote of itself. One that cannot be read, or does not prove what it is, lives all the same, so that its runners are not taken from
// it; but it gets to know nothing.
func (g *Group) meet(ctx context.Context, id, name string) (Peer, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	items, err := g.leases.Items(ctx, name)
	if err != nil {
		return Peer{ID: id}, err
	}
	if !g.proves(id, items[urlItem], items[proofItem]) {
		if now := time.Now(); items != nil && now.Sub(g.doubted) > tellTime {
			g.doubted = now
			g.log.WithFields(logging.Fields{"gateway": id, "url": items[urlItem]}).Warn("a gateway's variable does not prove that a gateway wrote it: " +
				"server.peersecret (or server.token) differs there, or somebody else may write below rockpool/gateways/. Nothing is sent to it")
		}
		return Peer{ID: id}, nil
	}
	return Peer{ID: id, URL: strings.TrimSuffix(items[urlItem], "/")}, nil
}

// tidy removes what gateways that died have left.
func (g *Group) tidy(ctx context.Context, found map[string]Entry) {
	now := time.Now()
	for name, e := range found {
		if !strings.HasPrefix(name, memberPath) || e.Held {
			delete(g.gone, name)
			continue
		}
		since, ok := g.gone[name]
		switch {
		case !ok:
			g.gone[name] = now
		case now.Sub(since) > keepTime:
			callCtx, cancel := context.WithTimeout(ctx, callTime)
			if err := g.leases.Remove(callCtx, name, e.Index); err == nil {
				delete(g.gone, name)
			}
			cancel()
		}
	}
	for name := range g.gone {
		if _, ok := found[name]; !ok {
			delete(g.gone, name)
		}
	}
}

// Peers are the other gateways that live, in the order of their ids.
func (g *Group) Peers() []Peer {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return slices.SortedFunc(maps.Values(g.peers), func(a, b Peer) int { return strings.Compare(a.ID, b.ID) })
}
