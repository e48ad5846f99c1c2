package fabric

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// maxHeld is how much of one direction of a connection is under way before its writer waits.
const maxHeld = 256 << 10

// lane is one direction of a connection. Everything in it is guarded by the network's mu.
type lane struct {
	owner, peer *Host // who writes, who reads
	reads       *sync.Cond
	writes      *sync.Cond
	segments    []segment
	held        int
	lost        bool  // what is written goes nowhere
	ended       bool  // the writer has closed; what is held is still delivered
	closed      bool  // the reader has closed
	err         error // the connection broke
	users       int   // ends that are open
}

type segment struct {
	data []byte // nil = the end
	due  time.Time
}

func newLane(from, to *Host) *lane {
	l := &lane{owner: from, peer: to, users: 2}
	l.reads, l.writes = sync.NewCond(&from.net.mu), sync.NewCond(&from.net.mu)
	return l
}

func (l *lane) wake() {
	l.reads.Broadcast()
	l.writes.Broadcast()
}

func (l *lane) fail(err error) {
	if l.err == nil {
		l.err = err
	}
	l.wake()
}

func (l *lane) drop() {
	if l.users--; l.users == 0 {
		delete(l.owner.net.lanes, l)
	}
}

// due is how much can be read now, and otherwise when it is worth to look again; zero = not before something happens.
func (l *lane) due(now time.Time) (ready bool, next time.Time) {
	n := l.owner.net
	if len(l.segments) == 0 || n.cut[link{l.owner.name, l.peer.name}] {
		return false, time.Time{}
	}
	if d := l.segments[0].due; d.After(now) {
		return false, d
	}
	return true, time.Time{}
}

// push is called by the writer, with room for data.
func (l *lane) push(data []byte) {
	n := l.owner.net
	due := time.Now().Add(n.takes(link{l.owner.name, l.peer.name}))
	if k := len(l.segments); k > 0 && l.segments[k-1].due.After(due) {
		due = l.segments[k-1].due
	}
	l.segments = append(l.segments, segment{data, due})
	l.held += len(data)
	l.reads.Broadcast()
}

// conn is one end of a connection.
type conn struct {
	out, in       *lane
	local, remote address
	readBy        deadline // guarded by net.mu
	writeBy       deadline // guarded by net.mu
	closed        bool     // guarded by net.mu
}

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (c *conn) net() *Network { return c.out.owner.net }

func (c *conn) Read(p []byte) (int, error) {
	n := c.net()
	n.mu.Lock()
	defer n.mu.Unlock()
	l := c.in
	var timer *time.Timer
	defer func() {
		if timer != nil {
			timer.Stop()
		}
	}()
	for {
		ready, next := l.due(time.Now())
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case l.peer.dead:
			return 0, c.broken("read", syscall.ENETDOWN)
		case c.readBy.passed():
			return 0, c.broken("read", os.ErrDeadlineExceeded)
		case ready && l.segments[0].data == nil:
			return 0, io.EOF
		case ready && len(p) == 0:
			return 0, nil
		case ready:
			s := &l.segments[0]
			k := copy(p, s.data)
			if s.data = s.data[k:]; len(s.data) == 0 {
				l.segments = l.segments[1:]
			}
			l.held -= k
			l.writes.Broadcast()
			return k, nil
		case l.err != nil && next.IsZero() && !n.cut[link{l.owner.name, l.peer.name}]:
			return 0, c.broken("read", l.err)
		}
		if !next.IsZero() {
			if timer != nil {
				timer.Stop()
			}
			timer = time.AfterFunc(time.Until(next), func() {
				n.mu.Lock()
				defer n.mu.Unlock()
				l.reads.Broadcast()
			})
		}
		l.reads.Wait()
	}
}

func (c *conn) Write(p []byte) (written int, err error) {
	n := c.net()
	n.mu.Lock()
	defer n.mu.Unlock()
	l := c.out
	for len(p) > 0 {
		switch {
		case c.closed:
			return written, net.ErrClosed
		case l.owner.dead:
			return written, c.broken("write", syscall.ENETDOWN)
		case c.writeBy.passed():
			return written, c.broken("write", os.ErrDeadlineExceeded)
		case l.err != nil:
			return written, c.broken("write", l.err)
		case l.closed: // the reader has closed, and says so to whoever sends more
			return written, c.broken("write", syscall.EPIPE)
		case l.lost && l.held+len(p) <= maxHeld:
			l.held += len(p)
			return written + len(p), nil
		case l.held >= maxHeld || l.lost:
			l.writes.Wait()
			continue
		}
		k := min(len(p), maxHeld-l.held)
		l.push(append([]byte(nil), p[:k]...))
		written += k
		p = p[k:]
	}
	return written, nil
}

func (c *conn) Close() error {
	n := c.net()
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.close()
	return nil
}

// close is called with net.mu held.
func (c *conn) close() {
	if c.closed {
		return
	}
	c.closed = true
	for _, d := range []*deadline{&c.readBy, &c.writeBy} {
		if d.timer != nil {
			d.timer.Stop()
		}
	}
	if !c.out.ended && c.out.err == nil && !c.out.lost && !c.out.owner.dead {
		c.out.ended = true
		c.out.push(nil)
	}
	c.in.closed = true
	c.in.segments, c.in.held = nil, 0
	c.in.wake()
	c.out.wake()
	c.in.drop()
	c.out.drop()
}

func (c *conn) broken(op string, err error) error {
	return &net.OpError{Op: op, Net: "sim", Source: c.local, Addr: c.remote, Err: err}
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *conn) SetReadDeadline(t time.Time) error  { return c.set(&c.readBy, c.in.reads, t) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.set(&c.writeBy, c.out.writes, t) }

func (c *conn) set(d *deadline, who *sync.Cond, t time.Time) error {
	n := c.net()
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			who.Broadcast()
		})
	}
	who.Broadcast()
	return nil
}
