package sched_test

import (
	"testing"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
)

// scheduleFor is schedule for an evaluation of this id, which may have been looked at before.
func (w *world) scheduleFor(t *testing.T, eval string) *sched.Decision {
	t.Helper()
	e := *evaluation
	e.ID = eval
	d := sched.Schedule(w, &e, int64(w.index))
	w.index++
	w.carryOut(d)
	for _, a := range d.Place {
		if !ident.Valid(a.ID) || a.ID[14] != '8' {
			t.Fatalf("%q is no UUID of version 8", a.ID)
		}
	}
	w.allocs = append(w.allocs, d.Place...)
	return d
}

// What one pass places lies in one row, but for the first of all, which lies beside its evaluation; seven digits tell its first 4,096 apart and eight all, and nothing else begins as they do: neither what later passes of the same evaluation place,
// nor its evaluation, nor its deployment.
func TestIDsOfAPass(t *testing.T) {
	const rounds, each = 3, 5000
	w := service(0, model.UpdatePolicy{MaxParallel: 1})
	w.nodes = []*model.Node{node("n1", 1_000_000_000, 1_000_000_000)}
	w.nodes[0].Resources.DiskMB = 1_000_000_000
	w.allocs = nil
	const eval = "6f1c2a9e-3b5d-4c47-9a80-2d4be1f7c055" // the same ids in each run
	begins := map[string]string{eval[:8]: "its evaluation"}
	note := func(id, what string) {
		if other, taken := begins[id[:8]]; taken {
			t.Fatalf("%s, %s, begins like %s", id, what, other)
		}
		begins[id[:8]] = what
	}
	for round := range rounds {
		w.job.TaskGroups[0].Count += each
		d := w.scheduleFor(t, eval)
		if len(d.Place) != each {
			t.Fatalf("%d of %d are placed", len(d.Place), each)
		}
		if d.Deployment != nil {
			note(d.Deployment.ID, "a deployment")
		}
		short := map[string]bool{}
		for i, a := range d.Place {
			note(a.ID, "an allocation")
			if a.ID[:4] != d.Place[1].ID[:4] && (i > 0 || round > 0) {
				t.Fatalf("%s and %s of one pass lie apart", a.ID, d.Place[1].ID)
			}
			if i < 4096 && short[a.ID[:7]] {
				t.Fatalf("seven digits of %s are those of another", a.ID)
			}
			short[a.ID[:7]] = true
		}
	}
	if len(w.deployments) == 0 {
		t.Error("no deployment was made")
	}
}

// The only allocations of evaluations made together lie together, and what is placed one by one in later passes of one evaluation does not begin alike.
func TestIDsOfSingleAllocations(t *testing.T) {
	const evals, passes = 50, 5
	begins, rows, evalRows := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for range evals {
		eval := ident.NewNear()
		evalRows[eval[:4]], begins[eval[:8]] = true, true
		w := &world{job: job(0), nodes: []*model.Node{node("n1", 100_000, 100_000)}}
		for pass := range passes {
			w.job.TaskGroups[0].Count++
			d := w.scheduleFor(t, eval)
			if len(d.Place) != 1 {
				t.Fatalf("%d are placed", len(d.Place))
			}
			id := d.Place[0].ID
			if begins[id[:8]] {
				t.Fatalf("%s begins like another, or an evaluation", id)
			}
			begins[id[:8]] = true
			if pass == 0 {
				rows[id[:4]] = true
			}
		}
	}
	if len(rows) != len(evalRows) || len(rows) > 2 {
		t.Errorf("%d evaluations in %d rows have their first allocations in %d", evals, len(evalRows), len(rows))
	}
}
