package sim_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"rockpool/internal/endpoint"
	"rockpool/internal/ident"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/mock"
	"rockpool/internal/orchestrator/node"
	"rockpool/internal/orchestrator/sim"
	"rockpool/tests/load"
)

// world is a server with a durable log, simulated nodes, and the network between them and the tests.
type world struct {
	tb     testing.TB
	client *http.Client
	fleet  *sim.Fleet
	stop   func()
}

const address = "http://server.sim"

func begin(tb testing.TB, server orchestrator.ServerConfig, fleet sim.FleetConfig) *world {
	tb.Helper()
	server.Name = "one"
	s, err := orchestrator.NewServer(server)
	if err != nil {
		tb.Fatal(err)
	}
	network := &endpoint.Direct{Handler: s.Handler()}
	w := &world{tb: tb, client: &http.Client{Transport: network}}
	fleet.Connect = func(id node.Identity) (node.ServerConn, error) {
		return node.NewRemote([]string{address}, id, server.Token, w.client)
	}
	if w.fleet, err = sim.NewFleet(fleet); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	nodes, endNodes := context.WithCancel(ctx)
	var serving, simulated sync.WaitGroup
	serving.Go(func() {
		err := s.Run(ctx)
		if _, measured := tb.(*testing.B); measured && errors.Is(err, lifecycle.ErrStuck) {
			tb.Logf("Run: %v", err) // what was measured is over by then, and a million allocations go into a snapshot meanwhile
		} else if err != nil {
			tb.Errorf("Run: %v", err)
		}
	})
	var once sync.Once
	w.stop = func() {
		once.Do(func() {
			endNodes()
			simulated.Wait()
			cancel()
			serving.Wait()
			if err := network.Wait(context.Background()); err != nil {
				tb.Error(err)
			}
		})
	}
	tb.Cleanup(w.stop)
	wait, end := context.WithTimeout(ctx, 20*time.Second)
	defer end()
	if err := s.WaitLeader(wait); err != nil {
		tb.Fatal(err)
	}
	simulated.Go(func() { _ = w.fleet.Run(nodes) })
	select {
	case <-w.fleet.Joined():
	case <-time.After(2 * time.Minute):
		tb.Fatal("the nodes do not join")
	}
	return w
}

func (w *world) put(ctx context.Context, path, body string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, address+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := w.client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %d %s", path, resp.StatusCode, text)
	}
	return err
}

func batchJob(id string, count int) string {
	return fmt.Sprintf(`{"Job":{"ID":%q,"Name":%q,"Type":"batch","Datacenters":["dc1"],"TaskGroups":[{"Name":"g","Count":%d,`+
		`"EphemeralDisk":{"SizeMB":1},"ReschedulePolicy":{"Attempts":0,"Unlimited":false},`+
		`"Tasks":[{"Name":"t","Driver":"mock","Config":{"run_for":"50ms"},"Resources":{"CPU":1,"MemoryMB":10}}]}]}}`, id, id, count)
}

// running calls f with the id of each job whose allocation runs, until the stream ends.
func (w *world) running(ctx context.Context, f func(job string)) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"/v1/event/stream?topic=Allocation", nil)
	if err != nil {
		return err
	}
	resp, err := w.client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	err = load.Running(resp.Body, f)
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil:
		return io.ErrUnexpectedEOF // the server ends a reader that is too slow
	}
	return err
}

// BenchmarkSustained registers one-task jobs at a rate, whether or not the server keeps up, on a durable log and 20 nodes, and measures from the time at
// which a job was due to be sent until the event stream says that it runs. The nodes, the callers and the reader of events are in the same process.
func BenchmarkSustained(b *testing.B) {
	for _, rate := range []float64{500, 1000, 2000} {
		b.Run(fmt.Sprint(rate), func(b *testing.B) {
			w := begin(b, orchestrator.ServerConfig{DataDir: b.TempDir()}, sim.FleetConfig{
				Count: 20, Lifetime: lifetime(time.Second),
			})
			sustained(b, w, rate)
		})
	}
}

// BenchmarkSustainedAgent is BenchmarkSustained with one real node agent and the driver mock in place of simulated nodes.
func BenchmarkSustainedAgent(b *testing.B) {
	for _, rate := range []float64{500, 1000, 2000} {
		b.Run(fmt.Sprint(rate), func(b *testing.B) {
			w := begin(b, orchestrator.ServerConfig{DataDir: b.TempDir()}, sim.FleetConfig{})
			id := node.Identity{ID: ident.New(), Secret: ident.New()}
			dir := b.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "identity.json"), fmt.Appendf(nil, `{"ID":%q,"Secret":%q}`, id.ID, id.Secret), 0o600); err != nil {
				b.Fatal(err)
			}
			servers, err := node.NewRemote([]string{address}, id, "", w.client)
			if err != nil {
				b.Fatal(err)
			}
			a, err := node.New(node.Config{DataDir: dir, Version: "0.0.0", Drivers: []driver.Driver{mock.New()}, Servers: servers, OnStop: node.Remove, Log: logging.Discard()})
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			var agent sync.WaitGroup
			agent.Go(func() {
				if err := a.Run(ctx); err != nil {
					b.Error(err)
				}
			})
			defer agent.Wait()
			defer cancel()
			<-a.Registered()
			sustained(b, w, rate)
		})
	}
}

