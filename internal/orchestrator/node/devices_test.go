package node_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"rockpool/internal/orchestrator/device/fake"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/mock"
	"rockpool/internal/orchestrator/model"
)

// withGPUs runs f with a machine that has four GPUs.
func withGPUs(t *testing.T, f func(t *testing.T, m *machine)) {
	t.Helper()
	inBubble(t, func(t *testing.T, m *machine) {
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		m.devices = fake.New(4)
		m.start()
		f(t, m)
	})
}

// holding is an allocation whose one task holds instances.
func holding(id string, c config, ids ...string) *model.Allocation {
	a := alloc(id, c)
	a.Resources = model.AllocatedResources{Tasks: map[string]*model.AllocatedTask{"a": {CPU: 10, MemoryMB: 10, Devices: []model.AllocatedDevice{
		{Vendor: "nvidia", Type: "gpu", Name: "Fake", DeviceIDs: ids}}}}}
	return a
}

func (m *machine) registered() (n *model.Node, times int) {
	m.server.set(func() { n, times = m.server.node, m.server.registered })
	return n, times
}

func (m *machine) events(id string) (all []string) {
	m.server.set(func() {
		for _, e := range m.server.latest[id].TaskStates["a"].Events {
			all = append(all, e.DisplayMessage)
		}
	})
	return all
}

func mention(all []string, text string) bool {
	return slices.ContainsFunc(all, func(s string) bool { return strings.Contains(s, text) })
}

func TestDevicesAndTheirHealthReachTheServers(t *testing.T) {
	withGPUs(t, func(t *testing.T, m *machine) {
		n, times := m.registered()
		if len(n.Resources.Devices) != 1 || len(n.Resources.Devices[0].Instances) != 4 || n.Attributes["device.fake"] != "1" {
			t.Fatalf("the node is registered with %+v, %v", n.Resources.Devices, n.Attributes)
		}
		m.devices.Ail("gpu-2", "XID 79")
		after(time.Second) // much less than a look at the whole machine takes to come
		n, again := m.registered()
		if in := n.Resources.Devices[0].Instances[2]; in.Healthy || in.HealthDescription != "XID 79" || again != times+1 {
			t.Errorf("after %d registrations the instance is %+v", again-times, in)
		}
	})
}

func TestADeviceIsHeldByOneTask(t *testing.T) {
	withGPUs(t, func(t *testing.T, m *machine) {
		m.server.place(holding("first", config{}, "gpu-0", "gpu-1"))
		m.expect("first", model.ClientRunning)
		if got := m.figure("rockpool.client.devices.held"); got != 2 {
			t.Errorf("%v devices are held", got)
		}
		m.server.place(holding("second", config{}, "gpu-1")) // a server that is wrong
		after(time.Second)
		if got := m.server.status("second"); got == model.ClientRunning {
			t.Fatal("two tasks have the same device")
		}
		if all := m.events("second"); !mention(all, "instance gpu-1 is still held by task first.a.1") {
			t.Errorf("the task's events are %q", all)
		}
		m.server.place(holding("third", config{"run_for": "1s"}, "gpu-2"))
		after(3 * time.Second)
		m.expect("third", model.ClientComplete)
		m.server.place(holding("fourth", config{}, "gpu-2"))
		m.expect("fourth", model.ClientRunning)
	})
}

func TestDevicesAreHeldAcrossARestartOfTheAgent(t *testing.T) {
	withGPUs(t, func(t *testing.T, m *machine) {
		m.server.place(holding("first", config{}, "gpu-0"))
		m.expect("first", model.ClientRunning)
		m.restart()
		after(time.Second)
		m.expect("first", model.ClientRunning)
		m.server.place(holding("second", config{}, "gpu-0"))
		after(time.Second)
		if got := m.server.status("second"); got == model.ClientRunning {
			t.Error("two tasks have the same device")
		}
		if got := m.figure("rockpool.client.devices.held"); got != 1 {
			t.Errorf("%v devices are held", got)
		}
	})
}

