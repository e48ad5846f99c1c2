package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"rockpool/internal/lifecycle"
)

// inside is the name of a runner's interface.
const inside = "eth0"

// links makes bridges and interfaces in the node's namespace.
type links struct {
	ns   *os.File // the node's
	h    *netlink.Handle
	raw  *nl.SocketHandle
	name string // begins all names
	dir  string // says on a bridge whose it is
	pool *pool  // for what it computes only
}

func newLinks(ns *os.File, name, dir string, p *pool) (*links, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	s, err := nl.GetNetlinkSocketAt(netns.NsHandle(ns.Fd()), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &links{ns: ns, h: h, raw: &nl.SocketHandle{Socket: s}, name: name, dir: dir, pool: p}, nil
}

func (l *links) close() {
	l.h.Close()
	l.raw.Close()
}

func (l *links) bridgeName(n int) string { return fmt.Sprintf("%s%d", l.name, n) }

// port is the name of the node's end of a runner's interface.
func (l *links) port(a netip.Addr) string {
	o, _ := l.pool.offset(a)
	return fmt.Sprintf("%sv%06x", l.name, o)
}

func gone(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH)
}

// listing asks for a list until nothing changed while it was made.
func listing[T any](list func() (T, error)) (all T, err error) {
	for range 20 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, err
}

// bridge makes bridge n, or finds it as an earlier process left it.
func (l *links) bridge(n int) (index int, err error) {
	name := l.bridgeName(n)
	gw := l.pool.addr(uint32(n)*l.pool.slice + 1)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, mac(gw)
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: new(bool)}
	if err := l.h.LinkAdd(br); err != nil && !errors.Is(err, unix.EEXIST) {
		return 0, fmt.Errorf("make bridge %s: %w", name, err)
	}
	got, err := l.h.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("find bridge %s: %w", name, err)
	}
	if got.Type() != "bridge" {
		return 0, fmt.Errorf("the interface %s is no bridge: rename it, the name is needed", name)
	}
	err = lifecycle.OnOwnThread(func() error {
		if err := enter(l.ns); err != nil {
			return err
		}
		var errs []error
		for _, s := range [][2]string{
			{"ipv6/conf/" + name + "/disable_ipv6", "1"}, {"ipv4/conf/" + name + "/rp_filter", "1"}, {"ipv4/conf/" + name + "/send_redirects", "0"},
			{"ipv4/conf/" + name + "/accept_redirects", "0"}, {"ipv4/conf/" + name + "/route_localnet", "0"},
		} {
			if err := sysctl(s[0], s[1]); err != nil && !(strings.HasPrefix(s[0], "ipv6") && errors.Is(err, os.ErrNotExist)) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return 0, err
	}
	bits := max(sliceBits, 32-int(log2(l.pool.size)))
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: gw.AsSlice(), Mask: net.CIDRMask(bits, 32)}}
	if err := l.h.AddrReplace(got, addr); err != nil {
		return 0, fmt.Errorf("address of bridge %s: %w", name, err)
	}
	if err := l.h.LinkSetAlias(got, l.dir); err != nil {
		return 0, fmt.Errorf("mark bridge %s: %w", name, err)
	}
	if err := l.h.LinkSetUp(got); err != nil {
		return 0, fmt.Errorf("bring up bridge %s: %w", name, err)
	}
	return got.Attrs().Index, nil
}

func log2(n uint32) (bits uint32) {
	for n > 1 {
		n >>= 1
		bits++
	}
	return bits
}

// plug connects a runner's namespace to a bridge. The bridge learns nothing from the port and sends it nothing that is not for its address.
func (l *links) plug(ns *os.File, bridge int, a netip.Addr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = l.port(a)
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: inside, PeerHardwareAddr: mac(a), PeerNamespace: netlink.NsFd(int(ns.Fd()))}
	err := l.h.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) { // the last one with the address is dying
		if err = l.remove(attrs.Name); err == nil {
			veth.Index = 0
			err = l.h.LinkAdd(veth)
		}
	}
	if err != nil {
		return fmt.Errorf("make interface %s: %w", attrs.Name, err)
	}
	index := veth.Attrs().Index
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"connect it to its bridge", func() error { return l.h.LinkSetMasterByIndex(veth, bridge) }},
		{"isolate it", func() error { return l.isolate(index) }},
		{"keep IPv6 off it", func() error {
			if err := l.h.LinkSetIP6AddrGenMode(veth, nl.IN6_ADDR_GEN_MODE_NONE); !errors.Is(err, unix.EAFNOSUPPORT) {
				return err
			}
			return nil
		}},
		{"tell the bridge its hardware address", func() error {
			return l.h.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, State: netlink.NUD_NOARP, HardwareAddr: mac(a)})
		}},
		{"tell the node its hardware address", func() error {
			return l.h.NeighSet(&netlink.Neigh{LinkIndex: bridge, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac(a)})
		}},
		{"bring it up", func() error { return l.h.LinkSetUp(veth) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("interface %s: %s: %w", attrs.Name, step.what, err)
		}
	}
	return nil
}

