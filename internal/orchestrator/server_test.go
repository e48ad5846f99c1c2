package orchestrator_test

import (
	"testing"

	"rockpool/internal/orchestrator"
)

func TestARegisteredJobIsPlacedPushedAndRuns(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{DataDir: t.TempDir()})
	n := c.join(newModelNode())
	r := c.register(job("10-a"))
	if r.EvalID == "" || r.JobModifyIndex == 0 {
		t.Errorf("the answer is %+v", r)
	}
	a := c.running("10-a", 1)[0]
	if a.NodeID != n.id || a.Name != "10-a.default[0]" {
		t.Errorf("the allocation is %+v", a)
	}
	j, _, err := c.api.Jobs().Info("10-a", nil)
	if err != nil || *j.Status != "running" {
		t.Errorf("the job is %v, %v", j.Status, err)
	}
	eventually(t, "the evaluation is complete", func() bool {
		e, _, err := c.api.Evaluations().Info(r.EvalID, nil)
		return err == nil && e.Status == "complete"
	})
}
