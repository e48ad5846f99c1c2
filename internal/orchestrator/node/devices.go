package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"rockpool/internal/orchestrator/device"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/wire"
)

const (
	// devicesKnownWithin is how long the agent waits at its start for what its devices are. What is not known by then is told to the servers later.
	devicesKnownWithin = 20 * time.Second
	// deviceStatsTimeout bounds how long devices are asked for their figures.
	deviceStatsTimeout = 2 * time.Second
	// maxDeviceFigures bounds how many devices have figures of their own.
	maxDeviceFigures = 128
)

// watchDevices begins to watch, waits until it is known what there is, and returns what ends it.
func (a *Agent) watchDevices(ctx context.Context) (end func()) {
	if a.cfg.Devices == nil {
		return func() {}
	}
	watching, cancel := context.WithCancel(context.WithoutCancel(ctx)) // devices are watched until the last task has ended
	var running sync.WaitGroup
	running.Go(func() {
		if err := a.cfg.Devices.Run(watching, a.devicesChanged); err != nil {
			a.log.WithError(err).Error("devices are not watched any more")
		}
	})
	timer := time.NewTimer(devicesKnownWithin)
	defer timer.Stop()
	select {
	case <-a.cfg.Devices.Known():
	case <-timer.C:
		a.log.Warn("devices have not answered yet, the node starts without them")
	case <-ctx.Done():
	}
	return func() {
		cancel()
		running.Wait()
	}
}

// devicesChanged has the node described again, and tells tasks what became of their devices.
func (a *Agent) devicesChanged() {
	select {
	case a.describing <- struct{}{}:
	default:
	}
	ailing := a.cfg.Devices.Ailing()
	a.mu.Lock()
	told := a.ailing
	a.ailing = ailing
	runners := slices.Collect(maps.Values(a.runners))
	a.mu.Unlock()
	for _, r := range runners {
		for _, t := range r.tasks {
			for _, id := range t.devices() {
				why := ailing[id]
				if why == "" || told[id] == why {
					continue
				}
				text := fmt.Sprintf("Device %s is unhealthy: %s", id, why)
				t.note(text)
				if a.cfg.StopAiling {
					r.stop.set(&stopReason{text: text, fails: true})
				}
			}
		}
	}
}

// devices are the ids of the instances that the task runs with.
func (t *taskRunner) devices() (ids []string) {
	t.alloc.mu.Lock()
	defer t.alloc.mu.Unlock()
	if held := t.alloc.alloc.Resources.Tasks[t.name]; held != nil && t.handle != nil {
		for _, d := range held.Devices {
			ids = append(ids, d.DeviceIDs...)
		}
	}
	return ids
}

// awaitDevices returns when nothing is left on the task's instances of who held them before.
func (t *taskRunner) awaitDevices(ctx context.Context, cfg *driver.TaskConfig) error {
	m := t.alloc.agent.cfg.Devices
	if m == nil || len(cfg.Resources.Devices) == 0 {
		return nil
	}
	return m.Await(ctx, cfg.ID, cfg.Resources.Devices, t.setup)
}

// reserveDevices takes the task's instances for its incarnation, and adds to its environment what it needs to use them.
func (t *taskRunner) reserveDevices(cfg *driver.TaskConfig) error {
	m := t.alloc.agent.cfg.Devices
	if m == nil || len(cfg.Resources.Devices) == 0 {
		return nil
	}
	env, err := m.Reserve(cfg.ID, cfg.Resources.Devices)
	if err != nil {
		return err
	}
	maps.Copy(cfg.Env, env)
	for _, d := range cfg.Resources.Devices {
		for _, id := range d.DeviceIDs {
			if name := specified(d, id); !slices.Contains(cfg.Devices, name) {
				cfg.Devices = append(cfg.Devices, name)
			}
		}
	}
	if wholes := m.Wholes(cfg.ID); wholes != nil { // a process after this one has to know them, whatever was made of the devices by then
		return t.update(func(r *taskRecord) { r.Wholes = wholes })
	}
	return nil
}

// specified is an instance's name in the Container Device Interface, whose vendors are domains: nvidia/gpu is nvidia.com/gpu there. Slots are not known to it: a task
// on one is given the device.
func specified(d model.AllocatedDevice, id string) string {
	if whole, slot := model.SlotParent(id); slot {
		id = whole
	}
	vendor := d.Vendor
	if !strings.Contains(vendor, ".") {
		vendor += ".com"
	}
	return vendor + "/" + d.Type + "=" + id
}

