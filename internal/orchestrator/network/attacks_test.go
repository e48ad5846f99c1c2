//go:build linux

package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rockpool/internal/ident"
)

func TestARunnerReachesThePublicAndNothingElse(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	r := w.attach(m, "one", Request{})
	neighbour := w.attach(m, "two", Request{Ports: ports(20001, 8080)})
	w.serveTCP(neighbour.ns, ":8080")
	for _, c := range []struct{ what, to string }{
		{"a public address", "203.0.113.10:80"},
		{"another one", "198.51.100.7:443"},
	} {
		said, err := connect(r.ns, c.to, time.Second)
		if err != nil {
			t.Errorf("%s (%s) cannot be reached: %v", c.what, c.to, err)
		} else if said != nodeAddress {
			t.Errorf("%s sees %s and not the address of the node", c.what, said)
		}
	}
	for _, c := range []struct{ what, to string }{
		{"the API of the node at the bridge", "172.30.64.1:4646"},
		{"the gateway at the bridge", "172.30.64.1:7200"},
		{"the API of the node at its address", nodeAddress + ":4646"},
		{"a shell of the node", nodeAddress + ":22"},
		{"the node's loopback addresses", "127.0.0.1:4646"},
		{"a metadata service", "169.254.169.254:80"},
		{"a cloud's platform service", "168.63.129.16:80"},
		{"a private address", "10.1.2.3:80"},
		{"another private address", "192.168.7.7:443"},
		{"a neighbour", neighbour.at.Address + ":8080"},
		{"a neighbour by its mapped port", nodeAddress + ":20001"},
		{"a neighbour by its mapped port at the bridge", "172.30.64.1:20001"},
		{"an address of the range that nobody has", "172.30.70.9:80"},
		{"a mail server", "203.0.113.10:25"},
		{"a metadata service by IPv6", "[fd00:ec2::254]:80"},
		{"the node by IPv6", "[fe80::1%eth0]:4646"},
		{"broadcast", "255.255.255.255:80"},
	} {
		if err := r.reaches(c.to); err == nil {
			t.Errorf("%s (%s) can be reached", c.what, c.to)
		}
	}
}

func TestNoNetworkIsAnEmptyNamespace(t *testing.T) {
	w := newWorld(t)
	off := freshNS(t) // as the sandbox makes it: loopback and nothing else
	for _, to := range []string{"203.0.113.10:80", nodeAddress + ":4646", "127.0.0.1:4646", "169.254.169.254:80", "[fd00:ec2::254]:80", "[::1]:4646"} {
		if _, err := connect(off, to, 300*time.Millisecond); err == nil {
			t.Errorf("%s can be reached", to)
		}
	}
	in(t, off, func() error {
		for what, to := range map[string]unix.Sockaddr{
			"UDP": &unix.SockaddrInet4{Port: 9999, Addr: [4]byte{203, 0, 113, 10}}, "UDP by IPv6": &unix.SockaddrInet6{Port: 53, Addr: [16]byte{0xfd}},
		} {
			family := unix.AF_INET
			if _, six := to.(*unix.SockaddrInet6); six {
				family = unix.AF_INET6
			}
			fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			if err := unix.Sendto(fd, []byte("x"), 0, to); err == nil {
				t.Errorf("%s leaves", what)
			}
			_ = unix.Close(fd)
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Sendto(fd, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}, 0, &unix.SockaddrInet4{Addr: [4]byte{203, 0, 113, 10}}); err == nil {
			t.Error("ICMP leaves")
		}
		return nil
	})
	if n := w.udpSeen.Load(); n != 0 {
		t.Errorf("%d datagrams arrived", n)
	}
}

