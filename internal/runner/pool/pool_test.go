package pool_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rockpool/internal/environment"
	"rockpool/internal/runner/pool"
)

// model is the naive truth: which jobs the cluster has, and who was handed out.
type model struct {
	pools  *pool.Pools
	now    time.Time
	index  uint64
	jobs   map[string]*pool.Observed
	calls  []pool.Action
	given  map[string]bool
	size   map[environment.ID]int
	conf   map[environment.ID]string
	nextID int
}

func (m *model) plan(t *rapid.T) {
	actions, _ := m.pools.Plan(m.now)
	m.calls = append(m.calls, actions...)
	if len(m.calls) > 4 {
		t.Fatalf("%d calls under way", len(m.calls))
	}
	for id, size := range m.size {
		fresh := 0
		for _, r := range m.pools.Runners(id) {
			if ph, _ := m.pools.Phase(r); ph <= pool.Idle {
				fresh++
			}
		}
		stale := 0
		for _, j := range m.jobs {
			if ph, ok := m.pools.Phase(j.ID); ok && j.Env == id && ph == pool.Idle && j.Settings != m.conf[id] {
				stale++
			}
		}
		if fresh-stale > size {
			t.Fatalf("environment %d: %d runners for a size of %d", id, fresh-stale, size)
		}
	}
}

func (m *model) finish(t *rapid.T, i int, fail bool) {
	a := m.calls[i]
	m.calls = append(m.calls[:i], m.calls[i+1:]...)
	m.index++
	var err error
	if fail {
		err = errors.New("the call failed")
	}
	done := !fail || rapid.Bool().Draw(t, "it happened all the same")
	switch a.Kind {
	case pool.Create:
		if _, there := m.jobs[a.ID]; done && !there {
			m.jobs[a.ID] = &pool.Observed{ID: a.ID, Env: a.Env, Settings: m.conf[a.Env]}
		}
		m.pools.Registered(a.ID, m.index, err, m.now)
	case pool.Destroy:
		if j := m.jobs[a.ID]; a.Guard && j != nil && j.Used {
			m.pools.Destroyed(a.ID, true, nil, m.now)
			return
		}
		if done {
			if j := m.jobs[a.ID]; j != nil && j.Used && a.Guard {
				t.Fatalf("a runner in use was removed as surplus")
			}
			delete(m.jobs, a.ID)
		}
		m.pools.Destroyed(a.ID, false, err, m.now)
	}
}

func TestPoolsAgainstANaiveModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{now: time.Unix(0, 0), jobs: map[string]*pool.Observed{}, given: map[string]bool{},
			size: map[environment.ID]int{}, conf: map[environment.ID]string{}}
		m.pools = pool.New(pool.Limits{Concurrency: 4, Backoff: func(int) time.Duration { return time.Second }, Patience: 30 * time.Second},
			func(id environment.ID) string { m.nextID++; return fmt.Sprintf("%d-%05d", id, m.nextID) })
		envs := rapid.SampledFrom([]environment.ID{1, 2})
		list := func() {
			var all []pool.Observed
			for _, j := range m.jobs {
				all = append(all, *j)
			}
			m.pools.List(all, m.index, m.now)
			m.plan(t)
		}
		t.Repeat(map[string]func(*rapid.T){
			"want": func(t *rapid.T) {
				id := envs.Draw(t, "env")
				m.size[id] = rapid.IntRange(0, 6).Draw(t, "size")
				m.conf[id] = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "settings")
				m.pools.Want(id, pool.Spec{Size: m.size[id], Settings: m.conf[id]}, m.now)
				m.plan(t)
			},
			"answer": func(t *rapid.T) {
				if len(m.calls) == 0 {
					t.Skip()
				}
				m.finish(t, rapid.IntRange(0, len(m.calls)-1).Draw(t, "call"), rapid.Bool().Draw(t, "fail"))
				m.plan(t)
			},
			"become ready or end": func(t *rapid.T) {
				for _, j := range m.jobs {
					j.State = rapid.SampledFrom([]pool.State{pool.Ready, pool.Ready, pool.Ready, pool.Ended}).Draw(t, "state")
					m.pools.Observe(*j, m.now)
					break
				}
				m.plan(t)
			},
			"take": func(t *rapid.T) {
				id, ok := m.pools.Take(envs.Draw(t, "env"), m.now)
				if !ok {
					t.Skip()
				}
				if m.given[id] {
					t.Fatalf("%s was handed out twice", id)
				}
				m.given[id] = true
				if j := m.jobs[id]; j != nil && rapid.Bool().Draw(t, "won") {
					j.Used = true
					m.pools.Claimed(id, m.now)
				} else {
					m.pools.Discard(id, m.now)
				}
				m.plan(t)
			},
			"another gateway claims": func(t *rapid.T) {
				for _, j := range m.jobs {
					j.Used = true
					break
				}
			},
			"list": func(t *rapid.T) { list() },
			"wait": func(t *rapid.T) { m.now = m.now.Add(time.Minute); m.plan(t) },
		})

		// Once calls succeed and events come, every pool reaches its size and holds nothing else.
		for range 40 {
			for len(m.calls) > 0 {
				m.finish(t, 0, false)
			}
			for _, j := range m.jobs {
				if j.State == pool.Pending {
					j.State = pool.Ready
				}
			}
			m.now = m.now.Add(2 * time.Minute)
			list()
		}
		for id, size := range m.size {
			if s := m.pools.Stats(id); s.Idle != size || s.Starting != 0 {
				t.Fatalf("environment %d settled at %+v, want %d idle", id, s, size)
			}
		}
		idle := 0
		for _, j := range m.jobs {
			if !j.Used {
				idle++
			}
		}
		if want := m.size[1] + m.size[2]; idle != want {
			t.Fatalf("the cluster has %d unused runners, want %d", idle, want)
		}
	})
}

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
