package runner_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/runner"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/pool"
)

// asked is what came of a claim.
type asked struct {
	r    *runner.Runner
	err  error
	took time.Duration
}

// ask claims in the background.
func ask(ctx context.Context, m *runner.Manager, c runner.Claim) <-chan asked {
	done := make(chan asked, 1)
	began := time.Now()
	go func() {
		r, err := m.Claim(ctx, c)
		done <- asked{r, err, time.Since(began)}
	}()
	return done
}

func hold(c *cluster, held bool) {
	c.mu.Lock()
	c.held = held
	c.mu.Unlock()
}

// ready has one runner that was held become ready.
func (c *cluster) ready() string {
	c.mu.Lock()
	var ids []string
	for id, s := range c.there {
		if s.State == pool.Pending {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	s := c.there[ids[0]]
	s.State = pool.Ready
	c.there[s.ID] = s
	c.mu.Unlock()
	c.feed.Changed(s)
	return s.ID
}

func TestClaimsWaitInTheOrderInWhichTheyCame(t *testing.T) {
	with(t, 1, runner.Options{MaxWait: time.Minute}, func(t *testing.T, m *runner.Manager, c *cluster) {
		hold(c, true)
		settle(2 * time.Second)
		var line []<-chan asked
		for range 5 {
			line = append(line, ask(t.Context(), m, runner.Claim{Env: 1, Wait: time.Hour}))
			settle(100 * time.Millisecond)
		}
		if r, _ := m.Report(1, false); r.Waiting != 5 || r.Longest != 500*time.Millisecond {
			t.Errorf("%d wait, the first for %v", r.Waiting, r.Longest)
		}
		// Who does not wait does not pass those who do.
		_, err := m.Claim(t.Context(), runner.Claim{Env: 1})
		if busy, ok := errors.AsType[*runner.Busy](err); !ok || busy.Position != 6 || busy.Waiting != 5 || !fault.Is(err, fault.Exhausted) {
			t.Errorf("got %+v", err)
		}
		for i, w := range line {
			if len(w) > 0 {
				t.Fatalf("claim %d was served before its turn", i)
			}
			id := c.ready()
			settle(time.Second)
			if got := <-w; got.err != nil || got.r.ID != id {
				t.Fatalf("claim %d got %+v, want %s", i, got, id)
			}
		}
		if r, _ := m.Report(1, false); r.Waiting != 0 || r.Hits.Claims != 6 || r.Hits.Served != 0 {
			t.Errorf("got %+v", r.Hits)
		}
	})
}

func TestWhoLeavesTheLineFreesThePlace(t *testing.T) {
	with(t, 1, runner.Options{MaxWait: time.Minute}, func(t *testing.T, m *runner.Manager, c *cluster) {
		hold(c, true)
		settle(2 * time.Second)
		ctx, leave := context.WithCancel(t.Context())
		first := ask(ctx, m, runner.Claim{Env: 1, Wait: time.Minute})
		settle(time.Second)
		short := ask(t.Context(), m, runner.Claim{Env: 1, Wait: 5 * time.Second})
		settle(time.Second)
		last := ask(t.Context(), m, runner.Claim{Env: 1, Wait: time.Minute})
		settle(time.Second)
		leave()
		settle(0)
		if got := <-first; !fault.Is(got.err, fault.Unavailable) {
			t.Errorf("who left got %+v", got)
		}
		settle(4 * time.Second)
		got := <-short
		if busy, ok := errors.AsType[*runner.Busy](got.err); !ok || busy.Position != 1 || busy.Waiting != 1 || busy.Expected <= 0 || got.took != 5*time.Second {
			t.Errorf("who waited five seconds got %+v", got)
		}
		id := c.ready()
		settle(time.Second)
		if got := <-last; got.err != nil || got.r.ID != id {
			t.Errorf("the last got %+v, want %s", got, id)
		}
	})
}

func TestAWaitIsBoundedByTheConfiguration(t *testing.T) {
	with(t, 1, runner.Options{MaxWait: 3 * time.Second}, func(t *testing.T, m *runner.Manager, c *cluster) {
		hold(c, true)
		settle(2 * time.Second)
		if got := <-ask(t.Context(), m, runner.Claim{Env: 1, Wait: time.Hour}); got.took != 3*time.Second || !fault.Is(got.err, fault.Exhausted) {
			t.Errorf("got %+v", got)
		}
		if got := <-ask(t.Context(), m, runner.Claim{Env: 1}); got.took != 0 {
			t.Errorf("who did not ask to wait waited %v", got.took)
		}
	})
}

func TestADeletedEnvironmentSendsThoseWhoWaitAway(t *testing.T) {
	with(t, 1, runner.Options{MaxWait: time.Minute}, func(t *testing.T, m *runner.Manager, c *cluster) {
		hold(c, true)
		settle(2 * time.Second)
		w := ask(t.Context(), m, runner.Claim{Env: 1, Wait: time.Minute})
		settle(time.Second)
		if err := m.Drop(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if got := <-w; !fault.Is(got.err, fault.NotFound) {
			t.Errorf("got %+v", got)
		}
	})
}

func TestARunnerThatIsFreedGoesToWhoWaitsForTheLimit(t *testing.T) {
	with(t, 2, runner.Options{MaxWait: time.Minute, Limits: pool.Limits{Used: 1}}, func(t *testing.T, m *runner.Manager, _ *cluster) {
		settle(2 * time.Second)
		r, err := m.Claim(t.Context(), runner.Claim{Env: 1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Claim(t.Context(), runner.Claim{Env: 1}); !fault.Is(err, fault.Exhausted) || !strings.Contains(fault.Public(err), "as many used runners as it may have (1)") {
			t.Errorf("got %v", err)
		}
		w := ask(t.Context(), m, runner.Claim{Env: 1, Wait: time.Minute})
		settle(time.Second)
		if err := m.Destroy(t.Context(), r, execution.ErrDeleted); err != nil {
			t.Fatal(err)
		}
		settle(0)
		if got := <-w; got.err != nil || got.took != time.Second {
			t.Errorf("got %+v", got)
		}
	})
}

func TestAnIdleRunnerThatIsGoneIsPassedOver(t *testing.T) {
	with(t, 2, runner.Options{}, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(2 * time.Second)
		c.mu.Lock()
		var ids []string
		for id := range c.there {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		delete(c.there, ids[0]) // the event has not come yet
		c.mu.Unlock()
		for i := range 2 {
			got := <-ask(t.Context(), m, runner.Claim{Env: 1})
			switch {
			case got.err == nil && got.r.ID != ids[1]:
				t.Errorf("claim %d got %s, which is gone", i, got.r.ID)
			case got.err != nil && !fault.Is(got.err, fault.Exhausted):
				t.Errorf("claim %d: %v", i, got.err)
			}
		}
		settle(3 * time.Second)
		if s := m.Stats(1); s.Idle != 2 || s.Used != 1 {
			t.Errorf("afterwards: %+v", s)
		}
	})
}

func TestAClusterOutOfReachLosesAndDoublesNobody(t *testing.T) {
	with(t, 3, runner.Options{}, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(2 * time.Second)
		away := fault.New(fault.Unavailable, "the cluster cannot be reached")
		c.mu.Lock()
		c.claim, c.destroy, c.create = func(string) error { return away }, func(string) error { return away }, away
		c.mu.Unlock()
		for range 3 {
			if _, err := m.Claim(t.Context(), runner.Claim{Env: 1}); !fault.Is(err, fault.Unavailable) {
				t.Errorf("got %v", err)
			}
		}
		if _, err := m.Claim(t.Context(), runner.Claim{Env: 1}); !fault.Is(err, fault.Exhausted) {
			t.Errorf("the fourth: %v", err)
		}
		settle(10 * time.Minute)
		r, _ := m.Report(1, true)
		if r.Failures.Count == 0 || !strings.Contains(r.Failures.Reason, "cannot be reached") || r.Idle != 0 {
			t.Errorf("while it is away: %+v %+v", r.Failures, r.Stats)
		}
		c.mu.Lock()
		c.claim, c.destroy, c.create = nil, nil, nil
		unclear := slices.Clone(c.claims)
		c.mu.Unlock()
		settle(3 * time.Minute)
		if s := m.Stats(1); s.Idle != 3 || s.Used != 0 || s.Removing != 0 {
			t.Errorf("when it is back: %+v", s)
		}
		for _, id := range unclear {
			if c.has(id) {
				t.Errorf("%s, whose claim is not clear, is still there", id)
			}
		}
	})
}

func TestOneKeyIsOneClaim(t *testing.T) {
	with(t, 3, runner.Options{MaxWait: time.Minute}, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(2 * time.Second)
		claim := runner.Claim{Env: 1, Timeout: time.Minute, Key: "k"}
		var mu sync.Mutex
		got := map[string]int{}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				r, err := m.Claim(t.Context(), claim)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
					return
				}
				got[r.ID]++
			})
		}
		wg.Wait()
		if len(got) != 1 || len(c.claims) != 1 {
			t.Fatalf("%d claims of %v", len(c.claims), got)
		}
		other := claim
		other.Timeout = time.Hour
		if _, err := m.Claim(t.Context(), other); !fault.Is(err, fault.Invalid) || !strings.Contains(fault.Public(err), "Idempotency-Key") {
			t.Errorf("another request under the key: %v", err)
		}
		// It is the same runner as long as it lives, and not a moment longer.
		r, err := m.Claim(t.Context(), claim)
		if err != nil || got[r.ID] != 20 {
			t.Fatalf("again: %v %v", r, err)
		}
		if err := m.Destroy(t.Context(), r, execution.ErrDeleted); err != nil {
			t.Fatal(err)
		}
		next, err := m.Claim(t.Context(), claim)
		if err != nil || next.ID == r.ID {
			t.Fatalf("after its end: %v %v", next, err)
		}
	})
}

