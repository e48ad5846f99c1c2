package fabric

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"
)

// backlog is how many connections wait to be accepted.
const backlog = 512

// Latency bounds how long a message is under way on a link that is well.
type Latency struct{ Least, Most time.Duration }

// Network joins hosts. All its methods may be called at any time.
type Network struct {
	mu      sync.Mutex
	rnd     *rand.Rand             // guarded by mu
	latency Latency                // guarded by mu
	hosts   map[string]*Host       // guarded by mu; the living
	dark    map[string]bool        // guarded by mu; hosts that are not there, and do not say so
	cut     map[link]bool          // guarded by mu
	slow    map[link]time.Duration // guarded by mu; on top of the latency
	lanes   map[*lane]bool         // guarded by mu; of connections that are open on both ends or one
	changed *sync.Cond             // a link has healed, a host has come or gone; for those who dial
}

type link struct{ from, to string }

// NewNetwork makes a network without hosts. The seed decides how long messages take.
func NewNetwork(seed uint64, latency Latency) *Network {
	n := &Network{
		rnd: rand.New(rand.NewPCG(seed, 0x6e6574)), latency: latency,
		hosts: map[string]*Host{}, dark: map[string]bool{}, cut: map[link]bool{}, slow: map[link]time.Duration{}, lanes: map[*lane]bool{},
	}
	n.changed = sync.NewCond(&n.mu)
	return n
}

// Host is a machine as a process sees it: from its start to its crash. The next process on the machine has a Host of its own.
type Host struct {
	net       *Network
	name      string
	listeners map[string]*listener // guarded by net.mu; by port
	packets   map[string]*Packets  // guarded by net.mu; by port
	dead      bool                 // guarded by net.mu
}

// Host is the living host of that name; it is made when there is none.
func (n *Network) Host(name string) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[name]
	if h == nil {
		h = &Host{net: n, name: name, listeners: map[string]*listener{}, packets: map[string]*Packets{}}
		n.hosts[name] = h
		delete(n.dark, name)
		// Its predecessor's connections are not known here any more, which a machine says to whoever sends something over them.
		for l := range n.lanes {
			if l.owner.dead && l.owner.name == name || l.peer.dead && l.peer.name == name {
				l.fail(syscall.ECONNRESET)
			}
		}
		n.changed.Broadcast()
	}
	return h
}

// Name is what the host is called in addresses.
func (h *Host) Name() string { return h.name }

// Crash ends the host, as its process sees it. The other ends of its connections hear of it at once, or, when it is silent as after a loss of power, never: not before the next
// host of that name is there.
func (h *Host) Crash(silent bool) {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	h.dead = true
	if n.hosts[h.name] == h {
		delete(n.hosts, h.name)
		n.dark[h.name] = silent
	}
	for _, l := range h.listeners {
		l.end()
	}
	for l := range n.lanes {
		switch {
		case l.peer == h:
			// What it was to be sent goes nowhere; those who send do not know.
			l.segments, l.held, l.lost = nil, 0, true
		case l.owner == h:
			// What it had sent stays under way. Nothing follows.
		default:
			continue
		}
		if !silent {
			l.fail(syscall.ECONNRESET)
		}
		l.wake() // also those on the dead side, who must not hang for ever
	}
	n.changed.Broadcast()
}

// Cut stops all messages from one host to another. Those to come stall, too.
func (n *Network) Cut(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[link{from, to}] = true
}

// Heal lets messages pass again.
func (n *Network) Heal(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, link{from, to})
	n.stirred()
}

// HealAll heals every link and makes none slow.
func (n *Network) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	clear(n.slow)
	n.stirred()
}

// Slow makes messages from one host to another take so much longer; 0 = no longer than usual.
func (n *Network) Slow(from, to string, by time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if by == 0 {
		delete(n.slow, link{from, to})
		return
	}
	n.slow[link{from, to}] = by
}

// Open is how many connections have an end that is open.
func (n *Network) Open() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return (len(n.lanes) + 1) / 2
}

// stirred is called with mu held when links have changed.
func (n *Network) stirred() {
	n.changed.Broadcast()
	for l := range n.lanes {
		l.wake()
	}
}

