package gateway_test

import (
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"rockpool/internal/config"
	"rockpool/internal/gateway"
	"rockpool/internal/logging"
	"rockpool/internal/nomad/nomadtest"
)

func TestEveryDocumentedStatus(t *testing.T) {
	h := ready(t, "1", 1)
	id := h.claim("0")
	run := "/runners/" + id
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		text                     string
	}{
		{"health", "GET", "/health", "", 204, ""},
		{"version", "GET", "/version", "", 200, `"`},
		{"unknown path", "GET", "/nothing", "", 404, ""},
		{"trailing slash", "GET", "/health/", "", 404, ""},
		{"wrong method", "POST", "/health", "", 405, ""},
		{"list", "GET", "/execution-environments", "", 200, `{"executionEnvironments":[{"id":10,`},
		{"bad fetch", "GET", "/execution-environments?fetch=maybe", "", 400, `{"message":`},
		{"get", "GET", "/execution-environments/10", "", 200, `"exposedPorts":[]`},
		{"get with fetch", "GET", "/execution-environments/10?fetch=T", "", 200, `"image":"host"`},
		{"get unknown", "GET", "/execution-environments/11", "", 404, ""},
		{"id is no number", "GET", "/execution-environments/x", "", 404, ""},
		{"id is too large", "PUT", "/execution-environments/99999999999999999999", env("1"), 400, "message"},
		{"negative number", "PUT", "/execution-environments/10", `{"cpuLimit":-1}`, 400, "message"},
		{"port too large", "PUT", "/execution-environments/10", `{"exposedPorts":[70000]}`, 400, "message"},
		{"empty body", "PUT", "/execution-environments/10", ``, 400, "message"},
		{"egress without network", "PUT", "/execution-environments/12", `{"image":"host","networkEgress":["pypi.org"]}`, 400, "networkAccess"},
		{"egress that is no rule", "PUT", "/execution-environments/12", `{"image":"host","networkAccess":true,"networkEgress":["a b"]}`, 400, "a b"},
		{"egress and runtime", "PUT", "/execution-environments/12", `{"image":"host","networkAccess":true,"networkEgress":["pypi.org:443"],"runtime":"runsc"}`, 201, ""},
		{"egress and runtime are kept", "GET", "/execution-environments/12?fetch=true", "", 200, `"networkEgress":["pypi.org:443"],"runtime":"runsc"}`},
		{"that one goes", "DELETE", "/execution-environments/12", "", 204, ""},
		{"devices", "PUT", "/execution-environments/12", `{"image":"host","devices":[{"name":"nvidia/gpu","constraints":[{"attribute":"${device.attr.memory}","operator":">=","value":"8 GiB"}],"share":true},{"name":"gpu","count":2,"share":"only"},{"name":"fpga","share":null,"count":null}]}`, 201, ""},
		{"devices are kept", "GET", "/execution-environments/12?fetch=true", "", 200, `"devices":[{"name":"nvidia/gpu","count":1,"constraints":[{"attribute":"memory","operator":">=","value":"8 GiB"}],"share":true},{"name":"gpu","count":2,"share":"only"},{"name":"fpga","count":1}]`},
		{"a share that is none", "PUT", "/execution-environments/12", `{"image":"host","devices":[{"name":"gpu","share":"mig"}]}`, 400, "share is none of"},
		{"devices that are no list", "PUT", "/execution-environments/12", `{"image":"host","devices":{"name":"gpu"}}`, 400, "message"},
		{"a device without a name", "PUT", "/execution-environments/12", `{"image":"host","devices":[{"count":1}]}`, 400, "devices[0]: name is missing"},
		{"no device of a kind", "PUT", "/execution-environments/12", `{"image":"host","devices":[{"name":"gpu","count":0}]}`, 400, "devices[0]: count 0"},
		{"devices are as they were", "GET", "/execution-environments/12", "", 200, `"name":"fpga"`},
		{"the devices go", "DELETE", "/execution-environments/12", "", 204, ""},
		{"limit above int32", "PUT", "/execution-environments/10", `{"memoryLimit":4294967296}`, 500, `"errorCode":"UNKNOWN"`},
		{"put again", "PUT", "/execution-environments/10", env("1"), 204, ""},
		{"delete unknown", "DELETE", "/execution-environments/11", "", 404, ""},
		{"claim of an unknown environment", "POST", "/runners", `{"executionEnvironmentId":11}`, 404, "message"},
		{"claim with bad JSON", "POST", "/runners", `{`, 400, "message"},
		{"unknown runner", "DELETE", "/runners/10-x", "", 410, `{"message":`},
		{"unknown runner with a body", "PATCH", "/runners/10-x/files", strings.Repeat(" ", 1<<20), 410, "message"},
		{"execute with a bad name", "POST", run + "/execute", `{"environment":{"a b":""}}`, 400, "message"},
		{"websocket with an unknown execution", "GET", run + "/websocket?executionID=x", "", 404, `{"message":"execution id unknown"}`},
		{"copy bad JSON", "PATCH", run + "/files", `{"copy":3}`, 400, "message"},
		{"copy bad base64", "PATCH", run + "/files", `{"copy":[{"path":"a","content":"*"}]}`, 400, "message"},
		{"copy null", "PATCH", run + "/files", `null`, 204, ""},
		{"list nothing", "GET", run + "/files", "", 200, `{"files":[]}`},
		{"list a missing path", "GET", run + "/files?path=missing", "", 424, `{"message":"file not found or insufficient permissions"}`},
		{"download a missing file", "GET", run + "/files/raw?path=missing", "", 424, `{"message":"file not found or insufficient permissions"}`},
		{"download nothing", "GET", run + "/files/raw", "", 424, "file not found"},
		{"delete the runner", "DELETE", run, "", 204, ""},
		{"delete it again", "DELETE", run, "", 410, "message"},
		{"delete the environment", "DELETE", "/execution-environments/10", "", 204, ""},
		{"no environments", "GET", "/execution-environments", "", 200, `{"executionEnvironments":[]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := *h
			h.T = t
			h.want(c.method, c.path, c.body, c.status, c.text)
		})
	}
	h.eventually("the cluster is empty", func() bool { return len(h.cluster.Jobs("")) == 0 })
}

func TestATokenIsNeededButForHealthAndVersion(t *testing.T) {
	h := ready(t, "0", 0)
	for path, want := range map[string]int{"/health": 204, "/version": 200, "/rockpool/ready": 204, "/execution-environments": 401, "/runners/x/files": 401, "/nothing": 404} {
		resp, err := h.http.Get(h.url + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want || (want == 401 && resp.ContentLength != 0) {
			t.Errorf("%s: got %d with %d bytes, want %d", path, resp.StatusCode, resp.ContentLength, want)
		}
	}
}

func TestFiftyClientsClaimTenRunners(t *testing.T) {
	h := ready(t, "10", 10)
	h.cluster.Hold(true) // nothing is refilled meanwhile
	var mu sync.Mutex
	seen, overload := map[string]bool{}, 0
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			code, body, _ := h.do("POST", "/runners", `{"executionEnvironmentId":10}`)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case code == 200 && !seen[body]:
				seen[body] = true
			case code == 500 && strings.Contains(body, `"errorCode":"NOMAD_OVERLOAD"`):
				overload++
			default:
				t.Errorf("got %d %s", code, body)
			}
		})
	}
	wg.Wait()
	if len(seen) != 10 || overload != 40 {
		t.Errorf("%d runners were handed out and %d clients refused, want 10 and 40", len(seen), overload)
	}
	h.cluster.Hold(false)
	h.pool("10", 10, 10)
}

func TestTwoGatewaysNeverHandOutOneRunnerTwice(t *testing.T) {
	a := ready(t, "8", 8)
	b := start(t, a.cluster)
	b.pool("10", 8, 0)
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			code, body, _ := []*harness{a, b}[i%2].do("POST", "/runners", `{"executionEnvironmentId":10}`)
			mu.Lock()
			defer mu.Unlock()
			if code == 200 && seen[body] {
				t.Errorf("handed out twice: %s", body)
			}
			seen[body] = true
		})
	}
	wg.Wait()
}

func TestAClaimCostsOneWrite(t *testing.T) {
	h := ready(t, "1", 1)
	h.cluster.Hold(true)
	h.cluster.Break("PUT /v1/jobs/parse", true)
	const mark = "PUT /v1/rockpool/job/{id}/mark"
	reads, writes, marks := h.cluster.Calls("GET /v1/job/{id}"), h.cluster.Calls("PUT /v1/jobs"), h.cluster.Calls(mark)
	id := h.claim("30")
	h.eventually("the refill", func() bool { return len(h.cluster.Jobs("10-")) == 2 })
	want := 0
	if within { // it is offered there
		want = 1
	}
	r, w, m := h.cluster.Calls("GET /v1/job/{id}")-reads, h.cluster.Calls("PUT /v1/jobs")-writes, h.cluster.Calls(mark)-marks
	if r != 0 || w+m != 2 || m != want {
		t.Errorf("%d reads, %d writes and %d marks, want none, and 1 beside 1 for the refill", r, w, m)
	}
	if meta := h.cluster.Meta(id); meta["used"] != "true" || meta["timeout"] != "30" {
		t.Errorf("the mark is %v", meta)
	}
}

func TestAClaimOfARunnerThatIsBeingEvaluatedIsWrittenAllTheSame(t *testing.T) {
	h := ready(t, "1", 1)
	h.cluster.Evaluates(true)
	writes := h.cluster.Calls("PUT /v1/jobs")
	id := h.claim("30")
	if meta := h.cluster.Meta(id); meta["used"] != "true" || meta["timeout"] != "30" || h.cluster.Calls("PUT /v1/jobs") == writes {
		t.Errorf("the mark is %v", meta)
	}
}

func TestPoolsFollowTheirSize(t *testing.T) {
	h := ready(t, "3", 3)
	before := strings.Join(h.cluster.Jobs(""), " ")
	writes := h.cluster.Calls("PUT /v1/jobs")
	h.want("PUT", "/execution-environments/10", env("3"), 204, "")
	if after := strings.Join(h.cluster.Jobs(""), " "); after != before || h.cluster.Calls("PUT /v1/jobs") != writes {
		t.Errorf("an unchanged definition changed the cluster: %s, before %s", after, before)
	}
	h.want("PUT", "/execution-environments/10", env("6"), 204, "")
	h.pool("10", 6, 0)
	for _, id := range strings.Fields(before) {
		if !strings.Contains(strings.Join(h.cluster.Jobs(""), " "), id) {
			t.Errorf("%s was replaced although only the size changed", id)
		}
	}
	h.want("PUT", "/execution-environments/10", env("1"), 204, "")
	h.eventually("the surplus is gone", func() bool { return len(h.cluster.Jobs("10-")) == 1 })
}

func TestAChangedEnvironmentReplacesIdleAndDrainsUsedRunners(t *testing.T) {
	h := ready(t, "2", 2)
	used := h.claim("0")
	h.pool("10", 2, 1)
	old := h.cluster.Jobs("10-")
	h.want("PUT", "/execution-environments/10", strings.Replace(env("2"), "256", "512", 1), 204, "")
	h.eventually("the idle runners are new", func() bool {
		now := h.cluster.Jobs("10-")
		kept := 0
		for _, id := range now {
			for _, o := range old {
				if id == o {
					kept++
				}
			}
		}
		return len(now) == 3 && kept == 1
	})
	h.want("GET", "/runners/"+used+"/files", "", 200, "files")
}

func TestAnImageIsPinnedByDigest(t *testing.T) {
	const one, two = "sha256:1111", "sha256:2222"
	c := nomadtest.New(t)
	c.Image("course/python:3", one)
	h := start(t, c)
	put := strings.Replace(env("2"), "host", "course/python:3", 1)
	h.want("PUT", "/execution-environments/7", put, 201, "")
	h.eventually("two runners", func() bool { idle, _ := h.stats("7"); return idle == 2 })
	before := c.Jobs("7-")
	for _, id := range append(c.Jobs("7-"), "template-7") {
		task, meta := c.Task(id), c.Meta(id)
		if task["image"] != "course/python@"+one || task["force_pull"] != false || meta["image"] != "course/python:3" || meta["imageDigest"] != one {
			t.Errorf("%s: %v %v", id, task, meta)
		}
	}
	h.want("GET", "/execution-environments/7", "", 200, `"image":"course/python:3"`)

	// The same tag, the same image: nothing to do.
	writes := c.Calls("PUT /v1/jobs")
	h.want("PUT", "/execution-environments/7", put, 204, "")
	if n := c.Calls("PUT /v1/jobs"); n != writes {
		t.Errorf("%d writes for an unchanged image", n-writes)
	}
	// A restart takes the pin back, and a registry that does not answer changes nothing.
	h.stop()
	h = start(t, c)
	h.want("GET", "/execution-environments/7", "", 200, `"image":"course/python:3"`)
	c.Break("PUT /v1/rockpool", true)
	h.want("PUT", "/execution-environments/7", put, 204, "")
	c.Break("PUT /v1/rockpool", false)
	h.eventually("the same two runners", func() bool { idle, _ := h.stats("7"); return idle == 2 })
	if after := c.Jobs("7-"); !slices.Equal(after, before) {
		t.Errorf("runners %v became %v", before, after)
	}

	// The same tag, another image: the pool is rolled.
	c.Image("course/python:3", two)
	h.want("PUT", "/execution-environments/7", put, 204, "")
	h.eventually("runners of the new image", func() bool {
		ids := c.Jobs("7-")
		return len(ids) == 2 && !slices.ContainsFunc(ids, func(id string) bool { return c.Task(id)["image"] != "course/python@"+two })
	})
	// An image that does not exist leaves the old definition.
	h.want("PUT", "/execution-environments/7", strings.Replace(put, "python:3", "none:1", 1), 500, "course/none:1")
	h.want("GET", "/execution-environments/7", "", 200, `"image":"course/python:3"`)
}

func TestAnEnvironmentThatCannotBePlacedLeavesTheOldOne(t *testing.T) {
	h := ready(t, "1", 1)
	h.cluster.NoRoom(true)
	h.want("PUT", "/execution-environments/10", strings.Replace(env("1"), "256", "99999", 1), 500, `"errorCode":"UNKNOWN"`)
	h.want("GET", "/execution-environments/10?fetch=true", "", 200, `"memoryLimit":256`)
	h.want("PUT", "/execution-environments/11", env("1"), 500, "UNKNOWN")
	h.want("GET", "/execution-environments/11?fetch=true", "", 404, "")
	h.claim("0")
}

func TestAClusterOutOfReachIsSaidSo(t *testing.T) {
	t.Parallel()
	h := ready(t, "1", 1)
	id := h.claim("0")
	h.pool("10", 1, 1)
	h.cluster.Break("PUT /v1/jobs", true)
	h.cluster.Break("PUT /v1/rockpool/job/", true)
	h.want("POST", "/runners", `{"executionEnvironmentId":10}`, 500, `"errorCode":"NOMAD_UNREACHABLE"`)
	h.cluster.Break("PUT /v1/jobs", false)
	h.cluster.Break("PUT /v1/rockpool/job/", false)
	h.cluster.Break("DELETE /v1/job/", true)
	h.want("DELETE", "/runners/"+id, "", 500, `"errorCode":"NOMAD_INTERNAL_SERVER_ERROR"`)
	h.want("DELETE", "/runners/"+id, "", 410, "message")
	h.cluster.Break("DELETE /v1/job/", false)
	h.eventually("the reconciler went on", func() bool { return len(h.cluster.Jobs(id)) == 0 })
}

func TestRestartKeepsUsedAndIdleRunners(t *testing.T) {
	h := ready(t, "3", 3)
	id := h.claim("100")
	h.pool("10", 3, 1)
	h.stop()
	again := start(t, h.cluster)
	again.pool("10", 3, 1)
	again.want("GET", "/runners/"+id+"/files", "", 200, "files")
	if jobs := h.cluster.Jobs("10-"); len(jobs) != 4 {
		t.Errorf("%d runners, want 4: %v", len(jobs), jobs)
	}
	again.want("DELETE", "/runners/"+id, "", 204, "")
}

func TestRequestsWaitForRecovery(t *testing.T) {
	t.Parallel()
	h := ready(t, "1", 1)
	h.stop()
	h.cluster.Break("GET /v1/allocations", true)
	again := start(t, h.cluster)
	again.want("GET", "/health", "", 503, "recovery")
	again.want("GET", "/rockpool/ready", "", 503, "recovery is under way")
	again.want("GET", "/version", "", 200, `"`)
	answered := make(chan int, 1)
	go func() {
		code, _, _ := again.do("POST", "/runners", `{"executionEnvironmentId":10}`)
		answered <- code
	}()
	h.cluster.Break("GET /v1/allocations", false)
	if code := <-answered; code != 200 {
		t.Errorf("got %d", code)
	}
	again.want("GET", "/rockpool/ready", "", 204, "")
}

func TestAfterABrokenStreamThePoolsAreCompared(t *testing.T) {
	t.Parallel()
	h := ready(t, "3", 3)
	id := h.claim("0")
	h.pool("10", 3, 1)
	ws := h.dial(h.execute(id, `{"command":"cat; echo after"}`))
	h.eventually("it runs", func() bool { return h.cluster.Running() == 1 })
	h.cluster.Break("GET /v1/event/stream", true)
	h.cluster.CutEvents()
	idle := ""
	for _, j := range h.cluster.Jobs("10-") {
		if j != id {
			idle = j
		}
	}
	h.cluster.Purge(idle) // nobody is told
	h.cluster.Break("GET /v1/event/stream", false)
	h.eventually("a replacement", func() bool {
		jobs := strings.Join(h.cluster.Jobs("10-"), " ")
		return len(strings.Fields(jobs)) == 4 && !strings.Contains(jobs, idle)
	})
	if err := ws.WriteMessage(1, []byte("\x04")); err != nil {
		t.Fatal(err)
	}
	h.messages(ws, `{"type":"start"}`, `{"type":"stdout","data":"after\n"}`, `{"type":"exit","data":0}`)
}

func TestADeadRunnerIsGoneAndReplaced(t *testing.T) {
	h := ready(t, "1", 1)
	id := h.claim("0")
	h.cluster.End(id, "failed", false)
	h.eventually("the runner is not known", func() bool { code, _, _ := h.do("GET", "/runners/"+id+"/files", ""); return code == 410 })
	h.pool("10", 1, 0)
	h.eventually("its job is purged", func() bool { return len(h.cluster.Jobs(id)) == 0 })
}

func TestHealthNamesDepletingPools(t *testing.T) {
	h := ready(t, "2", 2, func(c *config.Config) { c.Server.Alert.PrewarmingPoolThreshold = 0.6 })
	h.want("GET", "/health", "", 204, "")
	h.cluster.Hold(true)
	h.claim("0")
	h.eventually("the alert", func() bool { code, _, _ := h.do("GET", "/health", ""); return code == http.StatusServiceUnavailable })
	h.want("GET", "/health", "", 503, `{"message":"the prewarming pool is depleting: environments 10","errorCode":"PREWARMING_POOL_DEPLETING"}`)
	h.want("GET", "/rockpool/ready", "", 204, "") // requests are taken all the same
}

func TestAClaimWaitsForAStartingRunner(t *testing.T) {
	h := start(t, nomadtest.New(t), func(c *config.Config) { c.Server.ClaimWait = 10 })
	h.cluster.Hold(true)
	h.want("PUT", "/execution-environments/10", env("1"), 201, "")
	h.eventually("it is starting", func() bool { return len(h.cluster.Jobs("10-")) == 1 })
	go h.cluster.Hold(false)
	h.claim("0")
}

func TestMappedPorts(t *testing.T) {
	h := start(t, nomadtest.New(t))
	body := strings.Replace(strings.Replace(env("1"), "false", "true", 1), "[]", "[80,443]", 1)
	h.want("PUT", "/execution-environments/10", body, 201, "")
	h.pool("10", 1, 0)
	h.want("POST", "/runners", `{"executionEnvironmentId":10}`, 200,
		`"mappedPorts":[{"exposedPort":80,"hostAddress":"10.0.0.1:20000"},{"exposedPort":443,"hostAddress":"10.0.0.1:20001"}]`)
}

func TestATakenAddressIsSaidWithWhatToDo(t *testing.T) {
	h := start(t, nomadtest.New(t))
	cfg := config.Default()
	cfg.Nomad.Address = h.cluster.URL
	_, port, err := net.SplitHostPort(strings.TrimSuffix(strings.TrimPrefix(h.url, "http://"), "/api/v1"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Server.Port = uint16(n)
	if _, err := gateway.New(cfg, nil, logging.Discard()); err == nil || !strings.Contains(err.Error(), "set another port") {
		t.Errorf("got %v", err)
	}
}

func TestAMissingCertificateIsNamedAtStart(t *testing.T) {
	cfg := config.Default()
	cfg.Nomad.Address, cfg.Server.Port = "127.0.0.1", 0
	cfg.Server.TLS.Active, cfg.Server.TLS.CertFile, cfg.Server.TLS.KeyFile = true, "/does/not/exist", "/does/not/exist"
	if _, err := gateway.New(cfg, nil, logging.Discard()); err == nil || !strings.Contains(err.Error(), "server.tls.certfile") {
		t.Errorf("got %v", err)
	}
}
