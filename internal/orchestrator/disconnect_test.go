package orchestrator_test

import (
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/model"
)

func TestWhatRunsOnANodeThatWasCutOffIsTakenBack(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{HeartbeatTTL: 150 * time.Millisecond, HeartbeatGrace: 150 * time.Millisecond})
	n := c.join(newModelNode())
	j := simple("10-a")
	j.TaskGroups[0].Disconnect = &api.DisconnectStrategy{LostAfter: new(time.Hour), Replace: new(false)}
	c.register(j)
	a := c.running("10-a", 1)[0]
	status := func(want string) func() bool {
		return func() bool {
			info, _, err := c.api.Nodes().Info(n.id, nil)
			return err == nil && info.Status == want
		}
	}
	is := func(want string) func() bool {
		return func() bool {
			got, _, err := c.api.Allocations().Info(a.ID, nil)
			return err == nil && got.ClientStatus == want && got.DesiredStatus == model.DesiredRun
		}
	}
	eventually(t, "the node is disconnected", status("disconnected"))
	eventually(t, "the allocation is unknown", is("unknown"))
	if code, body := n.put("heartbeat", nil); code != 200 {
		t.Fatalf("heartbeat: %d %s", code, body)
	}
	if !status("ready")() {
		t.Error("a node that is back is not ready")
	}
	n.report(&model.AllocUpdate{ID: a.ID, ClientStatus: model.ClientRunning})
	eventually(t, "the allocation runs again", is("running"))
	if list, _, err := c.api.Jobs().Allocations("10-a", true, nil); err != nil || len(list) != 1 {
		t.Errorf("there are %d allocations, %v", len(list), err)
	}
}
