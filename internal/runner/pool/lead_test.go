package pool_test

import (
	"errors"
	"testing"
	"time"

	"rockpool/internal/environment"
	"rockpool/internal/runner/pool"
)

func TestPoolsOfOthersAreFollowed(t *testing.T) {
	n := 0
	p := pool.New(pool.DefaultLimits(), func(environment.ID) string { n++; return string(rune('a' + n - 1)) })
	now := time.Unix(1000, 0)
	p.Want(1, 3, "s")
	actions, _ := p.Plan(now)
	if len(actions) != 3 {
		t.Fatalf("got %v", actions)
	}
	// One came to be, one failed, of one nothing is known yet: then another gateway leads.
	p.Registered("a", 5, nil, now)
	p.Registered("b", 0, errors.New("no"), now)
	p.Lead(false)
	if actions, _ = p.Plan(now.Add(time.Hour)); len(actions) != 0 {
		t.Errorf("it goes on with %v", actions)
	}
	if _, ok := p.Phase("b"); ok {
		t.Error("what was not created is still wanted")
	}
	p.Registered("c", 6, nil, now)
	for i, id := range []string{"a", "c", "d", "e"} { // two were made by the other
		p.Observe(pool.Observed{ID: id, Env: 1, Settings: "s", State: pool.Ready}, now.Add(time.Duration(i)*time.Second))
	}
	p.Want(1, 1, "s")
	if actions, _ = p.Plan(now); len(actions) != 0 {
		t.Errorf("it shrinks: %v", actions)
	}
	id, ok := p.Take(1, now)
	if !ok || id != "e" { // the one that leads takes the oldest
		t.Fatalf("%q is handed out", id)
	}
	p.Claimed(id, now)
	p.Discard(id, now)
	if actions, _ = p.Plan(now); len(actions) != 1 || actions[0].Kind != pool.Destroy || actions[0].ID != id {
		t.Errorf("what it handed out: %v", actions)
	}
	p.Destroyed(id, false, nil, now)
	p.Lead(true)
	if actions, _ = p.Plan(now); len(actions) != 2 {
		t.Errorf("leading, it lets go %v", actions)
	}
	if id, _ := p.Take(1, now); id != "a" {
		t.Errorf("leading, it hands out %q", id)
	}
}
