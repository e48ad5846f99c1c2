package pool_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"rockpool/internal/environment"
	"rockpool/internal/runner/pool"
)

// synthetic is a cluster in which every start takes a fixed time.
type synthetic struct {
	pools  *pool.Pools
	now    time.Time
	start  time.Duration
	index  uint64
	ready  []pool.Observed // in the order in which they become so
	at     []time.Time
	missed int
}

func newSynthetic(s pool.Spec, l pool.Limits, start time.Duration) *synthetic {
	n := 0
	y := &synthetic{now: time.Unix(0, 0), start: start, pools: pool.New(l, func(id environment.ID) string { n++; return fmt.Sprintf("%d-%07d", id, n) })}
	y.pools.Want(1, s, y.now)
	y.until(y.now)
	return y
}

func (y *synthetic) plan() {
	actions, _ := y.pools.Plan(y.now)
	for len(actions) > 0 {
		for _, a := range actions {
			y.index++
			if a.Kind == pool.Destroy {
				y.pools.Destroyed(a.ID, false, nil, y.now)
				continue
			}
			y.pools.Registered(a.ID, y.index, nil, y.now)
			y.ready = append(y.ready, pool.Observed{ID: a.ID, Env: a.Env, Settings: "a", State: pool.Ready})
			y.at = append(y.at, y.now.Add(y.start))
		}
		actions, _ = y.pools.Plan(y.now)
	}
}

// until lets time pass, by what happens and by the plan's own wishes.
func (y *synthetic) until(t time.Time) {
	for {
		y.plan()
		_, next := y.pools.Plan(y.now)
		if len(y.at) > 0 && (next.IsZero() || y.at[0].Before(next)) {
			next = y.at[0]
		}
		if next.IsZero() || next.After(t) {
			y.now = t
			return
		}
		y.now = next
		for len(y.at) > 0 && !y.at[0].After(y.now) {
			y.pools.Observe(y.ready[0], y.now)
			y.ready, y.at = y.ready[1:], y.at[1:]
		}
	}
}

// claim takes a runner, which ends at once; a claim that finds none goes away.
func (y *synthetic) claim() {
	id, ok := y.pools.Take(1, y.now)
	y.pools.Arrived(1, ok, y.now)
	if !ok {
		y.missed++
		return
	}
	y.pools.Claimed(id, y.now)
	y.pools.Removed(id, y.now)
	y.plan()
}

func TestASizeFollowsTheClaims(t *testing.T) {
	y := newSynthetic(pool.Spec{Size: 2, Min: 1, Max: 60, Settings: "a"}, pool.DefaultLimits(), 4*time.Second)
	y.until(y.now.Add(time.Minute))
	random := rand.New(rand.NewPCG(1, 2))
	// Four claims a second for half an hour: sixteen come while one start takes place, by the law of Poisson hardly ever more than 27.
	for range 30 * 60 * 4 {
		y.until(y.now.Add(time.Duration(random.ExpFloat64() * float64(250*time.Millisecond))))
		y.claim()
	}
	r, _ := y.pools.Report(1, false, y.now)
	if r.Size < 24 || r.Size > 32 {
		t.Errorf("the size is %d, want about 28", r.Size)
	}
	if r.Hits.Share < 0.98 {
		t.Errorf("%.3f of the claims were served at once lately", r.Hits.Share)
	}
	if r.Hits.Claims != 7200 || r.Hits.Served != 7200-uint64(y.missed) {
		t.Errorf("counted %+v, %d were missed", r.Hits, y.missed)
	}
	if r.Automatic.Lead < 4*time.Second || r.Automatic.Lead > 5*time.Second {
		t.Errorf("a start is reckoned to take %v", r.Automatic.Lead)
	}
	// In the night it shrinks to what is bound below, and no further.
	y.until(y.now.Add(20 * time.Minute))
	if s := y.pools.Stats(1); s.Size < r.Size/2 {
		t.Errorf("after a quiet quarter of an hour the size is %d already", s.Size)
	}
	y.until(y.now.Add(12 * time.Hour))
	if s := y.pools.Stats(1); s.Size != 1 || s.Idle != 1 {
		t.Errorf("after a quiet night: %+v", s)
	}
}

func TestABurstIsRememberedForTheNext(t *testing.T) {
	y := newSynthetic(pool.Spec{Size: 5, Min: 5, Max: 100, Settings: "a"}, pool.DefaultLimits(), 2*time.Second)
	y.until(y.now.Add(time.Minute))
	burst := func() (missed int) {
		before := y.missed
		for range 30 {
			y.claim()
			y.until(y.now.Add(10 * time.Millisecond))
		}
		return y.missed - before
	}
	if n := burst(); n == 0 {
		t.Fatal("a pool of five served a burst of thirty")
	}
	y.until(y.now.Add(10 * time.Minute))
	if n := burst(); n != 0 {
		t.Errorf("%d of thirty found nothing when it came again", n)
	}
	if s := y.pools.Stats(1); s.Size != 30 {
		t.Errorf("the size is %d", s.Size)
	}
}

