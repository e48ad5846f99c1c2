package node_test

import (
	"testing"
	"time"

	"rockpool/internal/orchestrator/model"
)

func TestFiguresOfANode(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		for id, c := range map[string]config{"runs": {}, "ends": {"run_for": "1s"}, "starts": {"start_delay": "1h"}} {
			a := alloc(id, c)
			a.Resources = model.AllocatedResources{DiskMB: 10, Tasks: map[string]*model.AllocatedTask{"a": {CPU: 100, MemoryMB: 64}}}
			m.server.place(a)
		}
		after(2 * time.Second)
		m.expect("ends", model.ClientComplete)
		got := map[string]float64{}
		m.agent.Figures(func(name string, v float64) { got[name] = v })
		for name, want := range map[string]float64{
			"allocations.running": 1, "allocations.pending": 1, "allocations.terminal": 1, "allocated.cpu": 200, "allocated.memory": 128, "allocated.disk": 20,
		} {
			if v, ok := got["nomad.client."+name]; !ok || v != want {
				t.Errorf("%s is %v, want %v", name, v, want)
			}
		}
		if got["nomad.client.unallocated.memory"] <= 0 || got["nomad.client.host.memory.total"] <= 0 {
			t.Errorf("the machine's figures are %v", got)
		}
	})
}
