package device

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"rockpool/internal/fault"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/model"
)

// watchAgain is how long a plugin rests that gave up, which none does by itself.
const watchAgain = 30 * time.Second

// Manager runs plugins and remembers who holds their instances. It is safe for concurrent use.
type Manager struct {
	plugins []Plugin
	log     logging.Logger
	known   chan struct{} // closed once each plugin has reported

	released chan struct{} // level trigger: an instance is to be verified

	mu         sync.Mutex
	reports    map[string]Report   // by plugin
	holders    map[string]string   // owner by id of an instance
	unverified map[string]*remains // by id of an instance that nobody holds
	wholes     map[string]string   // what instances that are held or unverified are parts of, also once they are not there any more
	settled    chan struct{}       // closed, and replaced, when an instance is verified or has become unhealthy
}

// NewManager starts nothing. Instances of two plugins have different ids.
func NewManager(log logging.Logger, plugins ...Plugin) *Manager {
	if log == nil {
		log = logging.Discard()
	}
	m := &Manager{plugins: plugins, log: log, known: make(chan struct{}), released: make(chan struct{}, 1), reports: map[string]Report{}, holders: map[string]string{},
		unverified: map[string]*remains{}, wholes: map[string]string{}, settled: make(chan struct{})}
	if len(plugins) == 0 {
		close(m.known)
	}
	return m
}

// Known is closed once every plugin has said what it found.
func (m *Manager) Known() <-chan struct{} { return m.known }

// Run watches all devices until ctx ends, and calls changed after each change. Calls may overlap.
func (m *Manager) Run(ctx context.Context, changed func()) error {
	var g errgroup.Group
	g.Go(func() error {
		m.verify(ctx, changed)
		return nil
	})
	for _, p := range m.plugins {
		g.Go(func() error {
			for ctx.Err() == nil {
				err := lifecycle.Guard(func() error { return p.Watch(ctx, func(r Report) { m.take(p.Name(), r, changed) }) })
				if ctx.Err() != nil {
					break
				}
				m.log.WithError(err).WithField("plugin", p.Name()).Error("devices are not watched, it will be tried again")
				m.take(p.Name(), m.failed(p.Name()), changed)
				rest(ctx, watchAgain)
			}
			return nil
		})
	}
	return g.Wait()
}

// failed is the last report of a plugin with nothing healthy in it.
func (m *Manager) failed(plugin string) Report {
	m.mu.Lock()
	r := m.reports[plugin]
	m.mu.Unlock()
	const why = "its driver's part of the node has failed"
	return Report{Detected: r.Detected, Description: why, Groups: Unhealthy(r.Groups, why)}
}

// Unhealthy is a copy of groups in which every instance that was healthy is not, for this reason.
func Unhealthy(groups []model.NodeDevice, why string) []model.NodeDevice {
	out := slices.Clone(groups)
	for i := range out {
		out[i].Instances = slices.Clone(out[i].Instances)
		for j := range out[i].Instances {
			if in := &out[i].Instances[j]; in.Healthy {
				in.Healthy, in.HealthDescription = false, why
			}
		}
	}
	return out
}

func (m *Manager) take(plugin string, r Report, changed func()) {
	m.mu.Lock()
	old, had := m.reports[plugin]
	m.reports[plugin] = r
	if !had && len(m.reports) == len(m.plugins) {
		close(m.known)
	}
	m.mu.Unlock()
	if had && reflect.DeepEqual(old, r) {
		return
	}
	if !had || old.Description != r.Description || old.Healthy != r.Healthy {
		m.log.WithFields(logging.Fields{"plugin": plugin, "found": r.Description}).Info("devices of the node looked for")
	}
	for _, g := range r.Groups {
		for _, in := range g.Instances {
			if _, was := old.Instance(in.ID); !in.Healthy && (was == nil || was.Healthy || was.HealthDescription != in.HealthDescription) {
				m.log.WithFields(logging.Fields{"plugin": plugin, "device": in.ID, "reason": in.HealthDescription}).Warn("device is unhealthy and not offered")
			}
		}
	}
	changed()
}

// Devices are those of all plugins, sorted.
func (m *Manager) Devices() []model.NodeDevice {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []model.NodeDevice
	for _, p := range m.plugins {
		all = append(all, m.stained(m.reports[p.Name()].Groups)...)
	}
	slices.SortStableFunc(all, func(a, b model.NodeDevice) int {
		return cmp.Or(strings.Compare(a.Vendor, b.Vendor), strings.Compare(a.Type, b.Type), strings.Compare(a.Name, b.Name))
	})
	return all
}

// Attributes say of each plugin whether it has anything, and in a sentence what.
func (m *Manager) Attributes() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	attr := map[string]string{}
	for name, r := range m.reports {
		if r.Detected && r.Healthy {
			attr["device."+name] = "1"
		}
		attr["unique.device."+name+".description"] = r.Description
	}
	return attr
}

