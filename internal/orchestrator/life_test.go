package orchestrator_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/model"
)

func says(t *testing.T, err error, words string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("got %v, want it to say %q", err, words)
	}
}

// simple is a batch job of one group without a network.
func simple(id string) *api.Job {
	j := job(id)
	j.TaskGroups = j.TaskGroups[:1]
	j.TaskGroups[0].Networks, j.TaskGroups[0].Spreads = nil, nil
	return j
}

func TestAPeriodicJobIsStartedByForceAndByTheClock(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	c.join(newModelNode())
	j := simple("nightly")
	j.Periodic = &api.PeriodicConfig{Specs: []string{"0 0 1 1 *", "30 0 1 1 *"}, TimeZone: new("Europe/Berlin")}
	r := c.register(j)
	if r.EvalID != "" {
		t.Errorf("the template has evaluation %s", r.EvalID)
	}
	info, _, err := c.api.Jobs().Info("nightly", nil)
	if err != nil || *info.Status != "running" || !info.IsPeriodic() {
		t.Fatalf("the template is %v, %v", *info.Status, err)
	}
	if allocs, _, _ := c.api.Jobs().Allocations("nightly", true, nil); len(allocs) != 0 {
		t.Error("the template itself was placed")
	}
	eval, _, err := c.api.Jobs().PeriodicForce("nightly", nil)
	if err != nil || eval == "" {
		t.Fatalf("force: %q, %v", eval, err)
	}
	e, _, err := c.api.Evaluations().Info(eval, nil)
	if err != nil || !strings.HasPrefix(e.JobID, "nightly/periodic-") || e.TriggeredBy != "periodic-job" {
		t.Fatalf("the evaluation is %+v, %v", e, err)
	}
	c.running(e.JobID, 1)
	child, _, err := c.api.Jobs().Info(e.JobID, nil)
	if err != nil || *child.ParentID != "nightly" || child.IsPeriodic() {
		t.Errorf("the child is %+v, %v", child, err)
	}
	sum, _, err := c.api.Jobs().Summary("nightly", nil)
	if err != nil || sum.Children.Running != 1 {
		t.Errorf("the summary is %+v, %v", sum.Children, err)
	}
	says(t, second(c.api.Jobs().ForceEvaluate("nightly", nil)), "can't evaluate periodic job")

	often := simple("often")
	often.Periodic = &api.PeriodicConfig{Spec: new("* * * * * * *"), ProhibitOverlap: new(true)}
	c.register(often)
	var list []*api.JobListStub
	eventually(t, "the clock starts it", func() bool {
		list, _, err = c.api.Jobs().PrefixList("often/periodic-")
		return err == nil && len(list) > 0
	})
	c.running(list[0].ID, 1)
	says(t, second(c.api.Jobs().PeriodicForce("nightly/none", nil)), "job not found")
	if _, _, err := c.api.Jobs().Deregister("often", false, nil); err != nil {
		t.Fatal(err)
	}
	if list, _, _ := c.api.Jobs().PrefixList("often/periodic-"); len(list) != 1 {
		t.Errorf("%d children overlap", len(list))
	}
}

func second[A, B any](_ A, _ B, err error) error { return err }

