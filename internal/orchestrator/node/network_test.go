package node_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/mock"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/network"
	"rockpool/internal/orchestrator/node"
)

// networks are the networks of a machine, in memory. They stay when an agent ends.
type networks struct {
	mu       sync.Mutex
	made     map[string]network.Request
	calls    []string
	refuse   error
	stubborn int // failures of Detach to come
}

func (n *networks) Fingerprint() map[string]string { return map[string]string{"network.bridge": "1"} }

func (n *networks) Attach(_ context.Context, id string, r network.Request) (network.Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, "attach "+id)
	if n.refuse != nil {
		return network.Attachment{}, n.refuse
	}
	n.made[id] = r
	return attachment(id), nil
}

func attachment(id string) network.Attachment {
	return network.Attachment{NetNS: "/ns/" + id, Interface: "eth0", Address: "172.30.64.2", Hostname: "box", Nameservers: []string{"172.30.64.1"}}
}

func (n *networks) Recover(_ context.Context, id string) (network.Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, "recover "+id)
	if _, ok := n.made[id]; !ok {
		return network.Attachment{}, fault.New(fault.NotFound, "the network of allocation %s is gone", id)
	}
	return attachment(id), nil
}

func (n *networks) Detach(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stubborn > 0 {
		n.stubborn--
		return errors.New("device or resource busy")
	}
	delete(n.made, id)
	return nil
}

func (n *networks) Sweep(_ context.Context, keep []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	slices.Sort(keep)
	n.calls = append(n.calls, "sweep but "+strings.Join(keep, ","))
	maps.DeleteFunc(n.made, func(id string, _ network.Request) bool { return !slices.Contains(keep, id) })
	return nil
}

func (n *networks) left() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.made))
}

func bridged(a *model.Allocation) *model.Allocation {
	g := a.Job.TaskGroups[0]
	g.Networks = []model.Network{{Mode: "bridge", Hostname: "box", DynamicPorts: []model.Port{{Label: "http", To: 80}}}}
	g.Meta = map[string]string{"rockpool_egress": "pypi.org", "rockpool_bandwidth": "10"}
	a.Resources.Ports = []model.AllocatedPort{{Label: "http", Value: 20080, To: 80, HostIP: "203.0.113.1"}}
	return a
}

func withNetworks(t *testing.T, f func(t *testing.T, m *machine, n *networks)) {
	t.Helper()
	inBubble(t, func(t *testing.T, m *machine) {
		n := &networks{made: map[string]network.Request{}}
		m.nets = n
		m.restart()
		f(t, m, n)
	})
}

func TestAnAllocationHasOneNetwork(t *testing.T) {
	withNetworks(t, func(t *testing.T, m *machine, n *networks) {
		m.server.place(bridged(alloc("one", config{}, config{})))
		m.expect("one", model.ClientRunning)
		want := network.Request{Mode: "bridge", Hostname: "box", Egress: "pypi.org", Bandwidth: "10",
			Ports: []model.AllocatedPort{{Label: "http", Value: 20080, To: 80, HostIP: "203.0.113.1"}}}
		if d := cmp.Diff(want, n.made["one"]); d != "" {
			t.Errorf("asked for (-want +got):\n%s", d)
		}
		if got := slices.DeleteFunc(slices.Clone(n.calls), func(c string) bool { return c != "attach one" }); len(got) != 1 {
			t.Errorf("two tasks have %d networks", len(got))
		}
		status := &model.NetworkStatus{InterfaceName: "eth0", Address: "172.30.64.2", DNS: &model.DNS{Servers: []string{"172.30.64.1"}}}
		m.server.mu.Lock()
		got := m.server.latest["one"].NetworkStatus
		m.server.mu.Unlock()
		if d := cmp.Diff(status, got); d != "" {
			t.Errorf("reported (-want +got):\n%s", d)
		}
		m.server.change("one", func(a *model.Allocation) { a.DesiredStatus = model.DesiredStop })
		after(2 * time.Second)
		m.expect("one", model.ClientComplete)
		if left := n.left(); len(left) > 0 {
			t.Errorf("networks of what has ended: %v", left)
		}
		m.server.place(alloc("offline", config{}))
		m.expect("offline", model.ClientRunning)
		if _, made := n.made["offline"]; made {
			t.Error("an allocation that asks for no network has one")
		}
	})
}

func TestARestartOfATaskKeepsTheNetwork(t *testing.T) {
	withNetworks(t, func(t *testing.T, m *machine, n *networks) {
		a := bridged(alloc("one", config{"run_for": "1s", "exit_code": 1}))
		a.Job.TaskGroups[0].Restart = model.RestartPolicy{Attempts: 1, Interval: time.Hour, Delay: time.Second, Mode: model.RestartModeFail}
		m.server.place(a)
		after(1500 * time.Millisecond)
		if left := n.left(); len(left) != 1 {
			t.Errorf("between two starts there are networks of %v", left)
		}
		after(5 * time.Second)
		m.expect("one", model.ClientFailed)
		if left := n.left(); len(left) > 0 {
			t.Errorf("networks of what has failed: %v", left)
		}
	})
}

