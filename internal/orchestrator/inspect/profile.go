package inspect

import (
	"context"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
	"strings"
	"sync"
	"time"

	"rockpool/internal/fault"
)

// ProfileRequest is what kind of profile is wanted: one that runtime/pprof knows, profile (of the processor), trace or cmdline.
type ProfileRequest struct {
	Profile string `path:"profile"`
	Seconds int    `query:"seconds"` // 0 to 300, for those over time
	Debug   int    `query:"debug"`
	GC      int    `query:"gc"`
}

const maxProfile = 300 // seconds

// profiling is held by the one profile over time that a process can take.
var profiling sync.Mutex

// Profile takes a profile of this process.
func (p *Process) Profile(ctx context.Context, w http.ResponseWriter, req ProfileRequest) error {
	if !p.Profiles {
		return fault.New(fault.Forbidden, "profiles are not enabled: set enable_debug or acl.enabled in the agent's configuration")
	}
	if req.Seconds < 0 || req.Seconds > maxProfile {
		return fault.New(fault.Invalid, "seconds must be between 0 and %d", maxProfile)
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", `attachment; filename="`+req.Profile+`"`)
	switch req.Profile {
	case "cmdline":
		h.Set("Content-Type", "text/plain; charset=utf-8")
		_, err := w.Write([]byte(strings.Join(os.Args, "\x00")))
		return err
	case "profile":
		return during(ctx, req.Seconds, func() error { return pprof.StartCPUProfile(w) }, pprof.StopCPUProfile)
	case "trace":
		return during(ctx, req.Seconds, func() error { return trace.Start(w) }, trace.Stop)
	}
	found := pprof.Lookup(req.Profile)
	if found == nil {
		return fault.New(fault.NotFound, "Unknown profile: %s", req.Profile)
	}
	if req.Profile == "heap" && req.GC > 0 {
		runtime.GC()
	}
	if req.Debug > 0 {
		h.Set("Content-Type", "text/plain; charset=utf-8")
	}
	return found.WriteTo(w, req.Debug)
}

func during(ctx context.Context, seconds int, start func() error, stop func()) error {
	if !profiling.TryLock() {
		return fault.New(fault.Exhausted, "another profile is being taken")
	}
	defer profiling.Unlock()
	if err := start(); err != nil {
		return err
	}
	defer stop()
	t := time.NewTimer(time.Duration(max(seconds, 1)) * time.Second)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	return nil
}
