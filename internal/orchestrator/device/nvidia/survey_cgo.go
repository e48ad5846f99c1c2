//go:build linux && cgo

package nvidia

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"rockpool/internal/orchestrator/device"
	"rockpool/internal/orchestrator/model"
)

// gpu is one GPU as it was found.
type gpu struct {
	uuid, name, bus string
	handle          nvml.Device // nil = it does not answer
	numa            *int
	peers           []string // UUIDs
	units           []unit   // what is offered of it: itself, or its parts
}

// unit is what one instance is made of.
type unit struct {
	id, name   string
	attributes map[string]model.Attribute
	ill        string      // why it is unhealthy; "" = it is not
	handle     nvml.Device // nil = it does not answer
	instance   *uint32     // id of the GPU instance, of a part
	memory     uint64      // bytes
	slots      int         // that it is offered as; 0 = it is offered itself
}

// target is an instance whose figures can be asked for.
type target struct {
	sample device.Sample // without figures
	gpu    nvml.Device
	part   nvml.Device // nil = the instance is a whole GPU
	shared bool        // others use the GPU at the same time
}

// survey is all that one look has found.
type survey struct {
	report  device.Report
	gpus    []*gpu
	targets []target
	lost    bool // there is a GPU that another session may see differently
}

// survey looks at everything. Its error ends the session; what is wrong with one GPU is in the report.
func (p *Plugin) survey(ctx context.Context) (survey, error) {
	var s survey
	r := reader{ctx: ctx, library: p.library}
	count, err := call(ctx, p.library, []string{"nvmlDeviceGetCount_v2", "nvmlDeviceGetCount"}, p.cfg.CallTimeout, p.library.nvml.DeviceGetCount)
	if err != nil {
		return s, err
	}
	common, driver := r.driver()
	var silent []string
	for i := range count {
		g, err := p.look(&r, i)
		switch {
		case broken(err) != nil:
			return s, err
		case err != nil:
			s.lost = true
			silent = append(silent, fmt.Sprintf("GPU %d: %v", i, err))
		default:
			s.lost = s.lost || g.handle == nil
			s.gpus = append(s.gpus, g)
		}
	}
	if r.broken != nil {
		return s, r.broken
	}
	fallen := p.fallen(s.gpus, len(silent) > 0)
	s.gpus, s.lost = append(s.gpus, fallen...), s.lost || len(fallen) > 0
	s.gpus = slices.DeleteFunc(s.gpus, p.ignored)
	link(&r, s.gpus)
	if r.broken != nil {
		return s, r.broken
	}
	p.remember(s.gpus)
	s.report = device.Report{Detected: true, Healthy: true, Groups: p.group(s.gpus, common)}
	s.report.Description = fmt.Sprintf("driver %s, %s", cmp.Or(driver, "of an unknown version"), numbered(len(s.gpus), "GPU", "GPUs"))
	if len(silent) > 0 {
		s.report.Description += "; " + strings.Join(silent, "; ")
	}
	for _, g := range s.gpus {
		for _, u := range g.units {
			if u.handle == nil || g.handle == nil {
				continue
			}
			t := target{sample: device.Sample{Vendor: Vendor, Type: Type, Name: modelName(u.name), ID: u.id}, gpu: g.handle, shared: u.slots > 0}
			if u.instance != nil {
				t.part = u.handle
			}
			if u.slots == 0 {
				s.targets = append(s.targets, t)
			}
			for i := range u.slots {
				t.sample.ID = model.SlotID(u.id, i)
				s.targets = append(s.targets, t)
			}
		}
	}
	slices.SortFunc(s.targets, func(a, b target) int { return strings.Compare(a.sample.ID, b.sample.ID) })
	return s, nil
}