// isolate keeps a port from the other ones.
func (l *links) isolate(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: l.raw}
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	for attr, value := range map[int]uint8{
		nl.IFLA_BRPORT_ISOLATED: 1, nl.IFLA_BRPORT_GUARD: 1, nl.IFLA_BRPORT_PROTECT: 1, nl.IFLA_BRPORT_MODE: 0,
		nl.IFLA_BRPORT_LEARNING: 0, nl.IFLA_BRPORT_UNICAST_FLOOD: 0, nl.IFLA_BRPORT_MCAST_FLOOD: 0, nl.IFLA_BRPORT_BCAST_FLOOD: 0,
	} {
		info.AddRtAttr(attr, nl.Uint8Attr(value))
	}
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// cut ends all traffic of a runner's interface. The kernel removes it with its namespace, many at a time; to wait for that would hold up all others
// who make or remove one. What is not there is no error.
func (l *links) cut(a netip.Addr) error {
	if link, err := l.h.LinkByName(l.port(a)); err == nil {
		if err := l.h.LinkSetDown(link); err != nil && !gone(err) {
			return fmt.Errorf("bring down interface %s: %w", l.port(a), err)
		}
	} else if !gone(err) {
		return fmt.Errorf("find interface %s: %w", l.port(a), err)
	}
	_, n := l.pool.gateway(a)
	if br, err := l.h.LinkByName(l.bridgeName(n)); err == nil {
		err := l.h.NeighDel(&netlink.Neigh{LinkIndex: br.Attrs().Index, Family: unix.AF_INET, IP: a.AsSlice()})
		if err != nil && !gone(err) {
			return fmt.Errorf("forget the hardware address of %s: %w", a, err)
		}
	}
	return nil
}

// remove removes an interface at once.
func (l *links) remove(name string) error {
	link, err := l.h.LinkByName(name)
	if err == nil {
		err = l.h.LinkDel(link)
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("remove interface %s: %w", name, err)
	}
	return nil
}

// furnish makes the calling thread's namespace, which plug has connected, ready for its runner.
func (l *links) furnish(a netip.Addr, mbit int) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	gw, _ := l.pool.gateway(a)
	eth, err := h.LinkByName(inside)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", inside, err)
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find interface lo: %w", err)
	}
	index := eth.Attrs().Index
	whole := net.CIDRMask(32, 32)
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"bring up lo", func() error { return h.LinkSetUp(lo) }},
		{"bring it up", func() error { return h.LinkSetUp(eth) }},
		{"give it its address", func() error {
			return h.AddrAdd(eth, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: whole}})
		}},
		{"tell it its gateway's hardware address", func() error {
			return h.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: gw.AsSlice(), HardwareAddr: mac(gw)})
		}},
		{"give it its route", func() error {
			return h.RouteAdd(&netlink.Route{LinkIndex: index, Gw: gw.AsSlice(), Src: a.AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
		}},
		{"limit what it sends", func() error { return shape(h, index, mbit) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("interface inside: %s: %w", step.what, err)
		}
	}
	return nil
}

// settle has the kernel take notice at once that a port and its bridge are up, which it does on its own up to a second later. Asking for an
// interface does that, from Linux 6.8; before, the first packets of a runner may be lost.
func (l *links) settle(a netip.Addr) error {
	_, n := l.pool.gateway(a)
	for _, name := range []string{l.port(a), l.bridgeName(n)} {
		if _, err := l.h.LinkByName(name); err != nil {
			return fmt.Errorf("find interface %s: %w", name, err)
		}
	}
	return nil
}

// limit bounds what a runner receives; furnish bounds what it sends.
func (l *links) limit(a netip.Addr, mbit int) error {
	if mbit == 0 {
		return nil
	}
	link, err := l.h.LinkByName(l.port(a))
	if err == nil {
		err = shape(l.h, link.Attrs().Index, mbit)
	}
	if err != nil {
		return fmt.Errorf("limit what %s receives: %w", a, err)
	}
	return nil
}

// shape puts a token bucket on what leaves an interface.
func shape(h *netlink.Handle, index, mbit int) error {
	if mbit == 0 {
		return nil
	}
	rate := uint64(mbit) * 125_000 // bytes a second
	burst := max(uint32(rate/100), 64<<10)
	// The kernel wants the time that the burst takes, in its ticks.
	buffer := uint32(float64(burst) / float64(rate) * 1e6 * netlink.TickInUsec())
	return h.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Buffer: buffer, Limit: burst + uint32(rate/20), // 50 ms of queue
	})
}

// forget removes what the kernel remembers of the connections of an address.
func (l *links) forget(a netip.Addr) error {
	var filters []netlink.CustomConntrackFilter
	for _, side := range []netlink.ConntrackFilterType{netlink.ConntrackOrigSrcIP, netlink.ConntrackReplySrcIP} {
		f := &netlink.ConntrackFilter{}
		if err := f.AddIP(side, a.AsSlice()); err != nil {
			return err
		}
		filters = append(filters, f)
	}
	_, err := listing(func() (uint, error) {
		return l.h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filters...)
	})
	if err != nil {
		return fmt.Errorf("forget the connections of %s: %w", a, err)
	}
	return nil
}

// mine lists what carries our name: bridges by number, and the other interfaces.
func (l *links) mine() (bridges map[int]netlink.Link, ports []netlink.Link, err error) {
	all, err := listing(l.h.LinkList)
	if err != nil {
		return nil, nil, fmt.Errorf("list interfaces: %w", err)
	}
	bridges = map[int]netlink.Link{}
	for _, link := range all {
		var n int
		name := link.Attrs().Name
		if strings.HasPrefix(name, l.name+"v") && link.Type() == "veth" {
			ports = append(ports, link)
		} else if _, err := fmt.Sscanf(name, l.name+"%d", &n); err == nil && name == l.bridgeName(n) {
			bridges[n] = link
		}
	}
	return bridges, ports, nil
}
