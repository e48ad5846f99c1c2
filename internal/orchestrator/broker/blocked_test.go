package broker_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/broker"
	"rockpool/internal/orchestrator/model"
)

func blocked(id string, priority int, classes map[string]bool) *model.Evaluation {
	return &model.Evaluation{ID: id, JobID: "job of " + id, Priority: priority, Status: model.EvalBlocked, ClassEligibility: classes}
}

var small = broker.Room{CPU: 1, MemoryMB: 1}

func TestBlockedOnesWakeForWhatTheyWaitFor(t *testing.T) {
	q := broker.NewQueue(limits)
	q.Block(blocked("fits", 50, map[string]bool{"c1": true}), 5, small, 0)
	q.Block(blocked("other class", 90, map[string]bool{"c1": false, "c2": true}), 5, small, 0)
	q.Block(blocked("large", 90, map[string]bool{"c1": true}), 5, broker.Room{CPU: 100}, 0)
	quota := blocked("quota", 90, nil)
	quota.QuotaReached = "course"
	q.Block(quota, 5, small, 0)
	q.Offer(broker.Offer{Index: 6, Node: "n", Class: "c1", Room: broker.Room{CPU: 5, MemoryMB: 5}}, 1)
	want(t, "room of a class", dequeue(q, 1), "fits")
	want(t, "nobody else", dequeue(q, 1), "")
	q.Ack("fits", 1)
	q.Offer(broker.Offer{Index: 7, Node: "m", Class: "new", Room: broker.Room{CPU: 5, MemoryMB: 5}}, 1)
	want(t, "a class that nobody looked at", dequeue(q, 1), "other class")
	q.OfferQuota("course", 8, 1)
	want(t, "a quota", dequeue(q, 1), "quota")
	q.Sweep(9, 1)
	want(t, "all", dequeue(q, 1), "large")
}

func TestOneOfAJobWaits(t *testing.T) {
	q := broker.NewQueue(limits)
	a, b := blocked("a", 50, nil), blocked("b", 50, nil)
	a.JobID, b.JobID = "j", "j"
	if s := q.Block(a, 5, small, 0); s != nil {
		t.Errorf("%s was superseded", s.ID)
	}
	if s := q.Block(b, 6, small, 0); s == nil || s.ID != "a" {
		t.Errorf("superseded is %v", s)
	}
	if e := q.TakeBlocked("", "j"); e == nil || e.ID != "b" || q.Counts().Blocked != 0 {
		t.Errorf("taken is %v", e)
	}
	q.Sweep(10, 1)
	want(t, "taken away", dequeue(q, 1), "")
}

func TestRoomThatCameFreeMeanwhileIsNotOverlooked(t *testing.T) {
	q := broker.NewQueue(limits)
	q.Offer(broker.Offer{Index: 8, Node: "n", Room: small}, 0)
	q.Block(blocked("a", 50, nil), 9, small, 0)
	want(t, "decided on a newer state", dequeue(q, 1), "")
	q.Block(blocked("b", 50, nil), 7, small, 0)
	want(t, "decided on an older state", dequeue(q, 1), "b")
	// One that is blocked again while it is in work is looked at when its work ends.
	q.Offer(broker.Offer{Index: 10, Node: "n", Room: small}, 1)
	want(t, "the one that waits", dequeue(q, 1), "a")
	q.Block(blocked("b", 50, nil), 9, small, 1)
	q.Ack("b", 1)
	want(t, "again", dequeue(q, 1), "b")
}

// Between being set aside again and the end of its work an evaluation is in both places: what comes free then is for it as well.
func TestAnOfferBeforeTheEndOfTheWorkIsNotLost(t *testing.T) {
	for name, offer := range map[string]func(q *broker.Queue, e *model.Evaluation, index uint64){
		"room": func(q *broker.Queue, _ *model.Evaluation, i uint64) {
			q.Offer(broker.Offer{Index: i, Node: "n", Room: small}, 1)
		},
		"sweep": func(q *broker.Queue, _ *model.Evaluation, i uint64) { q.Sweep(i, 1) },
		"quota": func(q *broker.Queue, e *model.Evaluation, i uint64) {
			e.QuotaReached = "course"
			q.OfferQuota("course", i, 1)
		},
	} {
		q := broker.NewQueue(limits)
		e := blocked("a", 50, nil)
		q.Enqueue(e, 0)
		want(t, name, dequeue(q, 0), "a")
		if name == "quota" {
			e.QuotaReached = "course"
		}
		q.Block(e, 5, small, 0)
		offer(q, e, 6)
		want(t, name+": not twice at once", dequeue(q, 1), "")
		q.Ack("a", 1)
		want(t, name+": once its work has ended", dequeue(q, 1), "a")
		q.Block(e, 6, small, 1)
		q.Ack("a", 1)
		want(t, name+": nothing new", dequeue(q, 1), "")
		offer(q, e, 7)
		want(t, name+": it still waits", dequeue(q, 1), "a")
	}
}

