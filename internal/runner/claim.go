package runner

import (
	"context"
	"errors"
	"time"

	"rockpool/internal/environment"
	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/pool"
)

// Holder is who claims, and how many runners it may hold at once; 0 = as many as there are.
type Holder struct {
	Owner string
	Quota int
}

// ErrQuota says that a holder has as many runners as it may.
var ErrQuota = errors.New("the quota of runners is used up")

// hold takes a place of a holder's quota, which the function it returns gives back: from then on the record of the runner counts. For a moment both may,
// so that a quota is never exceeded.
func (m *Manager) hold(by Holder) (func(), error) {
	if by.Quota <= 0 {
		return func() {}, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	held := m.claiming[by.Owner]
	for _, r := range m.used {
		if r.Owner == by.Owner {
			held++
		}
	}
	if held >= by.Quota {
		return nil, fault.Wrap(fault.Exhausted, ErrQuota, "the token's quota of %d runners is used up: give one back first", by.Quota)
	}
	m.claiming[by.Owner]++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.claiming[by.Owner]--; m.claiming[by.Owner] == 0 {
			delete(m.claiming, by.Owner)
		}
	}, nil
}

// Claim hands out an idle runner; timeout is its inactivity timeout, 0 = none. An empty pool is Exhausted, and so is a quota that is used up.
func (m *Manager) Claim(ctx context.Context, id environment.ID, timeout time.Duration, by Holder) (*Runner, error) {
	release, err := m.hold(by)
	if err != nil {
		return nil, err
	}
	defer release()
	deadline := time.Now().Add(m.opts.ClaimWait)
	for {
		taken, err := m.take(ctx, id, deadline)
		if err != nil {
			return nil, err
		}
		// A client that leaves now must not leave the claim's outcome open.
		callCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
		err = m.cluster.ClaimRunner(callCtx, taken.ID, timeout, by.Owner)
		cancel()
		switch {
		case err == nil:
			taken.Owner = by.Owner
			if r := m.claimed(taken, timeout); r != nil {
				return r, nil
			}
		case errors.Is(err, ErrClaimLost):
			m.mu.Lock()
			m.pools.ClaimLost(taken.ID, time.Now())
			m.mu.Unlock()
			m.poke()
		default:
			// Whether it is marked is not known, so nobody gets it.
			m.discard(taken.ID)
			return nil, err
		}
	}
}

// take picks an idle runner, and waits for one that is starting, or that the pool lacks and is about to start.
func (m *Manager) take(ctx context.Context, id environment.ID, deadline time.Time) (Seen, error) {
	for {
		now := time.Now()
		m.mu.Lock()
		if _, ok := m.envs[id]; !ok {
			m.mu.Unlock()
			return Seen{}, fault.Wrap(fault.NotFound, environment.ErrUnknown, "execution environment %d is unknown", id)
		}
		rid, ok := m.pools.Take(id, now)
		seen, arrived, stats := m.seen[rid], m.arrived, m.pools.Stats(id)
		m.mu.Unlock()
		if ok {
			// The replacement is asked for once the claim is through: it would only compete with it.
			return seen, nil
		}
		if wait := deadline.Sub(now); wait > 0 && stats.Starting+stats.Size > 0 {
			t := time.NewTimer(wait)
			select {
			case <-arrived:
			case <-t.C:
			case <-ctx.Done():
			}
			t.Stop()
			if ctx.Err() == nil {
				continue
			}
			return Seen{}, context.Cause(ctx)
		}
		return Seen{}, fault.New(fault.Exhausted, "no runner of execution environment %d is idle", id)
	}
}

// claimed makes the record of a claim that was won; nil when the runner ended meanwhile.
func (m *Manager) claimed(s Seen, timeout time.Duration) *Runner {
	m.mu.Lock()
	m.pools.Claimed(s.ID, time.Now())
	ph, ok := m.pools.Phase(s.ID)
	if !ok || ph.Ended() {
		m.mu.Unlock()
		m.discard(s.ID)
		return nil
	}
	r, known := m.used[s.ID]
	if !known { // the event of our own claim may have been faster
		s.Timeout, s.Gateway = timeout, m.self()
		r = m.adopt(s)
	}
	m.mu.Unlock()
	m.watchInactivity(r, timeout)
	m.poke()
	m.log.WithFields(logging.Fields{"runner_id": r.ID, "environment_id": int(r.Env)}).Debug("runner claimed")
	return r
}

