package leader_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/lifecycle"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
)

// signal is a latest-value channel, filled as consensus does.
type signal struct {
	mu sync.Mutex
	ch chan bool
}

func (s *signal) set(lead bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ch:
	default:
	}
	s.ch <- lead
}

// moody is a log whose calls are slow, fail, or hang until their deadline, by the script's seed; hook runs at each step of a term.
type moody struct {
	*log
	calm atomic.Bool
	mu   sync.Mutex
	rnd  *rand.Rand // guarded by mu
	hook func(step string)
}

func (m *moody) mood(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rnd.IntN(n)
}

// suffer does to a call what the script has for it.
func (m *moody) suffer(ctx context.Context) error {
	if m.calm.Load() {
		return ctx.Err()
	}
	switch m.mood(8) {
	case 0:
		return fault.New(fault.Unavailable, "No cluster leader")
	case 1:
		return fault.New(fault.Deadline, "the log did not take the entry in time")
	case 2: // slow
		t := time.NewTimer(time.Duration(m.mood(50)) * time.Millisecond)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	case 3: // it hangs until its deadline, or until leadership ends
		if _, bounded := ctx.Deadline(); !bounded {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, 10*time.Second) // consensus bounds what its caller does not
			defer cancel()
		}
		<-ctx.Done()
		return fmt.Errorf("wait for the log: %w", ctx.Err())
	}
	return ctx.Err()
}

func (m *moody) Barrier(ctx context.Context) error {
	m.hook("before the barrier")
	err := m.suffer(ctx)
	m.hook("after the barrier")
	return err
}

func (m *moody) Apply(ctx context.Context, entry any) (any, uint64, error) {
	m.hook("before an entry")
	if err := m.suffer(ctx); err != nil {
		return nil, 0, err
	}
	r, i, err := m.log.Apply(ctx, entry)
	m.hook("after an entry")
	if err == nil && !m.calm.Load() && m.mood(10) == 0 {
		return nil, 0, fault.New(fault.Deadline, "the answer was lost") // committed, and nobody knows
	}
	return r, i, err
}

func TestAThousandFlaps(t *testing.T) {
	const flaps = 1000
	for _, seed := range []uint64{1, 2, 3} {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { flap(t, seed, flaps) })
		})
	}
}

func flap(t *testing.T, seed uint64, flaps int) {
	sig := &signal{ch: make(chan bool, 1)}
	m := &moody{log: newLog(), rnd: rand.New(rand.NewPCG(seed, 0))}
	var flapped, terms, alive atomic.Int64
	steps := sync.Map{}
	m.hook = func(step string) {
		if m.calm.Load() || m.mood(4) != 0 {
			return
		}
		steps.Store(step, true)
		flapped.Add(1)
		// Lost and regained, or lost; the driver below gives it back.
		sig.set(false)
		if m.mood(2) == 0 {
			sig.set(true)
		}
	}
	one := func(ctx context.Context) error { // stands for all services of a term
		if n := alive.Add(1); n != 1 {
			t.Errorf("services of %d terms are alive", n)
		}
		defer alive.Add(-1)
		m.hook("services started")
		<-ctx.Done()
		time.Sleep(time.Duration(m.mood(5)) * time.Millisecond) // it takes its time to end
		return nil
	}
	ld := leader.New(leader.Config{
		Store: m.store, Log: m, Workers: 4,
		Leading:  func() { terms.Add(1); m.hook("leadership taken") },
		Services: []lifecycle.Service{{Name: "witness", Run: one}},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	ended := make(chan struct{})
	wg.Go(func() {
		defer close(ended)
		if err := ld.Run(ctx, sig.ch); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	if _, _, err := m.log.Apply(ctx, &command.NodeRegister{Node: readyNode()}); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var written []string // acknowledged
	var writers sync.WaitGroup
	writing, stopWriting := context.WithCancel(ctx)
	for w := range 3 {
		writers.Go(func() {
			for i := 0; writing.Err() == nil; i++ {
				id := fmt.Sprintf("job-%d-%d", w, i)
				bounded, cancel := context.WithTimeout(writing, time.Second)
				_, _, err := m.Apply(bounded, &command.JobRegister{Job: batch(id), Eval: &model.Evaluation{
					ID: "eval-" + id, Namespace: "default", JobID: id, Status: model.EvalPending, Priority: 50}})
				cancel()
				if err == nil {
					mu.Lock()
					written = append(written, id)
					mu.Unlock()
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	for i := range flaps {
		sig.set(i%3 != 0)
		if i%2 == 0 { // give the term a moment; otherwise the next flap comes at once
			time.Sleep(time.Duration(m.mood(30)) * time.Millisecond)
		}
	}
	stopWriting()
	m.calm.Store(true)
	writers.Wait()
	synctest.Wait() // for a step that was about to have leadership lost
	sig.set(true)
	deadline := time.Now().Add(5 * time.Minute)
	for _, id := range written {
		for {
			snap := m.store.Snapshot()
			if snap.Job(nil, "default", id) == nil {
				t.Fatalf("job %s was acknowledged and is lost", id)
			}
			placed := 0
			for range snap.AllocsByJob(nil, "default", id) {
				placed++
			}
			if placed > 1 {
				t.Fatalf("job %s was placed %d times", id, placed)
			}
			if e := snap.Eval(nil, "eval-"+id); placed == 1 && e.Terminal() {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("job %s was acknowledged and is not scheduled: it has %d allocations", id, placed)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	t.Logf("%d terms, %d flaps at steps besides %d, %d writes", terms.Load(), flapped.Load(), flaps, len(written))
	for _, step := range []string{"before the barrier", "after the barrier", "leadership taken", "services started", "before an entry", "after an entry"} {
		if _, ok := steps.Load(step); !ok {
			t.Errorf("there was no flap at the step %q", step)
		}
	}
	if terms.Load() < 20 || len(written) < 25 {
		t.Error("the script was too tame")
	}
	sig.set(false)
	synctest.Wait()
	time.Sleep(time.Minute)
	if ld.Leading() || alive.Load() != 0 {
		t.Error("a service of an old term is alive")
	}
	cancel()
	<-ended
	wg.Wait()
}
