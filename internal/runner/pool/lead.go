package pool

import "container/heap"

// Lead says whether the pools are this gateway's to keep. Those that another keeps are followed: what is observed counts, runners are taken and what is
// discarded is destroyed, but nothing is created and nothing idle is let go. New pools are led.
func (p *Pools) Lead(leads bool) {
	if p.follow != leads {
		return
	}
	p.follow = !leads
	for _, e := range p.envs {
		heap.Init(&e.ready)
		heap.Init(&e.stale)
	}
	p.Touch()
}

// taken is the order in which idle runners are taken. Gateways that do not lead begin at its other end, so that they seldom try for the same one.
func (p *Pools) taken(less func(a, b *entry) bool) func(a, b *entry) bool {
	return func(a, b *entry) bool {
		if p.follow {
			a, b = b, a
		}
		return less(a, b)
	}
}
