package leader

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/orchestrator/broker"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
)

// The newest snapshot is seen by workers before the ledger has been told of it. An evaluation that finds no room in that moment has not seen what came free with it, and
// must be tried again when the ledger has: it would wait for ever otherwise, if nothing else comes free.
func TestRoomThatTheLedgerHadNotSeenIsNotOverlooked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.New()
		tm := &term{cfg: Config{Store: store}, broker: broker.New(broker.DefaultLimits), ledger: &ledger{}, heartbeats: newHeartbeats(time.Hour, time.Hour)}
		node := &model.Node{
			ID: "n", Datacenter: "dc1", Status: model.NodeReady, SchedulingEligibility: model.NodeEligible, Resources: model.NodeResources{CPU: 100, MemoryMB: 100, DiskMB: 100},
		}
		register := func(index uint64, n *model.Node) (told func()) {
			t.Helper()
			var c state.Commit
			end := store.Observe(func(of state.Commit) { c = of })
			defer end()
			if err := store.Update(index, 1, "NodeRegistration", func(tx *state.Tx) error { tx.RegisterNode(n); return nil }); err != nil {
				t.Fatal(err)
			}
			return func() { tm.observe(c) }
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		next := func() *model.Evaluation {
			e, _ := tm.broker.Dequeue(ctx)
			return e
		}

		empty := store.Snapshot()
		tm.ledger.begin(empty)
		e := &model.Evaluation{ID: "e", Namespace: "default", JobID: "j", Status: model.EvalBlocked}
		tm.broker.Enqueue(e)
		if next() != e {
			t.Fatal("it is not handed out")
		}
		told := register(6, node)
		v := tm.view(store.Snapshot())
		if v.Index() != 6 || v.fleet.Seat("n") != nil {
			t.Fatalf("the view is of %d, and its fleet has the node: %v", v.Index(), v.fleet.Seat("n"))
		}
		d := &sched.Decision{Failed: map[string]*model.AllocMetric{"g": {}}, Need: sched.Size{CPU: 10, MemoryMB: 10}}
		if err := tm.finish(ctx, e, d, v); err != nil {
			t.Fatal(err)
		}
		told()
		tm.broker.Ack("e")
		if got := next(); got == nil || got.ID != "e" {
			t.Fatal("the node came up, and the evaluation still waits for one")
		}
		// What has been seen is no reason to try again.
		if err := tm.finish(ctx, e, d, tm.view(store.Snapshot())); err != nil {
			t.Fatal(err)
		}
		tm.broker.Ack("e")
		if got := next(); got != nil {
			t.Error("it is tried again on what it was tried on")
		}
		// A snapshot from before is as old as it is, however far the ledger has come.
		if v := tm.view(empty); v.known != empty.Index() {
			t.Errorf("known up to %d of %d", v.known, empty.Index())
		}
	})
}

// deaf is a log that takes everything and applies nothing.
type deaf struct{}

func (deaf) Apply(context.Context, any) (any, uint64, error) { return nil, 0, nil }
func (deaf) Barrier(context.Context) error                   { return nil }

// An evaluation that looked at one node only stands for one that waits for room on any: it must not wait for less than that one.
func TestWhoHasLookedAtOneNodeWaitsForAny(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tm := &term{cfg: Config{Store: state.New(), Log: deaf{}}, broker: broker.New(broker.DefaultLimits), completions: newCompletions(func(string) {})}
		tm.broker.Block(&model.Evaluation{ID: "all", Namespace: "default", JobID: "j", Status: model.EvalBlocked}, 5, broker.Room{CPU: 10})
		e := &model.Evaluation{ID: "e", Namespace: "default", JobID: "j", NodeID: "n", TriggeredBy: model.TriggerNodeUpdate, Status: model.EvalPending}
		d := &sched.Decision{Failed: map[string]*model.AllocMetric{"large": {}}, Need: sched.Size{CPU: 50}, Classes: map[string]bool{"c": false}}
		if err := tm.finish(t.Context(), e, d, view{snap: tm.cfg.Store.Snapshot(), known: 6}); err != nil {
			t.Fatal(err)
		}
		tm.broker.Offer(broker.Offer{Index: 7, Node: "m", Class: "c", Room: broker.Room{CPU: 10}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got, _ := tm.broker.Dequeue(ctx); got == nil || got.JobID != "j" {
			t.Error("it sleeps beside room that the one before it waited for")
		}
	})
}
