package orchestrator_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/model"
)

func TestARegisteredJobIsPlacedPushedAndRuns(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{DataDir: t.TempDir()})
	n := c.join(newModelNode())
	r := c.register(job("10-a"))
	if r.EvalID == "" || r.JobModifyIndex == 0 {
		t.Errorf("the answer is %+v", r)
	}
	a := c.running("10-a", 1)[0]
	if a.NodeID != n.id || a.Name != "10-a.default[0]" {
		t.Errorf("the allocation is %+v", a)
	}
	full, _, err := c.api.Allocations().Info(a.ID, nil)
	if err != nil || full.Job == nil || *full.Job.ID != "10-a" {
		t.Fatalf("the allocation has no job: %v, %v", full, err)
	}
	ports := full.AllocatedResources.Shared.Ports
	if len(ports) != 1 || ports[0].Label != "http" || ports[0].To != 80 || ports[0].Value < 20000 || ports[0].Value > 32000 {
		t.Errorf("the ports are %+v", ports)
	}
	if m := full.AllocatedResources.Tasks["t"].Memory; m.MemoryMB != 30 || m.MemoryMaxMB != 512 {
		t.Errorf("the memory is %+v", m)
	}
	j, _, err := c.api.Jobs().Info("10-a", nil)
	if err != nil || *j.Status != "running" {
		t.Errorf("the job is %v, %v", j.Status, err)
	}
	eventually(t, "the evaluation is complete", func() bool {
		e, _, err := c.api.Evaluations().Info(r.EvalID, nil)
		return err == nil && e.Status == "complete"
	})
	list, _, err := c.api.Jobs().List(nil)
	if err != nil || len(list) != 1 || list[0].JobSummary.Summary["default"].Running != 1 {
		t.Errorf("the list is %+v, %v", list, err)
	}
}

func TestMetaOfAnotherGroupIsUpdatedInPlace(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	c.join(newModelNode())
	j := job("10-a")
	first := c.register(j)
	before := c.running("10-a", 1)[0]
	j.TaskGroups[1].Meta["used"] = "true"
	r, _, err := c.api.Jobs().EnforceRegister(j, first.JobModifyIndex, nil)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the allocation has the new version", func() bool {
		a, _, err := c.api.Allocations().Info(before.ID, nil)
		return err == nil && *a.Job.JobModifyIndex == r.JobModifyIndex && a.ClientStatus == model.ClientRunning
	})
	if after := c.running("10-a", 1)[0]; after.ID != before.ID {
		t.Error("the allocation was replaced")
	}
	if again := c.register(j); again.JobModifyIndex != r.JobModifyIndex || again.EvalID == "" {
		t.Errorf("an identical registration gave %+v, want index %d and a new evaluation", again, r.JobModifyIndex)
	}
	j.TaskGroups[0].Tasks[0].Env = map[string]string{"A": "b"}
	c.register(j)
	eventually(t, "the allocation is replaced", func() bool { return c.running("10-a", 1)[0].ID != before.ID })
}

func TestOfManyClaimsOneWins(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{DataDir: t.TempDir()})
	c.join(newModelNode())
	index := c.register(job("10-a")).JobModifyIndex
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			j := job("10-a")
			j.TaskGroups[1].Meta["used"] = fmt.Sprint("by ", i)
			_, _, err := c.api.Jobs().EnforceRegister(j, index, nil)
			switch {
			case err == nil:
				won.Add(1)
			case !strings.Contains(err.Error(), "Enforcing job modify index"):
				t.Errorf("a loser got %v", err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d claims won", won.Load())
	}
	if _, _, err := c.api.Jobs().EnforceRegister(job("10-a"), 0, nil); err == nil || !strings.Contains(err.Error(), "Enforcing job modify index 0: job already exists") {
		t.Errorf("a registration that wants a new job got %v", err)
	}
}

