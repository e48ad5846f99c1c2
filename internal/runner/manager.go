package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"rockpool/internal/environment"
	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/pool"
)

// Options of a Manager.
type Options struct {
	Limits    pool.Limits
	ClaimWait time.Duration // how long a claim waits for a runner that is starting, whoever asks
	MaxWait   time.Duration // how long it waits at most where the client asks for it
	Pull      bool          // pool runners pull their image anew
	// ReloadBelow is the share of idle runners below which, for ReloadAfter, the pools are compared with a full listing. 0 = off.
	ReloadBelow float64
	ReloadAfter time.Duration
	Shared      *Shared // nil = this gateway has the cluster to itself
	// Claimed is told of each claim: hit, waited, repeated, empty, unknown, quota or failed. It must not block. nil = nobody is.
	Claimed func(environment int, outcome string, took time.Duration)
}

// callTime bounds each call to the cluster.
const callTime = 10 * time.Second

// abandonedTime is the inactivity timeout of a runner that is taken in order to be destroyed. If this gateway ends in between, whoever finds it used
// destroys it after that time.
const abandonedTime = time.Minute

// dropTime is how long the removal of an environment's runners is waited for. There may be thousands, whose sandboxes end one after the other.
const dropTime = 10 * time.Second

// safetyNet is how often the plan is looked at although nothing happened.
const safetyNet = time.Minute

// Manager keeps the pools and the records of claimed runners.
type Manager struct {
	cluster Cluster
	opts    Options
	log     logging.Logger
	trigger chan struct{} // the plan may have changed
	ready   chan struct{}
	tasks   lifecycle.Tasks

	mu       sync.Mutex
	pools    *pool.Pools
	envs     map[environment.ID]environment.Environment
	seen     map[string]Seen // of runners that are not claimed yet
	used     map[string]*Runner
	lines    map[environment.ID]*line     // of claims that wait; none is empty
	keys     map[string]*Runner           // claimed under a key
	attempts map[string]*attempt          // claims under a key that are under way
	claiming map[string]int               // claims under way of owners with a quota
	live     bool                         // the first listing has come
	below    map[environment.ID]time.Time // since when a pool is under the threshold
	relist   context.CancelFunc           // breaks the feed, which begins with a full listing again
	turn     int                          // of the feed; each begins with a full listing
	sweeping bool                         // strays are being looked at
	lead     lead
	asks     asks
	ending   chan struct{} // one for each runner about which the other gateways are being asked
	over     chan struct{} // Run has ended
}

// NewManager makes a manager without pools.
func NewManager(cluster Cluster, opts Options, log logging.Logger) *Manager {
	m := &Manager{
		cluster: cluster, opts: opts, log: log,
		trigger: make(chan struct{}, 1), ready: make(chan struct{}),
		envs: map[environment.ID]environment.Environment{}, seen: map[string]Seen{}, used: map[string]*Runner{},
		lines: map[environment.ID]*line{}, keys: map[string]*Runner{}, attempts: map[string]*attempt{}, claiming: map[string]int{},
		below: map[environment.ID]time.Time{}, ending: make(chan struct{}, opts.Limits.Concurrency), over: make(chan struct{}),
	}
	m.pools = pool.New(opts.Limits, newRunnerID)
	return m
}

func newRunnerID(id environment.ID) string {
	u, err := ident.NewTimed()
	if err != nil {
		panic(fmt.Sprintf("no time-based id could be made: %v", err)) // needs a random source, which the system owes us
	}
	return fmt.Sprintf("%d-%s", id, u)
}

// Ready is closed once the first listing has been taken in.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// Run follows the cluster and keeps the pools until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.follow(ctx) })
	g.Go(func() error { return m.reconcile(ctx) })
	err := g.Wait()
	close(m.over)
	m.mu.Lock()
	for _, r := range m.used {
		r.rest() // whoever takes the runners back begins their time anew
	}
	m.mu.Unlock()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
	defer cancel()
	return errors.Join(err, m.tasks.Wait(stop))
}

