package pool_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rockpool/internal/environment"
	"rockpool/internal/runner/pool"
)

// model is the naive truth: which jobs the cluster has, what it has told of them, and who was handed out.
type model struct {
	pools   *pool.Pools
	limits  pool.Limits
	now     time.Time
	index   uint64
	jobs    map[string]*pool.Observed
	calls   []pool.Action
	events  []event
	late    []pool.Observed // creations that nobody knows of yet
	own     map[string]bool // jobs that exist because a call for them was made in time
	given   map[string]bool // won by a claim of ours
	doomed  map[string]bool // of an environment that was deleted
	ended   map[string]bool // the pools were told of their end
	spec    map[environment.ID]pool.Spec
	nextID  int
	follows bool // another gateway leads
}

// event is news of one runner; gone = it was purged.
type event struct {
	o    pool.Observed
	gone bool
	at   time.Time
}

func newModel(t *rapid.T) *model {
	m := &model{
		now: time.Unix(1000, 0), jobs: map[string]*pool.Observed{}, own: map[string]bool{}, given: map[string]bool{}, ended: map[string]bool{}, doomed: map[string]bool{},
		spec: map[environment.ID]pool.Spec{},
	}
	m.limits = pool.Limits{
		Concurrency: 4, Backoff: func(n int) time.Duration { return min(time.Second<<min(n-1, 10), time.Minute) }, Patience: 30 * time.Second,
		Runners: rapid.SampledFrom([]int{0, 0, 3, 8}).Draw(t, "limit of all"), Used: rapid.SampledFrom([]int{0, 0, 2}).Draw(t, "limit of used"),
	}
	m.pools = pool.New(m.limits, func(id environment.ID) string { m.nextID++; return fmt.Sprintf("%d-%05d", id, m.nextID) })
	return m
}

func (m *model) tell(j *pool.Observed, gone bool) {
	m.index++
	m.events = append(m.events, event{*j, gone, m.now})
}

