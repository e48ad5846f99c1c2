package gateway

import (
	"context"
	"encoding/json"
	"strconv"
	"sync"
	"time"

	"rockpool/internal/endpoint"
	"rockpool/internal/environment"
	"rockpool/internal/logging"
	"rockpool/internal/metrics"
	"rockpool/internal/metrics/influx"
	"rockpool/internal/nomad"
	"rockpool/internal/runner"
)

// telemetry turns what happens into figures for Prometheus, points for InfluxDB and the access log. Nothing depends on it.
type telemetry struct {
	figures *metrics.Gateway
	points  *influx.Writer // nil = none
	agent   string         // of the gateway's requests to itself
	log     logging.Logger

	mu     sync.Mutex
	census *census                 // guarded by mu
	envs   map[environment.ID]bool // guarded by mu; those that are defined
	jobs   map[string]bool         // guarded by mu; ids of jobs that are tracked for points, used with points alone
	allocs map[string]bool         // guarded by mu; the same of allocations
}

func (t *telemetry) point(measurement string, tags influx.Tags, fields influx.Fields, now time.Time) {
	if t.points != nil {
		t.points.Point("poseidon_"+measurement, tags, fields, now)
	}
}

// Begin is told of a request that begins.
func (t *telemetry) Begin(route string) { t.figures.RequestBegun(route) }

// Observe is told of a request that has ended.
func (t *telemetry) Observe(o endpoint.Observation) {
	now := time.Now()
	t.figures.RequestEnded(o.Route, o.Status, o.Duration, o.Received, o.Sent)
	t.access(o)
	tags := influx.Tags{"status": strconv.Itoa(o.Status), "runner_id": o.Notes["runner_id"], "environment_id": o.Notes["environment_id"]}
	fields := influx.Fields{"duration": o.Duration.Nanoseconds()}
	if o.Route == "/files" {
		fields["request_size"] = o.Received
	}
	t.point(o.Route, tags, fields, now)
	if o.Route == "/files/raw" && o.Status == 200 {
		delete(tags, "status")
		expected := o.Length
		if expected < 0 {
			expected = o.Sent // a file whose size nobody knew
		}
		t.point("file_download", tags, influx.Fields{"expected_length": expected, "actual_length": o.Sent}, now)
	}
}

// access writes the access log.
func (t *telemetry) access(o endpoint.Observation) {
	own := o.Agent == t.agent
	if own && !logging.Traces(t.log) || !logging.Debugs(t.log) {
		return
	}
	fields := logging.Fields{
		"code": o.Status, "method": o.Method, "path": o.Path, "duration": o.Duration.String(), "user_agent": o.Agent, "request_id": o.ID,
	}
	if id := o.Notes["runner_id"]; id != "" {
		fields["runner_id"] = id
		fields["environment_id"], _ = strconv.Atoi(o.Notes["environment_id"]) // it was written from a number
	}
	if o.Caller.Name != "" {
		fields["token"] = o.Caller.Name // its name
	}
	entry := t.log.WithFields(fields)
	if own {
		logging.Trace(entry, "handled")
		return
	}
	entry.Debug("handled")
}

// Refused is told of a request that was refused, and why.
func (t *telemetry) Refused(reason string) { t.figures.Refused(reason) }

// Claimed is told what became of a claim.
func (t *telemetry) Claimed(env int, outcome string, took time.Duration) {
	t.figures.Claimed(env, outcome, took)
}

// ExecutionStored is told of an execution that waits for its WebSocket.
func (t *telemetry) ExecutionStored(env int, run, execution string) {
	t.execution(env, run, execution, "creation", 1)
}

// ExecutionBegun is told of an execution that begins.
func (t *telemetry) ExecutionBegun(env int, run, execution string) func(verdict, start string, stdout, stderr int64) {
	t.execution(env, run, execution, "deletion", -1)
	return t.figures.ExecutionBegun(env)
}

func (t *telemetry) execution(env int, run, execution, event string, by int) {
	t.mu.Lock()
	count := max(by, 0)
	if r := t.census.runners[run]; r != nil {
		r.waiting = max(r.waiting+by, 0)
		count = r.waiting
	}
	t.mu.Unlock()
	t.point("nomad_executions", influx.Tags{"id": execution, "event_type": event, "environment_id": strconv.Itoa(env), "runner_id": run},
		influx.Fields{"count": count}, time.Now())
}

// ClusterCall is told of a call to the cluster.
func (t *telemetry) ClusterCall(call, result string, d time.Duration) {
	t.figures.ClusterCall(call, result, d)
}

