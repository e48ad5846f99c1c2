package runner_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
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

// cluster starts every runner a second after it was created.
type cluster struct {
	mu       sync.Mutex
	feed     runner.Feed
	there    map[string]runner.Seen
	index    uint64
	listings int
	claim    func(id string) error // nil = it works
	destroy  func(id string) error
	create   error
	removal  time.Duration // that one takes
	removals []string      // in the order in which they were done
	defined  bool          // there is a definition of every environment
	asked    int           // for orphans
	held     bool          // nothing new becomes ready
	room     int           // for so many runners; 0 = for all
	claims   []string
	tasks    sync.WaitGroup
}

func (c *cluster) Watch(ctx context.Context, f runner.Feed) error {
	c.mu.Lock()
	c.feed = f
	c.listings++
	var all []runner.Seen
	for _, s := range c.there {
		all = append(all, s)
	}
	index := c.index
	c.mu.Unlock()
	f.All(all, index)
	<-ctx.Done()
	return nil
}

func (c *cluster) CreateRunner(_ context.Context, e environment.Environment, id string, _ bool) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.create != nil {
		return 0, c.create
	}
	c.index++
	s := runner.Seen{Observed: pool.Observed{ID: id, Env: e.ID, Settings: e.Settings()}, Place: execution.Place{AllocID: id}}
	c.there[id] = s
	c.tasks.Go(func() {
		time.Sleep(time.Second)
		c.mu.Lock()
		if _, ok := c.there[id]; !ok || c.held {
			c.mu.Unlock()
			return
		}
		ready := 0
		for _, o := range c.there {
			if o.State == pool.Ready {
				ready++
			}
		}
		if c.room > 0 && ready >= c.room {
			s.NoRoom, s.Reason = true, "all devices are in use"
		} else {
			s.State = pool.Ready
		}
		c.there[id] = s
		c.mu.Unlock()
		c.feed.Changed(s)
	})
	return c.index, nil
}

func (c *cluster) ClaimRunner(_ context.Context, id string, m runner.Mark) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.claims = append(c.claims, id)
	if c.claim != nil {
		return c.claim(id)
	}
	s, ok := c.there[id]
	if !ok {
		return fmt.Errorf("%w: %w", runner.ErrClaimLost, fault.New(fault.NotFound, "no such job"))
	}
	s.Used, s.Mark = true, m
	c.there[id] = s
	return nil
}

func (c *cluster) DestroyRunner(ctx context.Context, id string) error {
	c.mu.Lock()
	takes := c.removal
	c.mu.Unlock()
	if takes > 0 {
		select {
		case <-time.After(takes):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removals = append(c.removals, id)
	if c.destroy != nil {
		if err := c.destroy(id); err != nil {
			return err
		}
	}
	delete(c.there, id)
	return nil
}

func (c *cluster) RunnersOf(_ context.Context, env environment.ID) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []string
	for id, s := range c.there {
		if s.Env == env {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func (c *cluster) Orphans(_ context.Context, _ environment.ID, runners []string) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if c.defined {
		return nil, nil
	}
	return runners, nil
}

func (c *cluster) has(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.there[id]
	return ok
}

func (c *cluster) listed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.listings
}

// with runs a manager with environment 1 of the given size in a bubble.
func with(t *testing.T, size uint, o runner.Options, test func(t *testing.T, m *runner.Manager, c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{there: map[string]runner.Seen{}}
		run(t, c, size, o, func(m *runner.Manager) { test(t, m, c) })
		c.tasks.Wait()
	})
}

// run runs a manager on a cluster as long as f lasts.
func run(t *testing.T, c *cluster, size uint, o runner.Options, f func(m *runner.Manager)) {
	used := o.Limits.Used
	o.Limits = pool.DefaultLimits()
	o.Limits.Used = used
	m := runner.NewManager(c, o, logging.Discard())
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	m.Want(environment.Environment{ID: 1, PoolSize: size, Image: "host"})
	f(m)
	cancel()
	wg.Wait()
}

func settle(d time.Duration) { time.Sleep(d); synctest.Wait() }

func TestARunnerExpiresUnlessItIsTouched(t *testing.T) {
	with(t, 1, runner.Options{}, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(2 * time.Second)
		r, err := m.Claim(t.Context(), runner.Claim{Env: 1, Timeout: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		ctx, unbind := r.Bind(t.Context())
		defer unbind()
		for range 3 {
			settle(9 * time.Second)
			r.Touch()
		}
		if ctx.Err() != nil {
			t.Fatal("it expired although it was used")
		}
		settle(10 * time.Second)
		if !errors.Is(context.Cause(ctx), execution.ErrInactive) || c.has(r.ID) {
			t.Errorf("after its timeout: %v, still there: %v", context.Cause(ctx), c.has(r.ID))
		}
		if _, err := m.Lookup(r.ID); !fault.Is(err, fault.Gone) {
			t.Errorf("its lookup: %v", err)
		}
		late, stop := r.Bind(t.Context())
		defer stop()
		if !errors.Is(context.Cause(late), execution.ErrInactive) {
			t.Error("what is bound afterwards does not end")
		}
	})
}

func TestAnUnknownOutcomeOfAClaimDestroysTheRunner(t *testing.T) {
	with(t, 1, runner.Options{}, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(2 * time.Second)
		c.claim = func(string) error { return fault.New(fault.Unavailable, "no answer") }
		if _, err := m.Claim(t.Context(), runner.Claim{Env: 1}); !fault.Is(err, fault.Unavailable) {
			t.Fatalf("got %v", err)
		}
		settle(2 * time.Second)
		if c.has(c.claims[0]) {
			t.Error("it is still there")
		}
		if s := m.Stats(1); s.Idle != 1 || s.Used != 0 {
			t.Errorf("got %+v", s)
		}
	})
}

func TestALostClaimTakesTheNext(t *testing.T) {
	with(t, 2, runner.Options{}, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(2 * time.Second)
		first := true
		c.claim = func(string) error {
			if first {
				first = false
				return fmt.Errorf("%w: too late", runner.ErrClaimLost)
			}
			return nil
		}
		r, err := m.Claim(t.Context(), runner.Claim{Env: 1})
		if err != nil || r.ID != c.claims[1] || c.claims[0] == c.claims[1] {
			t.Fatalf("got %v %v after %v", r, err, c.claims)
		}
		if !c.has(c.claims[0]) {
			t.Error("somebody else's runner was destroyed")
		}
	})
}

