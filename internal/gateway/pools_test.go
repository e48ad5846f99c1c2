package gateway_test

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"rockpool/internal/client"
	"rockpool/internal/config"
	"rockpool/internal/nomad/nomadtest"
)

// keyed is a request with an Idempotency-Key.
func (h *harness) keyed(key, body string) (int, string) {
	h.Helper()
	r, err := http.NewRequest("POST", h.url+"/runners", strings.NewReader(body))
	if err != nil {
		h.Fatal(err)
	}
	r.Header.Set("Poseidon-Token", "secret")
	r.Header.Set("Idempotency-Key", key)
	resp, err := h.http.Do(r)
	if err != nil {
		h.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		h.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

// poolView is what the tests read of a pool.
type poolView struct {
	Wanted, Configured, Idle, Starting, Used, Removing, Failed int
	Automatic                                                  *struct{ Min, Max, Needed int }
	Failures                                                   *struct {
		InARow  int
		Reason  string
		RetryAt *time.Time
	}
	Claims struct {
		Total, ServedAtOnce int
		HitRate             float64
	}
	Queue   struct{ Waiting int }
	Limits  struct{ MaxRunners, Runners, MaxUsed int }
	Runners []struct {
		ID, State, Reason string
		AgeSeconds        float64
		Current, Failed   bool
	}
}

func (h *harness) look(id string) (p poolView) {
	h.Helper()
	body := h.want("GET", "/rockpool/pools/"+id, "", 200, `"wanted"`)
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		h.Fatal(err)
	}
	return p
}

func TestAPoolTellsWhatItIsMadeOf(t *testing.T) {
	h := ready(t, "2", 2)
	h.want("GET", "/rockpool/pools/11", "", 404, "message")
	h.want("GET", "/rockpool/pools/99999999999999999999", "", 400, "message")
	id := h.claim("0")
	h.pool("10", 2, 1)
	p := h.look("10")
	if p.Wanted != 2 || p.Configured != 2 || p.Idle != 2 || p.Used != 1 || p.Claims.Total != 1 || p.Claims.HitRate != 1 || p.Limits.Runners != 3 || p.Failures != nil {
		t.Errorf("got %+v", p)
	}
	if len(p.Runners) != 3 || p.Runners[2].ID != id || p.Runners[2].State != "used" || p.Runners[0].State != "idle" || !p.Runners[0].Current || p.Runners[0].AgeSeconds < 0 {
		t.Errorf("got %+v", p.Runners)
	}
	list := h.want("GET", "/rockpool/pools", "", 200, `{"pools":[{"id":10,"wanted":2,`)
	if strings.Contains(list, id) {
		t.Errorf("the list has the runners: %s", list)
	}
}

func TestAPoolTellsWhyItsRunnersDoNotStart(t *testing.T) {
	h := start(t, nomadtest.New(t))
	h.cluster.Hold(true)
	h.want("PUT", "/execution-environments/10", env("1"), 201, "")
	h.eventually("a runner", func() bool { return len(h.cluster.Jobs("10-")) == 1 })
	h.cluster.Fail(h.cluster.Jobs("10-")[0], "the image course/none:1 does not exist")
	h.eventually("the reason", func() bool { return h.look("10").Failures != nil })
	p := h.look("10")
	if p.Failures.InARow != 1 || p.Failures.Reason != "the image course/none:1 does not exist" || p.Idle != 0 {
		t.Errorf("got %+v %+v", p, p.Failures)
	}
	h.want("POST", "/runners", `{"executionEnvironmentId":10}`, 500, "course/none:1")
	figures := h.want("GET", "/rockpool/metrics", "", 200, "rockpool")
	if failed, hits := value(figures, `rockpool_gateway_pool_failed_starts{environment="10"}`), value(figures, `rockpool_gateway_pool_hit_rate{environment="10"}`); failed != "1" || hits != "0" {
		t.Errorf("the figures tell of %q failed starts and a hit rate of %q", failed, hits)
	}
	if left, err := strconv.ParseFloat(value(figures, `rockpool_gateway_pool_retry_seconds{environment="10"}`), 64); err != nil || left < 0 {
		t.Errorf("%v s to the next try, %v", left, err)
	}
}

func TestAPoolTellsThatItsRunnersCannotBePlaced(t *testing.T) {
	h := ready(t, "0", 0)
	h.cluster.NoRoom(true)
	h.want("PUT", "/execution-environments/10", env("1"), 500, "UNKNOWN") // what is stored is the old one
	h.cluster.NoRoom(false)
	h.want("PUT", "/execution-environments/10", env("0"), 204, "")
	h.cluster.NoRoom(true)
	h.want("PUT", "/execution-environments/11", env("1"), 500, "UNKNOWN")
	h.cluster.NoRoom(false)
	h.want("PUT", "/execution-environments/11", env("1"), 201, "")
	h.eventually("a runner", func() bool { return h.look("11").Idle == 1 })
	h.cluster.NoRoom(true)
	h.want("POST", "/runners", `{"executionEnvironmentId":11}`, 200, "runnerId")
	h.eventually("the reason", func() bool {
		for _, r := range h.look("11").Runners {
			if r.State == "starting" && strings.Contains(r.Reason, "it cannot be placed") {
				return true
			}
		}
		return false
	})
}

func TestAClaimThatAskedToWaitLearnsItsPlace(t *testing.T) {
	h := start(t, nomadtest.New(t), func(c *config.Config) { c.Pools.MaxWait = 1 })
	h.cluster.Hold(true)
	h.want("PUT", "/execution-environments/10", env("1"), 201, "")
	h.want("POST", "/runners", `{"executionEnvironmentId":10,"waitTimeout":-1}`, 400, "waitTimeout")
	code, body, header := h.do("POST", "/runners", `{"executionEnvironmentId":10}`)
	if code != 500 || body != `{"message":"no runner of execution environment 10 is idle","errorCode":"NOMAD_OVERLOAD"}` || header.Get("Retry-After") != "" {
		t.Errorf("without the field: %d %s %v", code, body, header)
	}
	began := time.Now()
	code, body, header = h.do("POST", "/runners", `{"executionEnvironmentId":10,"waitTimeout":3600}`)
	var refused struct {
		ErrorCode string
		Queue     struct{ Position, Waiting, EstimateSeconds int }
	}
	if err := json.Unmarshal([]byte(body), &refused); err != nil {
		t.Fatal(err)
	}
	if code != 500 || refused.ErrorCode != "NOMAD_OVERLOAD" || refused.Queue.Position != 1 || refused.Queue.EstimateSeconds < 1 || header.Get("Retry-After") == "" {
		t.Errorf("got %d %s %v", code, body, header)
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("it waited %v", took)
	}
}

func TestAClaimWaitsInTheQueue(t *testing.T) {
	h := start(t, nomadtest.New(t))
	h.cluster.Hold(true)
	h.want("PUT", "/execution-environments/10", env("1"), 201, "")
	answered := make(chan string, 1)
	go func() {
		_, body, _ := h.do("POST", "/runners", `{"executionEnvironmentId":10,"waitTimeout":30}`)
		answered <- body
	}()
	h.eventually("it waits", func() bool { return h.look("10").Queue.Waiting == 1 })
	h.want("GET", "/rockpool/metrics", "", 200, `rockpool_gateway_pool_waiting_claims{environment="10"} 1`)
	h.eventually("a runner is starting", func() bool { return len(h.cluster.Jobs("10-")) == 1 })
	h.cluster.Hold(false)
	if body := <-answered; !strings.Contains(body, "runnerId") {
		t.Errorf("got %s", body)
	}
	if p := h.look("10"); p.Queue.Waiting != 0 || p.Claims.Total != 1 || p.Claims.ServedAtOnce != 0 || p.Claims.HitRate != 0 {
		t.Errorf("got %+v", p)
	}
}

func TestAKeyGivesTheSameRunnerAgain(t *testing.T) {
	h := ready(t, "3", 3)
	const request = `{"executionEnvironmentId":10,"inactivityTimeout":100}`
	var mu sync.Mutex
	got := map[string]bool{}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			code, body := h.keyed("lesson 1", request)
			mu.Lock()
			defer mu.Unlock()
			if code != 200 {
				t.Errorf("got %d %s", code, body)
			}
			got[body] = true
		})
	}
	wg.Wait()
	if len(got) != 1 {
		t.Fatalf("%d runners for one key", len(got))
	}
	h.pool("10", 3, 1)
	if code, body := h.keyed("lesson 1", `{"executionEnvironmentId":10,"inactivityTimeout":5}`); code != 400 || !strings.Contains(body, "Idempotency-Key") {
		t.Errorf("another request: %d %s", code, body)
	}
	if code, body := h.keyed("a\tb", request); code != 400 || !strings.Contains(body, "printable") {
		t.Errorf("a bad key: %d %s", code, body)
	}
	if code, body := h.keyed("lesson 2", request); code != 200 || got[body] {
		t.Errorf("another key: %d %s", code, body)
	}
	h.pool("10", 3, 2)
	var r struct{ RunnerID string }
	for body := range got {
		if err := json.Unmarshal([]byte(body), &r); err != nil {
			t.Fatal(err)
		}
	}
	meta := h.cluster.Meta(r.RunnerID)
	if meta["used"] != "true" || meta["timeout"] != "100" || len(meta["rockpool_claim_key"]) != 32 || strings.Contains(meta["rockpool_claim_key"], "lesson") {
		t.Errorf("the mark is %v", meta)
	}
	// It is in the mark, so that it outlives this process.
	h.stop()
	h = start(t, h.cluster)
	if code, body := h.keyed("lesson 1", request); code != 200 || !got[body] {
		t.Errorf("after a restart: %d %s", code, body)
	}
	h.want("DELETE", "/runners/"+r.RunnerID, "", 204, "")
	if code, body := h.keyed("lesson 1", request); code != 200 || got[body] {
		t.Errorf("after its end: %d %s", code, body)
	}
}

