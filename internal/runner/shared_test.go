package runner_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/environment"
	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/runner"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/pool"
)

// others is what a manager is told of the other gateways.
type others struct {
	mu      sync.Mutex
	leads   bool
	alive   map[string]bool
	come    string        // a gateway that lives and is not known before one looks
	idle    time.Duration // since the last use through another
	err     error
	asked   int
	expired []string
}

func (o *others) set(f func()) { o.mu.Lock(); f(); o.mu.Unlock() }

func (o *others) Self() string { return "self" }

func (o *others) Leading() bool { o.mu.Lock(); defer o.mu.Unlock(); return o.leads }

func (o *others) Alive(id string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return id == "self" || o.alive[id]
}

func (o *others) Lives(_ context.Context, id string) (bool, error) {
	o.set(func() {
		if id == o.come {
			o.alive[id] = true
		}
	})
	return o.Alive(id), o.err
}

func (o *others) Idle(context.Context, string) (time.Duration, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked++
	return o.idle, o.err
}

func (o *others) Expire(_ context.Context, id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.expired = append(o.expired, id)
}

// among runs a manager that shares its cluster, with environment 1 of the given size.
func among(t *testing.T, size uint, o *others, find func(context.Context, string) (runner.Seen, bool, error),
	test func(t *testing.T, m *runner.Manager, c *cluster)) {
	amongWith(t, size, o, find, nil, test)
}

func amongWith(t *testing.T, size uint, o *others, find func(context.Context, string) (runner.Seen, bool, error), keys runner.Keys,
	test func(t *testing.T, m *runner.Manager, c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{there: map[string]runner.Seen{}}
		m := runner.NewManager(c, runner.Options{Limits: pool.DefaultLimits(), Shared: &runner.Shared{Others: o, Find: find, Keys: keys}}, logging.Discard())
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := m.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		m.Want(environment.Environment{ID: 1, PoolSize: size, Image: "host"})
		m.Regroup()
		test(t, m, c)
		cancel()
		wg.Wait()
		c.tasks.Wait()
	})
}

// agreements are keys as a cluster keeps them. change is called before each write.
type agreements struct {
	c      *cluster
	mu     sync.Mutex
	index  uint64
	byKey  map[string]runner.Agreed
	change func()
	err    error
}

func (a *agreements) Agreed(_ context.Context, key string) (runner.Agreed, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.byKey[key], a.err
}

