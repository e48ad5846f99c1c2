package propose_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/propose"
	"rockpool/internal/orchestrator/state"
)

// slowLog applies entries to a store; each takes a while, as with a disk.
type slowLog struct {
	mu    sync.Mutex
	store *state.Store
	index uint64
	fail  error
}

func (l *slowLog) Apply(_ context.Context, entry []byte) (any, uint64, error) {
	time.Sleep(time.Millisecond)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return nil, 0, l.fail
	}
	l.index++
	r, err := command.Apply(l.store, l.index, entry)
	if refused, ok := r.(error); ok {
		return nil, l.index, refused
	}
	return r, l.index, err
}

func register(id string, enforce bool, at uint64) *command.JobRegister {
	return &command.JobRegister{Job: &model.Job{Namespace: "default", ID: id, TaskGroups: []*model.TaskGroup{{Name: "g", Count: 1}}}, EnforceIndex: enforce, AtIndex: at}
}

func run(t *testing.T, l *slowLog, share func() bool, f func(ctx context.Context, p *propose.Proposer)) {
	synctest.Test(t, func(t *testing.T) {
		p := propose.New(l, share)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		f(ctx, p)
		cancel()
		wg.Wait()
		if _, _, err := p.Apply(t.Context(), register("late", false, 0)); !fault.Is(err, fault.Unavailable) {
			t.Errorf("after the end an entry got %v", err)
		}
	})
}

func TestWhatWaitsSharesAnEntry(t *testing.T) {
	l := &slowLog{store: state.New()}
	run(t, l, nil, func(ctx context.Context, p *propose.Proposer) {
		var callers sync.WaitGroup
		for i := range 1000 {
			callers.Go(func() {
				r, index, err := p.Apply(ctx, register(fmt.Sprint("j", i), false, 0))
				if err != nil || index == 0 || r.(*command.Registered).JobModifyIndex != index {
					t.Errorf("got %v, %d, %v", r, index, err)
				}
			})
		}
		callers.Wait()
		if entries, appends := p.Counts(); entries != 1000 || appends > 100 {
			t.Errorf("%d entries took %d appends", entries, appends)
		}
	})
	n := 0
	for range l.store.Snapshot().Jobs(nil, "*", "") {
		n++
	}
	if n != 1000 {
		t.Errorf("%d jobs are there", n)
	}
}

// Of many that claim at one index exactly one wins, and no index is given to two versions of a job.
func TestWritesOfOneJobNeverShareAnIndex(t *testing.T) {
	l := &slowLog{store: state.New()}
	run(t, l, nil, func(ctx context.Context, p *propose.Proposer) {
		_, at, err := p.Apply(ctx, register("j", false, 0))
		if err != nil {
			t.Fatal(err)
		}
		var callers sync.WaitGroup
		var mu sync.Mutex
		won, indexes := 0, map[uint64]bool{}
		for i := range 200 {
			callers.Go(func() {
				e := register("j", i%2 == 0, at)
				e.Job.Priority = i + 1
				r, _, err := p.Apply(ctx, e)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					if !fault.Is(err, fault.Conflict) {
						t.Errorf("a lost claim got %v", err)
					}
					return
				}
				if i%2 == 0 {
					won++
				}
				index := r.(*command.Registered).JobModifyIndex
				if indexes[index] {
					t.Errorf("two versions have index %d", index)
				}
				indexes[index] = true
			})
		}
		callers.Wait()
		if won > 1 {
			t.Errorf("%d claims won", won)
		}
	})
}

func TestAFailureReachesAllOfABatch(t *testing.T) {
	l := &slowLog{store: state.New(), fail: errors.New("the disk is full")}
	run(t, l, nil, func(ctx context.Context, p *propose.Proposer) {
		var callers sync.WaitGroup
		for i := range 50 {
			callers.Go(func() {
				if _, _, err := p.Apply(ctx, register(fmt.Sprint("j", i), false, 0)); !errors.Is(err, l.fail) {
					t.Errorf("got %v", err)
				}
			})
		}
		callers.Wait()
	})
}

func TestACallerMayLeave(t *testing.T) {
	l := &slowLog{store: state.New()}
	run(t, l, nil, func(ctx context.Context, p *propose.Proposer) {
		gone, cancel := context.WithCancel(ctx)
		cancel()
		if _, _, err := p.Apply(gone, register("j", false, 0)); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

// While a server of an older version is there, nothing goes onto the log that it would not know.
func TestEntriesGoAloneUntilAllServersKnowBatches(t *testing.T) {
	l := &slowLog{store: state.New()}
	run(t, l, func() bool { return false }, func(ctx context.Context, p *propose.Proposer) {
		var callers sync.WaitGroup
		for i := range 50 {
			callers.Go(func() {
				if _, _, err := p.Apply(ctx, register(fmt.Sprint("j", i), false, 0)); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
		if entries, appends := p.Counts(); entries != 50 || appends != 50 {
			t.Errorf("%d entries took %d appends", entries, appends)
		}
	})
}