func TestAllowLists(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	for name, c := range map[string]struct {
		list    string
		lookups []string
		yes, no []string
	}{
		"an address":            {"203.0.113.10", nil, []string{"203.0.113.10:80", "203.0.113.10:443"}, []string{"198.51.100.7:80"}},
		"a prefix with a port":  {"203.0.113.0/24:80", nil, []string{"203.0.113.10:80"}, []string{"203.0.113.10:443", "198.51.100.7:80"}},
		"everything has bounds": {"0.0.0.0/0", nil, []string{"203.0.113.10:80"}, []string{"169.254.169.254:80", "10.1.2.3:80", nodeAddress + ":4646", "203.0.113.10:25"}},
		"UDP is not TCP":        {"203.0.113.10:80/udp", nil, nil, []string{"203.0.113.10:80"}},
		"a name that was asked": {"pypi.org:443", []string{"pypi.org"}, []string{"198.51.100.7:443"}, []string{"198.51.100.7:80", "203.0.113.10:443"}},
		"a name nobody asked":   {"pypi.org", nil, nil, []string{"198.51.100.7:443"}},
		"a name, every port":    {"pypi.org", []string{"pypi.org"}, []string{"198.51.100.7:443", "198.51.100.7:80"}, []string{"203.0.113.10:80"}},
		"another name":          {"pypi.org", []string{"example.org"}, nil, []string{"203.0.113.10:80"}},
		"a name that turned":    {"metadata.example,rebind.example", []string{"metadata.example", "rebind.example"}, []string{"203.0.113.10:80"}, []string{"169.254.169.254:80", "10.1.2.3:80"}},
		"a wildcard":            {"*.org", []string{"pypi.org"}, []string{"198.51.100.7:80"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			id := ident.New()
			r := w.attach(m, id, Request{Egress: c.list})
			for _, l := range c.lookups {
				_, _ = r.lookup(l)
			}
			for _, to := range c.yes {
				if err := r.reaches(to); err != nil {
					t.Errorf("%s cannot be reached: %v", to, err)
				}
			}
			for _, to := range c.no {
				if r.reaches(to) == nil {
					t.Errorf("%s can be reached", to)
				}
			}
			check(t, m.Detach(t.Context(), id))
		})
	}
	if n := len(m.bridged.firewall.policies); n != 0 {
		t.Errorf("%d allow lists are left of runners that are gone", n)
	}
}

func TestTheNameService(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	r := w.attach(m, "one", Request{})
	listed := w.attach(m, "two", Request{Egress: "pypi.org"})
	for _, network := range []string{"udp", "tcp"} {
		a, err := r.ask(network, "pypi.org", dns.TypeA)
		if err != nil || len(a.Answer) != 1 || a.Answer[0].(*dns.A).A.String() != "198.51.100.7" {
			t.Fatalf("%s: %v, %v", network, a, err)
		}
	}
	if got, err := r.lookup("rebind.example"); err != nil || !slices.Equal(got, []string{"203.0.113.10"}) {
		t.Errorf("of an answer into the operator's network the runner gets %v, %v", got, err)
	}
	if got, err := r.lookup("metadata.example"); err != nil || len(got) != 0 {
		t.Errorf("a name of the metadata service is %v, %v", got, err)
	}
	for what, q := range map[string]struct {
		name string
		kind uint16
		code int
	}{
		"ANY":                        {"pypi.org", dns.TypeANY, dns.RcodeRefused},
		"a transfer":                 {"pypi.org", dns.TypeAXFR, dns.RcodeRefused},
		"the name of a machine":      {"3.2.1.10.in-addr.arpa", dns.TypePTR, dns.RcodeRefused},
		"the names of machines":      {"10.in-addr.arpa", dns.TypeSOA, dns.RcodeRefused},
		"IPv6":                       {"pypi.org", dns.TypeAAAA, dns.RcodeSuccess},
		"a name that does not exist": {"nowhere.example", dns.TypeA, dns.RcodeNameError},
	} {
		a, err := r.ask("tcp", q.name, q.kind)
		if err != nil || a.Rcode != q.code || len(a.Answer) != 0 {
			t.Errorf("%s: %v, %v", what, a, err)
		}
	}
	before := w.dnsSeen.Load()
	if _, err := listed.lookup("example.org"); err == nil {
		t.Error("a name beyond the allow list resolves")
	}
	if a, err := listed.ask("udp", "exfiltrate.attacker.example", dns.TypeTXT); err != nil || a.Rcode != dns.RcodeNameError {
		t.Errorf("a question beyond the allow list: %v, %v", a, err)
	}
	if w.dnsSeen.Load() != before {
		t.Error("a question beyond the allow list left the node")
	}
	if _, err := connect(w.internet, "172.30.64.1:53", 300*time.Millisecond); err == nil {
		t.Log("the name service can be reached from outside by those who route there; it answers runners only")
	}
}

