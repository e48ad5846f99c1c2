//go:build linux && cgo

package orchestrator_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/device/nvidia/standin"
)

// gpuOf is the one GPU of an allocation's task.
func gpuOf(t *testing.T, a *api.Allocation) string {
	t.Helper()
	d := a.AllocatedResources.Tasks["t"].Devices
	if len(d) != 1 || len(d[0].DeviceIDs) != 1 {
		t.Fatalf("allocation %s has the devices %+v", a.ID, d)
	}
	return d[0].DeviceIDs[0]
}

// From the driver's library to the client: a job gets a GPU and its figures; when the GPU becomes unhealthy, its allocation is told, fails, and goes on elsewhere.
func TestAnAllocationLeavesAGPUThatBecomesUnhealthy(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "scenario")
	scenario := standin.GPUs(2)
	scenario.Write(t, file)
	t.Setenv(standin.Variable, file)
	agent, stop := runs(t, orchestrator.AgentConfig{DataDir: t.TempDir(), Address: "127.0.0.1:0", Name: "one", Token: "root", MockDriver: true, RemoveOnStop: true,
		GPUs: orchestrator.GPUConfig{Library: standin.Build(t, dir), Period: 50 * time.Millisecond, StopAiling: true}})
	defer stop() // before the scenario is gone
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	c, err := api.NewClient(&api.Config{Address: agent.URL(), SecretID: "root", HttpClient: &http.Client{Transport: transport}})
	if err != nil {
		t.Fatal(err)
	}
	j := &api.Job{ID: new("gpu"), Type: new("service"), Datacenters: []string{"dc1"}, TaskGroups: []*api.TaskGroup{{Name: new("g"), Count: new(1),
		RestartPolicy:    &api.RestartPolicy{Attempts: new(0), Mode: new("fail"), Interval: new(time.Minute), Delay: new(time.Second)},
		ReschedulePolicy: &api.ReschedulePolicy{Unlimited: new(true), Delay: new(5 * time.Second), DelayFunction: new("constant")},
		Tasks: []*api.Task{{Name: "t", Driver: "mock", Config: map[string]any{},
			Resources: &api.Resources{CPU: new(10), MemoryMB: new(10), Devices: []*api.RequestedDevice{{Name: "nvidia/gpu", Count: new(uint64(1))}}}}}}}}
	if _, _, err := c.Jobs().Register(j, nil); err != nil {
		t.Fatal(err)
	}
	alloc := running(t, c, "gpu")
	first, gpu := alloc.ID, gpuOf(t, alloc)

	stats, err := c.Allocations().Stats(alloc, nil)
	if err != nil {
		t.Fatal(err)
	}
	groups := stats.Tasks["t"].ResourceUsage.DeviceStats
	if len(groups) != 1 || len(groups[0].InstanceStats) != 1 || groups[0].InstanceStats[gpu] == nil {
		t.Fatalf("figures of the allocation's devices are %+v", groups)
	}
	if m := groups[0].InstanceStats[gpu].Summary; *m.IntNumeratorVal != 1024 || *m.IntDenominatorVal != 40960 || m.Unit != "MiB" {
		t.Errorf("its memory is %+v", m)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, agent.URL()+"/v1/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Nomad-Token", "root")
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	for _, want := range []string{"rockpool.client.devices.held", "rockpool.client.device.gpu." + strings.ToLower(gpu) + ".memory_mib"} {
		if err != nil || !strings.Contains(string(text), `"`+want+`"`) {
			t.Errorf("among the figures is no %s, %v", want, err)
		}
	}

	scenario.Say("gpu "+gpu[len(gpu)-1:]+" ecc", "2")
	scenario.Write(t, file)
	const why = "memory errors that could not be corrected since the driver was loaded: 2"
	eventually(t, "the allocation has failed, and was told why", func() bool {
		alloc, _, err := c.Allocations().Info(first, nil)
		if err != nil || alloc.ClientStatus != api.AllocClientStatusFailed {
			return false
		}
		for _, e := range alloc.TaskStates["t"].Events {
			if strings.Contains(e.DisplayMessage, "Device "+gpu+" is unhealthy: "+why) {
				return true
			}
		}
		return false
	})
	eventually(t, "another one runs on the other GPU", func() bool {
		all, _, err := c.Jobs().Allocations("gpu", false, nil)
		for _, a := range all {
			if err == nil && a.ID != first && a.ClientStatus == api.AllocClientStatusRunning {
				next, _, err := c.Allocations().Info(a.ID, nil)
				return err == nil && gpuOf(t, next) != gpu
			}
		}
		return false
	})
	nodes, _, err := c.Nodes().List(nil)
	if err != nil || len(nodes) != 1 {
		t.Fatalf("nodes are %v, %v", nodes, err)
	}
	n, _, err := c.Nodes().Info(nodes[0].ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range n.NodeResources.Devices[0].Instances {
		if in.Healthy != (in.ID != gpu) || in.ID == gpu && in.HealthDescription != why {
			t.Errorf("the node tells of %+v", in)
		}
	}
}
