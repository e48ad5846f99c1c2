package gateway

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"syscall"
	"time"
)

// profile writes a CPU profile at each USR1 and at the end, where that is configured. The signal never ends the program.
func (g *Gateway) profile(ctx context.Context) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	defer signal.Stop(signals)
	p := g.cfg.Profiling
	for {
		var data bytes.Buffer
		if p.CPUEnabled {
			if err := pprof.StartCPUProfile(&data); err != nil {
				return fmt.Errorf("profiling.cpuenabled: %w", err)
			}
		}
		select {
		case <-signals:
		case <-ctx.Done():
		}
		if p.CPUEnabled {
			pprof.StopCPUProfile()
			if err := os.WriteFile(p.CPUFile, data.Bytes(), 0o600); err != nil {
				g.log.WithField("error", err.Error()).Warn("the CPU profile could not be written")
			}
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// memoryProfile writes a profile of the heap whenever more than a threshold has come to be in use, where that is configured.
func (g *Gateway) memoryProfile(ctx context.Context) error {
	p := g.cfg.Profiling
	if p.MemoryInterval == 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(time.Duration(p.MemoryInterval) * time.Millisecond)
	defer tick.Stop()
	above := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		was := above
		if above = m.HeapAlloc > uint64(p.MemoryThreshold)<<20; !above || was {
			continue // once each time that it is passed
		}
		var data bytes.Buffer
		err := pprof.WriteHeapProfile(&data)
		if err == nil {
			err = os.WriteFile(p.MemoryFile, data.Bytes(), 0o600)
		}
		if err != nil {
			g.log.WithField("error", err.Error()).Warn("the memory profile could not be written")
			continue
		}
		g.log.WithField("file", p.MemoryFile).Info("a memory profile was written")
	}
}