func (a *agreements) Agree(_ context.Context, key string, v runner.Agreed) (uint64, bool, error) {
	if f := a.change; f != nil {
		a.change = nil
		f()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil || a.byKey[key].Index != v.Index {
		return 0, false, a.err
	}
	a.put(key, v)
	return a.index, true, nil
}

func (a *agreements) put(key string, v runner.Agreed) {
	a.index++
	v.Index = a.index
	a.byKey[key] = v
}

func (a *agreements) Standing(_ context.Context, id string) (bool, runner.Mark, bool, error) {
	a.c.mu.Lock()
	defer a.c.mu.Unlock()
	s, ok := a.c.there[id]
	return s.Used, s.Mark, ok, nil
}

// What another gateway may have made of a key, and what a claim under it then comes to.
func TestAKeyThatAnotherGatewayHasToo(t *testing.T) {
	const request = "1/60"
	for name, c := range map[string]struct {
		prepare func(a *agreements, theirs string) // theirs is the id of an idle runner
		after   func(a *agreements, theirs string) // a second later
		same    bool                               // theirs is got
		within  time.Duration
		text    string // of the error; "" = none
	}{
		"nothing": {prepare: func(*agreements, string) {}, within: time.Millisecond},
		"it was claimed": {same: true, within: time.Millisecond, prepare: func(a *agreements, id string) {
			a.put("k", runner.Agreed{Runner: id, Request: request, Gateway: "other"})
			a.c.claimFor(id, runner.Mark{Timeout: time.Minute, Key: "k", Request: request, At: time.Now()})
		}},
		"for another request": {text: "Idempotency-Key", prepare: func(a *agreements, id string) {
			a.put("k", runner.Agreed{Runner: id, Request: "2/60", Gateway: "other"})
			a.c.claimFor(id, runner.Mark{Timeout: time.Minute, Key: "k", Request: "2/60", At: time.Now()})
		}},
		"its runner is no more": {within: time.Millisecond, prepare: func(a *agreements, _ string) {
			a.put("k", runner.Agreed{Runner: "1-gone", Request: request, Gateway: "other"})
		}},
		"its runner is somebody else's": {within: time.Millisecond, prepare: func(a *agreements, id string) {
			a.put("k", runner.Agreed{Runner: id, Request: request, Gateway: "other"})
			a.c.claimFor(id, runner.Mark{Timeout: time.Minute})
		}},
		"it is claiming": {same: true, within: 2 * time.Second, prepare: func(a *agreements, id string) {
			a.put("k", runner.Agreed{Runner: id, Request: request, Gateway: "other"})
		}, after: func(a *agreements, id string) {
			a.c.claimFor(id, runner.Mark{Timeout: time.Minute, Key: "k", Request: request, At: time.Now()})
		}},
		"it has come a moment ago": {same: true, within: 2 * time.Second, prepare: func(a *agreements, id string) {
			a.put("k", runner.Agreed{Runner: id, Request: request, Gateway: "new"})
		}, after: func(a *agreements, id string) {
			a.c.claimFor(id, runner.Mark{Timeout: time.Minute, Key: "k", Request: request, At: time.Now()})
		}},
		"it does not get on": {within: 13 * time.Second, prepare: func(a *agreements, id string) {
			a.put("k", runner.Agreed{Runner: id, Request: request, Gateway: "other"})
		}},
		"it has died": {within: time.Millisecond, prepare: func(a *agreements, id string) {
			a.put("k", runner.Agreed{Runner: id, Request: request, Gateway: "dead"})
		}},
		"it was faster by a moment": {same: true, within: time.Millisecond, prepare: func(a *agreements, id string) {
			a.change = func() {
				a.put("k", runner.Agreed{Runner: id, Request: request, Gateway: "other"})
				a.c.claimFor(id, runner.Mark{Timeout: time.Minute, Key: "k", Request: request, At: time.Now()})
			}
		}},
		"nobody knows": {text: "cannot be reached", prepare: func(a *agreements, _ string) {
			a.err = fault.New(fault.Unavailable, "the cluster cannot be reached")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			o := &others{idle: -1, leads: true, alive: map[string]bool{"other": true}, come: "new"}
			var a *agreements
			find := func(_ context.Context, id string) (runner.Seen, bool, error) {
				a.c.mu.Lock()
				defer a.c.mu.Unlock()
				s, ok := a.c.there[id]
				return s, ok && s.Used, nil
			}
			keys := &agreements{byKey: map[string]runner.Agreed{}}
			a = keys
			amongWith(t, 3, o, find, keys, func(t *testing.T, m *runner.Manager, cl *cluster) {
				a.c = cl
				settle(2 * time.Second)
				theirs := cl.lastTaken(t, m)
				c.prepare(a, theirs)
				if c.after != nil {
					time.AfterFunc(time.Second, func() { c.after(a, theirs) })
				}
				began := time.Now()
				r, err := m.Claim(t.Context(), runner.Claim{Env: 1, Timeout: time.Minute, Key: "k"})
				if c.text != "" {
					if err == nil || !strings.Contains(err.Error(), c.text) {
						t.Fatalf("got %v, %v", r, err)
					}
					if n := m.Stats(1); n.Idle+n.Used != 3 || n.Removing != 0 {
						t.Errorf("a refusal has cost a runner: %+v", n)
					}
					return
				}
				if err != nil || (r.ID == theirs) != c.same || time.Since(began) > c.within {
					t.Fatalf("got %v, %v after %v; the other's is %s", r, err, time.Since(began), theirs)
				}
				if now, _ := a.Agreed(t.Context(), "k"); now.Runner != r.ID {
					t.Errorf("the key stands for %s", now.Runner)
				}
				again, err := m.Claim(t.Context(), runner.Claim{Env: 1, Timeout: time.Minute, Key: "k"})
				if err != nil || again.ID != r.ID {
					t.Errorf("again: %v, %v", again, err)
				}
				settle(5 * time.Second)
				if used := m.Stats(1).Used; used != 1 && name != "its runner is somebody else's" {
					t.Errorf("%d are used", used)
				}
			})
		})
	}
}

// claimFor marks a runner as another gateway does, whose event is late.
func (c *cluster) claimFor(id string, mark runner.Mark) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.there[id]
	s.Used, s.Mark, s.Gateway = true, mark, "other"
	c.there[id] = s
}

