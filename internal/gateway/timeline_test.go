package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"rockpool/internal/api/dto"
	"rockpool/internal/client"
	"rockpool/internal/config"
	"rockpool/internal/gateway"
	"rockpool/internal/logging"
	"rockpool/internal/nomad/nomadtest"
	"rockpool/internal/timeline/timelinetest"
)

const callersTrace = "0af7651916cd43dd8448eb211c80319c"

// traced does a request that is part of somebody's trace.
func (h *harness) traced(method, path, body string) string {
	h.Helper()
	r, err := http.NewRequest(method, h.url+path, strings.NewReader(body))
	if err != nil {
		h.Fatal(err)
	}
	r.Header.Set("Poseidon-Token", "secret")
	r.Header.Set("Traceparent", "00-"+callersTrace+"-b7ad6b7169203331-00")
	resp, err := h.http.Do(r)
	if err != nil {
		h.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil || resp.StatusCode/100 != 2 {
		h.Fatalf("%s %s: %d %s, %v", method, path, resp.StatusCode, b.String(), err)
	}
	if resp.Header.Get("Rockpool-Timeline") != "" {
		h.Error("clients are told of steps inside")
	}
	return b.String()
}

func (h *harness) timelines(query string) []dto.Timeline {
	h.Helper()
	var all dto.Timelines
	if err := json.Unmarshal([]byte(h.want("GET", "/rockpool/timelines"+query, "", 200, "timelines")), &all); err != nil {
		h.Fatal(err)
	}
	return all.Timelines
}

// watchedCluster lets a test see what headers calls carry.
func watchedCluster(t *testing.T, c *nomadtest.Cluster, seen func(*http.Request)) string {
	t.Helper()
	u, err := url.Parse(c.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(u)
	proxy.FlushInterval = -1
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen(r); proxy.ServeHTTP(w, r) }))
	t.Cleanup(s.Close)
	return s.URL
}

func TestNothingIsRecordedByDefault(t *testing.T) {
	c := nomadtest.New(t)
	var carried atomic.Int32
	h := start(t, c, func(cfg *config.Config) {
		cfg.Nomad.Address = watchedCluster(t, c, func(r *http.Request) {
			if r.Header.Get("Traceparent") != "" {
				carried.Add(1)
			}
		})
	})
	h.want("PUT", "/execution-environments/10", env("1"), 201, "")
	h.pool("10", 1, 0)
	h.traced("POST", "/runners", `{"executionEnvironmentId":10}`)
	h.want("GET", "/rockpool/timelines", "", 404, "tracing.timelines")
	if n := carried.Load(); n != 0 {
		t.Errorf("%d calls carried a trace", n)
	}
	h.stop()
}

func TestCallsToANomadOfOthersCarryTheTrace(t *testing.T) {
	c, collector := nomadtest.New(t), timelinetest.New(t)
	var claim atomic.Value
	h := start(t, c, func(cfg *config.Config) {
		cfg.Tracing.Timelines, cfg.Tracing.Endpoint = 50, collector.URL
		cfg.Nomad.Address = watchedCluster(t, c, func(r *http.Request) {
			if p := r.Header.Get("Traceparent"); strings.Contains(p, callersTrace) {
				claim.Store(p)
			}
		})
	})
	h.want("PUT", "/execution-environments/10", env("1"), 201, "")
	h.pool("10", 1, 0)
	h.traced("POST", "/runners", `{"executionEnvironmentId":10}`)
	h.want("GET", "/rockpool/timelines?limit=1000", "", 400, "limit")
	h.want("GET", "/rockpool/timelines?runner=a%20b", "", 400, "runner")
	var found dto.Timeline
	for _, one := range h.timelines("") {
		if one.TraceID == callersTrace {
			found = one
		}
	}
	if len(found.Steps) < 4 || found.Steps[0].Step != "request" || found.RunnerID == "" || found.Steps[0].Attributes["rockpool.route"] != "provideRunner" {
		t.Errorf("the claim is shown as %+v", found)
	}
	// Who is not let in leaves nothing, whatever the request says.
	h.pool("10", 1, 1) // the start of the claimed runner's successor is a timeline too
	before := len(h.timelines(""))
	for range 5 {
		if code, _, _ := h.ask("POST", "/runners", `{"executionEnvironmentId":10}`, http.Header{"Poseidon-Token": {"wrong"}, "Traceparent": {"00-" + callersTrace + "-b7ad6b7169203331-01"}}); code != 401 {
			t.Errorf("a wrong token: %d", code)
		}
	}
	if after := len(h.timelines("")); after != before {
		t.Errorf("%d timelines became %d by requests with a wrong token", before, after)
	}
	if len(h.timelines("?runner="+found.RunnerID)) < 2 || len(h.timelines("?execution=nobody")) != 0 || len(h.timelines("?limit=1")) != 1 {
		t.Error("what was asked for is not what is shown")
	}
	var b bytes.Buffer
	if err := client.ShowTimelines(t.Context(), client.Target{URL: h.url, Token: "secret"}, client.Wanted{Runner: found.RunnerID, Limit: 9}, &b); err != nil || !strings.Contains(b.String(), "cluster.call job.put") {
		t.Errorf("it is printed as %v\n%s", err, b.String())
	}
	h.stop()
	for _, s := range collector.Spans() {
		if s.Name == "cluster.call" && s.Trace == callersTrace && claim.Load() == "00-"+s.Trace+"-"+s.ID+"-01" {
			return
		}
	}
	t.Errorf("the call that carried %v is not among %+v", claim.Load(), collector.Spans())
}

