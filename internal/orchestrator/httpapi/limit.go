package httpapi

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
)

// Limits bounds what one client address may hold at a time.
type Limits struct {
	Conns   int // connections that carry short requests; 0 = unlimited
	Streams int // connections that carry a long answer: events, logs, executions, a node's own; 0 = unlimited
}

// burst is how many connections beyond the limit are accepted so that they can be told why they are refused. More are cut.
const burst = 64

// usage is what an address holds.
type usage struct{ conns, streams int }

// Limiter counts the connections of each client address. A connection counts as short until it carries a long answer, and for as long as that it counts as a
// stream: a gateway's streams leave room for its requests.
type Limiter struct {
	limits Limits
	refuse func() // called for each that is refused; nil = nothing

	mu  sync.Mutex
	use map[string]*usage // guarded by mu; by address
}

// NewLimiter makes a Limiter. refused is called for each connection that is refused; nil = nothing is.
func NewLimiter(l Limits, refused func()) *Limiter {
	if refused == nil {
		refused = func() {}
	}
	return &Limiter{limits: l, refuse: refused, use: map[string]*usage{}}
}

// Open is how many connections there are, streams among them.
func (l *Limiter) Open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, u := range l.use {
		n += u.conns + u.streams
	}
	return n
}

// change adds to what an address holds and reports what it holds then.
func (l *Limiter) change(address string, conns, streams int) usage {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.use[address]
	if u == nil {
		u = &usage{}
		l.use[address] = u
	}
	u.conns += conns
	u.streams += streams
	if *u == (usage{}) {
		delete(l.use, address)
	}
	return *u
}

// Listen counts the connections of a listener. The address is that of the peer: behind a proxy it is the proxy's.
func (l *Limiter) Listen(in net.Listener) net.Listener { return &limited{in, l} }

type limited struct {
	net.Listener
	limiter *Limiter
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address, _, err := net.SplitHostPort(c.RemoteAddr().String())
		if err != nil {
			address = c.RemoteAddr().String()
		}
		u := l.limiter.change(address, 1, 0)
		if n := l.limiter.limits.Conns; n > 0 && u.conns > n+burst {
			l.limiter.change(address, -1, 0)
			l.limiter.refuse()
			_ = c.Close() // nothing was said on it yet
			continue
		}
		return &countedConn{Conn: c, limiter: l.limiter, address: address}, nil
	}
}

// countedConn gives back its place when it is closed.
type countedConn struct {
	net.Conn
	limiter *Limiter
	address string
	once    sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.limiter.change(c.address, -1, 0) })
	return c.Conn.Close()
}

type addressKey struct{}

// Context remembers the address of a connection for its requests. It is for http.Server.ConnContext.
func (l *Limiter) Context(ctx context.Context, c net.Conn) context.Context {
	address, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		address = c.RemoteAddr().String()
	}
	return context.WithValue(ctx, addressKey{}, address)
}

// long reports whether a request's answer goes on until somebody ends it. Only its path says that: a header would let any request count as it likes.
func long(r *http.Request) bool {
	p := r.URL.Path
	exec := strings.HasPrefix(p, "/v1/client/allocation/") && strings.HasSuffix(p, "/exec")
	return exec || p == "/v1/event/stream" || strings.HasPrefix(p, "/v1/agent/monitor") ||
		strings.HasPrefix(p, "/v1/internal/") || strings.HasPrefix(p, "/v1/client/fs/logs/") || strings.HasPrefix(p, "/v1/client/fs/stream/")
}

// Handler answers 429 on connections beyond the limit, and ends them.
func (l *Limiter) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		address, _ := r.Context().Value(addressKey{}).(string)
		full := false
		if long(r) {
			u := l.change(address, -1, 1)
			defer l.change(address, 1, -1)
			full = l.limits.Streams > 0 && u.streams > l.limits.Streams
		} else {
			u := l.change(address, 0, 0)
			full = l.limits.Conns > 0 && u.conns > l.limits.Conns
		}
		if full {
			l.refuse()
			h := w.Header()
			h.Set("Connection", "close")
			h.Set("Retry-After", "1")
			http.Error(w, "Your IP is issuing too many concurrent connections, please rate limit your calls", http.StatusTooManyRequests)
			return
		}
		next.ServeHTTP(w, r)
	})
}
