package soak

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"rockpool/tests/load"
	"rockpool/tests/meter"
	"rockpool/tests/platform"
	"rockpool/tests/service"
)

const (
	env, pool         = 10, 16
	other             = 11    // an environment that changes all the time
	warm, warmPool    = 12, 4 // one in whose runners an interpreter waits
	honestOnes, rogue = 3, 2
	// history is how many MB of events the cluster keeps for who comes back: so few that there are as many before what is judged begins.
	history = 2
)

// world is the service, and what is noted of it.
type world struct {
	*service.Service
	dir        string
	log        *counted
	operations string  // where profiles and metrics are served
	logged     float64 // bytes for each act of the last part
	held       uint    // runners that stay claimed at moments without load

	mu      sync.Mutex
	claimed map[string]bool          // guarded by mu
	runs    atomic.Int64             // executions so far
	acts    map[string]*load.Samples // guarded by mu
}

// counted is a log of which only the end is kept.
type counted struct {
	mu   sync.Mutex
	size int64  // guarded by mu
	tail []byte // guarded by mu
}

func (c *counted) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.size += int64(len(p))
	c.tail = append(c.tail, p...)
	c.tail = c.tail[max(0, len(c.tail)-5000):]
	return len(p), nil
}

// take returns the bytes since the last call.
func (c *counted) take() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.size
	c.size = 0
	return n
}

func (c *counted) end() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.tail)
}

// figures are what is looked at without load. What comes and goes with clients that are there no more has little slack; memory has what allocators need.
func figures() []*series {
	const mb = 1 << 20
	return []*series{
		{name: "heap after collection", unit: "bytes", slack: 6 * mb, share: 0.1, leak: 1 << 10},
		{name: "resident size", unit: "bytes", slack: 24 * mb, share: 0.1},
		{name: "goroutines", slack: 6},
		{name: "descriptors", slack: 4, leak: 0.01},
		{name: "threads", slack: 6},
		{name: "processes in sandboxes", slack: 1},
		{name: "network namespaces", slack: 1},
		{name: "control groups", slack: 2},
		{name: "ended sandboxes to be removed", slack: 256}, // as many may wait
		{name: "network namespaces held open", slack: 256},
		{name: "mounts", slack: 2},
		{name: "files of the node", slack: 16},
		{name: "cluster's log and snapshots", unit: "bytes", slack: 160 * mb},
		{name: "service's own log, for an act", unit: "bytes", slack: 200, share: 0.2},
	}
}

// sure is from how many executions on a soak has to find the leaks of figures.
const sure = 60_000

