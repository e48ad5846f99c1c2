package pool_test

import (
	"fmt"
	"testing"
	"time"

	"rockpool/internal/environment"
	"rockpool/internal/runner/pool"
)

// settled are pools of a size that are full.
func settled(tb testing.TB, envs, size int) (*pool.Pools, time.Time) {
	tb.Helper()
	n, now := 0, time.Unix(0, 0)
	l := pool.DefaultLimits()
	l.Concurrency = envs * size
	p := pool.New(l, func(id environment.ID) string { n++; return fmt.Sprintf("%d-%07d", id, n) })
	for id := range envs {
		p.Want(environment.ID(id), pool.Spec{Size: size, Settings: "a"}, now)
	}
	actions, _ := p.Plan(now)
	for i, a := range actions {
		p.Registered(a.ID, uint64(i+1), nil, now)
		p.Observe(pool.Observed{ID: a.ID, Env: a.Env, Settings: "a", State: pool.Ready}, now)
	}
	if actions, _ := p.Plan(now); len(actions) > 0 {
		tb.Fatalf("%d actions in settled pools", len(actions))
	}
	return p, now
}

// BenchmarkCycle is the whole life of a runner: claim, replacement, removal, with a plan after each of the eight events.
func BenchmarkCycle(b *testing.B) {
	for _, c := range []struct{ envs, size int }{{100, 10}, {1, 5000}, {500, 10}} {
		b.Run(fmt.Sprintf("%dx%d", c.envs, c.size), func(b *testing.B) {
			p, now := settled(b, c.envs, c.size)
			i, index := 0, uint64(1<<20)
			for b.Loop() {
				i++
				now = now.Add(time.Millisecond)
				id := environment.ID(i % c.envs)
				rid, ok := p.Take(id, now)
				if !ok {
					b.Fatal("nothing is idle")
				}
				p.Arrived(id, true, now)
				p.Claimed(rid, now)
				actions, _ := p.Plan(now)
				for _, a := range actions {
					index++
					p.Registered(a.ID, index, nil, now)
					p.Plan(now)
					p.Observe(pool.Observed{ID: a.ID, Env: id, Settings: "a"}, now)
					p.Plan(now)
					p.Observe(pool.Observed{ID: a.ID, Env: id, Settings: "a", State: pool.Ready}, now)
					p.Plan(now)
				}
				p.Observe(pool.Observed{ID: rid, Env: id, Settings: "a", State: pool.Ready, Used: true}, now)
				p.Plan(now)
				p.Removed(rid, now)
				p.Plan(now)
				p.Gone(rid, now)
				p.Plan(now)
			}
		})
	}
}

// BenchmarkTake is what a claim asks of the pool.
func BenchmarkTake(b *testing.B) {
	p, now := settled(b, 1, 5000)
	for b.Loop() {
		now = now.Add(time.Nanosecond)
		id, ok := p.Take(0, now)
		if !ok {
			b.Fatal("nothing is idle")
		}
		p.Return(id, now)
	}
}

// BenchmarkRoll replaces a pool of 5,000; the figure is for all of it.
func BenchmarkRoll(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		p, now := settled(b, 1, 5000)
		index := uint64(1 << 20)
		p.Roll(0)
		b.StartTimer()
		events := 0
		for actions, _ := p.Plan(now); len(actions) > 0; actions, _ = p.Plan(now) {
			for _, a := range actions {
				index++
				if a.Kind == pool.Destroy {
					p.Destroyed(a.ID, false, nil, now)
					continue
				}
				p.Registered(a.ID, index, nil, now)
				p.Observe(pool.Observed{ID: a.ID, Env: 0, Settings: "a", State: pool.Ready}, now)
				p.Plan(now)
				events++
			}
		}
	}
}
