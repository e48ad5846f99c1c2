package metrics

import (
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// prometheusName is a dotted name as Prometheus allows it.
func prometheusName(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '_'
	}, name)
}

// exposition is the registry as Prometheus collects it.
type exposition struct{ r *Registry }

// Describe tells nothing: series come as they are first measured.
func (e exposition) Describe(chan<- *prometheus.Desc) {}

// Collect sends everything.
func (e exposition) Collect(ch chan<- prometheus.Metric) {
	e.r.refresh()
	e.r.mu.Lock()
	all := make([]prometheus.Metric, 0, len(e.r.series))
	for name, s := range e.r.series {
		switch s.kind {
		case sample:
			all = append(all, s.quantiles)
		default:
			t := prometheus.GaugeValue
			if s.kind == counter {
				t = prometheus.CounterValue
			}
			if m, err := prometheus.NewConstMetric(prometheus.NewDesc(prometheusName(name), help(name), nil, nil), t, s.value); err == nil {
				all = append(all, m)
			}
		}
	}
	e.r.mu.Unlock()
	for _, m := range all { // not while the lock is held: the reader of ch may be slow
		ch <- m
	}
}

// Prometheus serves the figures in the text format of Prometheus, or another one that the request asks for.
func (r *Registry) Prometheus() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(exposition{r})
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4})
}
