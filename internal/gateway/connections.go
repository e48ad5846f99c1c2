package gateway

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"

	"rockpool/internal/api"
	"rockpool/internal/logging"
)

// spare is how many connections beyond the limit are kept for as long as it takes to tell their clients. Any more are closed without a word.
const spare = 64

// connections bounds how many connections there are, over all listeners. Each costs a descriptor and some memory, also one that never sends a byte.
type connections struct {
	max  int64 // 0 = no limit
	log  logging.Logger
	open atomic.Int64
}

// limit returns a listener that counts.
func (c *connections) limit(l net.Listener) net.Listener { return &counted{l, c} }

type counted struct {
	net.Listener
	count *connections
}

// Accept takes connections in that are not too many.
func (l *counted) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		n, c := l.count.open.Add(1), l.count
		if c.max > 0 && n == c.max+1 {
			c.log.WithField("connections", c.max).Warn("connections are refused: there are as many as server.maxconnections allows")
		}
		if c.max > 0 && n > c.max+spare {
			c.open.Add(-1)
			_ = conn.Close()
			continue
		}
		return &connection{Conn: conn, count: c, over: c.max > 0 && n > c.max}, nil
	}
}

// connection gives its place back when it is closed.
type connection struct {
	net.Conn
	count *connections
	over  bool
	once  sync.Once
}

// Close may be called more than once.
func (c *connection) Close() error {
	c.once.Do(func() { c.count.open.Add(-1) })
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
	if one, ok := conn.(*connection); ok && one.over {
		return api.Crowded(ctx, c.max)
	}
	return ctx
}
