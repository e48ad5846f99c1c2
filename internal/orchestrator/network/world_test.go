//go:build linux

package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/model"
)

// world is a node and an internet, each a namespace of its own: nothing of the machine is touched.
//
//	internet 203.0.113.10, 198.51.100.7, and as if they were there: 169.254.169.254, 10.1.2.3, 192.168.7.7
//	node     203.0.113.1 on its uplink
type world struct {
	t        testing.TB
	node     *os.File
	internet *os.File
	cfg      Config
	dnsSeen  atomic.Int64
	udpSeen  atomic.Int64
	zone     sync.Map // name -> []string, addresses
}

const nodeAddress = "203.0.113.1"

// internetAddresses all answer on every port of TCP 80, 443, 25 and UDP 53, 9999.
var internetAddresses = []string{"203.0.113.10/24", "198.51.100.7/32", "169.254.169.254/32", "10.1.2.3/32", "192.168.7.7/32", "168.63.129.16/32"}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func freshNS(t testing.TB) *os.File {
	t.Helper()
	var ns *os.File
	check(t, lifecycle.OnOwnThread(func() (err error) {
		if ns, err = newNS(); err != nil {
			return err
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.LinkSetUp(lo)
	}))
	t.Cleanup(func() { ns.Close() })
	return ns
}

// in runs f on a thread inside a namespace.
func in(t testing.TB, ns *os.File, f func() error) {
	t.Helper()
	check(t, lifecycle.OnOwnThread(func() error {
		if err := enter(ns); err != nil {
			return err
		}
		return f()
	}))
}

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	w := &world{t: t, node: freshNS(t), internet: freshNS(t)}
	in(t, w.node, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		a := netlink.NewLinkAttrs()
		a.Name = "uplink"
		v := &netlink.Veth{LinkAttrs: a, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(w.internet.Fd()))}
		addr, _ := netlink.ParseAddr(nodeAddress + "/24")
		return errors.Join(h.LinkAdd(v), h.AddrAdd(v, addr), h.LinkSetUp(v))
	})
	in(t, w.internet, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		eth, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, s := range internetAddresses {
			a, err := netlink.ParseAddr(s)
			if err != nil {
				return err
			}
			if err := h.AddrAdd(eth, a); err != nil {
				return err
			}
		}
		// Without NAT the answers would come here too: what is not masqueraded would show as the runner's own address.
		return errors.Join(h.LinkSetUp(eth), h.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(nodeAddress)}))
	})
	in(t, w.node, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return h.RouteAdd(&netlink.Route{Gw: net.ParseIP("203.0.113.10")})
	})
	for _, port := range []int{80, 443, 25} {
		w.serveTCP(w.internet, fmt.Sprintf(":%d", port))
	}
	w.serveUDP(w.internet, "203.0.113.10:9999")
	w.serveDNS()
	for _, at := range []string{":4646", ":7200", ":22"} { // the API, the gateway, a shell: on every address of the node
		w.serveTCP(w.node, at)
	}
	dir := filepath.Join(t.TempDir(), "network")
	path := filepath.Join(t.TempDir(), "node-ns")
	in(t, w.node, func() error { return pin(path) })
	t.Cleanup(func() { check(t, unpin(path)) })
	w.cfg = Config{Dir: dir, Name: "rptest", Range: netip.MustParsePrefix("172.30.64.0/20"), DNS: []string{"203.0.113.10"}, NodeNS: path, Log: logging.Discard()}
	return w
}

// serveTCP answers every connection with the address it came from.
func (w *world) serveTCP(ns *os.File, at string) {
	w.t.Helper()
	var l net.Listener
	in(w.t, ns, func() (err error) {
		l, err = net.Listen("tcp4", at)
		return err
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				_, _ = fmt.Fprintln(c, host)
				_, _ = io.Copy(io.Discard, c)
			})
		}
	})
	w.t.Cleanup(func() { l.Close(); wg.Wait() })
}

// serveUDP counts and answers datagrams.
func (w *world) serveUDP(ns *os.File, at string) {
	w.t.Helper()
	var c net.PacketConn
	in(w.t, ns, func() (err error) {
		c, err = net.ListenPacket("udp4", at)
		return err
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			w.udpSeen.Add(1)
			_, _ = c.WriteTo(b[:n], from)
		}
	})
	w.t.Cleanup(func() { c.Close(); wg.Wait() })
}

