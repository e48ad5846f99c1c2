package wire_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/wire"
)

func networkJob(meta map[string]string, networks ...*api.NetworkResource) *api.Job {
	group := api.NewTaskGroup("group", 1)
	group.Networks, group.Meta = networks, meta
	group.AddTask(&api.Task{Name: "task", Driver: "sandbox"})
	job := api.NewBatchJob("job", "job", "global", 50).AddTaskGroup(group)
	job.Canonicalize()
	return job
}

func TestNetworksAreChecked(t *testing.T) {
	bridge := &api.NetworkResource{Mode: "bridge"}
	dns := func(server string) *api.NetworkResource {
		return &api.NetworkResource{Mode: "bridge", DNS: &api.DNSConfig{Servers: []string{server}}}
	}
	for name, c := range map[string]struct {
		job  *api.Job
		says string
	}{
		"no network":            {networkJob(nil), ""},
		"a bridge":              {networkJob(map[string]string{"rockpool_egress": "pypi.org:443,203.0.113.0/24", "rockpool_bandwidth": "50"}, bridge), ""},
		"a public name server":  {networkJob(nil, dns("9.9.9.9")), ""},
		"CNI":                   {networkJob(nil, &api.NetworkResource{Mode: "cni/lab"}), ""},
		"two networks":          {networkJob(nil, bridge, bridge), "Task group group: only one network is allowed, not 2"},
		"a private destination": {networkJob(map[string]string{"rockpool_egress": "pypi.org,10.0.0.0/8"}, bridge), `Task group group: meta rockpool_egress: entry "10.0.0.0/8": 10.0.0.0/8 is not public`},
		"no bandwidth":          {networkJob(map[string]string{"rockpool_bandwidth": "fast"}, bridge), `meta rockpool_bandwidth: the bandwidth "fast" is not a number of Mbit/s`},
		"a private name server": {networkJob(nil, dns("10.0.0.53")), `network dns server "10.0.0.53" is not a public IPv4 address`},
		"no name server":        {networkJob(nil, dns("ns.example")), `network dns server "ns.example" is not a public IPv4 address`},
	} {
		got := strings.Join(wire.Validate(c.job).Errors, "\n")
		if c.says == "" && got != "" || !strings.Contains(got, c.says) {
			t.Errorf("%s: %q, want %q", name, got, c.says)
		}
	}
}

func TestAnAllocationTellsItsNetwork(t *testing.T) {
	group := &model.TaskGroup{Name: "group", Networks: []model.Network{{Mode: "bridge", DynamicPorts: []model.Port{{Label: "80", To: 80}}}}}
	out := wire.AllocOut(&model.Allocation{ID: "one", TaskGroup: "group", Job: &model.Job{ID: "job", TaskGroups: []*model.TaskGroup{group}},
		Resources:     model.AllocatedResources{Ports: []model.AllocatedPort{{Label: "80", Value: 20080, To: 80, HostIP: "203.0.113.1"}}},
		NetworkStatus: &model.NetworkStatus{InterfaceName: "eth0", Address: "172.30.64.2", DNS: &model.DNS{Servers: []string{"172.30.64.1"}}}})
	shared := out.AllocatedResources.Shared
	if d := cmp.Diff([]api.PortMapping{{Label: "80", Value: 20080, To: 80, HostIP: "203.0.113.1"}}, shared.Ports); d != "" {
		t.Errorf("ports (-want +got):\n%s", d)
	}
	if n := shared.Networks; len(n) != 1 || n[0].Mode != "bridge" || n[0].IP != "203.0.113.1" || n[0].DynamicPorts[0].Value != 20080 || n[0].DynamicPorts[0].To != 80 {
		t.Errorf("networks: %+v", n)
	}
	if group.Networks[0].DynamicPorts[0].Value != 0 {
		t.Error("the job is changed")
	}
	want := &api.AllocNetworkStatus{InterfaceName: "eth0", Address: "172.30.64.2", DNS: &api.DNSConfig{Servers: []string{"172.30.64.1"}}}
	if d := cmp.Diff(want, out.NetworkStatus); d != "" {
		t.Errorf("status (-want +got):\n%s", d)
	}
}
