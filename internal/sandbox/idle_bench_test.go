//go:build linux && cgo

package sandbox_test

import (
	"io"
	"testing"
	"time"

	"rockpool/internal/sandbox"
)

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
