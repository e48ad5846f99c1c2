package events_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"rockpool/internal/orchestrator/events"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

func commit(index uint64, ids ...string) state.Commit {
	c := state.Commit{Index: index, Time: int64(index), Kind: "JobRegistered"}
	for _, id := range ids {
		c.Changes = append(c.Changes, state.Change{After: &model.Job{ID: id, Namespace: "default"}})
	}
	return c
}

var all = events.Filter{Namespace: "*"}

func next(t *testing.T, s *events.Subscription) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	i, list, err := s.Next(ctx)
	if err != nil {
		return err.Error()
	}
	out := fmt.Sprint(i)
	for _, e := range list {
		out += " " + e.Key
	}
	return out
}

func TestSubscriptions(t *testing.T) {
	b := events.New(events.Limits{Batches: 3, Bytes: 1 << 20, Age: 1000}, 10)
	for i := uint64(11); i <= 13; i++ {
		b.Publish(commit(i, fmt.Sprint("j", i)))
	}
	for _, c := range []struct {
		name string
		from uint64
		want string
	}{
		{"now", 0, context.Canceled.Error()},
		{"the oldest held", 11, "11 j11"},
		{"in between", 12, "12 j12"},
		{"the next to come", 14, context.Canceled.Error()},
		{"before the server's snapshot", 10, ""},
		{"the future", 15, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := b.Subscribe(c.from, all)
			if c.want == "" {
				if !errors.Is(err, events.ErrGap) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := next(t, s); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
	slow, err := b.Subscribe(11, all)
	if err != nil {
		t.Fatal(err)
	}
	b.Publish(commit(14, "j14"))
	if got := next(t, slow); got != events.ErrSlow.Error() {
		t.Errorf("a reader that fell off got %s", got)
	}
	if _, err := b.Subscribe(11, all); !errors.Is(err, events.ErrGap) {
		t.Errorf("a resume at a dropped index got %v", err)
	}
	b.Publish(commit(2000, "late"))
	if _, err := b.Subscribe(14, all); !errors.Is(err, events.ErrGap) {
		t.Errorf("a resume at an index that is too old got %v", err)
	}
	s, _ := b.Subscribe(0, all)
	b.Reset(3000)
	if got := next(t, s); got != events.ErrSlow.Error() {
		t.Errorf("after a restore a reader got %s", got)
	}
	s, _ = b.Subscribe(0, all)
	b.Close()
	if got := next(t, s); got != events.ErrClosed.Error() {
		t.Errorf("after the end a reader got %s", got)
	}
}

func TestFilters(t *testing.T) {
	b := events.New(events.DefaultLimits, 0)
	b.Publish(state.Commit{Index: 1, Changes: []state.Change{
		{After: &model.Job{ID: "j", Namespace: "default"}},
		{After: &model.Allocation{ID: "a", JobID: "j", Namespace: "default"}},
		{After: &model.Evaluation{ID: "e", JobID: "k", Namespace: "other"}},
		{After: &model.Node{ID: "n"}},
		{After: &model.Deployment{ID: "d", JobID: "j", Namespace: "default"}},
		{Before: &model.Allocation{ID: "gone", JobID: "j", Namespace: "default"}},
		{Before: &model.Job{ID: "purged", Namespace: "default"}},
	}})
	for _, c := range []struct {
		name string
		f    events.Filter
		want string
	}{
		{"everything", all, "1 j a e n d purged"},
		{"a namespace", events.Filter{Namespace: "default"}, "1 j a n d purged"},
		{"a topic", events.Filter{Namespace: "*", Topics: map[string][]string{"Allocation": {"*"}}}, "1 a"},
		{"a key", events.Filter{Namespace: "*", Topics: map[string][]string{"Job": {"j"}}}, "1 j"},
		{"a filter key", events.Filter{Namespace: "*", Topics: map[string][]string{"Allocation": {"j"}, "Evaluation": {"j"}}}, "1 a"},
		{"all topics of a key", events.Filter{Namespace: "*", Topics: map[string][]string{"*": {"j"}}}, "1 j a d"},
		{"nothing", events.Filter{Namespace: "*", Topics: map[string][]string{"Service": {"*"}}}, context.Canceled.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := b.Subscribe(1, c.f)
			if err != nil {
				t.Fatal(err)
			}
			if got := next(t, s); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// What one user may write is not bounded by a count: a ring of large jobs is as long as its bytes allow.
func TestTheRingIsBoundedByWhatItHolds(t *testing.T) {
	const size = 100 << 10
	b := events.New(events.Limits{Batches: 1000, Bytes: 10 * size, Age: 1 << 40}, 0)
	large := strings.Repeat("x", size)
	for i := uint64(1); i <= 100; i++ {
		b.Publish(state.Commit{Index: i, Changes: []state.Change{{After: &model.Job{ID: "j", Namespace: "default", TaskGroups: []*model.TaskGroup{{
			Name: "g", Tasks: []*model.Task{{Name: "t", Config: map[string]any{"args": []any{large}}}},
		}}}}}})
	}
	if _, err := b.Subscribe(90, all); !errors.Is(err, events.ErrGap) {
		t.Errorf("more is held than allowed: %v", err)
	}
	if _, err := b.Subscribe(98, all); err != nil {
		t.Errorf("less is held than allowed: %v", err)
	}
}

// Readers who are near each other share an encoded form. It is not kept beside the object.
func TestEncodedFormsAreNotKept(t *testing.T) {
	b := events.New(events.DefaultLimits, 0)
	b.Publish(commit(1, "j"))
	made := 0
	encode := func(e *events.Event) []byte { made++; return []byte(e.Key) }
	read := func() []byte {
		s, err := b.Subscribe(1, all)
		if err != nil {
			t.Fatal(err)
		}
		_, list, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return list[0].Encoded(encode)
	}
	one, two := read(), read()
	runtime.KeepAlive(one)
	if string(one) != "j" || string(two) != "j" || made > 2 { // 2: a collection came between
		t.Errorf("%q and %q, made %d times", one, two, made)
	}
	before := made
	runtime.GC()
	if got := read(); string(got) != "j" || made != before+1 {
		t.Errorf("after a collection %q, made %d times after %d", got, made, before)
	}
}

// What is held is bounded by an estimate. It is held to what the heap says of objects such as gateways cause.
func TestTheEstimateIsNoLessThanTheHeap(t *testing.T) {
	t.Run("runners that are claimed", func(t *testing.T) { estimated(t, runnerClaimed) })
	t.Run("jobs that run and end", func(t *testing.T) { estimated(t, jobRan) })
	t.Run("allocations that ran for long", func(t *testing.T) { // what they were before is held by nothing else any more
		estimated(t, func(i uint64) state.Commit {
			c := jobRan(i)
			c.Changes = c.Changes[len(c.Changes)-1:]
			c.Changes[0].After.(*model.Allocation).Job = nil // that one's removal is an event of its own
			return c
		})
	})
	t.Run("nodes that tell much", func(t *testing.T) {
		estimated(t, func(i uint64) state.Commit {
			return state.Commit{Index: i, Time: int64(i), Changes: []state.Change{{Before: &model.Allocation{}, After: &model.Allocation{ID: fmt.Sprint(i), Namespace: "default",
				TaskStates: map[string]*model.TaskState{"t": {State: model.TaskDead, Events: []*model.TaskEvent{{DisplayMessage: strings.Repeat("x", 20<<10)}}}}}}}}
		})
	})
}

// estimated holds the ring's estimate of commits to the heap.
func estimated(t *testing.T, commit func(index uint64) state.Commit) {
	t.Helper()
	const commits = 4000
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	limits := events.Limits{Batches: 1 << 30, Bytes: 8 << 20, Age: 1 << 60}
	before := heap()
	b := events.New(limits, 0)
	encode := func(e *events.Event) []byte { return make([]byte, 8<<10) }
	for i := uint64(1); i <= commits; i++ {
		b.Publish(commit(i))
		s, err := b.Subscribe(i, all)
		if err != nil {
			t.Fatal(err)
		}
		_, list, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			e.Encoded(encode)
		}
	}
	held := int64(heap()) - int64(before)
	if _, err := b.Subscribe(1, all); !errors.Is(err, events.ErrGap) {
		t.Fatal("the ring did not fill")
	}
	if held > int64(limits.Bytes) || held < int64(limits.Bytes)/8 {
		t.Errorf("%d bytes are on the heap, %d were allowed", held, limits.Bytes)
	}
	runtime.KeepAlive(b)
}

// jobRan is all that becomes of a job of one task, as if it were one entry.
func jobRan(index uint64) state.Commit {
	c := runnerClaimed(index)
	job, eval, alloc := c.Changes[0].After.(*model.Job), c.Changes[1].After.(*model.Evaluation), c.Changes[2].After.(*model.Allocation)
	alloc.Metrics = &model.AllocMetric{NodesEvaluated: 1, NodesAvailable: map[string]int{"dc1": 1}, ScoreMeta: []model.NodeScore{{NodeID: job.ID + "n", Scores: map[string]float64{"binpack": 1}}}}
	for _, s := range []string{model.JobRunning, model.JobDead} {
		j, e, a := *job, *eval, *alloc
		j.Status, e.Status = s, model.EvalComplete
		told := &model.TaskState{State: model.TaskRunning, Events: []*model.TaskEvent{}}
		for i := range 4 {
			text := fmt.Sprint("what has happened to ", job.ID, i)
			told.Events = append(told.Events, &model.TaskEvent{Type: "Started", DisplayMessage: text, Details: map[string]string{"message": text}})
		}
		a.TaskStates = map[string]*model.TaskState{"default-task": told}
		c.Changes = append(c.Changes, state.Change{Before: job, After: &j}, state.Change{Before: eval, After: &e}, state.Change{Before: alloc, After: &a})
		job, eval, alloc = &j, &e, &a
	}
	return c
}

// runnerClaimed is an entry with a job, an evaluation and an allocation, none of which the state holds any more.
func runnerClaimed(index uint64) state.Commit {
	id := fmt.Sprintf("10-%08d-e67d-11f1-bfb5-962598be1b03", index)
	task := func(name string) *model.Task {
		return &model.Task{Name: name, Driver: "docker", Meta: map[string]string{"rockpool_warmup": `{"Command":["python3"]}`},
			Config: map[string]any{"image": "host", "command": "sleep", "args": []any{"infinity"}, "network_mode": "none"}}
	}
	job := &model.Job{ID: id, Name: id, Namespace: "default", TaskGroups: []*model.TaskGroup{
		{Name: "default-group", Tasks: []*model.Task{task("default-task")}, Meta: map[string]string{}},
		{Name: "config", Tasks: []*model.Task{task("config")}, Meta: map[string]string{"used": "true", "timeout": "60", "prewarmingPoolSize": "16", "key": id}},
	}}
	return state.Commit{Index: index, Time: int64(index), Kind: "JobRegistered", Changes: []state.Change{
		{After: job}, {After: &model.Evaluation{ID: id + "e", JobID: id, Namespace: "default"}},
		{After: &model.Allocation{ID: id + "a", JobID: id, Namespace: "default", Job: job, TaskGroup: "default-group"}},
	}}
}