func TestAParameterizedJobIsDispatched(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	c.join(newModelNode())
	j := simple("grade")
	j.Meta = map[string]string{"course": "1"}
	j.ParameterizedJob = &api.ParameterizedJobConfig{Payload: "required", MetaRequired: []string{"student"}, MetaOptional: []string{"note"}}
	if r := c.register(j); r.EvalID != "" {
		t.Errorf("the template has evaluation %s", r.EvalID)
	}
	jobs := c.api.Jobs()
	dispatch := func(o api.DispatchOptions, q *api.WriteOptions) (*api.JobDispatchResponse, error) {
		o.JobID = "grade"
		r, _, err := jobs.DispatchOpts(&o, q)
		return r, err
	}
	student := map[string]string{"student": "ada"}
	for _, bad := range []struct {
		o     api.DispatchOptions
		words string
	}{
		{api.DispatchOptions{Meta: student}, "Payload is not provided but required"},
		{api.DispatchOptions{Meta: student, Payload: make([]byte, 16<<10+1)}, "Payload exceeds maximum size; 16385 > 16384"},
		{api.DispatchOptions{Payload: []byte("x")}, "did not provide required meta keys: [student]"},
		{api.DispatchOptions{Payload: []byte("x"), Meta: map[string]string{"student": "a", "b": "", "a": ""}}, "unpermitted metadata keys: [a b]"},
		{api.DispatchOptions{Payload: []byte("x"), Meta: student, IdPrefixTemplate: "a/b"}, "id prefix"},
	} {
		_, err := dispatch(bad.o, nil)
		says(t, err, bad.words)
	}
	good := api.DispatchOptions{Payload: []byte("print(1)"), Meta: student, IdPrefixTemplate: "ada", Priority: 70}
	r, err := dispatch(good, &api.WriteOptions{IdempotencyToken: "once"})
	if err != nil || r.EvalID == "" || !strings.HasPrefix(r.DispatchedJobID, "grade/dispatch-ada-") {
		t.Fatalf("dispatch: %+v, %v", r, err)
	}
	again, err := dispatch(good, &api.WriteOptions{IdempotencyToken: "once"})
	if err != nil || again.DispatchedJobID != r.DispatchedJobID || again.EvalID != "" {
		t.Errorf("the same token gave %+v, %v", again, err)
	}
	other, err := dispatch(good, nil)
	if err != nil || other.DispatchedJobID == r.DispatchedJobID {
		t.Errorf("no token gave %+v, %v", other, err)
	}
	c.running(r.DispatchedJobID, 1)
	child, _, err := jobs.Info(r.DispatchedJobID, nil)
	if err != nil || *child.ParentID != "grade" || !child.Dispatched || string(child.Payload) != "print(1)" || child.Meta["student"] != "ada" ||
		child.Meta["course"] != "1" || *child.Priority != 70 {
		t.Errorf("the child is %+v, %v", child, err)
	}
	c.running(other.DispatchedJobID, 1)
	if _, _, err := jobs.Deregister(r.DispatchedJobID, false, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the children are counted", func() bool {
		sum, _, err := jobs.Summary("grade", nil)
		return err == nil && sum.Children.Running == 1 && sum.Children.Dead == 1
	})
	if err := c.api.System().ReconcileSummaries(); err != nil {
		t.Error(err)
	}
	if sum, _, _ := jobs.Summary("grade", nil); sum.Children.Running != 1 || sum.Children.Dead != 1 {
		t.Errorf("counted anew they are %+v", sum.Children)
	}
	says(t, second(jobs.Register(child, nil)), "can't be submitted with 'Dispatched'")
	if _, _, err := jobs.Deregister("grade", false, nil); err != nil {
		t.Fatal(err)
	}
	_, err = dispatch(good, nil)
	says(t, err, `Specified job "grade" is stopped`)
}

func TestScalingKeepsToItsPolicyAndItsHistory(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	c.join(newModelNode())
	j := simple("10-a")
	j.TaskGroups[0].Scaling = &api.ScalingPolicy{Min: new(int64(1)), Max: new(int64(3)), Policy: map[string]any{"cooldown": "1m"}}
	first := c.register(j)
	c.running("10-a", 1)
	jobs := c.api.Jobs()
	scale := func(n int) error {
		return second(jobs.Scale("10-a", "default", &n, "more", false, map[string]any{"by": "x"}, nil))
	}
	if err := scale(3); err != nil {
		t.Fatal(err)
	}
	c.running("10-a", 3)
	says(t, scale(4), "group count was greater than scaling policy maximum: 4 > 3")
	says(t, scale(0), "group count was less than scaling policy minimum: 0 < 1")
	says(t, second(jobs.Scale("10-a", "none", new(1), "", false, nil, nil)), `task group "none" specified for scaling does not exist in job`)
	says(t, second(jobs.ScaleWithRequest("10-a", &api.ScalingRequest{Count: new(int64(2)), Target: map[string]string{"Group": "default"},
		JobModifyIndex: first.JobModifyIndex}, nil)), "Enforcing job modify index")
	if _, _, err := jobs.Scale("10-a", "default", nil, "it went wrong", true, nil, nil); err != nil {
		t.Fatal(err)
	}
	st, _, err := jobs.ScaleStatus("10-a", nil)
	if err != nil {
		t.Fatal(err)
	}
	g := st.TaskGroups["default"]
	if g.Desired != 3 || g.Running != 3 || len(g.Events) != 2 || !g.Events[0].Error || *g.Events[1].Count != 3 || g.Events[1].PreviousCount != 1 || g.Events[1].EvalID == nil {
		t.Errorf("the status is %+v", g)
	}
	policies, _, err := c.api.Scaling().ListPolicies(nil)
	if err != nil || len(policies) != 1 || policies[0].Target["Job"] != "10-a" {
		t.Fatalf("the policies are %+v, %v", policies, err)
	}
	p, _, err := c.api.Scaling().GetPolicy(policies[0].ID, nil)
	if err != nil || *p.Max != 3 || p.Policy["cooldown"] != "1m" {
		t.Errorf("the policy is %+v, %v", p, err)
	}
	_, _, err = c.api.Scaling().GetPolicy(ident.New(), nil)
	says(t, err, "policy not found")
	if info, _, _ := jobs.Info("10-a", nil); *info.Version != 1 || *info.TaskGroups[0].Count != 3 {
		t.Errorf("the job is version %d with %d", *info.Version, *info.TaskGroups[0].Count)
	}
}

