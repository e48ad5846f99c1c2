package network

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Against a naive model: no address is ever held by two, none of a bridge is given out, and all are given out before one is used again.
func TestPool(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(20, 29).Draw(t, "bits")
		r := netip.PrefixFrom(netip.MustParseAddr("172.30.64.0"), bits)
		p := newPool(r)
		held := map[netip.Addr]bool{}
		last := map[netip.Addr]time.Time{}
		now := time.Unix(1_000_000, 0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 400).Draw(t, "seconds")) * time.Second)
			if rapid.Bool().Draw(t, "release") && len(held) > 0 {
				for a := range held {
					p.release(a, now)
					p.release(a, now)
					delete(held, a)
					last[a] = now
					break
				}
				continue
			}
			a, remembered, err := p.take(now)
			if err != nil {
				if len(held) < int(p.size)/1024*1021 && len(held) < int(p.size)-3 {
					t.Fatalf("none is left with %d held: %v", len(held), err)
				}
				continue
			}
			gw, _ := p.gateway(a)
			if held[a] || a == gw || !r.Contains(a) || gw == p.nameserver() != (p.size <= 1024 || a.Less(p.addr(1024))) {
				t.Fatalf("%s is given out, its bridge is %s", a, gw)
			}
			if was, ok := last[a]; ok && now.Sub(was) < rest && !remembered {
				t.Fatalf("%s was used %v ago, and nobody is told", a, now.Sub(was))
			}
			held[a] = true
		}
	})
}

func TestPoolHold(t *testing.T) {
	p := newPool(netip.MustParsePrefix("172.30.64.0/29"))
	for _, s := range []string{"172.30.64.0", "172.30.64.1", "172.30.64.7", "172.30.64.8", "10.0.0.1", "::1"} {
		if p.hold(netip.MustParseAddr(s)) == nil {
			t.Errorf("%s is held", s)
		}
	}
	a := netip.MustParseAddr("172.30.64.3")
	if err := p.hold(a); err != nil || p.hold(a) == nil {
		t.Errorf("held once: %v, and twice", err)
	}
	p.release(a, time.Unix(0, 0)) // before the search has come there
	seen := map[netip.Addr]bool{}
	for range 5 {
		x, _, err := p.take(time.Unix(0, 0))
		if err != nil || seen[x] {
			t.Fatalf("%s, %v: seen %v", x, err, seen)
		}
		seen[x] = true
	}
}