// The whole path: a gateway with its own orchestrator, and a program in a sandbox.
func TestOneTraceFromTheGatewayToTheSupervisor(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("sandboxes need root")
	}
	collector := timelinetest.New(t)
	cfg := config.Default()
	cfg.Server.Port, cfg.Server.Token = 0, "secret"
	cfg.Tracing.Endpoint, cfg.Tracing.Timelines, cfg.Tracing.Headers = collector.URL, 100, []string{"Authorization=Bearer of-the-collector"}
	cfg.Orchestrator.DataDir, cfg.Orchestrator.OnStop, cfg.Orchestrator.AllowUnconfined, cfg.Orchestrator.Network.Range = t.TempDir(), config.Remove, true, ""
	embedded, err := gateway.NewEmbedded(cfg.Orchestrator, cfg.Tracing, "default", logging.Discard())
	if err != nil {
		t.Skip("this machine cannot isolate programs: ", err)
	}
	g, err := gateway.New(cfg, embedded, logging.Discard())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	h := &harness{T: t, url: "http://" + g.Addr().String() + "/api/v1", contract: published(t)}
	h.http = &http.Client{Transport: h.contract.Transport(&http.Transport{}, h.off)}
	h.stop = func() {
		h.http.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	stopped := false
	t.Cleanup(func() {
		if !stopped {
			h.stop()
		}
	})
	h.want("PUT", "/execution-environments/10", env("1"), 201, "")
	h.pool("10", 1, 0)
	var runner, execution struct{ RunnerID, WebSocketURL string }
	if err := json.Unmarshal([]byte(h.traced("POST", "/runners", `{"executionEnvironmentId":10}`)), &runner); err != nil {
		t.Fatal(err)
	}
	body := `{"command":"echo $HUSH; echo whispered-words","timeLimit":10,"environment":{"HUSH":"hidden-value"}}`
	var shown []dto.Timeline
	// What the supervisor says of its own time is cut where the program was executed before the supervisor itself got on, and if it is no measure of its time, always.
	cuts := 0
	for cut := true; cut; {
		if err := json.Unmarshal([]byte(h.traced("POST", "/runners/"+runner.RunnerID+"/execute", body)), &execution); err != nil {
			t.Fatal(err)
		}
		h.rest(h.dial(execution.WebSocketURL))
		h.eventually("the execution's timeline is complete", func() bool {
			shown = h.timelines("?execution=" + execution.WebSocketURL[strings.LastIndex(execution.WebSocketURL, "=")+1:])
			return len(shown) == 1 && !strings.Contains(string(mustJSON(t, shown)), `"open":true`)
		})
		end := map[string]float64{}
		for _, s := range shown[0].Steps {
			end[s.Step] = s.Start + s.Duration
		}
		if cut = end["exec.fork"] >= end["exec.request"]; cut {
			if cuts++; cuts == 20 {
				t.Fatalf("the supervisor's part ends at %v us, the request at %v us, and so it was %d times", end["exec.fork"], end["exec.request"], cuts)
			}
		}
	}
	start := h.timelines("?runner=" + runner.RunnerID)
	h.stop()
	stopped = true

	// Also what the node did for the start of the runner is shown, below that.
	for _, step := range []string{"runner.started", "task.start", "task.prepare", "task.turn", "task.create", "sandbox.setup"} {
		if !strings.Contains(string(mustJSON(t, start)), `"step":"`+step+`"`) {
			t.Errorf("the runner's timeline has no %s: %s", step, mustJSON(t, start))
		}
	}
	// Without any collector a person sees all of it.
	for _, step := range []string{"execution", "execution.call", "node.exec", "exec.request", "exec.fork", "exec.program", "exec.end", "execution.close"} {
		if !strings.Contains(string(mustJSON(t, shown)), `"step":"`+step+`"`) {
			t.Errorf("the timeline has no %s: %s", step, mustJSON(t, shown))
		}
	}
	spans := collector.Spans()
	at := map[string]timelinetest.Span{}
	steps := map[string]map[string]bool{"rockpool-gateway": {}, "rockpool-orchestrator": {}}
	starts := map[string]map[string]bool{}
	for _, s := range spans {
		at[s.ID] = s
		if s.Trace == callersTrace {
			steps[s.Service][s.Name] = true
		} else {
			if starts[s.Trace] == nil {
				starts[s.Trace] = map[string]bool{}
			}
			starts[s.Trace][s.Service+" "+s.Name] = true
		}
	}
	for service, want := range map[string]string{
		"rockpool-gateway":      "request claim.take claim.mark cluster.call execution execution.call node.exec exec.group exec.streams exec.request exec.fork exec.take_over exec.program exec.end execution.close",
		"rockpool-orchestrator": "request log.queue log.append log.apply log.answer",
	} {
		for name := range strings.FieldsSeq(want) {
			if !steps[service][name] {
				t.Errorf("%s has sent no %s", service, name)
			}
		}
	}
	for _, s := range spans {
		if s.Trace == callersTrace && s.Parent != "b7ad6b7169203331" {
			if above, ok := at[s.Parent]; !ok || above.Trace != s.Trace {
				t.Errorf("%s of %s is below nothing of its trace", s.Name, s.Service)
			}
		}
	}
	whole := 0
	for _, names := range starts {
		if names["rockpool-gateway runner"] && names["rockpool-gateway runner.started"] && names["rockpool-orchestrator log.append"] &&
			names["rockpool-orchestrator task.start"] && names["rockpool-orchestrator sandbox.setup"] {
			whole++
		}
	}
	if whole == 0 {
		t.Errorf("no runner's start is one trace over both: %v", starts)
	}
	for _, body := range collector.Bodies() {
		for _, secret := range []string{"whispered", "hidden-value", "HUSH", "echo", "secret", "of-the-collector", "bash"} {
			if bytes.Contains(body, []byte(secret)) {
				t.Errorf("%q went to the collector", secret)
			}
		}
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
