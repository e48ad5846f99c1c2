package hostile

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"rockpool/tests/platform"
)

var tenants = []attack{
	{id: "E4", what: "60 clients for a pool of 5", script: claimRace},
	{id: "E7", what: "a slow close, then the next user's runner", script: slowClose},
}

// claimRace has many clients claim at once; nobody may get what another one has.
func claimRace(ctx context.Context, a *arena, _ string) (err error) {
	const env, clients = 12, 60
	if err := a.PutEnvironment(ctx, env, platform.Environment{PrewarmingPoolSize: 5, CPULimit: 10, MemoryLimit: 64, Image: "host"}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.DeleteEnvironment(ctx, env)) }()
	var mu sync.Mutex
	var wg sync.WaitGroup
	owners := map[string]int{}
	var errs []error
	for range clients {
		wg.Go(func() {
			id, err := a.Claim(ctx, env, time.Minute)
			if err == nil {
				defer func() { _ = a.Release(ctx, id) }()
			}
			mu.Lock()
			defer mu.Unlock()
			if status, ok := errors.AsType[*platform.StatusError](err); ok && status.Status == 500 {
				return // refused for want of runners
			}
			errs = append(errs, err)
			owners[id]++
		})
	}
	wg.Wait()
	for id, n := range owners {
		if n > 1 {
			errs = append(errs, fmt.Errorf("runner %s was given to %d clients", id, n))
		}
	}
	if len(owners) < 5 {
		errs = append(errs, fmt.Errorf("only %d clients got a runner", len(owners)))
	}
	return errors.Join(errs...)
}

// slowClose keeps a session half closed while its runner goes and others come.
func slowClose(ctx context.Context, a *arena, _ string) (err error) {
	first, err := a.Claim(ctx, attackers, time.Minute)
	if err != nil {
		return err
	}
	s, err := a.Start(ctx, first, platform.Execution{Command: "trap '' INT QUIT TERM HUP; while :; do read -t 1; done"})
	if err != nil {
		return err
	}
	defer s.Abort()
	if _, err := s.Next(ctx); err != nil {
		return err
	}
	if err := errors.Join(s.Stop(), a.Release(ctx, first)); err != nil {
		return err
	}
	var held []string
	defer func() {
		for _, r := range held {
			err = errors.Join(err, a.Release(ctx, r))
		}
	}()
	for range 2 * poolSize {
		r, err := a.Claim(ctx, attackers, time.Minute)
		if err != nil {
			return err
		}
		held = append(held, r)
		if r == first {
			return errors.New("an id was given twice")
		}
	}
	s.Abort()
	if status, _, err := a.Do(ctx, "DELETE", "/runners/"+first, nil); err != nil || status != 410 {
		return fmt.Errorf("a second release: status %d, %w", status, err)
	}
	for _, r := range held {
		if out, err := a.sh(ctx, r, "echo alive"); err != nil || out != "alive\n" {
			return fmt.Errorf("the next user's runner: %q, %w", out, err)
		}
	}
	return nil
}
