//go:build linux && cgo

package nvidia_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/device"
	"rockpool/internal/orchestrator/device/devicetest"
	"rockpool/internal/orchestrator/device/nvidia"
	"rockpool/internal/orchestrator/model"
)

func found(n int) func(device.Report) bool {
	return func(r device.Report) bool { return r.Healthy && len(ids(r)) == n }
}

func TestFingerprint(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(4)
	w.say("gpu 0 link0", bus(1), "gpu 0 link1", "off", "gpu 1 link0", bus(0), // two beside each other
		"gpu 2 link0", "00000000:C1:00.0", "gpu 3 link0", "00000000:C2:00.0", // and two on switches
		"gpu 3 power_limit", "350000")
	r := w.watch(w.config()).until("there are four GPUs", found(4))
	zero, one := 0, 1
	want := []model.NodeDevice{{
		Vendor: "nvidia", Type: "gpu", Name: "NVIDIA A100-SXM4-40GB",
		Attributes: map[string]model.Attribute{ // power is not the same for all
			"memory": model.IntOf(40960, "MiB"), "bar1": model.IntOf(65536, "MiB"), "cores_clock": model.IntOf(1410, "MHz"), "memory_clock": model.IntOf(1215, "MHz"),
			"pci_bandwidth": model.IntOf(31504, "MB/s"), "pcie_generation": model.IntOf(4, ""), "pcie_width": model.IntOf(16, ""),
			"driver_version": model.TextOf("550.54.15"), "cuda_version": model.TextOf("12.4"), "compute_capability": model.TextOf("8.0"),
			"display_state": model.TextOf("Disabled"), "persistence_mode": model.TextOf("Enabled"), "mig_mode": model.TextOf("Disabled"),
		},
		Instances: []model.DeviceInstance{
			{ID: uuid(0), Healthy: true, PCIBusID: bus(0), NUMANode: &zero, Peers: []string{uuid(1)}},
			{ID: uuid(1), Healthy: true, PCIBusID: bus(1), NUMANode: &one, Peers: []string{uuid(0)}},
			{ID: uuid(2), Healthy: true, PCIBusID: bus(2), NUMANode: &zero, Peers: []string{uuid(3)}},
			{ID: uuid(3), Healthy: true, PCIBusID: bus(3), NUMANode: &one, Peers: []string{uuid(2)}},
		},
	}}
	if d := cmp.Diff(want, r.Groups); d != "" {
		t.Errorf("devices differ (-want +got):\n%s", d)
	}
	if r.Description != "driver 550.54.15, 4 GPUs" || !r.Detected {
		t.Errorf("the report says %q, detected: %v", r.Description, r.Detected)
	}
}

func TestPartsAreDevicesOfTheirOwn(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(2)
	w.say("gpu 0 mig", "1")
	w.part(0, 0, "MIG-a", "1g.5gb", "4864")
	w.part(0, 2, "MIG-b", "3g.20gb", "19968") // there is no second part
	p := w.watch(w.config())
	r := p.until("there are two parts and a GPU", found(3))
	g, in := r.Instance("MIG-b")
	if g.Name != "NVIDIA A100-SXM4-40GB MIG 3g.20gb" || in.Parent != uuid(0) || in.PCIBusID != bus(0) || !in.Healthy {
		t.Errorf("the part is %+v of %q", in, g.Name)
	}
	for k, v := range map[string]model.Attribute{
		"memory": model.IntOf(19968, "MiB"), "mig_profile": model.TextOf("3g.20gb"), "mig_parent": model.TextOf("NVIDIA A100-SXM4-40GB"), "share": model.TextOf("mig"), "mig_mode": model.TextOf("Enabled"),
	} {
		if g.Attributes[k] != v {
			t.Errorf("%s of the part is %v, not %v", k, g.Attributes[k], v)
		}
	}
	if _, whole := r.Instance(uuid(0)); whole != nil {
		t.Error("a GPU that is divided is offered as a whole too")
	}

	w.part(0, 1, "MIG-c", "1g.5gb", "4864")
	p.until("a part was added", found(4))
	w.say("part 0 2 uuid", "")
	if r := p.until("a part was removed", found(3)); !slices.Contains(ids(r), "MIG-c") {
		t.Errorf("there are %v", ids(r))
	}
	w.say("xid 1", "0 94 8") // of the second part alone
	p.ill("MIG-c", "XID 94")
	w.say("gpu 0 mig", "0")
	r = p.until("nothing is divided any more", found(2))
	if _, whole := r.Instance(uuid(0)); whole == nil || !whole.Healthy {
		t.Errorf("the GPU that is whole again is %+v", whole)
	}
}

