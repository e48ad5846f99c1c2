package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/network/egress"
)

// watchEvery is how often the tables of nftables are looked at: whoever flushes the rules of a machine takes down ours too.
const watchEvery = 2 * time.Second

// Manager gives allocations their networks. Its methods may be called at once from several goroutines.
type Manager struct {
	cfg      Config
	log      logging.Logger
	node     *os.File // the node's namespace
	leases   leases
	plugins  *plugins
	bridged  *bridged // nil = bridges are not offered
	fences   []driver.Fence
	reported map[string]bool // broken CNI configurations that the log has named

	mu   sync.Mutex
	held map[string]*holding
}

// bridged is what the mode "bridge" needs.
type bridged struct {
	links    *links
	firewall *firewall
	sockets  sockets
	resolver *resolver
	address  string // of the node, where mapped ports are reached

	making    sync.Mutex // of tables and bridges
	installed bool
	bridges   map[int]int // number -> index

	mu    sync.Mutex
	pool  *pool
	known map[netip.Addr]asker
}

// holding is one allocation. Its lock is held over what is done for it.
type holding struct {
	mu    sync.Mutex
	lease *lease // nil = nothing
}

// New looks at what the kernel offers and at what an earlier process left. What is not offered is not fingerprinted, and the log says why; an error
// means that the configuration is wrong.
func New(cfg Config) (_ *Manager, err error) {
	if cfg.Log == nil {
		cfg.Log = logging.Discard()
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	m := &Manager{cfg: cfg, log: cfg.Log, leases: leases{filepath.Join(cfg.Dir, "leases")}, held: map[string]*holding{}, reported: map[string]bool{},
		plugins: newPlugins(cfg.CNIConfigs, cfg.CNIPlugins, filepath.Join(cfg.Dir, "cni"))}
	for _, dir := range []string{m.leases.dir, filepath.Join(cfg.Dir, "ns")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("network directory: %w", err)
		}
	}
	if m.node, err = os.Open(orOwn(cfg.NodeNS)); err != nil {
		return nil, fmt.Errorf("network namespace of the node: %w", err)
	}
	all, err := m.leases.read()
	if err != nil {
		return nil, errors.Join(err, m.node.Close())
	}
	for _, l := range all {
		m.held[l.AllocID] = &holding{lease: l}
	}
	if cfg.Range.IsValid() {
		m.fences = m.offerBridge(all)
		for _, f := range m.fences {
			if !f.InForce {
				m.log.WithFields(logging.Fields{"fence": f.Name, "detail": f.Detail}).Warn("network mode bridge is not offered")
			}
		}
	}
	return m, nil
}

func orOwn(ns string) string {
	if ns == "" {
		return "/proc/self/ns/net"
	}
	return ns
}

// offerBridge finds out whether the mode "bridge" can be offered, and says so in fences.
func (m *Manager) offerBridge(all []*lease) []driver.Fence {
	p := newPool(m.cfg.Range)
	fences, err := probe(m.cfg.Name, m.cfg.Range)
	if err != nil {
		return fences
	}
	b, err := m.openBridge(p, all)
	if err != nil {
		fences[0] = driver.Fence{Wall: wall, Name: fences[0].Name, InForce: false, Detail: err.Error()}
		return fences
	}
	m.bridged = b
	return fences
}