func TestVersionsAreComparedTaggedAndGoneBackTo(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	c.join(newModelNode())
	jobs := c.api.Jobs()
	j := simple("10-a")
	j.TaskGroups[0].Tasks[0].Env = map[string]string{"A": "1"}
	if _, _, err := jobs.RegisterOpts(j, &api.RegisterOptions{Submission: &api.JobSubmission{Source: `job "10-a" {}`, Format: "hcl2"}}, nil); err != nil {
		t.Fatal(err)
	}
	j.TaskGroups[0].Tasks[0].Env["A"] = "2"
	c.register(j)
	if sub, _, err := jobs.Submission("10-a", 0, nil); err != nil || sub.Source != `job "10-a" {}` || sub.Format != "hcl2" {
		t.Errorf("the text is %+v, %v", sub, err)
	}
	says(t, second(jobs.Submission("10-a", 1, nil)), "job source not found")

	if _, err := jobs.TagVersion("10-a", 0, "good", "it worked", nil); err != nil {
		t.Fatal(err)
	}
	_, err := jobs.TagVersion("10-a", 1, "good", "", nil)
	says(t, err, "already exists on a different version")
	_, err = jobs.TagVersion("10-a", 9, "other", "", nil)
	says(t, err, "at version 9 not found")
	if v, _, err := jobs.VersionByTag("10-a", "good", nil); err != nil || *v.Version != 0 || v.VersionTag.Description != "it worked" {
		t.Errorf("the tagged version is %+v, %v", v, err)
	}
	versions, diffs, _, err := jobs.Versions("10-a", true, nil)
	if err != nil || len(versions) != 2 || *versions[0].Version != 1 || len(diffs) != 1 {
		t.Fatalf("%d versions, %d diffs, %v", len(versions), len(diffs), err)
	}
	task := diffs[0].TaskGroups[0].Tasks[0]
	if diffs[0].Type != "Edited" || task.Type != "Edited" || len(task.Fields) != 1 || task.Fields[0].Name != "Env[A]" || task.Fields[0].Old != "1" || task.Fields[0].New != "2" {
		t.Errorf("the diff is %+v", task)
	}
	if _, diffs, _, err := jobs.VersionsOpts("10-a", &api.VersionsOptions{Diffs: true, DiffTag: "good"}, nil); err != nil || diffs[0].Type != "Edited" || diffs[1].Type != "None" {
		t.Errorf("the diffs from a tag are %+v, %v", diffs, err)
	}

	says(t, second(jobs.Revert("10-a", 1, nil, nil, "", "")), "can't revert to current version")
	says(t, second(jobs.Revert("10-a", 0, new(uint64(7)), nil, "", "")), "Current job has version 1; enforcing version 7")
	says(t, second(jobs.Revert("10-a", 5, nil, nil, "", "")), "at version 5 not found")
	if r, _, err := jobs.Revert("10-a", 0, new(uint64(1)), nil, "", ""); err != nil || r.EvalID == "" {
		t.Errorf("revert: %+v, %v", r, err)
	}
	info, _, _ := jobs.Info("10-a", nil)
	if *info.Version != 2 || info.TaskGroups[0].Tasks[0].Env["A"] != "1" || info.VersionTag != nil {
		t.Errorf("after it the job is %+v", info)
	}
	if _, _, err := jobs.Stable("10-a", 2, true, nil); err != nil {
		t.Fatal(err)
	}
	if info, _, _ := jobs.Info("10-a", nil); !*info.Stable {
		t.Error("it is not stable")
	}
	for i := range 10 {
		j.TaskGroups[0].Tasks[0].Env["A"] = fmt.Sprint("many ", i)
		c.register(j)
	}
	if v, _, err := jobs.VersionByTag("10-a", "good", nil); err != nil || *v.Version != 0 {
		t.Errorf("the tagged version is gone: %v", err)
	}
	if _, err := jobs.UntagVersion("10-a", "good", nil); err != nil {
		t.Error(err)
	}
	_, err = jobs.UntagVersion("10-a", "good", nil)
	says(t, err, "not found")
}

