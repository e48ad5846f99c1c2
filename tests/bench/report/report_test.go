package report_test

import (
	"strings"
	"testing"
	"time"

	"rockpool/tests/bench/report"
	"rockpool/tests/load"
)

var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// calls are n of 1 ms to n ms, one each 10 ms.
func calls(n int) (list []load.Sample) {
	for i := range n {
		list = append(list, load.Sample{End: begin.Add(time.Duration(i+1) * 10 * time.Millisecond), Took: time.Duration(i+1) * time.Millisecond})
	}
	return list
}

func TestBudgets(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name   string
		figure report.Figure
		found  *report.Measurement
		want   bool
	}{
		{"what was not measured is not held", report.Figure{}, nil, false},
		{"nothing is asked", report.Figure{}, &report.Measurement{}, true},
		{"a p50 within", report.Figure{Bounds: []report.Bound{report.Within(50 * ms)}}, &report.Measurement{Calls: calls(100)}, true},
		{"a p50 beyond", report.Figure{Bounds: []report.Bound{report.Within(49 * ms)}}, &report.Measurement{Calls: calls(100)}, false},
		{"a good p50 with a bad p99", report.Figure{Bounds: []report.Bound{report.Within(50 * ms), report.Tail(98 * ms)}}, &report.Measurement{Calls: calls(100)}, false},
		{"a p50 without calls", report.Figure{Bounds: []report.Bound{report.Within(50 * ms)}}, &report.Measurement{}, false},
		{"a p50 that somebody else counted", report.Figure{Bounds: []report.Bound{report.Within(50 * ms)}}, &report.Measurement{P50: 50 * ms}, true},
		{"a rate that is reached", report.Figure{Bounds: []report.Bound{report.AtLeast(60)}}, &report.Measurement{Rate: 60}, true},
		{"a rate that is not", report.Figure{Bounds: []report.Bound{report.AtLeast(60)}}, &report.Measurement{Rate: 59.9}, false},
		{"a value of nothing", report.Figure{Unit: "MB", Bounds: []report.Bound{report.Limit(2)}}, &report.Measurement{Value: 0}, true},
		{"a value beyond", report.Figure{Unit: "MB", Bounds: []report.Bound{report.Limit(2)}}, &report.Measurement{Value: 2.1}, false},
		{"a higher value is better", report.Figure{Unit: "MB/s", Higher: true, Bounds: []report.Bound{report.Limit(200)}}, &report.Measurement{Value: 300}, true},
		{"and a lower one worse", report.Figure{Unit: "MB/s", Higher: true, Bounds: []report.Bound{report.Limit(200)}}, &report.Measurement{Value: 199}, false},
	} {
		if got := c.figure.Held(c.found); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func table() *report.Table {
	return &report.Table{
		Figures: []report.Figure{
			{Key: "Claim", Name: "claim", Bounds: []report.Bound{report.Within(10 * time.Millisecond), report.Tail(200 * time.Millisecond)}},
			{Key: "Echo", Name: "echo", Bounds: []report.Bound{report.AtLeast(90)}},
			{Key: "Gone", Name: "gone", Bounds: []report.Bound{report.Limit(1)}, Unit: "KB"},
			{Key: "Other", Name: "other"},
			{Key: "Idle", Name: "idle", Unit: "KB", Bounds: []report.Bound{report.Limit(100)}},
		},
		Found: map[string]*report.Measurement{
			"Claim": {Begin: begin, Calls: calls(100), Others: 0.5},
			"Echo":  {Begin: begin, Calls: calls(100), Rate: 100, Others: -1},
			"Idle":  {Value: 80, Note: "of 1000", Others: 0},
		},
		Missing: map[string]string{"Gone": "no toolchain"},
	}
}

func TestMarkdown(t *testing.T) {
	var b strings.Builder
	if err := table().Markdown(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| claim | p50 10 ms, p99 200 ms | 50 ms | 90 ms | 99 ms |  |  | 100 | 0.50 | **no** |\n",
		"| echo | ≥ 90/s | 50 ms | 90 ms | 99 ms | 100.0/s |  | 100 |  | yes |\n",
		"| gone | ≤ 1 KB | | | | | | | | not measured: no toolchain |\n",
		"| idle | ≤ 100 KB |  |  |  |  | 80 KB; of 1000 |  | 0.00 | yes |\n",
		"Held: 2 of 4 budgets.",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "other ") {
		t.Error("a row without budget and measurement is there")
	}
}

// What compares runs needs several lines of a figure, in the units that it knows.
func TestTheBenchmarkFormat(t *testing.T) {
	var b strings.Builder
	if err := table().Format(&b, [][2]string{{"cpu", "One\n Two"}, {"date", "today"}}); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	if n := strings.Count(text, "BenchmarkClaim "); n != 10 {
		t.Errorf("%d lines of the first figure", n)
	}
	for _, want := range []string{
		"cpu: One Two\n# date: today\n", "Unit /s better=higher\n",
		"BenchmarkClaim 10 5000000 p50-ns 9000000 p90-ns 10000000 p99-ns\n",
		"BenchmarkEcho 10 15000000 p50-ns 19000000 p90-ns 20000000 p99-ns 100 /s\n",
		"BenchmarkIdle 1 80 KB\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
}