func (m *model) ids(keep func(*pool.Observed) bool) []string {
	var ids []string
	for id, j := range m.jobs {
		if keep(j) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// with does something to a job that is drawn, if there is any.
func (m *model) with(t *rapid.T, keep func(*pool.Observed) bool, do func(*pool.Observed)) {
	if ids := m.ids(keep); len(ids) > 0 {
		do(m.jobs[rapid.SampledFrom(ids).Draw(t, "job")])
	}
}

// plan asks for actions and holds what must hold at every step.
func (m *model) plan(t *rapid.T) {
	actions, next := m.pools.Plan(m.now)
	if !next.IsZero() && !next.After(m.now) {
		t.Fatalf("the next plan is due at %v, which is not after now", next)
	}
	for _, a := range actions {
		if a.Kind == pool.Destroy && !a.Guard {
			if j := m.jobs[a.ID]; j != nil && j.Used && !m.given[a.ID] && !m.ended[a.ID] && !m.doomed[a.ID] {
				t.Fatalf("%s is somebody else's and is removed without asking", a.ID)
			}
		}
		if a.Kind == pool.Create && (m.given[a.ID] || m.ended[a.ID]) {
			t.Fatalf("%s is created after its end", a.ID)
		}
	}
	m.calls = append(m.calls, actions...)
	if len(m.calls) > m.limits.Concurrency {
		t.Fatalf("%d calls under way", len(m.calls))
	}
	if err := m.pools.Check(); err != nil {
		t.Fatal(err)
	}
	if l := m.limits.Runners; l > 0 {
		var mine []string
		for id := range m.own {
			if m.jobs[id] != nil {
				mine = append(mine, id)
			}
		}
		for _, c := range m.calls {
			if c.Kind == pool.Create && m.jobs[c.ID] == nil {
				mine = append(mine, c.ID)
			}
		}
		if len(mine) > l {
			for i, id := range mine {
				ph, ok := m.pools.Phase(id)
				mine[i] = fmt.Sprint(id, " ", ph, " ", ok)
			}
			t.Fatalf("%d runners exist or are being created, the limit is %d: %q, calls %v", len(mine), l, mine, m.calls)
		}
	}
	for id, s := range m.spec {
		st := m.pools.Stats(id)
		if s.Max > 0 && (st.Size < s.Min || st.Size > s.Max) {
			t.Fatalf("environment %d: size %d is not between %d and %d", id, st.Size, s.Min, s.Max)
		}
		current := 0
		r, _ := m.pools.Report(id, true, m.now)
		for _, x := range r.Runners {
			if x.Current && x.Phase <= pool.Idle {
				current++
			}
		}
		if current > st.Size && !m.follows {
			t.Fatalf("environment %d: %d runners for a size of %d", id, current, st.Size)
		}
	}
	for id := range m.given {
		if ph, ok := m.pools.Phase(id); ok && ph <= pool.Claiming {
			t.Fatalf("%s was handed out and is %v again", id, ph)
		}
	}
	for id := range m.ended {
		if ph, ok := m.pools.Phase(id); ok && !ph.Ended() && !(ph == pool.Used && !m.given[id]) {
			t.Fatalf("%s has ended and is %v", id, ph)
		}
	}
}

func (m *model) dropped(id environment.ID) bool { _, ok := m.spec[id]; return !ok }

func (m *model) finish(t *rapid.T, i int) {
	a := m.calls[i]
	m.calls = slices.Delete(m.calls, i, i+1)
	outcome := rapid.SampledFrom([]string{"ok", "ok", "ok", "failed", "late", "unheard"}).Draw(t, "outcome")
	m.answer(t, a, outcome)
}

// answer ends a call: it worked, it failed, it failed and happens later, or it worked and the answer was lost.
func (m *model) answer(t *rapid.T, a pool.Action, outcome string) {
	var err error
	if outcome != "ok" {
		err = errors.New("the call failed")
	}
	j := m.jobs[a.ID]
	if a.Kind == pool.Create {
		o := pool.Observed{ID: a.ID, Env: a.Env, Settings: m.spec[a.Env].Settings}
		switch {
		case outcome == "late":
			m.late = append(m.late, o)
		case j == nil && outcome != "failed":
			m.jobs[a.ID] = &o
			m.own[a.ID] = true
			m.tell(&o, false)
			j = &o
		}
		index := m.index
		if err == nil && rapid.Bool().Draw(t, "it was there already") {
			index = 0
		}
		m.pools.Registered(a.ID, index, err, m.now)
		return
	}
	if a.Guard && j != nil && j.Used {
		m.pools.Destroyed(a.ID, true, nil, m.now)
		return
	}
	if outcome == "ok" || outcome == "unheard" {
		if j != nil {
			delete(m.jobs, a.ID)
			m.tell(j, true)
		}
	} else if a.Guard && j != nil && outcome == "late" {
		j.Used = true // it was taken, but not purged
		m.tell(j, false)
		defer m.pools.Discard(a.ID, m.now)
		m.ended[a.ID] = true
	}
	m.pools.Destroyed(a.ID, false, err, m.now)
}

// deliver hands one event over.
func (m *model) deliver(e event) {
	if e.gone {
		m.pools.Gone(e.o.ID, m.now)
		return
	}
	m.pools.Observe(e.o, m.now)
	if e.o.State == pool.Ended {
		m.ended[e.o.ID] = true
	}
}

func (m *model) list() {
	var all []pool.Observed
	for _, id := range m.ids(func(*pool.Observed) bool { return true }) {
		j := *m.jobs[id]
		all = append(all, j)
		if j.State == pool.Ended {
			m.ended[id] = true
		}
	}
	m.events = nil // what is older than a listing is contained in it
	m.pools.List(all, m.index, m.now)
}

// lead gives the pools to another gateway, or back. Whoever begins to lead lists what there is before.
func (m *model) lead(leads bool) {
	if leads && m.follows {
		m.list()
	}
	m.follows = !leads
	m.pools.Lead(leads)
}

func (m *model) end(j *pool.Observed) {
	j.State, j.Reason = pool.Ended, "it failed"
	m.tell(j, false)
}

func poolsHoldTheirPromises(t *rapid.T) {
	m := newModel(t)
	envs := rapid.SampledFrom([]environment.ID{1, 2, 3})
	alive := func(j *pool.Observed) bool { return j.State != pool.Ended }
	unused := func(j *pool.Observed) bool { return !j.Used && j.State != pool.Ended }
	waits := func(j *pool.Observed) bool { return j.State == pool.Pending && !j.Placed }
	then := func(f func(*rapid.T)) func(*rapid.T) { return func(t *rapid.T) { f(t); m.plan(t) } }
	t.Repeat(map[string]func(*rapid.T){
		"want": then(func(t *rapid.T) {
			s := pool.Spec{Size: rapid.IntRange(0, 6).Draw(t, "size"), Settings: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "settings")}
			if rapid.Bool().Draw(t, "automatic") {
				s.Min, s.Max = s.Size/2, s.Size+2
			}
			s.Scarce = rapid.Bool().Draw(t, "scarce")
			id := envs.Draw(t, "env")
			m.spec[id] = s
			m.pools.Want(id, s, m.now)
		}),
		"roll": then(func(t *rapid.T) { m.pools.Roll(envs.Draw(t, "env")) }),
		"drop": then(func(t *rapid.T) {
			id := envs.Draw(t, "env")
			delete(m.spec, id)
			for rid, j := range m.jobs {
				m.doomed[rid] = m.doomed[rid] || j.Env == id
			}
			for _, o := range m.late {
				m.doomed[o.ID] = m.doomed[o.ID] || o.Env == id
			}
			for _, c := range m.calls {
				m.doomed[c.ID] = m.doomed[c.ID] || c.Env == id
			}
			m.pools.Drop(id, m.now)
			// What was forgotten with the lead, the manager finds in the cluster.
			forgotten := func(o *pool.Observed) bool { _, ok := m.pools.Phase(o.ID); return o.Env == id && !ok }
			for _, rid := range m.ids(forgotten) {
				j := m.jobs[rid]
				delete(m.jobs, rid)
				m.tell(j, true)
			}
			m.late = slices.DeleteFunc(m.late, func(o pool.Observed) bool { return forgotten(&o) })
		}),
		"a call ends": then(func(t *rapid.T) {
			if len(m.calls) > 0 {
				m.finish(t, rapid.IntRange(0, len(m.calls)-1).Draw(t, "call"))
			}
		}),
		"a creation happens late": then(func(t *rapid.T) {
			if len(m.late) == 0 {
				return
			}
			o := m.late[0]
			m.late = m.late[1:]
			if m.jobs[o.ID] == nil {
				m.jobs[o.ID] = &o
				delete(m.own, o.ID) // the limit was reckoned without it
				m.tell(&o, false)
			}
		}),
		"an event comes, in any order": then(func(t *rapid.T) {
			if len(m.events) == 0 {
				return
			}
			i := rapid.IntRange(0, len(m.events)-1).Draw(t, "event")
			m.deliver(m.events[i])
			if !rapid.Bool().Draw(t, "and again") {
				m.events = slices.Delete(m.events, i, i+1)
			}
		}),
		"events are lost": func(t *rapid.T) { m.events = nil },
		"a full listing":  then(func(t *rapid.T) { m.list() }),
		"a restore": then(func(t *rapid.T) {
			m.index /= 2
			for i, id := range m.ids(alive) {
				if i%2 == 0 {
					delete(m.jobs, id) // and nothing tells of it
				}
			}
			m.list()
		}),
		"a runner is able": then(func(t *rapid.T) {
			m.with(t, unused, func(j *pool.Observed) {
				j.State, j.Placed, j.NoRoom = pool.Ready, true, false
				m.tell(j, false)
			})
		}),
		"a place is found": then(func(t *rapid.T) {
			m.with(t, waits, func(j *pool.Observed) { j.Placed, j.NoRoom = true, false; m.tell(j, false) })
		}),
		"there is no room": then(func(t *rapid.T) { m.with(t, waits, func(j *pool.Observed) { j.NoRoom = true; m.tell(j, false) }) }),
		"a runner ends":    then(func(t *rapid.T) { m.with(t, alive, m.end) }),
		"a node is lost": then(func(t *rapid.T) {
			for i, id := range m.ids(alive) {
				if i%2 == 0 {
					m.end(m.jobs[id])
				}
			}
		}),
		"somebody purges": then(func(t *rapid.T) {
			m.with(t, func(*pool.Observed) bool { return true }, func(j *pool.Observed) { delete(m.jobs, j.ID); m.tell(j, true) })
		}),
		"another gateway leads, or no more": then(func(t *rapid.T) { m.lead(rapid.Bool().Draw(t, "leads")) }),
		"another gateway claims":            then(func(t *rapid.T) { m.with(t, unused, func(j *pool.Observed) { j.Used = true; m.tell(j, false) }) }),
		"claim": then(func(t *rapid.T) {
			env := envs.Draw(t, "env")
			before := m.pools.Stats(env).Used
			id, ok := m.pools.Take(env, m.now)
			m.pools.Arrived(env, ok, m.now)
			if !ok {
				return
			}
			if m.limits.Used > 0 && before >= m.limits.Used {
				t.Fatalf("%s was handed out although %d are used", id, before)
			}
			if m.given[id] || m.ended[id] {
				t.Fatalf("%s was handed out twice, or after its end", id)
			}
			j := m.jobs[id]
			switch outcome := rapid.SampledFrom([]string{"won", "won", "unknown", "not tried"}).Draw(t, "outcome"); {
			case outcome == "not tried":
				m.pools.Return(id, m.now)
			case outcome == "unknown":
				if j != nil && rapid.Bool().Draw(t, "it is marked") {
					j.Used = true
				}
				m.ended[id] = true
				m.pools.Discard(id, m.now)
			case j == nil:
				m.pools.Gone(id, m.now)
			case j.Used:
				m.pools.ClaimLost(id, m.now)
			default:
				j.Used = true
				m.given[id] = true
				m.tell(j, false)
				m.pools.Claimed(id, m.now)
			}
		}),
		"a used runner is deleted": then(func(t *rapid.T) {
			m.with(t, func(j *pool.Observed) bool { return m.given[j.ID] }, func(j *pool.Observed) {
				m.pools.Discard(j.ID, m.now)
				m.ended[j.ID] = true
				if rapid.Bool().Draw(t, "at once") {
					delete(m.jobs, j.ID)
					m.tell(j, true)
					m.pools.Removed(j.ID, m.now)
				}
			})
		}),
		"time passes": then(func(t *rapid.T) {
			d := rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, 20 * time.Second, time.Minute}).Draw(t, "time")
			m.now = m.now.Add(d)
			// A feed that is silent for so long is cut, and a listing begins the next.
			m.events = slices.DeleteFunc(m.events, func(e event) bool { return m.now.Sub(e.at) > 90*time.Second })
			if d >= time.Minute { // no call is on its way for so long
				m.late = nil
			}
		}),
	})
	m.quiet(t)
}