func TestAPurgeIsToldToTheNodeAtOnce(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	n := c.join(newModelNode())
	c.register(job("10-a"))
	a := c.running("10-a", 1)[0]
	if _, _, err := c.api.Jobs().Deregister("10-a", true, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.api.Jobs().Info("10-a", nil); err == nil || !strings.Contains(err.Error(), "404 (job not found)") {
		t.Errorf("the purged job is %v", err)
	}
	if _, _, err := c.api.Allocations().Info(a.ID, nil); err == nil || !strings.Contains(err.Error(), "404 (alloc not found)") {
		t.Errorf("its allocation is %v", err)
	}
	eventually(t, "the node was told", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.purged) == 1 && n.purged[0] == a.ID
	})
}

func TestAfterARestartEverythingIsThere(t *testing.T) {
	dir := t.TempDir()
	c := start(t, orchestrator.ServerConfig{DataDir: dir})
	mn := newModelNode()
	c.join(mn)
	for i := range 5 {
		c.register(job(fmt.Sprint("10-", i)))
	}
	a := c.running("10-3", 1)[0]
	c.stop()

	c = start(t, orchestrator.ServerConfig{DataDir: dir})
	list, meta, err := c.api.Jobs().List(nil)
	if err != nil || len(list) != 5 {
		t.Fatalf("%d jobs, %v", len(list), err)
	}
	n := c.join(mn)
	if p := <-n.pushed; !p.Full || len(p.Allocs) != 5 || p.Allocs[0].Job == nil {
		t.Errorf("the first message is %+v", p)
	}
	if b := c.running("10-3", 1)[0]; b.ID != a.ID {
		t.Error("the allocation is another one")
	}
	if meta.LastIndex == 0 {
		t.Error("no index")
	}
	c.register(job("10-new"))
	c.running("10-new", 1)
}

func TestWorkWaitsForRoomAndSaysWhy(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	small := newModelNode()
	small.Resources.MemoryMB = 520
	c.join(small)
	half := func(id string) *api.Job {
		j := job(id)
		j.TaskGroups[0].Tasks[0].Resources.MemoryMB = new(300)
		return j
	}
	c.register(half("10-a"))
	c.running("10-a", 1)
	r := c.register(half("10-b"))
	var blocked string
	eventually(t, "the evaluation explains itself", func() bool {
		e, _, err := c.api.Evaluations().Info(r.EvalID, nil)
		if err != nil || e.Status != "complete" {
			return false
		}
		blocked = e.BlockedEval
		return e.FailedTGAllocs["default"].DimensionExhausted["memory"] == 1 && e.QueuedAllocations["default"] == 1
	})
	if e, _, err := c.api.Evaluations().Info(blocked, nil); err != nil || e.Status != "blocked" {
		t.Fatalf("the blocked evaluation is %+v, %v", e, err)
	}
	if _, _, err := c.api.Jobs().Deregister("10-a", true, nil); err != nil {
		t.Fatal(err)
	}
	c.running("10-b", 1)
}

func TestAJobRegisteredBeforeAnyNodeRunsOnceThereIsOne(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	c.register(job("10-a"))
	c.join(newModelNode())
	c.running("10-a", 1)
}

func TestAFailedBatchAllocationWithoutReschedulingStaysFailed(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	n := c.join(newModelNode())
	c.register(job("10-a"))
	a := c.running("10-a", 1)[0]
	n.report(&model.AllocUpdate{ID: a.ID, ClientStatus: model.ClientFailed,
		TaskStates: map[string]*model.TaskState{"t": {State: model.TaskDead, Failed: true, FinishedAt: time.Now().UnixNano()}}})
	eventually(t, "the job is dead", func() bool {
		j, _, err := c.api.Jobs().Info("10-a", nil)
		return err == nil && *j.Status == "dead"
	})
	if list, _, _ := c.api.Jobs().Allocations("10-a", true, nil); len(list) != 1 {
		t.Errorf("there are %d allocations", len(list))
	}
	n.report(&model.AllocUpdate{ID: a.ID, ClientStatus: model.ClientRunning})
	if b, _, _ := c.api.Allocations().Info(a.ID, nil); b.ClientStatus != model.ClientFailed {
		t.Error("an old report brought it back")
	}
}