// A claim that breaks down leaves neither its key nor its runner behind, and nobody who waits for it takes that for a success.
func TestAClaimThatBreaksDownLeavesNothing(t *testing.T) {
	with(t, 2, runner.Options{MaxWait: time.Minute}, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(2 * time.Second)
		claim := runner.Claim{Env: 1, Key: "k", By: runner.Holder{Owner: "o", Quota: 1}}
		release := make(chan struct{})
		c.mu.Lock()
		c.claim = func(string) error {
			c.mu.Unlock()
			<-release
			c.mu.Lock()
			panic("broken")
		}
		c.mu.Unlock()
		broken := make(chan any, 1)
		var wg sync.WaitGroup
		wg.Go(func() {
			defer func() { broken <- recover() }()
			_, _ = m.Claim(t.Context(), claim)
		})
		settle(0)
		waits := ask(t.Context(), m, claim)
		settle(0)
		close(release)
		settle(0)
		if p := <-broken; p != "broken" {
			t.Fatalf("it ended with %v", p)
		}
		if got := <-waits; got.err == nil || got.r != nil {
			t.Errorf("who waited for it got %+v", got)
		}
		c.mu.Lock()
		taken := c.claims[0]
		c.claim = nil
		c.mu.Unlock()
		settle(5 * time.Second)
		if c.has(taken) {
			t.Error("its runner is still there")
		}
		r, err := m.Claim(t.Context(), claim)
		if err != nil || r.ID == taken {
			t.Errorf("again: %+v, %v", r, err)
		}
		wg.Wait()
	})
}

