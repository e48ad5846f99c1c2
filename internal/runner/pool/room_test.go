package pool_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rockpool/internal/environment"
	"rockpool/internal/runner/pool"
)

// rack is a cluster with so many devices, of which each runner takes one. What finds none waits, and is placed as soon as there is one.
type rack struct {
	pools   *pool.Pools
	now     time.Time
	devices int
	jobs    []*pool.Observed // in the order of their registration
	created int
	most    int // that waited at a time
	// order says who is looked at, and told, first; nil = the oldest. few says whether only the first who has news is told, before the pools plan again.
	order func([]*pool.Observed) []*pool.Observed
	few   func() bool
}

func newRack(devices int) *rack {
	r := &rack{now: time.Unix(1000, 0), devices: devices}
	n := 0
	r.pools = pool.New(pool.DefaultLimits(), func(id environment.ID) string { n++; return fmt.Sprintf("%d-%05d", id, n) })
	return r
}

func (r *rack) want(size int, settings string) {
	r.pools.Want(1, pool.Spec{Size: size, Scarce: true, Settings: settings}, r.now)
}

// settle lets everything happen that follows of itself.
func (r *rack) settle() {
	for {
		actions, _ := r.pools.Plan(r.now)
		for _, a := range actions {
			i := slices.IndexFunc(r.jobs, func(o *pool.Observed) bool { return o.ID == a.ID })
			if a.Kind == pool.Destroy {
				r.jobs = slices.Delete(r.jobs, i, i+1)
				r.pools.Destroyed(a.ID, false, nil, r.now)
				r.pools.Gone(a.ID, r.now)
				continue
			}
			r.created++
			s, _ := r.pools.Report(1, false, r.now)
			r.jobs = append(r.jobs, &pool.Observed{ID: a.ID, Env: 1, Settings: s.Spec.Settings})
			r.pools.Registered(a.ID, uint64(r.created), nil, r.now)
		}
		if news := r.place(); len(actions) == 0 && !news {
			return
		}
	}
}

// place gives devices to who waits.
func (r *rack) place() (news bool) {
	free, waiting := r.devices, 0
	for _, o := range r.jobs {
		if o.Placed {
			free--
		}
	}
	jobs := r.jobs
	if r.order != nil {
		jobs = r.order(slices.Clone(jobs))
	}
	for _, o := range jobs {
		before := *o
		switch {
		case o.Placed:
			o.State = pool.Ready
		case free > 0:
			free--
			o.Placed, o.NoRoom, o.Reason = true, false, ""
		default:
			waiting++
			o.NoRoom, o.Reason = true, "devices: all are taken"
		}
		if *o != before {
			r.pools.Observe(*o, r.now)
			news = true
			if r.few != nil && r.few() {
				return true
			}
		}
	}
	r.most = max(r.most, waiting)
	return news
}

// fail takes devices away, with who has them.
func (r *rack) fail(n int) {
	r.devices -= n
	held := 0
	r.jobs = slices.DeleteFunc(r.jobs, func(o *pool.Observed) bool {
		if o.Placed {
			held++
		}
		if !o.Placed || held <= r.devices {
			return false
		}
		r.pools.Gone(o.ID, r.now)
		return true
	})
}

func (r *rack) expect(t *testing.T, what string, idle, possible int) {
	t.Helper()
	r.settle()
	rep, _ := r.pools.Report(1, false, r.now)
	if possible < 0 {
		if rep.Idle != idle || rep.Shortage != nil {
			t.Errorf("%s: %d idle and %+v, want %d and no shortage", what, rep.Idle, rep.Shortage, idle)
		}
		return
	}
	if rep.Idle != idle || rep.Starting != 1 || rep.Shortage == nil || rep.Shortage.Possible != possible || rep.Shortage.Reason == "" {
		t.Errorf("%s: %d idle, %d starting, %+v; want %d idle, one that waits, and %d possible", what, rep.Idle, rep.Starting, rep.Shortage, idle, possible)
	}
}

