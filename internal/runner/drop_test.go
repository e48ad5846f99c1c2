package runner_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"rockpool/internal/environment"
	"rockpool/internal/runner"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/pool"
)

// Deleting an environment takes as long for thousands of runners as for as many as can be removed in that time: the rest go after the answer. Used ones are first, and
// none is removed twice.
func TestAnEnvironmentOfAnySizeIsDeletedInTime(t *testing.T) {
	for _, c := range []struct {
		name    string
		size    uint
		removal time.Duration
		within  time.Duration
		left    bool
	}{
		{"few", 40, 100 * time.Millisecond, time.Second, false},
		{"many", 1500, 600 * time.Millisecond, 10 * time.Second, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			with(t, c.size, runner.Options{}, func(t *testing.T, m *runner.Manager, cl *cluster) {
				settle(time.Minute)
				var used []string
				for range 3 {
					r, err := m.Claim(t.Context(), runner.Claim{Env: 1})
					if err != nil {
						t.Fatal(err)
					}
					used = append(used, r.ID)
				}
				settle(time.Minute)
				unseen := "1-unseen"
				cl.mu.Lock()
				cl.removal = c.removal
				cl.there[unseen] = runner.Seen{Observed: pool.Observed{ID: unseen, Env: 1}}
				cl.mu.Unlock()
				begun := time.Now()
				if err := m.Drop(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begun); took > c.within {
					t.Errorf("answered after %s", took)
				}
				for _, id := range used {
					if _, err := m.Lookup(id); err == nil || cl.has(id) {
						t.Errorf("the used runner %s is still there", id)
					}
				}
				if left := len(mustRunners(t, cl)) > 0; left != c.left {
					t.Errorf("runners are left: %t", left)
				}
				settle(2 * time.Minute)
				if left := mustRunners(t, cl); len(left) > 0 {
					t.Errorf("%d runners stay", len(left))
				}
				slices.Sort(cl.removals)
				if twice := len(cl.removals) - len(slices.Compact(cl.removals)); twice > 32 { // those that were under way on both sides
					t.Errorf("%d runners were removed twice", twice)
				}
			})
		})
	}
}

func mustRunners(t *testing.T, c *cluster) []string {
	t.Helper()
	ids, err := c.RunnersOf(t.Context(), environment.ID(1))
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// A cluster that removes nothing is an error, and so is one that refuses.
func TestADeletionThatRemovesNothingFails(t *testing.T) {
	refused := errors.New("refused")
	for _, c := range []struct {
		name    string
		removal time.Duration
		destroy error
	}{{"it does not answer", time.Hour, nil}, {"it refuses", 0, refused}} {
		t.Run(c.name, func(t *testing.T) {
			with(t, 20, runner.Options{}, func(t *testing.T, m *runner.Manager, cl *cluster) {
				settle(time.Minute)
				cl.mu.Lock()
				cl.removal, cl.destroy = c.removal, func(string) error { return c.destroy }
				cl.mu.Unlock()
				if err := m.Drop(t.Context(), 1); err == nil || c.destroy != nil && !errors.Is(err, c.destroy) {
					t.Errorf("%v", err)
				}
				cl.mu.Lock()
				cl.removal, cl.destroy = 0, nil
				cl.mu.Unlock()
				settle(3 * time.Minute)
				if left := mustRunners(t, cl); len(left) > 0 {
					t.Errorf("%d runners stay although the cluster works again", len(left))
				}
			})
		})
	}
}

// A runner whose removal failed is not known any more, also when the news of its claim comes only while it is being removed.
func TestTheNewsOfAClaimDoNotReviveWhatIsBeingRemoved(t *testing.T) {
	for _, refused := range []error{nil, errors.New("refused")} {
		with(t, 1, runner.Options{}, func(t *testing.T, m *runner.Manager, c *cluster) {
			settle(time.Minute)
			r, err := m.Claim(t.Context(), runner.Claim{Env: 1})
			if err != nil {
				t.Fatal(err)
			}
			told := false
			c.mu.Lock()
			news := c.there[r.ID]
			news.Used = true
			c.destroy = func(id string) error {
				if id == r.ID && !told {
					told = true
					c.feed.Changed(news)
				}
				return refused
			}
			c.mu.Unlock()
			if err := m.Destroy(t.Context(), r, execution.ErrDeleted); !errors.Is(err, refused) || !told {
				t.Errorf("%v, told %t", err, told)
			}
			if _, err := m.Lookup(r.ID); err == nil {
				t.Errorf("it is known again, where the cluster answered %v", refused)
			}
			c.mu.Lock()
			c.destroy = nil
			c.mu.Unlock()
		})
	}
}
