package several

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"rockpool/tests/platform"
	"rockpool/tests/service"
)

// binaries is where TestMain put what was built.
var binaries string

func TestMain(m *testing.M) {
	os.Exit(service.Main(m, "the tests of several gateways", &binaries, "rockpool/cmd/gateway", "rockpool/cmd/orchestrator"))
}

const token, management = "several-token", "3f1f2a5e-6a51-4d6e-9d1a-0f9d3a3f8f10"

// world is an orchestrator with gateways and a balancer before them.
type world struct {
	t                *testing.T
	*platform.Client // through the balancer
	orchestrator     string
	cluster          *exec.Cmd
	balancer         *balancer
	log              service.Log
}

func newWorld(t *testing.T, args ...string) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("sandboxes need root")
	}
	port, err := service.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, orchestrator: "http://127.0.0.1:" + strconv.Itoa(port)}
	dir := t.TempDir()
	cmd := exec.Command(filepath.Join(binaries, "orchestrator"), append([]string{"agent", "--data-dir", dir, "--port", strconv.Itoa(port), "--on-stop", "remove",
		"--network-range", "", "--log-level", "warn"}, args...)...)
	cmd.Env = append(os.Environ(), "ROCKPOOL_MANAGEMENT_TOKEN="+management)
	cmd.Stdout, cmd.Stderr = &w.log, &w.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.cluster = cmd
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the orchestrator ended with %v", err)
			}
		case <-time.After(40 * time.Second):
			_ = cmd.Process.Kill()
			t.Error("the orchestrator did not stop")
		}
		if left := remains(t, dir); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		if t.Failed() {
			t.Logf("the logs:\n%s", w.log.Tail(20_000))
		}
	})
	w.eventually(20*time.Second, "the orchestrator answers", func() bool {
		var nodes []struct{ Status string }
		return w.ask("/v1/nodes", &nodes) == nil && len(nodes) == 1 && nodes[0].Status == "ready"
	})
	w.balancer = &balancer{}
	front := httptest.NewServer(w.balancer.proxy())
	t.Cleanup(front.Close)
	w.Client = platform.New(front.URL, token)
	t.Cleanup(w.Client.Close)
	return w
}

// remains are the sandboxes and mounts below a data directory. What others do on the machine is theirs.
func remains(t *testing.T, dir string) (left []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "sandboxes", "sandboxes"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for _, e := range entries {
		left = append(left, "sandbox "+e.Name())
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			left = append(left, "mount "+f[4])
		}
	}
	return left
}

// ask reads from the orchestrator.
func (w *world) ask(path string, into any) error {
	r, err := http.NewRequest(http.MethodGet, w.orchestrator+path, nil)
	if err != nil {
		return err
	}
	r.Header.Set("X-Nomad-Token", management)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// jobs are the ids of the runner jobs of environment 10.
func (w *world) jobs() map[string]bool {
	var list []struct{ ID string }
	if err := w.ask("/v1/jobs?prefix=10-", &list); err != nil {
		w.t.Error(err)
	}
	ids := map[string]bool{}
	for _, j := range list {
		ids[j.ID] = true
	}
	return ids
}

func (w *world) eventually(within time.Duration, what string, ok func() bool) time.Duration {
	w.t.Helper()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Since(began) > within {
			w.t.Fatalf("not within %v: %s", within, what)
		}
		<-tick.C
	}
	return time.Since(began)
}

// gateway is one process, through all its starts.
type gateway struct {
	*service.Service
	w    *world
	port int
	dir  string
	env  []string
}

func (w *world) gateway(env ...string) *gateway {
	w.t.Helper()
	port, err := service.FreePort()
	if err != nil {
		w.t.Fatal(err)
	}
	g := &gateway{w: w, port: port, dir: w.t.TempDir(), env: env}
	g.start()
	w.t.Cleanup(func() {
		if err := g.Stop(); err != nil {
			w.t.Error(err)
		}
	})
	w.balancer.add(port)
	return g
}

func (g *gateway) start() {
	g.w.t.Helper()
	s, err := service.Start(g.w.t.Context(), service.Options{
		Binary: filepath.Join(binaries, "gateway"), Dir: g.dir, Port: g.port, Token: token, Log: &g.w.log,
		Env: append([]string{
			"ROCKPOOL_NOMAD_ADDRESS=" + g.w.orchestrator, "ROCKPOOL_NOMAD_TOKEN=" + management,
			"ROCKPOOL_SERVER_PEERADDRESS=http://127.0.0.1:" + strconv.Itoa(g.port), "ROCKPOOL_SERVER_PEERSECRET=what all the gateways have",
			"ROCKPOOL_SERVER_CLAIMWAIT=5",
		}, g.env...),
	})
	if err != nil {
		g.w.t.Fatalf("%v\n%s", err, g.w.log.Tail(10_000))
	}
	g.Service = s
}

// balancer sends requests to gateways in turn, and past those that do not accept connections.
type balancer struct {
	mu    sync.Mutex
	ports []int
	next  atomic.Uint64
}

func (b *balancer) add(port int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ports = append(b.ports, port)
}

func (b *balancer) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	b.mu.Lock()
	ports := b.ports
	b.mu.Unlock()
	var errs []error
	for range ports {
		p := ports[b.next.Add(1)%uint64(len(ports))]
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, "127.0.0.1:"+strconv.Itoa(p))
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (b *balancer) proxy() http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "gateways"})
			r.Out.Host = r.In.Host
		},
		// Each request has a connection, so that each may go anywhere.
		Transport: &http.Transport{DialContext: b.dial, DisableKeepAlives: true},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			w.WriteHeader(http.StatusBadGateway)
		},
	}
}