func TestWithoutItsNetworkAnAllocationFails(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(m *machine, n *networks, a *model.Allocation)
		says  string
	}{
		"refused": {func(_ *machine, n *networks, _ *model.Allocation) {
			n.refuse = errors.New("the port 20080 of the node is in use")
		}, "network: the port 20080 of the node is in use"},
		"two networks": {func(_ *machine, _ *networks, a *model.Allocation) {
			g := a.Job.TaskGroups[0]
			g.Networks = append(g.Networks, model.Network{Mode: "cni/lab"})
		}, `a group has one network`},
		"no networks here": {func(m *machine, _ *networks, _ *model.Allocation) { m.nets = node.Networks(nil); m.restart() }, "this node offers no networks"},
	} {
		t.Run(name, func(t *testing.T) {
			withNetworks(t, func(t *testing.T, m *machine, n *networks) {
				a := bridged(alloc("one", config{}))
				c.spoil(m, n, a)
				m.server.place(a)
				m.expect("one", model.ClientFailed)
				s := m.server.task("one", "a")
				if !slices.ContainsFunc(s.Events, func(e *model.TaskEvent) bool {
					return e.Type == model.TaskSetupFailure && strings.Contains(e.DisplayMessage, c.says)
				}) {
					t.Errorf("events %v do not say %q", types(s), c.says)
				}
				if left := m.driver.Tasks(); len(left) > 0 {
					t.Errorf("started: %v", left)
				}
			})
		})
	}
}

func TestNetworksSurviveTheAgent(t *testing.T) {
	withNetworks(t, func(t *testing.T, m *machine, n *networks) {
		m.server.place(bridged(alloc("stays", config{})), bridged(alloc("cut", config{})), bridged(alloc("ended", config{"run_for": "1s"})))
		after(2 * time.Second)
		m.expect("stays", model.ClientRunning)
		m.expect("ended", model.ClientComplete)
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		if left := n.left(); !slices.Equal(left, []string{"cut", "stays"}) {
			t.Fatalf("without an agent there are networks of %v", left)
		}
		n.mu.Lock()
		delete(n.made, "cut") // as after somebody removed it
		n.calls = nil
		n.mu.Unlock()
		m.start()
		after(time.Second)
		m.expect("stays", model.ClientRunning)
		m.expect("cut", model.ClientFailed) // its task is alone in a namespace that leads nowhere
		if n.calls[0] != "sweep but cut,stays" || slices.Contains(n.calls, "attach cut") || slices.Contains(n.calls, "attach stays") {
			t.Errorf("calls: %v", n.calls)
		}
		if left := m.driver.Tasks(); !slices.Equal(left, []string{"stays.a.1"}) {
			t.Errorf("running: %v", left)
		}
	})
}

func TestANetworkThatResistsIsTakenBackBeforeTheAllocationIsForgotten(t *testing.T) {
	withNetworks(t, func(t *testing.T, m *machine, n *networks) {
		m.server.place(bridged(alloc("one", config{})))
		m.expect("one", model.ClientRunning)
		n.mu.Lock()
		n.stubborn = 3
		n.mu.Unlock()
		m.server.purge("one")
		after(time.Minute)
		if left := n.left(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		if _, err := m.agent.Task(t.Context(), "one", "a"); !errors.Is(err, driver.ErrTaskGone) && !fault.Is(err, fault.NotFound) {
			t.Errorf("the allocation is still known: %v", err)
		}
	})
}

// wired is a driver that gives its tasks a network itself, as an engine for containers does.
type wired struct{ *mock.Driver }

func (wired) OwnNetwork() bool { return true }

func TestADriverWithANetworkOfItsOwn(t *testing.T) {
	withNetworks(t, func(t *testing.T, m *machine, n *networks) {
		m.facade = wired{m.driver}
		m.restart()
		plain := bridged(alloc("plain", config{}))
		plain.Job.TaskGroups[0].Meta = nil
		m.server.place(plain)
		m.expect("plain", model.ClientRunning)
		m.restart() // nothing is looked for that never was
		after(time.Second)
		m.expect("plain", model.ClientRunning)
		for id, meta := range map[string]map[string]string{"egress": {"rockpool_egress": "pypi.org"}, "bandwidth": {"rockpool_bandwidth": "10"}} {
			a := bridged(alloc(id, config{}))
			a.Job.TaskGroups[0].Meta = meta
			m.server.place(a)
			m.expect(id, model.ClientFailed)
			s := m.server.task(id, "a")
			if !slices.ContainsFunc(s.Events, func(e *model.TaskEvent) bool {
				return e.Type == model.TaskSetupFailure && strings.Contains(e.DisplayMessage, "rockpool_"+id)
			}) {
				t.Errorf("%s: events %v do not say that nobody enforces it", id, types(s))
			}
		}
		if len(n.made) > 0 || slices.ContainsFunc(n.calls, func(c string) bool { return !strings.HasPrefix(c, "sweep") }) {
			t.Errorf("the node made networks too: %v", n.calls)
		}
		if left := m.driver.Tasks(); !slices.Equal(left, []string{"plain.a.1"}) {
			t.Errorf("running: %v", left)
		}
	})
}
