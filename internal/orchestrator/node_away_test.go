package orchestrator_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
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
	"rockpool/internal/orchestrator/model"
	nodeagent "rockpool/internal/orchestrator/node"
	"rockpool/internal/orchestrator/node/serve"
)

// cable is a network that can be cut: what is under way ends, and nothing new begins.
type cable struct {
	next http.RoundTripper

	mu    sync.Mutex
	whole context.Context // ends when it is cut
	sever context.CancelFunc
}

func newCable(next http.RoundTripper) *cable {
	w := &cable{next: next}
	w.heal()
	return w
}

func (w *cable) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sever()
}

func (w *cable) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.whole, w.sever = context.WithCancel(context.Background())
}

var errCut = errors.New("the network is cut")

func (w *cable) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	whole := w.whole
	w.mu.Unlock()
	if whole.Err() != nil {
		return nil, errCut
	}
	ctx, cancel := context.WithCancelCause(r.Context()) // it ends with the request's, which may be a stream
	unhook := context.AfterFunc(whole, func() { cancel(errCut) })
	context.AfterFunc(r.Context(), func() { unhook(); cancel(nil) })
	resp, err := w.next.RoundTrip(r.WithContext(ctx))
	if err == nil && resp.StatusCode == http.StatusSwitchingProtocols { // nobody looks at the context any more
		context.AfterFunc(whole, func() { _ = resp.Body.Close() })
	}
	return resp, err
}

// nodeProcess is a node agent that can be stopped and started again, with tasks that outlive it.
type nodeProcess struct {
	t      *testing.T
	c      *cluster
	dir    string
	tasks  *mock.Driver
	cable  *cable
	id     string
	agent  *nodeagent.Agent
	finish func()
}

func (p *nodeProcess) start() {
	p.t.Helper()
	identity, err := nodeagent.LoadIdentity(p.dir)
	if err != nil {
		p.t.Fatal(err)
	}
	client := &http.Client{Transport: p.cable}
	remote, err := nodeagent.NewRemote([]string{p.c.http.URL}, identity, p.c.token, client)
	if err != nil {
		p.t.Fatal(err)
	}
	a, err := nodeagent.New(nodeagent.Config{DataDir: p.dir, Datacenter: "dc1", Drivers: []driver.Driver{p.tasks}, Servers: remote, OnStop: nodeagent.Keep, Log: logging.Discard()})
	if err != nil {
		p.t.Fatal(err)
	}
	p.agent, p.id = a, a.ID()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.Run(ctx); err != nil {
			p.t.Errorf("node: %v", err)
		}
	})
	wg.Go(func() { _ = link.Keep(ctx, remote, serve.New(a, nil, inspect.Process{}, nil), logging.Discard()) })
	p.finish = sync.OnceFunc(func() { cancel(); wg.Wait() })
	eventually(p.t, "the node is connected", func() bool { return slices.Contains(p.c.server.Nodes().Nodes(), a.ID()) })
}

func TestWhatANodeRunsWhileItIsAwayRunsOnUnderItsName(t *testing.T) {
	for name, x := range map[string]struct{ leave, back func(*nodeProcess) }{
		"the network is cut":   {func(p *nodeProcess) { p.cable.cut() }, func(p *nodeProcess) { p.cable.heal() }},
		"the agent is stopped": {func(p *nodeProcess) { p.finish() }, (*nodeProcess).start},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, orchestrator.ServerConfig{HeartbeatTTL: 500 * time.Millisecond, HeartbeatGrace: 200 * time.Millisecond})
			p := &nodeProcess{t: t, c: c, dir: t.TempDir(), tasks: mock.New(), cable: newCable(c.http.Client().Transport)}
			p.start()
			defer func() {
				p.finish()
				for _, id := range p.tasks.Tasks() {
					_ = p.tasks.Cleanup(context.Background(), id)
				}
			}()
			c.register(&api.Job{ID: new("run"), Type: new("batch"), Datacenters: []string{"dc1"}, TaskGroups: []*api.TaskGroup{{Name: new("g"), Count: new(1),
				Disconnect: &api.DisconnectStrategy{LostAfter: new(time.Hour), Replace: new(false)},
				Tasks:      []*api.Task{{Name: "t", Driver: mock.Name, Config: map[string]any{}}}}}})
			a := c.running("run", 1)[0]
			before := slices.Clone(p.tasks.Started())
			is := func(want string) func() bool {
				return func() bool {
					got, _, err := c.api.Allocations().Info(a.ID, nil)
					return err == nil && got.ClientStatus == want && got.DesiredStatus == model.DesiredRun
				}
			}
			x.leave(p)
			eventually(t, "the allocation is unknown", is(model.ClientUnknown))
			x.back(p)
			eventually(t, "it runs again", is(model.ClientRunning))
			if got := p.tasks.Started(); !slices.Equal(got, before) {
				t.Errorf("started %v, were %v", got, before)
			}
			if list, _, err := c.api.Jobs().Allocations("run", true, nil); err != nil || len(list) != 1 || list[0].ID != a.ID {
				t.Errorf("there are %d allocations, %v", len(list), err)
			}
		})
	}
}

func TestWhatIsPreemptedEndsBeforeItsPlaceIsTaken(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	p := &nodeProcess{t: t, c: c, dir: t.TempDir(), tasks: mock.New(), cable: newCable(c.http.Client().Transport)}
	p.start()
	defer func() {
		p.finish()
		for _, id := range p.tasks.Tasks() {
			_ = p.tasks.Cleanup(context.Background(), id)
		}
	}()
	if _, _, err := c.api.Operator().SchedulerSetConfiguration(&api.SchedulerConfiguration{PreemptionConfig: api.PreemptionConfig{BatchSchedulerEnabled: true}}, nil); err != nil {
		t.Fatal(err)
	}
	n, _, err := c.api.Nodes().Info(p.id, nil)
	if err != nil {
		t.Fatal(err)
	}
	most := int(n.NodeResources.Memory.MemoryMB) * 6 / 10 // there is no room for two
	job := func(id string, priority int, config map[string]any) {
		c.register(&api.Job{ID: new(id), Type: new("batch"), Priority: new(priority), Datacenters: []string{"dc1"}, TaskGroups: []*api.TaskGroup{{Name: new("g"), Count: new(1),
			Tasks: []*api.Task{{Name: "t", Driver: mock.Name, Config: config, KillTimeout: new(time.Second), Resources: &api.Resources{CPU: new(1), MemoryMB: new(most)}}}}}})
	}
	job("low", 10, map[string]any{"ignore_signals": true})
	low := c.running("low", 1)[0]
	job("high", 90, map[string]any{})
	high, _, err := c.api.Allocations().Info(c.running("high", 1)[0].ID, nil)
	if err != nil || !slices.Equal(high.PreemptedAllocations, []string{low.ID}) {
		t.Fatalf("it preempts %v, %v", high.PreemptedAllocations, err)
	}
	gone, _, err := c.api.Allocations().Info(low.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	ended, began := gone.TaskStates["t"].FinishedAt, high.TaskStates["t"].StartedAt
	if ended.IsZero() || began.Before(ended) {
		t.Errorf("one ended at %v, the other began at %v", ended, began)
	}
}
