package plan

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// late is a log that says of an entry that it took too long, and applies it when it is asked for all that is on it. deaf lets that fail.
type late struct {
	*straight
	held any
	deaf bool
}

func (l *late) Apply(ctx context.Context, entry any) (any, uint64, error) {
	if l.held != nil || l.index > 1 {
		return l.straight.Apply(ctx, entry)
	}
	l.held = entry
	return nil, 0, context.DeadlineExceeded
}

func (l *late) Barrier(ctx context.Context) error {
	if l.deaf {
		return errors.New("no answer")
	}
	if l.held != nil {
		_, _, err := l.straight.Apply(ctx, l.held)
		l.held = nil
		return err
	}
	return nil
}

// An entry that was not seen to be applied may be: its room is given to nobody before that is known.
func TestAnEntryOfUnknownOutcomeIsAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &late{straight: &straight{store: world(t, ready("n1")), index: 1}, deaf: true}
		a := New(log.store, log)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = a.Run(ctx) })
		submit := func(id string) (Result, error) {
			return a.Submit(ctx, &state.Placement{
				Namespace: "default", JobID: "j", JobCreateIndex: 1, JobModifyIndex: 1, Place: []*model.Allocation{placed("j", id, "n1", 60)}})
		}
		if _, err := submit("first"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the first plan came to %v", err)
		}
		if r, err := submit("meanwhile"); !fault.Is(err, fault.Unavailable) {
			t.Errorf("while nobody knows, the next came to %+v, %v", r, err)
		}
		synctest.Wait()
		log.deaf = false
		if r, err := submit("second"); err != nil || !r.Partial || len(r.Place) != 0 {
			t.Errorf("the second came to %+v, %v", r, err)
		}
		if snap := log.store.Snapshot(); snap.Alloc(nil, "first") == nil || snap.Alloc(nil, "second") != nil || snap.Usage("n1").CPU != 60 {
			t.Errorf("the node holds %+v", snap.Usage("n1"))
		}
		cancel()
		wg.Wait()
	})
}

// Whoever lost something is looked at again even if the leader ends right after the plan.
func TestWhoIsEvictedIsLookedAtAgain(t *testing.T) {
	for _, c := range []struct {
		name                 string
		encode               func(any) ([]byte, error)
		size                 int
		refused              bool
		entries, evaluations int
	}{
		{"in the plan's entry", command.Encode, 80, false, 1, 1},
		{"after it, where a server knows no batches", func(any) ([]byte, error) { return nil, errors.New("an old server") }, 80, false, 2, 1},
		{"not where the plan does not fit", command.Encode, 101, true, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &straight{store: world(t, ready("n1")), index: 2}
				apply(t, log.store, 2, &state.Placement{JobID: "all", Place: []*model.Allocation{placed("all", "low", "n1", 80)}})
				a := New(log.store, log)
				a.Encode = c.encode
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				wg.Go(func() { _ = a.Run(ctx) })
				r, err := a.Submit(ctx, &state.Placement{
					Namespace: "default", JobID: "j", JobCreateIndex: 1, JobModifyIndex: 1, Place: []*model.Allocation{placed("j", "high", "n1", c.size)},
					Stop: []state.Stop{{AllocID: "low", Desired: model.DesiredEvict, PreemptedBy: "high"}},
				}, &model.Evaluation{ID: "again", Namespace: "default", JobID: "all", Status: model.EvalPending})
				if err != nil || r.Partial != c.refused || (len(r.Stop) == 1) == c.refused {
					t.Errorf("it came to %+v, %v", r, err)
				}
				evaluations := 0
				for e := range log.store.Snapshot().Evals(nil, "") {
					if evaluations++; e.JobID != "all" || c.entries == 1 && e.CreateIndex != r.Index {
						t.Errorf("there is %+v", e)
					}
				}
				if len(log.entries) != c.entries || evaluations != c.evaluations {
					t.Errorf("%d entries made %d evaluations", len(log.entries), evaluations)
				}
				cancel()
				wg.Wait()
			})
		})
	}
}
