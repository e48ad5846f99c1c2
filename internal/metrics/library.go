package metrics

import (
	"strings"

	gometrics "github.com/hashicorp/go-metrics"
)

// sink takes what libraries report by go-metrics. Labels are dropped: see the package's documentation.
type sink struct{ r *Registry }

func (s sink) SetGauge(key []string, v float32) { s.r.Set(strings.Join(key, "."), float64(v)) }

func (s sink) SetGaugeWithLabels(key []string, v float32, _ []gometrics.Label) { s.SetGauge(key, v) }

func (s sink) SetPrecisionGauge(key []string, v float64) { s.r.Set(strings.Join(key, "."), v) }

func (s sink) SetPrecisionGaugeWithLabels(key []string, v float64, _ []gometrics.Label) {
	s.SetPrecisionGauge(key, v)
}

func (s sink) EmitKey([]string, float32) {}

func (s sink) IncrCounter(key []string, v float32) { s.r.Count(strings.Join(key, "."), float64(v)) }

func (s sink) IncrCounterWithLabels(key []string, v float32, _ []gometrics.Label) {
	s.IncrCounter(key, v)
}

func (s sink) AddSample(key []string, v float32) { s.r.Sample(strings.Join(key, "."), float64(v)) }

func (s sink) AddSampleWithLabels(key []string, v float32, _ []gometrics.Label) { s.AddSample(key, v) }

// Adopt makes r the place that the process's libraries report to, under names that begin with nomad. They know one place per process: the last call
// wins.
func (r *Registry) Adopt() error {
	conf := gometrics.DefaultConfig("nomad")
	conf.EnableHostname, conf.EnableRuntimeMetrics = false, false // hosts are told apart by who asks them
	_, err := gometrics.NewGlobal(conf, sink{r})
	return err
}
