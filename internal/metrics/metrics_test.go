package metrics_test

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	gometrics "github.com/hashicorp/go-metrics"
	"pgregory.net/rapid"

	"rockpool/internal/metrics"
)

type clock struct{ now time.Time }

func (c *clock) tell() time.Time { return c.now }

func TestASummaryTellsTheLastWholeInterval(t *testing.T) {
	c := &clock{time.Unix(1000, 0)}
	r := metrics.New(c.tell)
	for _, v := range []float64{1, 2, 6} {
		r.Sample("nomad.nomad.plan.evaluate", v)
	}
	r.Count("nomad.nomad.rpc.request", 5)
	r.Set("nomad.nomad.broker.total_ready", 7)
	if s := r.Summary(); len(s.Samples) != 0 || len(s.Counters) != 0 {
		t.Errorf("an unfinished interval was told: %+v", s)
	}
	c.now = c.now.Add(metrics.Interval)
	s := r.Summary()
	if len(s.Samples) != 1 || s.Samples[0].Count != 3 || s.Samples[0].Mean != 3 || s.Samples[0].Min != 1 || s.Samples[0].Max != 6 {
		t.Errorf("samples: %+v", s.Samples)
	}
	if len(s.Counters) != 1 || s.Counters[0].Sum != 5 || s.Counters[0].Rate != 0.5 {
		t.Errorf("counters: %+v", s.Counters)
	}
	if fmt.Sprint(s.Gauges) != "[{nomad.nomad.broker.total_ready 7 map[]} {rockpool.metrics.dropped 0 map[]}]" {
		t.Errorf("gauges: %+v", s.Gauges)
	}
	c.now = c.now.Add(metrics.Interval)
	if s := r.Summary(); len(s.Samples) != 0 {
		t.Errorf("an interval without samples told some: %+v", s.Samples)
	}
}

func TestPrometheusGetsTotals(t *testing.T) {
	r := metrics.New(nil)
	r.Count("nomad.nomad.rpc.request", 2)
	r.Count("nomad.nomad.rpc.request", 3)
	r.Sample("nomad.nomad.fsm.apply-x", 4)
	r.Read(func(set func(string, float64)) { set("nomad.nomad.job_status.running", 9) })
	r.Read(metrics.Runtime)
	w := httptest.NewRecorder()
	r.Prometheus().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	for _, want := range []string{
		"# TYPE nomad_nomad_rpc_request counter\nnomad_nomad_rpc_request 5\n", "nomad_nomad_job_status_running 9\n",
		"nomad_nomad_fsm_apply_x_sum 4\n", `nomad_nomad_fsm_apply_x{quantile="0.99"} 4`, "nomad_runtime_num_goroutines ",
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("%q is not in\n%s", want, w.Body)
		}
	}
}

func TestTheNumberOfNamesIsBounded(t *testing.T) {
	r := metrics.New(nil)
	for i := range metrics.MaxSeries + 50 {
		r.Count(fmt.Sprint("n", i), 1)
	}
	r.Set("n1", 3) // of another kind
	w := httptest.NewRecorder()
	r.Prometheus().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if n := strings.Count(w.Body.String(), "# TYPE"); n != metrics.MaxSeries || !strings.Contains(w.Body.String(), "n1 1\n") {
		t.Errorf("%d series are kept", n)
	}
}

func TestLibrariesReportHere(t *testing.T) {
	r := metrics.New(nil)
	if err := r.Adopt(); err != nil {
		t.Fatal(err)
	}
	gometrics.SetGaugeWithLabels([]string{"raft", "peers"}, 3, []gometrics.Label{{Name: "peer_id", Value: "x"}})
	gometrics.IncrCounter([]string{"raft", "apply"}, 1)
	gometrics.MeasureSince([]string{"raft", "commitTime"}, time.Now())
	w := httptest.NewRecorder()
	r.Prometheus().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	for _, want := range []string{"nomad_raft_peers 3", "nomad_raft_apply 1", "nomad_raft_commitTime_count 1"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("%q is not in\n%s", want, w.Body)
		}
	}
}

func TestWindowsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &clock{time.Unix(0, 0)}
		r := metrics.New(c.tell)
		want := map[int64]int{}
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			c.now = c.now.Add(rapid.SampledFrom([]time.Duration{0, time.Second, 4 * time.Second, 11 * time.Second, 40 * time.Second}).Draw(t, "pass"))
			epoch := c.now.UnixNano() / int64(metrics.Interval)
			if rapid.Bool().Draw(t, "look") {
				got := 0
				if s := r.Summary(); len(s.Counters) == 1 {
					got = s.Counters[0].Count
				}
				if got != want[epoch-1] {
					t.Fatalf("interval %d: %d values, want %d", epoch-1, got, want[epoch-1])
				}
				continue
			}
			r.Count("n", 1)
			want[epoch]++
		}
	})
}