func TestAClaimUnderAKeySurvivesWhoBeganIt(t *testing.T) {
	with(t, 1, runner.Options{MaxWait: time.Minute}, func(t *testing.T, m *runner.Manager, c *cluster) {
		hold(c, true)
		settle(2 * time.Second)
		claim := runner.Claim{Env: 1, Wait: time.Minute, Key: "k"}
		ctx, leave := context.WithCancel(t.Context())
		first := ask(ctx, m, claim)
		settle(time.Second)
		second := ask(t.Context(), m, claim)
		settle(time.Second)
		if r, _ := m.Report(1, false); r.Waiting != 1 {
			t.Errorf("%d claims wait for one key", r.Waiting)
		}
		leave()
		settle(time.Second)
		if got := <-first; got.err == nil {
			t.Error("who left got a runner")
		}
		id := c.ready()
		settle(time.Second)
		if got := <-second; got.err != nil || got.r.ID != id {
			t.Errorf("the second got %+v, want %s", got, id)
		}
	})
}

func TestKeysAndTimersSurviveARestart(t *testing.T) {
	with(t, 2, runner.Options{}, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(2 * time.Second)
		claim := runner.Claim{Env: 1, Timeout: 100 * time.Second, Key: "k"}
		r, err := m.Claim(t.Context(), claim)
		if err != nil {
			t.Fatal(err)
		}
		forever, err := m.Claim(t.Context(), runner.Claim{Env: 1})
		if err != nil {
			t.Fatal(err)
		}
		settle(90 * time.Second)
		// Another process takes the cluster over as it is; this one no longer looks.
		c.mu.Lock()
		there := map[string]runner.Seen{}
		for id, s := range c.there {
			there[id] = s
		}
		c.mu.Unlock()
		next := &cluster{there: there, index: c.index}
		run(t, next, 2, runner.Options{}, func(m *runner.Manager) {
			<-m.Ready()
			again, err := m.Claim(t.Context(), claim)
			if err != nil || again.ID != r.ID {
				t.Fatalf("got %v %v, want %s", again, err, r.ID)
			}
			ctx, unbind := again.Bind(t.Context())
			defer unbind()
			settle(99 * time.Second)
			if ctx.Err() != nil {
				t.Error("it did not get its full time anew")
			}
			settle(time.Second)
			if !errors.Is(context.Cause(ctx), execution.ErrInactive) || next.has(r.ID) {
				t.Errorf("after its time: %v", context.Cause(ctx))
			}
			settle(24 * time.Hour)
			if _, err := m.Lookup(forever.ID); err != nil {
				t.Errorf("one without a timeout: %v", err)
			}
		})
		next.tasks.Wait()
	})
}

