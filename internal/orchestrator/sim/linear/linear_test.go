package linear

import (
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// line is one operation: what was asked for, what was seen, from when to when.
type line struct {
	op   Op
	r    Result
	from int64
	to   int64
}

func TestHistories(t *testing.T) {
	cas := func(expect uint64, v string) Op { return Op{Kind: CAS, Job: "j", Expect: expect, Value: v} }
	read := Op{Kind: Read, Job: "j"}
	purge := Op{Kind: Purge, Job: "j"}
	done := func(i uint64) Result { return Result{Outcome: Done, Index: i} }
	saw := func(i uint64, v string) Result { return Result{Outcome: Done, Index: i, Value: v} }
	conflict, unknown := Result{Outcome: Conflict}, Result{Outcome: Unknown}
	for _, c := range []struct {
		name string
		ok   bool
		ops  []line
	}{
		{"one after the other", true, []line{{cas(0, "a"), done(5), 0, 1}, {read, saw(5, "a"), 2, 3}, {cas(5, "b"), done(6), 4, 5}, {cas(5, "c"), conflict, 6, 7}}},
		{"two at once, one wins", true, []line{{cas(0, "a"), done(5), 0, 1}, {cas(5, "b"), done(6), 2, 9}, {cas(5, "c"), conflict, 2, 9}}},
		{"two at once, both win: a double claim", false, []line{{cas(0, "a"), done(5), 0, 1}, {cas(5, "b"), done(6), 2, 9}, {cas(5, "c"), done(7), 2, 9}}},
		{"two at once, none wins", false, []line{{cas(0, "a"), done(5), 0, 1}, {cas(5, "b"), conflict, 2, 9}, {cas(5, "c"), conflict, 2, 9}}},
		{"an acknowledged write is lost", false, []line{{cas(0, "a"), done(5), 0, 1}, {read, Result{Outcome: Done}, 2, 3}}},
		{"an old value is read", false, []line{{cas(0, "a"), done(5), 0, 1}, {cas(5, "b"), done(6), 2, 3}, {read, saw(5, "a"), 4, 5}}},
		{"a lost answer took effect later", true, []line{{cas(0, "a"), unknown, 0, 1}, {read, Result{Outcome: Done}, 2, 3}, {read, saw(5, "a"), 4, 5}, {cas(5, "b"), done(6), 6, 7}}},
		{"a lost answer never took effect", true, []line{{cas(0, "a"), unknown, 0, 1}, {cas(0, "b"), done(7), 2, 3}, {read, saw(7, "b"), 4, 5}}},
		{"a lost answer took effect twice", false, []line{{cas(0, "a"), unknown, 0, 1}, {read, saw(5, "a"), 2, 3}, {purge, Result{Outcome: Done}, 4, 5}, {read, saw(9, "a"), 6, 7}}},
		{"what was purged comes back", false, []line{{cas(0, "a"), done(5), 0, 1}, {purge, Result{Outcome: Done}, 2, 3}, {read, saw(5, "a"), 4, 5}}},
		{"what reached nobody has no effect", false, []line{{cas(0, "a"), Result{Outcome: Never}, 0, 1}, {read, saw(5, "a"), 2, 3}}},
		{"a read without an answer says nothing", true, []line{{cas(0, "a"), done(5), 0, 1}, {read, unknown, 2, 3}, {read, saw(5, "a"), 4, 5}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := NewHistory()
			for i, l := range c.ops {
				h.ops = append(h.ops, porcupine.Operation{ClientId: i, Input: l.op, Call: l.from, Output: l.r, Return: l.to})
			}
			h.start = time.Now().Add(-time.Second)
			err := h.Check(time.Minute)
			if (err == nil) != c.ok {
				t.Errorf("got %v", err)
			}
			if err != nil && !strings.Contains(err.Error(), "job j is not linearizable") {
				t.Errorf("the error does not name the job: %v", err)
			}
		})
	}
}

func TestEachJobIsItsOwnHistory(t *testing.T) {
	h := NewHistory()
	for _, job := range []string{"a", "b"} {
		if r := h.Do(0, Op{Kind: CAS, Job: job, Value: job}, func() Result { return Result{Outcome: Done, Index: 3} }); r.Index != 3 {
			t.Fatal(r)
		}
	}
	if err := h.Check(time.Minute); err != nil || h.Len() != 2 {
		t.Error(err)
	}
	h.Do(1, Op{Kind: Read, Job: "b"}, func() Result { return Result{Outcome: Done, Index: 3, Value: "a"} })
	if err := h.Check(time.Minute); err == nil || !strings.Contains(err.Error(), "job b") {
		t.Errorf("a value of another job was taken: %v", err)
	}
}
