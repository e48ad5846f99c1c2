package wire

import (
	"cmp"
	"fmt"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/model"
)

// Complete fills in the defaults of a job as a client sent it. It refuses a job with holes, which only broken JSON clients send.
func Complete(j *api.Job) error {
	if len(j.TaskGroups) > maxGroups { // each of which would get its defaults first
		return fmt.Errorf("a job has at most %d task groups, not %d", maxGroups, len(j.TaskGroups))
	}
	for i, g := range j.TaskGroups {
		if g == nil {
			return fmt.Errorf("task group %d is null", i+1)
		}
		if g.Name == nil {
			g.Name = new("")
		}
		if len(g.Tasks) > maxTasks {
			return fmt.Errorf("a group has at most %d tasks, not %d", maxTasks, len(g.Tasks))
		}
		for k, t := range g.Tasks {
			if t == nil {
				return fmt.Errorf("task %d of group %q is null", k+1, *g.Name)
			}
		}
		for _, n := range g.Networks {
			if n == nil {
				return fmt.Errorf("a network of group %q is null", *g.Name)
			}
		}
	}
	if len(j.Datacenters) == 0 {
		j.Datacenters = []string{"*"}
	}
	// The library's own defaults walk through pointers; they are not ours to trust with a client's input.
	return guarded(j.Canonicalize)
}

func guarded(f func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the job has null where an object is needed: %v", p)
		}
	}()
	f()
	return nil
}

// JobIn makes a job of the model from a completed one.
func JobIn(j *api.Job) *model.Job {
	out := &model.Job{
		Region: val(j.Region), Namespace: val(j.Namespace), ID: val(j.ID), ParentID: val(j.ParentID), Name: val(j.Name),
		Type: val(j.Type), Priority: val(j.Priority), AllAtOnce: val(j.AllAtOnce), Datacenters: j.Datacenters,
		NodePool: cmp.Or(val(j.NodePool), "default"), Constraints: constraintsIn(j.Constraints), Affinities: affinitiesIn(j.Affinities),
		Spreads: spreadsIn(j.Spreads), Meta: j.Meta, Stop: val(j.Stop),
	}
	policiesIn(j, out)
	for _, g := range j.TaskGroups {
		out.TaskGroups = append(out.TaskGroups, groupIn(g))
	}
	return out
}

func groupIn(g *api.TaskGroup) *model.TaskGroup {
	out := &model.TaskGroup{
		Name: val(g.Name), Count: val(g.Count), Constraints: constraintsIn(g.Constraints), Affinities: affinitiesIn(g.Affinities),
		Spreads: spreadsIn(g.Spreads), Meta: g.Meta, MaxRunTime: val(g.MaxRunDuration),
	}
	groupPoliciesIn(g, out)
	for _, n := range g.Networks {
		out.Networks = append(out.Networks, networkIn(n))
	}
	for _, t := range g.Tasks {
		out.Tasks = append(out.Tasks, taskIn(t))
		if t.Resources == nil {
			continue
		}
		// The old place of networks: a task's own. It is the group's now.
		for _, n := range t.Resources.Networks {
			out.Networks = append(out.Networks, networkIn(n))
		}
	}
	if p := g.RestartPolicy; p != nil {
		out.Restart = model.RestartPolicy{Attempts: val(p.Attempts), Interval: val(p.Interval), Delay: val(p.Delay), Mode: val(p.Mode)}
	}
	if p := g.ReschedulePolicy; p != nil {
		out.Reschedule = model.ReschedulePolicy{
			Attempts: val(p.Attempts), Interval: val(p.Interval), Delay: val(p.Delay), DelayFunction: val(p.DelayFunction),
			MaxDelay: val(p.MaxDelay), Unlimited: val(p.Unlimited),
		}
	}
	if d := g.EphemeralDisk; d != nil {
		out.EphemeralDisk = model.EphemeralDisk{SizeMB: val(d.SizeMB), Sticky: val(d.Sticky), Migrate: val(d.Migrate)}
	}
	return out
}

func taskIn(t *api.Task) *model.Task {
	out := &model.Task{
		Name: t.Name, Driver: t.Driver, User: t.User, Config: t.Config, Env: t.Env, Constraints: constraintsIn(t.Constraints),
		Affinities: affinitiesIn(t.Affinities), Meta: t.Meta, KillTimeout: val(t.KillTimeout), KillSignal: t.KillSignal, Leader: t.Leader,
	}
	taskPoliciesIn(t, out)
	if r := t.Resources; r != nil {
		out.Resources = model.Resources{
			CPU: val(r.CPU), Cores: val(r.Cores), MemoryMB: val(r.MemoryMB), MemoryMaxMB: val(r.MemoryMaxMB), DiskMB: val(r.DiskMB),
		}
		for _, d := range r.Devices {
			out.Resources.Devices = append(out.Resources.Devices, model.DeviceRequest{
				Name: d.Name, Count: val(d.Count), Constraints: constraintsIn(d.Constraints), Affinities: affinitiesIn(d.Affinities),
			})
		}
	}
	if l := t.LogConfig; l != nil {
		out.LogConfig = model.LogConfig{MaxFiles: val(l.MaxFiles), MaxFileSizeMB: val(l.MaxFileSizeMB), Disabled: val(l.Disabled)}
	}
	return out
}

// networkIn sorts ports: JSON clients put them in either list, and a port with a value is a reserved one.
func networkIn(n *api.NetworkResource) model.Network {
	out := model.Network{Mode: n.Mode, Hostname: n.Hostname}
	if n.DNS != nil {
		out.DNS = &model.DNS{Servers: n.DNS.Servers, Searches: n.DNS.Searches, Options: n.DNS.Options}
	}
	for _, list := range [][]api.Port{n.ReservedPorts, n.DynamicPorts} {
		for _, p := range list {
			q := model.Port{Label: p.Label, Value: p.Value, To: p.To, HostNetwork: p.HostNetwork}
			if p.Value > 0 {
				out.ReservedPorts = append(out.ReservedPorts, q)
			} else {
				out.DynamicPorts = append(out.DynamicPorts, q)
			}
		}
	}
	return out
}

func constraintsIn(in []*api.Constraint) []model.Constraint {
	return each(in, func(c *api.Constraint) model.Constraint { return model.Constraint(*c) })
}

func affinitiesIn(in []*api.Affinity) []model.Affinity {
	return each(in, func(a *api.Affinity) model.Affinity {
		return model.Affinity{LTarget: a.LTarget, RTarget: a.RTarget, Operand: a.Operand, Weight: val(a.Weight)}
	})
}

func spreadsIn(in []*api.Spread) []model.Spread {
	return each(in, func(s *api.Spread) model.Spread {
		return model.Spread{Attribute: s.Attribute, Weight: val(s.Weight), Targets: each(s.SpreadTarget, func(t *api.SpreadTarget) model.SpreadTarget {
			return model.SpreadTarget{Value: t.Value, Percent: t.Percent}
		})}
	})
}

func each[A, B any](in []A, f func(A) B) []B {
	if in == nil {
		return nil
	}
	out := make([]B, 0, len(in))
	for _, v := range in {
		out = append(out, f(v))
	}
	return out
}

func val[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

func unix(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
