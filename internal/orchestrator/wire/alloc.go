package wire

import (
	"maps"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/model"
)

// Allocation is that of nomad/api, field by field. What is empty is left out, as Nomad does: an allocation that was just placed has no TaskStates.
type Allocation struct {
	ID                    string                     `json:",omitempty"`
	Namespace             string                     `json:",omitempty"`
	EvalID                string                     `json:",omitempty"`
	Name                  string                     `json:",omitempty"`
	NodeID                string                     `json:",omitempty"`
	NodeName              string                     `json:",omitempty"`
	JobID                 string                     `json:",omitempty"`
	Job                   *api.Job                   `json:",omitempty"`
	TaskGroup             string                     `json:",omitempty"`
	Resources             *api.Resources             `json:",omitempty"`
	TaskResources         map[string]*api.Resources  `json:",omitempty"`
	AllocatedResources    *api.AllocatedResources    `json:",omitempty"`
	Services              map[string]string          `json:",omitempty"`
	Metrics               *api.AllocationMetric      `json:",omitempty"`
	DesiredStatus         string                     `json:",omitempty"`
	DesiredDescription    string                     `json:",omitempty"`
	DesiredTransition     api.DesiredTransition      `json:",omitzero"`
	ClientStatus          string                     `json:",omitempty"`
	ClientDescription     string                     `json:",omitempty"`
	TaskStates            map[string]*api.TaskState  `json:",omitempty"`
	DeploymentID          string                     `json:",omitempty"`
	DeploymentStatus      *api.AllocDeploymentStatus `json:",omitempty"`
	FollowupEvalID        string                     `json:",omitempty"`
	PreviousAllocation    string                     `json:",omitempty"`
	NextAllocation        string                     `json:",omitempty"`
	RescheduleTracker     *api.RescheduleTracker     `json:",omitempty"`
	NetworkStatus         *api.AllocNetworkStatus    `json:",omitempty"`
	PreemptedAllocations  []string                   `json:",omitempty"`
	PreemptedByAllocation string                     `json:",omitempty"`
	CreateIndex           uint64                     `json:",omitempty"`
	ModifyIndex           uint64                     `json:",omitempty"`
	AllocModifyIndex      uint64                     `json:",omitempty"`
	CreateTime            int64                      `json:",omitempty"`
	ModifyTime            int64                      `json:",omitempty"`
}

// AllocOut makes the wire's allocation, with its job.
func AllocOut(a *model.Allocation) *Allocation {
	out := AllocWithoutJob(a)
	out.Job = JobOut(a.Job)
	return out
}

// AllocWithoutJob is the allocation as events have it.
func AllocWithoutJob(a *model.Allocation) *Allocation {
	return (*Allocation)(&api.Allocation{
		ID: a.ID, Namespace: a.Namespace, EvalID: a.EvalID, Name: a.Name, NodeID: a.NodeID, NodeName: a.NodeName, JobID: a.JobID,
		TaskGroup: a.TaskGroup, AllocatedResources: resourcesOut(a), Metrics: metricsOf(a),
		DesiredStatus: a.DesiredStatus, DesiredDescription: a.DesiredDescription, ClientStatus: a.ClientStatus,
		ClientDescription: a.ClientDescription, TaskStates: statesOut(a.TaskStates), FollowupEvalID: a.FollowupEvalID,
		PreviousAllocation: a.PreviousAllocation, NextAllocation: a.NextAllocation, CreateIndex: a.CreateIndex, ModifyIndex: a.ModifyIndex,
		AllocModifyIndex: a.AllocModifyIndex, CreateTime: a.CreateTime, ModifyTime: a.ModifyTime, NetworkStatus: networkStatusOut(a.NetworkStatus),
		DeploymentID: a.DeploymentID, DeploymentStatus: healthOut(a.DeploymentStatus), DesiredTransition: transitionOut(a.Transition),
		RescheduleTracker: reschedulesOut(a.Reschedules), PreemptedAllocations: a.Preempts, PreemptedByAllocation: a.PreemptedBy,
	})
}

// metricsOf explains the placement of an allocation.
func metricsOf(a *model.Allocation) *api.AllocationMetric {
	out := MetricOut(a.Metrics)
	if out != nil {
		out.NodePool = poolOf(a)
	}
	return out
}

// poolOf is the pool in which a node was looked for.
func poolOf(a *model.Allocation) string {
	if a.Job != nil {
		return a.Job.NodePool
	}
	return a.Metrics.NodePool
}

