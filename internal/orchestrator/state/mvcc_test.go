package state

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/model"
)

func fired(w Watch) bool {
	for ch := range w {
		select {
		case <-ch:
			return true
		default:
		}
	}
	return false
}

// Whatever is written, each version stays what it was, an index has what a walk of all objects finds, and whoever watches a key is told of each change
// that its next read would show.
func TestVersionsIndexesAndWatches(t *testing.T) {
	type view struct {
		snap  *Snapshot
		want  map[string]model.Allocation
		watch Watch
		job   string
		seen  []string
	}
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		now := map[string]model.Allocation{}
		var views []view
		index := uint64(0)
		jobs, nodes := []string{"j", "job", "jo"}, []string{"n", "n1"}
		ofJob := func(snap *Snapshot, w Watch, job string) []string {
			var out []string
			for a := range snap.AllocsByJob(w, "default", job) {
				out = append(out, fmt.Sprint(a.ID, a.ModifyIndex))
			}
			return out
		}
		for range rapid.IntRange(1, 12).Draw(t, "commits") {
			index++
			err := s.Update(index, 1, "Test", func(tx *Tx) error {
				for range rapid.IntRange(1, 40).Draw(t, "writes") {
					id := fmt.Sprint(rapid.IntRange(0, 60).Draw(t, "id"))
					if rapid.IntRange(0, 4).Draw(t, "kind") == 0 {
						if old := tx.Alloc(nil, id); old != nil {
							tx.delete(tableAllocs, old)
							delete(now, id)
						}
						continue
					}
					a := model.Allocation{
						ID: id, Namespace: "default", JobID: rapid.SampledFrom(jobs).Draw(t, "job"), NodeID: rapid.SampledFrom(nodes).Draw(t, "node"),
						DesiredStatus: model.DesiredStop, ClientStatus: rapid.SampledFrom([]string{model.ClientRunning, model.ClientComplete}).Draw(t, "status"),
						ModifyIndex: index, AllocModifyIndex: index, ModifyTime: int64(index),
					}
					tx.put(tableAllocs, &a)
					now[id] = a
					// What is written during a walk does not change the walk.
					if rapid.IntRange(0, 9).Draw(t, "walk") == 0 {
						before := ofJob(&tx.Snapshot, nil, a.JobID)
						var during []string
						for b := range tx.AllocsByJob(nil, "default", a.JobID) {
							during = append(during, fmt.Sprint(b.ID, b.ModifyIndex))
							c := *b
							c.NextAllocation = "x"
							tx.put(tableAllocs, &c)
							now[c.ID] = c
						}
						if !slices.Equal(before, during) {
							t.Fatalf("a walk that writes saw %v, not %v", during, before)
						}
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range views {
				if got := ofJob(s.Snapshot(), nil, v.job); !slices.Equal(got, v.seen) && !fired(v.watch) {
					t.Fatalf("job %s went from %v to %v, and its watch was not told", v.job, v.seen, got)
				}
			}
			v := view{snap: s.Snapshot(), want: map[string]model.Allocation{}, watch: NewWatch(), job: rapid.SampledFrom(jobs).Draw(t, "watched")}
			v.seen = ofJob(v.snap, v.watch, v.job)
			if fired(v.watch) {
				t.Fatal("a watch fired before anything changed")
			}
			for id, a := range now {
				v.want[id] = a
			}
			views = append(views, v)
		}
		for _, v := range views {
			n := 0
			for a := range v.snap.Allocs(nil, "") {
				n++
				if w := v.want[a.ID]; w.ModifyIndex != a.ModifyIndex || w.JobID != a.JobID {
					t.Fatalf("allocation %s of an old version has changed", a.ID)
				}
			}
			if n != len(v.want) {
				t.Fatalf("a version has %d allocations, not %d", n, len(v.want))
			}
			for _, node := range nodes {
				since := rapid.Uint64Range(0, index).Draw(t, "since")
				var want, got []string
				for _, a := range v.want {
					if a.NodeID == node && a.AllocModifyIndex > since {
						want = append(want, fmt.Sprint(hexIndex(a.AllocModifyIndex), a.ID))
					}
				}
				for a := range v.snap.AllocsByNodeSince(node, since) {
					got = append(got, fmt.Sprint(hexIndex(a.AllocModifyIndex), a.ID))
				}
				if slices.Sort(want); !slices.Equal(got, want) {
					t.Fatalf("node %s since %d: %v, not %v", node, since, got, want)
				}
			}
			var ended, newest []int64
			for a := range v.snap.EndedAllocs(0) {
				ended = append(ended, a.ModifyTime)
			}
			for a := range v.snap.NewestEndedAllocs() {
				newest = append(newest, a.ModifyTime)
			}
			slices.Reverse(newest)
			if !slices.IsSortedFunc(ended, cmp.Compare[int64]) || !slices.Equal(ended, newest) {
				t.Fatalf("what has ended is %v, and backwards %v", ended, newest)
			}
		}
	})
}

// A watch that is made on an old version, after what it watches has changed, fires at once.
func TestAWatchOfAnOldVersionFires(t *testing.T) {
	s := New()
	put := func(index uint64, id string) {
		if err := s.Update(index, 1, "Test", func(tx *Tx) error { tx.put(tableNodes, &model.Node{ID: id}); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	put(1, "a")
	old := s.Snapshot()
	put(2, "a")
	for name, read := range map[string]func(Watch){
		"one": func(w Watch) { old.Node(w, "a") }, "all": func(w Watch) { old.Nodes(w, "") }, "prefix": func(w Watch) { old.Nodes(w, "x") },
	} {
		w := NewWatch()
		if read(w); !fired(w) {
			t.Errorf("%s: the watch waits for a change that has come already", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := NewWatch()
	s.Snapshot().Node(w, "a")
	if err := w.WatchCtx(ctx); err == nil {
		t.Error("a watch that nothing fires ended without an error")
	}
}
