package wire_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/wire"
)

var update = flag.Bool("update", false, "write the golden files anew")

// diffJob is a job with something in most of its corners.
func diffJob() *model.Job {
	return &model.Job{
		Region: "global", Namespace: "default", ID: "web", Name: "web", Type: model.JobTypeService, Priority: 50, Datacenters: []string{"dc1", "dc2"}, NodePool: "default",
		Meta: map[string]string{"a": "1", "b": "2"}, Constraints: []model.Constraint{{LTarget: "${attr.kernel.name}", RTarget: "linux", Operand: "="}},
		TaskGroups: []*model.TaskGroup{
			{
				Name: "front", Count: 2, Update: &model.UpdatePolicy{MaxParallel: 1, HealthCheck: "checks", MinHealthyTime: 10 * time.Second},
				Networks: []model.Network{{Mode: "bridge", DynamicPorts: []model.Port{{Label: "http", To: 80}}}},
				Services: []*model.Service{{Name: "web", PortLabel: "http", Tags: []string{"x"}}},
				Tasks: []*model.Task{{
					Name: "server", Driver: "docker", Config: map[string]any{"image": "a:1", "args": []any{"-v", 1.0}, "mount": map[string]any{"ro": true}},
					Env: map[string]string{"A": "1"}, Resources: model.Resources{CPU: 100, MemoryMB: 300}, KillTimeout: 5 * time.Second,
				}, {Name: "side", Driver: "docker", Config: map[string]any{"image": "b:1"}}},
			},
			{Name: "old", Count: 1, Tasks: []*model.Task{{Name: "t", Driver: "exec"}}},
		},
		Version: 3, Status: model.JobRunning, CreateIndex: 5, ModifyIndex: 9, JobModifyIndex: 7, SubmitTime: 11,
	}
}

func changedJob() *model.Job {
	j := diffJob()
	j.Version, j.Status, j.ModifyIndex, j.JobModifyIndex, j.Stable = 4, model.JobDead, 20, 20, true
	j.Priority, j.Datacenters = 60, []string{"dc2", "dc3"}
	j.Meta = map[string]string{"a": "1", "b": "3", "c": "4"}
	j.Constraints = []model.Constraint{{LTarget: "${attr.cpu.arch}", RTarget: "amd64", Operand: "="}}
	g := j.TaskGroups[0]
	g.Count = 3
	g.Update.MaxParallel = 2
	g.Networks[0].DynamicPorts = append(g.Networks[0].DynamicPorts, model.Port{Label: "admin"})
	g.Services[0].Tags = []string{"x", "y"}
	t := g.Tasks[0]
	t.Config = map[string]any{"image": "a:2", "args": []any{"-v"}, "mount": map[string]any{"ro": false}}
	t.Env = nil
	t.Resources.MemoryMB = 400
	j.TaskGroups[1] = &model.TaskGroup{Name: "new", Count: 1, Tasks: []*model.Task{{Name: "t", Driver: "exec"}}}
	return j
}

func TestDiffsHaveTheirShape(t *testing.T) {
	counts := map[string]sched.Counts{"front": {Place: 1, DestructiveUpdate: 2}, "new": {Place: 1}, "old": {Stop: 1}}
	for _, c := range []struct {
		name          string
		before, after *model.Job
	}{
		{"edited", diffJob(), changedJob()}, {"equal", diffJob(), diffJob()}, {"added", nil, diffJob()},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := wire.Diff(c.before, c.after)
			if c.name == "edited" {
				wire.AnnotateDiff(d, counts)
			}
			got, err := json.MarshalIndent(d, "", " ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", "diff_"+c.name+".golden")
			if *update {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("it differs from %s:\n%s", file, got)
			}
		})
	}
}