// Reserve gives instances to an owner, all or none, and says what it has to have in its environment. Who holds them already gets them again. An instance that
// another one holds is an error of kind fault.Conflict, which says who; one that is not verified yet is an error of kind fault.Unavailable: see Await.
func (m *Manager) Reserve(owner string, held []model.AllocatedDevice) (map[string]string, error) {
	env := map[string]string{}
	m.mu.Lock()
	defer m.mu.Unlock()
	if id, r := m.doubted(owner, held); r != nil {
		return nil, fault.New(fault.Unavailable, "device %s: %s", id, r)
	}
	byPlugin := map[Plugin][]string{}
	var taken []string
	for _, d := range held {
		for _, id := range d.DeviceIDs {
			if other, h := m.conflict(owner, id); h != "" {
				return nil, fault.New(fault.Conflict, "device %s/%s/%s: instance %s is still held by task %s", d.Vendor, d.Type, d.Name, other, h)
			}
			p := m.pluginOf(id)
			if p == nil {
				return nil, fault.New(fault.Unavailable, "device %s/%s/%s: this node has no instance %s any more", d.Vendor, d.Type, d.Name, id)
			}
			byPlugin[p] = append(byPlugin[p], id)
			taken = append(taken, id)
		}
	}
	for _, p := range m.plugins {
		if len(byPlugin[p]) == 0 {
			continue
		}
		vars, err := p.Reserve(byPlugin[p])
		if err != nil {
			return nil, err
		}
		for k, v := range vars { // a task may hold devices of several plugins
			if env[k] != "" {
				v = env[k] + "," + v
			}
			env[k] = v
		}
	}
	for _, id := range taken {
		m.holders[id] = owner
		m.keep(id, "")
	}
	return env, nil
}

// conflict is who else holds an instance, or one that it cannot be had beside. The caller holds mu.
func (m *Manager) conflict(owner, id string) (other, holder string) {
	if h := m.holders[id]; h != "" && h != owner {
		return id, h
	}
	for _, held := range slices.Sorted(maps.Keys(m.holders)) {
		if m.holders[held] != owner && m.clash(id, held) {
			return held, m.holders[held]
		}
	}
	return "", ""
}

// clash reports whether two instances have something of a device in common: they are one, or one is a part of the other, or they are parts of two ways to divide it. A
// part that the hardware has made and that is not there any more may have become a part of any other one: who holds it may still open what it was made of.
func (m *Manager) clash(a, b string) bool {
	of, in := m.whole(a), m.whole(b)
	if a == b || a == in || b == of {
		return true
	}
	_, slot := model.SlotParent(a)
	_, beside := model.SlotParent(b)
	return of != "" && of == in && (slot != beside || !slot && (m.pluginOf(a) == nil || m.pluginOf(b) == nil))
}

// whole is the id of the device that an instance is a part of; "" = it is a whole one, or nobody knows. The caller holds mu.
func (m *Manager) whole(id string) string {
	if of, slot := model.SlotParent(id); slot {
		return of
	}
	for _, r := range m.reports {
		if _, in := r.Instance(id); in != nil {
			return in.Parent
		}
	}
	return m.wholes[id]
}

// keep remembers what an instance is a part of for as long as somebody holds it, or it is not verified. The caller holds mu.
func (m *Manager) keep(id, whole string) {
	if whole == "" {
		whole = m.whole(id)
	}
	if whole != "" {
		m.wholes[id] = whole
	}
}

// Wholes are the devices that instances of an owner are parts of, by the ids of the instances. A later process needs them: see Retake.
func (m *Manager) Wholes(owner string) map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out map[string]string
	for id, whole := range m.wholes {
		if m.holders[id] != owner {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[id] = whole
	}
	return out
}

// pluginOf is the plugin whose newest report has an instance. The caller holds mu.
func (m *Manager) pluginOf(id string) Plugin {
	for _, p := range m.plugins {
		r := m.reports[p.Name()]
		if _, in := r.Instance(id); in != nil {
			return p
		}
	}
	return nil
}

// Retake notes that an owner holds instances since before this process, whatever became of them. What they were parts of is what Wholes said then.
func (m *Manager) Retake(owner string, held []model.AllocatedDevice, wholes map[string]string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, d := range held {
		for _, id := range d.DeviceIDs {
			if other, h := m.conflict(owner, id); h != "" {
				errs = append(errs, fault.New(fault.Conflict, "device %s/%s/%s: instance %s is held by tasks %s and %s", d.Vendor, d.Type, d.Name, other, h, owner))
				if other == id {
					continue
				}
			}
			m.holders[id] = owner
			m.keep(id, wholes[id])
			delete(m.unverified, id)
		}
	}
	m.settle()
	return errors.Join(errs...)
}

// Release takes everything back from an owner of which nothing runs any more. Nobody gets it before it is verified that nothing is left on it.
func (m *Manager) Release(owner string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(m.holders)) {
		if m.holders[id] == owner {
			delete(m.holders, id)
			m.suspect(id, owner)
		}
	}
}

// Ailing is what is wrong with instances that somebody holds, by their ids: they are unhealthy, or gone.
func (m *Manager) Ailing() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]string{}
	if len(m.reports) < len(m.plugins) {
		return out // what is not known yet is not gone
	}
	for id := range m.holders {
		out[id] = "the node does not find it any more"
		for _, r := range m.reports {
			if _, in := r.Instance(id); in != nil {
				if out[id] = in.HealthDescription; in.Healthy {
					delete(out, id)
				}
			}
		}
	}
	return out
}

// Stats are figures of all instances that answer. Of those it could not get, the error tells; the others are there all the same.
func (m *Manager) Stats(ctx context.Context) (all []Sample, err error) {
	var errs []error
	for _, p := range m.plugins {
		s, err := p.Stats(ctx)
		all, errs = append(all, s...), append(errs, err)
	}
	return all, errors.Join(errs...)
}

// rest waits.
func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Held is how many instances somebody holds.
func (m *Manager) Held() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.holders)
}