// retakeDevices notes what a task has held since before this process, before anybody else can ask for it. What one held that runs no more, or may have, is verified:
// the process before may have ended before it was.
func (a *Agent) retakeDevices(t *taskRunner, alloc *model.Allocation) {
	held := alloc.Resources.Tasks[t.name]
	if a.cfg.Devices == nil || held == nil || len(held.Devices) == 0 {
		return
	}
	if !t.record.Started {
		if t.record.Incarnation > 0 {
			a.cfg.Devices.Suspect(t.id(), held.Devices, t.record.Wholes)
		}
		return
	}
	if err := a.cfg.Devices.Retake(t.id(), held.Devices, t.record.Wholes); err != nil {
		a.log.WithError(err).WithField("alloc_id", alloc.ID).Error("two tasks hold the same device")
	}
}

// releaseDevices takes back what an incarnation of a task held, of which nothing is left.
func (a *Agent) releaseDevices(taskID string) {
	if a.cfg.Devices != nil {
		a.cfg.Devices.Release(taskID)
	}
}

// samples are the figures of all devices; those that do not answer are left out.
func (a *Agent) samples(ctx context.Context) []device.Sample {
	if a.cfg.Devices == nil {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, deviceStatsTimeout)
	defer cancel()
	all, err := a.cfg.Devices.Stats(bounded)
	if err != nil {
		a.log.WithError(err).Debug("devices do not tell all their figures")
	}
	return all
}

// deviceStats are figures of the instances in the set, or with nil of all, in Nomad's form.
func (a *Agent) deviceStats(ctx context.Context, only map[string]bool) []*wire.DeviceGroupStats {
	return groupStats(a.samples(ctx), only)
}

func groupStats(samples []device.Sample, only map[string]bool) (groups []*wire.DeviceGroupStats) {
	for _, s := range samples {
		if only != nil && !only[s.ID] {
			continue
		}
		i := slices.IndexFunc(groups, func(g *wire.DeviceGroupStats) bool {
			return g.Vendor == s.Vendor && g.Type == s.Type && g.Name == s.Name
		})
		if i < 0 {
			i = len(groups)
			groups = append(groups, &wire.DeviceGroupStats{Vendor: s.Vendor, Type: s.Type, Name: s.Name, InstanceStats: map[string]*wire.DeviceStats{}})
		}
		stats := &wire.DeviceStats{Stats: &wire.StatObject{Attributes: map[string]*wire.StatValue{}}, Timestamp: s.At}
		for _, v := range s.Values {
			value := &wire.StatValue{Unit: v.Measure.Unit(), Desc: v.Measure.Description()}
			if n := int64(v.N); float64(n) == v.N && float64(int64(v.Of)) == v.Of {
				value.IntNumeratorVal = &n
				if v.Of != 0 {
					value.IntDenominatorVal = new(int64(v.Of))
				}
			} else {
				value.FloatNumeratorVal = &v.N
				if v.Of != 0 {
					value.FloatDenominatorVal = &v.Of
				}
			}
			stats.Stats.Attributes[v.Measure.Name()] = value
			if v.Measure == device.Memory {
				stats.Summary = value
			}
		}
		groups[i].InstanceStats[s.ID] = stats
	}
	return groups
}

// DeviceStats are figures of the devices that tasks of an allocation hold, by the names of the tasks.
func (a *Agent) DeviceStats(ctx context.Context, allocID string, tasks []string) map[string][]*wire.DeviceGroupStats {
	a.mu.Lock()
	r := a.runners[allocID]
	a.mu.Unlock()
	if r == nil || a.cfg.Devices == nil {
		return nil
	}
	var samples []device.Sample
	out := map[string][]*wire.DeviceGroupStats{}
	for _, t := range r.tasks {
		ids := t.devices()
		if len(ids) == 0 || !slices.Contains(tasks, t.name) {
			continue
		}
		if samples == nil {
			samples = a.samples(ctx)
		}
		only := map[string]bool{}
		for _, id := range ids {
			only[id] = true
		}
		out[t.name] = groupStats(samples, only)
	}
	return out
}

// deviceFigures sets how many devices there are, how many are ill and how many are held, and the figures of each one.
func (a *Agent) deviceFigures(set func(name string, v float64)) {
	if a.cfg.Devices == nil {
		return
	}
	count := map[string]float64{"total": 0, "unhealthy": 0, "held": float64(a.cfg.Devices.Held())}
	for _, g := range a.cfg.Devices.Devices() {
		for _, in := range g.Instances {
			if count["total"]++; !in.Healthy {
				count["unhealthy"]++
			}
		}
	}
	for name, v := range count {
		set("rockpool.client.devices."+name, v)
	}
	for i, s := range a.samples(context.Background()) {
		if i == maxDeviceFigures {
			break
		}
		for _, v := range s.Values {
			name := "rockpool.client.device." + s.Type + "." + strings.ToLower(s.ID) + "." + v.Measure.Figure()
			set(name, v.N)
			if v.Of != 0 {
				set(name+"_of", v.Of)
			}
		}
	}
}