// quiet lets calls succeed and events come in order. Every pool reaches its size and holds nothing else, and nothing else is remembered.
func (m *model) quiet(t *rapid.T) {
	m.lead(true)
	for range 60 {
		for len(m.late) > 0 {
			if o := m.late[0]; m.jobs[o.ID] == nil {
				m.jobs[o.ID] = &o
				delete(m.own, o.ID)
			}
			m.late = m.late[1:]
		}
		for len(m.calls) > 0 {
			a := m.calls[0]
			m.calls = m.calls[1:]
			m.answer(t, a, "ok")
		}
		for _, j := range m.jobs {
			if j.State == pool.Pending {
				j.State, j.Placed, j.NoRoom = pool.Ready, true, false
			}
		}
		m.now = m.now.Add(2 * time.Minute)
		m.list()
		m.plan(t)
	}
	// Whoever used a runner is done with it, so that the limits bind as little as they can.
	for _, id := range m.ids(func(j *pool.Observed) bool { return j.Used }) {
		m.pools.Discard(id, m.now)
		m.ended[id] = true
	}
	for range 60 {
		m.plan(t)
		for len(m.calls) > 0 {
			a := m.calls[0]
			m.calls = m.calls[1:]
			m.answer(t, a, "ok")
		}
		for _, j := range m.jobs {
			j.State, j.Placed, j.NoRoom = pool.Ready, true, false
		}
		m.now = m.now.Add(2 * time.Minute)
		m.list()
	}
	m.plan(t)
	idle, want := 0, 0
	for id := range m.spec {
		s := m.pools.Stats(id)
		idle, want = idle+s.Idle, want+s.Size
		if m.limits.Runners == 0 && (s.Idle != s.Size || s.Starting != 0) {
			t.Fatalf("environment %d settled at %+v", id, s)
		}
		if s.Size > 0 && s.Idle == 0 && m.limits.Runners >= len(m.spec) {
			t.Fatalf("environment %d got nothing: %+v", id, s)
		}
	}
	if l := m.limits.Runners; l > 0 {
		want = min(want, l)
	}
	there := m.ids(func(j *pool.Observed) bool { return !j.Used && !m.dropped(j.Env) })
	if idle != want || len(there) != want {
		t.Fatalf("%d are idle and the cluster has %v, want %d", idle, there, want)
	}
	if n, most := m.pools.Entries(), len(m.jobs)+6*3+6; n > most {
		t.Fatalf("%d runners are remembered, %d exist", n, len(m.jobs))
	}
}

func TestPoolsAgainstANaiveModel(t *testing.T) { rapid.Check(t, poolsHoldTheirPromises) }

func FuzzPoolsHoldTheirPromises(f *testing.F) { f.Fuzz(rapid.MakeFuzz(poolsHoldTheirPromises)) }
