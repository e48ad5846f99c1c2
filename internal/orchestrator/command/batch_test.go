package command_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

func pack(t *testing.T, entries ...any) []byte {
	t.Helper()
	b, err := command.Encode(batchOf(entries...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A refused part changes nothing, and what stands beside it is applied; each change keeps the kind of its own entry.
func TestPartsOfABatchStandAlone(t *testing.T) {
	s := state.New()
	apply(t, s, 1, &command.JobRegister{Job: testJob("there"), Eval: eval("e0", "there")})
	var got []string
	s.Observe(func(c state.Commit) {
		for _, ch := range c.Changes {
			switch o := ch.After.(type) {
			case *model.Job:
				got = append(got, ch.Kind+" "+o.ID+" "+o.Status)
			case *model.Evaluation:
				got = append(got, ch.Kind+" "+o.ID+" "+o.Status)
			}
		}
	})
	r, err := command.Apply(s, 2, pack(t,
		&command.JobRegister{Now: 5, Job: testJob("a"), Eval: eval("ea", "a")},
		&command.JobRegister{Now: 6, Job: testJob("there"), EnforceIndex: true, Eval: eval("refused", "there")},
		&command.EvalUpdate{Now: 7, Finish: []*model.Evaluation{{ID: "e0", Namespace: "default", JobID: "there", Status: model.EvalComplete}}},
		&command.JobDeregister{Now: 8, Namespace: "default", JobID: "nothing"},
	))
	if err != nil {
		t.Fatal(err)
	}
	results := r.([]any)
	if refused, ok := results[1].(error); !ok || !fault.Is(refused, fault.Conflict) {
		t.Errorf("the conflict came to %v", results[1])
	}
	if results[0].(*command.Registered).JobModifyIndex != 2 || results[3] != false {
		t.Errorf("the results are %v", results)
	}
	snap := s.Snapshot()
	if snap.Eval(nil, "refused") != nil || snap.Job(nil, "default", "a").SubmitTime != 5 || snap.Eval(nil, "e0").ModifyTime != 7 {
		t.Error("a refused part has changed something, or a part has not its own time")
	}
	want := []string{"JobRegistered a pending", "JobRegistered ea pending", "EvaluationUpdated e0 complete", "EvaluationUpdated there dead"}
	if !slices.Equal(got, want) {
		t.Errorf("changes are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A state made by batches is what the same entries make one by one, but for the indexes.
func TestABatchIsItsEntries(t *testing.T) {
	one, many := state.New(), state.New()
	var entries []any
	for i := range 20 {
		entries = append(entries, &command.JobRegister{Now: int64(i), Job: testJob(fmt.Sprint("j", i)), Eval: eval(fmt.Sprint("e", i), fmt.Sprint("j", i))})
	}
	for i, e := range entries {
		apply(t, one, uint64(i+1), e)
	}
	if _, err := command.Apply(many, 1, pack(t, entries...)); err != nil {
		t.Fatal(err)
	}
	a, b := one.Snapshot(), many.Snapshot()
	for j := range a.Jobs(nil, "*", "") {
		k := b.Job(nil, j.Namespace, j.ID)
		if k == nil || !state.SameSpec(j, k) || k.Status != j.Status || k.SubmitTime != j.SubmitTime {
			t.Errorf("job %s differs", j.ID)
		}
	}
}

func TestWhatMustStandAloneIsNotTakenInABatch(t *testing.T) {
	if _, err := command.Apply(state.New(), 1, pack(t, &command.SchedulerConfig{Config: state.DefaultSchedulerConfig()})); !errors.Is(err, command.ErrUnknown) {
		t.Errorf("a batch with an entry that must stand alone came to %v", err)
	}
	if _, ok := command.Batchable(&command.SchedulerConfig{}); ok {
		t.Error("it may be in a batch")
	}
}