// lastTaken is the idle runner that this gateway would claim last.
func (c *cluster) lastTaken(t *testing.T, m *runner.Manager) string {
	t.Helper()
	report, _ := m.Report(1, true)
	if len(report.Runners) < 2 {
		t.Fatalf("there are %d runners", len(report.Runners))
	}
	return slices.MaxFunc(report.Runners, func(a, b pool.Runner) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID)) }).ID
}

// foreign is a runner that another gateway claimed.
func foreign(id, gateway string, timeout time.Duration) runner.Seen {
	e := environment.Environment{ID: 1, Image: "host"}
	return runner.Seen{Observed: pool.Observed{ID: id, Env: 1, Settings: e.Settings(), State: pool.Ready, Used: true},
		Place: execution.Place{AllocID: id}, Mark: runner.Mark{Timeout: timeout}, Gateway: gateway}
}

func (c *cluster) put(s runner.Seen) {
	c.mu.Lock()
	c.there[s.ID] = s
	c.mu.Unlock()
	c.feed.Changed(s)
}

func (c *cluster) count() int { c.mu.Lock(); defer c.mu.Unlock(); return len(c.there) }

func TestOnlyTheOneThatLeadsKeepsThePools(t *testing.T) {
	o := &others{idle: -1}
	among(t, 2, o, nil, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(time.Minute)
		if n := c.count(); n != 0 {
			t.Fatalf("it created %d runners without leading", n)
		}
		before := c.listed()
		o.set(func() { o.leads = true })
		m.Regroup()
		settle(2 * time.Second)
		if n := c.count(); n != 2 || c.listed() != before+1 {
			t.Fatalf("leading, it has %d runners after %d more listings", n, c.listed()-before)
		}
		o.set(func() { o.leads = false })
		m.Regroup()
		r, err := m.Claim(t.Context(), runner.Claim{Env: 1}) // all hand out
		if err != nil {
			t.Fatal(err)
		}
		m.Want(environment.Environment{ID: 1, PoolSize: 0, Image: "host"})
		settle(time.Minute)
		if n := c.count(); n != 2 {
			t.Errorf("the one that does not lead changed the pool: %d", n)
		}
		if err := m.Destroy(t.Context(), r, execution.ErrDeleted); err != nil || c.has(r.ID) { // what is used goes through any
			t.Errorf("destroyed: %v", err)
		}
	})
}

// The timer of a runner is that of the gateway that claimed it and, when that is dead, of the one that leads.
func TestWhoWatchesOverARunner(t *testing.T) {
	const timeout = 10 * time.Second
	for name, c := range map[string]struct {
		gateway string
		leads   bool
		alive   bool
		gone    bool
	}{
		"its own":                             {"self", false, false, true},
		"of one that lives":                   {"other", true, true, false},
		"of one that died":                    {"other", true, false, true},
		"of one that died, another leads":     {"other", false, false, false},
		"of one that does not say, as leader": {"", true, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			o := &others{idle: -1, leads: c.leads, alive: map[string]bool{"other": c.alive}}
			among(t, 0, o, nil, func(t *testing.T, m *runner.Manager, cl *cluster) {
				settle(time.Second)
				cl.put(foreign("1-a", c.gateway, timeout))
				settle(timeout - time.Second)
				if !cl.has("1-a") {
					t.Fatal("it went too early")
				}
				settle(2 * time.Second)
				if cl.has("1-a") == c.gone {
					t.Errorf("it is gone: %v", c.gone)
				}
				if c.gateway != "other" || c.gone {
					return
				}
				// Now the other dies, and this one leads: from now on the full time.
				o.set(func() { o.leads = true; o.alive = nil })
				m.Regroup()
				settle(timeout - time.Second)
				if !cl.has("1-a") {
					t.Error("taken over, it had less than its time")
				}
				settle(2 * time.Second)
				if cl.has("1-a") {
					t.Error("it lives for ever because its gateway died")
				}
			})
		})
	}
}