func TestAClaimWaitsNoLongerThanItMay(t *testing.T) {
	with(t, 1, runner.Options{ClaimWait: 500 * time.Millisecond}, func(t *testing.T, m *runner.Manager, _ *cluster) {
		synctest.Wait()
		began := time.Now()
		if _, err := m.Claim(t.Context(), runner.Claim{Env: 1}); !fault.Is(err, fault.Exhausted) || time.Since(began) != 500*time.Millisecond {
			t.Errorf("got %v after %v", err, time.Since(began))
		}
	})
}

func TestWhatCannotBeDestroyedIsTriedAgain(t *testing.T) {
	with(t, 1, runner.Options{}, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(2 * time.Second)
		r, err := m.Claim(t.Context(), runner.Claim{Env: 1})
		if err != nil {
			t.Fatal(err)
		}
		tries := 0
		c.destroy = func(string) error {
			if tries++; tries < 4 {
				return errors.New("not now")
			}
			return nil
		}
		if err := m.Destroy(t.Context(), r, execution.ErrDeleted); err == nil {
			t.Fatal("the failure was not told")
		}
		settle(time.Minute)
		if c.has(r.ID) || tries != 4 {
			t.Errorf("still there: %v after %d tries", c.has(r.ID), tries)
		}
	})
}

func TestASurplusRunnerThatWasTakenButNotRemovedIsNotLeftBehind(t *testing.T) {
	with(t, 2, runner.Options{}, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(2 * time.Second)
		failures := 3
		c.mu.Lock()
		c.claim = nil
		c.destroy = func(string) error {
			if failures--; failures >= 0 {
				return errors.New("not now")
			}
			return nil
		}
		c.mu.Unlock()
		m.Want(environment.Environment{ID: 1, PoolSize: 0, Image: "host"})
		settle(time.Minute)
		c.mu.Lock()
		left := len(c.there)
		c.mu.Unlock()
		if s := m.Stats(1); left != 0 || s.Used != 0 || s.Idle != 0 || s.Removing != 0 {
			t.Errorf("%d are left, %+v", left, s)
		}
	})
}

func TestAPoolThatTheClusterHasNoRoomForIsNotListedOverAndOver(t *testing.T) {
	with(t, 0, runner.Options{ReloadBelow: 0.9, ReloadAfter: time.Minute}, func(t *testing.T, m *runner.Manager, c *cluster) {
		c.mu.Lock()
		c.room = 3
		c.mu.Unlock()
		m.Want(environment.Environment{ID: 1, PoolSize: 10, Image: "host", Devices: []environment.Device{{Name: "gpu", Count: 1}}})
		settle(10 * time.Minute)
		if s := m.Stats(1); s.Idle != 3 || s.Size != 10 || !s.Short || s.Possible != 3 || c.listed() != 1 {
			t.Errorf("%+v after %d listings", s, c.listed())
		}
		for range 3 {
			if _, err := m.Claim(t.Context(), runner.Claim{Env: 1}); err != nil {
				t.Fatal(err)
			}
		}
		_, err := m.Claim(t.Context(), runner.Claim{Env: 1})
		if busy, ok := errors.AsType[*runner.Busy](err); !ok || busy.Expected != 0 || !strings.Contains(err.Error(), "the cluster has no room for more (all devices are in use)") {
			t.Errorf("a claim beyond what there is: %v", err)
		}
	})
}

func TestAPoolThatStaysShortIsComparedWithTheCluster(t *testing.T) {
	with(t, 2, runner.Options{ReloadBelow: 0.9, ReloadAfter: time.Minute}, func(t *testing.T, m *runner.Manager, c *cluster) {
		settle(2 * time.Second)
		c.mu.Lock()
		c.create = errors.New("no more")
		c.mu.Unlock()
		r, err := m.Claim(t.Context(), runner.Claim{Env: 1})
		if err != nil {
			t.Fatal(err)
		}
		m.Discard(r, execution.ErrGone)
		settle(30 * time.Second)
		if n := c.listed(); n != 1 {
			t.Errorf("%d listings before the time", n)
		}
		settle(31 * time.Second)
		if n := c.listed(); n != 2 {
			t.Errorf("%d listings after it", n)
		}
	})
}