func TestLimitsOfRunnersAreKept(t *testing.T) {
	h := start(t, nomadtest.New(t), func(c *config.Config) { c.Pools.MaxRunners, c.Pools.MaxUsed = 4, 2 })
	h.want("PUT", "/execution-environments/10", env("9"), 201, "")
	h.pool("10", 4, 0)
	h.claim("0")
	last := h.claim("0")
	h.want("POST", "/runners", `{"executionEnvironmentId":10}`, 500, `as many used runners as it may have (2): one has to end first","errorCode":"NOMAD_OVERLOAD"`)
	h.pool("10", 2, 2)
	if jobs := h.cluster.Jobs("10-"); len(jobs) != 4 {
		t.Errorf("%d runners, the limit is 4", len(jobs))
	}
	if p := h.look("10"); p.Limits.MaxRunners != 4 || p.Limits.Runners != 4 || p.Limits.MaxUsed != 2 || p.Wanted != 9 {
		t.Errorf("got %+v", p)
	}
	h.want("DELETE", "/runners/"+last, "", 204, "")
	h.claim("0")
}

func TestASizeThatFollowsTheClaimsIsKeptInTheTemplate(t *testing.T) {
	h := start(t, nomadtest.New(t))
	automatic := func(size, least, most string) string {
		return strings.TrimSuffix(env(size), "}") + `,"poolSizeMin":` + least + `,"poolSizeMax":` + most + `}`
	}
	h.want("PUT", "/execution-environments/10", automatic("2", "3", "4"), 400, "poolSizeMin 3")
	h.want("PUT", "/execution-environments/10", automatic("5", "3", "4"), 400, "poolSizeMax 4")
	h.want("PUT", "/execution-environments/10", automatic("2", "2", "0"), 400, "poolSizeMin needs poolSizeMax")
	h.want("PUT", "/execution-environments/10", automatic("2", "2", "10001"), 400, "at most 10000")
	h.want("PUT", "/execution-environments/10", automatic("2", "1", "6"), 201, "")
	h.pool("10", 2, 0)
	if meta := h.cluster.Meta("template-10"); meta["prewarmingPoolSize"] != "2" || meta["rockpool_pool_min"] != "1" || meta["rockpool_pool_max"] != "6" {
		t.Errorf("the template has %v", meta)
	}
	h.want("GET", "/execution-environments/10", "", 200, `"poolSizeMin":1,"poolSizeMax":6`)
	h.want("GET", "/statistics/execution-environments", "", 200, `"prewarmingPoolSize":2`)
	figures := h.want("GET", "/rockpool/metrics", "", 200, "rockpool")
	if least, most := value(figures, `rockpool_gateway_pool_min_runners{environment="10"}`), value(figures, `rockpool_gateway_pool_max_runners{environment="10"}`); least != "1" || most != "6" {
		t.Errorf("the figures tell of a size from %q to %q", least, most)
	}
	// Four at once need four: the statistics say what is wanted now, the definition stays what was put.
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { h.do("POST", "/runners", `{"executionEnvironmentId":10}`) })
	}
	wg.Wait()
	h.eventually("a pool of four", func() bool { idle, _ := h.stats("10"); return idle == 4 })
	h.want("GET", "/statistics/execution-environments", "", 200, `"prewarmingPoolSize":4`)
	h.want("GET", "/execution-environments/10", "", 200, `"prewarmingPoolSize":2`)
	// The same definition once more changes nothing, and a restart takes over what it finds.
	writes := h.cluster.Calls("PUT /v1/jobs")
	h.want("PUT", "/execution-environments/10", automatic("2", "1", "6"), 204, "")
	if n := h.cluster.Calls("PUT /v1/jobs"); n != writes {
		t.Errorf("%d writes for an unchanged definition", n-writes)
	}
	h.stop()
	h = start(t, h.cluster)
	h.want("GET", "/execution-environments/10?fetch=true", "", 200, `"poolSizeMin":1,"poolSizeMax":6`)
	if p := h.look("10"); p.Wanted != 4 || p.Configured != 2 || p.Automatic == nil || p.Automatic.Max != 6 {
		t.Errorf("after a restart: %+v", p)
	}
	// A client that does not know the bounds sends its definitions once more. Only one that asks for another size, or for none that follows, gets a fixed one.
	h.want("PUT", "/execution-environments/10", env("2"), 204, "")
	h.want("PUT", "/execution-environments/10", strings.Replace(env("2"), "{", `{"poolSizeMax":null,`, 1), 204, "")
	h.want("GET", "/execution-environments/10", "", 200, `"poolSizeMin":1,"poolSizeMax":6`)
	h.want("PUT", "/execution-environments/10", strings.Replace(env("2"), "{", `{"runtime":"runsc",`, 1), 204, "")
	h.want("GET", "/execution-environments/10?fetch=true", "", 200, `"poolSizeMin":1,"poolSizeMax":6`)
	h.want("PUT", "/execution-environments/10", strings.Replace(env("2"), "{", `{"poolSizeMax":0,`, 1), 204, "")
	if body := h.want("GET", "/execution-environments/10", "", 200, `"prewarmingPoolSize":2`); strings.Contains(body, "poolSizeM") {
		t.Errorf("it was made fixed: %s", body)
	}
	h.eventually("a pool of two", func() bool { idle, _ := h.stats("10"); return idle == 2 })
	h.want("PUT", "/execution-environments/10", automatic("2", "1", "6"), 204, "")
	h.want("PUT", "/execution-environments/10", env("3"), 204, "")
	if body := h.want("GET", "/execution-environments/10?fetch=true", "", 200, `"prewarmingPoolSize":3`); strings.Contains(body, "poolSizeM") {
		t.Errorf("another size was asked for: %s", body)
	}
	h.eventually("a pool of three", func() bool { idle, _ := h.stats("10"); return idle == 3 })
}

