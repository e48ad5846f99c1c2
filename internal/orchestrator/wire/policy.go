package wire

import (
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/model"
)

// policiesIn takes over what says when, how often and how carefully a job runs.
func policiesIn(j *api.Job, out *model.Job) {
	if p := j.Periodic; p != nil {
		specs := p.Specs
		if s := val(p.Spec); s != "" {
			specs = append([]string{s}, specs...)
		}
		out.Periodic = &model.Periodic{Enabled: p.Enabled == nil || *p.Enabled, Specs: specs, TimeZone: val(p.TimeZone), ProhibitOverlap: val(p.ProhibitOverlap)}
	}
	if p := j.ParameterizedJob; p != nil {
		out.Parameterized = &model.Parameterized{Payload: p.Payload, MetaRequired: p.MetaRequired, MetaOptional: p.MetaOptional}
	}
	out.Dispatched, out.DispatchToken, out.Payload = j.Dispatched, val(j.DispatchIdempotencyToken), j.Payload
	if v := j.VersionTag; v != nil {
		out.VersionTag = (*model.VersionTag)(v)
	}
}

func policiesOut(j *model.Job, out *api.Job) {
	if p := j.Periodic; p != nil {
		out.Periodic = &api.PeriodicConfig{
			Enabled: new(p.Enabled), SpecType: new(api.PeriodicSpecCron), ProhibitOverlap: new(p.ProhibitOverlap), TimeZone: new(p.TimeZone), Spec: new(""),
		}
		if len(p.Specs) == 1 {
			out.Periodic.Spec = new(p.Specs[0])
		} else {
			out.Periodic.Specs = p.Specs
		}
	}
	if p := j.Parameterized; p != nil {
		out.ParameterizedJob = &api.ParameterizedJobConfig{Payload: p.Payload, MetaRequired: p.MetaRequired, MetaOptional: p.MetaOptional}
	}
	out.Dispatched, out.Payload = j.Dispatched, j.Payload
	if j.DispatchToken != "" {
		out.DispatchIdempotencyToken = new(j.DispatchToken)
	}
	if v := j.VersionTag; v != nil {
		out.VersionTag = (*api.JobVersionTag)(v)
	}
}

func groupPoliciesIn(g *api.TaskGroup, out *model.TaskGroup) {
	if u := g.Update; u != nil && val(u.MaxParallel) > 0 {
		out.Update = &model.UpdatePolicy{
			Stagger: val(u.Stagger), MaxParallel: val(u.MaxParallel), HealthCheck: val(u.HealthCheck), MinHealthyTime: val(u.MinHealthyTime),
			HealthyDeadline: val(u.HealthyDeadline), ProgressDeadline: val(u.ProgressDeadline), Canary: val(u.Canary), AutoRevert: val(u.AutoRevert),
			AutoPromote: val(u.AutoPromote),
		}
	}
	if m := g.Migrate; m != nil {
		out.Migrate = &model.MigratePolicy{
			MaxParallel: val(m.MaxParallel), HealthCheck: val(m.HealthCheck), MinHealthyTime: val(m.MinHealthyTime), HealthyDeadline: val(m.HealthyDeadline),
		}
	}
	switch d := g.Disconnect; {
	case d != nil:
		out.Disconnect = &model.DisconnectPolicy{
			LostAfter: val(d.LostAfter), StopOnClientAfter: val(d.StopOnClientAfter), Replace: d.Replace == nil || *d.Replace,
			Reconcile: string(val(d.Reconcile)),
		}
	default:
		if lost, stop := olderDisconnect(g); lost != nil || stop != nil {
			out.Disconnect = &model.DisconnectPolicy{LostAfter: val(lost), StopOnClientAfter: val(stop), Replace: true}
		}
	}
	out.Services = each(g.Services, serviceIn)
	for name, v := range g.Volumes {
		if v == nil {
			continue
		}
		if out.Volumes == nil {
			out.Volumes = map[string]*model.VolumeRequest{}
		}
		out.Volumes[name] = &model.VolumeRequest{Name: name, Type: v.Type, Source: v.Source, ReadOnly: v.ReadOnly}
	}
	if s := g.Scaling; s != nil {
		out.Scaling = &model.Scaling{ID: s.ID, Enabled: s.Enabled == nil || *s.Enabled, Min: val(s.Min), Max: val(s.Max), Policy: s.Policy}
	}
	out.ShutdownDelay = val(g.ShutdownDelay)
}

// olderDisconnect is what a disconnect block says now, as job files said it before there was one.
func olderDisconnect(g *api.TaskGroup) (lost, stop *time.Duration) {
	//lint:ignore SA1019 they are read for the sake of those files
	return g.MaxClientDisconnect, g.StopAfterClientDisconnect
}

