package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"rockpool/internal/orchestrator/sim/fabric"
)

const gossipPort = ":4648"

// ipOf is the address that gossip knows a server by: it insists on numbers.
func ipOf(server string) string { return "10.0.0." + strings.TrimPrefix(server, "s") }

// hostOf is the server at such an address.
func hostOf(address string) string { return "s" + strings.TrimPrefix(address, "10.0.0.") }

// gossip carries the membership protocol over the simulated network.
type gossip struct {
	host     *fabric.Host
	packets  *fabric.Packets
	listener net.Listener
	in       chan *memberlist.Packet
	streams  chan net.Conn
	done     chan struct{}
	once     sync.Once
	tasks    sync.WaitGroup
}

var _ memberlist.Transport = (*gossip)(nil)

func newGossip(h *fabric.Host) (*gossip, error) {
	g := &gossip{host: h, in: make(chan *memberlist.Packet), streams: make(chan net.Conn), done: make(chan struct{})}
	var err error
	if g.packets, err = h.ListenPacket(gossipPort); err != nil {
		return nil, err
	}
	if g.listener, err = h.Listen(gossipPort); err != nil {
		g.packets.Close()
		return nil, err
	}
	g.tasks.Go(g.receive)
	g.tasks.Go(g.accept)
	return g, nil
}

func (g *gossip) receive() {
	for {
		select {
		case p := <-g.packets.C():
			name, _, _ := net.SplitHostPort(p.From)
			m := &memberlist.Packet{Buf: p.Data, From: &net.UDPAddr{IP: net.ParseIP(ipOf(name)), Port: 4648}, Timestamp: p.At}
			select {
			case g.in <- m:
			case <-g.done:
				return
			}
		case <-g.done:
			return
		}
	}
}

func (g *gossip) accept() {
	for {
		c, err := g.listener.Accept()
		if err != nil {
			return
		}
		select {
		case g.streams <- c:
		case <-g.done:
			_ = c.Close()
			return
		}
	}
}

// FinalAdvertiseAddr is what others are told.
func (g *gossip) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return net.ParseIP(ipOf(g.host.Name())), 4648, nil
}

// WriteTo sends a packet.
func (g *gossip) WriteTo(b []byte, to string) (time.Time, error) {
	ip, port, err := net.SplitHostPort(to)
	if err != nil {
		return time.Time{}, fmt.Errorf("gossip: %w", err)
	}
	return time.Now(), g.packets.Send(b, net.JoinHostPort(hostOf(ip), port))
}

// PacketCh has what has come.
func (g *gossip) PacketCh() <-chan *memberlist.Packet { return g.in }

// StreamCh has the connections that have come.
func (g *gossip) StreamCh() <-chan net.Conn { return g.streams }

// DialTimeout connects.
func (g *gossip) DialTimeout(to string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	ip, port, err := net.SplitHostPort(to)
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	return g.host.Dial(ctx, net.JoinHostPort(hostOf(ip), port))
}

// Shutdown ends it.
func (g *gossip) Shutdown() (err error) {
	g.once.Do(func() {
		close(g.done)
		if err = g.listener.Close(); errors.Is(err, net.ErrClosed) {
			err = nil // the host has crashed
		}
		g.packets.Close()
		g.tasks.Wait()
	})
	return err
}
