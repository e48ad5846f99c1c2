package gateway

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"
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
