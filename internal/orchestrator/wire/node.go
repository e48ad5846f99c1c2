package wire

import (
	"cmp"
	"maps"
	"net"
	"slices"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
)

// NodeOut makes the wire's node; its secret stays here. So does its address: Nomad's clients send the caller's own token to whatever address a node gives
// of itself, and a node that somebody has taken over must not be given tokens. Without one they ask a server, which passes on no token.
func NodeOut(n *model.Node) *api.Node {
	return &api.Node{
		ID: n.ID, Datacenter: n.Datacenter, Name: n.Name, Attributes: n.Attributes, NodeResources: nodeResources(n),
		ReservedResources: reserved(n), Links: map[string]string{}, Meta: n.Meta, NodeClass: n.NodeClass, NodePool: n.NodePool,
		SchedulingEligibility: n.SchedulingEligibility, Status: n.Status, StatusDescription: n.StatusDescription,
		StatusUpdatedAt: n.StatusUpdatedAt / 1e9, Drivers: drivers(n), CreateIndex: n.CreateIndex, ModifyIndex: n.ModifyIndex,
		Drain: n.Drain != nil, DrainStrategy: drainOut(n.Drain), LastDrain: lastDrainOut(n.LastDrain), HostVolumes: hostVolumes(n),
		Events: each(n.Events, func(e model.NodeEvent) *api.NodeEvent {
			return &api.NodeEvent{Message: e.Message, Subsystem: e.Subsystem, Details: e.Details, Timestamp: unix(e.Timestamp), CreateIndex: e.Index}
		}),
	}
}

func hostVolumes(n *model.Node) map[string]*api.HostVolumeInfo {
	out := make(map[string]*api.HostVolumeInfo, len(n.HostVolumes))
	for name, v := range n.HostVolumes {
		out[name] = &api.HostVolumeInfo{Path: v.Path, ReadOnly: v.ReadOnly}
	}
	return out
}

// NodeStub is a node's line in a list.
func NodeStub(n *model.Node, resources, attributes bool) *api.NodeListStub {
	out := &api.NodeListStub{
		ID: n.ID, Datacenter: n.Datacenter, Name: n.Name, NodeClass: n.NodeClass, NodePool: n.NodePool,
		Version: n.Attributes["rockpool.version"], SchedulingEligibility: n.SchedulingEligibility, Status: n.Status,
		StatusDescription: n.StatusDescription, Drivers: drivers(n), Drain: n.Drain != nil, LastDrain: lastDrainOut(n.LastDrain),
		CreateIndex: n.CreateIndex, ModifyIndex: n.ModifyIndex,
	}
	out.Address = n.HTTPAddr
	if host, _, err := net.SplitHostPort(n.HTTPAddr); err == nil {
		out.Address = host
	}
	if resources {
		out.NodeResources, out.ReservedResources = nodeResources(n), reserved(n)
	}
	if attributes {
		out.Attributes = map[string]string{}
		for _, k := range []string{"os.name", "os.version", "kernel.name", "cpu.arch"} {
			if v, ok := n.Attributes[k]; ok {
				out.Attributes[k] = v
			}
		}
	}
	return out
}

func drivers(n *model.Node) map[string]*api.DriverInfo {
	out := make(map[string]*api.DriverInfo, len(n.Drivers))
	for name, d := range n.Drivers {
		out[name] = &api.DriverInfo{
			Attributes: d.Attributes, Detected: d.Detected, Healthy: d.Healthy, HealthDescription: d.HealthDescription,
			UpdateTime: unix(d.UpdateTime),
		}
	}
	return out
}

