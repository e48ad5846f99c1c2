package node

import "time"

// alarm is a timer that is made when it is set for the first time, as most allocations need none of theirs. The zero value never rings.
type alarm struct{ timer *time.Timer }

// set makes it ring after d, and not when it was to ring before.
func (a *alarm) set(d time.Duration) {
	if a.timer == nil {
		a.timer = time.NewTimer(d)
		return
	}
	a.timer.Reset(d)
}

func (a *alarm) stop() {
	if a.timer != nil {
		a.timer.Stop()
	}
}

// rings gives the time at which it rings. It is nil until the alarm was set.
func (a *alarm) rings() <-chan time.Time {
	if a.timer == nil {
		return nil
	}
	return a.timer.C
}
