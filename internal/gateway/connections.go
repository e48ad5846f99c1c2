package gateway

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"

	"rockpool/internal/api"
	"rockpool/internal/config"
	"rockpool/internal/logging"
)

// spare is how many connections beyond the limit are kept for as long as it takes to tell their clients. Any more are closed without a word.
const spare = 64

// repeatTime is between two words in the log about refused connections.
const repeatTime = time.Minute

// connections bounds how many there are, of one address and in all, over all listeners. Each costs a descriptor and some memory, also one that never sends
// a byte. Those of an address that has too many are cut before anything was said on them, TLS among it.
type connections struct {
	limits  config.Limits
	refused func()
	log     logging.Logger

	mu   sync.Mutex
	all  uint            // guarded by mu
	by   map[string]uint // guarded by mu; by address
	told time.Time       // guarded by mu
}

func newConnections(limits config.Limits, refused func(), log logging.Logger) *connections {
	return &connections{limits: limits, refused: refused, log: log, by: map[string]uint{}}
}

// verdict is what becomes of a connection.
type verdict uint8

const (
	served verdict = iota
	told           // its requests are answered by saying that there are too many
	cut
)

// take counts a connection of an address, unless it is cut.
func (c *connections) take(address string, now time.Time) verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	limit, v := "", served
	switch l := c.limits; {
	case l.ConnectionsPerAddress > 0 && c.by[address] >= l.ConnectionsPerAddress:
		limit, v = "server.limits.connectionsperaddress", cut
	case l.Connections > 0 && c.all >= l.Connections+spare:
		limit, v = "server.limits.connections", cut
	case l.Connections > 0 && c.all >= l.Connections:
		limit, v = "server.limits.connections", told
	}
	if v != served && now.Sub(c.told) > repeatTime {
		c.told = now
		c.log.WithFields(logging.Fields{"address": address, "limit": limit}).Warn("connections are refused")
	}
	if v != cut {
		c.all++
		c.by[address]++
	}
	return v
}

func (c *connections) give(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.by[address]--; c.by[address] == 0 {
		delete(c.by, address)
	}
}

// listen bounds the connections of a listener.
func (c *connections) listen(l net.Listener) net.Listener { return &boundListener{l, c} }

type boundListener struct {
	net.Listener
	c *connections
}

// Accept returns the next connection that there is room for.
func (l *boundListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address, _, err := net.SplitHostPort(conn.RemoteAddr().String())
		if err != nil {
			address = conn.RemoteAddr().String() // of a socket without ports
		}
		v := l.c.take(address, time.Now())
		if v != served {
			l.c.refused()
		}
		if v != cut {
			return &boundConn{Conn: conn, c: l.c, address: address, over: v == told}, nil
		}
		_ = conn.Close() // nothing was said on it
	}
}

type boundConn struct {
	net.Conn
	c       *connections
	address string
	over    bool
	once    sync.Once
}

// Close gives the place back. It may be called more than once.
func (b *boundConn) Close() error {
	b.once.Do(func() { b.c.give(b.address) })
	return b.Conn.Close()
}

// mark has requests of a connection that is one too many answered by saying so.
func (c *connections) mark(ctx context.Context, conn net.Conn) context.Context {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if one, ok := conn.(*boundConn); ok && one.over {
		return api.Crowded(ctx, c.limits.Connections)
	}
	return ctx
}
