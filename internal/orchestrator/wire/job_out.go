package wire

import (
	"cmp"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/model"
)

// JobOut makes the wire's job.
func JobOut(j *model.Job) *api.Job {
	if j == nil {
		return nil
	}
	out := &api.Job{
		Region: new(j.Region), Namespace: new(j.Namespace), ID: new(j.ID), ParentID: new(j.ParentID), Name: new(j.Name), Type: new(j.Type),
		Priority: new(j.Priority), AllAtOnce: new(j.AllAtOnce), Datacenters: j.Datacenters, NodePool: new(j.NodePool),
		Constraints: each(j.Constraints, constraintOut), Affinities: each(j.Affinities, affinityOut), Spreads: each(j.Spreads, spreadOut),
		TaskGroups: each(j.TaskGroups, groupOut), Meta: j.Meta, Stop: new(j.Stop), Status: new(j.Status),
		StatusDescription: new(j.StatusDescription), Stable: new(j.Stable), Version: new(j.Version), SubmitTime: new(j.SubmitTime),
		CreateIndex: new(j.CreateIndex), ModifyIndex: new(j.ModifyIndex), JobModifyIndex: new(j.JobModifyIndex),
		ConsulNamespace: new(""), VaultNamespace: new(""), NomadTokenID: new(""),
	}
	policiesOut(j, out)
	return out
}

func groupOut(g *model.TaskGroup) *api.TaskGroup {
	out := &api.TaskGroup{
		Name: new(g.Name), Count: new(g.Count), Constraints: each(g.Constraints, constraintOut), Affinities: each(g.Affinities, affinityOut),
		Spreads: each(g.Spreads, spreadOut), Tasks: each(g.Tasks, taskOut), Meta: g.Meta, Networks: each(g.Networks, networkOut),
		RestartPolicy: &api.RestartPolicy{
			Attempts: new(g.Restart.Attempts), Interval: new(g.Restart.Interval), Delay: new(g.Restart.Delay), Mode: new(g.Restart.Mode),
			RenderTemplates: new(false),
		},
		ReschedulePolicy: &api.ReschedulePolicy{
			Attempts: new(g.Reschedule.Attempts), Interval: new(g.Reschedule.Interval), Delay: new(g.Reschedule.Delay),
			DelayFunction: new(g.Reschedule.DelayFunction), MaxDelay: new(g.Reschedule.MaxDelay), Unlimited: new(g.Reschedule.Unlimited),
		},
		EphemeralDisk: &api.EphemeralDisk{
			SizeMB: new(g.EphemeralDisk.SizeMB), Sticky: new(g.EphemeralDisk.Sticky), Migrate: new(g.EphemeralDisk.Migrate),
		},
	}
	if g.MaxRunTime != 0 {
		out.MaxRunDuration = new(g.MaxRunTime)
	}
	groupPoliciesOut(g, out)
	return out
}

func taskOut(t *model.Task) *api.Task {
	out := &api.Task{
		Name: t.Name, Driver: t.Driver, User: t.User, Config: t.Config, Env: t.Env, Constraints: each(t.Constraints, constraintOut),
		Affinities: each(t.Affinities, affinityOut), Meta: t.Meta, KillTimeout: new(t.KillTimeout), KillSignal: t.KillSignal, Leader: t.Leader,
		Resources: &api.Resources{
			CPU: new(t.Resources.CPU), Cores: new(t.Resources.Cores), MemoryMB: new(t.Resources.MemoryMB),
			MemoryMaxMB: new(t.Resources.MemoryMaxMB), DiskMB: new(t.Resources.DiskMB),
			Devices: each(t.Resources.Devices, func(d model.DeviceRequest) *api.RequestedDevice {
				return &api.RequestedDevice{
					Name: d.Name, Count: new(d.Count), Constraints: each(d.Constraints, constraintOut), Affinities: each(d.Affinities, affinityOut),
				}
			}),
		},
		LogConfig: &api.LogConfig{
			MaxFiles: new(t.LogConfig.MaxFiles), MaxFileSizeMB: new(t.LogConfig.MaxFileSizeMB), Disabled: new(t.LogConfig.Disabled),
		},
	}
	taskPoliciesOut(t, out)
	return out
}

