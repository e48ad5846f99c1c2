package plan

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// straight applies entries to a store and keeps what they were. hold makes Apply wait.
type straight struct {
	mu      sync.Mutex
	store   *state.Store
	index   uint64
	entries []any
	hold    chan struct{}
}

func (l *straight) Apply(ctx context.Context, entry any) (any, uint64, error) {
	if l.hold != nil {
		select {
		case <-l.hold:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
	data, err := command.Encode(entry)
	if err != nil {
		return nil, 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.index++
	l.entries = append(l.entries, entry)
	r, err := command.Apply(l.store, l.index, data)
	return r, l.index, err
}

func (l *straight) Barrier(ctx context.Context) error { return ctx.Err() }

func registration(t *testing.T, j *model.Job, enforce bool) *Registration {
	t.Helper()
	b, err := command.Encode(&command.JobRegister{Now: 1, Job: j, EnforceIndex: enforce, Eval: &model.Evaluation{
		ID: "e-" + j.ID, Namespace: j.Namespace, JobID: j.ID, Status: model.EvalPending,
	}})
	if err != nil {
		t.Fatal(err)
	}
	return &Registration{Entry: b, Namespace: j.Namespace, JobID: j.ID}
}

func TestPlansAndRegistrationsShareAnEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &straight{store: world(t, ready("n1")), index: 1, hold: make(chan struct{})}
		a := New(log.store, log)
		a.Encode = command.Encode
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = a.Run(ctx) })
		first := &state.Placement{Namespace: "default", JobID: "j", JobCreateIndex: 1, JobModifyIndex: 1, Place: []*model.Allocation{placed("j", "a1", "n1", 30)}}
		var results sync.Map
		submit := func(name string, p *state.Placement) {
			wg.Go(func() {
				r, err := a.Submit(ctx, p)
				results.Store(name, err == nil && len(r.Place) == 1)
			})
			synctest.Wait()
		}
		register := func(name string, j *model.Job, id string, cpu int, enforce bool) {
			wg.Go(func() {
				r, index, taken, err := a.Register(ctx, registration(t, j, enforce),
					&state.Placement{EvalID: "e-" + j.ID, Namespace: "default", JobID: j.ID, Place: []*model.Allocation{placed(j.ID, id, "n1", cpu)}})
				_, ok := r.(*command.Registered)
				results.Store(name, taken && ok && err == nil && index > 1)
				results.Store(name+" refused", fault.Is(err, fault.Conflict))
			})
			synctest.Wait()
		}
		submit("first", first) // is under way while the others gather
		submit("second", &state.Placement{Namespace: "default", JobID: "j", JobCreateIndex: 1, JobModifyIndex: 1, Place: []*model.Allocation{placed("j", "a2", "n1", 10)}})
		register("fits", spec("x", false), "x1", 40, true)
		register("too large", spec("y", false), "y1", 90, false)
		register("there already", spec("j", false), "j1", 1, true)
		register("twice", spec("x", false), "x2", 1, false)
		for range 3 {
			log.hold <- struct{}{}
		}
		synctest.Wait()
		for name, want := range map[string]bool{
			"first": true, "second": true, "fits": true, "too large": true, "there already": false, "there already refused": true, "twice": true,
		} {
			if got, _ := results.Load(name); got != want {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
		}
		snap := log.store.Snapshot()
		var ids []string
		for al := range snap.Allocs(nil, "") {
			ids = append(ids, al.ID)
		}
		if slices.Sort(ids); !slices.Equal(ids, []string{"a1", "a2", "x1"}) {
			t.Errorf("placed were %q", ids)
		}
		if x, e := snap.Alloc(nil, "x1"), snap.Eval(nil, "e-x"); x.CreateIndex != snap.Job(nil, "default", "x").CreateIndex || e == nil || x.Job == nil {
			t.Error("it was not placed in the entry of its registration")
		}
		if snap.Job(nil, "default", "y") == nil || snap.Eval(nil, "e-y").SnapshotIndex != 0 {
			t.Error("what did not fit is not left to its evaluation")
		}
		if len(log.entries) != 3 {
			t.Errorf("there were %d entries, want 3: the first, all that fit into one, and the second of one job", len(log.entries))
		}
		cancel()
		wg.Wait()
		if _, _, _, err := a.Register(t.Context(), registration(t, spec("late", false), false), &state.Placement{}); !fault.Is(err, fault.Unavailable) {
			t.Errorf("an applier that has ended answers %v", err)
		}
	})
}

func TestALeadershipThatEndsIsSaidToTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &straight{store: world(t, ready("n1")), index: 1, hold: make(chan struct{})}
		a := New(log.store, log)
		a.Encode = command.Encode
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = a.Run(ctx) })
		for range 3 { // one is under way, the others wait
			wg.Go(func() {
				_, _, _, err := a.Register(t.Context(), registration(t, spec("x", false), false), &state.Placement{Namespace: "default", JobID: "x"})
				if !fault.Is(err, fault.Unavailable) || errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("it was answered %v", err)
				}
			})
		}
		synctest.Wait()
		cancel()
		wg.Wait()
	})
}

func TestAFullQueueTakesNoRegistration(t *testing.T) {
	a := New(world(t, ready("n1")), nil) // nobody runs it
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range maxBatch {
		if _, _, taken, _ := a.Register(ctx, registration(t, spec("x", false), false), &state.Placement{}); !taken {
			t.Fatalf("number %d was not taken", i)
		}
	}
	if _, _, taken, err := a.Register(ctx, registration(t, spec("x", false), false), &state.Placement{}); taken || err != nil {
		t.Errorf("one more than there is room for: taken %v, %v", taken, err)
	}
}
