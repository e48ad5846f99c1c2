package gateway

import (
	"net"
	"sync"
	"time"

	"rockpool/internal/config"
	"rockpool/internal/logging"
)

// connections bounds how many there are, of one address and in all. One too many is cut before anything was said on it: the client sees a reset, not a
// wait, and nothing is spent on it, TLS among it.
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

// repeatTime is between two words in the log about refused connections.
const repeatTime = time.Minute

// take counts a connection of an address and reports whether there is room for it.
func (c *connections) take(address string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	limit := ""
	switch l := c.limits; {
	case l.Connections > 0 && c.all >= l.Connections:
		limit = "server.limits.connections"
	case l.ConnectionsPerAddress > 0 && c.by[address] >= l.ConnectionsPerAddress:
		limit = "server.limits.connectionsperaddress"
	}
	if limit == "" {
		c.all++
		c.by[address]++
		return true
	}
	if now.Sub(c.told) > repeatTime {
		c.told = now
		c.log.WithFields(logging.Fields{"address": address, "limit": limit}).Warn("connections are refused")
	}
	return false
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
		if l.c.take(address, time.Now()) {
			return &boundConn{Conn: conn, c: l.c, address: address}, nil
		}
		l.c.refused()
		_ = conn.Close() // nothing was said on it
	}
}

type boundConn struct {
	net.Conn
	c       *connections
	address string
	once    sync.Once
}

// Close gives the place back.
func (b *boundConn) Close() error {
	b.once.Do(func() { b.c.give(b.address) })
	return b.Conn.Close()
}