func TestAFailedServiceAllocationIsReplaced(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	n := c.join(newModelNode())
	j := job("web")
	j.Type = new("service")
	j.TaskGroups[0].ReschedulePolicy = &api.ReschedulePolicy{Unlimited: new(true), Delay: new(50 * time.Millisecond),
		DelayFunction: new("constant"), MaxDelay: new(time.Second)}
	c.register(j)
	a := c.running("web", 1)[0]
	n.report(&model.AllocUpdate{ID: a.ID, ClientStatus: model.ClientFailed})
	b := c.running("web", 1)[0]
	full, _, err := c.api.Allocations().Info(b.ID, nil)
	if err != nil || b.ID == a.ID || full.PreviousAllocation != a.ID {
		t.Errorf("the new allocation is %+v, %v", full, err)
	}
	old, _, err := c.api.Allocations().Info(a.ID, nil)
	if err != nil || old.NextAllocation != b.ID {
		t.Errorf("the old one points to %q, %v", old.NextAllocation, err)
	}
}

func TestASilentNodeIsDownAndItsWorkMoves(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{HeartbeatTTL: 150 * time.Millisecond, HeartbeatGrace: 150 * time.Millisecond})
	n := c.join(newModelNode())
	c.register(job("10-a"))
	a := c.running("10-a", 1)[0]
	eventually(t, "the node is down", func() bool {
		i, _, err := c.api.Nodes().Info(n.id, nil)
		return err == nil && i.Status == model.NodeDown
	})
	eventually(t, "the allocation is lost", func() bool {
		b, _, err := c.api.Allocations().Info(a.ID, nil)
		return err == nil && b.ClientStatus == model.ClientLost && b.DesiredStatus == model.DesiredStop
	})
	if status, body := n.put("heartbeat", nil); status != 200 {
		t.Fatalf("heartbeat: %d %s", status, body)
	}
	if b := c.running("10-a", 1)[0]; b.ID == a.ID {
		t.Error("the lost allocation runs again")
	}
}

func TestAStoppedAllocationIsReplaced(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	c.join(newModelNode())
	c.register(job("10-a"))
	a := c.running("10-a", 1)[0]
	r, err := c.api.Allocations().Stop(&api.Allocation{ID: a.ID, NodeID: a.NodeID}, nil)
	if err != nil || r.EvalID == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	eventually(t, "another one runs", func() bool {
		l := c.running("10-a", 1)
		return l[0].ID != a.ID
	})
	if _, _, err := c.api.Jobs().Deregister("10-a", false, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stopped job is dead", func() bool {
		j, _, err := c.api.Jobs().Info("10-a", nil)
		return err == nil && *j.Status == "dead" && *j.Stop
	})
	if err := c.api.System().GarbageCollect(); err != nil {
		t.Fatal(err)
	}
	if l, _, err := c.api.Jobs().List(nil); err != nil || len(l) != 0 {
		t.Errorf("after collection there are %d jobs, %v", len(l), err)
	}
}

func TestABlockingQueryReturnsWhenItsObjectChanges(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	c.join(newModelNode())
	c.register(job("10-a"))
	c.running("10-a", 1)
	eventually(t, "nothing more happens", func() bool {
		l, _, _ := c.api.Jobs().Evaluations("10-a", nil)
		return len(l) == 1 && l[0].Status == "complete"
	})
	_, meta, err := c.api.Jobs().Info("10-a", nil)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, again, err := c.api.Jobs().Info("10-a", &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: 100 * time.Millisecond})
	if err != nil || time.Since(began) < 100*time.Millisecond || again.LastIndex != meta.LastIndex {
		t.Errorf("a query for nothing new took %v and gave index %d after %d, %v", time.Since(began), again.LastIndex, meta.LastIndex, err)
	}
	done := make(chan uint64, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, m, err := c.api.Jobs().Info("10-a", &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: 30 * time.Second})
		if err != nil {
			t.Error(err)
			return
		}
		done <- m.LastIndex
	})
	j := job("10-a")
	j.TaskGroups[1].Meta["used"] = "true"
	r := c.register(j)
	if got := <-done; got < r.JobModifyIndex {
		t.Errorf("it returned with index %d, want at least %d", got, r.JobModifyIndex)
	}
	wg.Wait()
}

