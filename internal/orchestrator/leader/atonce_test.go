package leader_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// atOnce is a bubble in which jobs may be placed with their registration.
func atOnce(t *testing.T, f func(l *led)) {
	t.Helper()
	atOnceWith(t, leader.Config{}, f)
}

func atOnceWith(t *testing.T, cfg leader.Config, f func(l *led)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &led{t: t, log: newLog()}
		cfg.Store, cfg.Log, cfg.HeartbeatTTL, cfg.Encode = l.store, l.log, 1000*time.Hour, command.Encode
		l.Leader = lead(t, cfg)
		f(l)
	})
}

// submit registers a job by the leader and returns the index and what there is then.
func (l *led) submit(j *model.Job) (index uint64, e *model.Evaluation) {
	l.t.Helper()
	e = l.eval(j, model.TriggerJobRegister)
	result, index, err := l.Register(l.t.Context(), &command.JobRegister{Now: time.Now().UnixNano(), Job: j, Eval: e})
	if err != nil {
		l.t.Fatal(err)
	}
	if r, ok := result.(*command.Registered); !ok || r.JobModifyIndex == 0 {
		l.t.Fatalf("the registration came to %+v", result)
	}
	return index, e
}

func TestASimpleJobIsPlacedWithItsRegistration(t *testing.T) {
	atOnce(t, func(l *led) {
		l.do(&command.NodeRegister{Node: smallNode("n1", 100)})
		var events []string
		end := l.store.Observe(func(c state.Commit) {
			for _, ch := range c.Changes {
				switch v := ch.After.(type) {
				case *model.Allocation:
					events = append(events, fmt.Sprint(ch.Kind, " alloc ", v.ClientStatus))
				case *model.Evaluation:
					events = append(events, fmt.Sprint(ch.Kind, " eval ", v.Status))
				}
			}
		})
		defer end()
		j := asking("j", 30, 50)
		j.TaskGroups[0].Count = 2
		e := l.eval(j, model.TriggerJobRegister)
		release := l.Hold(e.ID)
		_, index, err := l.Register(l.t.Context(), &command.JobRegister{Now: 7, Job: j, Eval: e})
		if err != nil {
			t.Fatal(err)
		}
		placed := l.allocs("j")
		if len(placed) != 2 || placed[0].CreateIndex != index || placed[0].Job == nil || placed[0].Job.JobModifyIndex != index || placed[0].Metrics == nil {
			t.Fatalf("the entry at %d placed %+v", index, placed)
		}
		synctest.Wait()
		if now := l.store.Snapshot().Eval(nil, e.ID); now.Status != model.EvalPending || now.JobModifyIndex != index {
			t.Errorf("its evaluation, whose caller has no answer yet, is %+v", now)
		}
		release(true)
		time.Sleep(time.Second)
		synctest.Wait()
		now := l.store.Snapshot().Eval(nil, e.ID)
		if now.Status != model.EvalComplete || len(now.QueuedAllocations) != 1 || now.QueuedAllocations["g"] != 0 || now.SnapshotIndex != index {
			t.Errorf("its evaluation is %+v", now)
		}
		want := []string{"JobRegistered eval pending", "PlanResult eval pending", "PlanResult alloc pending", "PlanResult alloc pending", "EvaluationUpdated eval complete"}
		if fmt.Sprint(events) != fmt.Sprint(want) {
			t.Errorf("it was told as %q, want %q", events, want)
		}
		if len(l.allocs("j")) != 2 {
			t.Error("it was placed a second time")
		}
		l.sums()
	})
}

func TestWhatIsNotSimpleIsLeftToItsEvaluation(t *testing.T) {
	for name, c := range map[string]struct {
		change func(l *led, j *model.Job)
		allocs int // in the end
	}{
		"a service":           {func(_ *led, j *model.Job) { j.Type = model.JobTypeService }, 1},
		"many allocations":    {func(_ *led, j *model.Job) { j.TaskGroups[0].Count = 17 }, 17},
		"none":                {func(_ *led, j *model.Job) { j.TaskGroups[0].Count = 0 }, 0},
		"no room":             {func(_ *led, j *model.Job) { j.TaskGroups[0].Tasks[0].Resources.CPU = 1e6 }, 0},
		"a job that is there": {func(l *led, _ *model.Job) { l.submit(asking("j", 1, 50)); synctest.Wait() }, 2}, // of two versions
		"an operator's pause": {func(l *led, _ *model.Job) {
			l.do(&command.SchedulerConfig{Config: &state.SchedulerConfig{PauseBroker: true}})
		}, 0},
		"somebody that ranks first": {func(l *led, j *model.Job) {
			j.TaskGroups[0].Tasks[0].Resources.CPU = 90
			l.submitMany(asking("other", 90, 80))
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			// One worker, since two that decide at the same time about what there is room for once are in no order, whatever their priorities are.
			atOnceWith(t, leader.Config{Workers: 1}, func(l *led) {
				l.do(&command.NodeRegister{Node: smallNode("n1", 100)})
				j := asking("j", 2, 50)
				c.change(l, j)
				index, e := l.submit(j)
				for _, a := range l.allocs("j") {
					if a.CreateIndex == index {
						t.Error("it was placed at once")
					}
				}
				time.Sleep(time.Second)
				synctest.Wait()
				if n := len(l.allocs("j")); n != c.allocs {
					t.Errorf("it has %d allocations, want %d", n, c.allocs)
				}
				if now := l.store.Snapshot().Eval(nil, e.ID); now.Terminal() == (name == "an operator's pause") {
					t.Errorf("its evaluation is %s", now.Status)
				}
			})
		})
	}
}

