package metrics_test

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"rockpool/internal/metrics"
)

// series are the lines of a label of an environment, without their common beginning.
func series(g *metrics.Gateway, environment string) map[string]string {
	w := httptest.NewRecorder()
	g.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	found := map[string]string{}
	for line := range strings.Lines(w.Body.String()) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), `{environment="`+environment+`"} `)
		if ok {
			found[strings.TrimPrefix(name, "rockpool_gateway_")] = value
		}
	}
	return found
}

func same(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s: %s is %q, want %q", what, name, got[name], value)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %s is told too", what, name)
		}
	}
}

func TestPoolsAreTold(t *testing.T) {
	pools := map[int]metrics.PoolState{
		1: {Wanted: 4, Idle: 3, Starting: 1, Used: 2, HitRate: 1},
		2: {Wanted: 5, HitRate: .25, FailedStarts: 3, Retry: 1500 * time.Millisecond, Waiting: 7, Automatic: true, Min: 2, Max: 9},
		3: {Wanted: 10, Idle: 2, Used: 2, HitRate: 1, Short: true, Possible: 4},
	}
	g := metrics.NewGateway(func() map[int]metrics.PoolState { return pools })
	same(t, "a fixed size", series(g, "1"), map[string]string{
		"pool_wanted_runners": "4", "pool_idle_runners": "3", "pool_starting_runners": "1", "pool_used_runners": "2",
		"pool_failed_starts": "0", "pool_retry_seconds": "0", "pool_waiting_claims": "0", "pool_hit_rate": "1",
	})
	same(t, "a size that follows the claims", series(g, "2"), map[string]string{
		"pool_wanted_runners": "5", "pool_idle_runners": "0", "pool_starting_runners": "0", "pool_used_runners": "0",
		"pool_failed_starts": "3", "pool_retry_seconds": "1.5", "pool_waiting_claims": "7", "pool_hit_rate": "0.25",
		"pool_min_runners": "2", "pool_max_runners": "9",
	})
	same(t, "more than there is room for", series(g, "3"), map[string]string{
		"pool_wanted_runners": "10", "pool_idle_runners": "2", "pool_starting_runners": "0", "pool_used_runners": "2",
		"pool_failed_starts": "0", "pool_retry_seconds": "0", "pool_waiting_claims": "0", "pool_hit_rate": "1", "pool_possible_runners": "4",
	})
}

func TestPoolsBeyondTheBoundShareSeries(t *testing.T) {
	pools := map[int]metrics.PoolState{}
	for id := range metrics.MaxEnvironments {
		pools[id] = metrics.PoolState{HitRate: 1}
	}
	g := metrics.NewGateway(func() map[int]metrics.PoolState { return pools })
	if got := series(g, "other"); len(got) != 0 {
		t.Errorf("there is room for all, but others have %v", got)
	}
	clear(pools) // those that were told keep their places
	pools[1000] = metrics.PoolState{Wanted: 3, Idle: 1, Starting: 1, Used: 4, HitRate: .5, FailedStarts: 2, Retry: time.Second, Waiting: 1}
	pools[1001] = metrics.PoolState{Wanted: 2, Idle: 2, HitRate: .75, FailedStarts: 1, Retry: 3 * time.Second, Waiting: 5, Automatic: true, Min: 1, Max: 6, Short: true, Possible: 1}
	same(t, "two others", series(g, "other"), map[string]string{
		"pool_wanted_runners": "5", "pool_idle_runners": "3", "pool_starting_runners": "1", "pool_used_runners": "4",
		"pool_failed_starts": "3", "pool_retry_seconds": "3", "pool_waiting_claims": "6", "pool_hit_rate": "0.5",
		"pool_min_runners": "1", "pool_max_runners": "6", "pool_possible_runners": "8",
	})
}
