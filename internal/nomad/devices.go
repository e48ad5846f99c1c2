package nomad

import (
	"github.com/hashicorp/nomad/api"

	"rockpool/internal/environment"
)

// holderOf is the task of a job that carries the request for devices. In a runner it is the one that gets them. In a template, of which one container runs, it is
// the task that never runs: what a template holds no runner could have.
func holderOf(job *api.Job, id string) *api.Task {
	if _, ok := templateEnvironment(id); ok {
		return configOf(job).Tasks[0]
	}
	_, task := mainOf(job)
	return task
}

// askFor writes what is asked for into a task.
func askFor(list []environment.Device, task *api.Task) {
	if task.Resources == nil {
		task.Resources = &api.Resources{}
	}
	task.Resources.Devices = nil
	for _, d := range list {
		r := &api.RequestedDevice{Name: d.Name, Count: new(uint64(d.Count))}
		for _, c := range d.Constraints {
			r.Constraints = append(r.Constraints, &api.Constraint{LTarget: c.Target(), Operand: c.Operator, RTarget: c.Value})
		}
		share := environment.DeviceConstraint{Attribute: environment.ShareAttribute}
		switch d.Share {
		case environment.Whole:
			share.Operator = "is_not_set"
		case environment.OnlyPart:
			share.Operator = "is_set"
		}
		if share.Operator != "" {
			r.Constraints = append(r.Constraints, &api.Constraint{LTarget: share.Target(), Operand: share.Operator})
		}
		task.Resources.Devices = append(task.Resources.Devices, r)
	}
}

// devicesOf reads back what a job asks for, whichever of its tasks says it.
func devicesOf(job *api.Job) []environment.Device {
	var list []environment.Device
	_, task := mainOf(job)
	tasks := []*api.Task{task}
	if g := configOf(job); g != nil {
		tasks = append(tasks, g.Tasks...)
	}
	for _, t := range tasks {
		if t == nil || t.Resources == nil {
			continue
		}
		for _, r := range t.Resources.Devices {
			if r != nil {
				list = append(list, deviceOf(r))
			}
		}
	}
	return list
}

func deviceOf(r *api.RequestedDevice) environment.Device {
	d := environment.Device{Name: r.Name, Count: 1, Share: environment.Either}
	if r.Count != nil {
		d.Count = uint(*r.Count)
	}
	for _, x := range r.Constraints {
		if x == nil {
			continue
		}
		c := environment.DeviceConstraint{Attribute: x.LTarget, Operator: x.Operand, Value: x.RTarget}.Canonical()
		switch {
		case c.Attribute == environment.ShareAttribute && c.Operator == "is_not_set":
			d.Share = environment.Whole
		case c.Attribute == environment.ShareAttribute && c.Operator == "is_set":
			d.Share = environment.OnlyPart
		default:
			d.Constraints = append(d.Constraints, c)
		}
	}
	return d
}