func TestAPlanSaysWhatWouldBeAndChangesNothing(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	c.join(newModelNode())
	jobs := c.api.Jobs()
	j := simple("10-a")
	before, _, err := jobs.Plan(j, true, nil)
	if err != nil || before.Diff.Type != "Added" || before.JobModifyIndex != 0 || before.Annotations.DesiredTGUpdates["default"].Place != 1 {
		t.Fatalf("the first plan is %+v, %v", before, err)
	}
	if _, _, err := jobs.Info("10-a", nil); err == nil {
		t.Fatal("the plan registered the job")
	}
	r := c.register(j)
	c.running("10-a", 1)
	same, _, err := jobs.Plan(j, true, nil)
	if err != nil || same.Diff.Type != "None" || same.JobModifyIndex != r.JobModifyIndex || same.Annotations.DesiredTGUpdates["default"].Ignore != 1 {
		t.Errorf("an equal job's plan is %+v %+v, %v", same.Diff, same.Annotations, err)
	}
	j.TaskGroups[0].Count = new(3)
	j.TaskGroups[0].Tasks[0].Config["image"] = "python:4"
	changed, _, err := jobs.Plan(j, true, nil)
	if err != nil || changed.Diff.Type != "Edited" {
		t.Fatalf("a changed job's plan is %+v, %v", changed, err)
	}
	g := changed.Diff.TaskGroups[0]
	if len(g.Fields) != 1 || g.Fields[0].Name != "Count" || g.Fields[0].New != "3" || g.Fields[0].Annotations[0] != "forces create" {
		t.Errorf("the group's fields are %+v", g.Fields)
	}
	if tk := g.Tasks[0]; tk.Type != "Edited" || tk.Objects[0].Name != "Config" || tk.Objects[0].Fields[0].Name != "image" || tk.Objects[0].Fields[0].New != "python:4" {
		t.Errorf("the task is %+v", tk)
	}
	j.TaskGroups[0].Tasks[0].Resources.MemoryMB = new(2_000_000)
	j.TaskGroups[0].Tasks[0].Resources.MemoryMaxMB = nil
	full, _, err := jobs.Plan(j, false, nil)
	if err != nil || full.FailedTGAllocs["default"] == nil || full.Diff != nil || len(full.CreatedEvals) != 1 {
		t.Errorf("a plan without room is %+v, %v", full, err)
	}
	if evals, _, _ := jobs.Evaluations("10-a", nil); len(evals) != 1 {
		t.Errorf("%d evaluations", len(evals))
	}
	nightly := simple("nightly")
	nightly.Periodic = &api.PeriodicConfig{Spec: new("0 4 * * *")}
	if p, _, err := jobs.Plan(nightly, true, nil); err != nil || p.NextPeriodicLaunch.Hour() != 4 {
		t.Errorf("the plan of a periodic job is %+v, %v", p, err)
	}
}

