package orchestrator_test

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/mock"
	"rockpool/internal/orchestrator/inspect"
	"rockpool/internal/orchestrator/link"
	nodeagent "rockpool/internal/orchestrator/node"
	"rockpool/internal/orchestrator/node/serve"
)

// withNode runs a whole node agent that has nothing but what it opens to the server itself.
func withNode(t *testing.T, c *cluster, edit ...func(*nodeagent.Config)) *nodeagent.Agent {
	t.Helper()
	dir := t.TempDir()
	identity, err := nodeagent.LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	remote, err := nodeagent.NewRemote([]string{c.http.URL}, identity, c.token, c.http.Client())
	if err != nil {
		t.Fatal(err)
	}
	cfg := nodeagent.Config{DataDir: dir, Datacenter: "dc1", Drivers: []driver.Driver{mock.New()}, Servers: remote, OnStop: nodeagent.Remove,
		Meta: map[string]string{"static": "s"}, Log: logging.Discard()}
	for _, e := range edit {
		e(&cfg)
	}
	a, err := nodeagent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Errorf("node: %v", err)
		}
	})
	wg.Go(func() { _ = link.Keep(ctx, remote, serve.New(a, nil, inspect.Process{}, nil), logging.Discard()) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	eventually(t, "the node is connected", func() bool { return slices.Contains(c.server.Nodes().Nodes(), a.ID()) })
	return a
}

func TestTheClientRoutesOfANodeThroughTheAPIClient(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{Token: "secret"})
	a := withNode(t, c)
	c.register(&api.Job{ID: new("logs"), Type: new("batch"), Datacenters: []string{"dc1"}, TaskGroups: []*api.TaskGroup{{Name: new("g"), Count: new(1),
		Tasks: []*api.Task{
			{Name: "main", Driver: "mock", Config: map[string]any{"stdout_string": "hello\n", "stderr_string": "oops\n"}},
			{Name: "init", Driver: "mock", Config: map[string]any{"run_for": "10ms"}, Lifecycle: &api.TaskLifecycle{Hook: "prestart"}},
		}}}})
	alloc, _, err := c.api.Allocations().Info(c.running("logs", 1)[0].ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the main task runs", func() bool { _, err := a.Task(t.Context(), alloc.ID, "main"); return err == nil })
	for kind, want := range map[string]string{"stdout": "hello\n", "stderr": "oops\n"} {
		frames, errs := c.api.AllocFS().Logs(alloc, false, "main", kind, "start", 0, nil, nil)
		var got strings.Builder
		for f := range frames {
			got.Write(f.Data)
		}
		select {
		case err := <-errs:
			t.Errorf("%s: %v", kind, err)
		default:
		}
		if got.String() != want {
			t.Errorf("%s is %q", kind, got.String())
		}
	}
	list, _, err := c.api.AllocFS().List(alloc, "/", nil)
	var names []string
	for _, f := range list {
		names = append(names, f.Name)
	}
	if slices.Sort(names); err != nil || !slices.Equal(names, []string{"alloc", "init", "main"}) {
		t.Errorf("the allocation's directory holds %v, %v", names, err)
	}
	usage, err := c.api.Allocations().Stats(alloc, nil)
	if err != nil || usage.Tasks["main"] == nil || usage.Tasks["init"] != nil || usage.ResourceUsage.MemoryStats.Usage == 0 {
		t.Errorf("stats: %+v %v", usage, err)
	}
	if checks, err := c.api.Allocations().Checks(alloc.ID, nil); err != nil || len(checks) != 0 {
		t.Errorf("checks: %v %v", checks, err)
	}
	host, err := c.api.Nodes().Stats(a.ID(), nil)
	if err != nil || host.Memory.Total == 0 || len(host.CPU) == 0 || host.Uptime == 0 || host.AllocDirStats.Size == 0 {
		t.Errorf("host: %+v %v", host, err)
	}
	meta, err := c.api.Nodes().Meta().Apply(&api.NodeMetaApplyRequest{NodeID: a.ID(), Meta: map[string]*string{"rack": new("r1")}}, nil)
	if err != nil || meta.Meta["rack"] != "r1" || meta.Static["static"] != "s" {
		t.Errorf("metadata: %+v %v", meta, err)
	}
	if meta, err = c.api.Nodes().Meta().Read(a.ID(), nil); err != nil || *meta.Dynamic["rack"] != "r1" {
		t.Errorf("metadata: %+v %v", meta, err)
	}
	eventually(t, "the servers know the metadata", func() bool {
		n, _, err := c.api.Nodes().Info(a.ID(), nil)
		return err == nil && n.Meta["rack"] == "r1"
	})
	if err := c.api.Allocations().Signal(alloc, nil, "", "SIGHUP"); err != nil {
		t.Errorf("signal: %v", err)
	}
	if err := c.api.Allocations().Signal(alloc, nil, "none", "SIGHUP"); err == nil || !strings.Contains(err.Error(), "Could not find task runner for task: none") {
		t.Errorf("signal of an unknown task: %v", err)
	}
	if err := c.api.Allocations().GC(alloc, nil); err == nil {
		t.Error("what runs was collected")
	}
	if err := c.api.Nodes().GC(a.ID(), nil); err != nil {
		t.Errorf("gc: %v", err)
	}
	var out strings.Builder
	if code, err := c.api.Allocations().Exec(t.Context(), alloc, "main", false, []string{"echo", "hi"}, strings.NewReader(""), &out, io.Discard, nil, nil); code != 0 || err != nil || out.String() != "hi\n" {
		t.Errorf("exec: %d %v %q", code, err, out.String())
	}
	if err := c.api.Allocations().Restart(alloc, "main", nil); err != nil {
		t.Errorf("restart: %v", err)
	}
	if _, err := c.api.Nodes().Stats("4a8a8d94-4c3c-4a1c-9c1a-5a6b7c8d9e0f", nil); err == nil || !strings.Contains(err.Error(), "Unknown node") {
		t.Errorf("an unknown node: %v", err)
	}
}

func TestALogIsFollowedOverRestartsOfItsTask(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{Token: "secret"})
	a := withNode(t, c)
	c.register(&api.Job{ID: new("logs"), Type: new("batch"), Datacenters: []string{"dc1"}, TaskGroups: []*api.TaskGroup{{Name: new("g"), Count: new(1),
		Tasks: []*api.Task{{Name: "main", Driver: "mock", Config: map[string]any{"stdout_string": "hello\n"}}}}}})
	alloc, _, err := c.api.Allocations().Info(c.running("logs", 1)[0].ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the task runs", func() bool { _, err := a.Task(t.Context(), alloc.ID, "main"); return err == nil })
	cancel := make(chan struct{})
	defer close(cancel)
	frames, errs := c.api.AllocFS().Logs(alloc, true, "main", "stdout", "start", 0, cancel, nil)
	var got strings.Builder
	until := func(want string) {
		t.Helper()
		for got.String() != want {
			select {
			case f := <-frames:
				if f != nil {
					got.Write(f.Data)
				}
			case err := <-errs:
				t.Fatalf("after %q: %v", got.String(), err)
			case <-time.After(10 * time.Second):
				t.Fatalf("nothing comes after %q", got.String())
			}
		}
	}
	until("hello\n")
	for _, want := range []string{"hello\nhello\n", "hello\nhello\nhello\n"} {
		if err := c.api.Allocations().Restart(alloc, "main", nil); err != nil {
			t.Fatal(err)
		}
		until(want)
	}
	if _, err := c.api.Allocations().Stop(alloc, nil); err != nil {
		t.Fatal(err)
	}
	for end := time.After(10 * time.Second); ; {
		select {
		case f, ok := <-frames:
			if !ok {
				return
			}
			if f != nil && len(f.Data) > 0 {
				t.Errorf("more after the end: %q", f.Data)
			}
		case err := <-errs:
			if err != io.EOF {
				t.Errorf("it ends with %v", err)
			}
			return
		case <-end:
			t.Fatal("the log of a task that was stopped goes on")
		}
	}
}
