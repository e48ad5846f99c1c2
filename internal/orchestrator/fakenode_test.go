package orchestrator_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"go.uber.org/goleak"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/packed/packedtest"
)

// cluster is a server with an HTTP listener.
type cluster struct {
	tb     testing.TB
	server *orchestrator.Server
	http   *httptest.Server
	api    *api.Client
	token  string
	stop   func()
	// answered is called with each answer to a PUT, once it has been handed to the network. nil = nobody looks.
	answered func(body []byte)
	// asked is called with each request. nil = nobody looks.
	asked func(*http.Request)
}

// flushed notes what a handler has written, and tells when it is flushed.
type flushed struct {
	http.ResponseWriter
	body bytes.Buffer
	tell func(body []byte)
}

func (f *flushed) Write(p []byte) (int, error) {
	f.body.Write(p)
	return f.ResponseWriter.Write(p)
}

func (f *flushed) FlushError() error {
	err := http.NewResponseController(f.ResponseWriter).Flush()
	f.tell(f.body.Bytes())
	return err
}

func start(tb testing.TB, cfg orchestrator.ServerConfig) *cluster {
	tb.Helper()
	cfg.Name = "one"
	if cfg.LogSegment == 0 {
		cfg.LogSegment = 4 << 20
	}
	s, err := orchestrator.NewServer(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	c := &cluster{tb: tb, server: s, token: cfg.Token}
	c.http = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.asked != nil {
			c.asked(r)
		}
		if c.answered != nil && r.Method == http.MethodPut {
			w = &flushed{ResponseWriter: w, tell: c.answered}
		}
		s.Handler().ServeHTTP(w, r)
	}))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			tb.Errorf("Run: %v", err)
		}
	})
	var once sync.Once
	c.stop = func() {
		once.Do(func() {
			cancel()
			wg.Wait()
			c.http.Close()
		})
	}
	tb.Cleanup(c.stop)
	wait, end := context.WithTimeout(ctx, 20*time.Second)
	defer end()
	if err := s.WaitLeader(wait); err != nil {
		tb.Fatal(err)
	}
	c.api = c.client(cfg.Token)
	return c
}

func (c *cluster) client(token string) *api.Client {
	conf := api.DefaultConfig()
	conf.Address, conf.SecretID = c.http.URL, token
	conf.HttpClient = c.http.Client()
	conf.HttpClient.Transport.(*http.Transport).MaxIdleConnsPerHost = 1000
	client, err := api.NewClient(conf)
	if err != nil {
		c.tb.Fatal(err)
	}
	return client
}

// node speaks a node's side of docs/native-api.md and runs nothing.
type node struct {
	c      *cluster
	id     string
	secret string

	mu     sync.Mutex
	allocs map[string]*model.Allocation
	purged []string
	pushed chan *model.AllocPush // of every message, if somebody reads
	silent bool                  // reports nothing
	// health is said of each allocation that begins to run; nil = nothing is. It is called with mu held.
	health func(*model.Allocation) *bool
}

func newModelNode() *model.Node {
	return &model.Node{
		ID: ident.New(), SecretID: ident.New(), Name: "node-1", Datacenter: "dc1", Attributes: map[string]string{"kernel.name": "linux", "network.bridge": "1"},
		Resources: model.NodeResources{CPU: 100_000, Cores: 4, MemoryMB: 1_000_000, DiskMB: 10_000_000},
		Drivers:   map[string]*model.DriverInfo{"docker": {Detected: true, Healthy: true}, "exec": {Detected: true, Healthy: true}},
	}
}

func (c *cluster) join(n *model.Node) *node {
	c.tb.Helper()
	f := &node{c: c, id: n.ID, secret: n.SecretID, allocs: map[string]*model.Allocation{}, pushed: make(chan *model.AllocPush, 10_000)}
	if status, body := f.put("register", n); status != 200 {
		c.tb.Fatalf("register: %d %s", status, body)
	}
	f.watch()
	return f
}

func (f *node) request(method, path string, body io.Reader) (*http.Response, error) {
	r, err := http.NewRequest(method, fmt.Sprintf("%s/v1/internal/node/%s/%s", f.c.http.URL, f.id, path), body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("X-Rockpool-Node-Secret", f.secret)
	r.Header.Set("X-Nomad-Token", f.c.token)
	return f.c.http.Client().Do(r)
}

func (f *node) put(path string, body any) (int, string) {
	data, _ := json.Marshal(body)
	resp, err := f.request("PUT", path, bytes.NewReader(data))
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

// watch reads the stream until the server ends it.
func (f *node) watch() {
	resp, err := f.request("GET", "watch", nil)
	if err != nil {
		f.c.tb.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer resp.Body.Close()
		lines := bufio.NewReader(resp.Body)
		for {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				return
			}
			var p model.AllocPush
			if err := json.Unmarshal(line, &p); err != nil {
				f.c.tb.Errorf("push: %v", err)
				return
			}
			if p.Generation != 0 {
				f.take(&p)
			}
		}
	})
	f.c.tb.Cleanup(func() { f.c.stop(); wg.Wait() })
}

