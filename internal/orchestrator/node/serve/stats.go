package serve

import (
	"context"
	"net/http"
	"sync"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/wire"
)

const (
	// firstSample is how long a task is looked at whose CPU time was not asked for before.
	firstSample = 100 * time.Millisecond
	// maxSamples bounds how many tasks are remembered, keepSamples for how long.
	maxSamples  = 4096
	keepSamples = 10 * time.Minute
)

type sample struct {
	cpu time.Duration
	at  time.Time
}

// samples are the figures last answered, by allocation and task, to tell how much CPU time went by since.
type samples struct {
	mu   sync.Mutex
	last map[[2]string]sample
}

// since replaces the sample of a task. The share is in percent of one core; ok is false where there is none to compare with.
func (s *samples) since(key [2]string, now sample) (percent float64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.last[key]
	ok = ok && now.at.After(old.at) && now.cpu >= old.cpu // a task that was started again begins at zero
	if ok {
		percent = 100 * float64(now.cpu-old.cpu) / float64(now.at.Sub(old.at))
	}
	if s.last == nil || len(s.last) >= maxSamples {
		s.prune(now.at)
	}
	s.last[key] = now
	return percent, ok
}

func (s *samples) prune(now time.Time) {
	kept := map[[2]string]sample{}
	for k, v := range s.last {
		if now.Sub(v.at) < keepSamples && len(kept) < maxSamples/2 {
			kept[k] = v
		}
	}
	s.last = kept
}

// What drivers measure. Figures that are not named are not known.
var (
	measuredMemory = []string{"Usage"}
	measuredPeak   = []string{"Usage", "Max Usage"}
	measuredCPU    = []string{"Percent", "Total Ticks"}
)

func (h *Handler) stats(ctx context.Context, _ auth.Identity, r taskPath) (*wire.AllocResourceUsage, error) {
	names, err := h.tasksOf(r.ID, r.Task)
	if err != nil {
		return nil, err
	}
	sum := newUsage()
	out := &wire.AllocResourceUsage{ResourceUsage: sum, Tasks: map[string]*wire.TaskResourceUsage{}}
	devices := h.node.DeviceStats(ctx, r.ID, names)
	for _, name := range names {
		t, err := h.node.Task(ctx, r.ID, name)
		if err != nil {
			if r.Task == "" {
				continue // what does not run uses nothing
			}
			return nil, taskError(err, name)
		}
		u, percent, err := h.usage(ctx, [2]string{r.ID, name}, t)
		if err != nil {
			return nil, taskError(err, name)
		}
		one := newUsage()
		one.DeviceStats = devices[name]
		sum.DeviceStats = append(sum.DeviceStats, devices[name]...)
		one.MemoryStats.Usage = uint64(max(u.MemoryBytes, 0))
		if u.PeakMemory > 0 { // of the allocation nobody knows it: its tasks need not have had theirs at one time
			one.MemoryStats.MaxUsage, one.MemoryStats.Measured = uint64(u.PeakMemory), measuredPeak
		}
		one.CpuStats.Percent = percent
		one.CpuStats.TotalTicks = percent / 100 * float64(h.node.CoreMHz())
		sum.MemoryStats.Usage += one.MemoryStats.Usage
		sum.CpuStats.Percent += one.CpuStats.Percent
		sum.CpuStats.TotalTicks += one.CpuStats.TotalTicks
		out.Tasks[name] = &wire.TaskResourceUsage{Timestamp: time.Now().UnixNano(), ResourceUsage: one}
	}
	out.Timestamp = time.Now().UnixNano()
	return out, nil
}

func newUsage() *wire.ResourceUsage {
	return &wire.ResourceUsage{MemoryStats: &wire.MemoryStats{Measured: measuredMemory}, CpuStats: &wire.CpuStats{Measured: measuredCPU}}
}

// usage asks a task, twice where its share of the processor is not known yet.
func (h *Handler) usage(ctx context.Context, key [2]string, t driver.Task) (driver.Usage, float64, error) {
	u, err := t.Usage(ctx)
	if err != nil {
		return u, 0, err
	}
	percent, ok := h.samples.since(key, sample{u.CPUTime, time.Now()})
	if ok {
		return u, percent, nil
	}
	timer := time.NewTimer(firstSample)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return u, 0, context.Cause(ctx)
	}
	if u, err = t.Usage(ctx); err != nil {
		return u, 0, err
	}
	percent, _ = h.samples.since(key, sample{u.CPUTime, time.Now()})
	return u, percent, nil
}

type nodeParameter struct {
	NodeID string `query:"node_id"`
}

func (h *Handler) hostStats(ctx context.Context, _ auth.Identity, _ nodeParameter) (*wire.HostStats, error) {
	return h.node.HostStats(ctx)
}

func (h *Handler) metadata(context.Context, auth.Identity, nodeParameter) (*wire.NodeMetaResponse, error) {
	return h.node.Metadata(), nil
}

type applyMetadata struct {
	Body wire.NodeMetaApplyRequest `body:"json"`
}

func (h *Handler) applyMetadata(ctx context.Context, _ auth.Identity, r applyMetadata) (*wire.NodeMetaResponse, error) {
	return h.node.ApplyMetadata(ctx, r.Body.Meta)
}

type allocPath struct {
	ID string `path:"id"`
}

func (h *Handler) checks(_ context.Context, _ auth.Identity, r allocPath) (wire.AllocCheckStatuses, error) {
	return h.node.Checks(r.ID)
}

func (h *Handler) collect(_ context.Context, _ auth.Identity, r allocPath) (done, error) {
	return done{}, h.node.Collect(r.ID)
}

// collectAll answers nothing at all: Nomad's client takes no body here.
func (h *Handler) collectAll(w http.ResponseWriter, _ *http.Request, _ auth.Identity, _ nodeParameter) error {
	if err := h.node.Collect(""); err != nil {
		return err
	}
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusOK)
	return nil
}
