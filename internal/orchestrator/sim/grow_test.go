package sim_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/sim"
	"rockpool/tests/load"
)

// BenchmarkNodes registers one-task jobs one at a time beside many simulated nodes, and measures until each runs, what the heap holds for each node, and what idle
// nodes cost: heartbeats and open streams. Both ends are in this process. b.N is the number of jobs.
func BenchmarkNodes(b *testing.B) {
	for _, nodes := range []int{1, 10, 100, 1000, 10_000} {
		b.Run(fmt.Sprint(nodes), func(b *testing.B) {
			if b.N == 1 {
				return // the framework's first try; joining takes longer than the jobs
			}
			before := heap()
			w := begin(b, orchestrator.ServerConfig{DataDir: b.TempDir()}, sim.FleetConfig{Count: nodes, Lifetime: lifetime(time.Millisecond)})
			held := heap() - before
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			started := make(chan string, 1)
			var reader sync.WaitGroup
			reader.Go(func() {
				seen := map[string]bool{}
				if err := w.running(ctx, func(job string) {
					if !seen[job] {
						seen[job] = true
						started <- job
					}
				}); err != nil {
					b.Error(err)
				}
			})
			var calls load.Samples
			b.ResetTimer()
			for i := range b.N {
				id := fmt.Sprint("job-", i)
				start := time.Now()
				if err := w.put(b.Context(), "/v1/jobs", batchJob(id, 1)); err != nil {
					b.Fatal(err)
				}
				select {
				case job := <-started:
					if job != id {
						b.Fatalf("waited for %s, got %s", id, job)
					}
				case <-time.After(10 * time.Second):
					b.Fatalf("%s does not run", id)
				}
				calls.Since(start)
			}
			b.StopTimer()
			const idle = 4 * time.Second
			cpu := processCPU(b)
			time.Sleep(idle) // what is measured is time that passes
			b.ReportMetric((processCPU(b)-cpu).Seconds()/idle.Seconds(), "idle-cores")
			times := load.Times(calls.Sorted())
			b.ReportMetric(float64(load.Percentile(times, 50).Microseconds()), "µs-p50")
			b.ReportMetric(float64(load.Percentile(times, 99).Microseconds()), "µs-p99")
			b.ReportMetric(float64(held)/(1<<10), "KB-held")
			cancel()
			reader.Wait()
			w.stop()
		})
	}
}

// heap is what is in use after collection, in bytes.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