func (f *node) take(p *model.AllocPush) {
	var report []*model.AllocUpdate
	f.mu.Lock()
	for _, a := range p.Allocs {
		f.allocs[a.ID] = a
		now := time.Now().UnixNano()
		switch {
		case a.DesiredStatus == model.DesiredRun && a.ClientStatus == model.ClientPending:
			u := &model.AllocUpdate{ID: a.ID, ClientStatus: model.ClientRunning, ModifyTime: now,
				TaskStates: map[string]*model.TaskState{"t": {State: model.TaskRunning, StartedAt: now}}}
			if f.health != nil {
				u.Health = &model.AllocHealth{Healthy: f.health(a), Timestamp: now}
			}
			report = append(report, u)
		case a.DesiredStatus != model.DesiredRun && !a.ClientTerminal():
			report = append(report, &model.AllocUpdate{ID: a.ID, ClientStatus: model.ClientComplete, ModifyTime: now,
				TaskStates: map[string]*model.TaskState{"t": {State: model.TaskDead, StartedAt: now, FinishedAt: now}}})
		}
	}
	for _, id := range p.Purged {
		delete(f.allocs, id)
		report = append(report, &model.AllocUpdate{ID: id, Buried: true})
	}
	f.purged = append(f.purged, p.Purged...)
	silent := f.silent
	f.mu.Unlock()
	select {
	case f.pushed <- p:
	default:
	}
	if len(report) > 0 && !silent {
		if status, body := f.put("allocations", report); status != 200 {
			f.c.tb.Logf("report: %d %s", status, body)
		}
	}
}

// report says something about an allocation.
func (f *node) report(u *model.AllocUpdate) {
	f.c.tb.Helper()
	u.ModifyTime = time.Now().UnixNano()
	if status, body := f.put("allocations", []*model.AllocUpdate{u}); status != 200 {
		f.c.tb.Fatalf("report: %d %s", status, body)
	}
}

// job is a runner's job: a group that runs, and one of count 0 that keeps meta.
func job(id string) *api.Job {
	return &api.Job{
		ID: new(id), Type: new("batch"), Datacenters: []string{"dc1"},
		TaskGroups: []*api.TaskGroup{
			{
				Name: new("default"), Count: new(1),
				Spreads:          []*api.Spread{{Attribute: "${node.unique.name}", Weight: new(int8(100))}},
				Networks:         []*api.NetworkResource{{Mode: "bridge", DynamicPorts: []api.Port{{Label: "http", To: 80}}}},
				RestartPolicy:    &api.RestartPolicy{Attempts: new(3), Interval: new(time.Hour), Delay: new(time.Second), Mode: new("fail")},
				ReschedulePolicy: &api.ReschedulePolicy{Attempts: new(0), Unlimited: new(false)},
				Tasks: []*api.Task{{
					Name: "t", Driver: "docker", Config: map[string]any{"image": "python:3", "command": "sleep", "args": []any{"infinity"}},
					KillTimeout: new(time.Duration(0)), Resources: &api.Resources{CPU: new(20), MemoryMB: new(30), MemoryMaxMB: new(512)},
				}},
			},
			{
				Name: new("config"), Count: new(0), Meta: map[string]string{"used": "false"},
				Tasks: []*api.Task{{Name: "config", Driver: "exec", Config: map[string]any{"command": "true"}}},
			},
		},
	}
}

// eventually polls; there is nothing to wait on where it is used.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	tb.Fatalf("%s: did not come true", what)
}

func (c *cluster) register(j *api.Job) *api.JobRegisterResponse {
	c.tb.Helper()
	r, _, err := c.api.Jobs().Register(j, nil)
	if err != nil {
		c.tb.Fatal(err)
	}
	return r
}

// running waits until a job has n running allocations and returns them.
func (c *cluster) running(id string, n int) []*api.AllocationListStub {
	c.tb.Helper()
	var out []*api.AllocationListStub
	eventually(c.tb, fmt.Sprintf("%d running allocations of %s", n, id), func() bool {
		list, _, err := c.api.Jobs().Allocations(id, false, nil)
		if err != nil {
			c.tb.Fatal(err)
		}
		out = nil
		for _, a := range list {
			if a.ClientStatus == model.ClientRunning && a.DesiredStatus == model.DesiredRun {
				out = append(out, a)
			}
		}
		return len(out) == n
	})
	return out
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(packedtest.Main{M: m}) }
