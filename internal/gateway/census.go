package gateway

import (
	"time"

	"rockpool/internal/environment"
	"rockpool/internal/runner"
	"rockpool/internal/runner/pool"
)

// stand is what a runner counts as.
type stand uint8

const (
	starting stand = iota
	idle
	used
)

// resident is one runner of the census.
type resident struct {
	env     environment.ID
	stand   stand
	created time.Time // when its registration was asked for here; zero = it was found
	waiting int       // executions that were stored and not begun
}

// census keeps count of runners as the cluster shows them, for figures alone: it decides nothing. It is pure; telemetry holds its lock.
type census struct {
	runners map[string]*resident
	idles   map[environment.ID]int // how many of runners are idle; none is 0
	useds   int                    // how many of them are used
}

// change is that a runner began or ceased to count as something.
type change struct {
	id      string
	env     environment.ID
	stand   stand // idle or used
	began   bool
	count   int           // that there are now: of idle ones in the environment, of used ones in all
	startup time.Duration // until it was ready, where that is known; 0 = it is not
	failed  bool          // it ended before it was ready
}

func newCensus() *census {
	return &census{runners: map[string]*resident{}, idles: map[environment.ID]int{}}
}

// created says that a runner is being registered here.
func (c *census) created(id string, env environment.ID, now time.Time) {
	if c.runners[id] == nil {
		c.runners[id] = &resident{env: env, created: now}
	}
}

// see takes in what the cluster shows of a runner.
func (c *census) see(s runner.Seen, now time.Time) []change {
	if s.State == pool.Ended {
		return c.gone(s.ID)
	}
	r := c.runners[s.ID]
	if r == nil {
		r = &resident{env: s.Env}
		c.runners[s.ID] = r
	}
	to := r.stand
	switch {
	case s.Used:
		to = used
	case s.State == pool.Ready && r.stand == starting:
		to = idle
	}
	return c.move(s.ID, r, to, now)
}

// claimed says that a runner was claimed here.
func (c *census) claimed(id string, now time.Time) []change {
	if r := c.runners[id]; r != nil {
		return c.move(id, r, used, now)
	}
	return nil
}

func (c *census) move(id string, r *resident, to stand, now time.Time) (changes []change) {
	from := r.stand
	if from == to || from == used { // nothing that was used is idle again
		return nil
	}
	r.stand = to
	c.add(from, r.env, -1)
	c.add(to, r.env, 1)
	if from == idle {
		changes = append(changes, change{id: id, env: r.env, stand: idle, count: c.count(idle, r.env)})
	}
	began := change{id: id, env: r.env, stand: to, began: true, count: c.count(to, r.env)}
	if from == starting && !r.created.IsZero() {
		began.startup = now.Sub(r.created)
	}
	return append(changes, began)
}

// gone says that a runner is no more.
func (c *census) gone(id string) []change {
	r := c.runners[id]
	if r == nil {
		return nil
	}
	delete(c.runners, id)
	c.add(r.stand, r.env, -1)
	if r.stand == starting {
		return []change{{id: id, env: r.env, failed: true}}
	}
	return []change{{id: id, env: r.env, stand: r.stand, count: c.count(r.stand, r.env)}}
}

// all compares with a full listing: what is not in it is gone, but for what is being registered.
func (c *census) all(list []runner.Seen, now time.Time) (changes []change) {
	there := make(map[string]bool, len(list))
	for _, s := range list {
		there[s.ID] = true
		changes = append(changes, c.see(s, now)...)
	}
	for id, r := range c.runners {
		if !there[id] && (r.created.IsZero() || r.stand != starting) {
			changes = append(changes, c.gone(id)...)
		}
	}
	return changes
}

// add keeps the counts, so that a change costs the same however many runners there are.
func (c *census) add(s stand, env environment.ID, n int) {
	switch s {
	case idle:
		if c.idles[env] += n; c.idles[env] == 0 {
			delete(c.idles, env)
		}
	case used:
		c.useds += n
	}
}

// count is how many are idle in env, or used anywhere.
func (c *census) count(s stand, env environment.ID) int {
	if s == used {
		return c.useds
	}
	return c.idles[env]
}