func TestAnOfferThatWasOfNoUseIsPassedOn(t *testing.T) {
	q := broker.NewQueue(limits)
	for i := range 3 {
		q.Block(blocked(fmt.Sprint(i), 50, nil), 5, small, 0)
	}
	q.Offer(broker.Offer{Index: 6, Node: "n", Room: small}, 1)
	want(t, "the first", dequeue(q, 1), "0")
	want(t, "room for one wakes one", dequeue(q, 1), "")
	q.Block(blocked("0", 50, nil), 6, small, 1)
	q.Ack("0", 1)
	want(t, "after one tried in vain", dequeue(q, 1), "1")
	q.Ack("1", 1)
	want(t, "after one had ended", dequeue(q, 1), "2")
	q.Used("2", "n")
	q.Ack("2", 1)
	want(t, "after it was used", dequeue(q, 1), "")
	q.Offer(broker.Offer{Index: 7, Node: "n", Room: small}, 1)
	want(t, "the next offer", dequeue(q, 1), "0")
}

// TestABacklogDrainsWithTheRoom frees room for one allocation at a time: all of a backlog get their turn, and no more attempts are made than there is room,
// but for those that some fail for another reason.
func TestABacklogDrainsWithTheRoom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := broker.NewQueue(broker.Limits{Visible: 1e9, Attempts: 3, Retry: 1})
		left := map[string]bool{}
		needs := map[string]broker.Room{}
		stubborn := map[string]bool{} // find no place in room that looks large enough
		for i := range rapid.IntRange(1, 60).Draw(t, "backlog") {
			id := fmt.Sprint(i)
			need := broker.Room{CPU: rapid.IntRange(1, 3).Draw(t, "need")}
			stubborn[id] = rapid.IntRange(0, 9).Draw(t, "stubborn") == 0
			q.Block(blocked(id, rapid.IntRange(1, 3).Draw(t, "priority"), nil), 1, need, 0)
			left[id], needs[id] = true, need
		}
		index := uint64(2)
		for len(left) > 0 {
			placeable := 0
			for id := range left {
				if !stubborn[id] {
					placeable++
				}
			}
			if placeable == 0 {
				return
			}
			index++
			room := rapid.IntRange(3, 6).Draw(t, "room")
			before := placeable
			q.Offer(broker.Offer{Index: index, Node: "n", Room: broker.Room{CPU: room}}, int64(index))
			attempts := 0
			for e := q.Dequeue(int64(index)); e != nil; e = q.Dequeue(int64(index)) {
				attempts++
				if need := needs[e.ID].CPU; !stubborn[e.ID] && need <= room {
					room -= need
					delete(left, e.ID)
					q.Used(e.ID, "n")
				} else {
					q.Block(e, index, needs[e.ID], int64(index))
				}
				q.Ack(e.ID, int64(index))
			}
			now := 0
			for id := range left {
				if !stubborn[id] {
					now++
				}
			}
			if now == before {
				t.Fatalf("%d wait beside room for one", before)
			}
			if attempts > 70 {
				t.Fatalf("%d attempts for one offer", attempts)
			}
		}
	})
}

// BenchmarkABacklogOf25000 measures what one freed allocation costs while 25,000 evaluations of 50 kinds wait: the attempts, and the time in the queue.
func BenchmarkABacklogOf25000(b *testing.B) {
	q := broker.NewQueue(broker.DefaultLimits)
	needs := map[string]broker.Room{}
	for i := range 25_000 {
		e := blocked(fmt.Sprint(i), 50, map[string]bool{"c": true})
		e.CreateIndex = uint64(i)
		needs[e.ID] = broker.Room{CPU: 100 + i%50, MemoryMB: 100}
		q.Block(e, 1, needs[e.ID], 0)
	}
	attempts, i := 0, 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		q.Offer(broker.Offer{Index: uint64(i + 1), Node: fmt.Sprint("n", i%1000), Class: "c", Room: broker.Room{CPU: 150, MemoryMB: 150}}, int64(i))
		for e := q.Dequeue(int64(i)); e != nil; e = q.Dequeue(int64(i)) {
			attempts++
			q.Used(e.ID, fmt.Sprint("n", i%1000))
			q.Ack(e.ID, int64(i)) // it found its place, and another one comes in its stead
			e.CreateIndex += 25_000
			q.Block(e, uint64(i+1), needs[e.ID], int64(i))
		}
	}
	b.ReportMetric(float64(attempts)/float64(b.N), "attempts/op")
}

