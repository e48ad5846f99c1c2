package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"rockpool/internal/environment"
	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/pool"
	"rockpool/internal/timeline"
)

// Claim is a request for a runner.
type Claim struct {
	Env     environment.ID
	Timeout time.Duration // of inactivity; 0 = none
	Wait    time.Duration // in the queue, at the client's wish; Options.MaxWait bounds it
	Key     string        // names a claim that may be repeated; "" = it is not to be repeated
	By      Holder
}

// Holder is who claims, and how many runners it may hold at once; 0 = as many as there are.
type Holder struct {
	Owner string
	Quota int
}

// ErrQuota says that a holder has as many runners as it may.
var ErrQuota = errors.New("the quota of runners is used up")

// Busy is the refusal of a claim because there is no runner for it. Its kind is Exhausted.
type Busy struct {
	error
	Position int           // the place in the queue that the claim had or would have had, from 1
	Waiting  int           // claims in the queue now
	Expected time.Duration // that a claim at this place waits; 0 = it cannot be told
}

// Unwrap gives the kind and the public sentence.
func (b *Busy) Unwrap() error { return b.error }

// how says how a claim got its runner.
type how uint8

const (
	atOnce   how = iota
	waited       // until one was idle
	repeated     // it is the runner of an earlier claim under the same key
)

// outcome is what became of a claim, for whoever watches the pools.
func outcome(by how, err error) string {
	switch {
	case err == nil:
		return [...]string{"hit", "waited", "repeated"}[by]
	case fault.Is(err, fault.NotFound):
		return "unknown"
	case errors.Is(err, ErrQuota):
		return "quota"
	case fault.Is(err, fault.Exhausted):
		return "empty"
	}
	return "failed"
}

// Claim hands out an idle runner. An empty pool is a *Busy. A quota that is used up is ErrQuota, and Exhausted too.
func (m *Manager) Claim(ctx context.Context, c Claim) (*Runner, error) {
	begun, claim := time.Now(), m.claimOnce
	if c.Key == "" {
		claim = func(ctx context.Context, c Claim) (*Runner, how, error) { return m.claim(ctx, c, c.mark(), nil) }
	}
	r, by, err := claim(ctx, c)
	if m.opts.Claimed != nil {
		m.opts.Claimed(int(c.Env), outcome(by, err), time.Since(begun))
	}
	return r, err
}

// mark is what a claim writes that is not to be repeated.
func (c Claim) mark() Mark { return Mark{Timeout: c.Timeout, Owner: c.By.Owner} }

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

// claim takes a runner and marks it. agree is asked before whether it may be that one; nil = it may. Its errors are those of claim.
func (m *Manager) claim(ctx context.Context, c Claim, mark Mark, agree func(ctx context.Context, id string) error) (*Runner, how, error) {
	release, err := m.hold(c.By)
	if err != nil {
		return nil, 0, err
	}
	defer release()
	deadline := time.Now().Add(max(m.opts.ClaimWait, min(c.Wait, m.opts.MaxWait)))
	by, open := atOnce, "" // a runner that was taken, and of which it is not known what became
	defer func() {
		if open != "" {
			m.discard(open)
		}
	}()
	for again := false; ; again = true {
		_, span := timeline.Start(ctx, timeline.ClaimTake)
		taken, served, err := m.take(ctx, c.Env, deadline, again)
		span.End()
		if err != nil {
			return nil, 0, err
		}
		open = taken.ID
		if !served {
			by = waited
		}
		// A client that leaves now must not leave the claim's outcome open.
		callCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
		if agree != nil {
			if err = agree(callCtx, taken.ID); err != nil {
				open = ""
				m.giveBack(taken.ID)
				cancel()
				return nil, 0, err
			}
		}
		err = m.cluster.ClaimRunner(callCtx, taken.ID, mark)
		cancel()
		lost := errors.Is(err, ErrClaimLost)
		if err != nil && !lost {
			return nil, 0, err // whether it is marked is not known, so nobody gets it
		}
		open = ""
		if lost {
			m.lost(taken.ID, absent(err))
		} else if r := m.claimed(taken, mark); r != nil {
			return r, by, nil
		}
	}
}