func sustained(b *testing.B, w *world, rate float64) {
	var mu sync.Mutex
	due := map[string]time.Time{}
	var took []time.Duration
	refused := 0
	all := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	var reader sync.WaitGroup
	reader.Go(func() {
		if err := w.running(ctx, func(job string) {
			mu.Lock()
			defer mu.Unlock()
			at, ok := due[job]
			if !ok {
				return
			}
			delete(due, job)
			took = append(took, time.Since(at))
			if len(took)+refused == b.N {
				close(all)
			}
		}); err != nil {
			b.Error(err)
		}
	})
	defer reader.Wait()
	defer cancel()
	before := processCPU(b)
	b.ResetTimer()
	_, err := load.Run(ctx, load.Options{Rate: rate, For: time.Duration(float64(b.N) / rate * float64(time.Second))},
		func(ctx context.Context, i int, at time.Time) error {
			id := fmt.Sprint("job-", i)
			mu.Lock()
			due[id] = at
			mu.Unlock()
			err := w.put(ctx, "/v1/jobs", batchJob(id, 1))
			if err == nil || !strings.Contains(err.Error(), " 429 ") {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			delete(due, id)
			if refused++; len(took)+refused == b.N {
				close(all)
			}
			return nil
		})
	if err != nil && !errors.Is(err, context.Canceled) {
		b.Fatal(err)
	}
	select {
	case <-all:
	case <-time.After(30 * time.Second):
		b.Fatalf("%d of %d jobs ran", len(took), b.N)
	}
	b.StopTimer()
	b.ReportMetric((processCPU(b)-before).Seconds()/float64(max(len(took), 1))*1e6, "cpu-µs/job")
	b.ReportMetric(float64(refused), "refused")
	b.ReportMetric(float64(load.Percentile(took, 50).Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(load.Percentile(took, 99).Microseconds())/1000, "p99-ms")
}

// envInt lets a measurement be as large as the machine allows.
func envInt(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// BenchmarkBulk registers jobs of 1,000 tasks and measures until the nodes have all of their allocations. ROCKPOOL_BULK_NODES and ROCKPOOL_BULK_JOBS say how
// many: 10,000 and 1,000 are the million placements.
func BenchmarkBulk(b *testing.B) {
	const tasks = 1000
	nodes, jobs := envInt("ROCKPOOL_BULK_NODES", 1000), envInt("ROCKPOOL_BULK_JOBS", 20)
	for b.Loop() {
		b.StopTimer()
		w := begin(b, orchestrator.ServerConfig{DataDir: b.TempDir()}, sim.FleetConfig{Count: nodes})
		before, kernelBefore := processCPU(b), kernelCPU(b)
		b.StartTimer()
		began := time.Now()
		var callers errgroup.Group
		callers.SetLimit(16)
		for i := range jobs {
			callers.Go(func() error { return w.put(b.Context(), "/v1/jobs", batchJob(fmt.Sprint("bulk-", i), tasks)) })
		}
		if err := callers.Wait(); err != nil {
			b.Fatal(err)
		}
		for w.fleet.Received.Load() < int64(jobs*tasks) {
			if time.Since(began) > 10*time.Minute {
				b.Fatalf("%d of %d allocations came", w.fleet.Received.Load(), jobs*tasks)
			}
			time.Sleep(5 * time.Millisecond)
		}
		b.StopTimer()
		b.ReportMetric(float64(jobs*tasks)/time.Since(began).Seconds(), "placements/s")
		b.ReportMetric((processCPU(b)-before).Seconds()/float64(jobs*tasks)*1e6, "cpu-µs/placement")
		b.ReportMetric((kernelCPU(b)-kernelBefore).Seconds()/float64(jobs*tasks)*1e6, "kernel-µs/placement") // most of it gives memory to the process
		w.stop()
		b.StartTimer()
	}
}

// BenchmarkIdle measures what many nodes without work cost: heartbeats and open streams. The CPU is that of both ends. ROCKPOOL_IDLE_NODES says how many.
func BenchmarkIdle(b *testing.B) {
	nodes := envInt("ROCKPOOL_IDLE_NODES", 10_000)
	begin(b, orchestrator.ServerConfig{DataDir: b.TempDir()}, sim.FleetConfig{Count: nodes})
	const during = 20 * time.Second
	for b.Loop() {
		before := processCPU(b)
		time.Sleep(during)
		b.ReportMetric((processCPU(b)-before).Seconds()/during.Seconds(), "cores")
	}
}

func processCPU(tb testing.TB) time.Duration {
	u := usage(tb)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func kernelCPU(tb testing.TB) time.Duration {
	u := usage(tb)
	return time.Duration(u.Stime.Nano())
}

func usage(tb testing.TB) (u unix.Rusage) {
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return u
}

// BenchmarkRestart measures from the start of a server, whose log holds registrations of ROCKPOOL_RESTART_JOBS jobs and no snapshot, until it leads again with
// all of them applied.
func BenchmarkRestart(b *testing.B) {
	jobs := envInt("ROCKPOOL_RESTART_JOBS", 10_000)
	dir := b.TempDir()
	w := begin(b, orchestrator.ServerConfig{DataDir: dir}, sim.FleetConfig{Count: 20})
	var callers errgroup.Group
	callers.SetLimit(256)
	for i := range jobs {
		callers.Go(func() error {
			for {
				err := w.put(b.Context(), "/v1/jobs", batchJob(fmt.Sprint("job-", i), 1))
				if err == nil || !strings.Contains(err.Error(), " 429 ") {
					return err
				}
				time.Sleep(time.Second)
			}
		})
	}
	if err := callers.Wait(); err != nil {
		b.Fatal(err)
	}
	for w.fleet.Received.Load() < int64(jobs) {
		time.Sleep(10 * time.Millisecond)
	}
	w.stop()
	for b.Loop() {
		began := time.Now()
		w := begin(b, orchestrator.ServerConfig{DataDir: dir}, sim.FleetConfig{})
		took := time.Since(began)
		w.stop()
		b.ReportMetric(float64(took.Milliseconds()), "ms-to-lead")
	}
	b.ReportMetric(float64(jobs), "jobs")
}
