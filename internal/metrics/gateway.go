package metrics

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// MaxEnvironments bounds how many environments have series of their own. Those beyond it share the label "other".
const MaxEnvironments = 500

// PoolState is what is told of one environment's pool when somebody looks.
type PoolState struct {
	Wanted, Idle, Starting, Used int
	FailedStarts                 int           // in a row
	Retry                        time.Duration // until the next start is tried; 0 = none is held back
	Waiting                      int           // claims in the queue
	HitRate                      float64       // share of the claims that were served at once, lately
	Automatic                    bool          // the size follows the claims, between
	Min, Max                     int
	Short                        bool // the cluster has no room for more, but for
	Possible                     int  // runners, used ones included
}

// room is how many runners there is room for, as far as is known: for those that are wanted where it was not said that there is less.
func (p PoolState) room() int {
	if p.Short {
		return p.Possible
	}
	return p.Wanted + p.Used
}

// add takes another pool into one that stands for several. The hit rate of all of them is not that of any: the worst is kept.
func (p *PoolState) add(q PoolState) {
	*p = PoolState{
		Wanted: p.Wanted + q.Wanted, Idle: p.Idle + q.Idle, Starting: p.Starting + q.Starting, Used: p.Used + q.Used,
		FailedStarts: p.FailedStarts + q.FailedStarts, Retry: max(p.Retry, q.Retry), Waiting: p.Waiting + q.Waiting, HitRate: min(p.HitRate, q.HitRate),
		Automatic: p.Automatic || q.Automatic, Min: p.Min + q.Min, Max: p.Max + q.Max,
		Short: p.Short || q.Short, Possible: p.room() + q.room(),
	}
}

// poolGauges are the figures of each pool. Some are told only while they mean something.
var poolGauges = []struct {
	name, help string
	told       func(PoolState) bool // nil = always
	value      func(PoolState) float64
}{
	{"pool_wanted_runners", "Idle runners that a pool shall have.", nil, func(p PoolState) float64 { return float64(p.Wanted) }},
	{"pool_idle_runners", "Idle runners.", nil, func(p PoolState) float64 { return float64(p.Idle) }},
	{"pool_starting_runners", "Runners that are being started.", nil, func(p PoolState) float64 { return float64(p.Starting) }},
	{"pool_used_runners", "Runners that are claimed.", nil, func(p PoolState) float64 { return float64(p.Used) }},
	{"pool_failed_starts", "Starts in a row that failed; 0 once one works.", nil, func(p PoolState) float64 { return float64(p.FailedStarts) }},
	{"pool_retry_seconds", "Time until a start is tried again after failed ones; 0 = none is held back.", nil, func(p PoolState) float64 { return p.Retry.Seconds() }},
	{"pool_waiting_claims", "Claims that wait in the queue.", nil, func(p PoolState) float64 { return float64(p.Waiting) }},
	{"pool_hit_rate", "Share of the claims that were served at once, lately; 1 when there was none.", nil, func(p PoolState) float64 { return p.HitRate }},
	{"pool_min_runners", "Least size of a pool whose size follows the claims.", automatic, func(p PoolState) float64 { return float64(p.Min) }},
	{"pool_max_runners", "Largest size of a pool whose size follows the claims.", automatic, func(p PoolState) float64 { return float64(p.Max) }},
	{"pool_possible_runners", "Runners that the cluster has room for, used ones included; told only while there is not enough for those that are wanted.",
		func(p PoolState) bool { return p.Short }, func(p PoolState) float64 { return float64(p.Possible) }},
}

// automatic reports whether a pool's size follows the claims.
func automatic(p PoolState) bool { return p.Automatic }

// Gateway holds the figures of a gateway, for Prometheus. Labels take values of the code, and ids of environments in bounded number; no runner, token or
// path is one. It is safe for concurrent use.
type Gateway struct {
	registry *prometheus.Registry

	mu   sync.Mutex
	envs map[string]bool // guarded by mu; labels that are in use

	requests   *prometheus.HistogramVec
	inFlight   *prometheus.GaugeVec
	received   *prometheus.CounterVec
	sent       *prometheus.CounterVec
	denied     *prometheus.CounterVec
	claims     *prometheus.CounterVec
	claimWait  *prometheus.HistogramVec
	started    *prometheus.CounterVec
	running    *prometheus.GaugeVec
	ended      *prometheus.CounterVec
	warmed     *prometheus.CounterVec
	lasted     *prometheus.HistogramVec
	output     *prometheus.CounterVec
	starts     *prometheus.HistogramVec
	failures   *prometheus.CounterVec
	calls      *prometheus.HistogramVec
	gaps       prometheus.Counter
	lag        prometheus.Histogram
	points     *prometheus.CounterVec
	spans      *prometheus.CounterVec
	reloads    *prometheus.CounterVec
	pools      func() map[int]PoolState
	poolSeries []*prometheus.Desc // of poolGauges
}

