package fabric

import (
	"fmt"
	"net"
	"slices"
	"syscall"
	"time"
)

// Packets are messages that nobody answers for: what is sent over a link that is cut, or to nobody, is lost.
type Packets struct {
	host *Host
	port string
	in   chan Packet
}

// Packet is one message.
type Packet struct {
	Data []byte
	From string // host:port
	At   time.Time
}

// waiting is how many packets are held for a slow reader.
const waiting = 256

// ListenPacket takes packets at a port, which is written as in host:port.
func (h *Host) ListenPacket(at string) (*Packets, error) {
	_, port, err := net.SplitHostPort(at)
	if err != nil {
		return nil, fmt.Errorf("listen for packets: %w", err)
	}
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	switch {
	case h.dead:
		return nil, fmt.Errorf("listen for packets on %s: %w", h.name, syscall.ENETDOWN)
	case h.packets[port] != nil:
		return nil, fmt.Errorf("listen for packets on %s: %w", at, syscall.EADDRINUSE)
	}
	p := &Packets{host: h, port: port, in: make(chan Packet, waiting)}
	h.packets[port] = p
	return p, nil
}

// C has the packets that have come.
func (p *Packets) C() <-chan Packet { return p.in }

// Send sends one to host:port.
func (p *Packets) Send(data []byte, to string) error {
	name, port, err := net.SplitHostPort(to)
	if err != nil {
		return fmt.Errorf("send a packet: %w", err)
	}
	n := p.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	way := link{p.host.name, name}
	if p.host.dead {
		return fmt.Errorf("send a packet: %w", syscall.ENETDOWN)
	}
	if n.cut[way] {
		return nil
	}
	m := Packet{Data: slices.Clone(data), From: net.JoinHostPort(p.host.name, p.port)}
	time.AfterFunc(n.takes(way), func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		there := n.hosts[name]
		if there == nil || there.packets[port] == nil {
			return
		}
		m.At = time.Now()
		select {
		case there.packets[port].in <- m:
		default:
		}
	})
	return nil
}

// Close takes no more packets.
func (p *Packets) Close() {
	p.host.net.mu.Lock()
	defer p.host.net.mu.Unlock()
	if p.host.packets[p.port] == p {
		delete(p.host.packets, p.port)
	}
}
