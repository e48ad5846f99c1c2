package serve

import (
	"io"
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

// paced is output that is read no faster than its pace.
type paced struct {
	from  io.Reader
	pace  *pace
	alone func() bool
	gone  <-chan struct{} // closed when there is nobody to wait for
	rest  time.Duration   // before the next read
}

func (p *paced) Read(b []byte) (int, error) {
	if p.rest > 0 {
		t := time.NewTimer(p.rest)
		select {
		case <-t.C:
		case <-p.gone:
			t.Stop()
		}
		p.rest = 0
	}
	n, err := p.from.Read(b)
	if n > 0 {
		p.rest = p.pace.hold(n, p.alone(), time.Now())
	}
	return n, err
}
