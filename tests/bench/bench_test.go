package main

import (
	"testing"
	"time"

	"rockpool/tests/bench/report"
)

func TestTheCatalogueIsSound(t *testing.T) {
	keys := map[string]bool{}
	for _, f := range catalogue {
		if f.Key == "" || f.Name == "" || keys[f.Key] {
			t.Errorf("%+v has no key, no name or the key of another", f)
		}
		keys[f.Key] = true
		for _, b := range f.Bounds {
			if b.Limit <= 0 || b.Of == report.Value && f.Unit == "" {
				t.Errorf("%s: the bound %+v bounds nothing", f.Key, b)
			}
		}
	}
	names, by := map[string]bool{}, map[string]string{}
	for _, s := range scenarios {
		if names[s.name] || s.run == nil {
			t.Errorf("scenario %q is there twice, or does nothing", s.name)
		}
		names[s.name] = true
		for _, key := range s.figures {
			if by[key] != "" || !keys[key] {
				t.Errorf("figure %q of %s is no figure, or %q has it", key, s.name, by[key])
			}
			by[key] = s.name
		}
	}
	for key := range keys {
		if by[key] == "" {
			t.Errorf("no scenario measures %s", key)
		}
	}
	if scenarios[0].name != "provision" {
		t.Error("the first scenario is not the one that the others stand on")
	}
}

// What Go's benchmarks print is read as it is.
func TestLinesOfBenchmarks(t *testing.T) {
	for _, c := range []struct {
		line, name string
		n          int
		unit       string
		value      float64
	}{
		{"BenchmarkExecTrue-2   \t     400\t   1934545 ns/op\t      1811 µs-p50\t      3455 µs-p99\n", "ExecTrue", 400, "µs-p50", 1811},
		{"BenchmarkSustained/2000-16 12000 500000 ns/op 415.0 cpu-µs/job", "Sustained/2000", 12000, "cpu-µs/job", 415},
		{"BenchmarkIdle 1 2e+10 ns/op 0.05 cores", "Idle", 1, "cores", 0.05},
		{"ok  \trockpool/internal/sandbox\t3.1s\n", "", 0, "", 0},
		{"BenchmarkExecTrue-2 400 x ns/op", "", 0, "", 0},
		{"PASS\n", "", 0, "", 0},
	} {
		name, n, units, ok := benchmarkLine(c.line)
		if ok != (c.name != "") || ok && (name != c.name || n != c.n || units[c.unit] != c.value) {
			t.Errorf("%q: %q %d %v %v", c.line, name, n, units, ok)
		}
	}
	if m := taken(7, map[string]float64{"µs-p50": 1500.5, "µs-p99": 3000}); m.P50 != 1500500*time.Nanosecond || m.Count != 7 {
		t.Errorf("%+v", m)
	}
}

func TestTheLineOfFinishedJobs(t *testing.T) {
	if m := flatLine.FindStringSubmatch("    flat_test.go:74: 3000 jobs: heap 2893 KiB after two tenths, 2892 at the end; 145800 allocations in the third tenth, 145801 in the last"); m == nil || m[5] != "145801" {
		t.Errorf("%q", m)
	}
}

// A share of none is no share: a gateway that does not count is not one whose programs are all warm.
func TestStartsAreReadFromFigures(t *testing.T) {
	text := "# TYPE x counter\nrockpool_gateway_warm_executions_total{environment=\"12\",start=\"cold\"} 1\n" +
		"rockpool_gateway_warm_executions_total{environment=\"12\",start=\"warm\"} 3\nrockpool_gateway_warm_executions_total{environment=\"13\",start=\"warm\"} 7\n"
	s, err := startsIn(text)
	if err != nil || s != (starts{warm: 3, cold: 1}) || s.share(starts{}) != 75 || s.share(s) != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}
