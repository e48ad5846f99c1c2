package packed_test

import (
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
		form, err := packed.Job(&model.Job{ID: id, TaskGroups: []*model.TaskGroup{
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
	alloc := func(id string, available int) *model.Allocation {
		b, err := packed.Allocs([]*model.Allocation{{
			ID: id, Metrics: &model.AllocMetric{AllocationTimeNS: int64(available), NodesAvailable: map[string]int{"dc1": available}},
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
