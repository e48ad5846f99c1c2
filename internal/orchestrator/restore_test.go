package orchestrator_test

import (
	"bytes"
	"io"
	"testing"
	"time"

	"rockpool/internal/orchestrator"
)

// What a node runs is brought back to a restored state, and a new term schedules on that: neither believes what it knew before.
func TestARestoreReachesNodesAndTheScheduler(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{DataDir: t.TempDir()})
	n := newModelNode()
	n.Resources.CPU = 50 // room for two allocations of 20
	f := c.join(n)
	c.register(job("kept"))
	kept := c.running("kept", 1)[0]
	in, err := c.api.Operator().Snapshot(nil)
	if err != nil {
		t.Fatal(err)
	}
	archive, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	c.register(job("lost"))
	lost := c.running("lost", 1)[0]
	if _, _, err := c.api.Jobs().Deregister("kept", true, nil); err != nil {
		t.Fatal(err)
	}
	seen := uint64(0)
	for len(f.pushed) > 0 {
		seen = max(seen, (<-f.pushed).Generation)
	}
	if _, err := c.api.Operator().SnapshotRestore(bytes.NewReader(archive), nil); err != nil {
		t.Fatal(err)
	}
	late := time.After(10 * time.Second)
	for told := false; !told; {
		select {
		case p := <-f.pushed:
			told = p.Full && p.Generation > seen && len(p.Allocs) == 1 && p.Allocs[0].ID == kept.ID
		case <-late:
			t.Fatalf("the node is not told that it runs %s again and %s no more", kept.ID, lost.ID)
		}
	}
	c.register(job("more")) // takes the room that the lost one had
	c.running("more", 1)
	c.register(job("none"))
	eventually(t, "an evaluation without room", func() bool {
		evals, _, err := c.api.Jobs().Evaluations("none", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range evals {
			if e.Status == "blocked" {
				return true
			}
		}
		return false
	})
}
