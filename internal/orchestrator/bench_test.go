package orchestrator_test

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/model"
)

func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkRegisterToPushed measures from the call of the api client to the arrival of the allocation at its node, on durable
// Raft, one job at a time. The jobs are purged in between, outside of the measurement.
func BenchmarkRegisterToPushed(b *testing.B) {
	c := start(b, orchestrator.ServerConfig{DataDir: b.TempDir(), LogSegment: 64 << 20})
	n := c.join(newModelNode())
	n.silent = true
	var took []time.Duration
	i := 0
	for b.Loop() {
		i++
		id := fmt.Sprintf("10-%d", i)
		at := time.Now()
		c.register(job(id))
		for pushed := false; !pushed; {
			p := <-n.pushed
			pushed = len(p.Allocs) > 0 && p.Allocs[0].JobID == id
		}
		took = append(took, time.Since(at))
		if _, _, err := c.api.Jobs().Deregister(id, true, nil); err != nil {
			b.Fatal(err)
		}
	}
	report(b, took)
}

// BenchmarkClaim measures a registration with EnforceIndex in which only meta of the group of count 0 changes.
func BenchmarkClaim(b *testing.B) {
	c := start(b, orchestrator.ServerConfig{DataDir: b.TempDir(), LogSegment: 64 << 20})
	c.join(newModelNode())
	j := job("10-a")
	index := c.register(j).JobModifyIndex
	c.running("10-a", 1)
	var took []time.Duration
	i := 0
	for b.Loop() {
		i++
		j.TaskGroups[1].Meta["used"] = fmt.Sprint(i)
		at := time.Now()
		r, _, err := c.api.Jobs().EnforceRegister(j, index, nil)
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(at))
		index = r.JobModifyIndex
	}
	report(b, took)
}

// BenchmarkMark measures the same as a mark.
func BenchmarkMark(b *testing.B) {
	c := start(b, orchestrator.ServerConfig{DataDir: b.TempDir(), LogSegment: 64 << 20})
	c.join(newModelNode())
	j := job("10-a")
	index := c.register(j).JobModifyIndex
	c.running("10-a", 1)
	eventually(b, "it is evaluated", func() bool {
		evals, _, err := c.api.Jobs().Evaluations("10-a", nil)
		return err == nil && len(evals) == 1 && evals[0].Status == "complete"
	})
	var took []time.Duration
	i := 0
	for b.Loop() {
		i++
		at := time.Now()
		r, err := c.mark("10-a", markRequest{*j.TaskGroups[1].Name, map[string]string{"used": fmt.Sprint(i)}, index})
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(at))
		index = r.JobModifyIndex
	}
	report(b, took)
}

// BenchmarkRegisterParallel measures throughput: many callers register and purge at once.
func BenchmarkRegisterParallel(b *testing.B) {
	c := start(b, orchestrator.ServerConfig{DataDir: b.TempDir(), LogSegment: 64 << 20})
	n := c.join(newModelNode())
	n.silent = true
	ids := make(chan string)
	go func() {
		for i := 0; ; i++ {
			select {
			case ids <- fmt.Sprintf("10-%d", i):
			case <-b.Context().Done():
				return
			}
		}
	}()
	b.SetParallelism(32)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			id := <-ids
			if _, _, err := c.api.Jobs().Register(job(id), (*api.WriteOptions)(nil)); err != nil {
				b.Error(err)
			}
			if _, _, err := c.api.Jobs().Deregister(id, true, nil); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkExecStream measures output from a program's pipe to the writer of an api client, 100 MiB at a time.
func BenchmarkExecStream(b *testing.B) {
	for name, reach := range ways {
		b.Run(name, func(b *testing.B) { benchmarkExecStream(b, reach) })
	}
}

func benchmarkExecStream(b *testing.B, reach func(*cluster, *agent, *model.Node)) {
	const size = 100 << 20
	block := bytes.Repeat([]byte("0123456789abcde\n"), 4096)
	c, _, alloc := withAgent(b, func(e *execution) {
		for range size / len(block) {
			_, _ = e.out.Write(block)
		}
	}, reach)
	b.SetBytes(size)
	for b.Loop() {
		var got counter
		code, err := c.api.Allocations().Exec(b.Context(), alloc, "t", false, []string{"x"}, strings.NewReader(""), &got, io.Discard, nil, nil)
		if code != 0 || err != nil || got != size {
			b.Fatal(code, err, got)
		}
	}
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }
