package runner

import (
	"context"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/logging"
	"rockpool/internal/runner/execution"
)

// Shared is what a manager needs where several gateways share a cluster.
type Shared struct {
	Others Others
	// Find asks the cluster for one claimed runner; false = there is no such one.
	Find func(ctx context.Context, id string) (Seen, bool, error)
	// NewExecutionID names executions so that the other gateways know where they wait.
	NewExecutionID func() string
	Keys           Keys
}

// Others are the gateways that share the cluster.
type Others interface {
	Self() string
	// Leading reports whether this gateway keeps the pools.
	Leading() bool
	// Alive reports whether a gateway lives, as far as is known here: of one that has come a moment ago nothing is.
	Alive(gateway string) bool
	// Lives is Alive by a look that begins after the call, where nothing is known.
	Lives(ctx context.Context, gateway string) (bool, error)
	// Idle is how long ago another gateway saw the runner being used, negative = none knows it. An error says that one that may know did not answer.
	Idle(ctx context.Context, id string) (time.Duration, error)
	// Expire tells the others that a runner goes because nobody used it.
	Expire(ctx context.Context, id string)
}

// Times of a runner that may have been used through other gateways.
const (
	askAgainTime  = 2 * time.Second  // after one did not answer
	askOthersTime = 5 * time.Second  // for all of them to answer
	unheardTime   = 10 * time.Minute // so long does its silence keep a runner alive
)

// lead is from when on this gateway keeps the pools.
type lead struct {
	led    bool
	from   int // turn of the feed
	listed int // the last turn whose listing was taken in
}

// self is the id that claims of this gateway carry.
func (m *Manager) self() string {
	if m.opts.Shared == nil {
		return ""
	}
	return m.opts.Shared.Others.Self()
}

// leads reports whether the pools are this gateway's to grow and to shrink: it must have seen, since it became so, everything that is there. The lock is held.
func (m *Manager) leads() bool {
	if m.opts.Shared == nil {
		return true
	}
	return m.opts.Shared.Others.Leading() && m.lead.led && m.lead.listed >= m.lead.from
}

// Regroup takes in that other gateways came or went, or that another leads.
func (m *Manager) Regroup() {
	leading := m.opts.Shared.Others.Leading()
	m.mu.Lock()
	if leading && !m.lead.led {
		// What the one before has created may not have been shown yet.
		m.lead.from = m.turn + 1
		if m.relist != nil {
			m.relist()
		}
	}
	m.lead.led = leading
	for _, r := range m.used {
		m.tend(r)
	}
	m.mu.Unlock()
	m.poke()
}

// share prepares a new record for several gateways. The lock is held.
func (m *Manager) share(r *Runner) {
	if m.opts.Shared == nil {
		return
	}
	r.Executions.NewID = m.opts.Shared.NewExecutionID
	m.tend(r)
}

// tend watches over the inactivity of what this gateway claimed and, where it leads, of what is left of gateways that died. The lock is held.
func (m *Manager) tend(r *Runner) {
	o := m.opts.Shared.Others
	mine := r.gateway == o.Self() || (o.Leading() && !o.Alive(r.gateway))
	switch {
	case !mine:
		r.rest()
	case !r.watched():
		_, timeout := r.idle()
		m.watchInactivity(r, timeout)
	}
}

// expire ends a runner that nobody used for its timeout. With several gateways all of them are asked before.
func (m *Manager) expire(r *Runner) {
	if m.opts.Shared == nil {
		m.Discard(r, execution.ErrInactive)
		return
	}
	m.tasks.Go(func() { m.expireShared(r) })
}

func (m *Manager) expireShared(r *Runner) {
	select { // after a gateway died, all of its runners may expire at a time
	case m.ending <- struct{}{}:
		defer func() { <-m.ending }()
	case <-m.over:
		return
	}
	others := m.opts.Shared.Others
	ctx, cancel := context.WithTimeout(context.Background(), askOthersTime)
	defer cancel()
	least, err := others.Idle(ctx, r.ID)
	idle, timeout := r.idle()
	if least >= 0 {
		idle = min(idle, least)
	}
	log := m.log.WithFields(logging.Fields{"runner_id": r.ID, "environment_id": int(r.Env)})
	switch {
	case idle < timeout:
		r.again(timeout - idle)
		return
	case err != nil && idle < timeout+unheardTime:
		log.WithField("error", err.Error()).Warn("a runner is kept although nobody used it here: another gateway may know better and does not answer")
		r.again(askAgainTime)
		return
	case err != nil:
		log.WithField("error", err.Error()).Warn("a runner expires although another gateway did not say when it was used there")
	}
	others.Expire(ctx, r.ID)
	m.Discard(r, execution.ErrInactive)
}

// Idle is how long ago a runner was last used through this gateway; false = it is not known here.
func (m *Manager) Idle(id string) (time.Duration, bool) {
	m.mu.Lock()
	r, ok := m.used[id]
	m.mu.Unlock()
	if !ok {
		return 0, false
	}
	idle, _ := r.idle()
	return idle, true
}

