// Package peer is how servers reach one another: one listener per server that carries Raft and HTTP, told apart by the first byte of a connection, below
// mutual TLS where that is configured.
//
// A connection that says nothing for a while, or something else, is closed. At the end of [Network.Run] every connection accepted has been closed, and those who
// served them have been waited for.
package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
)

// Protocol is the first byte of a connection. The numbers are on the wire: never use one again.
type Protocol byte

// Protocols.
const (
	Raft Protocol = 1
	HTTP Protocol = 2
)

const (
	introduceBound = 5 * time.Second // for the handshake and the first byte
	dialBound      = 3 * time.Second
	maxIntroducing = 256 // connections of whom nobody knows yet what they are
)

// Config is what a server's network is made of.
type Config struct {
	Address   string // host:port to listen at
	Advertise string // host or host:port that others are told; "" = that of Address
	// Listener and Dialer are the TLS of either direction; nil = none.
	Listener, Dialer *tls.Config
	// Listen and Dial take the place of TCP; nil = TCP it is.
	Listen func(address string) (net.Listener, error)
	Dial   func(ctx context.Context, address string) (net.Conn, error)
	Log    logging.Logger
}

// Network is one server's listener and its way to the others.
type Network struct {
	cfg       Config
	listener  net.Listener
	advertise string
	raft      *queue
	http      *queue
	slots     chan struct{}

	mu     sync.Mutex
	open   map[net.Conn]bool // guarded by mu; accepted or dialled, and not closed
	closed bool              // guarded by mu
}

// Listen opens the listener. Connections are accepted once Run is under way.
func Listen(cfg Config) (*Network, error) {
	if cfg.Log == nil {
		cfg.Log = logging.Discard()
	}
	if cfg.Listen == nil {
		cfg.Listen = func(address string) (net.Listener, error) { return net.Listen("tcp", address) }
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
	}
	l, err := cfg.Listen(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for other servers: %w", err)
	}
	n := &Network{cfg: cfg, listener: l, slots: make(chan struct{}, maxIntroducing), open: map[net.Conn]bool{}}
	if n.advertise, err = advertised(cfg.Advertise, l.Addr().String()); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	n.raft, n.http = newQueue(addr(n.advertise)), newQueue(addr(n.advertise))
	return n, nil
}

// advertised is what others are told of an address.
func advertised(advertise, bound string) (string, error) {
	host, port, err := net.SplitHostPort(bound)
	if err != nil {
		return "", fmt.Errorf("address of the listener: %w", err)
	}
	if h, p, err := net.SplitHostPort(advertise); err == nil {
		host, port = h, p
	} else if advertise != "" {
		host = advertise
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return "", fmt.Errorf("other servers cannot reach %s: name an address to advertise", bound)
	}
	return net.JoinHostPort(host, port), nil
}

// Address is where other servers reach this one.
func (n *Network) Address() string { return n.advertise }

// Listener yields the connections of a protocol.
func (n *Network) Listener(p Protocol) net.Listener {
	if p == Raft {
		return n.raft
	}
	return n.http
}

// Cut ends all connections and accepts and makes no more, without a word to anybody. For tests of what the others do then; Run goes on until its context ends.
func (n *Network) Cut() { n.closeAll() }

// Close closes the listener of a network that is not run.
func (n *Network) Close() error {
	if err := n.listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Run accepts connections until ctx ends.
func (n *Network) Run(ctx context.Context) error {
	var tasks lifecycle.Tasks
	end := context.AfterFunc(ctx, func() {
		_ = n.listener.Close()
		n.closeAll()
	})
	defer end()
	defer func() { // wait for those who introduce themselves; they are cut
		n.closeAll()
		_ = tasks.Wait(context.WithoutCancel(ctx))
		_, _ = n.raft.Close(), n.http.Close()
	}()
	for {
		c, err := n.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				continue
			}
			return fmt.Errorf("accept a connection of another server: %w", err)
		}
		t := &tracked{Conn: c, network: n}
		if !n.track(t) {
			continue
		}
		select {
		case n.slots <- struct{}{}:
		default: // strangers hold all: the newest waits for its next attempt
			_ = t.Close()
			continue
		}
		tasks.Go(func() {
			defer func() { <-n.slots }()
			n.introduce(ctx, t)
		})
	}
}

