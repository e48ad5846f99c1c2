package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"rockpool/tests/load"
	"rockpool/tests/platform"
)

// warmCycles are cycles in an environment whose runners hold an interpreter that waits: first with the pool full each time, so that what the making of a runner takes is
// not among it, then at a rate.
func warmCycles(ctx context.Context, b *bench) error {
	err := b.putWarm(ctx, pool)
	if err != nil {
		return err
	}
	before, err := b.starts(ctx)
	if err != nil {
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
	between, err := b.starts(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(b.addCalls("WarmCycle", begin, &calls), b.addValue("WarmTaken", between.share(before))); err != nil {
		return err
	}
	one := func(ctx context.Context) error { return b.cycleIn(ctx, warmEnv) }
	join := func(context.Context) (client, error) { return client{step: one}, nil }
	err = joined(ctx, clientsOfCycle, join, func(c []client) error { return b.offered(ctx, "WarmCycleOffered", more*warmRate, c) })
	if err == nil {
		var after starts
		if after, err = b.starts(ctx); err == nil {
			err = b.addValue("WarmTakenOffered", after.share(between))
		}
	}
	return errors.Join(err, b.DeleteEnvironment(ctx, warmEnv))
}

// warmBurst is what a full pool is for: cycles at a rate that the making of runners does not keep up with, until a quarter of the runners is used, for which
// replacements wait.
func warmBurst(ctx context.Context, b *bench) error {
	return b.withSmall(ctx, "burst", func() error {
		err := b.putWarm(ctx, burstPool)
		if err != nil {
			return err
		}
		before, err := b.starts(ctx)
		if err != nil {
			return err
		}
		rate := float64(more * warmRate)
		quarter := time.Duration(burstPool / 4 / rate * float64(time.Second))
		one := func(ctx context.Context) error { return b.cycleIn(ctx, warmEnv) }
		join := func(context.Context) (client, error) { return client{step: one}, nil }
		err = joined(ctx, clientsOfCycle, join, func(c []client) error { return b.offeredFor(ctx, "WarmBurst", rate, quarter, c) })
		if err != nil {
			return err
		}
		after, err := b.starts(ctx)
		if err != nil {
			return err
		}
		return errors.Join(b.addValue("WarmTakenBurst", after.share(before)), b.DeleteEnvironment(ctx, warmEnv))
	})
}

// interpreters is the time in which those of a pool come to wait that was filled at once: its runners are there before them.
func interpreters(size uint) time.Duration {
	return time.Second + time.Duration(size)*30*time.Millisecond
}

// putWarm gives the environment so many runners, and waits until they are idle and their interpreters wait.
func (b *bench) putWarm(ctx context.Context, size uint) error {
	err := b.PutEnvironment(ctx, warmEnv, platform.Environment{
		PrewarmingPoolSize: size, CPULimit: 5, MemoryLimit: 128, Image: "host", WarmUp: &platform.WarmUp{Command: []string{"python3"}},
	})
	if err != nil {
		return err
	}
	var made struct{ WarmUp struct{ Active bool } }
	status, answer, err := b.Do(ctx, http.MethodGet, fmt.Sprintf("/execution-environments/%d", warmEnv), nil)
	if err == nil {
		err = json.Unmarshal(answer, &made)
	}
	if err != nil || !made.WarmUp.Active { // programs would start as ever, and the figures be of something else
		return errors.Join(fmt.Errorf("the gateway does not say that the warm-up is active: %d %s, %v", status, answer, err), b.DeleteEnvironment(ctx, warmEnv))
	}
	if err := b.waitIdleOf(ctx, warmEnv, size); err != nil {
		return err
	}
	select {
	case <-time.After(interpreters(size)):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// starts counts programs by how they were started.
type starts struct{ warm, cold float64 }

// share is the part of the programs since then that took an interpreter over, in percent.
func (s starts) share(since starts) float64 {
	warm, cold := s.warm-since.warm, s.cold-since.cold
	if warm+cold == 0 {
		return 0
	}
	return 100 * warm / (warm + cold)
}

// starts asks the gateway, which knows it of each program that has ended by itself.
func (b *bench) starts(ctx context.Context) (s starts, err error) {
	status, text, err := b.Do(ctx, http.MethodGet, "/rockpool/metrics", nil)
	if err != nil || status != http.StatusOK {
		return s, fmt.Errorf("the gateway's figures: %d, %w", status, err)
	}
	return startsIn(string(text))
}

var startsLine = regexp.MustCompile(fmt.Sprintf(`(?m)^rockpool_gateway_warm_executions_total\{environment="%d",start="(warm|cold)"\} (\S+)$`, warmEnv))

func startsIn(figures string) (s starts, err error) {
	for _, m := range startsLine.FindAllStringSubmatch(figures, -1) {
		n, e := strconv.ParseFloat(m[2], 64)
		err = errors.Join(err, e)
		if m[1] == "warm" {
			s.warm = n
		} else {
			s.cold = n
		}
	}
	return s, err
}
