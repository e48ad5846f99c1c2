package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"rockpool/tests/load"
)

// warmCycles are cycles in an environment whose runners hold an interpreter that waits: first with the pool full each time, so that what the making of a runner takes is
// not among it, then at a rate.
func warmCycles(ctx context.Context, b *bench) error {
	body := map[string]any{
		"prewarmingPoolSize": pool, "cpuLimit": 100, "memoryLimit": 128, "image": "host", "networkAccess": false, "exposedPorts": []int{},
		"warmup": map[string]any{"command": []string{"python3"}},
	}
	status, answer, err := b.Do(ctx, http.MethodPut, fmt.Sprintf("/execution-environments/%d", warmEnv), body)
	if err != nil || status/100 != 2 {
		return fmt.Errorf("an environment with a warm-up: %d %s, %v", status, answer, err)
	}
	var made struct{ WarmUp struct{ Active bool } }
	status, answer, err = b.Do(ctx, http.MethodGet, fmt.Sprintf("/execution-environments/%d", warmEnv), nil)
	if err == nil {
		err = json.Unmarshal(answer, &made)
	}
	if err != nil || !made.WarmUp.Active { // programs would start as ever, and the figures be of something else
		return errors.Join(fmt.Errorf("the gateway does not say that the warm-up is active: %d %s, %v", status, answer, err), b.DeleteEnvironment(ctx, warmEnv))
	}
	if err := b.waitIdleOf(ctx, warmEnv, pool); err != nil {
		return err
	}
	var calls load.Samples
	begin := time.Now()
	for range b.n / 2 {
		start := time.Now()
		if err := b.cycleIn(ctx, warmEnv); err != nil {
			return err
		}
		calls.Since(start)
		if err := b.waitIdleOf(ctx, warmEnv, pool); err != nil {
			return err
		}
	}
	if err := b.addCalls("WarmCycle", begin, &calls); err != nil {
		return err
	}
	one := func(ctx context.Context) error { return b.cycleIn(ctx, warmEnv) }
	join := func(context.Context) (client, error) { return client{step: one}, nil }
	err = joined(ctx, clientsOfCycle, join, func(c []client) error { return b.offered(ctx, "WarmCycleOffered", more*warmRate, c) })
	return errors.Join(err, b.DeleteEnvironment(ctx, warmEnv))
}