// Buckets in seconds: of what takes milliseconds when all is well, and of what a program takes.
var (
	quick = []float64{.0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
	long  = []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600}
)

const space = "rockpool_gateway"

// NewGateway makes the figures. pools tells the state of all pools each time somebody looks, by environment.
func NewGateway(pools func() map[int]PoolState) *Gateway {
	g := &Gateway{registry: prometheus.NewRegistry(), envs: map[string]bool{}, pools: pools}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: space, Name: name, Help: help}, labels)
		g.registry.MustRegister(v)
		return v
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: space, Name: name, Help: help}, labels)
		g.registry.MustRegister(v)
		return v
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: space, Name: name, Help: help, Buckets: buckets}, labels)
		g.registry.MustRegister(v)
		return v
	}
	g.requests = histogram("request_duration_seconds", "Requests by route and status; of WebSockets the whole session.", quick, "route", "status")
	g.inFlight = gauge("requests_in_flight", "Requests under way; of the route /websocket the open sessions.", "route")
	g.received = counter("received_bytes_total", "Bytes of request bodies that were read.", "route")
	g.sent = counter("sent_bytes_total", "Bytes of the bodies of answers.", "route")
	g.denied = counter("refused_total", "Requests refused by reason: token, scope, rate, quota, executions, uploads, connections.", "reason")
	g.claims = counter("claims_total", "Claims by outcome: hit (a runner stood ready), waited, repeated (under its key), empty, quota, unknown (environment), failed.", "environment", "outcome")
	g.claimWait = histogram("claim_duration_seconds", "Time from a claim to the runner that was handed out.", quick, "environment")
	g.started = counter("executions_started_total", "Executions that were begun.", "environment")
	g.running = gauge("executions_running", "Executions under way.", "environment")
	g.ended = counter("executions_ended_total",
		"Executions by verdict: exit, timeout, out_of_memory, stopped, output_limit, left (the client), failed.", "environment", "verdict")
	g.warmed = counter("warm_executions_total", "Executions that ended by themselves in runners with a warm-up, by how their program was started: warm (it took over what waited), cold.",
		"environment", "start")
	g.lasted = histogram("execution_duration_seconds", "Time from the start of an execution to its verdict.", long, "environment")
	g.output = counter("execution_output_bytes_total", "Bytes that programs wrote, by stream.", "environment", "stream")
	g.starts = histogram("runner_start_duration_seconds", "Time from the registration of a runner to its being ready.", long, "environment")
	g.failures = counter("runners_failed_total", "Runners that ended before they were ready.", "environment")
	g.calls = histogram("cluster_call_duration_seconds", "Calls to the cluster by kind and result: ok, client_error, server_error, unreachable.", quick, "call", "result")
	lag := histogram("cluster_event_lag_seconds", "Time from a change of our own to the event that tells it.", quick)
	g.lag = lag.WithLabelValues().(prometheus.Histogram)
	g.gaps = counter("cluster_event_gaps_total", "Times that the event stream broke and everything was listed again.").WithLabelValues()
	g.points = counter("influxdb_points_total", "Points for InfluxDB by result: written, dropped (no room), expired, refused.", "result")
	g.spans = counter("tracing_spans_total", "Spans by result: sent, dropped (no room), refused (by the collector).", "result")
	g.reloads = counter("reloads_total", "Reloads of certificates and tokens by result: ok, failed.", "result")
	for _, p := range poolGauges {
		g.poolSeries = append(g.poolSeries, prometheus.NewDesc(space+"_"+p.name, p.help, []string{"environment"}, nil))
	}
	for _, reason := range []string{"token", "scope", "rate", "quota", "executions", "uploads", "connections"} {
		g.denied.WithLabelValues(reason)
	}
	for _, result := range []string{"written", "dropped", "expired", "refused"} {
		g.points.WithLabelValues(result)
	}
	for _, result := range []string{"sent", "dropped", "refused"} {
		g.spans.WithLabelValues(result)
	}
	for _, result := range []string{"ok", "failed"} {
		g.reloads.WithLabelValues(result)
	}
	g.registry.MustRegister(poolCollector{g}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return g
}

// Lead adds what several gateways have: which of them keeps the pools, since when, and how many others live. It is called once.
func (g *Gateway) Lead(lead func() (leads bool, since time.Time, others int)) {
	for name, f := range map[string]struct {
		help  string
		value func() float64
	}{
		"leads": {"1 on the one of several gateways that keeps the pools, 0 on the others.", func() float64 {
			if leads, _, _ := lead(); leads {
				return 1
			}
			return 0
		}},
		"leads_since_timestamp_seconds": {"When this gateway came to keep the pools, in seconds since 1970; 0 while it does not.", func() float64 {
			if leads, since, _ := lead(); leads {
				return float64(since.UnixMilli()) / 1000
			}
			return 0
		}},
		"other_gateways": {"Other gateways that live, as this one knows.", func() float64 { _, _, others := lead(); return float64(others) }},
	} {
		g.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: space, Name: name, Help: f.help}, f.value))
	}
}