// While a task is idle on a part of a GPU, the GPU is put together again, and the agent starts anew.
func TestAGPUOfWhichATaskHadAPartIsNotGivenAlsoAfterARestart(t *testing.T) {
	withGPUs(t, func(t *testing.T, m *machine) {
		m.devices.Set(fake.Divided(2, 2))
		after(time.Second)
		m.server.place(holding("first", config{}, "MIG-2-gpu-0-1"))
		m.expect("first", model.ClientRunning)
		m.devices.Set(fake.Report(2))
		after(time.Second)
		if all := m.events("first"); !mention(all, "Device MIG-2-gpu-0-1 is unhealthy: the node does not find it any more") {
			t.Errorf("the events of who has it are %q", all)
		}
		m.restart()
		after(time.Second)
		n, _ := m.registered()
		if in := n.Resources.Devices[0].Instances; in[0].Healthy || !strings.Contains(in[0].HealthDescription, "still holds MIG-2-gpu-0-1") || !in[1].Healthy {
			t.Errorf("the node offers %+v", in)
		}
		m.server.place(holding("second", config{}, "gpu-0"))
		after(time.Second)
		if m.server.status("second") == model.ClientRunning {
			t.Error("it is given while somebody may still open what a part of it was made of")
		}
		m.server.change("first", func(a *model.Allocation) { a.DesiredStatus = model.DesiredStop })
		after(time.Minute)
		if n, _ = m.registered(); !n.Resources.Devices[0].Instances[0].Healthy {
			t.Errorf("when that has ended it is %+v", n.Resources.Devices[0].Instances[0])
		}
		m.server.place(holding("third", config{}, "gpu-0"))
		m.expect("third", model.ClientRunning)
	})
}

func TestADeviceThatIsIllIsNotTaken(t *testing.T) {
	withGPUs(t, func(t *testing.T, m *machine) {
		m.devices.Ail("gpu-3", "it is too hot")
		after(time.Second)
		m.server.place(holding("first", config{}, "gpu-3"))
		after(time.Second)
		if all := m.events("first"); m.server.status("first") == model.ClientRunning || !mention(all, "it is too hot") {
			t.Errorf("it is %s, its events are %q", m.server.status("first"), all)
		}
	})
}

// seeing notes the devices that tasks are started with.
type seeing struct {
	*mock.Driver
	devices *[]string
}

func (s seeing) Start(ctx context.Context, cfg driver.TaskConfig) (driver.Task, error) {
	*s.devices = cfg.Devices
	return s.Driver.Start(ctx, cfg)
}

func TestTheDriverIsGivenTheInstancesByTheirSpecifiedNames(t *testing.T) {
	withGPUs(t, func(t *testing.T, m *machine) {
		var got []string
		m.facade = seeing{m.driver, &got}
		m.restart()
		m.server.place(holding("one", config{}, "gpu-1", "gpu-3"))
		m.expect("one", model.ClientRunning)
		if want := []string{"nvidia.com/gpu=gpu-1", "nvidia.com/gpu=gpu-3"}; !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
	})
}

func TestTheDriverIsGivenTheGPUsOfSlotsOnce(t *testing.T) {
	withGPUs(t, func(t *testing.T, m *machine) {
		m.devices.Set(fake.Sliced(4, 4))
		after(time.Second)
		var got []string
		m.facade = seeing{m.driver, &got}
		m.restart()
		m.server.place(holding("one", config{}, "gpu-1::3", "gpu-3::0", "gpu-1::0"))
		m.expect("one", model.ClientRunning)
		if want := []string{"nvidia.com/gpu=gpu-1", "nvidia.com/gpu=gpu-3"}; !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
		m.server.place(holding("two", config{}, "gpu-1::1"))
		m.expect("two", model.ClientRunning)
		m.devices.Ail("gpu-1", "XID 48")
		after(time.Second)
		for _, id := range []string{"one", "two"} {
			if !mention(m.events(id), "is unhealthy: XID 48") {
				t.Errorf("%s is told %q", id, m.events(id))
			}
		}
	})
}

func TestTasksAreToldOfTheirDevices(t *testing.T) {
	withGPUs(t, func(t *testing.T, m *machine) {
		m.server.place(holding("hit", config{}, "gpu-0"))
		m.server.place(holding("spared", config{}, "gpu-1"))
		m.expect("hit", model.ClientRunning)
		m.expect("spared", model.ClientRunning)
		m.devices.Ail("gpu-0", "XID 48")
		after(time.Second)
		m.devices.Ail("gpu-2", "XID 48") // nobody's
		after(time.Second)
		told := 0
		for _, e := range m.events("hit") {
			if strings.Contains(e, "Device gpu-0 is unhealthy: XID 48") {
				told++
			}
		}
		if told != 1 || mention(m.events("spared"), "unhealthy") {
			t.Errorf("told %d times: %q; the other task: %q", told, m.events("hit"), m.events("spared"))
		}
		m.expect("hit", model.ClientRunning)
	})
}

func TestAllocationsLeaveDevicesThatBecomeIll(t *testing.T) {
	withGPUs(t, func(t *testing.T, m *machine) {
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		m.stopAiling = true
		m.start()
		m.server.place(holding("hit", config{}, "gpu-0"))
		m.server.place(holding("spared", config{}, "gpu-1"))
		m.expect("hit", model.ClientRunning)
		m.devices.Ail("gpu-0", "XID 48")
		after(time.Second)
		m.expect("hit", model.ClientFailed)
		m.expect("spared", model.ClientRunning)
	})
}