func groupPoliciesOut(g *model.TaskGroup, out *api.TaskGroup) {
	if u := g.Update; u != nil {
		out.Update = &api.UpdateStrategy{
			Stagger: new(u.Stagger), MaxParallel: new(u.MaxParallel), HealthCheck: new(u.HealthCheck), MinHealthyTime: new(u.MinHealthyTime),
			HealthyDeadline: new(u.HealthyDeadline), ProgressDeadline: new(u.ProgressDeadline), Canary: new(u.Canary), AutoRevert: new(u.AutoRevert),
			AutoPromote: new(u.AutoPromote),
		}
	}
	if m := g.Migrate; m != nil {
		out.Migrate = &api.MigrateStrategy{
			MaxParallel: new(m.MaxParallel), HealthCheck: new(m.HealthCheck), MinHealthyTime: new(m.MinHealthyTime), HealthyDeadline: new(m.HealthyDeadline),
		}
	}
	if d := g.Disconnect; d != nil {
		out.Disconnect = &api.DisconnectStrategy{LostAfter: new(d.LostAfter), Replace: new(d.Replace)}
		if d.StopOnClientAfter > 0 {
			out.Disconnect.StopOnClientAfter = new(d.StopOnClientAfter)
		}
		if d.Reconcile != "" {
			out.Disconnect.Reconcile = new(api.ReconcileOption(d.Reconcile))
		}
	}
	out.Services = each(g.Services, serviceOut)
	for name, v := range g.Volumes {
		if out.Volumes == nil {
			out.Volumes = map[string]*api.VolumeRequest{}
		}
		out.Volumes[name] = &api.VolumeRequest{Name: v.Name, Type: v.Type, Source: v.Source, ReadOnly: v.ReadOnly}
	}
	if s := g.Scaling; s != nil {
		out.Scaling = &api.ScalingPolicy{ID: s.ID, Enabled: new(s.Enabled), Min: new(s.Min), Max: new(s.Max), Policy: s.Policy, Type: api.ScalingPolicyTypeHorizontal}
	}
	if g.ShutdownDelay > 0 {
		out.ShutdownDelay = new(g.ShutdownDelay)
	}
}

func taskPoliciesIn(t *api.Task, out *model.Task) {
	if p := t.RestartPolicy; p != nil {
		out.Restart = &model.RestartPolicy{Attempts: val(p.Attempts), Interval: val(p.Interval), Delay: val(p.Delay), Mode: val(p.Mode)}
	}
	if l := t.Lifecycle; l != nil {
		out.Lifecycle = &model.Lifecycle{Hook: l.Hook, Sidecar: l.Sidecar}
	}
	out.Services = each(t.Services, serviceIn)
	out.VolumeMounts = each(t.VolumeMounts, func(m *api.VolumeMount) model.VolumeMount {
		return model.VolumeMount{Volume: val(m.Volume), Destination: val(m.Destination), ReadOnly: val(m.ReadOnly)}
	})
	out.Templates = each(t.Templates, func(t *api.Template) model.Template {
		return model.Template{Text: val(t.EmbeddedTmpl), Destination: val(t.DestPath), Perms: val(t.Perms), Env: val(t.Envvars)}
	})
	if d := t.DispatchPayload; d != nil {
		out.DispatchPayload = d.File
	}
	out.ShutdownDelay = t.ShutdownDelay
}

func taskPoliciesOut(t *model.Task, out *api.Task) {
	if p := t.Restart; p != nil {
		out.RestartPolicy = &api.RestartPolicy{Attempts: new(p.Attempts), Interval: new(p.Interval), Delay: new(p.Delay), Mode: new(p.Mode), RenderTemplates: new(false)}
	}
	if l := t.Lifecycle; l != nil {
		out.Lifecycle = &api.TaskLifecycle{Hook: l.Hook, Sidecar: l.Sidecar}
	}
	out.Services = each(t.Services, serviceOut)
	out.VolumeMounts = each(t.VolumeMounts, func(m model.VolumeMount) *api.VolumeMount {
		return &api.VolumeMount{Volume: new(m.Volume), Destination: new(m.Destination), ReadOnly: new(m.ReadOnly)}
	})
	out.Templates = each(t.Templates, func(t model.Template) *api.Template {
		return &api.Template{EmbeddedTmpl: new(t.Text), DestPath: new(t.Destination), Perms: new(t.Perms), Envvars: new(t.Env)}
	})
	if t.DispatchPayload != "" {
		out.DispatchPayload = &api.DispatchPayloadConfig{File: t.DispatchPayload}
	}
	out.ShutdownDelay = t.ShutdownDelay
}

