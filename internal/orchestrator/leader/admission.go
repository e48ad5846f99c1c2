package leader

import (
	"sync"
	"time"
)

// admission says when new work must wait outside: an evaluation that comes now would be placed too late. What it goes by is measured, not configured: how
// long the oldest evaluation has waited that no worker is done with. A burst passes, for it takes a while until the oldest of it is old; a load that is too
// high is held at the rate at which the cluster places, and latency stays where it is.
//
// Only registrations ask. Heartbeats, reports of nodes and the end of jobs are what brings a cluster back from overload, and are never refused.
type admission struct {
	late time.Duration // for the oldest to have waited
	few  int           // evaluations, so few that they are no overload whatever they wait for

	mu      sync.Mutex
	waiting map[string]time.Time // guarded by mu; since when, by evaluation
	order   []string             // guarded by mu; oldest first, with some that wait no more
}

const (
	lateAfter   = time.Second
	fewWaiting  = 256
	maxRetry    = 30 * time.Second
	minRetry    = time.Second
	mostTracked = 1 << 20 // evaluations; beyond that the queue's own bound refuses
)

func newAdmission() *admission {
	return &admission{late: lateAfter, few: fewWaiting, waiting: map[string]time.Time{}}
}

// reset forgets an earlier term.
func (a *admission) reset() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting, a.order = map[string]time.Time{}, nil
}

// begin notes an evaluation that is to be worked on now.
func (a *admission) begin(id string, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.order) < mostTracked {
		a.waiting[id] = now
		a.order = append(a.order, id)
	}
}

// done notes that a worker has finished an evaluation, or that nobody will.
func (a *admission) done(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.waiting, id)
	n := 0
	for n < len(a.order) {
		if _, waits := a.waiting[a.order[n]]; waits {
			break
		}
		a.order[n] = ""
		n++
	}
	if a.order = a.order[n:]; len(a.order) == 0 {
		a.order = nil
	}
}

// oldest is how long the oldest has waited, and how many wait.
func (a *admission) oldest(now time.Time) (time.Duration, int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.order) == 0 {
		return 0, 0
	}
	return now.Sub(a.waiting[a.order[0]]), len(a.waiting)
}

// refuse reports whether new work must wait, and for how long.
func (a *admission) refuse(now time.Time) (retry time.Duration, refused bool) {
	age, n := a.oldest(now)
	if n <= a.few || age <= a.late {
		return 0, false
	}
	return min(max(age.Round(time.Second), minRetry), maxRetry), true
}

// Overloaded reports whether new work should be refused for now, and how long its caller should wait before another attempt.
func (l *Leader) Overloaded() (retry time.Duration, overloaded bool) {
	t := l.current()
	if t == nil {
		return 0, false
	}
	c := t.broker.Counts()
	switch {
	case c.Ready+c.Waiting >= l.cfg.MaxPending:
		return maxRetry, true
	case l.cfg.Crowded != nil && l.cfg.Crowded():
		return minRetry, true
	case l.cfg.Store.Snapshot().SchedulerConfig().PauseBroker:
		return 0, false // they wait because an operator wants them to
	}
	return l.admission.refuse(time.Now())
}