// feed takes in what the cluster shows.
type feed struct {
	m    *Manager
	turn int
}

// All compares the records with a full listing.
func (f feed) All(list []Seen, index uint64) {
	m := f.m
	now := time.Now()
	var ended []end
	var recovered []Seen
	m.mu.Lock()
	there := make(map[string]bool, len(list))
	observed := make([]pool.Observed, 0, len(list))
	for _, s := range list {
		there[s.ID] = true
		observed = append(observed, s.Observed)
	}
	m.pools.List(observed, index, now)
	for _, s := range list {
		_, was := m.used[s.ID]
		ended = append(ended, m.record(s)...)
		if _, is := m.used[s.ID]; is && !was && !m.live && m.opts.Shared == nil {
			recovered = append(recovered, s)
		}
	}
	for id, r := range m.used {
		// A claim that was won after the listing is in the pool's records.
		if _, ok := m.pools.Phase(id); !there[id] && !ok {
			delete(m.used, id)
			ended = append(ended, end{r, execution.ErrGone})
		}
	}
	for id := range m.seen {
		if _, ok := m.pools.Phase(id); !ok {
			delete(m.seen, id)
		}
	}
	first := !m.live
	m.live = true
	m.lead.listed = max(m.lead.listed, f.turn)
	records := make([]*Runner, len(recovered))
	for i, s := range recovered {
		records[i] = m.used[s.ID]
	}
	m.wakeClaims()
	m.mu.Unlock()
	// Only recovery starts timers anew; runners that another gateway claims are watched by that one.
	for i, r := range records {
		m.watchInactivity(r, recovered[i].Timeout)
	}
	m.finish(ended)
	if first {
		close(m.ready)
	}
	m.poke()
}

// Changed takes in one change.
func (f feed) Changed(s Seen) {
	m := f.m
	m.mu.Lock()
	m.pools.Observe(s.Observed, time.Now())
	ended := m.record(s)
	m.mu.Unlock()
	m.finish(ended)
	m.poke()
}

// Gone takes in that a runner's job is no more.
func (f feed) Gone(id string) {
	m := f.m
	m.mu.Lock()
	var ended []end
	if r, ok := m.used[id]; ok {
		ended = append(ended, end{r, execution.ErrDeleted})
		delete(m.used, id)
	}
	delete(m.seen, id)
	m.asks.gone(id)
	m.pools.Gone(id)
	m.mu.Unlock()
	m.finish(ended)
	m.poke()
}

type end struct {
	r     *Runner
	cause error
}

func (m *Manager) finish(ended []end) {
	for _, e := range ended {
		if !e.r.end(e.cause) {
			continue // it was told before
		}
		m.log.WithFields(logging.Fields{"runner_id": e.r.ID, "environment_id": int(e.r.Env), "destroy_reason": e.cause.Error()}).
			Info("runner ended")
	}
}

// record brings the records in line with one observation, after the pool has seen it. The lock is held.
func (m *Manager) record(s Seen) []end {
	ph, _ := m.pools.Phase(s.ID)
	r, used := m.used[s.ID]
	switch {
	case s.State == pool.Ended:
		delete(m.seen, s.ID)
		if used {
			delete(m.used, s.ID)
			return []end{{r, s.Cause}}
		}
	case used:
		r.update(s)
	case ph == pool.Used:
		m.adopt(s)
	case ph == pool.Claiming && s.Used && s.Gateway != m.self():
		// Another gateway was faster, and nothing more will come of it.
		m.pools.ClaimLost(s.ID, time.Now())
		m.adopt(s)
	case !ph.Ended():
		m.seen[s.ID] = s
		if ph == pool.Idle {
			m.wakeClaims()
		}
	}
	return nil
}