// takes is how long a message from one host to another is under way. It is called with mu held.
func (n *Network) takes(l link) time.Duration {
	d := n.latency.Least + n.slow[l]
	if spread := n.latency.Most - n.latency.Least; spread > 0 {
		d += time.Duration(n.rnd.Int64N(int64(spread)))
	}
	return d
}

type address string

func (address) Network() string  { return "sim" }
func (a address) String() string { return string(a) }

// Listen takes connections at a port, which is written as in host:port; the host may be missing.
func (h *Host) Listen(at string) (net.Listener, error) {
	_, port, err := net.SplitHostPort(at)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	switch {
	case h.dead:
		return nil, fmt.Errorf("listen on %s: %w", h.name, syscall.ENETDOWN)
	case h.listeners[port] != nil:
		return nil, fmt.Errorf("listen on %s: %w", at, syscall.EADDRINUSE)
	}
	l := &listener{host: h, port: port}
	l.more = sync.NewCond(&h.net.mu)
	h.listeners[port] = l
	return l, nil
}

type listener struct {
	host    *Host
	port    string
	more    *sync.Cond
	waiting []*conn // guarded by net.mu
	closed  bool    // guarded by net.mu
}

func (l *listener) Accept() (net.Conn, error) {
	n := l.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	for len(l.waiting) == 0 && !l.closed {
		l.more.Wait()
	}
	if l.closed {
		return nil, net.ErrClosed
	}
	c := l.waiting[0]
	l.waiting = l.waiting[1:]
	return c, nil
}

func (l *listener) Close() error {
	l.host.net.mu.Lock()
	defer l.host.net.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.end()
	return nil
}

// end is called with net.mu held.
func (l *listener) end() {
	if l.closed {
		return
	}
	l.closed = true
	delete(l.host.listeners, l.port)
	for _, c := range l.waiting {
		c.out.fail(syscall.ECONNRESET)
		c.in.fail(syscall.ECONNRESET)
		c.close()
	}
	l.waiting = nil
	l.more.Broadcast()
}

func (l *listener) Addr() net.Addr { return address(net.JoinHostPort(l.host.name, l.port)) }

// Dial connects to host:port. Where a link is cut, or the host has gone silently, it waits until that changes or ctx ends; where nobody listens it is refused.
func (h *Host) Dial(ctx context.Context, to string) (net.Conn, error) {
	name, port, err := net.SplitHostPort(to)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	n := h.net
	stop := context.AfterFunc(ctx, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.changed.Broadcast()
	})
	defer stop()
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		peer := n.hosts[name]
		switch {
		case h.dead:
			return nil, &net.OpError{Op: "dial", Net: "sim", Addr: address(to), Err: syscall.ENETUNREACH}
		case ctx.Err() != nil:
			return nil, &net.OpError{Op: "dial", Net: "sim", Addr: address(to), Err: context.Cause(ctx)}
		case n.dark[name] || n.cut[link{h.name, name}] || n.cut[link{name, h.name}]:
			n.changed.Wait()
			continue
		}
		var l *listener
		if peer != nil {
			l = peer.listeners[port]
		}
		if l == nil || len(l.waiting) >= backlog {
			return nil, &net.OpError{Op: "dial", Net: "sim", Addr: address(to), Err: syscall.ECONNREFUSED}
		}
		near, far := n.connect(h, peer, port)
		l.waiting = append(l.waiting, far)
		l.more.Signal()
		return near, nil
	}
}

// DialContext is Dial as net/http wants it.
func (h *Host) DialContext(ctx context.Context, _, to string) (net.Conn, error) {
	return h.Dial(ctx, to)
}

// connect is called with mu held.
func (n *Network) connect(from, to *Host, port string) (near, far *conn) {
	there, back := newLane(from, to), newLane(to, from)
	n.lanes[there], n.lanes[back] = true, true
	here := address(fmt.Sprintf("%s:%d", from.name, 1024+n.rnd.IntN(60000)))
	at := address(net.JoinHostPort(to.name, port))
	return &conn{out: there, in: back, local: here, remote: at}, &conn{out: back, in: there, local: at, remote: here}
}
