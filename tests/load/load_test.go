package load_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/tests/load"
)

// A server that stalls does not slow down the calls, and the time of each counts from when it was due.
func TestTheLoadIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var most, under atomic.Int64
		begin := time.Now()
		n, err := load.Run(t.Context(), load.Options{Rate: 100, For: time.Second}, func(_ context.Context, i int, due time.Time) error {
			if want := begin.Add(time.Duration(i) * 10 * time.Millisecond); !due.Equal(want) || time.Now().Before(due) {
				t.Errorf("call %d was due at %v and made at %v", i, due.Sub(begin), time.Since(begin))
			}
			most.Store(max(most.Load(), under.Add(1)))
			time.Sleep(500 * time.Millisecond)
			under.Add(-1)
			return nil
		})
		if n != 100 || err != nil || most.Load() < 49 {
			t.Errorf("%d calls, %d at a time, %v", n, most.Load(), err)
		}
	})
}

func TestAnErrorEndsTheLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		n, err := load.Run(t.Context(), load.Options{Rate: 100, For: time.Hour}, func(context.Context, int, time.Time) error { return broken })
		if !errors.Is(err, broken) || n > 3 {
			t.Errorf("after %d calls: %v", n, err)
		}
	})
}

func TestPercentiles(t *testing.T) {
	var s []time.Duration
	for i := range 200 {
		s = append(s, time.Duration(200-i))
	}
	if load.Percentile(s, 50) != 100 || load.Percentile(s, 99) != 198 || load.Percentile(s, 100) != 200 || load.Percentile(nil, 50) != 0 {
		t.Error("percentiles are wrong")
	}
}

// A server that keeps up answers what is asked; one that does not is not credited with what it answers afterwards.
func TestAnswersThatComeInTime(t *testing.T) {
	for _, c := range []struct {
		name       string
		each, want time.Duration // between two answers
	}{{"it keeps up", 10 * time.Millisecond, 10 * time.Millisecond}, {"it is half as fast", 20 * time.Millisecond, 20 * time.Millisecond}} {
		begin := time.Now()
		var s load.Samples
		for i := range 1000 {
			s.Add(load.Sample{End: begin.Add(time.Duration(i+1) * c.each), Took: time.Millisecond})
		}
		if got, want := load.Answered(s.Sorted(), begin, 10*time.Second), 1/c.want.Seconds(); got < 0.99*want || got > 1.01*want {
			t.Errorf("%s: %.1f a second", c.name, got)
		}
	}
}

// What the wire has of an event is found without decoding it, also where a line is longer than the buffer it is read into.
func TestRunningJobs(t *testing.T) {
	event := func(job, status string) any {
		return map[string]any{"Topic": "Allocation", "Payload": map[string]any{"Allocation": &api.Allocation{
			ID: "a", JobID: job, ClientStatus: status, TaskGroup: strings.Repeat("g", 1<<21), TaskStates: map[string]*api.TaskState{"t": {State: status}},
		}}}
	}
	var stream bytes.Buffer
	enc := json.NewEncoder(&stream)
	for _, frame := range []any{
		map[string]any{"Index": 1, "Events": []any{event("one", "pending"), event("two", "running")}}, struct{}{},
		map[string]any{"Index": 2, "Events": []any{event("one", "complete"), event("three", "pending"), event("two", "failed")}},
	} {
		if err := enc.Encode(frame); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	if err := load.Running(&stream, func(job string) { got = append(got, job) }); err != nil || !slices.Equal(got, []string{"two", "one", "two"}) {
		t.Errorf("%q, %v", got, err)
	}
	broken := errors.New("broken")
	const half = `{"Events":[{"JobID":"one"},{"JobID":"two","ClientStatus":"running"}]}` + "\n" + `{"Events":[{"JobID":"three","ClientStatus":"pend`
	got = nil
	err := load.Running(io.MultiReader(strings.NewReader(half), iotest.ErrReader(broken)), func(job string) { got = append(got, job) })
	if !errors.Is(err, broken) || !slices.Equal(got, []string{"two"}) {
		t.Errorf("a stream that breaks: %q, %v", got, err)
	}
}
