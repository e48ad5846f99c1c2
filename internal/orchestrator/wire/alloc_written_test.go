package wire_test

import (
	"math"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/jsonform"
	"rockpool/internal/orchestrator/jsonform/jsonformtest"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/wire"
)

func encodedAlloc(a *model.Allocation) string { return jsonformtest.Encoded(wire.AllocWithoutJob(a)) }

func writtenAlloc(a *model.Allocation) string {
	return jsonformtest.Written(func(w *jsonform.Writer) { wire.WriteAllocWithoutJob(w, a) })
}

// drawJob has what an allocation's form takes from its job.
func drawJob(t *rapid.T) any {
	if rapid.Bool().Draw(t, "no job") {
		return (*model.Job)(nil)
	}
	g := &model.TaskGroup{Name: "g"}
	jsonformtest.Draw(t, &g.Networks, nil)
	return &model.Job{ID: "j", NodePool: rapid.SampledFrom([]string{"", "gpu"}).Draw(t, "pool"), TaskGroups: []*model.TaskGroup{g}}
}

// What is written of an allocation without making its wire form is that form, byte by byte, whatever it has.
func TestAnAllocationIsWrittenAsItsWireForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := &model.Allocation{}
		jsonformtest.Draw(t, a, map[reflect.Type]func(*rapid.T) any{reflect.TypeFor[*model.Job](): drawJob})
		if rapid.Bool().Draw(t, "of its group") {
			a.TaskGroup = "g"
		}
		if len(a.TaskStates) > 0 && rapid.Bool().Draw(t, "one task of which nothing was told") {
			a.TaskStates["silent"] = nil
		}
		if got, want := writtenAlloc(a), encodedAlloc(a); got != want || want == "" {
			t.Fatalf("written:  %s\nexpected: %s", got, want)
		}
	})
	a := usualAlloc()
	a.Metrics.ScoreMeta[0].Norm = math.NaN()
	if got, want := writtenAlloc(a), encodedAlloc(a); got != "" || want != "" {
		t.Errorf("a score that is no number is written as %q, by encoding/json as %q", got, want)
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