func networkStatusOut(s *model.NetworkStatus) *api.AllocNetworkStatus {
	if s == nil {
		return nil
	}
	out := &api.AllocNetworkStatus{InterfaceName: s.InterfaceName, Address: s.Address}
	if s.DNS != nil {
		out.DNS = &api.DNSConfig{Servers: s.DNS.Servers, Searches: s.DNS.Searches, Options: s.DNS.Options}
	}
	return out
}

// AllocStub is an allocation's line in a list.
func AllocStub(a *model.Allocation, resources, states bool) *api.AllocationListStub {
	out := &api.AllocationListStub{
		ID: a.ID, EvalID: a.EvalID, Name: a.Name, Namespace: a.Namespace, NodeID: a.NodeID, NodeName: a.NodeName, JobID: a.JobID,
		JobType: a.Job.Type, JobVersion: a.Job.Version, TaskGroup: a.TaskGroup, DesiredStatus: a.DesiredStatus,
		DesiredDescription: a.DesiredDescription, ClientStatus: a.ClientStatus, ClientDescription: a.ClientDescription,
		FollowupEvalID: a.FollowupEvalID, NextAllocation: a.NextAllocation, CreateIndex: a.CreateIndex, ModifyIndex: a.ModifyIndex,
		CreateTime: a.CreateTime, ModifyTime: a.ModifyTime, DeploymentStatus: healthOut(a.DeploymentStatus),
		RescheduleTracker: reschedulesOut(a.Reschedules), PreemptedAllocations: a.Preempts, PreemptedByAllocation: a.PreemptedBy,
	}
	if resources {
		out.AllocatedResources = resourcesOut(a)
	}
	if states {
		out.TaskStates = statesOut(a.TaskStates)
	}
	return out
}

func resourcesOut(a *model.Allocation) *api.AllocatedResources {
	r := &a.Resources
	out := &api.AllocatedResources{
		Tasks:  make(map[string]*api.AllocatedTaskResources, len(r.Tasks)),
		Shared: api.AllocatedSharedResources{DiskMB: int64(r.DiskMB), Networks: networksOut(a), Ports: portsOut(r.Ports)},
	}
	for name, t := range r.Tasks {
		out.Tasks[name] = &api.AllocatedTaskResources{
			Cpu:     api.AllocatedCpuResources{CpuShares: int64(t.CPU)},
			Memory:  api.AllocatedMemoryResources{MemoryMB: int64(t.MemoryMB), MemoryMaxMB: int64(t.MemoryMaxMB)},
			Devices: devicesOut(t.Devices),
		}
	}
	return out
}

func portsOut(in []model.AllocatedPort) []api.PortMapping {
	return each(in, func(p model.AllocatedPort) api.PortMapping {
		return api.PortMapping{Label: p.Label, Value: p.Value, To: p.To, HostIP: p.HostIP}
	})
}

func devicesOut(in []model.AllocatedDevice) []*api.AllocatedDeviceResource {
	return each(in, func(d model.AllocatedDevice) *api.AllocatedDeviceResource {
		return &api.AllocatedDeviceResource{Vendor: d.Vendor, Type: d.Type, Name: d.Name, DeviceIDs: d.DeviceIDs}
	})
}

// networksOut are those of an allocation's group.
func networksOut(a *model.Allocation) []*api.NetworkResource {
	if a.Job == nil {
		return nil
	}
	g := a.Job.Group(a.TaskGroup)
	if g == nil {
		return nil
	}
	return each(g.Networks, func(n model.Network) *api.NetworkResource { return allocatedNetwork(n, a.Resources.Ports) })
}

// allocatedNetwork is what the group asked for, with the ports that it got.
func allocatedNetwork(n model.Network, got []model.AllocatedPort) *api.NetworkResource {
	out := networkOut(n)
	for _, ports := range [][]api.Port{out.ReservedPorts, out.DynamicPorts} {
		for i := range ports {
			for _, p := range got {
				if p.Label == ports[i].Label {
					ports[i].Value, ports[i].To, out.IP = p.Value, p.To, p.HostIP
				}
			}
		}
	}
	return out
}

func statesOut(in map[string]*model.TaskState) map[string]*api.TaskState {
	if in == nil {
		return nil
	}
	out := make(map[string]*api.TaskState, len(in))
	for name, s := range knownStates(in) {
		out[name] = &api.TaskState{
			State: s.State, Failed: s.Failed, Restarts: s.Restarts, LastRestart: unix(s.LastRestart), StartedAt: unix(s.StartedAt),
			FinishedAt: unix(s.FinishedAt), Events: each(s.Events, eventOut),
		}
	}
	return out
}

