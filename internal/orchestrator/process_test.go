package orchestrator_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"

	"rockpool/internal/logging"
	"rockpool/internal/metrics"
	"rockpool/internal/orchestrator"
	"rockpool/internal/orchestrator/httpapi"
)

func TestAnOperatorLooksIntoTheProcess(t *testing.T) {
	c := start(t, orchestrator.ServerConfig{})
	c.join(newModelNode())
	c.register(job("10-a"))
	c.running("10-a", 1)
	var out strings.Builder
	log, feed, err := logging.NewFeed(&out, "info", logging.Text)
	if err != nil {
		t.Fatal(err)
	}
	get := func(path string) (int, string) {
		t.Helper()
		r, err := http.Get(c.http.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(b)
	}
	for _, want := range []string{
		"nomad_nomad_job_status_running 1", "nomad_nomad_job_summary_running 1", "nomad_nomad_fsm_batch_count 1", "nomad_nomad_plan_apply_count 1",
		"nomad_nomad_worker_invoke_scheduler_batch_count", "nomad_nomad_heartbeat_active 1", "nomad_nomad_leader_barrier_count 1", "rockpool_leader_leading 1",
	} {
		if code, text := get("/v1/metrics?format=prometheus"); code != 200 || !strings.Contains(text, want) {
			t.Errorf("%s is not in %d\n%s", want, code, text)
		}
	}
	if code, _ := get("/v1/agent/pprof/goroutine"); code != 403 {
		t.Errorf("profiles that nobody enabled: %d", code)
	}
	if code, _ := get("/v1/agent/monitor"); code != 501 {
		t.Errorf("a log that cannot be followed: %d", code)
	}
	reload := errors.New("a.hcl:1: there is no key x")
	c.server.SetProcess(httpapi.Process{
		Metrics: metrics.New(nil), NoPrometheus: true, Log: feed, Profiles: true, Reload: func() error { return reload },
		Config: func() map[string]any { return map[string]any{"datacenter": "dc1"} },
	})
	for _, q := range []struct {
		path string
		code int
		want string
	}{
		{"/v1/metrics?format=prometheus", 501, "telemetry.prometheus_metrics"},
		{"/v1/metrics?format=xml", 400, "xml"},
		{"/v1/metrics", 200, `"Samples":[]`},
		{"/v1/agent/pprof/goroutine?debug=1", 200, "goroutine profile"},
		{"/v1/agent/pprof/nothing", 404, "nothing"},
		{"/v1/agent/pprof/profile?seconds=9999", 400, "seconds"},
		{"/v1/agent/pprof/cmdline?server_id=other", 404, "other"},
		{"/v1/agent/pprof/cmdline?node_id=other", 404, "Unknown node"},
		{"/v1/agent/self", 200, `"Agent":{"datacenter":"dc1"}`},
		{"/v1/agent/host", 200, `"Environment":{`},
		{"/v1/agent/schedulers/config", 200, `"num_schedulers":64`},
		{"/v1/agent/monitor?log_level=loud", 400, "loud"},
		{"/v1/operator/license", 204, ""},
	} {
		if code, text := get(q.path); code != q.code || !strings.Contains(text, q.want) {
			t.Errorf("%s: %d %s", q.path, code, text)
		}
	}
	if _, err := c.api.Raw().Write("/v1/agent/reload", nil, nil, nil); err == nil || !strings.Contains(err.Error(), reload.Error()) {
		t.Errorf("a reload that fails: %v", err)
	}
	if host, err := c.api.Agent().Host("", "", nil); err != nil || host.HostData == nil || host.HostData.OS == "" {
		t.Errorf("the host is %+v, %v", host, err)
	} else {
		for k, v := range host.HostData.Environment {
			if v != "<redacted>" {
				t.Errorf("the environment shows %s=%s", k, v)
			}
		}
	}

	stop := make(chan struct{})
	frames, errs := c.api.Agent().Monitor(stop, &api.QueryOptions{Params: map[string]string{"log_level": "debug", "log_json": "true"}})
	if frames == nil {
		t.Fatal(<-errs)
	}
	log.WithField("step", 1).Debug("a step")
	if f := <-frames; !strings.Contains(string(f.Data), `"msg":"a step"`) {
		t.Errorf("the frame is %q", f.Data)
	}
	close(stop)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.http.URL+"/v1/agent/monitor?plain=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	log.Info("plain words")
	if line, err := bufio.NewReader(r.Body).ReadString('\n'); err != nil || !strings.Contains(line, "plain words") || strings.HasPrefix(line, "{") {
		t.Errorf("the line is %q, %v", line, err)
	}
}