func TestExposedPorts(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	r := w.attach(m, "one", Request{Ports: ports(20080, 80)})
	w.serveTCP(r.ns, ":80")
	said, err := connect(w.internet, nodeAddress+":20080", time.Second)
	if err != nil || said != "203.0.113.10" {
		t.Errorf("from outside: %q, %v", said, err)
	}
	if said, err := connect(w.node, nodeAddress+":20080", time.Second); err != nil || said != nodeAddress {
		t.Errorf("from the node by its address: %q, %v", said, err)
	}
	for _, to := range []string{nodeAddress + ":80", nodeAddress + ":20081", r.at.Address + ":80"} {
		if _, err := connect(w.internet, to, 300*time.Millisecond); err == nil {
			t.Errorf("%s can be reached from outside", to)
		}
	}
	w.serveTCP(w.node, ":20090")
	_, err = m.Attach(t.Context(), "two", Request{Mode: ModeBridge, Ports: ports(20090, 80)})
	if err == nil || !strings.Contains(err.Error(), "the port 20090 of the node (TCP) cannot be mapped, another program has it") {
		t.Errorf("a port that a program of the node has: %v", err)
	}
	// Who takes the port of another inside gets nothing of what is sent to that one.
	thief := w.attach(m, "three", Request{})
	w.serveTCP(thief.ns, ":20080")
	if said, err := connect(w.internet, nodeAddress+":20080", time.Second); err != nil || said != "203.0.113.10" {
		t.Errorf("with a thief: %q, %v", said, err)
	}
	check(t, m.Detach(t.Context(), "one"))
	if _, err := connect(w.internet, nodeAddress+":20080", 300*time.Millisecond); err == nil {
		t.Error("the port is mapped although its runner is gone")
	}
}

// frames are sent as a runner with every power over its namespace could send them.
func TestForgedFramesAreDropped(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	r := w.attach(m, "one", Request{})
	victim := w.attach(m, "two", Request{})
	a, v := netip.MustParseAddr(r.at.Address), netip.MustParseAddr(victim.at.Address)
	gw := netip.MustParseAddr("172.30.64.1")
	datagram := func(from net.HardwareAddr, src netip.Addr) []byte {
		return udpFrame(mac(gw), from, src, netip.MustParseAddr("203.0.113.10"), 9999)
	}
	for _, c := range []struct {
		what  string
		frame []byte
		pass  bool
	}{
		{"its own address", datagram(mac(a), a), true},
		{"a neighbour's address", datagram(mac(a), v), false},
		{"a neighbour's address and hardware address", datagram(mac(v), v), false},
		{"another hardware address", datagram(mac(v), a), false},
		{"an address of the internet", datagram(mac(a), netip.MustParseAddr("198.51.100.99")), false},
		{"the gateway's address", datagram(mac(gw), gw), false},
		{"a VLAN", append(append(slices.Clone(datagram(mac(a), a)[:12]), 0x81, 0, 0, 1), datagram(mac(a), a)[12:]...), false},
	} {
		before := w.udpSeen.Load()
		r.send(t, c.frame)
		// What is sent properly afterwards arrives after it.
		r.send(t, datagram(mac(a), a))
		want := before + 1
		if c.pass {
			want++
		}
		eventually(t, func() bool { return w.udpSeen.Load() >= want })
		if got := w.udpSeen.Load(); got != want {
			t.Errorf("%s: %d datagrams arrived, want %d", c.what, got-before, want-before)
		}
	}

	// The gateway's address is taken over at nobody: not at the node, not at the neighbour.
	listener := listenFrames(t, victim.ns)
	node := listenFramesOn(t, w.node, m.bridged.links.bridgeName(0))
	r.send(t, arpFrame(mac(a), gw, a, 2))
	r.send(t, arpFrame(mac(a), v, a, 1))
	r.send(t, udpFrame(mac(v), mac(a), a, v, 9999))
	r.send(t, udpFrame(net.HardwareAddr{255, 255, 255, 255, 255, 255}, mac(a), a, netip.MustParseAddr("255.255.255.255"), 67))
	r.send(t, neighbourAdvertisement(mac(a)))
	r.send(t, datagram(mac(a), a)) // the last to arrive at the bridge
	for _, f := range node.until(t, func(f []byte) bool { return f[12] == 8 && f[13] == 0 && f[23] == unix.IPPROTO_UDP && f[30] == 203 }) {
		if kind := binary.BigEndian.Uint16(f[12:]); kind != unix.ETH_P_IP && bytes.Equal(f[6:12], mac(a)) {
			t.Errorf("a frame of type %#x came through to the node", kind)
		}
	}
	for _, f := range listener.now() {
		if bytes.Equal(f[6:12], mac(a)) {
			t.Errorf("the neighbour got a frame: %x", f)
		}
	}
	in(t, w.node, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		list, err := listing(func() ([]netlink.Neigh, error) { return h.NeighList(0, unix.AF_INET) })
		if err != nil {
			return err
		}
		for _, n := range list {
			if n.IP.Equal(v.AsSlice()) && !bytes.Equal(n.HardwareAddr, mac(v)) {
				t.Errorf("the node believes that the neighbour is %s", n.HardwareAddr)
			}
		}
		return nil
	})
}