func TestUseElsewhereKeepsARunnerAlive(t *testing.T) {
	const timeout = 10 * time.Second
	o := &others{idle: 4 * time.Second, leads: true}
	among(t, 1, o, nil, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(2 * time.Second)
		r, err := m.Claim(t.Context(), runner.Claim{Env: 1, Timeout: timeout})
		if err != nil {
			t.Fatal(err)
		}
		ctx, unbind := r.Bind(t.Context())
		defer unbind()
		settle(timeout + time.Millisecond) // asked: it was used 4 s ago
		o.set(func() { o.idle = timeout })
		settle(5 * time.Second)
		if ctx.Err() != nil {
			t.Fatal("it ended although it was used through another gateway")
		}
		settle(2 * time.Second)
		if !errors.Is(context.Cause(ctx), execution.ErrInactive) || c.has(r.ID) {
			t.Errorf("unused everywhere it goes on: %v", context.Cause(ctx))
		}
		if len(o.expired) != 1 || o.asked != 2 {
			t.Errorf("the others were asked %d times, and told of %v", o.asked, o.expired)
		}
	})
}

// A gateway that lives and does not answer keeps a runner alive, but not for ever.
func TestSilenceIsNoAnswer(t *testing.T) {
	const timeout = 10 * time.Second
	o := &others{idle: -1, err: errors.New("no answer"), leads: true}
	among(t, 1, o, nil, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(2 * time.Second)
		r, err := m.Claim(t.Context(), runner.Claim{Env: 1, Timeout: timeout})
		if err != nil {
			t.Fatal(err)
		}
		settle(timeout + 9*time.Minute)
		if !c.has(r.ID) {
			t.Fatal("it went although somebody may be using it")
		}
		settle(2 * time.Minute)
		if c.has(r.ID) {
			t.Error("it stays for ever")
		}
	})
}

func TestARunnerThatIsNotKnownIsLookedUpOnce(t *testing.T) {
	const unknown = "1-0c9f8fd2-c5ff-11f0-8de9-0242ac120002"
	var calls atomic.Int64
	var there atomic.Bool
	hold := make(chan struct{}, 1)
	o := &others{idle: -1, alive: map[string]bool{"other": true}}
	find := func(_ context.Context, id string) (runner.Seen, bool, error) {
		calls.Add(1)
		select {
		case hold <- struct{}{}: // the first waits
			time.Sleep(100 * time.Millisecond)
		default:
		}
		return foreign(id, "other", time.Minute), there.Load(), nil
	}
	among(t, 0, o, find, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(time.Second)
		there.Store(true)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if r, err := m.Find(t.Context(), unknown); err != nil || r.ID != unknown {
					t.Errorf("got %v %v", r, err)
				}
			})
		}
		wg.Wait()
		if n := calls.Load(); n != 1 {
			t.Errorf("%d questions for one runner", n)
		}
		if s := m.Stats(1); s.Used != 1 {
			t.Errorf("the pool says %+v", s)
		}
		// Strangers: each id once a second, and all together at a bounded rate.
		there.Store(false)
		calls.Store(0)
		began := time.Now()
		refused := 0
		var mu sync.Mutex
		for i := range 1000 {
			wg.Go(func() {
				_, err := m.Find(t.Context(), fmt.Sprintf("1-%08x-c5ff-11f0-8de9-0242ac120002", i))
				mu.Lock()
				defer mu.Unlock()
				if fault.Is(err, fault.Unavailable) {
					refused++
				} else if !fault.Is(err, fault.Gone) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n, d := calls.Load(), time.Since(began); n > 350 || refused != 1000-int(n) {
			t.Errorf("%d questions in %v, %d refused", n, d, refused)
		}
	})
}