func (m *Manager) openBridge(p *pool, all []*lease) (_ *bridged, err error) {
	b := &bridged{pool: p, bridges: map[int]int{}, known: map[netip.Addr]asker{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.links, err = newLinks(m.node, m.cfg.Name, m.cfg.Dir, p); err != nil {
		return nil, err
	}
	if err := b.links.free(m.cfg.Range); err != nil {
		return nil, err
	}
	if b.firewall, err = newFirewall(m.node, m.cfg.Name, m.cfg.Range, p.nameserver()); err != nil {
		return nil, err
	}
	if bridges, _, err := b.links.mine(); err != nil {
		return nil, err
	} else if len(bridges) > 0 {
		p.since = time.Now()
	}
	for _, l := range all {
		if l.Request.Mode != ModeBridge {
			continue
		}
		if err := p.hold(l.Address); err != nil {
			m.log.WithError(err).WithField("alloc_id", l.AllocID).Warn("a network lease does not fit the range of this node")
		}
	}
	up := &upstream{}
	if m.cfg.NodeNS != "" {
		up.ns = m.node
	}
	if up.servers, err = readServers(m.cfg.DNS, "/etc/resolv.conf"); err != nil {
		return nil, err
	}
	if len(up.servers) == 0 {
		m.log.Warn("neither orchestrator.network.dns nor /etc/resolv.conf names a name server: names do not resolve in runners")
	}
	b.resolver = &resolver{log: m.log, exchange: up.exchange,
		whois: func(a netip.Addr) (asker, bool) {
			b.mu.Lock()
			defer b.mu.Unlock()
			who, ok := b.known[a]
			return who, ok
		},
		learn: func(p egress.Policy, rules []egress.Rule, addrs []netip.Addr, ttl time.Duration) error {
			return b.firewall.learn(p, rules, addrs, time.Now(), ttl)
		},
	}
	if b.sockets, err = listen(m.node, p.nameserver()); err != nil {
		return nil, err
	}
	if b.address, err = b.links.address(); err != nil {
		return nil, err
	}
	if b.address == "" { // a machine without a network reaches its runners by the address of their bridge
		b.address = p.nameserver().String()
	}
	return b, nil
}

func (b *bridged) close() error {
	var errs []error
	errs = append(errs, b.sockets.close())
	if b.firewall != nil {
		errs = append(errs, b.firewall.close())
	}
	if b.links != nil {
		b.links.close()
	}
	return errors.Join(errs...)
}

// Close lets go of everything. What allocations have stays; without any, nothing of ours is left in the kernel.
func (m *Manager) Close() error {
	var errs []error
	if b := m.bridged; b != nil {
		m.mu.Lock()
		empty := len(m.held) == 0
		m.mu.Unlock()
		if empty && b.installed {
			errs = append(errs, b.firewall.uninstall(), b.links.removeBridges())
		}
		errs = append(errs, b.close())
	}
	return errors.Join(append(errs, m.node.Close())...)
}

// Fences say what is in force for the mode "bridge".
func (m *Manager) Fences() []driver.Fence { return m.fences }

// Fingerprint are the attributes of a node with these networks.
func (m *Manager) Fingerprint() map[string]string {
	attr := map[string]string{}
	for _, f := range m.fences {
		attr["sandbox.fence."+f.Name] = fmt.Sprint(f.InForce)
	}
	if m.bridged != nil {
		attr["network."+ModeBridge] = "1"
		attr["unique.network.ip-address"] = m.bridged.address
		if now, err := m.bridged.links.address(); err == nil && now != "" { // it may change
			attr["unique.network.ip-address"] = now
		}
	}
	names, broken := m.plugins.names()
	for _, n := range names {
		attr["network."+ModeCNI+n] = "1"
	}
	if len(names) > 0 && m.bridged == nil {
		if l, err := newLinks(m.node, m.cfg.Name, m.cfg.Dir, nil); err == nil {
			if a, err := l.address(); err == nil && a != "" {
				attr["unique.network.ip-address"] = a
			}
			l.close()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, err := range broken {
		if !m.reported[err.Error()] {
			m.reported[err.Error()] = true
			m.log.WithError(err).Warn("a CNI configuration cannot be used")
		}
	}
	return attr
}

// Run answers the questions of runners for addresses, and looks after the rules, until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	b := m.bridged
	if b == nil {
		<-ctx.Done()
		return nil
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { m.watch(ctx) })
	if err := b.sockets.serve(ctx, b.resolver); err != nil && ctx.Err() == nil {
		return fmt.Errorf("name service for runners: %w", err)
	}
	return nil
}

func (m *Manager) watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			m.repair()
		case <-ctx.Done():
			return
		}
	}
}

// repair puts the tables back if they have gone.
func (m *Manager) repair() {
	gone, err := m.bridged.firewall.repair()
	if gone {
		m.log.Error("somebody has removed the rules of nftables that keep runners in, and they were installed again: change tables of your own, not the whole ruleset")
	}
	if err != nil {
		m.log.WithError(err).Error("the rules of nftables that keep runners in could not be installed again")
	}
}

// ready makes the tables, and the bridge that serves an address.
func (m *Manager) ready(b *bridged, a netip.Addr) (bridge int, err error) {
	_, n := b.pool.gateway(a)
	b.making.Lock()
	defer b.making.Unlock()
	if !b.installed {
		if err := b.firewall.install(nil); err != nil {
			return 0, err
		}
		if err := m.forwarding(b); err != nil {
			return 0, err
		}
		b.installed = true
	}
	for _, k := range []int{0, n} { // the first has the address of the name service
		if b.bridges[k] == 0 {
			if b.bridges[k], err = b.links.bridge(k); err != nil {
				delete(b.bridges, k)
				return 0, err
			}
		}
	}
	return b.bridges[n], nil
}

