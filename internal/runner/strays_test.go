package runner_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"rockpool/internal/environment"
	"rockpool/internal/runner"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/pool"
)

// A runner that was created after its environment's end goes, after a while and only if the one that leads is sure of it.
func TestAnIdleRunnerOfNoEnvironmentIsRemoved(t *testing.T) {
	const stray = "2-6ba7b810-9dad-11d1-80b4-00c04fd430c8"
	idle := runner.Seen{Observed: pool.Observed{ID: stray, Env: 2, State: pool.Ready}, Place: execution.Place{AllocID: stray}}
	for name, c := range map[string]struct {
		prepare func(o *others, c *cluster, m *runner.Manager)
		seen    runner.Seen
		stays   bool
	}{
		"idle":          {func(*others, *cluster, *runner.Manager) {}, idle, false},
		"used":          {func(*others, *cluster, *runner.Manager) {}, foreign(stray, "other", 0), true},
		"is defined":    {func(_ *others, c *cluster, _ *runner.Manager) { c.defined = true }, idle, true},
		"another leads": {func(o *others, _ *cluster, m *runner.Manager) { o.set(func() { o.leads = false }); m.Regroup() }, idle, true},
		"claimed at last": {func(_ *others, c *cluster, _ *runner.Manager) {
			c.claim = func(string) error { return runner.ErrClaimLost }
		}, idle, true},
		"wanted meanwhile": {func(_ *others, _ *cluster, m *runner.Manager) {
			time.AfterFunc(90*time.Second, func() { m.Want(environment.Environment{ID: 2, PoolSize: 1}) })
		}, func() runner.Seen {
			s := idle
			s.Settings = environment.Environment{ID: 2}.Settings()
			return s
		}(), true},
	} {
		t.Run(name, func(t *testing.T) {
			o := &others{idle: -1, leads: true, alive: map[string]bool{"other": true}}
			find := func(context.Context, string) (runner.Seen, bool, error) { return runner.Seen{}, false, nil }
			among(t, 1, o, find, func(t *testing.T, m *runner.Manager, cl *cluster) {
				settle(5 * time.Second)
				c.prepare(o, cl, m)
				c.seen.Env = 2
				cl.put(c.seen)
				settle(110 * time.Second)
				if !cl.has(stray) {
					t.Fatal("it went at once")
				}
				settle(3 * time.Minute)
				if cl.has(stray) != c.stays {
					t.Errorf("it is there: %v", cl.has(stray))
				}
				if !c.stays && !slices.Contains(cl.claims, stray) {
					t.Error("it was not claimed before it was removed")
				}
				if cl.asked > 5 {
					t.Errorf("the cluster was asked %d times", cl.asked)
				}
				if n := m.Stats(1).Idle; n != 1 {
					t.Errorf("the pool has %d idle runners", n)
				}
			})
		})
	}
}
