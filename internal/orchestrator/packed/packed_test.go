package packed_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/packed"
)

// fill gives a value contents that are not zero, so that a field which nobody thought of is missed.
func fill(v reflect.Value, seed *int) {
	*seed++
	switch v.Kind() {
	case reflect.Pointer:
		if v.Type() == reflect.TypeFor[*model.Job]() {
			v.Set(reflect.ValueOf(&model.Job{ID: fmt.Sprint("job-", *seed)}))
			return
		}
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), seed)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), seed)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), seed)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(k, seed)
		fill(e, seed)
		v.SetMapIndex(k, e)
	case reflect.String:
		v.SetString(fmt.Sprint("text-", *seed))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*seed))
	case reflect.Uint64:
		v.SetUint(uint64(*seed))
	case reflect.Float64:
		v.SetFloat(float64(*seed) / 3)
	default:
		panic(v.Kind())
	}
}

func jobOut(j *model.Job) ([]byte, error) { return []byte(j.ID), nil }

func jobIn(b []byte) (*model.Job, error) { return &model.Job{ID: string(b)}, nil }

func roundTrip(t *testing.T, list []*model.Allocation) {
	t.Helper()
	b, err := packed.Allocs(list, packed.Options{Job: jobOut})
	if err != nil {
		t.Fatal(err)
	}
	got, err := packed.ReadAllocs(b, jobIn)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(list, got); diff != "" {
		t.Error(diff)
	}
}

// Two allocations that differ in one field only are told apart, whichever it is.
func TestEachFieldOfAnAllocationIsItsOwn(t *testing.T) {
	typ := reflect.TypeFor[model.Allocation]()
	for i := range typ.NumField() {
		t.Run(typ.Field(i).Name, func(t *testing.T) {
			a, b := &model.Allocation{Job: &model.Job{ID: "j"}}, &model.Allocation{Job: &model.Job{ID: "j"}}
			seed := 1
			fill(reflect.ValueOf(b).Elem().Field(i), &seed)
			roundTrip(t, []*model.Allocation{a, b, a, b, b})
		})
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[model.AllocMetric](), reflect.TypeFor[model.AllocatedResources]()} {
		for i := range typ.NumField() {
			t.Run(typ.Name()+typ.Field(i).Name, func(t *testing.T) {
				a, b := &model.Allocation{Metrics: &model.AllocMetric{}}, &model.Allocation{Metrics: &model.AllocMetric{}}
				of := reflect.ValueOf(b.Metrics).Elem()
				if typ == reflect.TypeFor[model.AllocatedResources]() {
					of = reflect.ValueOf(&b.Resources).Elem()
				}
				seed := 1
				fill(of.Field(i), &seed)
				roundTrip(t, []*model.Allocation{a, b, a, b, b})
			})
		}
	}
}

func TestNothingOfAReportIsLost(t *testing.T) {
	full := &model.AllocUpdate{}
	seed := 0
	fill(reflect.ValueOf(full).Elem(), &seed)
	list := []*model.AllocUpdate{
		full, {}, {ID: "0f0e0d0c-0b0a-4908-8706-050403020100", TaskStates: map[string]*model.TaskState{"a": nil, "b": {Events: []*model.TaskEvent{nil, {}}}}},
		{ID: "0F0E0D0C-0b0a-4908-8706-050403020100"}, {TaskStates: map[string]*model.TaskState{}}, full,
	}
	b, err := packed.Reports(list)
	if err != nil {
		t.Fatal(err)
	}
	got, err := packed.ReadReports(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(list, got); diff != "" {
		t.Error(diff)
	}
}

// Allocations of a group cost a fraction of what they cost alone.
func TestAGroupIsDense(t *testing.T) {
	tasks := map[string]*model.AllocatedTask{"t": {CPU: 100, MemoryMB: 10}}
	var list []*model.Allocation
	for i := range 1000 {
		list = append(list, &model.Allocation{
			ID: fmt.Sprintf("%08x-0b0a-4908-8706-050403020100", i), NodeID: fmt.Sprintf("0f0e0d0c-0b0a-4908-8706-%012x", i%7), NodeName: fmt.Sprint("node-", i%7),
			Name: fmt.Sprintf("job.group[%d]", i), JobID: "job", TaskGroup: "group", Resources: model.AllocatedResources{Tasks: tasks, DiskMB: 1},
			Metrics: &model.AllocMetric{NodesEvaluated: 7, ScoreMeta: []model.NodeScore{{
				NodeID: fmt.Sprintf("0f0e0d0c-0b0a-4908-8706-%012x", i%7), Scores: map[string]float64{"binpack": float64(i / 7)}, Norm: float64(i / 7),
			}}},
		})
	}
	roundTrip(t, list)
	b, _ := packed.Allocs(list, packed.Options{})
	plain, _ := json.Marshal(list)
	if len(b) > 80*len(list) || len(b) > len(plain)/8 {
		t.Errorf("%d bytes, %d as JSON", len(b), len(plain))
	}
}

// Whatever comes, it is an error or a list, and never more than it has bytes for.
func TestDamage(t *testing.T) {
	full := &model.Allocation{}
	seed := 0
	fill(reflect.ValueOf(full).Elem(), &seed)
	good, err := packed.Allocs([]*model.Allocation{full, {Metrics: full.Metrics}, full}, packed.Options{Job: jobOut})
	if err != nil {
		t.Fatal(err)
	}
	u := &model.AllocUpdate{}
	fill(reflect.ValueOf(u).Elem(), &seed)
	report, err := packed.Reports([]*model.AllocUpdate{u, {}, u})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		for _, b := range [][]byte{append([]byte(nil), good...), append([]byte(nil), report...)} {
			for range rapid.IntRange(1, 4).Draw(t, "changes") {
				b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "to")
			}
			b = b[:rapid.IntRange(0, len(b)).Draw(t, "length")]
			_, _ = packed.ReadAllocs(b, jobIn)
			_, _ = packed.ReadReports(b)
		}
	})
}
