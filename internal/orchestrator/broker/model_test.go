package broker_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/broker"
	"rockpool/internal/orchestrator/model"
)

// world is a cluster as naive as can be: rooms by the name of their node, a quota, and the jobs that are not placed.
type world struct {
	index uint64
	rooms map[string]int
	quota int // allocations that it still allows
	jobs  map[string]wish
	evals map[string][]*model.Evaluation // by job
	ended map[string]bool                // evaluations, by id
}

// wish is the one allocation that a job waits for.
type wish struct {
	need  int
	only  string // node that it must have, which the queue is not told; "" = any
	quota bool
}

// sight is what a worker has seen of the world.
type sight struct {
	index uint64
	rooms map[string]int
	quota int
}

func (w *world) look() sight { return sight{w.index, maps.Clone(w.rooms), w.quota} }

// node is where a wish can be met; "" = nowhere.
func (s sight) node(d wish) string {
	for _, name := range slices.Sorted(maps.Keys(s.rooms)) {
		if s.rooms[name] >= d.need && (d.only == "" || d.only == name) && (!d.quota || s.quota > 0) {
			return name
		}
	}
	return ""
}

// work is an evaluation in work.
type work struct {
	eval    *model.Evaluation
	seen    sight
	decided bool // only the end of the work is missing
}

// TestNobodyWaitsBesideRoom has workers take evaluations, look at the world, and place or set aside what they have, with anything that may happen in between: room and quota that
// come free, refusals, evaluations that end otherwise or are followed by another one of their job. However it went: when all work is done nobody is lost, and nobody waits for what
// is there.
func TestNobodyWaitsBesideRoom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := broker.NewQueue(broker.Limits{Visible: 1 << 40, Attempts: 1 << 20, Retry: 1})
		w := &world{index: 10, rooms: map[string]int{}, jobs: map[string]wish{}, evals: map[string][]*model.Evaluation{}, ended: map[string]bool{}}
		now, made, inWork := int64(0), 0, map[string]*work{}
		some := func(of []string) string {
			if len(of) == 0 {
				return ""
			}
			return rapid.SampledFrom(of).Draw(t, "which")
		}
		create := func(job, status string) *model.Evaluation {
			made++
			w.index++
			e := &model.Evaluation{ID: fmt.Sprint("e", made), JobID: job, Priority: 50, Status: status, CreateIndex: w.index}
			w.evals[job] = append(w.evals[job], e)
			return e
		}
		end := func(e *model.Evaluation) {
			if e != nil {
				w.ended[e.ID] = true
				q.Forget(e)
			}
		}
		take := func() bool {
			e := q.Dequeue(now)
			if e == nil {
				return false
			}
			for _, k := range inWork {
				if k.eval.JobID == e.JobID {
					t.Fatalf("%s and %s of one job are in work", k.eval.ID, e.ID)
				}
			}
			inWork[e.ID] = &work{eval: e, seen: w.look()}
			return true
		}
		step := func(id string) {
			k := inWork[id]
			d, wanted := w.jobs[k.eval.JobID]
			switch node := k.seen.node(d); {
			case k.decided:
				q.Ack(id, now)
				delete(inWork, id)
				return
			case w.ended[id]:
				q.Ack(id, now)
				delete(inWork, id)
				return
			case wanted && node != "" && w.look().node(d) != node: // refused: it plans again
				k.seen = w.look()
				return
			case wanted && node == "":
				b := *k.eval
				if b.Status != model.EvalBlocked {
					b = *create(b.JobID, model.EvalBlocked)
				}
				b.QuotaReached = ""
				if d.quota && k.seen.quota == 0 {
					b.QuotaReached = "course"
				}
				end(q.Block(&b, k.seen.index, broker.Room{CPU: d.need}, now))
			case wanted:
				w.rooms[node] -= d.need
				q.Used(id, node)
				if d.quota {
					w.quota--
				}
				w.index++
				delete(w.jobs, k.eval.JobID)
				end(q.TakeBlocked("", k.eval.JobID))
			default:
				end(q.TakeBlocked("", k.eval.JobID))
			}
			k.decided = true
		}
		rest := func() { // all work is done
			for range 10_000 {
				now += 10
				for take() {
				}
				if len(inWork) == 0 {
					return
				}
				step(slices.Sorted(maps.Keys(inWork))[0])
				for _, e := range q.Duplicates() {
					end(e)
				}
			}
		}
		actions := []func(){
			func() { // a job
				made++
				job := fmt.Sprint("j", made)
				w.jobs[job] = wish{rapid.IntRange(1, 2).Draw(t, "need"), rapid.SampledFrom([]string{"", "", "n0"}).Draw(t, "only"), rapid.IntRange(0, 2).Draw(t, "quota") == 0}
				q.Enqueue(create(job, model.EvalPending), now)
			},
			func() { // another evaluation of one
				if job := some(slices.Sorted(maps.Keys(w.jobs))); job != "" {
					q.Enqueue(create(job, model.EvalPending), now)
				}
			},
			func() { // room comes free
				name := rapid.SampledFrom([]string{"n0", "n1"}).Draw(t, "node")
				w.rooms[name] += rapid.IntRange(1, 2).Draw(t, "room")
				w.index++
				q.Offer(broker.Offer{Index: w.index, Node: name, Room: broker.Room{CPU: w.rooms[name]}}, now)
			},
			func() { // the quota allows more
				w.quota++
				w.index++
				q.OfferQuota("course", w.index, now)
			},
			func() {
				w.index++
				q.Sweep(w.index, now)
			},
			func() {
				if id := some(slices.Sorted(maps.Keys(inWork))); id != "" {
					q.Nack(id, now)
					delete(inWork, id)
				}
			},
			func() { // a job is stopped, and its evaluations end
				if job := some(slices.Sorted(maps.Keys(w.jobs))); job != "" {
					delete(w.jobs, job)
					for _, e := range w.evals[job] {
						end(e)
					}
				}
			},
			rest,
		}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now++
			switch kind := rapid.IntRange(0, 2).Draw(t, "kind"); {
			case kind == 0:
				rapid.SampledFrom(actions).Draw(t, "action")()
			case kind == 1 || len(inWork) == 0:
				take()
			default:
				step(some(slices.Sorted(maps.Keys(inWork))))
			}
			for _, e := range q.Duplicates() {
				end(e)
			}
		}
		rest()
		switch c := q.Counts(); {
		case c.Ready+c.Waiting+c.Delayed+c.InWork != 0:
			t.Fatalf("it does not come to rest: %+v", c)
		case c.Blocked != len(w.jobs):
			t.Fatalf("%d wait for the %d jobs %v", c.Blocked, len(w.jobs), w.jobs)
		}
		for job, d := range w.jobs {
			if node := w.look().node(d); node != "" {
				t.Fatalf("%s waits for %+v beside %d on %s, and the quota allows %d", job, d, w.rooms[node], node, w.quota)
			}
		}
	})
}
