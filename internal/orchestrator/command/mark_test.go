package command_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// marked is a state in which the job 10-a runs: registered at index 2, placed at 3, evaluated at 4.
func marked(t *testing.T) *state.Store {
	s := state.New()
	apply(t, s, 1, log()[0])
	apply(t, s, 2, &command.JobRegister{Now: 20, Job: markable(), Eval: eval("e1", "10-a")})
	apply(t, s, 3, &command.PlanResults{Now: 30, Plans: []*state.Placement{{EvalID: "e1", Namespace: "default", JobID: "10-a", JobCreateIndex: 2, JobModifyIndex: 2,
		Place: []*model.Allocation{{ID: "a1", Namespace: "default", EvalID: "e1", Name: "10-a.g[0]", NodeID: "n1", JobID: "10-a", TaskGroup: "g",
			DesiredStatus: model.DesiredRun, ClientStatus: model.ClientRunning}}}}})
	apply(t, s, 4, &command.EvalUpdate{Now: 40, Finish: []*model.Evaluation{{ID: "e1", Namespace: "default", JobID: "10-a", Status: model.EvalComplete}}})
	return s
}

func mark(at uint64, group string, meta map[string]string) *command.JobMark {
	return &command.JobMark{Now: 50, Namespace: "default", JobID: "10-a", Group: group, AtIndex: at, Meta: meta}
}

func TestAMarkChangesMetaAndNothingElse(t *testing.T) {
	s := marked(t)
	before := s.Snapshot()
	old, alloc := before.Job(nil, "default", "10-a"), before.Alloc(nil, "a1")
	if r, ok := apply(t, s, 5, mark(2, "config", map[string]string{"used": "true", "timeout": "30"})).(*command.Registered); !ok || r.JobModifyIndex != 5 {
		t.Fatalf("%+v", r)
	}
	now := s.Snapshot()
	j := now.Job(nil, "default", "10-a")
	if want := map[string]string{"used": "true", "timeout": "30"}; !maps.Equal(j.Group("config").Meta, want) {
		t.Errorf("the meta is %v", j.Group("config").Meta)
	}
	if old.Group("config").Meta["used"] != "false" || len(old.Group("config").Meta) != 1 {
		t.Error("a job that somebody reads was changed")
	}
	if j.JobModifyIndex != 5 || j.ModifyIndex != 5 || j.Version != old.Version || j.CreateIndex != 2 || j.Status != old.Status || j.SubmitTime != old.SubmitTime {
		t.Errorf("%+v", j)
	}
	versions := slices.Collect(now.JobVersions(nil, "default", "10-a"))
	if len(versions) != 1 || versions[0].JobModifyIndex != 5 {
		t.Errorf("%d versions", len(versions))
	}
	if now.Alloc(nil, "a1") != alloc || len(slices.Collect(now.EvalsByJob(nil, "default", "10-a"))) != 1 {
		t.Error("an allocation or an evaluation came of it")
	}
	// Whoever plans from now on plans for what there is: the allocation gets the present specification in place.
	done := apply(t, s, 6, &command.PlanResults{Now: 60, Plans: []*state.Placement{{Namespace: "default", JobID: "10-a", JobCreateIndex: 2, JobModifyIndex: 5, Update: []string{"a1"}}}}).([]state.Placed)
	if done[0].Refused || s.Snapshot().Alloc(nil, "a1").Job.JobModifyIndex != 5 {
		t.Errorf("a later plan: %+v", done[0])
	}
}

func TestAMarkIsComparedAndOnlyForWhatNothingDependsOn(t *testing.T) {
	used := map[string]string{"used": "true"}
	for name, c := range map[string]struct {
		before []any
		mark   *command.JobMark
		kind   fault.Kind
		text   string
	}{
		"an older index":             {nil, mark(1, "config", used), fault.Conflict, "Enforcing job modify index 1: job exists with conflicting job modify index: 2"},
		"somebody was first":         {[]any{mark(2, "config", map[string]string{"used": "true", "gateway": "b"})}, mark(2, "config", used), fault.Conflict, "Enforcing job modify index 2"},
		"a registration was first":   {[]any{&command.JobRegister{Job: testJob("10-a")}}, mark(2, "config", used), fault.Conflict, "Enforcing job modify index 2"},
		"a job that is gone":         {[]any{&command.JobDeregister{Namespace: "default", JobID: "10-a", Purge: true}}, mark(2, "config", used), fault.NotFound, "job not found"},
		"a job that was stopped":     {[]any{&command.JobDeregister{Namespace: "default", JobID: "10-a"}}, mark(2, "config", used), fault.Conflict, "Enforcing job modify index 2"},
		"no such group":              {nil, mark(2, "none", used), fault.Unprocessable, "no group"},
		"a group whose tasks see it": {nil, mark(2, "g", used), fault.Unprocessable, "register the job instead"},
		"a plan is on its way":       {[]any{&command.EvalUpdate{Create: []*model.Evaluation{eval("e2", "10-a")}}}, mark(2, "config", used), fault.Unprocessable, "register it instead"},
		"too much":                   {nil, mark(2, "config", map[string]string{"used": strings.Repeat("x", 17<<10)}), fault.Unprocessable, "more than 16384 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			s := marked(t)
			index := uint64(5)
			for _, e := range c.before {
				if err, ok := apply(t, s, index, e).(error); ok {
					t.Fatal(err)
				}
				index++
			}
			want, err := s.Hash()
			if err != nil {
				t.Fatal(err)
			}
			got, ok := apply(t, s, index, c.mark).(error)
			if !ok || !fault.Is(got, c.kind) || !strings.Contains(got.Error(), c.text) {
				t.Errorf("answered %v", got)
			}
			if j := s.Snapshot().Job(nil, "default", "10-a"); j != nil && j.JobModifyIndex == index {
				t.Error("the job was changed")
			}
			if hash, err := s.Hash(); err != nil || hash != want && s.Index() == index-1 {
				t.Errorf("the state was changed: %v", err)
			}
		})
	}
}

func TestAMarkThatIsThereIsNoChange(t *testing.T) {
	s := marked(t)
	if r, ok := apply(t, s, 5, mark(2, "config", map[string]string{"used": "false"})).(*command.Registered); !ok || r.JobModifyIndex != 2 {
		t.Errorf("%+v", r)
	}
}