func TestAPoolIsBoundedByTheDevicesThereAre(t *testing.T) {
	r := newRack(4)
	r.want(10, "a")
	r.expect(t, "a pool of 10 with 4 devices", 4, 4)
	created := r.created
	for range 100 {
		r.now = r.now.Add(time.Minute)
		r.pools.Touch()
		r.settle()
	}
	if r.created != created {
		t.Errorf("%d runners were created in vain while nothing changed", r.created-created)
	}
	if why, words := r.pools.Why(1); why != pool.NoRoom || words == "" {
		t.Errorf("a claim is refused for %v %q", why, words)
	}
	if d := r.pools.Expected(1, 1, r.now); d != 0 {
		t.Errorf("a claim is told to wait for %v, which nobody knows", d)
	}
	r.devices = 7
	r.expect(t, "a node joined", 7, 7)
	r.fail(5)
	r.expect(t, "nodes left", 2, 2)
	r.devices = 12
	r.expect(t, "there are enough", 10, -1)
	r.fail(12)
	r.expect(t, "all left", 0, 0)
	r.devices = 3
	r.expect(t, "some are back", 3, 3)
	id, _ := r.pools.Take(1, r.now)
	r.pools.Claimed(id, r.now)
	r.expect(t, "one is used", 2, 3)
	r.pools.Discard(id, r.now)
	r.expect(t, "and given back", 3, 3)
	r.want(2, "a")
	r.expect(t, "fewer are wanted", 2, -1)
}

func TestAScarcePoolFillsInFewRoundsAndAsksForLittleMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newRack(rapid.IntRange(0, 200).Draw(t, "devices"))
		size := rapid.IntRange(0, 200).Draw(t, "size")
		r.want(size, "a")
		r.settle()
		rep, _ := r.pools.Report(1, false, r.now)
		if rep.Idle != min(size, r.devices) || (rep.Shortage != nil) != (size > r.devices) {
			t.Fatalf("%d devices, a pool of %d: %d idle, %+v", r.devices, size, rep.Idle, rep.Shortage)
		}
		if r.most > r.devices+1 {
			t.Fatalf("%d waited at a time for %d devices", r.most, r.devices)
		}
	})
}

// Whoever gets the place that an old runner left, and whoever is told first: the next one leaves without waiting.
func TestAScarcePoolRollsInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newRack(rapid.IntRange(1, 6).Draw(t, "devices"))
		size := rapid.IntRange(1, 8).Draw(t, "size")
		r.want(size, "a")
		r.settle()
		r.order = func(list []*pool.Observed) []*pool.Observed { return rapid.Permutation(list).Draw(t, "order") }
		r.few = func() bool { return rapid.Bool().Draw(t, "one") }
		r.want(size, "b")
		r.settle()
		rep, _ := r.pools.Report(1, true, r.now)
		for _, x := range rep.Runners {
			if !x.Current {
				t.Fatalf("%+v of %d devices for %d: %+v", x, r.devices, size, rep.Runners)
			}
		}
		if rep.Idle != min(size, r.devices) {
			t.Fatalf("%d are idle with %d devices for %d", rep.Idle, r.devices, size)
		}
	})
}

func TestAScarcePoolRollsWithinTheDevicesThereAre(t *testing.T) {
	r := newRack(4)
	r.want(4, "a")
	r.expect(t, "the first definition", 4, -1)
	r.want(4, "b")
	for range 20 { // no time passes: nobody waits for a runner that is known to wait itself
		r.settle()
	}
	rep, _ := r.pools.Report(1, true, r.now)
	for _, x := range rep.Runners {
		if !x.Current || x.Phase != pool.Idle {
			t.Errorf("%+v", x)
		}
	}
	if len(rep.Runners) != 4 {
		t.Errorf("%d runners, want 4", len(rep.Runners))
	}
}
