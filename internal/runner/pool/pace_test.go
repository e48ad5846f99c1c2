package pool_test

import (
	"fmt"
	"testing"
	"time"

	"rockpool/internal/environment"
	"rockpool/internal/runner/pool"
)

// filled is a pool whose runners are all idle.
func filled(size int, now time.Time) *pool.Pools {
	n := 0
	limits := pool.DefaultLimits()
	limits.Concurrency = 1000
	p := pool.New(limits, func(environment.ID) string { n++; return fmt.Sprint(n) })
	p.Want(1, pool.Spec{Size: size, Settings: "a"}, now)
	actions, _ := p.Plan(now)
	for _, a := range actions {
		p.Registered(a.ID, 1, nil, now)
	}
	ready(p, actions, now)
	return p
}

func ready(p *pool.Pools, created []pool.Action, now time.Time) {
	for _, a := range created {
		p.Observe(pool.Observed{ID: a.ID, Env: 1, Settings: "a", State: pool.Ready, Placed: true}, now)
	}
}

func claim(t *testing.T, p *pool.Pools, now time.Time) {
	t.Helper()
	id, ok := p.Take(1, now)
	if !ok {
		t.Fatal("nobody is idle")
	}
	p.Claimed(id, now)
}

func TestReplacementsWaitForAMomentWithoutClaims(t *testing.T) {
	for _, c := range []struct {
		size, claims int   // one each 10 ms
		created      int   // right after the last
		underway     []int // after each 25 ms without claims, none of which ends
	}{
		{size: 1, claims: 1, created: 1},
		{size: 2, claims: 1, created: 1},
		{size: 3, claims: 1, created: 1},
		{size: 4, claims: 1, underway: []int{1}},
		{size: 4, claims: 2, created: 2}, // less than three quarters are left
		{size: 100, claims: 5, underway: []int{1, 3, 4}},
		{size: 100, claims: 25, underway: []int{4}},
		{size: 1000, claims: 20, underway: []int{1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 15}},
		{size: 1000, claims: 250, underway: []int{4, 8, 12, 15}},
		{size: 100, claims: 26, created: 26},
	} {
		now := time.Unix(1000, 0)
		p := filled(c.size, now)
		var actions []pool.Action
		var next time.Time
		for i := range c.claims {
			if i > 0 {
				now = now.Add(10 * time.Millisecond)
			}
			claim(t, p, now)
			actions, next = p.Plan(now)
		}
		if len(actions) != c.created {
			t.Errorf("%+v: %d are created at once", c, len(actions))
		}
		if c.underway == nil {
			continue
		}
		last := now
		var made []pool.Action
		for i, want := range c.underway {
			now = last.Add(time.Duration(i+1) * 25 * time.Millisecond)
			if !next.Equal(now) {
				t.Fatalf("%+v: after %d the next plan is due after %v", c, len(made), next.Sub(last))
			}
			if actions, _ = p.Plan(now); len(made)+len(actions) != want {
				t.Fatalf("%+v: %d and %d are created %v later", c, len(made), len(actions), now.Sub(last))
			}
			for _, a := range actions {
				p.Registered(a.ID, 1, nil, now)
			}
			made = append(made, actions...)
			if actions, next = p.Plan(now); len(actions) != 0 {
				t.Fatalf("%+v: %d more at once", c, len(actions))
			}
		}
		most := len(made)
		for all := most; all < c.claims; all += len(made) {
			if early, again := p.Plan(now); len(early) != 0 || again.After(now.Add(time.Second)) {
				t.Fatalf("%+v: %d more while those are not there yet, and the next plan after %v", c, len(early), again.Sub(now))
			}
			ready(p, made, now)
			if made, _ = p.Plan(now); len(made) < 1 || len(made) > most {
				t.Fatalf("%+v: %d follow %d", c, len(made), all)
			}
			for _, a := range made {
				p.Registered(a.ID, 1, nil, now)
			}
		}
	}
}