// poke asks for a plan.
func (m *Manager) poke() {
	select {
	case m.trigger <- struct{}{}:
	default:
	}
}

func (m *Manager) reconcile(ctx context.Context) error {
	timer := time.NewTimer(safetyNet)
	defer timer.Stop()
	looked := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.trigger:
		case <-timer.C:
			m.mu.Lock()
			m.pools.Touch()
			m.mu.Unlock()
		}
		now := time.Now()
		look := now.Sub(looked) >= safetyNet
		if look {
			looked = now
		}
		wait := safetyNet
		m.mu.Lock()
		if m.live {
			m.pools.Lead(m.leads())
			if look {
				m.sweep(ctx, now)
			}
			actions, next := m.pools.Plan(now)
			if !next.IsZero() {
				wait = min(wait, max(next.Sub(now), time.Millisecond))
			}
			wait = min(wait, m.checkShare(now))
			for _, a := range actions {
				e := m.envs[a.Env]
				if !m.tasks.Go(func() { m.carryOut(ctx, a, e) }) {
					m.mu.Unlock()
					return nil
				}
			}
		}
		m.mu.Unlock()
		timer.Reset(wait)
	}
}

// follow keeps the feed up.
func (m *Manager) follow(ctx context.Context) error {
	for ctx.Err() == nil {
		watchCtx, cancel := context.WithCancel(ctx)
		m.mu.Lock()
		m.relist = cancel
		m.turn++
		f := feed{m, m.turn}
		m.mu.Unlock()
		err := m.cluster.Watch(watchCtx, f)
		again := watchCtx.Err() != nil
		cancel()
		if err != nil && !again {
			return err
		}
	}
	return nil
}

// checkShare has the cluster listed anew when a pool has been short of idle runners for too long, and says when it wants to be asked
// again. The lock is held.
func (m *Manager) checkShare(now time.Time) time.Duration {
	wait := safetyNet
	if m.opts.ReloadAfter == 0 || m.opts.ReloadBelow == 0 {
		return wait
	}
	for id := range m.envs {
		s := m.pools.Stats(id)
		since, short := m.below[id]
		size := s.Size
		if s.Short { // a listing finds no room
			size = min(size, s.Possible-s.Used)
		}
		switch {
		case size <= 0 || float64(s.Idle)/float64(size) >= m.opts.ReloadBelow:
			delete(m.below, id)
		case !short:
			m.below[id] = now
			wait = min(wait, m.opts.ReloadAfter)
		case now.Sub(since) >= m.opts.ReloadAfter:
			m.below[id] = now
			m.relist()
		default:
			wait = min(wait, m.opts.ReloadAfter-now.Sub(since))
		}
	}
	return wait
}