// environment is the label of one. It stays until the process ends, so that counters never go back.
func (g *Gateway) environment(id int) string {
	s := strconv.Itoa(id)
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.envs[s] {
		if len(g.envs) >= MaxEnvironments {
			return "other"
		}
		g.envs[s] = true
	}
	return s
}

// RequestBegun counts a request of a route as under way.
func (g *Gateway) RequestBegun(route string) { g.inFlight.WithLabelValues(route).Inc() }

// RequestEnded takes in a request that was begun. Status 0 = it was broken off before it was answered.
func (g *Gateway) RequestEnded(route string, status int, d time.Duration, received, sent int64) {
	g.inFlight.WithLabelValues(route).Dec()
	g.requests.WithLabelValues(route, strconv.Itoa(status)).Observe(d.Seconds())
	g.received.WithLabelValues(route).Add(float64(received))
	g.sent.WithLabelValues(route).Add(float64(sent))
}

// Refused counts a refusal by its reason.
func (g *Gateway) Refused(reason string) { g.denied.WithLabelValues(reason).Inc() }

// Claimed takes in a claim. The environment of an unknown one is a stranger's word and no label.
func (g *Gateway) Claimed(environment int, outcome string, d time.Duration) {
	label := "none"
	if outcome != "unknown" {
		label = g.environment(environment)
	}
	g.claims.WithLabelValues(label, outcome).Inc()
	if outcome == "hit" || outcome == "waited" {
		g.claimWait.WithLabelValues(label).Observe(d.Seconds())
	}
}

// ExecutionBegun counts an execution as running, until the function it returns is told how it ended, how its program was started where
// its runner is kept warm ("" = it is not), and what it wrote, in bytes.
func (g *Gateway) ExecutionBegun(environment int) (ended func(verdict, start string, stdout, stderr int64)) {
	label, begun := g.environment(environment), time.Now()
	g.started.WithLabelValues(label).Inc()
	g.running.WithLabelValues(label).Inc()
	return func(verdict, start string, stdout, stderr int64) {
		g.running.WithLabelValues(label).Dec()
		g.ended.WithLabelValues(label, verdict).Inc()
		if start != "" {
			g.warmed.WithLabelValues(label, start).Inc()
		}
		g.lasted.WithLabelValues(label).Observe(time.Since(begun).Seconds())
		g.output.WithLabelValues(label, "stdout").Add(float64(stdout))
		g.output.WithLabelValues(label, "stderr").Add(float64(stderr))
	}
}

// RunnerStarted takes in how long a runner took from its registration to being ready.
func (g *Gateway) RunnerStarted(environment int, d time.Duration) {
	g.starts.WithLabelValues(g.environment(environment)).Observe(d.Seconds())
}

// RunnerFailed counts a runner that ended before it was ready.
func (g *Gateway) RunnerFailed(environment int) {
	g.failures.WithLabelValues(g.environment(environment)).Inc()
}

// ClusterCall takes in a call to the cluster.
func (g *Gateway) ClusterCall(call, result string, d time.Duration) {
	g.calls.WithLabelValues(call, result).Observe(d.Seconds())
}

// EventGap counts a break of the event stream.
func (g *Gateway) EventGap() { g.gaps.Inc() }

// EventLag takes in how long a change took to come back as an event.
func (g *Gateway) EventLag(d time.Duration) { g.lag.Observe(max(d, 0).Seconds()) }

// Points counts points for InfluxDB by what became of them.
func (g *Gateway) Points(result string, n int) { g.points.WithLabelValues(result).Add(float64(n)) }

// Spans counts spans of timelines by what became of them.
func (g *Gateway) Spans(result string, n int) { g.spans.WithLabelValues(result).Add(float64(n)) }

// Reloaded counts a reload.
func (g *Gateway) Reloaded(err error) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	g.reloads.WithLabelValues(result).Inc()
}

// Handler serves the figures in the text format of Prometheus, or another one that the request asks for.
func (g *Gateway) Handler() http.Handler {
	return promhttp.HandlerFor(g.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4})
}

// poolCollector asks for the pools when somebody looks.
type poolCollector struct{ g *Gateway }

func (c poolCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.g.poolSeries {
		ch <- d
	}
}

func (c poolCollector) Collect(ch chan<- prometheus.Metric) {
	other, more := PoolState{HitRate: 1}, false
	send := func(label string, p PoolState) {
		for i, gauge := range poolGauges {
			if gauge.told == nil || gauge.told(p) {
				ch <- prometheus.MustNewConstMetric(c.g.poolSeries[i], prometheus.GaugeValue, gauge.value(p), label)
			}
		}
	}
	for id, p := range c.g.pools() {
		label := c.g.environment(id)
		if label != "other" {
			send(label, p)
			continue
		}
		more = true
		other.add(p)
	}
	if more {
		send("other", other)
	}
}
