// Package metrics is a small registry of figures: counters, gauges and samples by dotted names, such as nomad.nomad.plan.evaluate. It is the one home of
// Prometheus' client library, and takes up what libraries report by go-metrics.
//
// What measures needs no more than a function of a name and a value. Names have no labels: a label that a library gives is dropped, and its values are
// added up, so that the number of series depends on the code alone; beyond [MaxSeries] nothing new is kept.
package metrics

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// MaxSeries bounds how many names are kept.
const MaxSeries = 2000

// Interval is what a summary tells of counters and samples: the last whole one.
const Interval = 10 * time.Second

type kind uint8

const (
	counter kind = iota
	gauge
	sample
)

// window adds up what came in one interval.
type window struct {
	count           int
	sum, squares    float64
	lowest, highest float64
}

func (w *window) add(v float64) {
	if w.count == 0 || v < w.lowest {
		w.lowest = v
	}
	if w.count == 0 || v > w.highest {
		w.highest = v
	}
	w.count++
	w.sum += v
	w.squares += v * v
}

type series struct {
	kind      kind
	value     float64 // of a gauge; the total of a counter
	now, last window
	epoch     int64              // number of the interval that now belongs to
	quantiles prometheus.Summary // of a sample
}

// turn puts a finished interval aside.
func (s *series) turn(epoch int64) {
	switch {
	case epoch == s.epoch:
		return
	case epoch == s.epoch+1:
		s.last = s.now
	default:
		s.last = window{}
	}
	s.now, s.epoch = window{}, epoch
}

// Registry holds all figures. It is safe for concurrent use.
type Registry struct {
	clock   func() time.Time
	mu      sync.Mutex
	series  map[string]*series                // guarded by mu
	readers []func(set func(string, float64)) // guarded by mu
	dropped float64                           // guarded by mu; values whose name found no place
}

// New makes a registry. now tells the time; nil = the machine's.
func New(now func() time.Time) *Registry {
	if now == nil {
		now = time.Now
	}
	r := &Registry{clock: now, series: map[string]*series{}}
	r.Set("rockpool.metrics.dropped", 0) // it always has its place
	return r
}

// Count adds n to a counter.
func (r *Registry) Count(name string, n float64) { r.record(name, counter, n) }

// Set sets a gauge.
func (r *Registry) Set(name string, v float64) { r.record(name, gauge, v) }

// Sample takes one value, of a duration in milliseconds.
func (r *Registry) Sample(name string, v float64) { r.record(name, sample, v) }

// Since takes the time since start as a sample.
func (r *Registry) Since(name string, start time.Time) {
	r.Sample(name, float64(r.clock().Sub(start))/float64(time.Millisecond))
}

// Read has f set gauges each time somebody looks.
func (r *Registry) Read(f func(set func(name string, v float64))) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.readers = append(r.readers, f)
}

func (r *Registry) record(name string, k kind, v float64) {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return // such as the mean of nothing
	}
	epoch := r.clock().UnixNano() / int64(Interval)
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.series[name]
	if s == nil {
		if len(r.series) >= MaxSeries {
			r.dropped++
			return
		}
		s = &series{kind: k, epoch: epoch}
		if k == sample {
			s.quantiles = prometheus.NewSummary(prometheus.SummaryOpts{
				Name: prometheusName(name), Help: help(name), MaxAge: time.Minute, Objectives: map[float64]float64{0.5: 0.05, 0.9: 0.01, 0.99: 0.001},
			})
		}
		r.series[name] = s
	}
	if s.kind != k {
		r.dropped++
		return
	}
	s.turn(epoch)
	switch k {
	case gauge:
		s.value = v
	case counter:
		s.value += v
		s.now.add(v)
	case sample:
		s.now.add(v)
		s.quantiles.Observe(v)
	}
}

// refresh asks the readers.
func (r *Registry) refresh() {
	r.mu.Lock()
	readers := slices.Clone(r.readers)
	dropped := r.dropped
	r.mu.Unlock()
	for _, f := range readers {
		f(r.Set)
	}
	r.Set("rockpool.metrics.dropped", dropped)
}

// Summary is all figures in the form of Nomad's GET /v1/metrics.
type Summary struct {
	Timestamp string
	Gauges    []Gauge
	Points    []struct{}
	Counters  []Aggregate
	Samples   []Aggregate
}

// Gauge is a value as it is now.
type Gauge struct {
	Name   string
	Value  float64
	Labels map[string]string
}

// Aggregate is what came in the last whole interval.
type Aggregate struct {
	Name   string
	Count  int
	Rate   float64 // sum per second
	Sum    float64
	Min    float64
	Max    float64
	Mean   float64
	Stddev float64
	Labels map[string]string
}

// Summary sums up.
func (r *Registry) Summary() Summary {
	r.refresh()
	now := r.clock()
	epoch := now.UnixNano() / int64(Interval)
	out := Summary{
		Timestamp: time.Unix(0, epoch*int64(Interval)).Add(-Interval).UTC().Format("2006-01-02 15:04:05 -0700 MST"),
		Gauges:    []Gauge{}, Points: []struct{}{}, Counters: []Aggregate{}, Samples: []Aggregate{},
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, s := range r.series {
		s.turn(epoch)
		switch {
		case s.kind == gauge:
			out.Gauges = append(out.Gauges, Gauge{name, s.value, map[string]string{}})
		case s.last.count == 0:
		case s.kind == counter:
			out.Counters = append(out.Counters, aggregate(name, s.last))
		default:
			out.Samples = append(out.Samples, aggregate(name, s.last))
		}
	}
	slices.SortFunc(out.Gauges, func(a, b Gauge) int { return cmp.Compare(a.Name, b.Name) })
	byName := func(a, b Aggregate) int { return cmp.Compare(a.Name, b.Name) }
	slices.SortFunc(out.Counters, byName)
	slices.SortFunc(out.Samples, byName)
	return out
}

func aggregate(name string, w window) Aggregate {
	n := float64(w.count)
	a := Aggregate{
		Name: name, Count: w.count, Sum: w.sum, Min: w.lowest, Max: w.highest, Mean: w.sum / n, Rate: w.sum / Interval.Seconds(), Labels: map[string]string{},
	}
	if w.count > 1 {
		a.Stddev = math.Sqrt(max(0, (w.squares-w.sum*w.sum/n)/(n-1)))
	}
	return a
}

func help(name string) string { return strings.ReplaceAll(name, "_", " ") }
