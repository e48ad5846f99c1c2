//go:build linux && cgo

package sandbox_test

import (
	"context"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"rockpool/internal/sandbox"
	"rockpool/tests/load"
)

func median(b *testing.B, times []time.Duration) {
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "µs-p50")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "µs-p99")
}

func BenchmarkCreateDestroy(b *testing.B) {
	r, root := newRuntime(b), hostRoot(b)
	var made, destroyed []time.Duration
	for b.Loop() {
		start := time.Now()
		s, err := r.Create(b.Context(), sandbox.Spec{ID: fmt.Sprintf("s-%d", serial.Add(1)), Root: root})
		if err != nil {
			b.Fatal(err)
		}
		made = append(made, time.Since(start))
		start = time.Now()
		if err := s.Destroy(b.Context()); err != nil {
			b.Fatal(err)
		}
		destroyed = append(destroyed, time.Since(start))
	}
	median(b, made)
	slices.Sort(destroyed)
	b.ReportMetric(float64(destroyed[len(destroyed)/2].Microseconds()), "µs-destroy-p50")
}

func BenchmarkExecTrue(b *testing.B) {
	s := create(b, newRuntime(b))
	var times []time.Duration
	for b.Loop() {
		start := time.Now()
		e := begin(b, s, sandbox.ExecSpec{Argv: []string{"/bin/true"}})
		_ = e.Stdin().Close()
		_, _ = io.Copy(io.Discard, e.Stdout())
		<-e.Done()
		if result, err := e.Result(); err != nil || result.ExitCode != 0 {
			b.Fatal(result, err)
		}
		times = append(times, time.Since(start))
	}
	median(b, times)
}

// What an idle sandbox costs: its whole control group, kernel memory included, and the CPU time of a second.
func BenchmarkIdle(b *testing.B) {
	s := create(b, newRuntime(b))
	before, err := s.Usage()
	if err != nil {
		b.Fatal(err)
	}
	time.Sleep(time.Second)
	after, err := s.Usage()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
	}
	b.ReportMetric(float64(after.MemoryBytes)/(1<<20), "MiB")
	b.ReportMetric(float64((after.CPUTime - before.CPUTime).Microseconds()), "µs-cpu/s")
}

// What a single learner sees: the machine is idle before each execution.
func BenchmarkExecTrueAfterAPause(b *testing.B) {
	s := create(b, newRuntime(b))
	var times []time.Duration
	for b.Loop() {
		b.StopTimer()
		time.Sleep(60 * time.Millisecond)
		b.StartTimer()
		start := time.Now()
		e := begin(b, s, sandbox.ExecSpec{Argv: []string{"/bin/true"}})
		_ = e.Stdin().Close()
		_, _ = io.Copy(io.Discard, e.Stdout())
		<-e.Done()
		times = append(times, time.Since(start))
	}
	median(b, times)
}

// Output of a program, as fast as it comes, read as the HTTP API reads it.
func BenchmarkStream(b *testing.B) {
	const size = 100 << 20
	s := create(b, newRuntime(b))
	b.SetBytes(size)
	buf := make([]byte, 32<<10)
	reads := 0
	for b.Loop() {
		e := begin(b, s, sandbox.ExecSpec{Argv: []string{"head", "-c", fmt.Sprint(size), "/dev/zero"}, MergeStderr: true})
		var got int64
		for {
			n, err := e.Stdout().Read(buf)
			got += int64(n)
			reads++
			if err != nil {
				break
			}
		}
		if <-e.Done(); got != size {
			b.Fatal(got)
		}
	}
	b.ReportMetric(float64(reads)/float64(b.N), "reads/op")
}

func BenchmarkManyAtOnce(b *testing.B) {
	r, root := newRuntime(b), hostRoot(b)
	b.SetParallelism(4)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			s, err := r.Create(b.Context(), sandbox.Spec{ID: fmt.Sprintf("s-%d", serial.Add(1)), Root: root})
			if err == nil {
				err = s.Destroy(b.Context())
			}
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "sandboxes/s")
}

// A little more than 200 a second, whether or not earlier ones are done, each timed from when it was due. The rate is of those that were done while others came.
func BenchmarkOffered(b *testing.B) {
	const rate = 202
	r, root := newRuntime(b), hostRoot(b)
	during := time.Duration(float64(b.N) / rate * float64(time.Second))
	var calls load.Samples
	begin := time.Now()
	_, err := load.Run(b.Context(), load.Options{Rate: rate, For: during}, func(ctx context.Context, _ int, due time.Time) error {
		s, err := r.Create(ctx, sandbox.Spec{ID: fmt.Sprintf("s-%d", serial.Add(1)), Root: root})
		if err != nil {
			return err
		}
		defer calls.Since(due)
		return s.Destroy(ctx)
	})
	if err != nil {
		b.Fatal(err)
	}
	done := calls.Sorted()
	median(b, load.Times(done))
	b.ReportMetric(load.Answered(done, begin, during), "sandboxes/s")
}