func TestHealth(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(2)
	p := w.watch(w.config())
	p.until("there are two GPUs", found(2))
	for _, c := range []struct{ key, ill, well, why string }{
		{"ecc", "3", "0", "could not be corrected since the driver was loaded: 3"},
		{"retiring", "1", "0", "pages of its memory are to be retired"},
		{"remap_pending", "1", "0", "are to be remapped"},
		{"remap_failed", "1", "0", "could not be remapped"},
		{"reasons", "64", "0", "too hot and its hardware slows it down: 40 °C or more"},
		{"reasons", "128", "4", "power supply"},
		{"lost", "1", "0", "fallen off the bus"},
	} {
		w.say("gpu 1 "+c.key, c.ill)
		p.ill(uuid(1), c.why)
		if _, err := p.plugin.Reserve([]string{uuid(1)}); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: a GPU that is ill is reserved with error %v", c.key, err)
		}
		w.say("gpu 1 "+c.key, c.well)
		p.ill(uuid(1), "")
	}
}

func TestErrorsOfTheDriver(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(2)
	cfg := w.config()
	cfg.Poll = time.Hour // what is known now was reported by the driver itself
	p := w.watch(cfg)
	p.until("there are two GPUs", found(2))
	w.say("xid 1", "0 31 -1", "xid 2", "0 13 -1", "xid 3", "1 48 -1")
	p.ill(uuid(1), "XID 48: a memory error that could not be corrected")
	w.say("xid 4", "1 7777 -1") // nobody knows what it means
	p.ill(uuid(1), "XID 7777")
}

func TestHotUnplugAndPlug(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(2)
	p := w.watch(w.config())
	p.until("there are two GPUs", found(2))
	w.unplug(1)
	w.say("gpus", "0")
	if r := p.until("one is gone", found(1)); !cmp.Equal(ids(r), []string{uuid(0)}) {
		t.Errorf("there are %v", ids(r))
	}
	if _, err := p.plugin.Reserve([]string{uuid(1)}); !fault.Is(err, fault.NotFound) {
		t.Errorf("a GPU that is gone is reserved with error %v", err)
	}
	w.say("gpus", "0 1")
	w.plug(1)
	p.until("it is back", found(2))

	w.say("gpus", "0") // the kernel still has it: it has not been taken out
	p.ill(uuid(1), "fallen off the bus")
	w.say("gpus", "0 1")
	p.ill(uuid(1), "")
}

func TestTheDriverFailsAndComesBack(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(1)
	w.say("fail nvmlInit_v2", "1 3 9")
	p := w.watch(w.config())
	if r := p.until("the driver is not loaded", func(r device.Report) bool { return strings.Contains(r.Description, "the driver is not loaded") }); r.Healthy || len(ids(r)) != 0 {
		t.Errorf("without a driver the report is %+v", r)
	}
	p.until("it works at the fourth attempt", found(1))
	w.say("xid 1", "0 79 -1")
	p.ill(uuid(0), "XID 79")

	w.say("fail nvmlDeviceGetCount_v2", "1 0 1", "fail nvmlInit_v2", "1 0 18") // restarted, and of another version
	r := p.until("the versions differ", func(r device.Report) bool { return strings.Contains(r.Description, "different versions") })
	if in := r.Groups[0].Instances[0]; in.Healthy || r.Healthy || in.HealthDescription == "" {
		t.Errorf("while the driver fails its GPU is %+v", in)
	}
	w.say("fail nvmlDeviceGetCount_v2", "", "fail nvmlInit_v2", "")
	p.ill(uuid(0), "")
}

func TestALibraryThatHangs(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(1)
	cfg := w.config()
	cfg.CallTimeout = 200 * time.Millisecond
	p := w.watch(cfg)
	p.until("there is a GPU", found(1))
	w.say("hang nvmlDeviceGetMemoryInfo", "1")
	p.ill(uuid(0), "nvmlDeviceGetMemoryInfo has not returned")
	start := time.Now()
	for range 50 { // who asks is answered, and nothing piles up
		if _, err := p.plugin.Stats(t.Context()); err != nil {
			t.Fatalf("figures of a session that is over: %v", err)
		}
		if _, err := p.plugin.Reserve([]string{uuid(0)}); !fault.Is(err, fault.Unavailable) {
			t.Fatalf("a GPU that does not answer is reserved with error %v", err)
		}
	}
	if d := time.Since(start); d > patience/4 {
		t.Errorf("fifty questions took %v", d)
	}
	w.say("hang nvmlDeviceGetMemoryInfo", "")
	p.ill(uuid(0), "")
}

