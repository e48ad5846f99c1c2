package orchestrator_test

import (
	"strings"
	"testing"

	"rockpool/internal/orchestrator"
)

func TestAPendingJobSaysWhy(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	type explanation struct {
		Status, Sentence string
		Failed           map[string]struct{ NodesInPool int }
		Placements       []struct {
			NodeID  string
			Metrics struct{ ScoreMetaData []struct{ NodeID string } }
		}
	}
	ask := func(id string) (e explanation) {
		t.Helper()
		if _, err := c.api.Raw().Query("/v1/rockpool/job/"+id+"/explanation", &e, nil); err != nil {
			t.Fatal(err)
		}
		return e
	}
	c.register(job("10-a"))
	eventually(t, "it says that there is no node", func() bool {
		e := ask("10-a")
		return e.Sentence == `Group "default" waits with 1 allocation: no node of the pool "default" is ready.` && len(e.Failed) == 1 && len(e.Placements) == 0
	})
	n := c.join(newModelNode())
	c.running("10-a", 1)
	var e explanation
	eventually(t, "the end of its evaluation is written", func() bool {
		e = ask("10-a")
		return strings.HasPrefix(e.Sentence, "Nothing is missing")
	})
	if len(e.Placements) != 1 || e.Placements[0].NodeID != n.id ||
		len(e.Placements[0].Metrics.ScoreMetaData) == 0 {
		t.Errorf("once it runs: %+v", e)
	}
	if _, err := c.api.Raw().Query("/v1/rockpool/job/none/explanation", &e, nil); err == nil || !strings.Contains(err.Error(), "job not found") {
		t.Errorf("of a job that is not there: %v", err)
	}
}