func TestNodesAreCordonedEvaluatedAndPurged(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	n := c.join(newModelNode())
	c.register(simple("10-a"))
	c.running("10-a", 1)
	nodes := c.api.Nodes()
	if _, err := nodes.ToggleEligibility(n.id, false, nil); err != nil {
		t.Fatal(err)
	}
	r, err := nodes.UpdateDrainOpts(n.id, &api.DrainOptions{DrainSpec: &api.DrainSpec{Deadline: time.Hour}, Meta: map[string]string{"why": "disk"}}, nil)
	if err != nil || r.NodeModifyIndex == 0 {
		t.Fatalf("drain: %+v, %v", r, err)
	}
	info, _, err := nodes.Info(n.id, nil)
	if err != nil || !info.Drain || info.LastDrain.Status != "draining" || info.LastDrain.Meta["why"] != "disk" || info.DrainStrategy.ForceDeadline.IsZero() {
		t.Errorf("the node is %+v, %v", info, err)
	}
	_, err = nodes.ToggleEligibility(n.id, true, nil)
	says(t, err, "while it is draining")
	if _, err := nodes.UpdateDrain(n.id, nil, true, nil); err != nil {
		t.Fatal(err)
	}
	info, _, _ = nodes.Info(n.id, nil)
	if info.Drain || info.SchedulingEligibility != "eligible" || info.LastDrain.Status != "canceled" || len(info.Events) != 3 {
		t.Errorf("after it the node is %+v", info)
	}
	if eval, _, err := nodes.ForceEvaluate(n.id, nil); err != nil || eval == "" {
		t.Errorf("evaluate: %q, %v", eval, err)
	}
	p, _, err := nodes.Purge(n.id, nil)
	if err != nil || len(p.EvalIDs) != 1 {
		t.Errorf("purge: %+v, %v", p, err)
	}
	_, _, err = nodes.Info(n.id, nil)
	says(t, err, "node not found")
	eventually(t, "what it ran is lost", func() bool {
		list, _, err := c.api.Jobs().Allocations("10-a", false, nil)
		return err == nil && len(list) > 0 && list[0].ClientStatus == model.ClientLost
	})
	_, _, err = nodes.Purge(ident.New(), nil)
	says(t, err, "node not found")
}

func TestEvaluationsAreDeletedOnlyWhileNobodyWorks(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	evals, op := c.api.Evaluations(), c.api.Operator()
	one := c.register(simple("10-a")).EvalID
	two := c.register(simple("10-b")).EvalID
	_, err := evals.Delete([]string{one}, nil)
	says(t, err, "eval broker must be paused")
	if _, _, err := op.SchedulerSetConfiguration(&api.SchedulerConfiguration{PauseEvalBroker: true}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := evals.Delete([]string{one}, nil); err != nil {
		t.Fatal(err)
	}
	_, _, err = evals.Info(one, nil)
	says(t, err, "eval not found")
	r, _, err := evals.DeleteOpts(&api.EvalDeleteRequest{Filter: `JobID == "10-b"`}, nil)
	if err != nil || r.Count < 1 {
		t.Errorf("by filter: %+v, %v", r, err)
	}
	_, _, err = evals.Info(two, nil)
	says(t, err, "eval not found")
	_, err = evals.Delete([]string{one}, nil)
	says(t, err, "eval not found")
	_, _, err = evals.DeleteOpts(&api.EvalDeleteRequest{Filter: `JobID = `}, nil)
	says(t, err, "failed to read filter expression")
}

func TestAStoppedAllocationComesBackElsewhere(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	c.join(newModelNode())
	c.register(simple("10-a"))
	a := c.running("10-a", 1)[0]
	r, err := c.api.Allocations().Stop(&api.Allocation{ID: a.ID}, &api.QueryOptions{Params: map[string]string{"no_shutdown_delay": "true", "reschedule": "true"}})
	if err != nil || r.EvalID == "" {
		t.Fatalf("stop: %+v, %v", r, err)
	}
	eventually(t, "it is replaced", func() bool { return c.running("10-a", 1)[0].ID != a.ID })
	full, _, err := c.api.Allocations().Info(a.ID, nil)
	if err != nil || full.DesiredTransition.NoShutdownDelay == nil || full.DesiredTransition.Reschedule == nil {
		t.Errorf("it is %+v, %v", full.DesiredTransition, err)
	}
}