func (m *Manager) carryOut(ctx context.Context, a pool.Action, e environment.Environment) {
	defer m.poke()
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	log := m.log.WithFields(logging.Fields{"runner_id": a.ID, "environment_id": int(a.Env)})
	if a.Kind == pool.Create {
		index, err := m.cluster.CreateRunner(ctx, e, a.ID, m.opts.Pull)
		if err != nil {
			log.WithField("error", err.Error()).Warn("a runner could not be created, it is tried again")
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.pools.Registered(a.ID, index, err, time.Now())
		return
	}
	var err error
	if a.Guard {
		err = m.cluster.ClaimRunner(ctx, a.ID, Mark{Timeout: abandonedTime})
	}
	lost, taken := false, err == nil
	switch {
	case taken:
		err = m.cluster.DestroyRunner(ctx, a.ID)
	case absent(err):
		err = nil // there is nothing to remove
	case errors.Is(err, ErrClaimLost):
		err, lost = nil, true
	}
	if err != nil {
		log.WithField("error", err.Error()).Warn("a runner could not be destroyed, it is tried again")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.pools.Destroyed(a.ID, lost, err, now)
	if taken && err != nil {
		m.pools.Discard(a.ID, now) // it is marked, so that a second claim would be lost to the first
	}
	m.serveAll()
}

// absent reports whether a claim was lost because the cluster does not have the runner.
func absent(err error) bool { return errors.Is(err, ErrClaimLost) && fault.Is(err, fault.NotFound) }

// Want sets what an environment's pool shall be.
func (m *Manager) Want(e environment.Environment) {
	m.mu.Lock()
	m.envs[e.ID] = e
	m.pools.Want(e.ID, pool.Spec{Size: int(e.PoolSize), Min: int(e.PoolSizeMin), Max: int(e.PoolSizeMax), Scarce: len(e.Devices) > 0, Settings: e.Settings()}, time.Now())
	m.mu.Unlock()
	m.poke()
}

// Roll replaces an environment's idle runners.
func (m *Manager) Roll(id environment.ID) {
	m.mu.Lock()
	m.pools.Roll(id)
	m.mu.Unlock()
	m.poke()
}

// Forget ends an environment: the runners that are known here go.
func (m *Manager) Forget(id environment.ID) { m.forget(id) }

// forget tells which runners were used.
func (m *Manager) forget(id environment.ID) map[string]bool {
	m.mu.Lock()
	delete(m.envs, id)
	delete(m.below, id)
	var ended []*Runner
	for _, r := range m.used {
		if r.Env == id {
			ended = append(ended, r)
			m.part(r)
		}
	}
	m.pools.Drop(id, time.Now())
	m.dissolve(id)
	m.mu.Unlock()
	used := map[string]bool{}
	for _, r := range ended {
		r.end(execution.ErrDeleted)
		used[r.ID] = true
	}
	m.poke()
	return used
}

// Drop forgets an environment and removes all its runners, also those that this process never saw. What is left of them when dropTime is over is the reconciler's,
// which has been removing them from the other end: how many there are does not decide how long this takes. That none could be removed in that time is an error.
func (m *Manager) Drop(ctx context.Context, id environment.ID) error {
	used := m.forget(id)
	limited, cancel := context.WithTimeout(ctx, dropTime)
	defer cancel()
	runners, err := m.cluster.RunnersOf(limited, id)
	if err != nil {
		return err
	}
	listed := m.condemn(id, runners)
	// Used ones first: if this process ended now, an idle one would be found for a stray, a used one only by its inactivity.
	rank := func(rid string) int {
		if used[rid] {
			return 0
		}
		return 1
	}
	slices.SortFunc(runners, func(a, b string) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(b, a)) })
	var removed atomic.Int64
	g, gctx := errgroup.WithContext(limited)
	g.SetLimit(m.opts.Limits.Concurrency)
	for _, rid := range runners {
		g.Go(func() error {
			if listed[rid] && m.gone(rid) {
				return nil
			}
			if gctx.Err() != nil {
				return context.Cause(gctx)
			}
			if err := m.cluster.DestroyRunner(gctx, rid); err != nil {
				return err
			}
			removed.Add(1)
			m.mu.Lock()
			m.pools.Removed(rid, time.Now())
			m.mu.Unlock()
			return nil
		})
	}
	err = g.Wait()
	if err != nil && limited.Err() != nil && ctx.Err() == nil && removed.Load() > 0 {
		m.log.WithField("environment_id", int(id)).Info("the runners of a deleted environment are many: their removal goes on")
		return nil
	}
	return err
}

// condemn has the reconciler remove runners, also such as it does not know, and tells which of them it has not removed yet.
func (m *Manager) condemn(id environment.ID, runners []string) map[string]bool {
	left := make(map[string]bool, len(runners))
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for _, rid := range runners {
		phase, known := m.pools.Phase(rid)
		if !known {
			m.pools.Observe(pool.Observed{ID: rid, Env: id}, now)
		}
		m.pools.Discard(rid, now)
		left[rid] = phase != pool.Dead
	}
	m.poke()
	return left
}

// gone reports whether the cluster is known to have a runner no more.
func (m *Manager) gone(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	phase, known := m.pools.Phase(id)
	return !known || phase == pool.Dead
}

// Stats of one environment.
func (m *Manager) Stats(id environment.ID) pool.Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pools.Stats(id)
}