func TestAnAutomaticSizeStaysBetweenItsBounds(t *testing.T) {
	y := newSynthetic(pool.Spec{Size: 3, Min: 2, Max: 8, Settings: "a"}, pool.DefaultLimits(), time.Second)
	for range 200 {
		y.claim()
		y.until(y.now.Add(20 * time.Millisecond))
	}
	if s := y.pools.Stats(1); s.Size != 8 {
		t.Errorf("under load: %+v", s)
	}
	// What a listing shows was chosen before: a restart does not begin from below.
	fresh := pool.New(pool.DefaultLimits(), func(environment.ID) string { return "none" })
	fresh.Want(1, pool.Spec{Size: 3, Min: 2, Max: 8, Settings: "a"}, y.now)
	var list []pool.Observed
	for i := range 7 {
		list = append(list, pool.Observed{ID: fmt.Sprint(i), Env: 1, Settings: "a", State: pool.Ready})
	}
	fresh.List(list, 1, y.now)
	if s := fresh.Stats(1); s.Size != 7 {
		t.Errorf("after a restart: %+v", s)
	}
	// An unchanged definition forgets nothing, a fixed size ends it.
	y.pools.Want(1, pool.Spec{Size: 3, Min: 2, Max: 8, Settings: "a"}, y.now)
	if s := y.pools.Stats(1); s.Size != 8 {
		t.Errorf("put again: %+v", s)
	}
	y.pools.Want(1, pool.Spec{Size: 3, Settings: "a"}, y.now)
	y.plan()
	if s := y.pools.Stats(1); s.Size != 3 || s.Idle+s.Starting != 3 {
		t.Errorf("with a fixed size: %+v", s)
	}
}

// After a restart the runners may be listed before the environment is known, or after it: an automatic size takes them over either way.
func TestASizeTakesOverWhatWasFoundBeforeItWasWanted(t *testing.T) {
	for _, first := range []string{"the listing", "the definition"} {
		p := pool.New(pool.DefaultLimits(), func(environment.ID) string { return "1-x" })
		now := time.Unix(0, 0)
		want := func() { p.Want(1, pool.Spec{Size: 2, Min: 1, Max: 6, Settings: "a"}, now) }
		if first == "the definition" {
			want()
		}
		var found []pool.Observed
		for i := range 4 {
			found = append(found, pool.Observed{ID: fmt.Sprint("1-", i), Env: 1, Settings: "a", State: pool.Ready})
		}
		p.List(found, 1, now)
		if first == "the listing" {
			p.Plan(now)
			want()
		}
		actions, _ := p.Plan(now)
		if s := p.Stats(1); s.Size != 4 || s.Idle != 4 || len(actions) != 0 {
			t.Errorf("%s first: %+v and %v", first, s, actions)
		}
	}
}

func TestTheLimitOfAllRunnersIsShared(t *testing.T) {
	l := pool.DefaultLimits()
	l.Runners = 10
	y := newSynthetic(pool.Spec{Size: 20, Settings: "a"}, l, time.Second)
	y.until(y.now.Add(time.Minute))
	if s := y.pools.Stats(1); s.Idle != 10 {
		t.Fatalf("%+v under a limit of 10", s)
	}
	if why, _ := y.pools.Why(1); why != pool.TotalLimit {
		t.Errorf("the refusal is %v", why)
	}
	// One that has nothing gets something: the other lets an idle runner go.
	y.pools.Want(2, pool.Spec{Size: 5, Settings: "a"}, y.now)
	y.until(y.now.Add(time.Minute))
	if a, b := y.pools.Stats(1), y.pools.Stats(2); a.Idle != 9 || b.Idle != 1 {
		t.Errorf("%+v and %+v", a, b)
	}
	// Used ones count; what they leave goes to who has least.
	var used []string
	for range 9 {
		id, ok := y.pools.Take(1, y.now)
		if !ok {
			t.Fatal("nothing is idle")
		}
		y.pools.Claimed(id, y.now)
		used = append(used, id)
	}
	y.until(y.now.Add(time.Minute))
	if a, b := y.pools.Stats(1), y.pools.Stats(2); a.Idle+b.Idle != 1 || a.Used != 9 {
		t.Errorf("%+v and %+v while 9 of 10 are used", a, b)
	}
	for _, id := range used[:4] {
		y.pools.Removed(id, y.now)
		y.until(y.now.Add(time.Minute))
	}
	if a, b := y.pools.Stats(1), y.pools.Stats(2); a.Idle+b.Idle != 5 || a.Idle < 2 || b.Idle < 2 {
		t.Errorf("%+v and %+v after four have ended", a, b)
	}
}

func TestARollUnderTheLimitGoesOnOneByOne(t *testing.T) {
	l := pool.DefaultLimits()
	l.Runners = 3
	y := newSynthetic(pool.Spec{Size: 3, Settings: "a"}, l, time.Second)
	y.until(y.now.Add(time.Minute))
	y.pools.Roll(1)
	y.until(y.now.Add(time.Minute))
	r, _ := y.pools.Report(1, true, y.now)
	if r.Idle != 3 || len(r.Runners) != 3 {
		t.Fatalf("%+v", r.Stats)
	}
	for _, x := range r.Runners {
		if !x.Current {
			t.Errorf("%s is still of the old definition", x.ID)
		}
	}
}

