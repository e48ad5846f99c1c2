package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"rockpool/tests/platform"
)

// warmEnv is an environment like the one of the other cycles, but for a warm-up.
const warmEnv = 12

// warmCycles are the cycles of an environment whose runners have an interpreter that waits: with the pool full each time, so that what a runner's making takes is not
// among it, and one after the other while the pool refills beside.
func warmCycles(ctx context.Context, b *bench) error {
	e := platform.Environment{PrewarmingPoolSize: pool, CPULimit: 100, MemoryLimit: 128, Image: "host", WarmUp: &platform.WarmUp{Command: []string{"python3"}}}
	start := time.Now()
	if err := b.PutEnvironment(ctx, warmEnv, e); err != nil {
		return err
	}
	if err := b.warmIdle(ctx); err != nil {
		return err
	}
	b.add(figure{name: "pool of 16 filled, with a warm-up", text: ms(time.Since(start))})
	full := figure{name: "cycle with a warm-up, the pool full", budget: 10 * time.Millisecond}
	row := figure{name: "cycle with a warm-up, one after the other", budget: 10 * time.Millisecond}
	for range b.n / 2 {
		start := time.Now()
		if err := b.warmCycle(ctx); err != nil {
			return err
		}
		full.samples = append(full.samples, time.Since(start))
		if err := b.warmIdle(ctx); err != nil {
			return err
		}
	}
	begin := time.Now()
	for time.Since(begin) < b.churn {
		start := time.Now()
		if err := b.warmCycle(ctx); err != nil {
			return err
		}
		row.samples = append(row.samples, time.Since(start))
	}
	row.rate = float64(len(row.samples)) / time.Since(begin).Seconds()
	b.add(full)
	b.add(row)
	return b.DeleteEnvironment(ctx, warmEnv)
}

func (b *bench) warmCycle(ctx context.Context) error {
	r, err := b.Claim(ctx, warmEnv, time.Minute)
	for err != nil {
		if s, ok := errors.AsType[*platform.StatusError](err); !ok || !strings.Contains(s.Body, "NOMAD_OVERLOAD") {
			return err
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
		r, err = b.Claim(ctx, warmEnv, time.Minute)
	}
	if err := b.Copy(ctx, r, []string{"./*"}, platform.File{Path: "./"}, platform.File{Path: "hello.py", Content: []byte("print('hello')\n")}); err != nil {
		return err
	}
	o, err := b.Run(ctx, r, platform.Execution{Command: "python3 hello.py", TimeLimit: 20})
	if err != nil || o.Stdout != "hello\r\n" || o.Final.Code != 0 {
		return fmt.Errorf("python3 hello.py: %+v, %w", o, err)
	}
	if files, err := b.List(ctx, r, "./", true); err != nil || len(files) != 1 {
		return fmt.Errorf("the listing is %+v, %w", files, err)
	}
	return b.Release(ctx, r)
}

// warmIdle waits until the pool is full.
func (b *bench) warmIdle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		s, err := b.Statistics(ctx)
		if err != nil {
			return err
		}
		if s[strconv.Itoa(warmEnv)].IdleRunners >= pool {
			return nil
		}
		if err := pause(ctx, 2*time.Millisecond); err != nil {
			return err
		}
	}
}