func TestAnswersHaveNomadsWords(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{Token: "secret"})
	const id = "4a8a8d94-4c3c-4a1c-9c1a-5a6b7c8d9e0f"
	for _, q := range []struct {
		name, method, path, token, body string
		status                          int
		want                            string
	}{
		{"no token", "GET", "/v1/jobs", "", "", 403, "Permission denied"},
		{"a wrong token", "GET", "/v1/jobs", "wrong", "", 403, "Permission denied"},
		{"public without a token", "GET", "/v1/status/leader", "", "", 200, `"127.0.0.1:4646"`},
		{"the peers", "GET", "/v1/status/peers", "", "", 200, `["127.0.0.1:4646"]`},
		{"the regions", "GET", "/v1/regions", "", "", 200, `["global"]`},
		{"health", "GET", "/v1/agent/health", "", "", 200, `{"server":{"ok":true,"message":"ok"}}`},
		{"an empty list", "GET", "/v1/jobs", "secret", "", 200, "[]"},
		{"a job that is not there", "GET", "/v1/job/x", "secret", "", 404, "job not found"},
		{"its allocations", "GET", "/v1/job/x/allocations", "secret", "", 200, "[]"},
		{"its summary", "GET", "/v1/job/x/summary", "secret", "", 404, "job not found"},
		{"its deployment", "GET", "/v1/job/x/deployment", "secret", "", 200, "null"},
		{"removing it", "DELETE", "/v1/job/x", "secret", "", 200, `"EvalID":"","EvalCreateIndex":0`},
		{"an allocation that is not there", "GET", "/v1/allocation/" + id, "secret", "", 404, "alloc not found"},
		{"an evaluation", "GET", "/v1/evaluation/" + id, "secret", "", 404, "eval not found"},
		{"a node", "GET", "/v1/node/" + id, "secret", "", 404, "node not found"},
		{"a malformed id", "GET", "/v1/allocation/xyz", "secret", "", 500, "UUID"},
		{"a prefix that is not hex", "GET", "/v1/nodes?prefix=xyz", "secret", "", 500, "UUID"},
		{"a bad wait", "GET", "/v1/jobs?wait=soon", "secret", "", 400, "wait"},
		{"a bad filter", "GET", "/v1/jobs?filter=a%20b", "secret", "", 400, "failed to read filter expression"},
		{"an empty registration", "PUT", "/v1/jobs", "secret", "{}", 400, "Job must be specified"},
		{"broken JSON", "PUT", "/v1/jobs", "secret", "{", 400, "EOF"},
		{"an invalid job", "PUT", "/v1/jobs", "secret", `{"Job":{"ID":"x","Type":"odd","Priority":200}}`, 500, "3 errors occurred:\n\t* Job priority"},
		{"a job with a null in it", "PUT", "/v1/jobs", "secret", `{"Job":{"ID":"x","TaskGroups":[null]}}`, 400, "null"},
		{"a wrong method", "POST", "/v1/nodes", "secret", "", 405, "Invalid method"},
		{"an unknown path", "GET", "/v1/nothing", "secret", "", 404, ""},
		{"what Nomad has and we do not", "GET", "/v1/sentinel/policies", "secret", "", 501, "not supported by Rockpool"},
		{"CSI volumes", "GET", "/v1/volumes?type=csi", "secret", "", 200, "[]"},
		{"exec that is no WebSocket", "GET", "/v1/client/allocation/" + id + "/exec", "secret", "", 500, "websocket"},
		{"restart of an unknown allocation", "PUT", "/v1/client/allocation/" + id + "/restart", "secret", "{}", 404, `Unknown allocation "` + id + `"`},
		{"a node's route without its secret", "PUT", "/v1/internal/node/" + id + "/heartbeat", "secret", "", 403, "Permission denied"},
		{"an unknown topic", "GET", "/v1/event/stream?topic=Odd", "secret", "", 400, "Odd"},
		{"events from the future", "GET", "/v1/event/stream?index=100000", "secret", "", 410, "no longer held"},
		{"the agent", "GET", "/v1/agent/self", "secret", "", 200, `"Rockpool":{"JobMark":true,"NativeExec":true}`},
		{"metrics", "GET", "/v1/metrics?format=prometheus", "secret", "", 200, "nomad_nomad_job_status_running 0"},
	} {
		t.Run(q.name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), q.method, c.http.URL+q.path, strings.NewReader(q.body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("X-Nomad-Token", q.token)
			resp, err := c.http.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != q.status || !strings.Contains(string(body), q.want) || q.want == "" && len(body) > 0 {
				t.Errorf("got %d %q, want %d with %q", resp.StatusCode, body, q.status, q.want)
			}
			if q.status == 404 && q.want != "" && resp.Header.Get("X-Nomad-Index") == "" {
				t.Error("no index")
			}
		})
	}
	bearer, _ := http.NewRequestWithContext(context.Background(), "GET", c.http.URL+"/v1/jobs", nil)
	bearer.Header.Set("Authorization", "Bearer secret")
	if resp, err := c.http.Client().Do(bearer); err != nil || resp.StatusCode != 200 {
		t.Errorf("a bearer token got %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
}

func TestListsArePagedAndFiltered(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	for i := range 5 {
		c.register(job(fmt.Sprint("f", i)))
	}
	page, meta, err := c.api.Jobs().List(&api.QueryOptions{PerPage: 2})
	if err != nil || len(page) != 2 || meta.NextToken != "default.f2" {
		t.Fatalf("the first page is %d long, next %q, %v", len(page), meta.NextToken, err)
	}
	page, _, err = c.api.Jobs().List(&api.QueryOptions{PerPage: 2, NextToken: meta.NextToken})
	if err != nil || page[0].ID != "f2" {
		t.Errorf("the second page begins with %v, %v", page, err)
	}
	page, _, err = c.api.Jobs().List(&api.QueryOptions{Filter: `ID == "f3"`})
	if err != nil || len(page) != 1 {
		t.Errorf("the filter lets %d through, %v", len(page), err)
	}
	if page, _, err = c.api.Jobs().List(&api.QueryOptions{Namespace: "other"}); err != nil || len(page) != 0 {
		t.Errorf("another namespace has %d, %v", len(page), err)
	}
	if page, _, err = c.api.Jobs().PrefixList("f"); err != nil || len(page) != 5 {
		t.Errorf("the prefix gives %d, %v", len(page), err)
	}
}

func TestTheSchedulerConfigurationIsSetByCompareAndSet(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	r, _, err := c.api.Operator().SchedulerGetConfiguration(nil)
	if err != nil {
		t.Fatal(err)
	}
	conf := r.SchedulerConfig
	conf.SchedulerAlgorithm = "spread"
	if s, _, err := c.api.Operator().SchedulerCASConfiguration(conf, nil); err != nil || !s.Updated {
		t.Fatalf("%+v, %v", s, err)
	}
	if s, _, err := c.api.Operator().SchedulerCASConfiguration(conf, nil); err != nil || s.Updated {
		t.Errorf("a second one with the same index: %+v, %v", s, err)
	}
}

func TestBeforeItLeadsAServerAnswersOnlyWhatMayBeStale(t *testing.T) {
	s, err := orchestrator.NewServer(orchestrator.ServerConfig{Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{
		"/v1/jobs": 500, "/v1/allocations": 500, "/v1/event/stream": 500, "/v1/job/x": 500, "/v1/jobs?stale": 200, "/v1/agent/self": 200, "/v1/regions": 200,
	} {
		w := httptest.NewRecorder()
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // a stream that should have been refused ends at once
		s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, path, nil))
		if w.Code != want || (want == 500 && w.Body.String() != "No cluster leader") {
			t.Errorf("%s: got %d %s", path, w.Code, w.Body)
		}
	}
}
