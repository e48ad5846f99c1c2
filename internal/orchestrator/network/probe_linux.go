package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rockpool/internal/lifecycle"
	"rockpool/internal/orchestrator/driver"
)

// probe tries everything once in a namespace that is thrown away. The error repeats what the fences say.
func probe(name string, r netip.Prefix) (fences []driver.Fence, err error) {
	bridge := driver.Fence{Wall: wall, Name: FenceBridge, InForce: true, Detail: "ports that are isolated from each other, learn nothing and are sent nothing but their own"}
	table := driver.Fence{Wall: wall, Name: FenceRules, InForce: true, Detail: "source addresses, forbidden and allowed destinations, rates; all as sets of two tables"}
	err = lifecycle.OnOwnThread(func() error {
		ns, err := newNS()
		if err != nil {
			bridge = driver.Fence{Wall: wall, Name: FenceBridge, InForce: false, Detail: fmt.Sprintf("%v: run as root", err)}
			table = driver.Fence{Wall: wall, Name: FenceRules, InForce: false, Detail: bridge.Detail}
			return err
		}
		defer ns.Close()
		a, b := probeBridge(ns, name, r), probeTable(ns, name, r)
		if a != nil {
			bridge = driver.Fence{Wall: wall, Name: FenceBridge, InForce: false, Detail: a.Error() + ": the kernel needs CONFIG_BRIDGE and CONFIG_VETH"}
		}
		if b != nil {
			table = driver.Fence{Wall: wall, Name: FenceRules, InForce: false, Detail: b.Error() + ": the kernel needs nf_tables with the inet and bridge families, connection tracking, NAT and limits"}
		}
		return errors.Join(a, b)
	})
	return []driver.Fence{bridge, table}, err
}

func probeBridge(ns *os.File, name string, r netip.Prefix) error {
	p := newPool(r)
	l, err := newLinks(ns, name, "", p)
	if err != nil {
		return err
	}
	defer l.close()
	index, err := l.bridge(0)
	if err != nil {
		return err
	}
	a, _, err := p.take(p.since)
	if err != nil {
		return err
	}
	far, err := netlinkNS()
	if err != nil {
		return err
	}
	defer far.Close()
	return l.plug(far, index, a)
}

// netlinkNS makes one more namespace, for the far end of an interface.
func netlinkNS() (ns *os.File, err error) {
	err = lifecycle.OnOwnThread(func() error {
		ns, err = newNS()
		return err
	})
	return ns, err
}

func probeTable(ns *os.File, name string, r netip.Prefix) error {
	p := newPool(r)
	f, err := newFirewall(ns, name, r, p.nameserver())
	if err != nil {
		return err
	}
	defer f.close()
	return f.install(nil)
}

// free reports what stands in the way of using a range.
func (l *links) free(r netip.Prefix) error {
	bridges, _, err := l.mine()
	if err != nil {
		return err
	}
	mine := map[int]bool{}
	for _, br := range bridges {
		owner := br.Attrs().Alias
		if owner != l.dir && owner != "" {
			if _, err := os.Stat(owner); err == nil {
				return fmt.Errorf("the bridge %s belongs to the node whose network directory is %s: give this one another range (orchestrator.network.range)", br.Attrs().Name, owner)
			}
		}
		mine[br.Attrs().Index] = true
	}
	routes, err := listing(func() ([]netlink.Route, error) {
		return l.h.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, route := range routes {
		to := prefixOf(route.Dst)
		if to.IsValid() && to.Bits() > 0 && to.Overlaps(r) && !mine[route.LinkIndex] {
			return fmt.Errorf("the network range %s overlaps with the route to %s: give another one (orchestrator.network.range)", r, to)
		}
	}
	return nil
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}

// address is the one by which others reach the node: that of its default route, else any global one; "" = there is none.
func (l *links) address() (string, error) {
	const anywhere = "203.0.113.1"
	if routes, err := l.h.RouteGet(net.ParseIP(anywhere)); err == nil && len(routes) > 0 && routes[0].Src != nil {
		return routes[0].Src.String(), nil
	}
	all, err := listing(func() ([]netlink.Addr, error) { return l.h.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return "", fmt.Errorf("list addresses: %w", err)
	}
	bridges, _, err := l.mine()
	if err != nil {
		return "", err
	}
	for _, a := range all {
		own := false
		for _, br := range bridges {
			own = own || br.Attrs().Index == a.LinkIndex
		}
		if a.Scope == unix.RT_SCOPE_UNIVERSE && !own && !a.IP.IsLoopback() {
			return a.IP.String(), nil
		}
	}
	return "", nil
}

// sweep removes interfaces that nobody has, and bridges that serve nobody.
func (l *links) sweep(members map[netip.Addr]member) error {
	_, ports, err := l.mine()
	if err != nil {
		return err
	}
	stays := map[string]bool{}
	for _, m := range members {
		stays[m.port] = true
	}
	var errs []error
	for _, p := range ports {
		if !stays[p.Attrs().Name] {
			errs = append(errs, l.remove(p.Attrs().Name))
		}
	}
	return errors.Join(errs...)
}

func (l *links) removeBridges() error {
	bridges, _, err := l.mine()
	if err != nil {
		return err
	}
	var errs []error
	for _, br := range bridges {
		errs = append(errs, l.remove(br.Attrs().Name))
	}
	return errors.Join(errs...)
}
