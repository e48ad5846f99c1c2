package leader_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// log applies entries to a store as consensus would, and may be told to fail.
type log struct {
	mu    sync.Mutex
	store *state.Store
	index uint64
	lost  atomic.Bool
}

func (l *log) Apply(ctx context.Context, entry any) (any, uint64, error) {
	if l.lost.Load() {
		return nil, 0, fault.New(fault.Unavailable, "No cluster leader")
	}
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	data, err := command.Encode(entry)
	if err != nil {
		return nil, 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.index++
	r, err := command.Apply(l.store, l.index, data)
	if e, ok := r.(error); ok {
		return nil, l.index, e
	}
	return r, l.index, err
}

func (l *log) Barrier(ctx context.Context) error { return ctx.Err() }

func newLog() *log { return &log{store: state.New()} }

func batch(id string) *model.Job {
	return &model.Job{
		Namespace: "default", ID: id, Type: model.JobTypeBatch, Priority: 50, Datacenters: []string{"*"},
		TaskGroups: []*model.TaskGroup{{Name: "g", Count: 1, Tasks: []*model.Task{{Name: "t", Driver: "mock", Resources: model.Resources{CPU: 1, MemoryMB: 1}}}}},
	}
}

func readyNode() *model.Node {
	return &model.Node{ID: "n1", Name: "n1", Datacenter: "dc1", Status: model.NodeReady,
		Resources: model.NodeResources{CPU: 1e6, MemoryMB: 1e6, DiskMB: 1e6},
		Drivers:   map[string]*model.DriverInfo{"mock": {Detected: true, Healthy: true}}}
}

func TestLeadershipMayFlap(t *testing.T) {
	defer goleak.VerifyNone(t)
	l := newLog()
	var terms atomic.Int32
	ld := leader.New(leader.Config{Store: l.store, Log: l, Leading: func() { terms.Add(1) }})
	signal := make(chan bool)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := ld.Run(ctx, signal); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for i := range 200 {
		if _, _, err := l.Apply(ctx, &command.JobRegister{Job: batch("j"), Eval: &model.Evaluation{
			ID: string(rune('a' + i)), Namespace: "default", JobID: "j", Status: model.EvalPending}}); err != nil {
			t.Fatal(err)
		}
		lead := rnd.IntN(3) > 0
		l.lost.Store(!lead)
		signal <- lead
		l.lost.Store(false)
	}
	signal <- false
	signal <- true
	for !ld.Leading() {
		time.Sleep(time.Millisecond)
	}
	if _, _, err := l.Apply(ctx, &command.NodeRegister{Node: readyNode()}); err != nil {
		t.Fatal(err)
	}
	for placed := false; !placed; time.Sleep(time.Millisecond) {
		n := 0
		for range l.store.Snapshot().AllocsByJob(nil, "default", "j") {
			n++
		}
		if placed = n > 0; n > 1 {
			t.Fatalf("%d allocations, want 1", n)
		}
	}
	cancel()
	wg.Wait()
	if terms.Load() < 2 {
		t.Errorf("there were %d terms", terms.Load())
	}
}

// Who restores a state waits for the term that begins with it, not for the one that was there.
func TestARenewalIsAnotherTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		ld := leader.New(leader.Config{Store: l.store, Log: l})
		signal := make(chan bool)
		var wg sync.WaitGroup
		defer wg.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		wg.Go(func() {
			if err := ld.Run(ctx, signal); err != nil {
				t.Errorf("Run: %v", err)
			}
		})
		signal <- true
		synctest.Wait()
		renewed, done := ld.Renewal(), make(chan error, 1)
		wg.Go(func() { done <- renewed(ctx) })
		for _, lead := range []bool{false, true} {
			synctest.Wait()
			if len(done) > 0 {
				t.Fatalf("there is no other term, but it was said with %v", <-done)
			}
			signal <- lead
		}
		if err := <-done; err != nil || !ld.Leading() {
			t.Errorf("%v, leading %t", err, ld.Leading())
		}
		bound, end := context.WithTimeout(ctx, time.Second)
		defer end()
		if err := ld.Renewal()(bound); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without another term the wait ended with %v", err)
		}
	})
}

func TestTheEndOfAnEvaluationWaitsForItsHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		ld := lead(t, leader.Config{Store: l.store, Log: l})
		register := func(id string) {
			if _, _, err := l.Apply(t.Context(), &command.JobRegister{Job: batch(id), Eval: &model.Evaluation{
				ID: id, Namespace: "default", JobID: id, Status: model.EvalPending, Priority: 50}}); err != nil {
				t.Fatal(err)
			}
		}
		ended := func(id string) bool { return l.store.Snapshot().Eval(nil, id).Terminal() }
		if _, _, err := l.Apply(t.Context(), &command.NodeRegister{Node: readyNode()}); err != nil {
			t.Fatal(err)
		}
		release := ld.Hold("sent")
		abandoned := ld.Hold("abandoned")
		_ = abandoned
		for _, id := range []string{"sent", "abandoned", "free"} {
			register(id)
		}
		synctest.Wait()
		if ended("sent") || ended("abandoned") || !ended("free") {
			t.Error("an end was written before its answer was sent, or one that nobody holds was not")
		}
		release(true)
		synctest.Wait()
		if ended("sent") {
			t.Error("it ended before the answer had time to arrive")
		}
		time.Sleep(60 * time.Millisecond) // the entry of "free" was a moment ago
		synctest.Wait()
		if !ended("sent") || ended("abandoned") {
			t.Error("release did nothing, or too much")
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if !ended("abandoned") {
			t.Error("an evaluation is held for ever")
		}
	})
}

