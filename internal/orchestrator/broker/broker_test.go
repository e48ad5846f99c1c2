package broker_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/broker"
	"rockpool/internal/orchestrator/model"
)

func eval(id, job string, priority int) *model.Evaluation {
	return &model.Evaluation{ID: id, JobID: job, Priority: priority}
}

var limits = broker.Limits{Visible: 100, Attempts: 2, Retry: 10}

func dequeue(q *broker.Queue, now int64) string {
	if e := q.Dequeue(now); e != nil {
		return e.ID
	}
	return ""
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestOrderAndOnePerJob(t *testing.T) {
	q := broker.NewQueue(limits)
	q.Enqueue(eval("a", "j1", 50), 0)
	q.Enqueue(eval("b", "j1", 90), 0)
	q.Enqueue(eval("c", "j2", 70), 0)
	q.Enqueue(eval("c", "j2", 70), 0)
	want(t, "by priority", dequeue(q, 1), "c")
	want(t, "the job's first", dequeue(q, 1), "a")
	want(t, "the job's second waits", dequeue(q, 1), "")
	q.Ack("a", 2)
	want(t, "until the first is done", dequeue(q, 2), "b")
	q.Ack("b", 2)
	q.Ack("c", 2)
	want(t, "a second delivery of one enqueued twice", dequeue(q, 2), "")
}

func TestTheNewestOfAJobStandsForTheOthers(t *testing.T) {
	q := broker.NewQueue(limits)
	for i, id := range []string{"a", "b", "c"} {
		e := eval(id, "j", 50)
		e.CreateIndex, e.NodeID = uint64(i), "node of "+id
		q.Enqueue(e, 0)
	}
	want(t, "the first", dequeue(q, 0), "a")
	q.Ack("a", 0)
	e := q.Dequeue(0)
	if e == nil || e.ID != "c" || e.NodeID != "" {
		t.Errorf("then comes %+v", e)
	}
	if d := q.Duplicates(); len(d) != 1 || d[0].ID != "b" || len(q.Duplicates()) != 0 {
		t.Errorf("the duplicates are %v", d)
	}
	q.Ack("c", 0)
	want(t, "nothing is left", dequeue(q, 0), "")
}

func TestDelaysRefusalsAndFailures(t *testing.T) {
	q := broker.NewQueue(limits)
	later := eval("later", "j", 50)
	later.WaitUntil = 100
	q.Enqueue(later, 0)
	want(t, "before its time", dequeue(q, 99), "")
	if q.NextDeadline() != 100 {
		t.Errorf("the deadline is %d", q.NextDeadline())
	}
	want(t, "at its time", dequeue(q, 100), "later")
	q.Nack("later", 100)
	want(t, "just refused", dequeue(q, 101), "")
	want(t, "a little later", dequeue(q, 110), "later")
	want(t, "while it is in work", dequeue(q, 209), "")
	want(t, "after its time in work, and too many deliveries", dequeue(q, 210), "")
	if f := q.Failures(); len(f) != 1 || f[0].ID != "later" || len(q.Failures()) != 0 {
		t.Errorf("the failures are %v", f)
	}
}

func TestNothingIsLostAndNoJobIsInWorkTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := broker.NewQueue(broker.Limits{Visible: 50, Attempts: 1000, Retry: 1})
		now, n := int64(0), 0
		open, inWork := map[string]string{}, map[string]string{} // id -> job
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			now += int64(rapid.IntRange(0, 20).Draw(t, "time"))
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				n++
				e := eval(fmt.Sprint("e", n), fmt.Sprint("j", rapid.IntRange(0, 2).Draw(t, "job")), rapid.IntRange(1, 100).Draw(t, "priority"))
				e.WaitUntil = now + int64(rapid.IntRange(-5, 30).Draw(t, "wait"))
				open[e.ID] = e.JobID
				q.Enqueue(e, now)
			case 1:
				clear(inWork) // some may be due again; only those delivered now are known to be in work
				for e := q.Dequeue(now); e != nil; e = q.Dequeue(now) {
					for id, j := range inWork {
						if j == e.JobID {
							t.Fatalf("%s and %s of %s are in work together", id, e.ID, j)
						}
					}
					inWork[e.ID] = e.JobID
				}
			case 2:
				for id := range inWork {
					q.Ack(id, now)
					delete(open, id)
				}
				clear(inWork)
			case 3:
				for id := range inWork {
					q.Nack(id, now)
				}
				clear(inWork)
			}
		}
		for range 10_000 {
			for _, e := range q.Duplicates() {
				delete(open, e.ID)
			}
			if len(open) == 0 {
				return
			}
			now += 10
			for e := q.Dequeue(now); e != nil; e = q.Dequeue(now) {
				q.Ack(e.ID, now)
				delete(open, e.ID)
			}
		}
		t.Fatalf("never delivered: %v", open)
	})
}

func TestDequeueWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := broker.New(broker.DefaultLimits)
		ctx, cancel := context.WithCancel(context.Background())
		got := make(chan string, 3)
		for range 3 {
			go func() {
				if e, err := b.Dequeue(ctx); err == nil {
					got <- e.ID
				}
			}()
		}
		synctest.Wait()
		late := eval("late", "j1", 1)
		late.WaitUntil = time.Now().Add(time.Minute).UnixNano()
		b.Enqueue(late)
		b.Enqueue(eval("now", "j2", 1))
		if id := <-got; id != "now" {
			t.Errorf("got %s", id)
		}
		began := time.Now()
		if id := <-got; id != "late" || time.Since(began) < time.Minute {
			t.Errorf("got %s after %v", id, time.Since(began))
		}
		cancel()
	})
}