// EventGap is told that the event stream broke.
func (t *telemetry) EventGap() { t.figures.EventGap() }

// EventLag is told how long a change took to come back.
func (t *telemetry) EventLag(d time.Duration) { t.figures.EventLag(d) }

// maxPayload bounds an event in a point: InfluxDB takes strings up to 64 KiB.
const maxPayload = 60 << 10

// maxTracked bounds how many jobs and allocations are counted for points.
const maxTracked = 100_000

// Event is told of each event of the cluster.
func (t *telemetry) Event(topic, kind, key string, payload []byte) {
	if t.points == nil {
		return
	}
	now := time.Now()
	if len(payload) <= maxPayload {
		t.point("nomad_events", influx.Tags{"topic": topic, "type": kind, "key": key, "timestamp": strconv.FormatInt(now.Unix(), 10)},
			influx.Fields{"payload": string(payload)}, now)
	}
	switch topic {
	case "Job":
		gone := kind == "JobDeregistered" || kind == "JobBatchDeregistered"
		if count, changed := t.track(t.jobs, key, gone); changed {
			t.point("nomad_jobs", influx.Tags{"id": key, "event_type": eventType(!gone)}, influx.Fields{"count": count}, now)
		}
	case "Allocation":
		var p struct {
			Allocation struct{ ID, JobID, NodeID, ClientStatus string }
		}
		if json.Unmarshal(payload, &p) != nil || p.Allocation.ID == "" {
			return
		}
		a := p.Allocation
		gone := a.ClientStatus == "complete" || a.ClientStatus == "failed" || a.ClientStatus == "lost"
		if count, changed := t.track(t.allocs, a.ID, gone); changed {
			tags := influx.Tags{"id": a.ID, "event_type": eventType(!gone), "job_id": a.JobID, "client_status": a.ClientStatus, "nomad_agent": a.NodeID}
			t.point("nomad_allocations", tags, influx.Fields{"count": count}, now)
			t.point("nomad_jobs", influx.Tags{"id": a.JobID, "event_type": eventType(!gone), "allocation_id": a.ID}, influx.Fields{"count": count}, now)
		}
	}
}

func eventType(began bool) string {
	if began {
		return "creation"
	}
	return "deletion"
}

// track counts ids that come and go.
func (t *telemetry) track(set map[string]bool, id string, gone bool) (count int, changed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case gone && set[id]:
		delete(set, id)
	case !gone && !set[id] && len(set) < maxTracked:
		set[id] = true
	default:
		return len(set), false
	}
	return len(set), true
}

// told passes on what a change of the census says.
func (t *telemetry) told(changes []change) {
	now := time.Now()
	for _, c := range changes {
		if c.failed {
			t.figures.RunnerFailed(int(c.env))
			continue
		}
		name, env := "nomad_idle_runners", strconv.Itoa(int(c.env))
		if c.stand == used {
			name = "used_runners"
		}
		t.point(name, influx.Tags{"id": c.id, "event_type": eventType(c.began), "environment_id": env}, influx.Fields{"count": c.count}, now)
		if c.startup > 0 {
			t.figures.RunnerStarted(int(c.env), c.startup)
			t.point("nomad_idle_runners", influx.Tags{"environment_id": env, "runner_id": c.id}, influx.Fields{"startup_duration": c.startup.Nanoseconds()}, now)
		}
	}
}

// counting changes the census.
func (t *telemetry) counting(f func(*census) []change) {
	t.mu.Lock()
	changes := f(t.census)
	t.mu.Unlock()
	t.told(changes)
}

// periodic tells how many there are, each minute, and of used runners each hour.
func (t *telemetry) periodic(ctx context.Context) error {
	minute := time.NewTicker(time.Minute)
	defer minute.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case now := <-minute.C:
			t.count(now, n%60 == 0)
		}
	}
}

func (t *telemetry) count(now time.Time, hourly bool) {
	type waiting struct {
		run   string
		env   environment.ID
		count int
	}
	idles, usedCount, executions := map[environment.ID]int{}, 0, []waiting{}
	t.mu.Lock()
	for id := range t.envs {
		idles[id] = 0
	}
	for id, r := range t.census.runners {
		switch r.stand {
		case idle:
			idles[r.env]++
		case used:
			usedCount++
			executions = append(executions, waiting{id, r.env, r.waiting})
		}
	}
	t.mu.Unlock()
	for env, n := range idles {
		t.point("nomad_idle_runners", influx.Tags{"event_type": "periodically", "environment_id": strconv.Itoa(int(env))}, influx.Fields{"count": n}, now)
	}
	for _, e := range executions {
		t.point("nomad_executions", influx.Tags{"event_type": "periodically", "environment_id": strconv.Itoa(int(e.env)), "runner_id": e.run},
			influx.Fields{"count": e.count}, now)
	}
	if hourly {
		t.point("used_runners", influx.Tags{"event_type": "periodically"}, influx.Fields{"count": usedCount}, now)
	}
}