func nodeResources(n *model.Node) *api.NodeResources {
	return &api.NodeResources{
		Cpu:    api.NodeCpuResources{CpuShares: int64(n.Resources.CPU), TotalCpuCores: uint16(n.Resources.Cores)},
		Memory: api.NodeMemoryResources{MemoryMB: int64(n.Resources.MemoryMB)},
		Disk:   api.NodeDiskResources{DiskMB: int64(n.Resources.DiskMB)},
		Devices: each(n.Resources.Devices, func(d model.NodeDevice) *api.NodeDeviceResource {
			return &api.NodeDeviceResource{
				Vendor: d.Vendor, Type: d.Type, Name: d.Name, Attributes: attributes(d.Attributes),
				Instances: each(d.Instances, func(i model.DeviceInstance) *api.NodeDevice {
					return &api.NodeDevice{
						ID: i.ID, Healthy: i.Healthy, HealthDescription: i.HealthDescription, Locality: &api.NodeDeviceLocality{PciBusID: i.PCIBusID},
					}
				}),
			}
		}),
		MinDynamicPort: sched.MinDynamicPort, MaxDynamicPort: sched.MaxDynamicPort,
	}
}

// attributes are those of a device, each in the field of its type.
func attributes(in map[string]model.Attribute) map[string]*api.Attribute {
	out := make(map[string]*api.Attribute, len(in))
	for k, v := range in {
		a := &api.Attribute{Unit: v.Unit}
		switch v.Kind {
		case model.IntAttribute:
			a.IntVal = &v.Int
		case model.FloatAttribute:
			a.FloatVal = &v.Float
		case model.BoolAttribute:
			a.BoolVal = &v.Bool
		default:
			a.StringVal = &v.Text
		}
		out[k] = a
	}
	return out
}

func reserved(n *model.Node) *api.NodeReservedResources {
	return &api.NodeReservedResources{
		Cpu:    api.NodeReservedCpuResources{CpuShares: uint64(max(n.Reserved.CPU, 0))},
		Memory: api.NodeReservedMemoryResources{MemoryMB: uint64(max(n.Reserved.MemoryMB, 0))},
		Disk:   api.NodeReservedDiskResources{DiskMB: uint64(max(n.Reserved.DiskMB, 0))},
	}
}

// ConfigOut makes the wire's scheduler configuration.
func ConfigOut(c *state.SchedulerConfig) *api.SchedulerConfiguration {
	p := c.Preempts()
	return &api.SchedulerConfiguration{
		SchedulerAlgorithm: api.SchedulerAlgorithm(c.Algorithm), MemoryOversubscriptionEnabled: c.MemoryOversubscribed,
		PreemptionConfig: api.PreemptionConfig{
			SystemSchedulerEnabled: p.System, SysBatchSchedulerEnabled: p.Sysbatch, BatchSchedulerEnabled: p.Batch, ServiceSchedulerEnabled: p.Service,
		},
		RejectJobRegistration: c.RejectRegistrations, PauseEvalBroker: c.PauseBroker, NodeLimitForFeasibilityChecks: uint(max(c.NodeLimit, 0)),
		CreateIndex: c.CreateIndex, ModifyIndex: c.ModifyIndex,
	}
}

// ConfigIn makes the state's. The text says what is wrong with it.
func ConfigIn(c *api.SchedulerConfiguration) (*state.SchedulerConfig, string) {
	algorithm := cmp.Or(string(c.SchedulerAlgorithm), state.AlgorithmBinpack)
	if algorithm != state.AlgorithmBinpack && algorithm != state.AlgorithmSpread {
		return nil, "invalid scheduler algorithm: " + algorithm
	}
	if c.NodeLimitForFeasibilityChecks > 1<<20 {
		return nil, "NodeLimitForFeasibilityChecks is too large"
	}
	p := c.PreemptionConfig
	return &state.SchedulerConfig{
		Algorithm: algorithm, MemoryOversubscribed: c.MemoryOversubscriptionEnabled, RejectRegistrations: c.RejectJobRegistration,
		PauseBroker: c.PauseEvalBroker, NodeLimit: int(c.NodeLimitForFeasibilityChecks),
		Preemption: &state.Preemption{
			System: p.SystemSchedulerEnabled, Sysbatch: p.SysBatchSchedulerEnabled, Batch: p.BatchSchedulerEnabled, Service: p.ServiceSchedulerEnabled,
		},
	}, ""
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