// What cannot be a runner's id is refused without a question, however long it is.
func TestWhatIsNoRunnerIDIsNotAskedFor(t *testing.T) {
	const uuid = "0c9f8fd2-c5ff-11f0-8de9-0242ac120002"
	var calls atomic.Int64
	find := func(context.Context, string) (runner.Seen, bool, error) {
		calls.Add(1)
		return runner.Seen{}, false, nil
	}
	among(t, 0, &others{idle: -1}, find, func(t *testing.T, m *runner.Manager, _ *cluster) {
		settle(time.Second)
		for _, id := range []string{"", "1", "1-", "-" + uuid, "x-" + uuid, "+1-" + uuid, "1-" + uuid + "x", "1--" + uuid, "1-{" + uuid + "}", "template-1",
			uuid, "1-" + strings.Repeat("a", 60<<10), strings.Repeat("0", 60<<10) + "1-" + uuid, "99999999999999999999-" + uuid} {
			if _, err := m.Find(t.Context(), id); !fault.Is(err, fault.Gone) {
				t.Errorf("%.60q: %v", id, err)
			}
		}
		if n := calls.Load(); n != 0 {
			t.Errorf("%d questions", n)
		}
		if _, err := m.Find(t.Context(), "1-"+uuid); !fault.Is(err, fault.Gone) || calls.Load() != 1 {
			t.Errorf("a possible one: %v after %d questions", err, calls.Load())
		}
	})
}

// Questions that wait for their turn end with the gateway and are not asked.
func TestQuestionsEndWithTheGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		find := func(context.Context, string) (runner.Seen, bool, error) {
			calls.Add(1)
			return runner.Seen{}, false, nil
		}
		c := &cluster{there: map[string]runner.Seen{}}
		shared := &runner.Shared{Others: &others{idle: -1}, Find: find}
		m := runner.NewManager(c, runner.Options{Limits: pool.DefaultLimits(), Shared: shared}, logging.Discard())
		ctx, cancel := context.WithCancel(t.Context())
		var wg, asking sync.WaitGroup
		wg.Go(func() { _ = m.Run(ctx) })
		settle(time.Second)
		var stopped atomic.Int64
		for i := range 250 { // 100 are asked at once, the others wait for up to 1.5 s
			asking.Go(func() {
				if _, err := m.Find(context.Background(), fmt.Sprintf("1-%08x-c5ff-11f0-8de9-0242ac120002", i)); fault.Is(err, fault.Unavailable) {
					stopped.Add(1)
				}
			})
		}
		settle(0)
		asked, began := calls.Load(), time.Now()
		cancel()
		wg.Wait()
		asking.Wait()
		if d := time.Since(began); d > 0 || calls.Load() != asked || stopped.Load() != 250-asked {
			t.Errorf("stopping took %v, %d more were asked, %d of %d were told so", d, calls.Load()-asked, stopped.Load(), 250-asked)
		}
		c.tasks.Wait()
	})
}

// News of a runner's end that overtakes the answer to a question is the last word.
func TestAnAnswerDoesNotReviveWhatIsGone(t *testing.T) {
	const asked = "1-0c9f8fd2-c5ff-11f0-8de9-0242ac120002"
	o := &others{idle: -1, alive: map[string]bool{"other": true}}
	find := func(_ context.Context, id string) (runner.Seen, bool, error) {
		time.Sleep(time.Second)
		return foreign(id, "other", time.Minute), true, nil
	}
	among(t, 0, o, find, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(time.Second)
		time.AfterFunc(500*time.Millisecond, func() { c.feed.Gone(asked) })
		if _, err := m.Find(t.Context(), asked); !fault.Is(err, fault.Gone) {
			t.Errorf("got %v", err)
		}
	})
}

// The news that another gateway won may come while this one still tries.
func TestAClaimThatAnotherWon(t *testing.T) {
	o := &others{idle: -1, leads: true, alive: map[string]bool{"other": true}}
	among(t, 1, o, nil, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(2 * time.Second)
		c.claim = func(id string) error {
			c.mu.Unlock()
			c.put(foreign(id, "other", time.Minute))
			c.mu.Lock()
			return runner.ErrClaimLost
		}
		if _, err := m.Claim(t.Context(), runner.Claim{Env: 1}); !fault.Is(err, fault.Exhausted) {
			t.Fatalf("got %v", err)
		}
		if _, err := m.Lookup(c.claims[0]); err != nil {
			t.Errorf("the other's runner is not known: %v", err)
		}
	})
}
