package pool_test

import (
	"fmt"
	"testing"
	"time"

	"rockpool/internal/environment"
	"rockpool/internal/runner/pool"
)

func TestAFailingImageIsTriedWithBackOff(t *testing.T) {
	n, now := 0, time.Unix(0, 0)
	p := pool.New(pool.DefaultLimits(), func(environment.ID) string { n++; return fmt.Sprint(n) })
	p.Want(1, pool.Spec{Size: 1, Settings: "a"}, now)
	for i, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
		actions, _ := p.Plan(now)
		if len(actions) == 0 || actions[len(actions)-1].Kind != pool.Create {
			t.Fatalf("try %d: nothing is created: %v", i, actions)
		}
		id := actions[len(actions)-1].ID
		p.Registered(id, uint64(i), nil, now)
		p.Observe(pool.Observed{ID: id, Env: 1, Settings: "a", State: pool.Ended}, now)
		actions, next := p.Plan(now)
		if len(actions) != 1 || actions[0].Kind != pool.Destroy || !next.Equal(now.Add(want)) {
			t.Fatalf("try %d: got %v and %v, want a removal and the next try after %v", i, actions, next.Sub(now), want)
		}
		p.Destroyed(id, false, nil, now)
		p.Gone(id, now)
		now = now.Add(want)
	}
}

func TestARunnerThatDiesAsSoonAsItIsReadyIsNotReplacedInALoop(t *testing.T) {
	n, now := 0, time.Unix(0, 0)
	p := pool.New(pool.DefaultLimits(), func(environment.ID) string { n++; return fmt.Sprint(n) })
	p.Want(1, pool.Spec{Size: 1, Settings: "a"}, now)
	p.Observe(pool.Observed{ID: "old", Env: 1, Settings: "a", State: pool.Ended}, now) // says nothing of new ones
	for i, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
		p.Plan(now)
		id := fmt.Sprint(i + 1)
		p.Registered(id, uint64(i), nil, now)
		p.Observe(pool.Observed{ID: id, Env: 1, Settings: "a", State: pool.Ready}, now)
		p.Observe(pool.Observed{ID: id, Env: 1, Settings: "a", State: pool.Ended}, now)
		if _, next := p.Plan(now); !next.Equal(now.Add(want)) {
			t.Fatalf("death %d: the next try is after %v, want %v", i, next.Sub(now), want)
		}
		now = now.Add(want)
	}
}

func TestAnEventThatIsOlderThanThePurgeDoesNotReviveARunner(t *testing.T) {
	p := pool.New(pool.DefaultLimits(), func(environment.ID) string { return "1-a" })
	now := time.Unix(0, 0)
	p.Want(1, pool.Spec{Settings: "a"}, now)
	p.Observe(pool.Observed{ID: "1-x", Env: 1, Settings: "a", State: pool.Ready}, now)
	p.Discard("1-x", now)
	p.Plan(now)
	p.Destroyed("1-x", false, nil, now)
	p.Observe(pool.Observed{ID: "1-x", Env: 1, Settings: "a", State: pool.Ready}, now)
	if _, ok := p.Take(1, now); ok {
		t.Error("a purged runner was handed out")
	}
}

func TestAListingAfterARestoreEndsWhatIsNotInIt(t *testing.T) {
	for name, c := range map[string]struct {
		index uint64 // of the listing
		after time.Duration
		again bool // a second listing follows
		kept  bool
	}{
		"older than the registration":             {index: 90, after: time.Second, kept: true},
		"older, and the next is no newer":         {index: 90, after: time.Second, again: true},
		"of a cluster that went back":             {index: 50, after: 2 * time.Minute},
		"as new as the registration, and without": {index: 100, after: time.Second},
	} {
		p := pool.New(pool.DefaultLimits(), func(environment.ID) string { return "1-a" })
		now := time.Unix(1000, 0)
		p.Want(1, pool.Spec{Size: 1, Settings: "s"}, now)
		p.Plan(now)
		p.Registered("1-a", 100, nil, now)
		p.List(nil, c.index, now.Add(c.after))
		if c.again {
			p.List(nil, c.index, now.Add(c.after))
		}
		if ph, _ := p.Phase("1-a"); ph.Ended() == c.kept {
			t.Errorf("%s: it is %v", name, ph)
		}
	}
}

func TestARunnerThatVanishedAndIsThereAgainIsSomebodyElses(t *testing.T) {
	p := pool.New(pool.DefaultLimits(), func(environment.ID) string { return "1-a" })
	now := time.Unix(1000, 0)
	used := []pool.Observed{{ID: "1-a", Env: 1, Settings: "s", State: pool.Ready, Used: true}}
	p.Want(1, pool.Spec{Settings: "s"}, now)
	p.List(used, 10, now)
	p.List(nil, 11, now)
	if ph, _ := p.Phase("1-a"); ph != pool.Dead {
		t.Fatalf("it is %v", ph)
	}
	now = now.Add(90 * time.Second)
	p.List(used, 12, now)
	if ph, _ := p.Phase("1-a"); ph != pool.Used {
		t.Errorf("it is %v", ph)
	}
	if actions, _ := p.Plan(now); len(actions) != 0 {
		t.Errorf("got %v", actions)
	}
}
