// Package leader holds the services that only the leading server runs: workers, plan applier, completions, heartbeats, deployments, drains, periodic jobs,
// collection.
//
// They are one list, started under a context of that leadership and awaited before the next one begins. Leadership is a
// signal of which only the newest value counts: a true that follows a true means lost and regained, so everything stops, and starts anew.
// Nothing a term knows outlives it; a new term reads the evaluations from the state, after a barrier.
package leader

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/broker"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/keyring"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/plan"
	"rockpool/internal/orchestrator/state"
)

// Log is what the services need of consensus. Every call has a deadline.
type Log = plan.Log

// Config says how the services behave; zero values have defaults.
type Config struct {
	Store        *state.Store
	Log          Log
	Logger       logging.Logger
	Workers      int           // evaluations in work at a time, most of which wait for the log; default 64
	HeartbeatTTL time.Duration // told to nodes of a small cluster, longer in a large one; default 10 s
	Grace        time.Duration // on top of it before a node counts as down; default 10 s
	MaxPending   int           // evaluations waiting at which registrations are refused; default 100,000
	Prober       Prober        // asked before a node is marked down; nil = nobody is
	Keep         Keep
	// Crowded reports that the way onto the log is nearly full, so that new work should be refused. nil = it never is.
	Crowded func() bool
	Measure func(name string, start time.Time) // told how long steps took; nil = nobody is
	// Encode makes the form on the log of an entry that becomes part of a command.Batch; an error = a server does not know it. nil = jobs are placed after their
	// registration only.
	Encode func(entry any) ([]byte, error)
	// Services are more of them, which end with the term.
	Services   []lifecycle.Service
	Namespaces []string     // made where they are missing before a term's services begin
	KEK        *keyring.Key // wraps root keys; nil = there are no variables
	Leading    func()       // called when a term's services have what they need; nil = nothing
}

// Leader starts and stops terms.
type Leader struct {
	cfg         Config
	completions *completions
	admission   *admission

	mu      sync.Mutex
	term    *term         // guarded by mu; nil = not leading
	changed chan struct{} // guarded by mu; closed when term changes
}

// New makes a Leader.
func New(cfg Config) *Leader {
	if cfg.Logger == nil {
		cfg.Logger = logging.Discard()
	}
	if cfg.Workers == 0 {
		cfg.Workers = 64
	}
	if cfg.HeartbeatTTL == 0 {
		cfg.HeartbeatTTL = 10 * time.Second
	}
	if cfg.Grace == 0 {
		cfg.Grace = 10 * time.Second
	}
	if cfg.MaxPending == 0 {
		cfg.MaxPending = 100_000
	}
	cfg.Keep.defaults()
	l := &Leader{cfg: cfg, admission: newAdmission(), changed: make(chan struct{})}
	l.completions = newCompletions(l.admission.done)
	return l
}

// term is one leadership.
type term struct {
	cfg         Config
	admission   *admission
	completions *completions
	broker      *broker.Broker
	plans       *plan.Applier
	heartbeats  *heartbeats
	collector   *collector
	ledger      *ledger
}

