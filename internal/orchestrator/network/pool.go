package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// sliceBits is the length of the part of the range that one bridge serves: 1021 runners, as a bridge has at most 1024 ports.
const sliceBits = 22

// rest is how long the connections of an address may be remembered by the kernel after its runner has gone, and an address lies idle if others are free.
const rest = 5 * time.Minute

var errNoAddress = errors.New("all addresses of the network range are in use: give the node a larger range, or fewer runners")

// pool hands out the addresses of a range, each as late again as possible.
type pool struct {
	base  uint32
	size  uint32 // of the range
	slice uint32 // addresses of one bridge
	next  uint32 // offset where the search for an address that was never used goes on
	used  map[uint32]bool
	idle  []released // oldest first
	since time.Time  // when an earlier process may last have used any address; zero = never
}

type released struct {
	offset uint32
	at     time.Time
}

func newPool(r netip.Prefix) *pool {
	b := r.Addr().As4()
	size := uint32(1) << (32 - r.Bits())
	return &pool{base: binary.BigEndian.Uint32(b[:]), size: size, slice: min(size, 1<<(32-sliceBits)), used: map[uint32]bool{}}
}

func (p *pool) addr(offset uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], p.base+offset)
	return netip.AddrFrom4(b)
}

func (p *pool) offset(a netip.Addr) (uint32, error) {
	if !a.Is4() {
		return 0, fmt.Errorf("address %s is not of the network range", a)
	}
	b := a.As4()
	if o := binary.BigEndian.Uint32(b[:]) - p.base; o < p.size && p.forRunners(o) {
		return o, nil
	}
	return 0, fmt.Errorf("address %s is not of the network range", a)
}

// forRunners leaves out the first address of a slice, that of its bridge, and the last.
func (p *pool) forRunners(o uint32) bool { return o%p.slice > 1 && o%p.slice != p.slice-1 }

// gateway is the address of the bridge that serves an address, and the bridge's number.
func (p *pool) gateway(a netip.Addr) (netip.Addr, int) {
	o, _ := p.offset(a)
	n := o / p.slice
	return p.addr(n*p.slice + 1), int(n)
}

// nameserver is the address of the first bridge.
func (p *pool) nameserver() netip.Addr { return p.addr(1) }

// take returns an address, and whether the kernel may still remember connections of it.
func (p *pool) take(now time.Time) (a netip.Addr, remembered bool, err error) {
	for ; p.next < p.size; p.next++ {
		if p.forRunners(p.next) && !p.used[p.next] {
			p.used[p.next] = true
			p.next++
			return p.addr(p.next - 1), now.Sub(p.since) < rest, nil
		}
	}
	if len(p.idle) == 0 {
		return a, false, errNoAddress
	}
	r := p.idle[0]
	p.idle = p.idle[1:]
	p.used[r.offset] = true
	return p.addr(r.offset), now.Sub(r.at) < rest, nil
}

// hold marks an address as used that an earlier process handed out.
func (p *pool) hold(a netip.Addr) error {
	o, err := p.offset(a)
	if err == nil && p.used[o] {
		err = fmt.Errorf("address %s is held twice", a)
	}
	if err == nil {
		p.used[o] = true
	}
	return err
}

func (p *pool) release(a netip.Addr, now time.Time) {
	if o, err := p.offset(a); err == nil && p.used[o] {
		delete(p.used, o)
		if o < p.next { // else the search comes upon it
			p.idle = append(p.idle, released{o, now})
		}
	}
}

// mac is the hardware address of whoever has an address: locally administered, and never that of another one.
func mac(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x72, b[0], b[1], b[2], b[3]}
}
