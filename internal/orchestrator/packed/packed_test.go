package packed_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
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

// What a value has in MessagePack has no difference between nil and empty where the field is left out when it is empty.
var nilIsEmpty = cmpopts.EquateEmpty()

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

// random fills a value with what is nil, empty, zero or not, as it comes.
func random(t *rapid.T, v reflect.Value) {
	some := rapid.IntRange(0, 2).Draw(t, "some")
	switch v.Kind() {
	case reflect.Pointer:
		if some == 0 {
			return
		}
		v.Set(reflect.New(v.Type().Elem()))
		if v.Type() == reflect.TypeFor[*model.Job]() {
			v.Interface().(*model.Job).ID = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "job")
			return
		}
		random(t, v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			random(t, v.Field(i))
		}
	case reflect.Slice:
		if some > 0 {
			v.Set(reflect.MakeSlice(v.Type(), some-1, some-1))
		}
		for i := range v.Len() {
			random(t, v.Index(i))
		}
	case reflect.Map:
		if some > 0 {
			v.Set(reflect.MakeMap(v.Type()))
		}
		for range some - 1 {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			random(t, k)
			random(t, e)
			v.SetMapIndex(k, e)
		}
	case reflect.String:
		v.SetString(rapid.SampledFrom([]string{"", "x", "job.g[1]", "job.g[22]", "0f0e0d0c-0b0a-4908-8706-050403020100"}).Draw(t, "text"))
	case reflect.Bool:
		v.SetBool(some > 0)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(some) - 1)
	case reflect.Uint64:
		v.SetUint(uint64(some))
	case reflect.Float64:
		v.SetFloat(float64(some) / 3)
	}
}

func TestWhateverIsPackedComesOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var allocs []*model.Allocation
		var reports []*model.AllocUpdate
		for range rapid.IntRange(0, 3).Draw(t, "n") {
			a, u := new(model.Allocation), new(model.AllocUpdate)
			random(t, reflect.ValueOf(a).Elem())
			random(t, reflect.ValueOf(u).Elem())
			allocs, reports = append(allocs, a, a), append(reports, u)
		}
		b, err := packed.Reports(reports)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := packed.ReadReports(b); err != nil || !cmp.Equal(got, reports, nilIsEmpty) {
			t.Fatalf("%v\n%s", err, cmp.Diff(reports, got, nilIsEmpty))
		}
		if b, err = packed.Allocs(allocs, packed.Options{Job: jobOut}); err != nil {
			t.Fatal(err)
		}
		if got, err := packed.ReadAllocs(b, jobIn); err != nil || !cmp.Equal(got, allocs, nilIsEmpty) {
			t.Fatalf("%v\n%s", err, cmp.Diff(allocs, got, nilIsEmpty))
		}
	})
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