// serveDNS is a name server with the zone of the world.
func (w *world) serveDNS() {
	w.t.Helper()
	var c net.PacketConn
	in(w.t, w.internet, func() (err error) {
		c, err = net.ListenPacket("udp4", "203.0.113.10:53")
		return err
	})
	w.zone.Store("pypi.org.", []string{"198.51.100.7"})
	w.zone.Store("example.org.", []string{"203.0.113.10"})
	w.zone.Store("rebind.example.", []string{"10.1.2.3", "203.0.113.10", "169.254.169.254", "127.0.0.1"})
	w.zone.Store("metadata.example.", []string{"169.254.169.254"})
	s := &dns.Server{PacketConn: c, Handler: dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		w.dnsSeen.Add(1)
		a := new(dns.Msg)
		a.SetReply(q)
		addrs, ok := w.zone.Load(strings.ToLower(q.Question[0].Name))
		if !ok {
			a.Rcode = dns.RcodeNameError
		} else if q.Question[0].Qtype == dns.TypeA {
			for _, ip := range addrs.([]string) {
				a.Answer = append(a.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 30}, A: net.ParseIP(ip)})
			}
		}
		_ = rw.WriteMsg(a)
	})}
	started := make(chan struct{})
	s.NotifyStartedFunc = func() { close(started) }
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.ActivateAndServe() })
	<-started
	w.t.Cleanup(func() { _ = s.Shutdown(); wg.Wait() })
}

// manager starts one; it ends with the test.
func (w *world) manager() *Manager {
	w.t.Helper()
	m := must[*Manager](w.t)(New(w.cfg))
	for _, f := range m.Fences() {
		if !f.InForce {
			w.t.Fatalf("fence %s: %s", f.Name, f.Detail)
		}
	}
	check(w.t, m.Sweep(context.Background(), nil))
	w.run(m)
	return m
}

func (w *world) run(m *Manager) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.Run(ctx); err != nil {
			w.t.Errorf("run: %v", err)
		}
	})
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			wg.Wait()
			m.mu.Lock()
			var ids []string
			for id := range m.held {
				ids = append(ids, id)
			}
			m.mu.Unlock()
			for _, id := range ids {
				if err := m.Detach(context.Background(), id); err != nil {
					w.t.Errorf("detach %s: %v", id, err)
				}
			}
			if err := m.Close(); err != nil {
				w.t.Errorf("close: %v", err)
			}
		})
	}
	w.t.Cleanup(stop)
	return stop
}

// runner is an attached namespace.
type runner struct {
	w  *world
	at Attachment
	ns *os.File
}

func (w *world) attach(m *Manager, id string, r Request) *runner {
	w.t.Helper()
	if r.Mode == "" {
		r.Mode = ModeBridge
	}
	at := must[Attachment](w.t)(m.Attach(context.Background(), id, r))
	ns := must[*os.File](w.t)(os.Open(at.NetNS))
	w.t.Cleanup(func() { ns.Close() })
	return &runner{w, at, ns}
}

func ports(host, to int) []model.AllocatedPort {
	return []model.AllocatedPort{{Label: "http", Value: host, To: to}}
}

// connect opens a TCP connection from a namespace and returns what the other side says first.
func connect(ns *os.File, to string, timeout time.Duration) (said string, err error) {
	var c net.Conn
	err = lifecycle.OnOwnThread(func() error {
		if err := enter(ns); err != nil {
			return err
		}
		network := "tcp4"
		if strings.HasPrefix(to, "[") {
			network = "tcp6"
		}
		c, err = net.DialTimeout(network, to, timeout)
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(timeout))
	b := make([]byte, 64)
	n, err := c.Read(b)
	return strings.TrimSpace(string(b[:n])), err
}

func (r *runner) reaches(to string) error {
	_, err := connect(r.ns, to, 700*time.Millisecond)
	return err
}

// ask asks the runner's name service.
func (r *runner) ask(network, name string, kind uint16) (*dns.Msg, error) {
	var c net.Conn
	err := lifecycle.OnOwnThread(func() (err error) {
		if err = enter(r.ns); err != nil {
			return err
		}
		c, err = net.DialTimeout(network, net.JoinHostPort(r.at.Nameservers[0], "53"), time.Second)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), kind)
	client := &dns.Client{Net: network, Timeout: 2 * time.Second}
	a, _, err := client.ExchangeWithConn(q, &dns.Conn{Conn: c})
	return a, err
}

func (r *runner) lookup(name string) ([]string, error) {
	a, err := r.ask("udp", name, dns.TypeA)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, rr := range a.Answer {
		if rr, ok := rr.(*dns.A); ok {
			all = append(all, rr.A.String())
		}
	}
	if a.Rcode != dns.RcodeSuccess {
		return all, errors.New(dns.RcodeToString[a.Rcode])
	}
	return all, nil
}
