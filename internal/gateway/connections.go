package gateway

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	"rockpool/internal/api"
	"rockpool/internal/config"
	"rockpool/internal/logging"
)

// spare is how many connections beyond the limit are kept for as long as it takes to tell their clients. Any more are closed without a word.
const spare = 64

// connections bounds how many connections there are over all listeners, in all and of each address. Each costs a descriptor and some memory, also one that
// never sends a byte.
type connections struct {
	max, maxOfAddress uint // 0 = no limit
	refused           func()
	log               logging.Logger

	mu   sync.Mutex
	open uint            // guarded by mu
	by   map[string]uint // guarded by mu; by address
	told time.Time       // guarded by mu
}

func newConnections(s config.Server, refused func(), log logging.Logger) *connections {
	return &connections{max: s.MaxConnections, maxOfAddress: s.Limits.ConnectionsPerAddress, refused: refused, log: log, by: map[string]uint{}}
}

// limit returns a listener that counts.
func (c *connections) limit(l net.Listener) net.Listener { return &counted{l, c} }

type counted struct {
	net.Listener
	count *connections
}

// repeatTime is between two words in the log about refused connections.
const repeatTime = time.Minute

// take counts a connection. over says which limit it is beyond, "" = none, and keep whether it can be told so.
func (c *connections) take(address string, now time.Time) (over string, keep bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all, one := c.open+1, c.by[address]+1
	keep = true
	switch {
	case c.max > 0 && all > c.max:
		over, keep = fmt.Sprintf("the gateway has %d connections, which is its limit (server.maxconnections)", c.max), all <= c.max+spare
	case c.maxOfAddress > 0 && one > c.maxOfAddress:
		over = fmt.Sprintf("your address has %d connections, which is the limit (server.limits.connectionsperaddress)", c.maxOfAddress)
		keep = one <= c.maxOfAddress+spare
	}
	if keep {
		c.open, c.by[address] = all, one
	}
	if over != "" {
		c.refused()
		if now.Sub(c.told) > repeatTime {
			c.told = now
			c.log.WithFields(logging.Fields{"address": address, "reason": over}).Warn("connections are refused")
		}
	}
	return over, keep
}

func (c *connections) give(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.by[address]--; c.by[address] == 0 {
		delete(c.by, address)
	}
}

// Accept takes connections in that are not too many.
func (l *counted) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address, _, err := net.SplitHostPort(conn.RemoteAddr().String())
		if err != nil {
			address = conn.RemoteAddr().String() // of a socket without ports
		}
		over, keep := l.count.take(address, time.Now())
		if !keep {
			_ = conn.Close()
			continue
		}
		return &connection{Conn: conn, count: l.count, address: address, over: over}, nil
	}
}

// connection gives its place back when it is closed.
type connection struct {
	net.Conn
	count   *connections
	address string
	over    string // the limit that it is beyond; "" = none
	once    sync.Once
}

// Close may be called more than once.
func (c *connection) Close() error {
	c.once.Do(func() { c.count.give(c.address) })
	return c.Conn.Close()
}

// CloseWrite ends our side alone, where the connection has sides: what the client still sends then does not cost it what it has not read yet.
func (c *connection) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// mark has requests of a connection that is one too many answered by saying so.
func (c *connections) mark(ctx context.Context, conn net.Conn) context.Context {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if one, ok := conn.(*connection); ok && one.over != "" {
		return api.Crowded(ctx, one.over)
	}
	return ctx
}
