package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/model"
)

// defaultTTL stands in for a lease that names none.
const defaultTTL = 30 * time.Second

// refreshEvery is how often the node looks whether its description still holds.
const refreshEvery = 30 * time.Second

// connect keeps the node known to the servers and its stream open, until ctx ends.
func (a *Agent) connect(ctx, life context.Context) {
	var pause backoff
	var once sync.Once
	away := outage{log: a.log}
	a.hear()
	for ctx.Err() == nil {
		lease, err := a.cfg.Servers.Register(ctx, a.node())
		if err != nil {
			if ctx.Err() == nil {
				away.failed(err, "the servers cannot be reached, registration will be tried again")
				a.disconnected(time.Now())
			}
			pause.wait(ctx)
			continue
		}
		away.over()
		a.log.Info("node registered")
		once.Do(func() { close(a.registered) })
		pause.reset()
		a.heed(lease)
		a.hear()
		if a.registrar != nil {
			a.registrar.again()
		}
		g, gctx := errgroup.WithContext(ctx)
		g.Go(func() error { return a.heartbeats(gctx, lease) })
		g.Go(func() error { return a.watch(gctx, life) })
		g.Go(func() error { return a.refresh(gctx) })
		if err := g.Wait(); fault.Is(err, fault.NotFound) {
			a.log.Info("the servers do not know the node, it registers again")
		}
	}
}

// heed drops the memory of messages that are newer than the registration: they came from servers whose state is gone.
func (a *Agent) heed(lease model.NodeLease) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if lease.Index != 0 && lease.Index < a.generation {
		a.log.WithField("newest", a.generation).Warn("the servers' state is older than what the node has seen, it starts over")
		a.generation = 0
	}
}

// outage tells of a time without servers: when it begins, each few minutes while it lasts, and when it is over.
type outage struct {
	log   logging.Logger
	since time.Time // zero = there is none
	told  time.Time
}

// repeatAfter is how often an outage is told of.
const repeatAfter = 5 * time.Minute

func (o *outage) failed(err error, sentence string) {
	now := time.Now()
	if o.since.IsZero() {
		o.since = now
	}
	if o.told.IsZero() || now.Sub(o.told) >= repeatAfter {
		o.told = now
		o.log.WithError(err).WithField("since", o.since.UTC().Format(time.RFC3339)).Warn(sentence)
	}
}

func (o *outage) over() {
	if !o.since.IsZero() {
		o.log.WithField("seconds", int(time.Since(o.since).Seconds())).Info("the servers answer again")
	}
	o.since, o.told = time.Time{}, time.Time{}
}

// hear notes that the servers have answered.
func (a *Agent) hear() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.heard = time.Now()
}

// disconnected stops the allocations that must not run on without servers for as long as these have been away.
func (a *Agent) disconnected(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	away := now.Sub(a.heard)
	for _, r := range a.runners {
		if d := r.stopAfter(); d > 0 && away >= d {
			r.stop.set(&stopReason{text: fmt.Sprintf("the servers could not be reached for %v (stop_on_client_after)", d)})
		}
	}
}

// stopAfter is how long an allocation runs on without servers; 0 = for ever.
func (r *allocRunner) stopAfter() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g := r.alloc.Job.Group(r.alloc.TaskGroup); g != nil && g.Disconnect != nil {
		return g.Disconnect.StopOnClientAfter
	}
	return 0
}

// heartbeats returns an error when the servers do not know the node.
func (a *Agent) heartbeats(ctx context.Context, lease model.NodeLease) error {
	var pause backoff
	away := outage{log: a.log}
	for {
		ttl := lease.HeartbeatTTL
		if ttl <= 0 {
			ttl = defaultTTL
		}
		if !sleep(ctx, ttl/3) {
			return ctx.Err()
		}
		for {
			attempt, cancel := context.WithTimeout(ctx, max(ttl/3, time.Second))
			next, err := a.cfg.Servers.Heartbeat(attempt)
			cancel()
			if err == nil {
				lease = next
				pause.reset()
				away.over()
				a.hear()
				break
			}
			if fault.Is(err, fault.NotFound) {
				return err
			}
			if ctx.Err() == nil {
				away.failed(err, "the servers do not answer heartbeats, the node keeps running what it runs and tries again")
				a.disconnected(time.Now())
			}
			if !pause.wait(ctx) {
				return ctx.Err()
			}
		}
	}
}

// watch keeps one stream open. It returns an error when the servers do not know the node.
func (a *Agent) watch(ctx, life context.Context) error {
	var pause backoff
	told := false
	for {
		err := a.cfg.Servers.Watch(ctx, func(p model.AllocPush) error {
			pause.reset()
			told = false
			return a.apply(life, p)
		})
		if fault.Is(err, fault.NotFound) {
			return err
		}
		if ctx.Err() == nil && !told {
			told = true // heartbeats tell how it goes on
			a.log.WithError(err).Info("stream of changes ended, it will be opened again")
		}
		if !pause.wait(ctx) {
			return ctx.Err()
		}
	}
}

// refresh registers the node anew when its description has changed, such as a driver's health.
func (a *Agent) refresh(ctx context.Context) error {
	var pause backoff
	for {
		timer := time.NewTimer(refreshEvery)
		select {
		case <-timer.C:
		case <-a.describing:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		a.look()
		if !a.describe(ctx) {
			continue
		}
		for {
			_, err := a.cfg.Servers.Register(ctx, a.node())
			if err == nil {
				a.log.Info("changed description of the node registered")
				pause.reset()
				break
			}
			if !pause.wait(ctx) {
				return ctx.Err()
			}
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