// forwarding has the node pass packets on.
func (m *Manager) forwarding(b *bridged) error {
	const key = "ipv4/ip_forward"
	return lifecycle.OnOwnThread(func() error {
		if err := enter(m.node); err != nil {
			return err
		}
		now, err := os.ReadFile("/proc/sys/net/" + key)
		if err != nil {
			return fmt.Errorf("read net/%s: %w", key, err)
		}
		if strings.TrimSpace(string(now)) != "1" {
			if err := sysctl(key, "1"); err != nil {
				return err
			}
			m.log.Info("net.ipv4.ip_forward is on now: runners with a network need it")
		}
		if chains := b.firewall.strangers(); len(chains) > 0 {
			m.log.WithFields(logging.Fields{"chains": chains, "interfaces": m.cfg.Name + "*"}).
				Warn("chains of others drop by default what runners with a network send or get: let them accept these interfaces")
		}
		return nil
	})
}

func (m *Manager) nsPath(id string) string { return filepath.Join(m.cfg.Dir, "ns", id) }

// holding finds or makes an allocation's entry.
func (m *Manager) holding(id string) *holding {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.held[id]
	if h == nil {
		h = &holding{}
		m.held[id] = h
	}
	return h
}

// drop forgets an entry of which nothing is left. The caller holds its lock.
func (m *Manager) drop(id string, h *holding) {
	h.lease = nil
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held[id] == h {
		delete(m.held, id)
	}
}

// Attach gives an allocation its network, or what it has already. After an error it has none.
func (m *Manager) Attach(ctx context.Context, id string, r Request) (Attachment, error) {
	if !ident.ValidName(id) {
		return Attachment{}, fault.New(fault.Invalid, "network: %q is no allocation id", id)
	}
	t, err := r.terms()
	if err != nil {
		return Attachment{}, err
	}
	for {
		h := m.holding(id)
		h.mu.Lock()
		m.mu.Lock()
		current := m.held[id] == h
		m.mu.Unlock()
		if !current { // it was dropped while this waited
			h.mu.Unlock()
			continue
		}
		defer h.mu.Unlock()
		if h.lease != nil && h.lease.Ready {
			return m.attachment(h.lease)
		}
		if h.lease != nil { // an earlier process did not come to its end
			if err := m.takeBack(ctx, id, h.lease); err != nil {
				return Attachment{}, err
			}
		}
		if err := ctx.Err(); err != nil {
			m.drop(id, h)
			return Attachment{}, err
		}
		return m.attach(ctx, id, h, r, t)
	}
}

// Recover finds the network that an earlier process made for an allocation.
func (m *Manager) Recover(_ context.Context, id string) (Attachment, error) {
	m.mu.Lock()
	h := m.held[id]
	m.mu.Unlock()
	if h != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.lease != nil && h.lease.Ready {
			return m.attachment(h.lease)
		}
	}
	return Attachment{}, fault.New(fault.NotFound, "the network of allocation %s is gone", id)
}

func (m *Manager) attach(ctx context.Context, id string, h *holding, r Request, t terms) (Attachment, error) {
	h.lease = &lease{AllocID: id, Request: r}
	var err error
	switch {
	case strings.HasPrefix(r.Mode, ModeCNI):
		err = m.attachCNI(ctx, h.lease)
	case r.Mode != ModeBridge:
		err = fault.New(fault.Invalid, "network mode %q is not offered", r.Mode)
	case m.bridged == nil:
		err = fault.New(fault.Unsupported, "network mode %q is not offered by this node: its log says why", r.Mode)
	default:
		err = m.attachBridge(h.lease, t)
	}
	if err != nil {
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), cniTime)
		defer cancel()
		if back := m.takeBack(back, id, h.lease); back != nil {
			return Attachment{}, errors.Join(err, back) // the lease stays, and so does what is left
		}
		m.drop(id, h)
		return Attachment{}, err
	}
	return m.attachment(h.lease)
}

