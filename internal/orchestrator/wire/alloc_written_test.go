package wire_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/jsonform"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/wire"
)

// encodedAlloc is what encoding/json makes of an allocation's wire form; "" = it refuses it.
func encodedAlloc(a *model.Allocation) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if enc.Encode(wire.AllocWithoutJob(a)) != nil {
		return ""
	}
	return string(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}

func writtenAlloc(a *model.Allocation) string {
	var w jsonform.Writer
	wire.WriteAllocWithoutJob(&w, a)
	if w.Err() != nil {
		return ""
	}
	return w.String()
}

// drawInto draws all that a value consists of. What lists and maps have is never nil.
func drawInto(t *rapid.T, v reflect.Value, name string) {
	some := func() bool { return rapid.Bool().Draw(t, name+" is there") }
	switch v.Kind() {
	case reflect.String:
		v.SetString(rapid.OneOf(rapid.Just(""), rapid.StringMatching(`[a-z0-9-]{1,12}`), rapid.String()).Draw(t, name))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, name))
	case reflect.Int, reflect.Int64:
		v.SetInt(rapid.OneOf(rapid.Just(int64(0)), rapid.Int64()).Draw(t, name))
	case reflect.Uint64:
		v.SetUint(rapid.OneOf(rapid.Just(uint64(0)), rapid.Uint64()).Draw(t, name))
	case reflect.Float64:
		v.SetFloat(rapid.Float64().Draw(t, name))
	case reflect.Pointer:
		if v.Type() == reflect.TypeFor[*model.Job]() {
			if some() {
				v.Set(reflect.ValueOf(drawJob(t)))
			}
		} else if some() {
			v.Set(reflect.New(v.Type().Elem()))
			drawInto(t, v.Elem(), name)
		}
	case reflect.Slice:
		if some() {
			v.Set(reflect.MakeSlice(v.Type(), rapid.IntRange(0, 2).Draw(t, name+" length"), 2))
			for i := range v.Len() {
				drawElement(t, v.Index(i), name)
			}
		}
	case reflect.Map:
		if some() {
			v.Set(reflect.MakeMap(v.Type()))
			for range rapid.IntRange(0, 3).Draw(t, name+" length") {
				key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
				drawInto(t, key, name+" key")
				drawElement(t, value, name)
				v.SetMapIndex(key, value)
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			drawInto(t, v.Field(i), name+"."+v.Type().Field(i).Name)
		}
	default:
		t.Fatalf("%s is a %s, which this test does not know", name, v.Kind())
	}
}

func drawElement(t *rapid.T, v reflect.Value, name string) {
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	drawInto(t, v, name)
}

// drawJob has what an allocation's form takes from its job.
func drawJob(t *rapid.T) *model.Job {
	g := &model.TaskGroup{Name: "g"}
	if rapid.Bool().Draw(t, "networks") {
		drawInto(t, reflect.ValueOf(&g.Networks).Elem(), "network")
	}
	return &model.Job{ID: "j", NodePool: rapid.SampledFrom([]string{"", "gpu"}).Draw(t, "pool"), TaskGroups: []*model.TaskGroup{g}}
}

// What is written of an allocation without making its wire form is that form, byte by byte, whatever it has.
func TestAnAllocationIsWrittenAsItsWireForm(t *testing.T) {
	whole := 0
	rapid.Check(t, func(t *rapid.T) {
		a := &model.Allocation{}
		drawInto(t, reflect.ValueOf(a).Elem(), "alloc")
		if rapid.Bool().Draw(t, "of its group") {
			a.TaskGroup = "g"
		}
		if len(a.TaskStates) > 0 && rapid.Bool().Draw(t, "one task of which nothing was told") {
			a.TaskStates["silent"] = nil
		}
		want := encodedAlloc(a)
		if got := writtenAlloc(a); got != want {
			t.Fatalf("written:  %s\nexpected: %s", got, want)
		}
		if want != "" {
			whole++
		}
	})
	if whole == 0 {
		t.Error("no allocation could be encoded at all")
	}
}

func usualAlloc() *model.Allocation {
	events := make([]*model.TaskEvent, 0, 4)
	for _, typ := range []string{model.TaskReceived, model.TaskSetup, model.TaskStarted, model.TaskTerminated} {
		events = append(events, &model.TaskEvent{Type: typ, Time: 1_790_000_000_123_456_789, DisplayMessage: "what has happened to the task", Details: map[string]string{"exit_code": "0", "signal": "0"}})
	}
	return &model.Allocation{
		ID: "46e28338-0f32-48a3-82aa-d23af835471d", Namespace: "default", EvalID: "0e6b4ae2-0f32-48a3-82aa-d23af835471d", Name: "job-1.g[0]", NodeID: "b2d5cf8e-0f32-48a3-82aa-d23af835471d", NodeName: "node-1",
		JobID: "job-1", TaskGroup: "g", Job: &model.Job{ID: "job-1", NodePool: "default", TaskGroups: []*model.TaskGroup{{Name: "g"}}},
		Resources:     model.AllocatedResources{DiskMB: 300, Tasks: map[string]*model.AllocatedTask{"t": {CPU: 20, MemoryMB: 32}}},
		DesiredStatus: model.DesiredRun, ClientStatus: model.ClientComplete, CreateIndex: 17, ModifyIndex: 23, AllocModifyIndex: 17, CreateTime: 1_790_000_000_123_456_789, ModifyTime: 1_790_000_001_123_456_789,
		TaskStates: map[string]*model.TaskState{"t": {State: model.TaskDead, StartedAt: 1_790_000_000_123_456_789, FinishedAt: 1_790_000_001_123_456_789, Events: events}},
		Metrics:    &model.AllocMetric{NodesEvaluated: 1, NodesInPool: 1, NodesAvailable: map[string]int{"dc1": 1}, ScoreMeta: []model.NodeScore{{NodeID: "b2d5cf8e-0f32-48a3-82aa-d23af835471d", Scores: map[string]float64{"binpack": 0.0117}, Norm: 0.0117}}},
	}
}

// An allocation such as there are thousands of in a second is written without garbage.
func TestAUsualAllocationIsWrittenWithoutGarbage(t *testing.T) {
	a := usualAlloc()
	if got, want := writtenAlloc(a), encodedAlloc(a); got != want {
		t.Fatalf("written:  %s\nexpected: %s", got, want)
	}
	var w jsonform.Writer
	if n := testing.AllocsPerRun(100, func() {
		w.Reset()
		wire.WriteAllocWithoutJob(&w, a)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAllocation(b *testing.B) {
	a := usualAlloc()
	b.Run("written", func(b *testing.B) {
		var w jsonform.Writer
		for b.Loop() {
			w.Reset()
			wire.WriteAllocWithoutJob(&w, a)
		}
	})
	b.Run("by encoding/json", func(b *testing.B) {
		var w jsonform.Writer
		for b.Loop() {
			w.Reset()
			w.Value(wire.AllocWithoutJob(a))
		}
	})
}
