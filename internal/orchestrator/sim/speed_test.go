package sim_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"rockpool/internal/orchestrator"
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
	network := &sim.Direct{Handler: s.Handler()}
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
		if err := s.Run(ctx); err != nil {
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
		`"EphemeralDisk":{"SizeMB":10},"ReschedulePolicy":{"Attempts":0,"Unlimited":false},`+
		`"Tasks":[{"Name":"t","Driver":"mock","Config":{"run_for":"50ms"},"Resources":{"CPU":20,"MemoryMB":32}}]}]}}`, id, id, count)
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
	lines := bufio.NewReaderSize(resp.Body, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		var frame struct {
			Events []struct {
				Payload struct {
					Allocation struct{ JobID, ClientStatus string }
				}
			}
		}
		if err := json.Unmarshal(line, &frame); err != nil {
			return err
		}
		for _, e := range frame.Events {
			if a := e.Payload.Allocation; a.ClientStatus != "pending" { // one that was short is told only as complete
				f(a.JobID)
			}
		}
	}
}

// BenchmarkSustained registers one-task jobs at a rate, whether or not the server keeps up, on a durable log and 20 nodes, and measures from the time at
// which a job was due to be sent until the event stream says that it runs. The nodes, the callers and the reader of events are in the same process.
func BenchmarkSustained(b *testing.B) {
	for _, rate := range []float64{500, 1000, 2000} {
		b.Run(fmt.Sprint(rate), func(b *testing.B) {
			w := begin(b, orchestrator.ServerConfig{DataDir: b.TempDir()}, sim.FleetConfig{
				Count: 20, Lifetime: lifetime(time.Second),
			})
			var mu sync.Mutex
			due := map[string]time.Time{}
			var took []time.Duration
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
					if len(took) == b.N {
						close(all)
					}
				}); err != nil {
					b.Error(err)
				}
			})
			defer reader.Wait()
			defer cancel()
			b.ResetTimer()
			_, err := load.Run(ctx, load.Options{Rate: rate, For: time.Duration(float64(b.N) / rate * float64(time.Second))},
				func(ctx context.Context, i int, at time.Time) error {
					id := fmt.Sprint("job-", i)
					mu.Lock()
					due[id] = at
					mu.Unlock()
					return w.put(ctx, "/v1/jobs", batchJob(id, 1))
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
			b.ReportMetric(float64(load.Percentile(took, 50).Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(load.Percentile(took, 99).Microseconds())/1000, "p99-ms")
		})
	}
}