func TestAKeyIsForgottenAfterADay(t *testing.T) {
	with(t, 1, runner.Options{}, func(t *testing.T, m *runner.Manager, _ *cluster) {
		settle(2 * time.Second)
		claim := runner.Claim{Env: 1, Key: "k"}
		r, err := m.Claim(t.Context(), claim)
		if err != nil {
			t.Fatal(err)
		}
		settle(23 * time.Hour)
		if same, err := m.Claim(t.Context(), claim); err != nil || same != r {
			t.Errorf("after 23 hours: %v %v", same, err)
		}
		settle(2 * time.Hour)
		if other, err := m.Claim(t.Context(), claim); err != nil || other == r {
			t.Errorf("after 25 hours: %v %v", other, err)
		}
	})
}

func TestTheLineIsBounded(t *testing.T) {
	with(t, 1, runner.Options{MaxWait: time.Minute}, func(t *testing.T, m *runner.Manager, c *cluster) {
		hold(c, true)
		settle(2 * time.Second)
		refused := 0
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 1010 {
			wg.Go(func() {
				began := time.Now()
				_, err := m.Claim(t.Context(), runner.Claim{Env: 1, Wait: time.Minute})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					t.Error("it got a runner")
				}
				if time.Since(began) == 0 {
					refused++
				}
			})
		}
		wg.Wait()
		if refused != 10 {
			t.Errorf("%d were refused at once, want 10", refused)
		}
	})
}

func TestWhatBecameOfAClaimIsTold(t *testing.T) {
	var told []string
	o := runner.Options{MaxWait: time.Minute, Claimed: func(env int, outcome string, _ time.Duration) { told = append(told, fmt.Sprint(env, " ", outcome)) }}
	with(t, 1, o, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(2 * time.Second)
		alice := runner.Holder{Owner: "alice", Quota: 2}
		for _, x := range []struct {
			claim runner.Claim
			want  string
			fails bool
		}{
			{runner.Claim{Env: 1, Key: "k", By: alice}, "1 hit", false},
			{runner.Claim{Env: 1, By: alice, Wait: time.Minute}, "1 waited", false}, // its replacement is starting
			{runner.Claim{Env: 1, By: alice}, "1 quota", true},
			{runner.Claim{Env: 1, Key: "k", By: alice}, "1 repeated", false}, // which takes no place of the quota
			{runner.Claim{Env: 1}, "1 empty", true},
			{runner.Claim{Env: 9}, "9 unknown", true},
		} {
			r, err := m.Claim(t.Context(), x.claim)
			if got := told[len(told)-1]; got != x.want || (err != nil) != x.fails || (err == nil && r.Owner != x.claim.By.Owner) {
				t.Errorf("got %s and %v, want %s", got, err, x.want)
			}
		}
		c.claim = func(string) error { return fault.New(fault.Unavailable, "no answer") }
		settle(time.Minute)
		if _, err := m.Claim(t.Context(), runner.Claim{Env: 1}); err == nil || told[len(told)-1] != "1 failed" {
			t.Errorf("got %v and %v", told, err)
		}
		if r, _ := m.Report(1, false); r.Hits.Claims != 4 || r.Hits.Served != 2 {
			t.Errorf("the pool counted %+v", r.Hits)
		}
	})
}