func TestTheFirstCallHangs(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(1)
	w.say("hang nvmlInit_v2", "1")
	cfg := w.config()
	cfg.CallTimeout = 50 * time.Millisecond
	p := w.watch(cfg)
	p.until("it hangs", func(r device.Report) bool { return strings.Contains(r.Description, "nvmlInit_v2 has not returned") })
	w.say("hang nvmlInit_v2", "")
	p.until("there is a GPU", found(1))
}

func TestTheWaitForEventsHangs(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(1)
	w.say("hang nvmlEventSetWait_v2", "1")
	p := w.watch(w.config())
	p.until("there is a GPU", found(1))
	for range 2 { // the sessions after the first one wait for nothing
		w.say("fail nvmlDeviceGetCount_v2", "1 0 9")
		p.ill(uuid(0), "the driver is not loaded")
		w.say("fail nvmlDeviceGetCount_v2", "")
		p.ill(uuid(0), "")
	}
	w.say("hang nvmlEventSetWait_v2", "")         // it returns, and a new session hears again
	w.say("xid 1", "0 48 -1", "xid 2", "0 48 -1") // the first one may go to the wait that was given up
	p.ill(uuid(0), "XID 48")
}

func TestAnOldLibrary(t *testing.T) {
	w, child := inChild(t, "-DOLD")
	if !child {
		return
	}
	w.gpus(2)
	p := w.watch(w.config())
	r := p.until("there are two GPUs", found(2))
	if _, has := r.Groups[0].Attributes["mig_mode"]; has || r.Groups[0].Attributes["memory"] != model.IntOf(40960, "MiB") {
		t.Errorf("attributes are %v", r.Groups[0].Attributes)
	}
	w.say("gpu 1 ecc", "1")
	p.ill(uuid(1), "could not be corrected")
}

func TestNoLibrary(t *testing.T) {
	w := &world{t: t, proc: t.TempDir(), sys: t.TempDir()}
	cfg := w.config()
	cfg.Library = filepath.Join(t.TempDir(), "libnvidia-ml.so.1")
	p := w.watch(cfg)
	r := p.until("there is none", func(device.Report) bool { return true })
	if r.Detected || r.Healthy || len(r.Groups) != 0 || !strings.Contains(r.Description, "cannot be loaded") || !strings.Contains(r.Description, cfg.Library) {
		t.Errorf("without a library the report is %+v", r)
	}
	if err := os.WriteFile(cfg.Library, []byte("this is no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.until("the file is none", func(r device.Report) bool {
		return strings.Contains(r.Description, "file too short") || strings.Contains(r.Description, "invalid ELF")
	})
}

func TestIgnoredGPUsAreNotOffered(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(4)
	cfg := w.config()
	cfg.Ignore = []string{strings.ToLower(uuid(0)), kernelBus(2)}
	if r := w.watch(cfg).until("two are left", found(2)); !cmp.Equal(ids(r), []string{uuid(1), uuid(3)}) {
		t.Errorf("there are %v", ids(r))
	}
}

func TestFigures(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(2)
	w.say("gpu 1 mig", "1")
	w.part(1, 0, "MIG-a", "1g.5gb", "4864")
	p := w.watch(w.config())
	p.until("there are a GPU and a part", found(2))
	all, err := p.plugin.Stats(t.Context())
	if err != nil || len(all) != 2 {
		t.Fatalf("figures: %+v, %v", all, err)
	}
	want := [][]device.Value{
		{{Measure: device.Memory, N: 1024, Of: 40960}, {Measure: device.Utilization, N: 37}, {Measure: device.MemoryUtilization, N: 18}, {Measure: device.Temperature, N: 41},
			{Measure: device.Power, N: 61.5, Of: 400}, {Measure: device.BAR1, Of: 65536}, {Measure: device.ECCErrors}},
		{{Measure: device.Memory, N: 12, Of: 4864}, {Measure: device.Temperature, N: 41}, {Measure: device.Power, N: 61.5, Of: 400}},
	}
	for i, s := range all {
		if d := cmp.Diff(want[i], s.Values); d != "" || s.ID != []string{uuid(0), "MIG-a"}[i] || s.At.IsZero() {
			t.Errorf("figures of %s (-want +got):\n%s", s.ID, d)
		}
	}
}

func TestThePluginIsAPlugin(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(2)
	devicetest.Run(t, func() devicetest.World {
		return devicetest.World{Plugin: nvidia.New(w.config()), Healthy: uuid(0), Ailing: uuid(1), Ail: func() { w.say("gpu 1 ecc", "1") }, Heal: func() { w.say("gpu 1 ecc", "0") },
			Stain: func() { w.say("gpu 0 processes", "4711") }, Clean: func() { w.say("gpu 0 processes", "") }}
	})
}