func TestFiguresOfDevices(t *testing.T) {
	withGPUs(t, func(t *testing.T, m *machine) {
		m.server.place(holding("first", config{}, "gpu-1"))
		m.expect("first", model.ClientRunning)
		m.devices.Ail("gpu-3", "dust")
		after(time.Second)
		for name, want := range map[string]float64{
			"rockpool.client.devices.total": 4, "rockpool.client.devices.unhealthy": 1, "rockpool.client.devices.held": 1,
			"rockpool.client.device.gpu.gpu-0.memory_mib": 8192, "rockpool.client.device.gpu.gpu-0.memory_mib_of": 16384, "rockpool.client.device.gpu.gpu-0.utilization_percent": 40,
		} {
			if got := m.figure(name); got != want {
				t.Errorf("%s is %v, not %v", name, got, want)
			}
		}
		host, err := m.agent.HostStats(t.Context())
		if err != nil || len(host.DeviceStats) != 1 || len(host.DeviceStats[0].InstanceStats) != 3 {
			t.Fatalf("figures of the machine: %+v, %v", host.DeviceStats, err)
		}
		own := m.agent.DeviceStats(t.Context(), "first", []string{"a"})["a"]
		if len(own) != 1 || len(own[0].InstanceStats) != 1 || own[0].Vendor != "nvidia" || own[0].Type != "gpu" || own[0].Name != "Fake" {
			t.Fatalf("figures of the task's devices: %+v", own)
		}
		s := own[0].InstanceStats["gpu-1"]
		if v := s.Stats.Attributes["Memory state"]; v == nil || *v.IntNumeratorVal != 8192 || *v.IntDenominatorVal != 16384 || v.Unit != "MiB" || s.Summary != v {
			t.Errorf("its memory is %+v", v)
		}
	})
}

func (m *machine) figure(name string) float64 {
	v := -1.0
	m.agent.Figures(func(n string, x float64) {
		if n == name {
			v = x
		}
	})
	return v
}

func TestATaskWaitsUntilNothingIsLeftOnItsDevice(t *testing.T) {
	withGPUs(t, func(t *testing.T, m *machine) {
		m.devices.Leave("gpu-0", "512 MiB of its memory are in use that no process holds", nil, 6)
		m.server.place(holding("first", config{"run_for": "1s"}, "gpu-0"))
		after(1100 * time.Millisecond)
		m.expect("first", model.ClientComplete)
		m.server.place(holding("second", config{}, "gpu-0"))
		after(100 * time.Millisecond)
		if got := m.server.status("second"); got == model.ClientRunning {
			t.Fatal("it runs on a device that is not free")
		}
		after(3 * time.Second)
		m.expect("second", model.ClientRunning)
		if all := m.events("second"); !mention(all, "Waiting for device gpu-0: task first.a.1 has ended and 512 MiB") {
			t.Errorf("its events are %q", all)
		}
		if n, _ := m.registered(); !n.Resources.Devices[0].Instances[0].Healthy {
			t.Error("the servers were told that the device is unhealthy")
		}
	})
}

func TestADeviceThatIsNotFreedIsUnhealthyAlsoAfterARestart(t *testing.T) {
	withGPUs(t, func(t *testing.T, m *machine) {
		m.devices.Leave("gpu-0", "1 process is still on it: 4711", nil, -1)
		m.server.place(holding("first", config{"run_for": "1s"}, "gpu-0"))
		after(2 * time.Second)
		m.restart() // nothing of the first wait is known any more
		m.server.place(holding("second", config{}, "gpu-0"))
		after(time.Second)
		if got := m.server.status("second"); got == model.ClientRunning {
			t.Fatal("it runs on a device that is not free")
		}
		after(40 * time.Second)
		if n, _ := m.registered(); n.Resources.Devices[0].Instances[0].Healthy || !strings.Contains(n.Resources.Devices[0].Instances[0].HealthDescription, "process is still on it: 4711") {
			t.Errorf("the servers were told of %+v", n.Resources.Devices[0].Instances[0])
		}
		if all := m.events("second"); m.server.status("second") == model.ClientRunning || !mention(all, "device gpu-0 is unhealthy: task first.a.1 has ended and 1 process is still on it") {
			t.Errorf("it is %s, its events are %q", m.server.status("second"), all)
		}
		m.devices.Leave("gpu-0", "", nil, 0)
		after(time.Minute)
		if n, _ := m.registered(); !n.Resources.Devices[0].Instances[0].Healthy {
			t.Errorf("the servers were told of %+v", n.Resources.Devices[0].Instances[0])
		}
	})
}