func TestTheCommandShowsWhatAPoolIsMadeOf(t *testing.T) {
	h := start(t, nomadtest.New(t))
	h.cluster.Hold(true)
	h.want("PUT", "/execution-environments/10", env("1"), 201, "")
	h.want("PUT", "/execution-environments/11", env("0"), 201, "")
	h.eventually("a runner", func() bool { return len(h.cluster.Jobs("10-")) == 1 })
	h.want("POST", "/runners", `{"executionEnvironmentId":10}`, 500, "idle")
	h.cluster.Fail(h.cluster.Jobs("10-")[0], "the image course/none:1 does not exist")
	h.eventually("the reason", func() bool { return h.look("10").Failures != nil })
	target := client.Target{URL: h.url, Token: "secret"}
	show := func(id *int) string {
		var out strings.Builder
		if err := client.ShowPools(t.Context(), target, id, &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	rows := func(text string) (all [][]string) {
		for line := range strings.Lines(text) {
			all = append(all, strings.Fields(line))
		}
		return all
	}
	all := rows(show(nil))
	if len(all) != 3 || all[1][0] != "10" || all[1][1] != "1" || all[1][7] != "0.0%" || !slices.Contains(all[1], "course/none:1") || all[2][0] != "11" || all[2][7] != "100.0%" {
		t.Errorf("all pools: %q", all)
	}
	text := show(new(10))
	runner := h.look("10").Runners[0]
	if !strings.Contains(text, runner.ID) || !strings.Contains(text, runner.State) || !strings.Contains(text, "course/none:1") {
		t.Errorf("one pool: %s", text)
	}
	err := client.ShowPools(t.Context(), target, new(12), io.Discard)
	if err == nil || !strings.Contains(err.Error(), "environment 12 is unknown") {
		t.Errorf("an unknown one: %v", err)
	}
}

func TestHealthListsTheDepletingPoolsInOrder(t *testing.T) {
	h := start(t, nomadtest.New(t), func(c *config.Config) { c.Server.Alert.PrewarmingPoolThreshold = 0.5 })
	h.cluster.Hold(true)
	for _, id := range []string{"30", "4", "10"} {
		h.want("PUT", "/execution-environments/"+id, env("1"), 201, "")
	}
	h.want("PUT", "/execution-environments/5", env("0"), 201, "") // size 0 never alerts
	h.want("GET", "/health", "", 503, `{"message":"the prewarming pool is depleting: environments 4, 10, 30","errorCode":"PREWARMING_POOL_DEPLETING"}`)
	h.cluster.Hold(false)
	h.eventually("it is well", func() bool { code, _, _ := h.do("GET", "/health", ""); return code == 204 })
}