// submitMany registers a job with an evaluation that is ready, and takes no notice of what becomes of it.
func (l *led) submitMany(j *model.Job) {
	l.t.Helper()
	if _, _, err := l.Apply(l.t.Context(), &command.JobRegister{Now: 1, Job: j, Eval: l.eval(j, model.TriggerJobRegister)}); err != nil {
		l.t.Fatal(err)
	}
}

func TestManyAtOnceNeverTakeMoreThanThereIs(t *testing.T) {
	atOnce(t, func(l *led) {
		for i := range 4 {
			l.do(&command.NodeRegister{Node: smallNode(fmt.Sprint("n", i), 100)})
		}
		var callers sync.WaitGroup
		evals := make([]*model.Evaluation, 60)
		for i := range evals {
			j := asking(fmt.Sprint("j", i/2), 10, 50) // each job is registered twice
			evals[i] = l.eval(j, model.TriggerJobRegister)
			callers.Go(func() {
				if _, _, err := l.Register(l.t.Context(), &command.JobRegister{Now: time.Now().UnixNano(), Job: j, Eval: evals[i]}); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		held, jobs := map[string]int{}, map[string]int{}
		for a := range l.store.Snapshot().Allocs(nil, "") {
			held[a.NodeID] += 10
			jobs[a.JobID]++
		}
		for n, cpu := range held {
			if cpu > 100 {
				t.Errorf("node %s has %d of 100 MHz taken", n, cpu)
			}
		}
		for i := range 30 {
			if n := jobs[fmt.Sprint("j", i)]; n != 1 {
				t.Errorf("job %d has %d allocations, want 1", i, n)
			}
		}
		for _, e := range evals {
			if now := l.store.Snapshot().Eval(nil, e.ID); !now.Terminal() {
				t.Errorf("evaluation %s is %s", e.ID, now.Status)
			}
		}
		l.sums()
	})
}

func TestANewTermEndsWhatWasPlacedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &led{t: t, log: newLog()}
		l.Leader = leader.New(leader.Config{Store: l.store, Log: l.log, HeartbeatTTL: 1000 * time.Hour, Encode: command.Encode})
		signal := make(chan bool)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _ = l.Run(ctx, signal) })
		signal <- true
		synctest.Wait()
		l.do(&command.NodeRegister{Node: smallNode("n1", 100)})
		j := asking("j", 10, 50)
		e := l.eval(j, model.TriggerJobRegister)
		_ = l.Hold(e.ID) // the answer never leaves
		if _, _, err := l.Register(ctx, &command.JobRegister{Now: 1, Job: j, Eval: e}); err != nil {
			t.Fatal(err)
		}
		signal <- false
		signal <- true
		time.Sleep(time.Minute)
		synctest.Wait()
		if now := l.store.Snapshot().Eval(nil, e.ID); now.Status != model.EvalComplete || len(l.allocs("j")) != 1 {
			t.Errorf("its evaluation is %s, and there are %d allocations", now.Status, len(l.allocs("j")))
		}
		cancel()
		wg.Wait()
	})
}

// stuck is a log that takes nothing until it is let go. It counts the registrations that come alone.
type stuck struct {
	*log
	open  chan struct{}
	alone *atomic.Int32
}

func (s stuck) Apply(ctx context.Context, entry any) (any, uint64, error) {
	if _, ok := entry.(*command.JobRegister); ok {
		s.alone.Add(1)
	}
	select {
	case <-s.open:
		return s.log.Apply(ctx, entry)
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
}

func TestABurstIsRegisteredAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		if _, _, err := l.Apply(t.Context(), &command.NodeRegister{Node: readyNode()}); err != nil {
			t.Fatal(err)
		}
		s := stuck{l, make(chan struct{}), new(atomic.Int32)}
		ld := lead(t, leader.Config{Store: l.store, Log: s, HeartbeatTTL: 1000 * time.Hour, Encode: command.Encode})
		var wg sync.WaitGroup
		for i := range 1100 {
			j := batch(fmt.Sprint("j", i))
			wg.Go(func() {
				if _, _, err := ld.Register(t.Context(), &command.JobRegister{Now: 1, Job: j, Eval: leader.JobEval(j, model.TriggerJobRegister)}); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(5 * time.Second)
		if n := s.alone.Load(); n < 1100-256 || n == 1100 { // one entry is under way, and the next one waits
			t.Errorf("%d of 1100 registrations went alone", n)
		}
		close(s.open)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		for i := range 1100 {
			if n := len((&led{t: t, log: l}).allocs(fmt.Sprint("j", i))); n != 1 {
				t.Fatalf("job %d has %d allocations", i, n)
			}
		}
		wg.Wait()
	})
}
