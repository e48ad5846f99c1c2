package pool

// Lead says whether the pools are this gateway's to keep. Those that another keeps are followed: what is observed counts, runners are taken and what is
// discarded is destroyed, but nothing is created and nothing idle is let go. New pools are led.
func (p *Pools) Lead(leads bool) {
	if p.follow == leads {
		p.follow = !leads
		p.Touch()
	}
}
