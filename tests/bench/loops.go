package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"rockpool/tests/bench/report"
	"rockpool/tests/load"
)

// client is one of several that do the same: what it repeats, and how it leaves.
type client struct {
	step  func(context.Context) error
	leave func(context.Context) error
}

// joined makes n clients, calls f with them, and lets them leave.
func joined(ctx context.Context, n int, join func(context.Context) (client, error), f func([]client) error) error {
	clients := make([]client, n)
	var g errgroup.Group
	for i := range clients {
		g.Go(func() (err error) {
			clients[i], err = join(ctx)
			return err
		})
	}
	err := g.Wait()
	if err == nil {
		err = f(clients)
	}
	for _, c := range clients {
		if c.leave != nil {
			err = errors.Join(err, c.leave(ctx))
		}
	}
	return err
}

// inARow has each client do the next as soon as the last is done: what is found is how much goes through, and times that a full machine has.
func (b *bench) inARow(ctx context.Context, key string, clients []client) error {
	var calls load.Samples
	g, gctx := errgroup.WithContext(ctx)
	begin := time.Now()
	for _, c := range clients {
		g.Go(func() error {
			for time.Since(begin) < b.during && gctx.Err() == nil {
				start := time.Now()
				if err := c.step(gctx); err != nil {
					return err
				}
				calls.Since(start)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return b.add(key, report.Measurement{Begin: begin, Calls: calls.Sorted(), Rate: float64(calls.Len()) / time.Since(begin).Seconds()})
}

// offered has a free client take each call when it is due, at a rate that does not follow the answers. A call that finds no client free waits, and its time counts
// from when it was due.
func (b *bench) offered(ctx context.Context, key string, rate float64, clients []client) error {
	return b.offeredFor(ctx, key, rate, b.during, clients)
}

func (b *bench) offeredFor(ctx context.Context, key string, rate float64, during time.Duration, clients []client) error {
	free := make(chan client, len(clients))
	for _, c := range clients {
		free <- c
	}
	var calls load.Samples
	begin := time.Now()
	_, err := load.Run(ctx, load.Options{Rate: rate, For: during, AtATime: len(clients)}, func(ctx context.Context, _ int, due time.Time) error {
		c := <-free
		defer func() { free <- c }()
		if err := c.step(ctx); err != nil {
			return err
		}
		calls.Since(due)
		return nil
	})
	if err != nil {
		return err
	}
	sorted := calls.Sorted()
	return b.add(key, report.Measurement{Begin: begin, Calls: sorted, Rate: load.Answered(sorted, begin, during)})
}

// once takes note of a runner that was handed out, and refuses one that was before.
func (b *bench) once(runner string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.seen == nil {
		b.seen = map[string]bool{}
	}
	if b.seen[runner] {
		return fmt.Errorf("runner %s was handed out twice", runner)
	}
	b.seen[runner] = true
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
