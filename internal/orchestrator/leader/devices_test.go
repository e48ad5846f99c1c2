package leader_test

import (
	"testing"

	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
)

// gpuNode has these groups of GPUs. All else is the same for all.
func gpuNode(groups ...model.NodeDevice) *model.Node {
	n := smallNode("n1", 1000)
	n.Resources.Devices, n.ComputedClass = groups, "one"
	return n
}

// gpusOf is a group of GPUs with these ids, all healthy or none.
func gpusOf(healthy bool, ids ...string) model.NodeDevice {
	d := model.NodeDevice{Vendor: "nvidia", Type: "gpu", Name: "A100", Attributes: map[string]model.Attribute{model.AttrMemory: model.IntOf(40960, "MiB")}}
	for _, id := range ids {
		d.Instances = append(d.Instances, model.DeviceInstance{ID: id, Healthy: healthy})
	}
	return d
}

// Nothing but its devices changes of the node, and its class does not cover them.
func TestWhoWaitsForDevicesIsWokenByWhatBecomesOfThem(t *testing.T) {
	slots := gpusOf(true, model.SlotID("b", 0), model.SlotID("b", 1))
	slots.Attributes[model.AttrMemory] = model.IntOf(20480, "MiB")
	for i := range slots.Instances {
		slots.Instances[i].Parent, slots.Instances[i].ParentMemoryMB = "b", 40960
	}
	for _, c := range []struct {
		name          string
		before, after *model.Node
		count         uint64
		want          bool
	}{
		{"one heals", gpuNode(gpusOf(true, "a"), gpusOf(false, "b")), gpuNode(gpusOf(true, "a", "b")), 1, true},
		{"one is found", gpuNode(gpusOf(true, "a")), gpuNode(gpusOf(true, "a", "b")), 1, true},
		{"one that nobody has is divided", gpuNode(gpusOf(true, "a"), gpusOf(false, "b")), gpuNode(gpusOf(true, "a"), slots), 1, true},
		{"the first is found", gpuNode(), gpuNode(gpusOf(true, "a", "b")), 1, true},
		{"too few heal", gpuNode(gpusOf(true, "a"), gpusOf(false, "b", "c")), gpuNode(gpusOf(true, "a", "b"), gpusOf(false, "c")), 2, false},
		{"one fails for another reason", gpuNode(gpusOf(true, "a"), gpusOf(false, "b")), gpuNode(gpusOf(true, "a"), gpusOf(false, "b")), 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(l *led) {
				l.do(&command.NodeRegister{Node: c.before})
				holder := asking("holder", 1, 50)
				holder.TaskGroups[0].Tasks[0].Resources.Devices = []model.DeviceRequest{{Name: "gpu", Count: 1}}
				if len(c.before.Resources.Devices) > 0 {
					l.register(holder)
				}
				waiting := asking("waiting", 1, 50)
				waiting.TaskGroups[0].Tasks[0].Resources.Devices = []model.DeviceRequest{{Name: "gpu", Count: c.count}}
				l.register(waiting)
				if n := len(l.allocs("waiting")); n != 0 {
					t.Fatalf("%d are placed where nothing is free", n)
				}
				l.do(&command.NodeRegister{Node: c.after})
				if got := len(l.allocs("waiting")) == 1; got != c.want {
					t.Errorf("it is placed: %v", got)
				}
				l.sums()
			})
		})
	}
	bubble(t, func(l *led) {
		l.do(&command.NodeRegister{Node: gpuNode(gpusOf(true, "a"))})
		for _, id := range []string{"first", "second"} {
			j := asking(id, 1, 50)
			j.TaskGroups[0].Tasks[0].Resources.Devices = []model.DeviceRequest{{Name: "gpu", Count: 1}}
			l.register(j)
		}
		l.report(l.allocs("first")[0], model.ClientComplete)
		if len(l.allocs("second")) != 1 {
			t.Error("who waits does not get what came free")
		}
		l.sums()
	})
}