// knownStates are those of tasks of which something was told.
func knownStates(in map[string]*model.TaskState) map[string]*model.TaskState {
	for _, s := range in {
		if s == nil {
			out := maps.Clone(in)
			maps.DeleteFunc(out, func(_ string, s *model.TaskState) bool { return s == nil })
			return out
		}
	}
	return in
}

func eventOut(e *model.TaskEvent) *api.TaskEvent {
	return &api.TaskEvent{Type: e.Type, Time: e.Time, DisplayMessage: e.DisplayMessage, Message: e.DisplayMessage, Details: e.Details}
}

// MetricOut makes the explanation of a placement, or of why there is none.
func MetricOut(m *model.AllocMetric) *api.AllocationMetric {
	if m == nil {
		return nil
	}
	out := &api.AllocationMetric{
		NodesEvaluated: m.NodesEvaluated, NodesFiltered: m.NodesFiltered, NodesAvailable: m.NodesAvailable, ClassFiltered: m.ClassFiltered,
		ConstraintFiltered: m.ConstraintFiltered, NodesExhausted: m.NodesExhausted, DimensionExhausted: m.DimensionExhausted,
		AllocationTime: time.Duration(m.AllocationTimeNS), CoalescedFailures: m.CoalescedFailures,
	}
	out.NodesInPool, out.NodePool = m.NodesInPool, m.NodePool
	for _, s := range m.ScoreMeta {
		out.ScoreMetaData = append(out.ScoreMetaData, &api.NodeScoreMeta{NodeID: s.NodeID, Scores: s.Scores, NormScore: s.Norm})
	}
	out.QuotaExhausted = m.QuotaExhausted
	for _, id := range sortedKeys(m.Scores) {
		out.ScoreMetaData = append(out.ScoreMetaData, &api.NodeScoreMeta{
			NodeID: id, Scores: map[string]float64{}, NormScore: m.Scores[id],
		})
	}
	return out
}

// EvalOut makes the wire's evaluation.
func EvalOut(e *model.Evaluation) *api.Evaluation {
	out := &api.Evaluation{
		ID: e.ID, Priority: e.Priority, Type: e.Type, TriggeredBy: e.TriggeredBy, Namespace: e.Namespace, JobID: e.JobID,
		JobModifyIndex: e.JobModifyIndex, NodeID: e.NodeID, Status: e.Status, StatusDescription: e.StatusDescription,
		WaitUntil: unix(e.WaitUntil), NextEval: e.NextEval, PreviousEval: e.PreviousEval, BlockedEval: e.BlockedEval, DeploymentID: e.DeploymentID, ClassEligibility: e.ClassEligibility,
		EscapedComputedClass: e.EscapedClass, QuotaLimitReached: e.QuotaReached, QueuedAllocations: e.QueuedAllocations, SnapshotIndex: e.SnapshotIndex, CreateIndex: e.CreateIndex, ModifyIndex: e.ModifyIndex,
		CreateTime: e.CreateTime, ModifyTime: e.ModifyTime,
	}
	if e.FailedTGAllocs != nil {
		out.FailedTGAllocs = make(map[string]*api.AllocationMetric, len(e.FailedTGAllocs))
		for g, m := range e.FailedTGAllocs {
			out.FailedTGAllocs[g] = MetricOut(m)
		}
	}
	return out
}

// EvalStub is an evaluation as another one refers to it.
func EvalStub(e *model.Evaluation) *api.EvaluationStub {
	return &api.EvaluationStub{
		ID: e.ID, Priority: e.Priority, Type: e.Type, TriggeredBy: e.TriggeredBy, Namespace: e.Namespace, JobID: e.JobID, NodeID: e.NodeID,
		Status: e.Status, StatusDescription: e.StatusDescription, WaitUntil: unix(e.WaitUntil), NextEval: e.NextEval,
		PreviousEval: e.PreviousEval, BlockedEval: e.BlockedEval, DeploymentID: e.DeploymentID, CreateIndex: e.CreateIndex, ModifyIndex: e.ModifyIndex,
		CreateTime: e.CreateTime, ModifyTime: e.ModifyTime,
	}
}

// Plain is an object of the event stream in nomad/api's own form; nil = of a kind that it has no need of.
func Plain(object any) any {
	switch o := object.(type) {
	case *model.Job:
		return JobOut(o)
	case *model.Evaluation:
		return EvalOut(o)
	case *model.Allocation:
		return (*api.Allocation)(AllocWithoutJob(o))
	}
	return nil
}
