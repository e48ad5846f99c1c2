package gateway

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rockpool/internal/environment"
	"rockpool/internal/logging"
	"rockpool/internal/metrics/influx"
	"rockpool/internal/runner"
	"rockpool/internal/runner/pool"
)

// Whatever comes in whatever order: each runner is idle at most once and used at most once, both end, nothing ends that did not begin, and what
// the changes say adds up to what is there.
func TestTheCensusAddsUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCensus()
		began, open := map[string]int{}, map[string]bool{}
		idles, useds := map[environment.ID]int{}, 0
		take := func(changes []change) {
			for _, x := range changes {
				if x.failed {
					continue
				}
				key := fmt.Sprint(x.id, x.stand)
				by := 1
				if x.began {
					if began[key]++; began[key] > 1 {
						t.Fatalf("%s began twice", key)
					}
					open[key] = true
				} else {
					if !open[key] {
						t.Fatalf("%s ended without having begun", key)
					}
					delete(open, key)
					by = -1
				}
				if x.stand == used {
					useds += by
				} else {
					idles[x.env] += by
				}
			}
		}
		dead := map[string]bool{} // ids are never used again
		ids := rapid.SliceOfN(rapid.IntRange(0, 7), 1, 40).Draw(t, "ids")
		for i, n := range ids {
			env := environment.ID(n % 2)
			id := fmt.Sprintf("%d-%d", env, n)
			if dead[id] {
				continue
			}
			s := runner.Seen{Observed: pool.Observed{ID: id, Env: env}}
			now := time.Unix(int64(i), 0)
			switch rapid.IntRange(0, 6).Draw(t, "step") {
			case 0:
				c.created(id, env, now)
			case 1:
				take(c.see(s, now))
			case 2:
				s.State = pool.Ready
				take(c.see(s, now))
			case 3:
				s.State, s.Used = pool.Ready, true
				take(c.see(s, now))
			case 4:
				take(c.claimed(id, now))
			case 5:
				take(c.gone(id))
				dead[id] = true
			case 6: // a listing in which everything else is missing
				s.State = pool.Ready
				for other, r := range c.runners {
					if other != id && (r.created.IsZero() || r.stand != starting) {
						dead[other] = true
					}
				}
				take(c.all([]runner.Seen{s}, now))
			}
			there, usedThere := map[environment.ID]int{}, 0 // by counting
			for _, r := range c.runners {
				switch r.stand {
				case idle:
					there[r.env]++
				case used:
					usedThere++
				}
			}
			if !maps.Equal(there, c.idles) || usedThere != c.useds {
				t.Fatalf("there are %v idle and %d used, kept are %v and %d", there, usedThere, c.idles, c.useds)
			}
			for env, n := range idles {
				if got := c.count(idle, env); got != n {
					t.Fatalf("%d are idle in %d, the changes say %d", got, env, n)
				}
			}
			if got := c.count(used, 0); got != useds {
				t.Fatalf("%d are used, the changes say %d", got, useds)
			}
		}
	})
}

func TestStartsAreMeasured(t *testing.T) {
	c := newCensus()
	c.created("1-a", 1, time.Unix(0, 0))
	c.created("1-b", 1, time.Unix(0, 0))
	ready := runner.Seen{Observed: pool.Observed{ID: "1-a", Env: 1, State: pool.Ready}}
	if got := c.see(ready, time.Unix(3, 0)); len(got) != 1 || got[0].startup != 3*time.Second || got[0].count != 1 {
		t.Errorf("a start: %+v", got)
	}
	if got := c.gone("1-b"); len(got) != 1 || !got[0].failed {
		t.Errorf("one that failed: %+v", got)
	}
	if got := c.all(nil, time.Unix(4, 0)); len(got) != 1 || got[0].began || got[0].stand != idle {
		t.Errorf("one that a listing lacks: %+v", got)
	}
}

// Idle runners and executions are told each minute, used runners each hour. The points have no id.
func TestTheCountsOfEachMinuteAndHour(t *testing.T) {
	var lines []string
	db := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		text, err := io.ReadAll(body)
		if err != nil {
			t.Error(err)
		}
		lines = strings.Fields(strings.NewReplacer("poseidon_", "\nposeidon_", " ", "/").Replace(string(text)))
		w.WriteHeader(http.StatusNoContent)
	}))
	defer db.Close()
	written := func(hourly bool) []string {
		t.Helper()
		told := newTelemetry(nil, "", logging.Discard())
		told.envs = map[environment.ID]bool{1: true, 2: true}
		for _, id := range []string{"1-a", "1-b", "1-c"} {
			told.census.see(runner.Seen{Observed: pool.Observed{ID: id, Env: 1, State: pool.Ready}}, time.Unix(1, 0))
		}
		told.census.claimed("1-c", time.Unix(2, 0))
		told.ExecutionStored(1, "1-c", "x")
		told.ExecutionStored(1, "1-c", "y")
		told.points = influx.New(influx.Options{URL: db.URL, Organization: "o", Bucket: "b", Stage: "test", Count: func(string, int) {}, Log: logging.Discard()})
		told.count(time.Unix(0, 42), hourly)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		lines = nil
		if err := told.points.Run(ended); err != nil { // it writes what is left
			t.Fatal(err)
		}
		slices.Sort(lines)
		return lines
	}
	minute := []string{
		"poseidon_nomad_executions,environment_id=1,event_type=periodically,runner_id=1-c,stage=test/count=2i/42",
		"poseidon_nomad_idle_runners,environment_id=1,event_type=periodically,stage=test/count=2i/42",
		"poseidon_nomad_idle_runners,environment_id=2,event_type=periodically,stage=test/count=0i/42",
	}
	if got := written(false); !slices.Equal(got, minute) {
		t.Errorf("each minute: %q", got)
	}
	if got, want := written(true), append(minute, "poseidon_used_runners,event_type=periodically,stage=test/count=1i/42"); !slices.Equal(got, want) {
		t.Errorf("each hour: %q", got)
	}
}

// BenchmarkTheCensus is the cost of one change among so many runners, and of a first listing of them.
func BenchmarkTheCensus(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		list := make([]runner.Seen, n)
		for i := range list {
			list[i] = runner.Seen{Observed: pool.Observed{ID: fmt.Sprintf("1-%d", i), Env: 1, State: pool.Ready}}
		}
		b.Run(fmt.Sprintf("change/%d", n), func(b *testing.B) {
			c := newCensus()
			c.all(list, time.Unix(0, 0))
			one := runner.Seen{Observed: pool.Observed{ID: "1-x", Env: 1, State: pool.Ready}}
			for b.Loop() {
				c.see(one, time.Unix(1, 0))
				if got := c.gone(one.ID); got[0].count != n {
					b.Fatalf("%+v", got)
				}
			}
		})
		b.Run(fmt.Sprintf("listing/%d", n), func(b *testing.B) {
			for b.Loop() {
				if got := newCensus().all(list, time.Unix(0, 0)); got[n-1].count != n {
					b.Fatalf("%+v", got[n-1])
				}
			}
		})
	}
}