func networkOut(n model.Network) *api.NetworkResource {
	out := &api.NetworkResource{
		Mode: n.Mode, Hostname: n.Hostname, ReservedPorts: each(n.ReservedPorts, portOut), DynamicPorts: each(n.DynamicPorts, portOut),
	}
	if n.DNS != nil {
		out.DNS = &api.DNSConfig{Servers: n.DNS.Servers, Searches: n.DNS.Searches, Options: n.DNS.Options}
	}
	return out
}

func portOut(p model.Port) api.Port {
	return api.Port{Label: p.Label, Value: p.Value, To: p.To, HostNetwork: p.HostNetwork}
}

func constraintOut(c model.Constraint) *api.Constraint { return new(api.Constraint(c)) }

func affinityOut(a model.Affinity) *api.Affinity {
	return &api.Affinity{LTarget: a.LTarget, RTarget: a.RTarget, Operand: a.Operand, Weight: new(a.Weight)}
}

func spreadOut(s model.Spread) *api.Spread {
	return &api.Spread{Attribute: s.Attribute, Weight: new(s.Weight), SpreadTarget: each(s.Targets, func(t model.SpreadTarget) *api.SpreadTarget {
		return &api.SpreadTarget{Value: t.Value, Percent: t.Percent}
	})}
}

// JobStub is a job's line in a list.
func JobStub(j *model.Job, sum *api.JobSummary, meta bool) *api.JobListStub {
	out := &api.JobListStub{
		ID: j.ID, ParentID: j.ParentID, Name: j.Name, Namespace: j.Namespace, Datacenters: j.Datacenters, Type: j.Type, Priority: j.Priority,
		Stop: j.Stop, Status: j.Status, Periodic: j.Periodic != nil, ParameterizedJob: j.Parameterized != nil, StatusDescription: j.StatusDescription, JobSummary: sum, CreateIndex: j.CreateIndex,
		ModifyIndex: j.ModifyIndex, JobModifyIndex: j.JobModifyIndex, SubmitTime: j.SubmitTime,
	}
	if meta {
		out.Meta = j.Meta
	}
	return out
}

// WholeJob is a line of a list together with its job.
type WholeJob struct {
	*api.JobListStub
	Job *api.Job `json:",omitempty"`
}

// Summary counts a job's allocations by group, and what its newest evaluation left queued.
func Summary(j *model.Job, allocs func(func(*model.Allocation) bool), evals func(func(*model.Evaluation) bool)) *api.JobSummary {
	out := &api.JobSummary{
		JobID: j.ID, Namespace: j.Namespace, Summary: map[string]api.TaskGroupSummary{}, Children: &api.JobChildrenSummary{},
		CreateIndex: j.CreateIndex, ModifyIndex: j.ModifyIndex,
	}
	for _, g := range j.TaskGroups {
		out.Summary[g.Name] = api.TaskGroupSummary{}
	}
	for a := range allocs {
		s := out.Summary[a.TaskGroup]
		switch a.ClientStatus {
		case model.ClientPending:
			s.Starting++
		case model.ClientRunning:
			s.Running++
		case model.ClientComplete:
			s.Complete++
		case model.ClientFailed:
			s.Failed++
		case model.ClientLost:
			s.Lost++
		default:
			s.Unknown++
		}
		out.Summary[a.TaskGroup] = s
		out.ModifyIndex = max(out.ModifyIndex, a.ModifyIndex)
	}
	var newest *model.Evaluation
	for e := range evals {
		if newest == nil || cmp.Or(cmp.Compare(e.ModifyIndex, newest.ModifyIndex), cmp.Compare(e.ID, newest.ID)) > 0 {
			newest = e
		}
	}
	if newest != nil {
		for g, n := range newest.QueuedAllocations {
			if s, ok := out.Summary[g]; ok {
				s.Queued = n
				out.Summary[g] = s
			}
		}
	}
	return out
}
