// Package fake has devices in memory, for tests and simulations.
package fake

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/device"
	"rockpool/internal/orchestrator/model"
)

// Plugin has the devices that it is told to have. It is safe for concurrent use.
type Plugin struct {
	changed chan struct{} // level trigger; one Watch at a time

	mu     sync.Mutex
	report device.Report
	left   map[string]residue // by id
}

// residue is what a task is to leave on an instance.
type residue struct {
	what  string
	err   error
	calls int // that find it; < 0 = all
}

// New is a plugin of n GPUs of one model, "gpu-0" and so on.
func New(n int) *Plugin {
	p := &Plugin{changed: make(chan struct{}, 1), left: map[string]residue{}}
	p.Set(Report(n))
	return p
}

// Report is that of n healthy GPUs.
func Report(n int) device.Report {
	g := model.NodeDevice{Vendor: "nvidia", Type: "gpu", Name: "Fake", Attributes: map[string]model.Attribute{"memory": model.IntOf(16384, "MiB")}}
	for i := range n {
		g.Instances = append(g.Instances, model.DeviceInstance{ID: "gpu-" + strconv.Itoa(i), Healthy: true})
	}
	return device.Report{Detected: true, Healthy: true, Description: "devices of a test", Groups: []model.NodeDevice{g}}
}

// Sliced is the report of n healthy GPUs that are offered as slots.
func Sliced(n, slots int) device.Report {
	return split(n, slots, "slot", model.ShareSlot, func(whole model.DeviceInstance, i, memory int) model.DeviceInstance {
		return model.DeviceInstance{ID: model.SlotID(whole.ID, i), ParentMemoryMB: memory}
	})
}

// Divided is the report of n healthy GPUs that the hardware has divided into so many parts each: MIG-<parts>-<gpu>-<part>.
func Divided(n, parts int) device.Report {
	return split(n, parts, "MIG", model.ShareMIG, func(whole model.DeviceInstance, i, _ int) model.DeviceInstance {
		return model.DeviceInstance{ID: "MIG-" + strconv.Itoa(parts) + "-" + whole.ID + "-" + strconv.Itoa(i)}
	})
}

// split is the report of n healthy GPUs that are offered in parts. part names one of them, of a GPU with so many MB of memory.
func split(n, parts int, name, share string, part func(whole model.DeviceInstance, i, memory int) model.DeviceInstance) device.Report {
	r := Report(n)
	whole := r.Groups[0]
	each := whole.MemoryMB() / parts
	g := model.NodeDevice{Vendor: whole.Vendor, Type: whole.Type, Name: "Fake " + name + " " + strconv.Itoa(each) + "mb", Attributes: map[string]model.Attribute{
		model.AttrMemory: model.IntOf(int64(each), "MiB"), model.AttrShare: model.TextOf(share)}}
	for _, in := range whole.Instances {
		for i := range parts {
			p := part(in, i, whole.MemoryMB())
			p.Healthy, p.Parent = true, in.ID
			g.Instances = append(g.Instances, p)
		}
	}
	r.Groups[0] = g
	return r
}

// Set replaces what there is.
func (p *Plugin) Set(r device.Report) {
	p.mu.Lock()
	p.report = r
	p.mu.Unlock()
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// Ail makes one instance and its parts unhealthy for a reason, or with "" healthy again.
func (p *Plugin) Ail(id, why string) {
	p.mu.Lock()
	r := p.report
	p.mu.Unlock()
	r.Groups = slices.Clone(r.Groups)
	for i := range r.Groups {
		r.Groups[i].Instances = slices.Clone(r.Groups[i].Instances)
		for k := range r.Groups[i].Instances {
			if in := &r.Groups[i].Instances[k]; in.ID == id || in.Parent == id {
				in.Healthy, in.HealthDescription = why == "", why
			}
		}
	}
	p.Set(r)
}

// Name is "fake".
func (p *Plugin) Name() string { return "fake" }

func (p *Plugin) newest() device.Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.report
}

// Watch publishes what Set was given.
func (p *Plugin) Watch(ctx context.Context, publish func(device.Report)) error {
	for {
		publish(p.newest())
		select {
		case <-p.changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Reserve names the instances in FAKE_VISIBLE_DEVICES, slots by their GPUs.
func (p *Plugin) Reserve(ids []string) (map[string]string, error) {
	r := p.newest()
	for _, id := range ids {
		switch _, in := r.Instance(id); {
		case in == nil:
			return nil, fault.New(fault.NotFound, "device %s is not there", id)
		case !in.Healthy:
			return nil, fault.New(fault.Unavailable, "device %s is unhealthy: %s", id, in.HealthDescription)
		}
	}
	var visible []string
	for _, id := range ids {
		if whole, slot := model.SlotParent(id); slot {
			id = whole
		}
		if !slices.Contains(visible, id) {
			visible = append(visible, id)
		}
	}
	return map[string]string{"FAKE_VISIBLE_DEVICES": strings.Join(visible, ",")}, nil
}

// Leave has the next looks at an instance find something, or fail; calls < 0 = all of them, 0 = none.
func (p *Plugin) Leave(id, what string, err error, calls int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left[id] = residue{what, err, calls}
}

// Residue is what Leave was told.
func (p *Plugin) Residue(_ context.Context, id string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, in := p.report.Instance(id); in == nil {
		return "", fault.New(fault.NotFound, "device %s is not there", id)
	}
	r := p.left[id]
	if r.calls == 0 {
		return "", nil
	}
	r.calls--
	p.left[id] = r
	return r.what, r.err
}

// Stats say that half of the memory is used, and 40 % of the time.
func (p *Plugin) Stats(context.Context) (all []device.Sample, err error) {
	for _, g := range p.newest().Groups {
		for _, in := range g.Instances {
			if in.Healthy {
				all = append(all, device.Sample{Vendor: g.Vendor, Type: g.Type, Name: g.Name, ID: in.ID, At: time.Now(), Values: []device.Value{
					{Measure: device.Memory, N: 8192, Of: 16384}, {Measure: device.Utilization, N: 40},
				}})
			}
		}
	}
	return all, nil
}
