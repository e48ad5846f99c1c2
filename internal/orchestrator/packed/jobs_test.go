package packed_test

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/packed"
)

// A job is read as it would be if it shared nothing.
func TestJobsAreReadWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		j, plain := new(model.Job), new(model.Job)
		random(t, reflect.ValueOf(j).Elem())
		form, err := packed.Job(j)
		if err == nil {
			err = packed.Decode(form, plain)
		}
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got, err := packed.ReadJob(form); err != nil || !cmp.Equal(got, plain) {
				t.Fatalf("%v\n%s", err, cmp.Diff(plain, got))
			}
		}
	})
	if err := packed.CheckShared(); err != nil {
		t.Error(err)
	}
}

func TestEqualPartsAreShared(t *testing.T) {
	read := func(id, meta string) *model.Job {
		form, err := packed.Job(&model.Job{ID: id, Datacenters: []string{"dc1", "dc2"}, TaskGroups: []*model.TaskGroup{
			{Name: "work", Count: 1, Tasks: []*model.Task{{Name: "t", Config: map[string]any{"image": "x"}}}}, {Name: "notes", Meta: map[string]string{"of": meta}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := packed.ReadJob(form)
		if err != nil || got.ID != id || got.TaskGroups[1].Meta["of"] != meta {
			t.Fatalf("%+v, %v", got, err)
		}
		return got
	}
	one, two := read("one", "a"), read("two", "b")
	if one.TaskGroups[0] != two.TaskGroups[0] || one.TaskGroups[1] == two.TaskGroups[1] {
		t.Error("equal groups are two, or different ones are one")
	}
	alone := func(group string) *model.Job {
		form, err := packed.Job(&model.Job{Datacenters: []string{"dc1", "dc2"}, TaskGroups: []*model.TaskGroup{{Name: group}}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := packed.ReadJob(form)
		if err != nil || got.TaskGroups[0].Name != group {
			t.Fatalf("%+v, %v", got, err)
		}
		return got
	}
	a1, a2, other := alone("a"), alone("a"), alone("b")
	if &a1.TaskGroups[0] != &a2.TaskGroups[0] || &a1.TaskGroups[0] == &other.TaskGroups[0] || &a1.Datacenters[0] != &one.Datacenters[0] {
		t.Error("equal lists of a group or of datacenters are two, or different ones are one")
	}
	alloc := func(id string, available int) *model.Allocation {
		b, err := packed.Allocs([]*model.Allocation{{
			ID: id, Metrics: &model.AllocMetric{AllocationTimeNS: int64(available), NodesAvailable: map[string]int{"dc1": available}, ScoreMeta: []model.NodeScore{
				{NodeID: "n" + id, Norm: 0.5, Scores: map[string]float64{"binpack": float64(available), "job-anti-affinity": 1}},
			}},
			Resources: model.AllocatedResources{DiskMB: available, Tasks: map[string]*model.AllocatedTask{"t": {CPU: 7}}},
		}}, packed.Options{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := packed.ReadAllocs(b, nil)
		if err != nil || len(got) != 1 || got[0].Metrics.NodesAvailable["dc1"] != available || got[0].Resources.DiskMB != available {
			t.Fatalf("%+v, %v", got, err)
		}
		return got[0]
	}
	a, b, c := alloc("a", 3), alloc("b", 3), alloc("c", 4)
	if a.Resources.Tasks["t"] != b.Resources.Tasks["t"] || a.Resources.Tasks["t"] != c.Resources.Tasks["t"] {
		t.Error("equal parts are two")
	}
	same := func(x, y map[string]int) bool {
		return reflect.ValueOf(x).UnsafePointer() == reflect.ValueOf(y).UnsafePointer()
	}
	if !same(a.Metrics.NodesAvailable, b.Metrics.NodesAvailable) || same(a.Metrics.NodesAvailable, c.Metrics.NodesAvailable) {
		t.Error("equal counts are two, or different ones are one")
	}
	scores := func(a *model.Allocation) map[string]float64 { return a.Metrics.ScoreMeta[0].Scores }
	at := func(a *model.Allocation) uintptr { return reflect.ValueOf(scores(a)).Pointer() }
	if at(a) != at(b) || at(a) == at(c) || scores(b)["binpack"] != 3 || scores(c)["binpack"] != 4 || b.Metrics.ScoreMeta[0].NodeID != "nb" {
		t.Errorf("equal scores are two, or different ones are one: %v, %v, %v", scores(a), scores(b), scores(c))
	}
	if err := packed.CheckShared(); err != nil {
		t.Error(err)
	}
}

// Scores that are too long to be remembered are read as they are.
func TestLongScoresAreRead(t *testing.T) {
	long := map[string]float64{}
	for i := range 300 {
		long[fmt.Sprint("score-", i)] = float64(i)
	}
	for range 2 {
		b, err := packed.Allocs([]*model.Allocation{{ID: "a", Metrics: &model.AllocMetric{ScoreMeta: []model.NodeScore{{Scores: long}, {Scores: map[string]float64{}}, {}}}}}, packed.Options{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := packed.ReadAllocs(b, nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]model.NodeScore{{Scores: long}, {Scores: map[string]float64{}}, {}}, got[0].Metrics.ScoreMeta); diff != "" {
			t.Error(diff)
		}
	}
}

func TestADamagedGroupIsAnError(t *testing.T) {
	damaged, err := packed.Append(nil, struct{ TaskGroups []any }{[]any{"no group"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, form := range [][]byte{damaged, {0xc0}, {}} {
		if j, err := packed.ReadJob(form); err == nil {
			t.Errorf("%x is read as %v", form, j)
		}
	}
}
