package gateway_test

import (
	"fmt"
	"strings"
	"testing"

	"rockpool/internal/nomad/nomadtest"
)

// A restart reads two lists of a cluster that has jobs in them, and no job by itself; of any other each job once.
func TestARestartReadsTwoLists(t *testing.T) {
	const runners = 200
	for name, c := range map[string]struct {
		prepare func(*nomadtest.Cluster)
		reads   int
	}{
		"of our orchestrator": {(*nomadtest.Cluster).WholeLists, 0},
		"of Nomad":            {func(*nomadtest.Cluster) {}, runners + 2},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := nomadtest.New(t)
			c.prepare(cluster)
			h := start(t, cluster)
			h.want("PUT", "/execution-environments/11", strings.Replace(env("0"), `"host"`, `"other"`, 1), 201, "")
			h.want("PUT", "/execution-environments/10", env(fmt.Sprint(runners-1)), 201, "")
			h.pool("10", runners-1, 0)
			claimed := h.claim("0")
			h.pool("10", runners-1, 1)
			h.stop()
			calls := []string{"GET /v1/jobs", "GET /v1/allocations", "GET /v1/job/{id}", "PUT /v1/jobs"}
			before := map[string]int{}
			for _, call := range calls {
				before[call] = cluster.Calls(call)
			}
			h = start(t, cluster)
			if idle, used := h.stats("10"); idle != runners-1 || used != 1 { // held until it is complete
				t.Errorf("there are %d idle and %d used runners", idle, used)
			}
			h.want("GET", "/execution-environments/11", "", 200, `"image":"other"`)
			h.want("GET", "/runners/"+claimed+"/files", "", 200, "files")
			for i, want := range []int{1, 1, c.reads, 0} {
				if n := cluster.Calls(calls[i]) - before[calls[i]]; n != want {
					t.Errorf("%s was called %d times, want %d", calls[i], n, want)
				}
			}
		})
	}
}