func TestNoMoreAreUsedThanMayBe(t *testing.T) {
	l := pool.DefaultLimits()
	l.Used = 2
	y := newSynthetic(pool.Spec{Size: 3, Settings: "a"}, l, time.Second)
	y.until(y.now.Add(time.Minute))
	first, _ := y.pools.Take(1, y.now)
	y.pools.Claimed(first, y.now)
	if _, ok := y.pools.Take(1, y.now); !ok {
		t.Fatal("the second was refused")
	}
	if id, ok := y.pools.Take(1, y.now); ok {
		t.Fatalf("%s was handed out beyond the limit", id)
	}
	if why, _ := y.pools.Why(1); why != pool.UsedLimit {
		t.Errorf("the refusal is %v", why)
	}
	y.pools.Removed(first, y.now)
	if _, ok := y.pools.Take(1, y.now); !ok {
		t.Error("nothing is handed out although one has ended")
	}
}

func TestAReportSaysWhyStartsFailAndWhenTheyAreTriedAgain(t *testing.T) {
	n, now := 0, time.Unix(0, 0)
	p := pool.New(pool.DefaultLimits(), func(environment.ID) string { n++; return fmt.Sprint(n) })
	p.Want(1, pool.Spec{Size: 5, Settings: "a"}, now)
	actions, _ := p.Plan(now)
	for i, a := range actions {
		p.Registered(a.ID, uint64(i+1), nil, now)
	}
	now = now.Add(time.Second)
	long := strings.Repeat("no such image ", 100)
	for _, a := range actions { // all of one burst
		p.Observe(pool.Observed{ID: a.ID, Env: 1, Settings: "a", State: pool.Ended, Reason: long}, now)
	}
	p.Plan(now)
	r, _ := p.Report(1, true, now)
	f := r.Failures
	if f.Count != 1 || !strings.HasPrefix(f.Reason, "no such image") || len(f.Reason) > 410 || !f.Retry.Equal(now.Add(time.Second)) || !f.Last.Equal(now) {
		t.Errorf("one burst is told as %d failures, retry at %v, %d bytes", f.Count, f.Retry, len(f.Reason))
	}
	if r.Failed != 5 || r.Removing != 5 || r.Starting != 5 || r.Idle != 0 {
		t.Errorf("got %+v", r.Stats)
	}
	if why, words := p.Why(1); why != pool.Failing || words != f.Reason {
		t.Errorf("the refusal is %v %q", why, words)
	}
	// One try tells whether it works again; the others wait for it.
	now = now.Add(time.Second)
	creations := 0
	actions, _ = p.Plan(now)
	var probe string
	for _, a := range actions {
		if a.Kind == pool.Create {
			creations++
			probe = a.ID
		}
	}
	if creations != 1 {
		t.Fatalf("%d creations after the back-off, want one", creations)
	}
	p.Registered(probe, 9, nil, now)
	p.Observe(pool.Observed{ID: probe, Env: 1, Settings: "a", State: pool.Ready}, now)
	if actions, _ = p.Plan(now); len(actions) != 4 {
		t.Errorf("%d actions after it worked, want the other four", len(actions))
	}
	for i, a := range actions {
		p.Registered(a.ID, uint64(20+i), nil, now)
		p.Observe(pool.Observed{ID: a.ID, Env: 1, Settings: "a", State: pool.Ready}, now)
	}
	now = now.Add(10 * time.Second)
	p.Plan(now)
	if r, _ = p.Report(1, false, now); r.Failures.Count != 0 || r.Idle != 5 {
		t.Errorf("after ten good seconds: %+v %+v", r.Failures, r.Stats)
	}
}

func TestACallThatFailedIsRepeatedUnderTheSameIDAndAtOnceAfterAGap(t *testing.T) {
	n, now := 0, time.Unix(0, 0)
	p := pool.New(pool.DefaultLimits(), func(environment.ID) string { n++; return fmt.Sprint("1-", n) })
	p.Want(1, pool.Spec{Size: 1, Settings: "a"}, now)
	for i := range 6 {
		actions, _ := p.Plan(now)
		if len(actions) != 1 || actions[0].ID != "1-1" || actions[0].Kind != pool.Create {
			t.Fatalf("try %d: %v", i, actions)
		}
		p.Registered("1-1", 0, errors.New("no answer"), now)
		_, next := p.Plan(now)
		if i < 5 {
			now = next
		}
	}
	if r, _ := p.Report(1, true, now); r.Failures.Count != 6 || r.Failures.Reason != "no answer" || r.Runners[0].Reason != "no answer" {
		t.Errorf("got %+v", r)
	}
	p.List(nil, 1, now) // the cluster answers again
	if actions, _ := p.Plan(now); len(actions) != 1 || actions[0].ID != "1-1" {
		t.Errorf("after the gap: %v", actions)
	}
}