func TestThePluginHasSlots(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(2)
	devicetest.RunSlots(t, func() devicetest.Sliced {
		cfg := w.config()
		cfg.Slots = nvidia.Slots{Count: 3}
		return devicetest.Sliced{Plugin: nvidia.New(cfg), GPUs: []string{uuid(0), uuid(1)}, Slots: 3, Variable: nvidia.VisibleDevices,
			Ail: func() { w.say("gpu 1 ecc", "1") }, Heal: func() { w.say("gpu 1 ecc", "0") }}
	})
}

func TestWhichGPUsAreSliced(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(4)
	w.say("gpu 1 name", "Tesla T4", "gpu 1 memory", "15360", "gpu 2 mig", "1", "gpu 0 link0", bus(3), "gpu 3 link0", bus(0))
	w.part(2, 0, "MIG-a", "1g.5gb", "4864")
	for _, c := range []struct {
		name  string
		slots nvidia.Slots
		want  map[string]int // instances by group
		ill   map[string]string
	}{
		{"all but those in MIG mode", nvidia.Slots{Count: 4}, map[string]int{"NVIDIA A100-SXM4-40GB slot 10gb": 8, "Tesla T4 slot 3840mb": 4, "NVIDIA A100-SXM4-40GB MIG 1g.5gb": 1}, nil},
		{"a model", nvidia.Slots{Count: 2, MemoryMB: 4096, Of: []string{"Tesla T4"}},
			map[string]int{"NVIDIA A100-SXM4-40GB": 2, "Tesla T4 slot 4gb": 2, "NVIDIA A100-SXM4-40GB MIG 1g.5gb": 1}, nil},
		{"one by its bus id", nvidia.Slots{Count: 2, Of: []string{kernelBus(3)}},
			map[string]int{"NVIDIA A100-SXM4-40GB": 1, "NVIDIA A100-SXM4-40GB slot 20gb": 2, "Tesla T4": 1, "NVIDIA A100-SXM4-40GB MIG 1g.5gb": 1}, nil},
		{"more memory than one has", nvidia.Slots{Count: 4, MemoryMB: 8192}, map[string]int{"NVIDIA A100-SXM4-40GB slot 8gb": 8, "Tesla T4": 1, "NVIDIA A100-SXM4-40GB MIG 1g.5gb": 1},
			map[string]string{uuid(1): "it has 15360 MiB of memory, less than 4 slots of 8192 MiB"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := w.config()
			cfg.Slots = c.slots
			n := 0
			for _, k := range c.want {
				n += k
			}
			own := *w
			own.t = t // it ends with the case: the binding's functions are of the process
			r := own.watch(cfg).until("all are there", found(n))
			got := map[string]int{}
			for _, g := range r.Groups {
				got[g.Name] = len(g.Instances)
				for _, in := range g.Instances {
					if in.HealthDescription != c.ill[in.ID] || in.Healthy != (c.ill[in.ID] == "") {
						t.Errorf("%s is %+v", in.ID, in)
					}
					if whole, slot := model.SlotParent(in.ID); slot && whole == uuid(0) && !slices.Equal(in.Peers, []string{uuid(3)}) {
						t.Errorf("links of a slot lead to %v, not to where those of its GPU do", in.Peers)
					}
				}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("groups (-want +got):\n%s", d)
			}
		})
	}
}

func TestTasksAreToldOfTheirPartOfTheMemory(t *testing.T) {
	w, child := inChild(t)
	if !child {
		return
	}
	w.gpus(2)
	cfg := w.config()
	cfg.Slots = nvidia.Slots{Count: 4}
	p := w.watch(cfg)
	p.until("there are slots", found(8))
	env, err := p.plugin.Reserve([]string{uuid(1) + "::3", uuid(0) + "::0"})
	want := map[string]string{"NVIDIA_VISIBLE_DEVICES": uuid(0) + "," + uuid(1), "ROCKPOOL_GPU_MEMORY_MIB": uuid(0) + "=10240," + uuid(1) + "=10240"}
	if d := cmp.Diff(want, env); d != "" || err != nil {
		t.Errorf("the environment (-want +got): %v\n%s", err, d)
	}
	w.say("xid 1", "1 48 -1")
	p.until("its slots are ill", func(r device.Report) bool { _, in := r.Instance(uuid(1) + "::2"); return !in.Healthy })
}

func TestWatchEndsWithItsContext(t *testing.T) {
	w := &world{t: t, proc: t.TempDir(), sys: t.TempDir()}
	cfg := w.config()
	cfg.Library = "libthat-does-not-exist.so"
	ctx, cancel := context.WithCancel(t.Context())
	err := nvidia.New(cfg).Watch(ctx, func(device.Report) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
}
