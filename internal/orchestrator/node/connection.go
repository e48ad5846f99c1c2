package node

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"rockpool/internal/fault"
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
	for ctx.Err() == nil {
		lease, err := a.cfg.Servers.Register(ctx, a.node())
		if err != nil {
			if ctx.Err() == nil {
				a.log.WithError(err).Warn("registration failed, it will be tried again")
			}
			pause.wait(ctx)
			continue
		}
		a.log.Info("node registered")
		once.Do(func() { close(a.registered) })
		pause.reset()
		a.heed(lease)
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

// heartbeats returns an error when the servers do not know the node.
func (a *Agent) heartbeats(ctx context.Context, lease model.NodeLease) error {
	var pause backoff
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
				break
			}
			if fault.Is(err, fault.NotFound) {
				return err
			}
			if ctx.Err() == nil {
				a.log.WithError(err).Warn("heartbeat failed, it will be tried again")
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
	for {
		err := a.cfg.Servers.Watch(ctx, func(p model.AllocPush) error {
			pause.reset()
			return a.apply(life, p)
		})
		if fault.Is(err, fault.NotFound) {
			return err
		}
		if ctx.Err() == nil {
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
	for wait := refreshEvery; ; wait = refreshEvery {
		if !sleep(ctx, wait) {
			return ctx.Err()
		}
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