func serviceIn(s *api.Service) *model.Service {
	return &model.Service{
		Name: s.Name, Provider: s.Provider, PortLabel: s.PortLabel, Address: s.Address, Tags: s.Tags, Meta: s.Meta, TaskName: s.TaskName,
		Checks: each(s.Checks, func(c api.ServiceCheck) model.ServiceCheck {
			return model.ServiceCheck{
				Name: c.Name, Type: c.Type, PortLabel: c.PortLabel, Path: c.Path, Method: c.Method, Protocol: c.Protocol, Headers: c.Header, Body: c.Body,
				Interval: c.Interval, Timeout: c.Timeout, OnUpdate: c.OnUpdate,
			}
		}),
	}
}

func serviceOut(s *model.Service) *api.Service {
	return &api.Service{
		Name: s.Name, Provider: s.Provider, PortLabel: s.PortLabel, Address: s.Address, Tags: s.Tags, Meta: s.Meta, TaskName: s.TaskName,
		Checks: each(s.Checks, func(c model.ServiceCheck) api.ServiceCheck {
			return api.ServiceCheck{
				Name: c.Name, Type: c.Type, PortLabel: c.PortLabel, Path: c.Path, Method: c.Method, Protocol: c.Protocol, Header: c.Headers, Body: c.Body,
				Interval: c.Interval, Timeout: c.Timeout, OnUpdate: c.OnUpdate,
			}
		}),
	}
}

// DeploymentOut makes the wire's deployment.
func DeploymentOut(d *model.Deployment) *api.Deployment {
	if d == nil {
		return nil
	}
	out := &api.Deployment{
		ID: d.ID, Namespace: d.Namespace, JobID: d.JobID, JobVersion: d.JobVersion, JobModifyIndex: d.JobModifyIndex,
		JobSpecModifyIndex: d.JobSpecModifyIndex, JobCreateIndex: d.JobCreateIndex, TaskGroups: map[string]*api.DeploymentState{}, Status: d.Status,
		StatusDescription: d.StatusDescription, CreateIndex: d.CreateIndex, ModifyIndex: d.ModifyIndex, CreateTime: d.CreateTime, ModifyTime: d.ModifyTime,
	}
	for name, g := range d.TaskGroups {
		out.TaskGroups[name] = &api.DeploymentState{
			PlacedCanaries: g.PlacedCanaries, AutoRevert: g.AutoRevert, ProgressDeadline: g.ProgressDeadline, RequireProgressBy: unix(g.RequireProgressBy),
			Promoted: g.Promoted, DesiredCanaries: g.DesiredCanaries, DesiredTotal: g.DesiredTotal, PlacedAllocs: g.Placed, HealthyAllocs: g.Healthy,
			UnhealthyAllocs: g.Unhealthy,
		}
	}
	return out
}

func healthOut(h *model.AllocHealth) *api.AllocDeploymentStatus {
	if h == nil {
		return nil
	}
	return &api.AllocDeploymentStatus{Healthy: h.Healthy, Timestamp: unix(h.Timestamp), Canary: h.Canary, ModifyIndex: h.ModifyIndex}
}

func transitionOut(t *model.DesiredTransition) api.DesiredTransition {
	if t == nil {
		return api.DesiredTransition{}
	}
	set := func(b bool) *bool {
		if !b {
			return nil
		}
		return &b
	}
	return api.DesiredTransition{
		Migrate: set(t.Migrate), Reschedule: set(t.Reschedule), ForceReschedule: set(t.ForceReschedule), NoShutdownDelay: set(t.NoShutdownDelay),
	}
}

func reschedulesOut(in []model.Reschedule) *api.RescheduleTracker {
	if len(in) == 0 {
		return nil
	}
	return &api.RescheduleTracker{Events: each(in, func(r model.Reschedule) *api.RescheduleEvent {
		return &api.RescheduleEvent{RescheduleTime: r.Time, PrevAllocID: r.PrevAlloc, PrevNodeID: r.PrevNode}
	})}
}

// drainOut and lastDrainOut show how a node is emptied.
func drainOut(d *model.Drain) *api.DrainStrategy {
	if d == nil {
		return nil
	}
	return &api.DrainStrategy{
		DrainSpec:     api.DrainSpec{Deadline: d.Deadline, IgnoreSystemJobs: d.IgnoreSystemJobs},
		ForceDeadline: unix(d.ForceDeadline), StartedAt: unix(d.StartedAt),
	}
}

func lastDrainOut(d *model.LastDrain) *api.DrainMetadata {
	if d == nil {
		return nil
	}
	return &api.DrainMetadata{StartedAt: unix(d.StartedAt), UpdatedAt: unix(d.UpdatedAt), Status: api.DrainStatus(d.Status), AccessorID: d.AccessorID, Meta: d.Meta}
}
