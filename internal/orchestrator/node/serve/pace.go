package serve

import (
	"sync"
	"time"
)

const (
	paceRate  = 32 << 20 // bytes a second
	paceBurst = 8 << 20  // bytes that go at once
	paceStep  = 2 * time.Millisecond
)

// pace holds back an execution that writes without end while there are others: encoding its output takes processors that they wait for. On its own an
// execution is as fast as it can be.
type pace struct {
	mu    sync.Mutex
	until time.Time // when what has come so far would have passed at paceRate
}

// hold is how long to wait after n bytes. Waits too short for a timer are left to add up.
func (p *pace) hold(n int, alone bool, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if alone || p.until.Before(now) {
		p.until = now
	}
	if alone {
		return 0
	}
	p.until = p.until.Add(time.Duration(n) * time.Second / paceRate)
	const burst = paceBurst * time.Second / paceRate
	if d := p.until.Sub(now) - burst; d >= paceStep {
		return d
	}
	return 0
}