// TestOffersOfDevicesArePassedOn has one that waits for devices find its own elsewhere: the offer that woke it is still good for another one.
func TestOffersOfDevicesArePassedOn(t *testing.T) {
	for devices, want := range map[int]bool{0: false, 2: true} {
		q := broker.NewQueue(broker.DefaultLimits)
		need := broker.Room{CPU: 1, Devices: devices}
		q.Block(blocked("first", 50, map[string]bool{"c1": true}), 5, need, 0)
		q.Block(blocked("second", 50, map[string]bool{"c1": true}), 5, need, 0)
		q.Offer(broker.Offer{Index: 6, Node: "n", Class: "c1", Room: broker.Room{CPU: 1, Devices: 2}}, 1)
		e := q.Dequeue(2)
		if e == nil || q.Dequeue(2) != nil {
			t.Fatalf("not just one is woken by room for one")
		}
		q.Used(e.ID, "n")
		q.Ack(e.ID, 3)
		if next := q.Dequeue(4); (next != nil) != want {
			t.Errorf("with %d devices the next one is %v", devices, next)
		}
	}
}

func TestWhoWaitsForDevicesIsNotWokenWithoutThem(t *testing.T) {
	q := broker.NewQueue(broker.DefaultLimits)
	q.Block(blocked("e", 50, map[string]bool{"c1": true}), 5, broker.Room{CPU: 1, Devices: 2}, 0)
	q.Offer(broker.Offer{Index: 6, Node: "n", Class: "c1", Room: broker.Room{CPU: 100, Devices: 1}}, 1)
	if e := q.Dequeue(2); e != nil {
		t.Errorf("%s is woken by one device of two", e.ID)
	}
	q.Offer(broker.Offer{Index: 7, Node: "n", Class: "c1", Room: broker.Room{CPU: 100, Devices: 2}}, 3)
	if q.Dequeue(4) == nil {
		t.Error("it is not woken by two")
	}
}

// What one gives back that needs much is room for several that need little; what is used on another node, or not at all, is given back as well.
func TestWhatIsGivenBackIsForAllThatItHolds(t *testing.T) {
	for name, end := range map[string]func(q *broker.Queue, e *model.Evaluation){
		"in vain":      func(q *broker.Queue, e *model.Evaluation) { q.Block(e, 6, broker.Room{CPU: 3}, 1) },
		"elsewhere":    func(q *broker.Queue, e *model.Evaluation) { q.Used(e.ID, "m") },
		"nothing left": func(*broker.Queue, *model.Evaluation) {},
	} {
		q := broker.NewQueue(limits)
		large := blocked("large", 90, nil)
		q.Block(large, 4, broker.Room{CPU: 3}, 0)
		for i := range 4 {
			q.Block(blocked(fmt.Sprint(i), 50, nil), 5, broker.Room{CPU: 1}, 0)
		}
		q.Offer(broker.Offer{Index: 6, Node: "n", Room: broker.Room{CPU: 3}}, 1)
		want(t, name, dequeue(q, 1), "large")
		want(t, name+": it has all the room", dequeue(q, 1), "")
		end(q, large)
		q.Ack("large", 1)
		for i := range 3 {
			want(t, name+": it did not use it", dequeue(q, 1), fmt.Sprint(i))
		}
		want(t, name+": there is no more", dequeue(q, 1), "")
	}
}

// A node may have room for more than are woken at a time: all of them get it.
func TestALargeNodeIsFilled(t *testing.T) {
	q := broker.NewQueue(limits)
	for i := range 1000 {
		q.Block(blocked(fmt.Sprint(i), 50, nil), 5, broker.Room{CPU: 1}, 0)
	}
	q.Offer(broker.Offer{Index: 6, Node: "n", Room: broker.Room{CPU: 700}}, 1)
	tried := 0
	for e := q.Dequeue(1); e != nil; e = q.Dequeue(1) {
		tried++
		q.Used(e.ID, "n")
		q.Ack(e.ID, 1)
	}
	if tried != 700 {
		t.Errorf("%d were tried beside room for 700", tried)
	}
}

// Who lacks a quota here may lack room elsewhere: where that is not known, either helps.
func TestAQuotaIsNotAllThatIsWaitedFor(t *testing.T) {
	room := broker.Offer{Node: "n", Class: "c", Room: broker.Room{CPU: 5, MemoryMB: 5}}
	for name, c := range map[string]struct {
		need   broker.Room
		failed map[string]*model.AllocMetric
		woken  string
	}{
		"the quota alone":   {small, map[string]*model.AllocMetric{"g": {QuotaExhausted: []string{"cpu"}}}, ""},
		"room for a part":   {small, map[string]*model.AllocMetric{"g": {QuotaExhausted: []string{"cpu"}}, "h": {}}, "e"},
		"what is not known": {broker.Room{}, map[string]*model.AllocMetric{"g": {QuotaExhausted: []string{"cpu"}}}, "e"},
		"more room than is": {broker.Room{CPU: 9}, map[string]*model.AllocMetric{"h": {}}, ""},
	} {
		q := broker.NewQueue(limits)
		e := blocked("e", 50, nil)
		e.QuotaReached, e.FailedTGAllocs = "course", c.failed
		q.Block(e, 5, c.need, 0)
		room.Index = 6
		q.Offer(room, 1)
		want(t, name, dequeue(q, 1), c.woken)
	}
}
