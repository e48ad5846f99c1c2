package orchestrator_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator"
)

type markRequest struct {
	Group          string
	Meta           map[string]string
	JobModifyIndex uint64
}

func (c *cluster) mark(id string, m markRequest) (api.JobRegisterResponse, error) {
	var out api.JobRegisterResponse
	_, err := c.api.Raw().Write("/v1/rockpool/job/"+id+"/mark", &m, &out, nil)
	return out, err
}

func TestOneOfManyMarksAJob(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	c.join(newModelNode())
	c.register(job("10-a"))
	c.running("10-a", 1)
	eventually(t, "it is evaluated", func() bool {
		evals, _, err := c.api.Jobs().Evaluations("10-a", nil)
		return err == nil && len(evals) == 1 && evals[0].Status == "complete"
	})
	before, _, err := c.api.Jobs().Info("10-a", nil)
	if err != nil {
		t.Fatal(err)
	}
	group := *before.TaskGroups[1].Name
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		won  []api.JobRegisterResponse
		name = []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	)
	for _, n := range name {
		all.Go(func() {
			r, err := c.mark("10-a", markRequest{group, map[string]string{"used": "true", "by": n}, *before.JobModifyIndex})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				won = append(won, r)
			case !strings.Contains(err.Error(), "Enforcing job modify index"):
				t.Errorf("%s lost by %v", n, err)
			}
		})
	}
	all.Wait()
	after, _, err := c.api.Jobs().Info("10-a", nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(won) != 1 || won[0].JobModifyIndex != *after.JobModifyIndex || won[0].EvalID != "" || *after.Version != *before.Version {
		t.Errorf("%d won, the job is at version %d, index %d: %+v", len(won), *after.Version, *after.JobModifyIndex, won)
	}
	if meta := after.TaskGroups[1].Meta; meta["used"] != "true" || meta["by"] == "" {
		t.Errorf("the mark is %v", meta)
	}
	// A registration is compared with the mark, and brings the allocation to what there is now.
	if _, _, err := c.api.Jobs().EnforceRegister(before, *before.JobModifyIndex, nil); err == nil || !strings.Contains(err.Error(), "Enforcing job modify index") {
		t.Errorf("a registration over a mark: %v", err)
	}
	after.TaskGroups[1].Meta["by"] = "somebody else"
	if _, _, err := c.api.Jobs().EnforceRegister(after, *after.JobModifyIndex, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the same allocation has the new version", func() bool {
		allocs, _, err := c.api.Jobs().Allocations("10-a", true, nil)
		return err == nil && len(allocs) == 1 && allocs[0].JobVersion == 1 && allocs[0].ClientStatus == "running"
	})
}

func TestWhatIsNoMarkIsRefused(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	at := c.register(job("10-a")).JobModifyIndex // without a node its evaluation is not over
	for name, m := range map[string]struct {
		id   string
		mark markRequest
		text string
	}{
		"no index":          {"10-a", markRequest{"config", nil, 0}, "needs the group"},
		"no group":          {"10-a", markRequest{"", nil, at}, "needs the group"},
		"a key with a rule": {"10-a", markRequest{"config", map[string]string{"rockpool_egress": "10.0.0.1"}, at}, "register the job with it"},
		"no job":            {"10-b", markRequest{"config", nil, at}, "job not found"},
		"being evaluated":   {"10-a", markRequest{"config", map[string]string{"used": "true"}, at}, "being evaluated"},
	} {
		if _, err := c.mark(m.id, m.mark); err == nil || !strings.Contains(err.Error(), m.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, body := range map[string]string{"no JSON": "x", "a list": "[]", "a large body": `{"Group":"` + strings.Repeat("x", 65<<10) + `"}`} {
		r := httptest.NewRequest(http.MethodPut, "/v1/rockpool/job/10-a/mark", strings.NewReader(body))
		w := httptest.NewRecorder()
		c.http.Config.Handler.ServeHTTP(w, r)
		if w.Code/100 != 4 {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}