func TestAFailedServiceEndsTheServer(t *testing.T) {
	l := newLog()
	ld := leader.New(leader.Config{Store: l.store, Log: brokenBarrier{l}})
	signal := make(chan bool, 1)
	signal <- true
	if err := ld.Run(t.Context(), signal); err == nil {
		t.Error("Run returned without an error")
	}
}

type brokenBarrier struct{ *log }

func (brokenBarrier) Barrier(context.Context) error { return errors.New("the disk is full") }

func TestCollectionKeepsWhatIsNeeded(t *testing.T) {
	l := newLog()
	now := int64(0)
	do := func(e any) {
		if _, _, err := l.Apply(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	template := batch("template")
	template.TaskGroups[0].Count = 0
	ended := func(id string) *model.Evaluation {
		return &model.Evaluation{ID: id, Namespace: "default", JobID: id, Status: model.EvalComplete}
	}
	do(&command.JobRegister{Now: now, Job: template, Eval: ended("template")})
	do(&command.JobRegister{Now: now, Job: batch("done"), Eval: ended("done")})
	do(&command.JobRegister{Now: now, Job: batch("young"), Eval: ended("young")})
	do(&command.EvalUpdate{Now: int64(5 * time.Hour), Create: []*model.Evaluation{ended("young")}})
	keep := leader.Keep{Evals: time.Hour, EvalCount: 100, Allocs: time.Hour, AllocCount: 100, Jobs: 4 * time.Hour, JobCount: 100, Tombstones: time.Hour}
	g, _, _ := (&leader.Sweep{Keep: keep}).Next(l.store.Snapshot(), int64(5*time.Hour))
	if len(g.Jobs) != 1 || g.Jobs[0][1] != "done" || len(g.Evals) != 2 {
		t.Errorf("collected would be %+v", g)
	}
	keep.EvalCount = 0
	if g, _, _ := (&leader.Sweep{Keep: keep}).Next(l.store.Snapshot(), 1); len(g.Evals) != 3 || len(g.Jobs) != 0 {
		t.Errorf("by count, collected would be %+v", g)
	}
}

// A plan that was not seen to be applied may be: its evaluation is decided again on a state that shows it, and places nothing twice.
func TestAPlanOfUnknownOutcomePlacesNothingTwice(t *testing.T) {
	for _, after := range []time.Duration{500 * time.Millisecond, 66 * time.Second} { // also longer than evaluations are in work
		t.Run(after.String(), func(t *testing.T) { unknownOutcome(t, after) })
	}
}

func unknownOutcome(t *testing.T, after time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		late := &lateLog{log: newLog(), after: after}
		l := &led{t: t, log: late.log}
		l.Leader = lead(t, leader.Config{Store: l.store, Log: late, HeartbeatTTL: time.Hour})
		l.do(&command.NodeRegister{Node: smallNode("n1", 100)})
		l.register(asking("j", 10, 50))
		time.Sleep(300 * time.Millisecond)
		l.do(&command.NodeRegister{Node: smallNode("n2", 100)}) // what is decided now is of another index, and has other ids
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if placed, open := l.allocs("j"), l.open("j"); len(placed) != 1 || len(open) != 0 || !late.failed.Load() || late.held != nil {
			t.Errorf("%d were placed, %q are open, a plan failed is %v", len(placed), open, late.failed.Load())
		}
	})
}

// lateLog says of the first plan that it took too long, and applies it when it is asked, so long after, for all that is on the log.
type lateLog struct {
	*log
	after  time.Duration
	failed atomic.Bool
	mu     sync.Mutex
	held   any
	since  time.Time
}

func (l *lateLog) Apply(ctx context.Context, entry any) (any, uint64, error) {
	if _, ok := entry.(*command.PlanResults); ok && !l.failed.Swap(true) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.held, l.since = entry, time.Now()
		return nil, 0, context.DeadlineExceeded
	}
	return l.log.Apply(ctx, entry)
}

func (l *lateLog) Barrier(ctx context.Context) error {
	l.mu.Lock()
	due := l.since.Add(l.after)
	waits := l.held != nil
	l.mu.Unlock()
	if waits {
		select {
		case <-time.After(time.Until(due)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		return ctx.Err()
	}
	_, _, err := l.log.Apply(ctx, l.held)
	l.held = nil
	return err
}
