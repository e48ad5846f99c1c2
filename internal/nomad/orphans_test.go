package nomad_test

import (
	"slices"
	"testing"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/environment"
	"rockpool/internal/nomad"
	"rockpool/internal/nomad/nomadtest"
	"rockpool/internal/runner"
)

// Only what a gateway has made, and nobody uses, is taken for an orphan, and only where the environment has no definition.
func TestOrphansAreCertainlyOurs(t *testing.T) {
	cluster := nomadtest.New(t)
	c := client(t, cluster.URL)
	if err := c.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	const tail = "-6ba7b810-9dad-11d1-80b4-00c04fd430c8"
	ours, used, foreign, stripped, other, gone := "10"+tail, "010"+tail, "10-6ba7b811-9dad-11d1-80b4-00c04fd430c8", "10-6ba7b812-9dad-11d1-80b4-00c04fd430c8", "11"+tail, "10-6ba7b813-9dad-11d1-80b4-00c04fd430c8"
	e := environment.Environment{ID: 10, Image: "host", CPULimit: 1, MemoryLimit: 64}
	for _, id := range []string{ours, used, other} {
		if _, err := c.CreateRunner(t.Context(), e, id, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.ClaimRunner(t.Context(), used, runner.Mark{}); err != nil {
		t.Fatal(err)
	}
	for _, job := range []*api.Job{
		{ID: new(foreign), Name: new(foreign), Type: new("batch"), TaskGroups: []*api.TaskGroup{{Name: new("web"), Tasks: []*api.Task{{Name: "web"}}}}},
		{ID: new(stripped), Name: new(stripped), Type: new("batch"), TaskGroups: []*api.TaskGroup{
			{Name: new(nomad.MainGroup), Tasks: []*api.Task{{Name: nomad.MainTask}}}, {Name: new(nomad.ConfigGroup), Count: new(0)},
		}},
	} {
		if err := c.Register(job); err != nil {
			t.Fatal(err)
		}
	}
	all := []string{ours, used, foreign, stripped, other, gone}
	if got, err := c.Orphans(t.Context(), 10, all); err != nil || !slices.Equal(got, []string{ours}) {
		t.Errorf("got %v, %v", got, err)
	}
	if err := c.Register(&api.Job{ID: new("template-10"), Name: new("template-10"), TaskGroups: []*api.TaskGroup{{Name: new("web"), Tasks: []*api.Task{{Name: "web"}}}}}); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Orphans(t.Context(), 10, all); err != nil || len(got) != 0 {
		t.Errorf("of an environment with a definition: %v, %v", got, err)
	}
	cluster.Break("GET /v1/job/", true)
	if got, err := c.Orphans(t.Context(), 10, all); err == nil || len(got) != 0 {
		t.Errorf("without an answer: %v, %v", got, err)
	}
}