func (m *Manager) attachBridge(l *lease, t terms) error {
	b := m.bridged
	b.mu.Lock()
	a, remembered, err := b.pool.take(time.Now())
	b.mu.Unlock()
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "%v", err)
	}
	l.Address = a
	if remembered {
		if err := b.links.forget(a); err != nil {
			return err
		}
	}
	if err := m.leases.write(l); err != nil {
		return err
	}
	bridge, err := m.ready(b, a)
	if err != nil {
		return err
	}
	if err := m.makeNS(l.AllocID, l.Request, func(ns *os.File) error {
		if err := b.links.plug(ns, bridge, a); err != nil {
			return err
		}
		return b.links.furnish(a, t.mbit)
	}); err != nil {
		b.making.Lock()
		clear(b.bridges) // somebody may have removed one: the next runner looks again
		b.making.Unlock()
		return err
	}
	if err := errors.Join(b.links.settle(a), b.links.limit(a, t.mbit)); err != nil {
		return err
	}
	err = b.firewall.add(m.member(l, t))
	if errors.Is(err, unix.ENOENT) { // the tables have gone this moment
		m.repair()
		err = b.firewall.add(m.member(l, t))
	}
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.known[a] = asker{policy: t.policy, servers: t.asks}
	b.mu.Unlock()
	l.Ready = true
	return m.leases.write(l)
}

func (m *Manager) member(l *lease, t terms) member {
	return member{port: m.bridged.links.port(l.Address), addr: l.Address, policy: t.policy, ports: mappings(l.Request.Ports)}
}

// makeNS makes an allocation's namespace and has it filled, on a thread that is inside.
func (m *Manager) makeNS(id string, r Request, fill func(ns *os.File) error) error {
	return lifecycle.OnOwnThread(func() error {
		if m.cfg.NodeNS != "" {
			if err := enter(m.node); err != nil {
				return err
			}
		}
		if err := portsFree(mappings(r.Ports)); err != nil {
			return err
		}
		ns, err := newNS()
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := pin(m.nsPath(id)); err != nil {
			return err
		}
		for _, s := range [][2]string{
			{"ipv6/conf/default/disable_ipv6", "1"},   // of interfaces to come: the loopback interface keeps ::1
			{"ipv4/ip_unprivileged_port_start", "0"},  // nobody inside has a privilege, and ports are nobody else's
			{"ipv4/ping_group_range", "0 2147483647"}, // ping without raw sockets
		} {
			if err := sysctl(s[0], s[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return fill(ns)
	})
}

// portsFree reports ports of the node, which is the namespace of the calling thread, that a program of the node listens on.
func portsFree(ports []mapping) error {
	for _, p := range ports {
		for what, kind := range map[string]int{"TCP": unix.SOCK_STREAM, "UDP": unix.SOCK_DGRAM} {
			fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("look for a free port: %w", err)
			}
			if kind == unix.SOCK_STREAM { // connections that have ended do not count
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			}
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(p.Host)})
			_ = unix.Close(fd)
			if err != nil {
				return fmt.Errorf("the port %d of the node (%s) cannot be mapped, another program has it: %w", p.Host, what, err)
			}
		}
	}
	return nil
}

// onNode runs f where programs that it starts find themselves in the node's namespace.
func (m *Manager) onNode(f func() error) error {
	if m.cfg.NodeNS == "" {
		return f()
	}
	return lifecycle.OnOwnThread(func() error {
		if err := enter(m.node); err != nil {
			return err
		}
		return f()
	})
}

func (m *Manager) attachCNI(ctx context.Context, l *lease) error {
	if _, err := m.plugins.load(l.Request.Mode); err != nil {
		return fault.Wrap(fault.Invalid, err, "%v", err)
	}
	if err := m.leases.write(l); err != nil {
		return err
	}
	if err := m.makeNS(l.AllocID, l.Request, func(*os.File) error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		lo, err := h.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find interface lo: %w", err)
		}
		return h.LinkSetUp(lo)
	}); err != nil {
		return err
	}
	if err := m.onNode(func() (err error) {
		l.CNI, err = m.plugins.add(ctx, l.AllocID, m.nsPath(l.AllocID), &l.Request)
		return err
	}); err != nil {
		return err
	}
	l.Ready = true
	return m.leases.write(l)
}

func (m *Manager) attachment(l *lease) (Attachment, error) {
	a := Attachment{NetNS: m.nsPath(l.AllocID), Interface: inside, Hostname: l.Request.Hostname}
	if l.CNI != nil {
		a.Interface, a.Address = l.CNI.Interface, l.CNI.Address
		a.Nameservers, a.Searches, a.Options = l.CNI.Nameservers, l.CNI.Searches, l.CNI.Options
		if d := l.Request.DNS; d != nil && len(d.Servers) > 0 {
			a.Nameservers = d.Servers
		}
	} else {
		if m.bridged == nil {
			return Attachment{}, fault.New(fault.Unsupported, "network mode %q is no longer offered by this node: its log says why", ModeBridge)
		}
		a.Address = l.Address.String()
		a.Nameservers = []string{m.bridged.pool.nameserver().String()}
	}
	if d := l.Request.DNS; d != nil {
		if len(d.Searches) > 0 {
			a.Searches = d.Searches
		}
		if len(d.Options) > 0 {
			a.Options = d.Options
		}
	}
	return a, nil
}