// Run follows the signal until ctx ends. It returns an error when a service of a term failed: a server in that state must not go on
// leading.
func (l *Leader) Run(ctx context.Context, leadership <-chan bool) error {
	var tasks lifecycle.Tasks
	failed := make(chan error, 1)
	stop := func() {}
	defer func() { stop(); _ = tasks.Wait(context.WithoutCancel(ctx)) }()
	for {
		select {
		case lead := <-leadership:
			stop()
			stop = func() {}
			if !lead {
				continue
			}
			tctx, cancel := context.WithCancelCause(ctx)
			done := make(chan struct{})
			tasks.Go(func() {
				defer close(done)
				if err := l.lead(tctx); err != nil {
					failed <- err
				}
			})
			stop = func() { cancel(errors.New("leadership ended")); <-done }
		case err := <-failed:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// lead runs one term.
func (l *Leader) lead(ctx context.Context) error {
	t := &term{
		cfg: l.cfg, admission: l.admission, completions: l.completions, broker: broker.New(broker.DefaultLimits), plans: plan.New(l.cfg.Store, l.cfg.Log),
		heartbeats: newHeartbeats(l.cfg.HeartbeatTTL, l.cfg.Grace), ledger: &ledger{},
	}
	t.collector = newCollector(l.cfg)
	l.admission.reset()
	t.plans.Measure, t.plans.Encode = t.measure, l.cfg.Encode
	established := time.Now()
	l.completions.reset()
	// Observe first, read then: an evaluation that comes in between is seen twice, which does no harm, rather than never.
	end := l.cfg.Store.Observe(t.observe)
	defer end()
	// A log that is slow or has no majority for a while is no reason to lead without services: it is tried for as long as the term lasts.
	for wait := retryLeast; ; wait = min(2*wait, retryMost) {
		err := t.restore(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // leadership was lost meanwhile
		}
		if !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Deadline) {
			return fmt.Errorf("take over leadership: %w", err)
		}
		l.cfg.Logger.WithError(err).Warn("leadership could not be taken over yet, it will be tried again")
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
	if err := t.ensureNamespaces(ctx); err != nil {
		l.cfg.Logger.WithField("error", err.Error()).Error("a configured namespace could not be made")
	}
	t.measure("nomad.nomad.leader.establish_leadership", established)
	l.set(t)
	defer l.set(nil)
	if l.cfg.Leading != nil {
		l.cfg.Leading()
	}
	services := []lifecycle.Service{
		{Name: "completions", Run: func(ctx context.Context) error { return l.completions.run(ctx, l.cfg.Log, l.cfg.Logger) }},
		{Name: "plan applier", Run: t.plans.Run},
		{Name: "heartbeats", Run: t.watchHeartbeats},
		{Name: "deployments", Run: t.watchDeployments},
		{Name: "drains", Run: t.drainNodes},
		{Name: "periodic jobs", Run: t.dispatchPeriodic},
		{Name: "collection", Run: t.collector.run},
		{Name: "collection of nodes and deployments", Run: t.collectLate},
		{Name: "failed evaluations", Run: t.sweepFailed},
		{Name: "access", Run: t.keepAccess},
	}
	services = append(services, l.cfg.Services...)
	for i := range l.cfg.Workers {
		services = append(services, lifecycle.Service{Name: fmt.Sprintf("worker %d", i), Run: t.work})
	}
	l.cfg.Logger.Info("leadership taken")
	err := lifecycle.Run(ctx, services...)
	l.cfg.Logger.Info("leadership ended")
	return err
}

func (l *Leader) set(t *term) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.term = t
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *Leader) current() *term {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.term
}

// Renewal makes a function that returns when this server leads in another term than it does now, or with ctx.
func (l *Leader) Renewal() (wait func(ctx context.Context) error) {
	old := l.current()
	return func(ctx context.Context) error {
		for {
			l.mu.Lock()
			now, changed := l.term, l.changed
			l.mu.Unlock()
			if now != nil && now != old {
				return nil
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// Leading reports whether this server's services run.
func (l *Leader) Leading() bool { return l.current() != nil }

const (
	barrierBound = 30 * time.Second
	retryLeast   = 20 * time.Millisecond // between two attempts to take over
	retryMost    = time.Second
)

// restore fills the queue from the state.
func (t *term) restore(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, barrierBound)
	defer cancel()
	start := time.Now()
	if err := t.cfg.Log.Barrier(ctx); err != nil {
		return err
	}
	t.measure("nomad.nomad.leader.barrier", start)
	snap := t.cfg.Store.Snapshot()
	t.ledger.begin(snap)
	t.broker.Pause(snap.SchedulerConfig().PauseBroker)
	for e := range snap.Evals(nil, "") {
		switch e.Status {
		case model.EvalPending:
			t.broker.Enqueue(e)
		case model.EvalBlocked:
			t.supersede(t.broker.Block(e, 0, broker.Room{})) // the end of an earlier one of its job may not have been written any more
		}
	}
	t.broker.Sweep(snap.Index()) // nobody knows what came free meanwhile: what is blocked is tried once
	t.expect(snap, time.Now())
	return nil
}

// observe wakes what depends on a change. It runs on the goroutine that applies the log.
func (t *term) observe(c state.Commit) {
	offers, namespaces := t.ledger.observe(c)
	changed := c.Kind == command.NameSchedulerConfig // what everybody may try again after
	for _, ch := range c.Changes {
		switch after := ch.After.(type) {
		case *model.Evaluation:
			before, _ := ch.Before.(*model.Evaluation)
			switch {
			case after.Terminal():
				t.admission.done(after.ID)
				t.broker.Forget(after)
			case after.Status == model.EvalPending && before == nil:
				if t.placed(after) {
					break
				}
				if after.WaitUntil == 0 {
					t.admission.begin(after.ID, time.Now())
				}
				t.broker.Enqueue(after)
			case after.Status == model.EvalBlocked && before == nil:
				// Its worker says what it needs as soon as it knows that it is there. One that never learns of it tries again, and must find this one.
				t.supersede(t.broker.Block(after, c.Index, broker.Room{}))
			}
		case *model.Quota, *model.Namespace, *model.NodePool:
			changed = true
		case *model.Node:
			if before, ok := ch.Before.(*model.Node); after.Status == model.NodeReady && (!ok || before.Status != after.Status) {
				t.heartbeats.beat(after.ID, time.Now())
			}
		}
		if before, ok := ch.Before.(*model.Node); ok && ch.After == nil {
			t.heartbeats.forget(before.ID)
		}
	}
	if len(offers) > 0 {
		t.broker.Offer(offers...)
	}
	for _, ns := range namespaces {
		if q, _ := t.view(t.cfg.Store.Snapshot()).NamespaceQuota(ns); q != nil {
			t.broker.OfferQuota(q.Name, c.Index)
		}
	}
	if changed {
		t.broker.Pause(t.cfg.Store.Snapshot().SchedulerConfig().PauseBroker)
		t.broker.Sweep(c.Index)
	}
}
