//go:build linux && cgo

package orchestrator_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/vishvananda/netlink"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator"
)

// apart runs a test again in a process with a network namespace of its own, whose only address is 203.0.113.1. It reports whether this is that process.
func apart(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	const marker = "ROCKPOOL_TEST_APART"
	if os.Getenv(marker) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), marker+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		out, err := cmd.CombinedOutput()
		switch {
		case err != nil:
			t.Errorf("%v\n%s", err, out)
		case strings.Contains(string(out), "--- SKIP"):
			t.Skipf("%s", out)
		}
		return false
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	uplink := &netlink.Veth{LinkAttrs: attrs, PeerName: "beyond"}
	if err == nil {
		err = netlink.LinkAdd(uplink)
	}
	if err == nil {
		err = netlink.AddrAdd(uplink, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(203, 0, 113, 1).To4(), Mask: net.CIDRMask(24, 32)}})
	}
	if err == nil {
		err = netlink.LinkSetUp(uplink)
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

// runAgent starts an agent, which is stopped, with everything it started, by the function returned or at the end of the test.
func runAgent(t *testing.T) (*api.Client, func()) {
	t.Helper()
	network := orchestrator.DefaultNetwork()
	a, err := orchestrator.NewAgent(orchestrator.AgentConfig{DataDir: t.TempDir(), Address: "127.0.0.1:0", RemoveOnStop: true, Network: network, Log: logging.Discard()})
	if err != nil {
		t.Skipf("this machine cannot run an agent: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Errorf("agent: %v", err)
		}
	})
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	select {
	case <-a.Ready():
	case <-time.After(30 * time.Second):
		t.Fatal("the agent is not ready")
	}
	c, err := api.NewClient(&api.Config{Address: a.URL()})
	if err != nil {
		t.Fatal(err)
	}
	return c, stop
}

// place registers a job and waits until its allocation is in a state that was asked for.
func place(t *testing.T, c *api.Client, id string, mode string, ports []api.Port, argv []string, states ...string) *api.Allocation {
	t.Helper()
	task := &api.Task{Name: "task", Driver: "sandbox", Resources: &api.Resources{CPU: new(100), MemoryMB: new(128)},
		Config: map[string]any{"image": "host", "command": argv[0], "args": argv[1:]}}
	group := api.NewTaskGroup("group", 1)
	group.AddTask(task)
	group.RestartPolicy = &api.RestartPolicy{Attempts: new(0), Mode: new("fail")}
	if mode != "" {
		group.Networks = []*api.NetworkResource{{Mode: mode, DynamicPorts: ports}}
	}
	if _, _, err := c.Jobs().Register(api.NewBatchJob(id, id, "global", 50).AddDatacenter("dc1").AddTaskGroup(group), nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	q := (&api.QueryOptions{}).WithContext(ctx)
	for {
		list, meta, err := c.Jobs().Allocations(id, false, q)
		if err != nil {
			t.Fatalf("allocation of %s: %v", id, err)
		}
		if len(list) == 1 && slices.Contains(states, list[0].ClientStatus) {
			a, _, err := c.Allocations().Info(list[0].ID, nil)
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		q.WaitIndex = meta.LastIndex
	}
}

func TestARunnersNetworkFromJobToSocket(t *testing.T) {
	if !apart(t) {
		return
	}
	c, stop := runAgent(t)
	server := []string{"python3", "-c", `import http.server
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(("hello " + self.client_address[0]).encode())
http.server.HTTPServer(("", 80), H).serve_forever()`}
	a := place(t, c, "server", "bridge", []api.Port{{Label: "http", To: 80}}, server, "running")
	if n := a.NetworkStatus; n == nil || n.Address != "172.30.64.2" || n.InterfaceName != "eth0" || n.DNS == nil || !slices.Equal(n.DNS.Servers, []string{"172.30.64.1"}) {
		t.Errorf("network status: %+v", n)
	}
	ports := a.AllocatedResources.Shared.Ports
	if len(ports) != 1 || ports[0].HostIP != "203.0.113.1" || ports[0].To != 80 {
		t.Fatalf("ports: %+v", ports)
	}
	mapped := fmt.Sprintf("%s:%d", ports[0].HostIP, ports[0].Value)
	if got := get(t, "http://"+mapped); got != "hello 203.0.113.1" {
		t.Errorf("the mapped port says %q", got)
	}

	// Another runner looks around.
	api := strings.TrimPrefix(c.Address(), "http://127.0.0.1:")
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, open, _ := net.SplitHostPort(l.Addr().String())
	look := `import socket, sys
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    s = socket.socket(); s.settimeout(1)
    try:
        s.connect((host, int(port)))
    except OSError:
        continue
    sys.exit("reached " + target)`
	argv := append([]string{"python3", "-c", look}, "127.0.0.1:"+api, "172.30.64.1:"+api, "203.0.113.1:"+open, "172.30.64.1:"+open, "172.30.64.2:80", mapped, "169.254.169.254:80")
	if a := place(t, c, "prober", "bridge", nil, argv, "complete", "failed"); a.ClientStatus != "complete" {
		t.Errorf("a runner reached what it must not: %+v", a.TaskStates["task"])
	}
	for _, mode := range []string{"", "none"} {
		if a := place(t, c, "offline"+mode, mode, nil, append(argv, "203.0.113.1:"+open), "complete", "failed"); a.ClientStatus != "complete" {
			t.Errorf("a runner without a network (%q) reached something: %+v", mode, a.TaskStates["task"])
		}
	}
	if a := place(t, c, "host", "host", nil, []string{"true"}, "complete", "failed"); a.ClientStatus != "failed" ||
		!strings.Contains(fmt.Sprint(events(a)), `network mode "host" is not offered: a sandbox never shares the node's network`) {
		t.Errorf("network mode host: %s, %v", a.ClientStatus, events(a))
	}

	stop()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "rockpool") && l.Type() == "bridge" {
			t.Errorf("left is %s", l.Attrs().Name)
		}
	}
}

func events(a *api.Allocation) (all []string) {
	for _, e := range a.TaskStates["task"].Events {
		all = append(all, e.DisplayMessage)
	}
	return all
}

// get fetches a page. The server inside may take a moment to listen.
func get(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Timeout: 2 * time.Second}
	deadline := time.Now().Add(15 * time.Second)
	for {
		r, err := client.Get(url)
		if err == nil {
			b, _ := io.ReadAll(r.Body)
			_ = r.Body.Close()
			return string(b)
		}
		if time.Now().After(deadline) {
			t.Fatalf("get %s: %v", url, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