func TestFloodsAreBounded(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	t.Run("new connections", func(t *testing.T) {
		r := w.attach(m, ident.New(), Request{})
		seen := listenFrames(t, w.internet)
		began := time.Now()
		const sent = 3000
		fds := r.synFlood(t, sent)
		elapsed := time.Since(began)
		defer func() {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}()
		got := map[uint16]bool{}
		for _, f := range seen.now() {
			if len(f) >= 54 && f[23] == unix.IPPROTO_TCP && f[47]&0x12 == 0x02 && f[30] == 198 {
				got[binary.BigEndian.Uint16(f[34:])] = true
			}
		}
		most := connectionsBurst + int(elapsed.Seconds()+1)*connectionsPerSecond
		if len(got) == 0 || len(got) > most || len(got) > connectionsAtOnce {
			t.Errorf("of %d connections begun in %v, %d came out; at most %d and %d at once are allowed", sent, elapsed, len(got), most, connectionsAtOnce)
		}
	})
	t.Run("datagrams", func(t *testing.T) {
		r := w.attach(m, ident.New(), Request{})
		before := w.udpSeen.Load()
		a := netip.MustParseAddr(r.at.Address)
		began := time.Now()
		const sent = 20000
		frame := udpFrame(mac(netip.MustParseAddr("172.30.64.1")), mac(a), a, netip.MustParseAddr("203.0.113.10"), 9999)
		frames := make([][]byte, sent)
		for i := range frames {
			frames[i] = frame
		}
		r.send(t, frames...)
		most := int64(packetsBurst + int(time.Since(began).Seconds()+1)*packetsPerSecond)
		eventually(t, func() bool { return w.udpSeen.Load() > before })
		if got := w.udpSeen.Load() - before; got > most {
			t.Errorf("of %d datagrams, %d came out; at most %d are allowed", sent, got, most)
		}
	})
	t.Run("questions", func(t *testing.T) {
		r := w.attach(m, ident.New(), Request{})
		before := w.dnsSeen.Load()
		a := netip.MustParseAddr(r.at.Address)
		q := new(dns.Msg)
		q.SetQuestion("pypi.org.", dns.TypeA)
		b := must[[]byte](t)(q.Pack())
		gw := netip.MustParseAddr("172.30.64.1")
		frames := make([][]byte, 3000)
		for i := range frames {
			frames[i] = udpFrameWith(mac(gw), mac(a), a, gw, 53, b)
		}
		began := time.Now()
		r.send(t, frames...)
		most := int64(questionsBurst + int(time.Since(began).Seconds()+1)*questionsPerSecond)
		eventually(t, func() bool { return w.dnsSeen.Load() > before })
		if got := w.dnsSeen.Load() - before; got > most {
			t.Errorf("of 3000 questions, %d were passed on; at most %d are allowed", got, most)
		}
	})
}

// The name service takes so many connections at once, of all runners.
func TestOneRunnerCannotTakeTheNameServiceFromOthers(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	greedy, other := w.attach(m, ident.New(), Request{}), w.attach(m, ident.New(), Request{})
	in(t, greedy.ns, func() error {
		var fds []int
		defer func() {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}()
		server := netip.MustParseAddr(greedy.at.Nameservers[0]).As4()
		for range tcpConnections + 64 { // all at once, and none waits
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			fds = append(fds, fd)
			if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 53, Addr: server}); err != nil && !errors.Is(err, unix.EINPROGRESS) {
				return err
			}
		}
		question := new(dns.Msg)
		question.SetQuestion("pypi.org.", dns.TypeA)
		text := must[[]byte](t)(question.Pack())
		text = append(binary.BigEndian.AppendUint16(nil, uint16(len(text))), text...)
		asked := map[int]bool{}
		// The kernel tries again after a second, when the rate of new connections allows more. Who has asked may be silent for a while.
		for limit := time.Now().Add(1500 * time.Millisecond); ; {
			waiting := make([]unix.PollFd, 0, len(fds))
			for _, fd := range fds {
				if _, err := unix.Getpeername(fd); err != nil {
					waiting = append(waiting, unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT})
				} else if !asked[fd] {
					if _, err := unix.Write(fd, text); err != nil {
						return err
					}
					asked[fd] = true
				}
			}
			left := time.Until(limit)
			if len(fds)-len(waiting) >= tcpConnections || left <= 0 {
				break
			}
			if _, err := unix.Poll(waiting, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
		}
		if a, err := other.ask("tcp", "pypi.org", dns.TypeA); err != nil || a.Rcode != dns.RcodeSuccess {
			t.Errorf("a neighbour is not answered: %v %v", a, err)
		}
		return nil
	})
	if a, err := greedy.ask("udp", "pypi.org", dns.TypeA); err != nil || a.Rcode != dns.RcodeSuccess {
		t.Errorf("by datagram it is answered still: %v %v", a, err)
	}
}