// Expired takes in that another gateway removes a runner because nobody used it. Removing it twice does no harm; that both die before they have does.
func (m *Manager) Expired(id string) {
	if r, err := m.Lookup(id); err == nil {
		m.Discard(r, execution.ErrInactive)
	}
}

// Find is Lookup that asks the cluster once for what is not known: another gateway may have handed it out a moment ago.
func (m *Manager) Find(ctx context.Context, id string) (*Runner, error) {
	r, err := m.Lookup(id)
	if err == nil || m.opts.Shared == nil || !possible(id) {
		return r, err
	}
	m.mu.Lock()
	ph, known := m.pools.Phase(id)
	m.mu.Unlock()
	if known && ph.Ended() {
		return nil, err
	}
	a, wait, ours := m.asks.begin(id, time.Now())
	if a == nil {
		return nil, err
	}
	if ours && !m.tasks.Go(func() { m.ask(a, id, wait) }) {
		m.asks.end(a, id, false, errStopping)
	}
	select {
	case <-a.done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if a.err != nil {
		return nil, a.err
	}
	return m.Lookup(id)
}

// possible reports whether id has the form of runner ids, <environment>-<UUID>. Nothing else is worth a question or a place in memory.
func possible(id string) bool {
	env, unique, ok := strings.Cut(id, "-")
	_, err := strconv.ParseUint(env, 10, 63)
	return ok && err == nil && len(env) <= maxEnvDigits && ident.Valid(unique)
}

var errStopping = fault.New(fault.Unavailable, "the gateway is stopping")

// ask looks one runner up in the cluster, after a pause that keeps to the rate.
func (m *Manager) ask(a *ask, id string, wait time.Duration) {
	if wait > maxAskWait {
		m.asks.end(a, id, false, fault.New(fault.Unavailable, "too many runners are asked for that nobody knows: try again"))
		return
	}
	pause := time.NewTimer(wait)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-m.over:
		m.asks.end(a, id, false, errStopping)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	seen, ok, err := m.opts.Shared.Find(ctx, id)
	m.mu.Lock()
	if err == nil && ok && !m.asks.wentMeanwhile(a) {
		m.pools.Observe(seen.Observed, time.Now())
		m.finishLater(m.record(seen))
	}
	m.mu.Unlock()
	m.asks.end(a, id, ok, err)
	m.poke()
}

// finishLater ends what a record says has ended, without the lock that is held now.
func (m *Manager) finishLater(ended []end) {
	if len(ended) > 0 {
		m.tasks.Go(func() { m.finish(ended) })
	}
}

// Bounds of the questions for unknown runners.
const (
	askInterval = 10 * time.Millisecond // between two of them
	askBurst    = time.Second           // so much of that is not waited for
	maxAskWait  = 2 * time.Second
	refusedTime = time.Second // an answer that there is none holds that long
	maxRefused  = 4096        // of those are kept

	maxEnvDigits = 19 // of an environment's number
)

// asks are the questions under way. The same is asked once at a time.
type asks struct {
	mu      sync.Mutex
	running map[string]*ask
	refused map[string]time.Time // until when
	swept   time.Time            // when refused was last rid of what is over
	next    time.Time
}

type ask struct {
	done chan struct{}
	err  error
	went bool // the feed told that it is gone
}

// begin joins the question for id, or starts one that is ours to ask after wait; nil = there is no such runner.
func (s *asks) begin(id string, now time.Time) (a *ask, wait time.Duration, ours bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, ok := s.running[id]; ok {
		return a, 0, false
	}
	if until, ok := s.refused[id]; ok && now.Before(until) {
		return nil, 0, false
	}
	if s.running == nil {
		s.running, s.refused = map[string]*ask{}, map[string]time.Time{}
	}
	if earliest := now.Add(-askBurst); s.next.Before(earliest) {
		s.next = earliest
	}
	wait = max(0, s.next.Sub(now))
	if wait <= maxAskWait {
		s.next = s.next.Add(askInterval)
	}
	a = &ask{done: make(chan struct{})}
	s.running[id] = a
	return a, wait, true
}

func (s *asks) end(a *ask, id string, found bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, id)
	a.err = err
	if err == nil && !found {
		now := time.Now()
		s.forget(now)
		if len(s.refused) >= maxRefused {
			clear(s.refused)
		}
		s.refused[id] = now.Add(refusedTime)
	}
	close(a.done)
}

// forget drops the answers that hold no longer, at most once per refusedTime. The lock is held.
func (s *asks) forget(now time.Time) {
	if now.Before(s.swept.Add(refusedTime)) {
		return
	}
	s.swept = now
	maps.DeleteFunc(s.refused, func(_ string, until time.Time) bool { return !now.Before(until) })
}

// gone takes in that a runner's job is no more, which an answer on its way does not know.
func (s *asks) gone(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, ok := s.running[id]; ok {
		a.went = true
	}
}

func (s *asks) wentMeanwhile(a *ask) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return a.went
}
