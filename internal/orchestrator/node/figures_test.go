package node_test

import (
	"testing"
	"time"

	"rockpool/internal/orchestrator/model"
)

func TestFiguresOfANode(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		for id, c := range map[string]config{"runs": {}, "waits": {"start_delay": "1h"}, "ended": {"run_for": "1s"}} {
			a := alloc(id, c)
			a.Resources = model.AllocatedResources{DiskMB: 3, Tasks: map[string]*model.AllocatedTask{"a": {CPU: 10, MemoryMB: 20}}}
			m.server.place(a)
		}
		after(2 * time.Second)
		got := map[string]float64{}
		m.agent.Figures(func(name string, v float64) { got[name] = v })
		for name, want := range map[string]float64{
			"nomad.client.allocations.running": 1, "nomad.client.allocations.pending": 1, "nomad.client.allocations.terminal": 1,
			"nomad.client.allocated.cpu": 20, "nomad.client.allocated.memory": 40, "nomad.client.allocated.disk": 6, "nomad.client.executions.running": 0,
		} {
			if v, ok := got[name]; !ok || v != want {
				t.Errorf("%s is %v, want %v", name, v, want)
			}
		}
		if got["nomad.client.host.memory.total"] == 0 || got["nomad.client.host.disk.size"] == 0 || got["nomad.client.unallocated.memory"] == 0 {
			t.Errorf("%v", got)
		}
		if len(got) > 30 {
			t.Errorf("%d figures", len(got))
		}
	})
}