// Detach takes back an allocation's network. That it has none is no error.
func (m *Manager) Detach(ctx context.Context, id string) error {
	m.mu.Lock()
	h := m.held[id]
	m.mu.Unlock()
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lease != nil {
		if err := m.takeBack(ctx, id, h.lease); err != nil {
			return err
		}
	}
	m.drop(id, h)
	return nil
}

// takeBack undoes what attach did or began, in an order in which nothing is open meanwhile. The caller holds the allocation's lock.
func (m *Manager) takeBack(ctx context.Context, id string, l *lease) error {
	var errs []error
	if strings.HasPrefix(l.Request.Mode, ModeCNI) && pinned(m.nsPath(id)) {
		errs = append(errs, m.onNode(func() error { return m.plugins.del(ctx, id, m.nsPath(id), &l.Request) }))
	}
	if b := m.bridged; b != nil && l.Address.IsValid() {
		b.mu.Lock()
		delete(b.known, l.Address)
		b.mu.Unlock()
		errs = append(errs, b.firewall.remove(l.Address), b.links.cut(l.Address))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := unpin(m.nsPath(id)); err != nil {
		return err
	}
	if err := m.leases.remove(id); err != nil {
		return err
	}
	if b := m.bridged; b != nil && l.Address.IsValid() {
		b.mu.Lock()
		b.pool.release(l.Address, time.Now())
		b.mu.Unlock()
		l.Address = netip.Addr{}
	}
	return nil
}

// Sweep takes back the networks of all allocations but those to keep, and whatever else an earlier process left, and puts the rules in force for those
// that stay. It must be called before the first Attach.
func (m *Manager) Sweep(ctx context.Context, keep []string) error {
	kept := make(map[string]bool, len(keep))
	for _, id := range keep {
		kept[id] = true
	}
	m.mu.Lock()
	held := maps.Clone(m.held)
	m.mu.Unlock()
	var errs []error
	members := map[netip.Addr]member{}
	stays := map[string]bool{}
	for id, h := range held {
		if kept[id] && m.whole(ctx, h.lease) {
			stays[id] = true
			if b := m.bridged; b != nil && h.lease.Request.Mode == ModeBridge {
				t, _ := h.lease.Request.terms() // it was attached by them
				members[h.lease.Address] = m.member(h.lease, t)
				b.mu.Lock()
				b.known[h.lease.Address] = asker{policy: t.policy, servers: t.asks}
				b.mu.Unlock()
			}
		}
	}
	if m.bridged != nil && len(members) > 0 {
		errs = append(errs, m.resume(members))
	}
	for id := range held {
		if !stays[id] {
			errs = append(errs, m.Detach(ctx, id))
		}
	}
	errs = append(errs, m.sweepNS(stays))
	if b := m.bridged; b != nil {
		errs = append(errs, b.links.sweep(members))
		if len(members) == 0 {
			errs = append(errs, b.firewall.uninstall(), b.links.removeBridges())
		}
	}
	return errors.Join(errs...)
}

// resume puts the rules in force for members of an earlier process.
func (m *Manager) resume(members map[netip.Addr]member) error {
	b := m.bridged
	b.making.Lock()
	defer b.making.Unlock()
	if err := b.firewall.install(members); err != nil {
		return err
	}
	if err := m.forwarding(b); err != nil {
		return err
	}
	b.installed = true
	return nil
}

// whole reports whether everything of a lease is there.
func (m *Manager) whole(ctx context.Context, l *lease) bool {
	if l == nil || !l.Ready || !pinned(m.nsPath(l.AllocID)) {
		return false
	}
	if l.CNI != nil {
		if err := m.onNode(func() error { return m.plugins.check(ctx, l.AllocID, m.nsPath(l.AllocID), &l.Request) }); err != nil {
			m.log.WithError(err).WithField("alloc_id", l.AllocID).Warn("CNI plugins do not find a network as they made it")
		}
		return true
	}
	if m.bridged == nil {
		return false
	}
	_, err := m.bridged.links.h.LinkByName(m.bridged.links.port(l.Address))
	return err == nil
}

// sweepNS releases the namespaces that no lease names.
func (m *Manager) sweepNS(stays map[string]bool) error {
	dir := filepath.Join(m.cfg.Dir, "ns")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("sweep network namespaces: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !stays[e.Name()] {
			errs = append(errs, unpin(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