// A pool that the present pace would empty within half a second has no time to wait.
func TestReplacementsDoNotWaitWhereTheIdleOnesWouldNotLast(t *testing.T) {
	const each = 10 * time.Millisecond // 100 a second
	for _, c := range []struct {
		size  int
		waits bool
	}{{32, false}, {48, false}, {250, true}} {
		now := time.Unix(1000, 0)
		p := filled(c.size, now)
		least := c.size
		for range 1000 {
			now = now.Add(each)
			claim(t, p, now)
			least = min(least, p.Stats(1).Idle)
			actions, _ := p.Plan(now)
			for _, a := range actions {
				p.Registered(a.ID, 1, nil, now)
			}
			ready(p, actions, now)
		}
		claim(t, p, now)
		actions, _ := p.Plan(now)
		if waits := len(actions) == 0 && p.Stats(1).Idle < c.size-1; waits != c.waits {
			t.Errorf("size %d: %d created, %+v", c.size, len(actions), p.Stats(1))
		}
		if least < c.size*3/4-1 {
			t.Errorf("size %d: %d were left", c.size, least)
		}
	}
}

// What another gateway claims is claimed as well.
func TestReplacementsWaitForClaimsOfOtherGateways(t *testing.T) {
	now := time.Unix(1000, 0)
	p := filled(8, now)
	p.Observe(pool.Observed{ID: "3", Env: 1, Settings: "a", State: pool.Ready, Placed: true, Used: true}, now)
	if actions, next := p.Plan(now); len(actions) != 0 || next.Sub(now) != 25*time.Millisecond {
		t.Errorf("got %v, and the next plan after %v", actions, next.Sub(now))
	}
}

// A runner that died is nobody's who executes now.
func TestTheDeadAreReplacedAtOnce(t *testing.T) {
	now := time.Unix(1000, 0)
	p := filled(8, now)
	now = now.Add(time.Minute)
	p.Observe(pool.Observed{ID: "3", Env: 1, Settings: "a", State: pool.Ended}, now)
	actions, _ := p.Plan(now)
	created := 0
	for _, a := range actions {
		if a.Kind == pool.Create {
			created++
		}
	}
	if created != 1 {
		t.Errorf("got %v", actions)
	}
}

// used has so many runners of a pool claimed, one after the other, and the breaths after that over.
func used(t *testing.T, p *pool.Pools, n int, now time.Time) time.Time {
	t.Helper()
	for range n {
		claim(t, p, now)
	}
	p.Plan(now)
	return now.Add(4 * 25 * time.Millisecond)
}

// Those that hang, or that the cluster has no room for, do not keep the others from being made; and nobody asks for them all the time.
func TestReplacementsDoNotWaitForThoseThatHang(t *testing.T) {
	start := time.Unix(1000, 0)
	p := filled(100, start)
	created := 0
	now := used(t, p, 10, start)
	for plans := 0; !now.IsZero() && now.Sub(start) < time.Minute; plans++ {
		actions, next := p.Plan(now)
		for _, a := range actions {
			p.Registered(a.ID, 1, nil, now)
		}
		created += len(actions)
		if plans > 10 {
			t.Fatalf("%d plans within %v", plans, now.Sub(start))
		}
		if len(actions) > 0 { // the registration is an event
			_, next = p.Plan(now)
		}
		now = next
	}
	if created != 10 {
		t.Errorf("%d of 10 are created, and the next plan is due at %v", created, now)
	}
}

// Where the limit of all is reached there is nothing to ask for until a runner has gone.
func TestReplacementsThatHaveNoRoomAreNotPlannedAgainAndAgain(t *testing.T) {
	now := time.Unix(1000, 0)
	n := 0
	limits := pool.DefaultLimits()
	limits.Concurrency, limits.Runners = 1000, 100
	p := pool.New(limits, func(environment.ID) string { n++; return fmt.Sprint(n) })
	p.Want(1, pool.Spec{Size: 100, Settings: "a"}, now)
	actions, _ := p.Plan(now)
	for _, a := range actions {
		p.Registered(a.ID, 1, nil, now)
	}
	ready(p, actions, now)
	now = used(t, p, 10, now)
	if actions, next := p.Plan(now); len(actions) != 0 || !next.IsZero() {
		t.Fatalf("%d are created above the limit, and the next plan is due after %v", len(actions), next.Sub(now))
	}
	for _, id := range []string{"1", "2", "3", "4", "5", "6"} { // one after the other
		p.Discard(id, now)
		actions, _ := p.Plan(now)
		for _, a := range actions {
			p.Destroyed(a.ID, false, nil, now)
		}
		if actions, _ = p.Plan(now); len(actions) != 1 || actions[0].Kind != pool.Create {
			t.Fatalf("after the end of %s: %v", id, actions)
		}
		p.Registered(actions[0].ID, 1, nil, now)
		ready(p, actions, now)
	}
}