// giveBack frees a runner that was taken and not claimed.
func (m *Manager) giveBack(id string) {
	m.mu.Lock()
	m.pools.Return(id, time.Now())
	m.serveAll()
	m.mu.Unlock()
	m.poke()
}

// lost takes in that a runner is somebody else's, or that there is none.
func (m *Manager) lost(id string, gone bool) {
	m.mu.Lock()
	if gone {
		m.pools.Gone(id, time.Now())
		delete(m.seen, id)
	} else {
		m.pools.ClaimLost(id, time.Now())
	}
	m.mu.Unlock()
	m.poke()
}

// take picks an idle runner, or waits for one in the environment's line. again says that the claim had its turn, so that it waits first of all. served says
// that it did not wait.
func (m *Manager) take(ctx context.Context, id environment.ID, deadline time.Time, again bool) (seen Seen, served bool, err error) {
	now := time.Now()
	m.mu.Lock()
	if _, ok := m.envs[id]; !ok {
		m.mu.Unlock()
		return Seen{}, false, unknown(id)
	}
	taken, ok := "", false
	if again || m.lines[id] == nil { // who waits comes first
		taken, ok = m.pools.Take(id, now)
	}
	if !again {
		m.pools.Arrived(id, ok, now)
	}
	if ok {
		seen := m.seen[taken]
		m.mu.Unlock()
		// The replacement is asked for once the claim is through: it would only compete with it.
		return seen, true, nil
	}
	stats := m.pools.Stats(id)
	if wait := deadline.Sub(now); wait <= 0 || stats.Starting+stats.Size == 0 || m.lines[id].Len() >= maxWaiting {
		err := m.refuse(id, m.lines[id].Len()+1, now)
		m.mu.Unlock()
		m.poke() // a size that follows the claims may grow
		return Seen{}, false, err
	}
	w := m.queue(id, again, now)
	m.mu.Unlock()
	m.poke()
	seen, err = m.await(ctx, w, deadline.Sub(now))
	return seen, false, err
}

func unknown(id environment.ID) error {
	return fault.Wrap(fault.NotFound, environment.ErrUnknown, "execution environment %d is unknown", id)
}

// refuse says why there is no runner for a claim at a place of the line. The lock is held.
func (m *Manager) refuse(id environment.ID, position int, now time.Time) error {
	text := fmt.Sprintf("no runner of execution environment %d is idle", id)
	switch why, words := m.pools.Why(id); why {
	case pool.UsedLimit:
		text = fmt.Sprintf("execution environment %d has as many used runners as it may have (%d): one has to end first", id, m.opts.Limits.Used)
	case pool.TotalLimit:
		text = fmt.Sprintf("%s, and there are as many runners as there may be (%d): one has to end first", text, m.opts.Limits.Runners)
	case pool.Failing:
		text = fmt.Sprintf("%s: the last that was started failed (%s)", text, words)
	case pool.NoRoom:
		text = fmt.Sprintf("%s, and the cluster has no room for more (%s)", text, words)
	}
	return &Busy{
		error: fault.New(fault.Exhausted, "%s", text), Position: position, Waiting: m.lines[id].Len(), Expected: m.pools.Expected(id, position, now),
	}
}

// claimed makes the record of a claim that was won; nil when the runner ended meanwhile.
func (m *Manager) claimed(s Seen, mark Mark) *Runner {
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
		s.Mark, s.Gateway = mark, m.self()
		r = m.adopt(s)
	}
	m.mark(r, mark)
	m.mu.Unlock()
	m.watchInactivity(r, mark.Timeout)
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
		if ph, ok := m.pools.Phase(id); !there[id] && (!ok || ph.Ended()) {
			m.part(r)
			ended = append(ended, end{r, execution.ErrGone})
		}
	}
	for id := range m.seen {
		if ph, ok := m.pools.Phase(id); !ok || ph.Ended() {
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
	m.serveAll()
	m.mu.Unlock()
	// Only recovery starts timers anew; runners that another gateway claims are watched by that one.
	for i, r := range records {
		m.watchInactivity(r, recovered[i].Mark.Timeout)
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
	m.serveAll()
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
		m.part(r)
	}
	delete(m.seen, id)
	m.asks.gone(id)
	m.pools.Gone(id, time.Now())
	m.serveAll()
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
			m.part(r)
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
	}
	return nil
}