// TestExecutionsLeaveNothing has one runner execute again and again. Nothing of the cluster changes meanwhile, so that much smaller leaks show than under mixed load: a
// kilobyte for each execution, and one descriptor for a hundred.
func TestExecutionsLeaveNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("sandboxes need root")
	}
	const looks, clients, each = 12, 4, 40
	w := begin(t)
	all := figures()
	err := w.inRunner(t.Context(), func(runner string) error {
		w.held = 1
		for range looks {
			g, ctx := errgroup.WithContext(t.Context())
			for range clients {
				g.Go(func() error {
					for i := range each {
						if err := w.expect(ctx, runner, fmt.Sprintf("echo %d; echo - >&2; exit %d", i, i), fmt.Sprintf("%d\r\n", i), "-", i); err != nil {
							return err
						}
					}
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				return err
			}
			if err := w.look(t.Context(), all, clients*each); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\nthe end of the service's log:\n%s", err, w.log.end())
	}
	for _, s := range all {
		if s.leak == 0 {
			continue
		}
		s.share = 0
		if s.unit == "bytes" { // the node keeps how an execution ended for a minute, which is half of this
			s.slack = s.leak * clients * each * looks * (1 - warmUp)
		}
		trend, err := s.judge()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%-32s %12.0f to %12.0f, +%.0f allowed, chance %.4f", s.name, trend.from, trend.to, trend.allowed, trend.chance)
		if trend.grows() {
			t.Errorf("%s grows: %.0f", s.name, s.values)
		}
		if found, err := s.finds(s.leak); err != nil || !found {
			t.Errorf("a leak of %g for each execution would not be found in %.0f: %v", s.leak, s.values, err)
		}
	}
	if err := w.Stop(); err != nil {
		t.Error(err)
	}
}

// TestSoak holds mixed load for ROCKPOOL_SOAK_MINUTES, one unless that is set, in parts with moments without load between them.
func TestSoak(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("sandboxes need root")
	}
	minutes := 1.0
	if m, err := strconv.ParseFloat(os.Getenv("ROCKPOOL_SOAK_MINUTES"), 64); err == nil {
		minutes = m
	}
	parts := min(max(12, int(2*minutes)), 120)
	each := time.Duration(minutes * float64(time.Minute) / float64(parts))
	seed := rand.Uint64()
	t.Logf("%v in %d parts, seed %d", time.Duration(minutes*float64(time.Minute)), parts, seed)
	before, err := service.TakeBaseline()
	if err != nil {
		t.Fatal(err)
	}
	w := begin(t)
	all := figures()
	total := 0 // acts
	var first service.Holdings
	for part := range parts {
		acts, err := w.part(t.Context(), each, seed+uint64(part))
		if err != nil {
			t.Fatalf("part %d: %v\nthe end of the service's log:\n%s", part, err, w.log.end())
		}
		total += acts
		if err := w.look(t.Context(), all, acts); err != nil {
			t.Fatalf("part %d: %v\nthe end of the service's log:\n%s", part, err, w.log.end())
		}
		if part == 0 {
			first = w.settled(t)
		}
	}
	// In the trends this may be as much as may wait; where nobody does anything, nothing waits.
	if last := w.settled(t); last.Remains > 0 || last.OpenNets > first.OpenNets+2 {
		t.Errorf("of ended sandboxes is left: %+v, after the first part it was %+v", last, first)
	}
	t.Logf("%d acts with %d executions in %v", total, w.runs.Load(), time.Duration(minutes*float64(time.Minute)))
	for _, name := range slices.Sorted(mapKeys(w.acts)) {
		times := load.Times(w.acts[name].Sorted())
		t.Logf("%-32s %6d times, p50 %8v, p99 %8v", name, len(times), load.Percentile(times, 50).Round(100*time.Microsecond), load.Percentile(times, 99).Round(100*time.Microsecond))
	}
	for _, s := range all {
		trend, err := s.judge()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%-32s %12.0f to %12.0f %-5s (first %.0f, +%.0f allowed, chance %.4f)", s.name, trend.from, trend.to, s.unit, s.values[0], trend.allowed, trend.chance)
		if trend.grows() {
			t.Errorf("%s grows: %.0f", s.name, s.values)
		}
		if s.leak == 0 {
			continue
		}
		if found, err := s.finds(s.leak); err != nil || !found && w.runs.Load() > sure {
			t.Errorf("a leak of %g %s for each execution would not be found: %v", s.leak, s.name, err)
		} else {
			t.Logf("a leak of %g for each execution would be found: %v", s.leak, found)
		}
	}
	if err := w.Stop(); err != nil {
		t.Error(err)
	}
	left, err := before.Since()
	left = slices.DeleteFunc(left, func(what string) bool { return !strings.Contains(what, w.dir) }) // the rest may be somebody else's
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func mapKeys(m map[string]*load.Samples) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func begin(t *testing.T) *world {
	t.Helper()
	bin, err := service.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	port, err := service.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{dir: t.TempDir(), log: &counted{}, operations: "127.0.0.1:" + strconv.Itoa(port), claimed: map[string]bool{}, acts: map[string]*load.Samples{}}
	w.Service, err = service.Start(t.Context(), service.Options{Binary: bin, Dir: w.dir, Token: "soak", Log: w.log, Env: []string{
		"ROCKPOOL_METRICS_ADDRESS=" + w.operations, "ROCKPOOL_PROFILING_ADDRESS=" + w.operations, "ROCKPOOL_SERVER_CLAIMWAIT=30",
		fmt.Sprint("ROCKPOOL_ORCHESTRATOR_EVENTBUFFER=", history),
	}})
	if err != nil {
		t.Fatalf("%v\n%s", err, w.log.end())
	}
	t.Cleanup(func() {
		if t.Failed() {
			_ = w.Stop() // it may have been already
		}
	})
	interpreter := environment(warmPool)
	interpreter.WarmUp = &platform.WarmUp{Command: []string{"python3"}}
	for id, e := range map[int]platform.Environment{env: environment(pool), other: environment(2), warm: interpreter} {
		if err := w.PutEnvironment(t.Context(), id, e); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func environment(size uint) platform.Environment {
	return platform.Environment{PrewarmingPoolSize: size, CPULimit: 100, MemoryLimit: 128, Image: "host"}
}

// part is some time of load. It returns when the last client is done, with the number of acts.
func (w *world) part(ctx context.Context, during time.Duration, seed uint64) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	end := time.Now().Add(during)
	var wg sync.WaitGroup
	done := make([]int, honestOnes+rogue+1)
	client := func(i int, list []act) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for time.Now().Before(end) && ctx.Err() == nil {
				a := list[r.IntN(len(list))]
				start := time.Now()
				one, stop := context.WithTimeoutCause(ctx, 90*time.Second, errors.New("it takes more than 90 s"))
				err := a.do(one, w, r)
				stop()
				if err != nil {
					cancel(fmt.Errorf("%s: %w", a.name, err))
					return
				}
				w.note(a.name, start)
				done[i]++
			}
		})
	}
	for i := range honestOnes {
		client(i, honest)
	}
	for i := range rogue {
		client(honestOnes+i, hostile)
	}
	client(honestOnes+rogue, []act{{"environment changed", changed}})
	wg.Wait()
	sum := 0
	for _, n := range done {
		sum += n
	}
	return sum, context.Cause(ctx)
}

// Start counts.
func (w *world) Start(ctx context.Context, runner string, e platform.Execution) (*platform.Session, error) {
	w.runs.Add(1)
	return w.Service.Start(ctx, runner, e)
}

// Run counts.
func (w *world) Run(ctx context.Context, runner string, e platform.Execution) (platform.Outcome, error) {
	w.runs.Add(1)
	return w.Service.Run(ctx, runner, e)
}

func (w *world) note(name string, start time.Time) {
	w.mu.Lock()
	s := w.acts[name]
	if s == nil {
		s = &load.Samples{}
		w.acts[name] = s
	}
	w.mu.Unlock()
	s.Since(start)
}

// changed resizes an environment, changes what its runners are, and sometimes deletes it.
func changed(ctx context.Context, w *world, r *rand.Rand) error {
	e := environment(uint(1 + r.IntN(4)))
	e.MemoryLimit += uint(r.IntN(2))
	if err := w.PutEnvironment(ctx, other, e); err != nil {
		return err
	}
	if err := pause(ctx, 300*time.Millisecond); err != nil || r.IntN(5) > 0 {
		return err
	}
	return errors.Join(w.DeleteEnvironment(ctx, other), w.PutEnvironment(ctx, other, environment(2)))
}

// look waits until nothing is in use, has the heap collected, and notes all figures.
func (w *world) look(ctx context.Context, all []*series, acts int) error {
	if err := w.PutEnvironment(ctx, other, environment(2)); err != nil {
		return err
	}
	w.Close()
	wait, cancel := context.WithTimeoutCause(ctx, 60*time.Second, errors.New("the pools do not fill"))
	defer cancel()
	for {
		s, err := w.Statistics(wait)
		if err != nil {
			return err
		}
		full := func(id int, idle, used uint) bool {
			e := s[strconv.Itoa(id)]
			return e.IdleRunners == idle && e.UsedRunners == used
		}
		if full(env, pool, w.held) && full(other, 2, 0) && full(warm, warmPool, 0) {
			break
		}
		if err := pause(wait, 20*time.Millisecond); err != nil {
			return err
		}
	}
	w.Close()
	// What ends a moment later than its client was told is no leak: the least of several looks counts.
	least := make([]float64, len(all))
	const looks = 5
	for i := range looks {
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
		now, err := w.now(ctx, acts, i == 0)
		if err != nil {
			return err
		}
		if len(now) != len(all) {
			return fmt.Errorf("%d figures were taken and %d are known", len(now), len(all))
		}
		for k, v := range now {
			if i == 0 || v < least[k] {
				least[k] = v
			}
		}
	}
	for k, s := range all {
		s.values, s.runs = append(s.values, least[k]), append(s.runs, float64(w.runs.Load()))
	}
	return nil
}

// now takes all figures in their order.
func (w *world) now(ctx context.Context, acts int, first bool) ([]float64, error) {
	if first { // twice: what has a finalizer is collected only then
		for range 2 {
			profile, err := w.get(ctx, "/debug/pprof/heap?gc=1")
			if err != nil {
				return nil, err
			}
			if dir := os.Getenv("ROCKPOOL_SOAK_PROFILES"); dir != "" {
				if err := os.WriteFile(filepath.Join(dir, time.Now().Format("150405.000")+".heap"), []byte(profile), 0o600); err != nil {
					return nil, err
				}
			}
		}
	}
	text, err := w.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	metric := map[string]float64{}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		if name, v, ok := strings.Cut(lines.Text(), " "); ok && !strings.ContainsAny(name, "{#") {
			metric[name], _ = strconv.ParseFloat(v, 64)
		}
	}
	for _, name := range []string{"go_memstats_heap_alloc_bytes", "go_goroutines", "go_threads"} {
		if metric[name] == 0 {
			return nil, fmt.Errorf("the service does not tell %s", name)
		}
	}
	resident, err := meter.Resident(w.PID())
	if err != nil {
		return nil, err
	}
	h, err := w.Holdings()
	if err != nil {
		return nil, err
	}
	disk, err := onDisk(filepath.Join(w.dir, "server"))
	if err != nil {
		return nil, err
	}
	if first {
		w.logged = float64(w.log.take()) / float64(max(1, acts))
	}
	return []float64{
		metric["go_memstats_heap_alloc_bytes"], float64(resident), metric["go_goroutines"], float64(h.Descriptors), metric["go_threads"],
		float64(h.Processes), float64(h.Networks), float64(h.Groups), float64(h.Remains), float64(h.OpenNets), float64(h.Mounts), float64(h.Files), disk, w.logged,
	}, nil
}

func (w *world) settled(t *testing.T) service.Holdings {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	h, err := w.Settled(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (w *world) get(ctx context.Context, path string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.operations+path, nil)
	if err != nil {
		return "", err
	}
	r.Close = true // a kept connection would be counted
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %d %s", path, resp.StatusCode, body)
	}
	return string(body), err
}

// onDisk is what files below a directory take there.
func onDisk(dir string) (sum float64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				sum += float64(st.Blocks) * 512
			}
		} else if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	})
	return sum, err
}