// AllStats are those of every environment that is wanted.
func (m *Manager) AllStats() map[environment.ID]pool.Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[environment.ID]pool.Stats, len(m.envs))
	for id := range m.envs {
		all[id] = m.pools.Stats(id)
	}
	return all
}

// Lookup finds a claimed runner.
func (m *Manager) Lookup(id string) (*Runner, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r, ok := m.used[id]; ok {
		return r, nil
	}
	return nil, Unknown(id)
}

// Claimed are all claimed runners, in the order of their ids.
func (m *Manager) Claimed() []*Runner {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Values(m.used), func(a, b *Runner) int { return cmp.Compare(a.ID, b.ID) })
}

// Unknown is the answer to an id that is not that of a claimed runner, or not the caller's.
func Unknown(id string) error {
	return fault.New(fault.Gone, "the runner %s is not known (any more)", id)
}

// Destroy ends a runner and asks the cluster once to remove it. If that fails the reconciler goes on.
func (m *Manager) Destroy(ctx context.Context, r *Runner, cause error) error {
	m.release(r, cause)
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err := m.cluster.DestroyRunner(ctx, r.ID)
	m.mu.Lock()
	if now := time.Now(); err != nil {
		m.pools.Discard(r.ID, now)
	} else {
		m.pools.Removed(r.ID, now)
	}
	late := m.used[r.ID] // made anew by the news of its claim, which came only now
	if late != nil {
		m.part(late)
	}
	m.serveAll()
	m.mu.Unlock()
	if late != nil {
		late.end(cause)
	}
	m.poke()
	return err
}

// Discard ends a runner; the reconciler removes it.
func (m *Manager) Discard(r *Runner, cause error) {
	m.release(r, cause)
	m.discard(r.ID)
}

func (m *Manager) discard(id string) {
	m.mu.Lock()
	m.pools.Discard(id, time.Now())
	m.serveAll()
	m.mu.Unlock()
	m.poke()
}

// release takes a runner out of the records: from now on its id is not known.
func (m *Manager) release(r *Runner, cause error) {
	m.mu.Lock()
	if m.used[r.ID] == r {
		m.part(r)
	}
	m.mu.Unlock()
	if !r.end(cause) {
		return // it was told before
	}
	m.log.WithFields(logging.Fields{"runner_id": r.ID, "environment_id": int(r.Env), "destroy_reason": cause.Error()}).Info("runner ended")
}

// adopt makes the record of a used runner. The lock is held.
func (m *Manager) adopt(s Seen) *Runner {
	now := time.Now()
	r := &Runner{ID: s.ID, Env: s.Env, Owner: s.Mark.Owner, place: s.Place, ports: s.Ports, timeout: s.Mark.Timeout, gateway: s.Gateway, claimed: now, touched: now}
	m.used[s.ID] = r
	delete(m.seen, s.ID)
	m.mark(r, s.Mark)
	m.share(r)
	return r
}

// part takes a runner out of the records. The lock is held.
func (m *Manager) part(r *Runner) {
	delete(m.used, r.ID)
	if m.keys[r.mark.Key] == r {
		delete(m.keys, r.mark.Key)
	}
}

func (m *Manager) watchInactivity(r *Runner, timeout time.Duration) {
	r.start(timeout, func() { m.expire(r) })
}

// Report tells everything about an environment's pool; false when there is none. runners says whether each runner is listed.
func (m *Manager) Report(id environment.ID, runners bool) (Report, bool) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.pools.Report(id, runners, now)
	if !ok {
		return Report{}, false
	}
	r := Report{Report: p, Expected: m.pools.Expected(id, 1, now), Limits: m.opts.Limits}
	if l := m.lines[id]; l != nil {
		r.Waiting, r.Longest = l.Len(), now.Sub(l.front().since)
		r.Expected = m.pools.Expected(id, l.Len()+1, now)
	}
	return r, true
}

// Report is everything there is to tell about an environment's pool.
type Report struct {
	pool.Report
	Waiting  int           // claims in the queue
	Longest  time.Duration // since the first of them came
	Expected time.Duration // that one more would wait; 0 = it cannot be told
	Limits   pool.Limits
}
