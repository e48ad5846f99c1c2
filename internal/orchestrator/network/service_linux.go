package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"

	"rockpool/internal/lifecycle"
)

const (
	upstreamTime   = 1500 * time.Millisecond // for one server
	tcpConnections = 256
)

// upstream passes questions on, from the node's namespace.
type upstream struct {
	ns      *os.File // nil = that of the process
	servers []netip.AddrPort
}

// readServers are the configured ones, or those of the node.
func readServers(configured []string, path string) ([]netip.AddrPort, error) {
	var all []netip.AddrPort
	for _, s := range configured {
		a, err := netip.ParseAddrPort(s)
		if err != nil {
			ip, err := netip.ParseAddr(s)
			if err != nil {
				return nil, fmt.Errorf("name server %q: an address, with a port or without, is wanted", s)
			}
			a = netip.AddrPortFrom(ip, 53)
		}
		all = append(all, a)
	}
	if len(all) > 0 {
		return all, nil
	}
	c, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil, nil // a node without a name service has runners without one
	}
	for _, s := range c.Servers {
		port, _ := strconv.ParseUint(c.Port, 10, 16)
		if ip, err := netip.ParseAddr(strings.TrimSpace(s)); err == nil {
			all = append(all, netip.AddrPortFrom(ip, uint16(port)))
		}
	}
	return all, nil
}

// exchange asks one server after the other.
func (u *upstream) exchange(ctx context.Context, q *dns.Msg, servers []netip.AddrPort) (*dns.Msg, error) {
	if len(servers) == 0 {
		servers = u.servers
	}
	var errs []error
	for _, s := range servers {
		for _, network := range []string{"udp", "tcp"} {
			a, err := u.ask(ctx, network, s, q)
			if err != nil {
				errs = append(errs, err)
				break
			}
			if !a.Truncated {
				return a, nil
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return nil, errors.New("the node knows no name server")
	}
	return nil, errors.Join(errs...)
}

func (u *upstream) ask(ctx context.Context, network string, server netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	bounded, cancel := context.WithTimeout(ctx, upstreamTime)
	defer cancel()
	conn, err := u.dial(bounded, network, server)
	if err != nil {
		return nil, fmt.Errorf("name server %s: %w", server, err)
	}
	defer conn.Close()
	deadline, _ := bounded.Deadline()
	_ = conn.SetDeadline(deadline)
	c := &dns.Client{Net: network, UDPSize: udpAnswer, Timeout: upstreamTime}
	a, _, err := c.ExchangeWithConnContext(bounded, q, &dns.Conn{Conn: conn, UDPSize: udpAnswer})
	if err != nil {
		return nil, fmt.Errorf("name server %s: %w", server, err)
	}
	return a, nil
}

func (u *upstream) dial(ctx context.Context, network string, server netip.AddrPort) (conn net.Conn, err error) {
	var d net.Dialer
	if u.ns == nil {
		return d.DialContext(ctx, network, server.String())
	}
	err = lifecycle.OnOwnThread(func() error {
		if err := enter(u.ns); err != nil {
			return err
		}
		conn, err = d.DialContext(ctx, network, server.String())
		return err
	})
	return conn, err
}

// sockets are where runners ask. They are bound before there is a bridge.
type sockets struct {
	udp net.PacketConn
	tcp net.Listener
}

func listen(ns *os.File, at netip.Addr) (s sockets, err error) {
	early := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
		}), err)
	}}
	err = lifecycle.OnOwnThread(func() error {
		if err := enter(ns); err != nil {
			return err
		}
		address := netip.AddrPortFrom(at, 53).String()
		if s.udp, err = early.ListenPacket(context.Background(), "udp4", address); err != nil {
			return err
		}
		if s.tcp, err = early.Listen(context.Background(), "tcp4", address); err != nil {
			return errors.Join(err, s.udp.Close())
		}
		s.tcp = netutil.LimitListener(s.tcp, tcpConnections)
		return nil
	})
	if err != nil {
		return sockets{}, fmt.Errorf("name service for runners on %s: %w: does another name server listen on every address?", at, err)
	}
	return s, nil
}

func (s sockets) close() error {
	var errs []error
	if s.udp != nil {
		errs = append(errs, s.udp.Close())
	}
	if s.tcp != nil {
		errs = append(errs, s.tcp.Close())
	}
	for i, err := range errs {
		if errors.Is(err, net.ErrClosed) {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}

// serve answers until ctx ends.
func (s sockets) serve(ctx context.Context, r *resolver) error {
	servers := []*dns.Server{
		{PacketConn: s.udp, Handler: r, UDPSize: udpAnswer, MsgAcceptFunc: accept},
		{Listener: s.tcp, Handler: r, MaxTCPQueries: 64, ReadTimeout: 2 * time.Second, MsgAcceptFunc: accept,
			IdleTimeout: func() time.Duration { return 5 * time.Second }},
	}
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, d := range servers {
		started := make(chan struct{})
		d.NotifyStartedFunc = func() { close(started) }
		ended := make(chan struct{})
		wg.Go(func() {
			defer close(ended)
			errs[i] = d.ActivateAndServe()
		})
		wg.Go(func() {
			select {
			case <-ctx.Done():
			case <-ended:
				return
			}
			select {
			case <-started:
				quick, cancel := context.WithTimeout(context.WithoutCancel(ctx), questionTime+time.Second)
				defer cancel()
				_ = d.ShutdownContext(quick)
			case <-ended:
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// accept looks at a header before anything is unpacked.
func accept(h dns.Header) dns.MsgAcceptAction {
	const response = 1 << 15
	switch {
	case h.Bits&response != 0:
		return dns.MsgIgnore
	case h.Qdcount != 1 || h.Ancount > 0 || h.Nscount > 0 || h.Arcount > 2:
		return dns.MsgReject
	}
	return dns.MsgAccept
}