func numbered(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// driver are the attributes that all devices share, and the driver's version.
func (r *reader) driver() (common map[string]model.Attribute, version string) {
	common = map[string]model.Attribute{}
	if v, ok := get(r, r.library.nvml.SystemGetDriverVersion, "nvmlSystemGetDriverVersion"); ok {
		version = v
		common["driver_version"] = model.TextOf(v)
	}
	if v, ok := get(r, r.library.nvml.SystemGetCudaDriverVersion, "nvmlSystemGetCudaDriverVersion"); ok {
		common["cuda_version"] = model.TextOf(fmt.Sprintf("%d.%d", v/1000, v%1000/10))
	}
	return common, version
}

// look describes the GPU with an index. One that was seen before and does not answer any more is described as it was, unhealthy; of one that never answered
// there is only the error.
func (p *Plugin) look(r *reader, index int) (*gpu, error) {
	l := p.library
	h, err := call(r.ctx, l, []string{"nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByIndex"}, p.cfg.CallTimeout, func() (nvml.Device, nvml.Return) {
		return l.nvml.DeviceGetHandleByIndex(index)
	})
	var uuid string
	if err == nil {
		uuid, err = call(r.ctx, l, []string{"nvmlDeviceGetUUID"}, p.cfg.CallTimeout, h.GetUUID)
	}
	if err != nil {
		return nil, err
	}
	r.lost = nil
	g := &gpu{uuid: uuid, handle: h}
	g.name, _ = get(r, h.GetName, "nvmlDeviceGetName")
	if pci, ok := get(r, h.GetPciInfo, "nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetPciInfo_v2", "nvmlDeviceGetPciInfo"); ok {
		g.bus = busText(pci.BusId[:])
		g.numa = p.numa(g.bus)
	}
	attributes, memory := r.attributes(h)
	ill := p.examine(r, g)
	divided := false
	if mode, ok := get(r, func() (int, nvml.Return) { current, _, code := h.GetMigMode(); return current, code }, "nvmlDeviceGetMigMode"); ok {
		attributes["mig_mode"] = model.TextOf(enabled(mode == nvml.DEVICE_MIG_ENABLE))
		divided = mode == nvml.DEVICE_MIG_ENABLE
	}
	if divided {
		g.units = r.parts(g, attributes)
	} else {
		g.units = []unit{p.share(g, unit{id: g.uuid, name: g.name, attributes: attributes, handle: h, memory: memory})}
	}
	if r.lost != nil { // half of a description is worse than the old one
		if old := p.seen[uuid]; old != nil {
			kept := *old
			g, kept.handle = &kept, nil
			g.units = slices.Clone(old.units)
		}
		g.handle, ill = nil, lostText(r.lost)
	}
	for i := range g.units {
		u := &g.units[i]
		u.ill = cmp.Or(ill, p.sick[u.id], p.sick[g.uuid], u.ill)
	}
	return g, nil
}

func lostText(err error) string {
	if f, ok := errors.AsType[*failure](err); ok {
		return meaning(f.code)
	}
	return err.Error()
}

// attributes are those of one whole GPU, under Nomad's names where it has one, and its memory in bytes.
func (r *reader) attributes(h nvml.Device) (a map[string]model.Attribute, memory uint64) {
	a = map[string]model.Attribute{}
	if m, ok := get(r, h.GetMemoryInfo, "nvmlDeviceGetMemoryInfo"); ok {
		memory = m.Total
		a["memory"] = model.IntOf(int64(m.Total>>20), "MiB")
	}
	if b, ok := get(r, h.GetBAR1MemoryInfo, "nvmlDeviceGetBAR1MemoryInfo"); ok {
		a["bar1"] = model.IntOf(int64(b.Bar1Total>>20), "MiB")
	}
	if mw, ok := get(r, h.GetPowerManagementLimit, "nvmlDeviceGetPowerManagementLimit"); ok {
		a["power"] = model.IntOf(int64(mw/1000), "W")
	}
	for name, clock := range map[string]nvml.ClockType{"cores_clock": nvml.CLOCK_GRAPHICS, "memory_clock": nvml.CLOCK_MEM} {
		if mhz, ok := get(r, func() (uint32, nvml.Return) { return h.GetMaxClockInfo(clock) }, "nvmlDeviceGetMaxClockInfo"); ok {
			a[name] = model.IntOf(int64(mhz), "MHz")
		}
	}
	generation, ok := get(r, h.GetMaxPcieLinkGeneration, "nvmlDeviceGetMaxPcieLinkGeneration")
	width, also := get(r, h.GetMaxPcieLinkWidth, "nvmlDeviceGetMaxPcieLinkWidth")
	if ok {
		a["pcie_generation"] = model.IntOf(int64(generation), "")
	}
	if also {
		a["pcie_width"] = model.IntOf(int64(width), "")
	}
	if lane := laneMBps[generation]; ok && also && lane > 0 {
		a["pci_bandwidth"] = model.IntOf(int64(lane*width), "MB/s")
	}
	if s, ok := get(r, h.GetDisplayMode, "nvmlDeviceGetDisplayMode"); ok {
		a["display_state"] = model.TextOf(enabled(s == nvml.FEATURE_ENABLED))
	}
	if s, ok := get(r, h.GetPersistenceMode, "nvmlDeviceGetPersistenceMode"); ok {
		a["persistence_mode"] = model.TextOf(enabled(s == nvml.FEATURE_ENABLED))
	}
	if c, ok := get(r, func() (string, nvml.Return) {
		major, minor, code := h.GetCudaComputeCapability()
		return fmt.Sprintf("%d.%d", major, minor), code
	}, "nvmlDeviceGetCudaComputeCapability"); ok {
		a["compute_capability"] = model.TextOf(c)
	}
	return a, memory
}

// laneMBps is what one lane of PCI Express carries, by its generation, in MB/s.
var laneMBps = map[int]int{1: 250, 2: 500, 3: 985, 4: 1969, 5: 3938, 6: 7563}

func enabled(b bool) string {
	if b {
		return "Enabled"
	}
	return "Disabled"
}

// share makes slots of a whole GPU, if that is asked for. One that has not the memory for them is not offered at all: neither is what was asked for.
func (p *Plugin) share(g *gpu, u unit) unit {
	want := p.cfg.Slots
	if want.Count < 2 || len(want.Of) > 0 && !slices.ContainsFunc(want.Of, func(s string) bool { return s == g.name || modelName(g.name) == s || g.is(s) }) {
		return u
	}
	there := int(u.memory >> 20)
	each := cmp.Or(want.MemoryMB, there/want.Count)
	switch {
	case there == 0:
		u.ill = "its memory is not known, so that it cannot be shared as slots"
		return u
	case each*want.Count > there || each == 0:
		u.ill = fmt.Sprintf("it has %d MiB of memory, less than %d slots of %d MiB", there, want.Count, each)
		return u
	}
	u.slots, u.name = want.Count, fmt.Sprintf("%s slot %s", g.name, size(each))
	u.attributes = maps.Clone(u.attributes)
	delete(u.attributes, "bar1")
	u.attributes[model.AttrMemory] = model.IntOf(int64(each), "MiB")
	u.attributes[model.AttrShare] = model.TextOf(model.ShareSlot)
	return u
}

// size is memory as the profiles of parts have it: 5gb.
func size(mib int) string {
	if mib%1024 == 0 {
		return strconv.Itoa(mib/1024) + "gb"
	}
	return strconv.Itoa(mib) + "mb"
}

// maxParts bounds how many parts a GPU may say that it has.
const maxParts = 64

// parts are the instances that a GPU has been divided into. It is not offered itself.
func (r *reader) parts(g *gpu, whole map[string]model.Attribute) (units []unit) {
	most, _ := get(r, g.handle.GetMaxMigDeviceCount, "nvmlDeviceGetMaxMigDeviceCount")
	for i := range min(most, maxParts) {
		h, ok := get(r, func() (nvml.Device, nvml.Return) { return g.handle.GetMigDeviceHandleByIndex(i) }, "nvmlDeviceGetMigDeviceHandleByIndex")
		if !ok {
			continue // the numbers have gaps
		}
		id, ok := get(r, h.GetUUID, "nvmlDeviceGetUUID")
		if !ok {
			continue
		}
		u := unit{id: id, handle: h, instance: new(uint32(wholeDevice)), attributes: map[string]model.Attribute{}}
		for _, k := range []string{"compute_capability", "mig_mode", "display_state", "persistence_mode"} {
			if v, ok := whole[k]; ok {
				u.attributes[k] = v
			}
		}
		u.attributes[model.AttrShare] = model.TextOf(model.ShareMIG)
		u.attributes["mig_parent"] = model.TextOf(g.name)
		if n, ok := get(r, h.GetGpuInstanceId, "nvmlDeviceGetGpuInstanceId"); ok {
			*u.instance = uint32(n)
		}
		if m, ok := get(r, h.GetMemoryInfo, "nvmlDeviceGetMemoryInfo"); ok {
			u.memory = m.Total
			u.attributes["memory"] = model.IntOf(int64(m.Total>>20), "MiB")
		}
		name, _ := get(r, h.GetName, "nvmlDeviceGetName")
		profile := ""
		if _, p, ok := strings.Cut(name, " MIG "); ok {
			profile = p
		} else if a, ok := get(r, h.GetAttributes, "nvmlDeviceGetAttributes_v2", "nvmlDeviceGetAttributes"); ok {
			profile = fmt.Sprintf("%dg.%dgb", a.GpuInstanceSliceCount, (a.MemorySizeMB+1023)/1024)
			if a.ComputeInstanceSliceCount != a.GpuInstanceSliceCount {
				profile = fmt.Sprintf("%dc.%s", a.ComputeInstanceSliceCount, profile)
			}
		}
		u.name = g.name + " MIG"
		if profile != "" {
			u.name += " " + profile
			u.attributes["mig_profile"] = model.TextOf(profile)
		}
		units = append(units, u)
	}
	return units
}

// numa is the NUMA node that a GPU is next to.
func (p *Plugin) numa(bus string) *int {
	b, err := os.ReadFile(filepath.Join(p.cfg.Sys, "bus/pci/devices", kernelBus(bus), "numa_node"))
	if err != nil {
		return nil
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || n < 0 {
		return nil
	}
	return &n
}

// busText is a text of C up to its end.
func busText(text []int8) string {
	var b strings.Builder
	for _, c := range text {
		if c == 0 {
			break
		}
		b.WriteByte(byte(c))
	}
	return b.String()
}

// kernelBus is a PCI bus id as the kernel writes it: 0000:3b:00.0 for 00000000:3B:00.0.
func kernelBus(bus string) string {
	domain, rest, _ := strings.Cut(strings.ToLower(bus), ":")
	if len(domain) == 8 && strings.HasPrefix(domain, "0000") {
		domain = domain[4:]
	}
	return filepath.Base(domain + ":" + rest)
}

// link finds out which GPUs a fast link connects: directly, or all that are on switches.
func link(r *reader, gpus []*gpu) {
	byBus := map[string]*gpu{}
	for _, g := range gpus {
		if g.bus != "" {
			byBus[kernelBus(g.bus)] = g
		}
	}
	peers := map[*gpu]map[string]bool{}
	var switched []*gpu
	for _, g := range gpus {
		peers[g] = map[string]bool{}
		onSwitch := false
		r.lost = nil
		for i := range nvml.NVLINK_MAX_LINKS {
			if g.handle == nil || r.broken != nil {
				break
			}
			state, ok := get(r, func() (nvml.EnableState, nvml.Return) { return g.handle.GetNvLinkState(i) }, "nvmlDeviceGetNvLinkState")
			if !ok {
				break // there are no more links
			}
			if state != nvml.FEATURE_ENABLED {
				continue
			}
			pci, ok := get(r, func() (nvml.PciInfo, nvml.Return) { return g.handle.GetNvLinkRemotePciInfo(i) }, "nvmlDeviceGetNvLinkRemotePciInfo_v2", "nvmlDeviceGetNvLinkRemotePciInfo")
			if !ok {
				continue
			}
			if other := byBus[kernelBus(busText(pci.BusId[:]))]; other != nil {
				peers[g][other.uuid] = true
			} else {
				onSwitch = true
			}
		}
		if onSwitch {
			switched = append(switched, g)
		}
	}
	for _, g := range switched {
		for _, other := range switched {
			peers[g][other.uuid] = true
		}
	}
	for _, g := range gpus {
		if g.handle == nil {
			continue // as it was
		}
		delete(peers[g], g.uuid)
		g.peers = slices.Sorted(maps.Keys(peers[g]))
	}
}

// fallen are the GPUs that were seen before, which the library does not find now, and the kernel still knows. Where the kernel tells nothing, they are those that
// the library still counts.
func (p *Plugin) fallen(found []*gpu, counted bool) (all []*gpu) {
	listing := filepath.Join(p.cfg.Proc, "driver/nvidia/gpus")
	_, err := os.Stat(listing)
	told := err == nil
	for _, uuid := range slices.Sorted(maps.Keys(p.seen)) {
		old := p.seen[uuid]
		if slices.ContainsFunc(found, func(g *gpu) bool { return g.uuid == uuid }) || old.bus == "" {
			continue
		}
		if _, err := os.Stat(filepath.Join(listing, kernelBus(old.bus))); told && err != nil || !told && !counted {
			continue
		}
		g := *old
		g.handle, g.units = nil, slices.Clone(old.units)
		for i := range g.units {
			g.units[i].handle, g.units[i].ill = nil, meaning(nvml.ERROR_GPU_IS_LOST)
		}
		all = append(all, &g)
	}
	return all
}

func (p *Plugin) ignored(g *gpu) bool { return slices.ContainsFunc(p.cfg.Ignore, g.is) }

// is reports whether s is the GPU's UUID or PCI bus id.
func (g *gpu) is(s string) bool {
	return strings.EqualFold(s, g.uuid) || g.bus != "" && kernelBus(s) == kernelBus(g.bus)
}

// remember keeps what was found for the next look, and forgets what was wrong with those that are gone.
func (p *Plugin) remember(gpus []*gpu) {
	clear(p.seen)
	there := map[string]bool{}
	for _, g := range gpus {
		p.seen[g.uuid], there[g.uuid] = g, true
		for _, u := range g.units {
			there[u.id] = true
		}
	}
	maps.DeleteFunc(p.sick, func(id string, _ string) bool { return !there[id] })
	maps.DeleteFunc(p.strained, func(id string, _ int) bool { return !there[id] })
}

// group puts equal instances together: those of one model with the same memory. An attribute that they do not all have, with the same value, is left out.
func (p *Plugin) group(gpus []*gpu, common map[string]model.Attribute) []model.NodeDevice {
	type key struct {
		name   string
		memory uint64
	}
	groups := map[key]*model.NodeDevice{}
	for _, g := range gpus {
		for _, u := range g.units {
			k := key{u.name, u.memory >> 20} // slots of GPUs with different memory are told apart as well
			if groups[k] == nil {
				groups[k] = &model.NodeDevice{Vendor: Vendor, Type: Type, Name: modelName(u.name), Attributes: maps.Clone(u.attributes)}
			}
			maps.DeleteFunc(groups[k].Attributes, func(name string, v model.Attribute) bool { return u.attributes[name] != v })
			in := model.DeviceInstance{ID: u.id, Healthy: u.ill == "", HealthDescription: u.ill, PCIBusID: g.bus, NUMANode: g.numa, Peers: g.peers}
			if u.instance != nil {
				in.Parent, in.Peers = g.uuid, nil // they have no links
			}
			if u.slots == 0 {
				groups[k].Instances = append(groups[k].Instances, in)
			}
			for i := range u.slots {
				slot := in
				slot.ID, slot.Parent, slot.ParentMemoryMB = model.SlotID(g.uuid, i), g.uuid, int(u.memory>>20) // with the links of their GPU
				groups[k].Instances = append(groups[k].Instances, slot)
			}
		}
	}
	out := make([]model.NodeDevice, 0, len(groups))
	for _, g := range groups {
		maps.Copy(g.Attributes, common)
		slices.SortFunc(g.Instances, func(a, b model.DeviceInstance) int { return strings.Compare(a.ID, b.ID) })
		out = append(out, *g)
	}
	slices.SortFunc(out, func(a, b model.NodeDevice) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.Attributes["memory"].Int, b.Attributes["memory"].Int))
	})
	return out
}

// modelName is a name that can be asked for as nvidia/gpu/<name>.
func modelName(name string) string {
	return cmp.Or(strings.ReplaceAll(strings.TrimSpace(name), "/", "-"), "unknown")
}
