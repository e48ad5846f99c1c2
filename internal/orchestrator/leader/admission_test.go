package leader

import (
	"fmt"
	"testing"
	"time"
)

// A cluster that places 100 a second is asked for 300 a second: what it takes is placed in little more than the bound, at all times, and it goes on placing
// at full speed. A burst before it passes whole.
func TestOverloadKeepsLatencyFlat(t *testing.T) {
	a := newAdmission()
	a.few = 16
	begin := time.Unix(1_000_000, 0)
	type eval struct {
		id string
		at time.Time
	}
	var queue []eval
	worst, placed, refused, n := time.Duration(0), 0, 0, 0
	ask := func(now time.Time) {
		if retry, no := a.refuse(now); no {
			refused++
			if retry < minRetry || retry > maxRetry {
				t.Fatalf("told to come back after %v", retry)
			}
			return
		}
		n++
		e := eval{fmt.Sprint("e", n), now}
		a.begin(e.id, now)
		queue = append(queue, e)
	}
	for range 90 {
		ask(begin)
	}
	if refused > 0 {
		t.Errorf("%d of a burst were refused", refused)
	}
	for ms := range 30_000 {
		now := begin.Add(time.Duration(ms) * time.Millisecond)
		if ms%10 == 0 && len(queue) > 0 {
			e := queue[0]
			queue = queue[1:]
			a.done(e.id)
			placed++
			worst = max(worst, now.Sub(e.at))
		}
		if ms%10 < 3 {
			ask(now)
		}
	}
	if worst > 4*lateAfter {
		t.Errorf("one was placed after %v", worst)
	}
	if placed < 2990 {
		t.Errorf("only %d were placed in 30 s", placed)
	}
	if refused < 5000 {
		t.Errorf("only %d were refused", refused)
	}
	for _, e := range queue {
		a.done(e.id)
	}
	if _, no := a.refuse(begin.Add(time.Hour)); no || len(a.order) > 0 {
		t.Error("an empty queue refuses, or is not empty")
	}
}

func TestFewAreNoOverload(t *testing.T) {
	a := newAdmission()
	now := time.Unix(1_000_000, 0)
	for i := range fewWaiting {
		a.begin(fmt.Sprint(i), now)
	}
	if _, no := a.refuse(now.Add(time.Hour)); no {
		t.Error("few that wait for long are taken for an overload")
	}
}
