package report

import (
	"fmt"
	"strings"
	"time"

	"rockpool/tests/load"
)

// Of says which part of a measurement a bound is for.
type Of string

// What is bounded.
const (
	P50   Of = "p50"
	P99   Of = "p99"
	Rate  Of = "rate"  // a second; it has to be at least its bound
	Value Of = "value" // in the figure's unit; where higher is better it has to be at least its bound
)

// Bound is a budget of one part of a measurement.
type Bound struct {
	Of    Of
	Limit float64 // nanoseconds of P50 and P99
}

// Within bounds the p50.
func Within(d time.Duration) Bound { return Bound{P50, float64(d)} }

// Tail bounds the p99.
func Tail(d time.Duration) Bound { return Bound{P99, float64(d)} }

// AtLeast is a rate that has to be reached.
func AtLeast(rate float64) Bound { return Bound{Rate, rate} }

// Limit bounds a value: from above, or from below where higher is better.
func Limit(value float64) Bound { return Bound{Value, value} }

// Figure is one row of the table: what is measured, and its budget.
type Figure struct {
	Key    string // for machines: one word, as benchmarks are called
	Name   string // for people
	Unit   string // of values, such as MB; short, without blanks
	Higher bool   // a higher value is better
	Bounds []Bound
}

// Measurement is what a run found of a figure.
type Measurement struct {
	Begin  time.Time     // of the load
	Calls  []load.Sample // in the order of their ends
	P50    time.Duration // with P99 instead of Calls, where somebody else counted
	P99    time.Duration
	Count  int     // of Calls, where somebody else counted
	Rate   float64 // a second; 0 = not a rate
	Value  float64 // in the figure's unit, where that has one
	Note   string  // what else is worth telling
	Others float64 // cores that others used meanwhile; negative = not known
}

// percentile is one of the calls'.
func (m *Measurement) percentile(p int) time.Duration {
	switch {
	case len(m.Calls) > 0:
		return load.Percentile(load.Times(m.Calls), p)
	case p == 50:
		return m.P50
	case p == 99:
		return m.P99
	}
	return 0
}

func (m *Measurement) part(of Of) float64 {
	switch of {
	case P50:
		return float64(m.percentile(50))
	case P99:
		return float64(m.percentile(99))
	case Rate:
		return m.Rate
	}
	return m.Value
}

// Held says whether a measurement keeps all bounds. What was not measured holds nothing: a part that is 0 although it is bounded is missing.
func (f *Figure) Held(m *Measurement) bool {
	if m == nil {
		return false
	}
	for _, b := range f.Bounds {
		v, least := m.part(b.Of), b.Of == Rate || b.Of == Value && f.Higher
		if least && v < b.Limit || !least && v > b.Limit || b.Of != Value && v == 0 {
			return false
		}
	}
	return true
}

// budget is the bounds for people.
func (f *Figure) budget() string {
	var parts []string
	for _, b := range f.Bounds {
		switch b.Of {
		case P50, P99:
			parts = append(parts, fmt.Sprintf("%s %s", b.Of, span(time.Duration(b.Limit))))
		case Rate:
			parts = append(parts, fmt.Sprintf("≥ %g/s", b.Limit))
		case Value:
			sign := "≤"
			if f.Higher {
				sign = "≥"
			}
			parts = append(parts, fmt.Sprintf("%s %g %s", sign, b.Limit, f.Unit))
		}
	}
	return strings.Join(parts, ", ")
}

// span is a duration with three digits that count.
func span(d time.Duration) string {
	switch ms := float64(d) / float64(time.Millisecond); {
	case d == 0:
		return ""
	case d < 100*time.Microsecond:
		return fmt.Sprintf("%.3f ms", ms)
	case d < 10*time.Second:
		return strings.TrimSuffix(fmt.Sprintf("%.2f", ms), ".00") + " ms"
	default:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
}
