package sched_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"rockpool/internal/orchestrator/model"
)

// Scheduling takes its turn for everybody: no request for devices, whatever it asks for, keeps it long.
func TestRequestsForDevicesThatWouldTakeLong(t *testing.T) {
	many := make([]model.DeviceRequest, 1024)
	for i := range many {
		many[i] = gpus(8)
	}
	var groups []model.NodeDevice
	for i := range 8 {
		groups = append(groups, wholes("n", fmt.Sprint("M", i), 16, 16))
	}
	mixed := make([]model.DeviceRequest, 17)
	for i := range mixed {
		mixed[i] = gpus(8)
	}
	late := slices.Concat(slices.Repeat([]model.DeviceRequest{gpus(8)}, 12), slices.Repeat([]model.DeviceRequest{{Name: "nvidia/gpu/M0", Count: 8}}, 3))
	for name, c := range map[string]struct {
		devices []model.NodeDevice
		ask     []model.DeviceRequest
	}{
		"very many of one kind":   {groups[:1], many},
		"one more than there are": {groups, mixed},
		"very many of many":       {groups, many},
		"choices to be tried":     {groups, late},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{job: wanting(c.ask...), nodes: []*model.Node{equipped("n", c.devices...)}}
			start := time.Now()
			d := w.schedule(1)
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("it took %v", took)
			} else {
				t.Log(took)
			}
			if len(d.Place) != 0 || d.Failed["g"] == nil {
				t.Error("it is placed")
			}
		})
	}
}
