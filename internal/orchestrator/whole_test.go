package orchestrator_test

import (
	"testing"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator"
)

// A list tells jobs whole to those alone who may read them one by one.
func TestJobsAreListedWhole(t *testing.T) {
	c := bootstrapped(t, orchestrator.ServerConfig{})
	c.policy("list", `namespace "default" { capabilities = ["list-jobs"] }`)
	c.policy("read", `namespace "default" { capabilities = ["list-jobs", "read-job"] }`)
	c.register(job("10-a"))
	for name, want := range map[string]struct{ asked, whole bool }{"list": {true, false}, "read": {true, true}, "read alone": {false, false}} {
		policy, params := name, map[string]string{"rockpool_jobs": "true"}
		if !want.asked {
			policy, params = "read", nil
		}
		var lines []struct {
			ID  string
			Job *api.Job
		}
		if _, err := c.client(c.tokenOf(policy).SecretID).Raw().Query("/v1/jobs", &lines, &api.QueryOptions{Params: params}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(lines) != 1 || lines[0].ID != "10-a" || (lines[0].Job != nil) != want.whole {
			t.Errorf("%s: got %+v", name, lines)
		} else if j := lines[0].Job; want.whole && (*j.ID != "10-a" || len(j.TaskGroups) == 0 || j.JobModifyIndex == nil) {
			t.Errorf("%s: the job is %+v", name, j)
		}
	}
}