// introduce finds out what a connection is and hands it on.
func (n *Network) introduce(ctx context.Context, t *tracked) {
	_ = t.SetDeadline(time.Now().Add(introduceBound))
	var c net.Conn = t
	if n.cfg.Listener != nil {
		s := tls.Server(t, n.cfg.Listener)
		if err := s.HandshakeContext(ctx); err != nil {
			if ctx.Err() == nil {
				n.cfg.Log.WithFields(logging.Fields{"remote": t.RemoteAddr().String(), "error": err.Error()}).Warn("connection to the servers' port refused")
			}
			_ = t.Close()
			return
		}
		c = s
	}
	var first [1]byte
	if _, err := c.Read(first[:]); err != nil {
		_ = t.Close()
		return
	}
	_ = t.SetDeadline(time.Time{})
	var q *queue
	switch Protocol(first[0]) {
	case Raft:
		q = n.raft
	case HTTP:
		q = n.http
	}
	if q == nil || !q.put(ctx, c) {
		_ = t.Close()
	}
}

func (n *Network) track(t net.Conn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		_ = t.(*tracked).Conn.Close()
		return false
	}
	n.open[t] = true
	return true
}

func (n *Network) closeAll() {
	n.mu.Lock()
	n.closed = true
	open := n.open
	n.open = map[net.Conn]bool{}
	n.mu.Unlock()
	for c := range open {
		_ = c.(*tracked).Conn.Close()
	}
}

// tracked is an accepted connection that is known until it is closed.
type tracked struct {
	net.Conn
	network *Network
}

func (t *tracked) Close() error {
	t.network.mu.Lock()
	delete(t.network.open, t)
	t.network.mu.Unlock()
	return t.Conn.Close()
}

// ErrUnreached is wrapped where another server was not connected to, so that it cannot have read anything.
var ErrUnreached = errors.New("the server could not be reached")

// Dial reaches another server's listener. Every error wraps ErrUnreached.
func (n *Network) Dial(ctx context.Context, p Protocol, address string) (_ net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialBound)
	defer cancel()
	plain, err := n.cfg.Dial(ctx, address)
	if err != nil {
		return nil, unreached(address, err)
	}
	var c net.Conn = &tracked{Conn: plain, network: n}
	if !n.track(c) {
		return nil, unreached(address, net.ErrClosed)
	}
	if n.cfg.Dialer != nil {
		t := tls.Client(c, n.cfg.Dialer)
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(unreached(address, err), c.Close())
		}
		c = t
	}
	if t, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(t)
	}
	if _, err := c.Write([]byte{byte(p)}); err != nil {
		return nil, errors.Join(unreached(address, err), c.Close())
	}
	_ = c.SetDeadline(time.Time{})
	return c, nil
}

// Transport makes HTTP requests to other servers; the host of a URL is a server's address. Connections are kept for later requests.
func (n *Network) Transport() *http.Transport {
	return &http.Transport{
		DialContext:         func(ctx context.Context, _, address string) (net.Conn, error) { return n.Dial(ctx, HTTP, address) },
		MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second, DisableCompression: true, ForceAttemptHTTP2: false,
	}
}

func unreached(address string, err error) error {
	return fmt.Errorf("%w: %s: %w", ErrUnreached, address, err)
}

type addr string

func (addr) Network() string  { return "tcp" }
func (a addr) String() string { return string(a) }

// queue is the listener of one protocol.
type queue struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newQueue(a net.Addr) *queue {
	return &queue{addr: a, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (q *queue) put(ctx context.Context, c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.done:
	case <-ctx.Done():
	}
	return false
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *queue) Addr() net.Addr { return q.addr }