// watchedCluster lets telemetry see what the cluster shows.
type watchedCluster struct {
	*nomad.Client
	t *telemetry
}

// Watch feeds f, and the census on the way.
func (c watchedCluster) Watch(ctx context.Context, f runner.Feed) error {
	return c.Client.Watch(ctx, watchedFeed{f, c.t})
}

// CreateRunner notes when a runner's start begins.
func (c watchedCluster) CreateRunner(ctx context.Context, e environment.Environment, id string, pull bool) (uint64, error) {
	c.t.counting(func(s *census) []change { s.created(id, e.ID, time.Now()); return nil })
	index, err := c.Client.CreateRunner(ctx, e, id, pull)
	if err != nil {
		c.t.counting(func(s *census) []change { delete(s.runners, id); return nil }) // it is tried again
	}
	return index, err
}

// ClaimRunner notes a claim before its event comes.
func (c watchedCluster) ClaimRunner(ctx context.Context, id string, m runner.Mark) error {
	err := c.Client.ClaimRunner(ctx, id, m)
	if err == nil {
		c.t.counting(func(s *census) []change { return s.claimed(id, time.Now()) })
	}
	return err
}

// DestroyRunner notes an end before its event comes.
func (c watchedCluster) DestroyRunner(ctx context.Context, id string) error {
	err := c.Client.DestroyRunner(ctx, id)
	if err == nil {
		c.t.counting(func(s *census) []change { return s.gone(id) })
	}
	return err
}

type watchedFeed struct {
	runner.Feed
	t *telemetry
}

// All takes in a full listing.
func (f watchedFeed) All(list []runner.Seen, index uint64) {
	f.t.counting(func(s *census) []change { return s.all(list, time.Now()) })
	f.Feed.All(list, index)
}

// Changed takes in one change.
func (f watchedFeed) Changed(seen runner.Seen) {
	f.t.counting(func(s *census) []change { return s.see(seen, time.Now()) })
	f.Feed.Changed(seen)
}

// Gone takes in that a runner is no more.
func (f watchedFeed) Gone(id string) {
	f.t.counting(func(s *census) []change { return s.gone(id) })
	f.Feed.Gone(id)
}

// watchedPools lets telemetry see which environments there are.
type watchedPools struct {
	*runner.Manager
	t *telemetry
}

// Want notes a definition.
func (p watchedPools) Want(e environment.Environment) {
	p.Manager.Want(e)
	p.t.mu.Lock()
	known := p.t.envs[e.ID]
	p.t.envs[e.ID] = true
	count := len(p.t.envs)
	p.t.mu.Unlock()
	now, id := time.Now(), strconv.Itoa(int(e.ID))
	p.t.point("poolsize", influx.Tags{"environment_id": id}, influx.Fields{"prewarming_pool_size": int64(e.PoolSize)}, now)
	if known {
		return
	}
	p.t.point("environments", influx.Tags{
		"id": id, "event_type": "creation", "image": e.Image, "cpu_limit": strconv.FormatUint(uint64(e.CPULimit), 10),
		"memory_limit": strconv.FormatUint(uint64(e.MemoryLimit), 10), "network_access": strconv.FormatBool(e.NetworkAccess),
	}, influx.Fields{"count": count}, now)
}

// Drop notes the end of a definition.
func (p watchedPools) Drop(ctx context.Context, id environment.ID) error {
	p.t.mu.Lock()
	delete(p.t.envs, id)
	count := len(p.t.envs)
	p.t.mu.Unlock()
	p.t.point("environments", influx.Tags{"id": strconv.Itoa(int(id)), "event_type": "deletion"}, influx.Fields{"count": count}, time.Now())
	return p.Manager.Drop(ctx, id)
}

// newTelemetry makes a telemetry; points may be nil.
func newTelemetry(pools func() map[int]metrics.PoolState, agent string, log logging.Logger) *telemetry {
	return &telemetry{
		figures: metrics.NewGateway(pools), agent: agent, log: log,
		census: newCensus(), envs: map[environment.ID]bool{}, jobs: map[string]bool{}, allocs: map[string]bool{},
	}
}
