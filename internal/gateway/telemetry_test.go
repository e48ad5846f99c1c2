package gateway_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gorilla/websocket"

	"rockpool/internal/config"
	"rockpool/internal/gateway"
	"rockpool/internal/logging"
	"rockpool/internal/nomad/nomadtest"
)

// point is a line of InfluxDB's protocol.
type point struct {
	measurement  string
	tags, fields map[string]string
}

// influxDB keeps the points it was sent.
type influxDB struct {
	mu     sync.Mutex
	points []point
	bad    []string
}

func (i *influxDB) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body io.Reader = r.Body
	if z, err := gzip.NewReader(r.Body); err == nil {
		body = z
	}
	data, _ := io.ReadAll(body)
	i.mu.Lock()
	defer i.mu.Unlock()
	for line := range strings.SplitSeq(strings.TrimSpace(string(data)), "\n") {
		p, ok := parseLine(line)
		if !ok {
			i.bad = append(i.bad, line)
		}
		i.points = append(i.points, p)
	}
	w.WriteHeader(http.StatusNoContent)
}

// split cuts at a separator that is neither escaped nor within quotes.
func split(s string, at byte, most int) (parts []string) {
	var b strings.Builder
	quoted := false
	for n := 0; n < len(s); n++ {
		switch c := s[n]; {
		case c == '\\' && n+1 < len(s):
			b.WriteByte(c)
			n++
			b.WriteByte(s[n])
		case c == '"':
			quoted = !quoted
			b.WriteByte(c)
		case c == at && !quoted && (most == 0 || len(parts) < most-1):
			parts = append(parts, b.String())
			b.Reset()
		default:
			b.WriteByte(c)
		}
	}
	return append(parts, b.String())
}

var timestamp = regexp.MustCompile(`^[0-9]{19}$`)

func parseLine(line string) (point, bool) {
	p := point{tags: map[string]string{}, fields: map[string]string{}}
	parts := split(line, ' ', 0)
	if len(parts) != 3 || !timestamp.MatchString(parts[2]) {
		return p, false
	}
	for n, pair := range split(parts[0], ',', 0) {
		if n == 0 {
			p.measurement = pair
			continue
		}
		kv := split(pair, '=', 2)
		if len(kv) != 2 || kv[1] == "" {
			return p, false
		}
		p.tags[kv[0]] = kv[1]
	}
	for _, pair := range split(parts[1], ',', 0) {
		kv := split(pair, '=', 2)
		if len(kv) != 2 {
			return p, false
		}
		p.fields[kv[0]] = kv[1]
	}
	return p, true
}

// shape is a point's names and, of the tags that say what it is about, the values.
func (p point) shape() string {
	var parts []string
	for k, v := range p.tags {
		switch k {
		case "event_type", "status", "stage", "topic", "type", "image", "cpu_limit", "memory_limit", "network_access", "client_status":
			parts = append(parts, k+"="+v)
		default:
			parts = append(parts, k)
		}
	}
	slices.Sort(parts)
	var fields []string
	for k := range p.fields {
		fields = append(fields, k)
	}
	slices.Sort(fields)
	return p.measurement + " " + strings.Join(parts, ",") + " " + strings.Join(fields, ",")
}

func (i *influxDB) has(shape string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.ContainsFunc(i.points, func(p point) bool { return p.shape() == shape })
}

func TestPointsAreThoseOfTheContract(t *testing.T) {
	db := &influxDB{}
	server := httptest.NewServer(db)
	defer server.Close()
	h := ready(t, "2", 2, func(c *config.Config) {
		c.InfluxDB = config.InfluxDB{URL: server.URL, Organization: "o", Bucket: "b", Stage: "test"}
	})
	id := h.claim("60")
	h.pool("10", 2, 1)
	h.cluster.SetFiles(id, nomadtest.File{Name: "a", Content: "abc", Type: "-", User: "user"})
	h.want("PATCH", "/runners/"+id+"/files", `{"copy":[{"path":"a","content":"aGk="}]}`, 204, "")
	h.want("GET", "/runners/"+id+"/files", "", 200, "files")
	h.want("GET", "/runners/"+id+"/files/raw?path=a", "", 200, "abc")
	h.messages(h.dial(h.execute(id, `{"command":"true"}`)), begin, `{"type":"exit","data":0}`)
	h.want("GET", "/version", "", 200, "\"")
	h.want("GET", "/execution-environments/10", "", 200, "id")
	h.want("GET", "/execution-environments", "", 200, "id")
	h.want("GET", "/runners/10-unknown/files", "", 410, "message")
	h.want("DELETE", "/runners/"+id, "", 204, "")
	h.want("DELETE", "/execution-environments/10", "", 204, "")
	h.stop()
	const stage = "stage=test"
	for _, want := range []string{
		"poseidon_createOrUpdate stage=test,status=201 duration", "poseidon_list stage=test,status=200 duration", "poseidon_get stage=test,status=200 duration",
		"poseidon_delete stage=test,status=204 duration", "poseidon_/version stage=test,status=200 duration",
		"poseidon_/execution-environments stage=test,status=200 duration",
		"poseidon_provideRunner environment_id,runner_id,stage=test,status=200 duration", "poseidon_deleteRunner environment_id,runner_id,stage=test,status=204 duration",
		"poseidon_/files environment_id,runner_id,stage=test,status=204 duration,request_size", "poseidon_/files_list environment_id,runner_id,stage=test,status=200 duration",
		"poseidon_/files/raw environment_id,runner_id,stage=test,status=200 duration", "poseidon_/execute environment_id,runner_id,stage=test,status=200 duration",
		"poseidon_/websocket environment_id,runner_id,stage=test,status=101 duration",
		"poseidon_/files_list stage=test,status=410 duration", // what a stranger says of a runner is no tag
		"poseidon_poolsize environment_id,stage=test prewarming_pool_size",
		"poseidon_environments cpu_limit=100,event_type=creation,id,image=host,memory_limit=256,network_access=false,stage=test count",
		"poseidon_environments event_type=deletion,id,stage=test count",
		"poseidon_nomad_idle_runners environment_id,event_type=creation,id,stage=test count", "poseidon_nomad_idle_runners environment_id,event_type=deletion,id,stage=test count",
		"poseidon_nomad_idle_runners environment_id,runner_id,stage=test startup_duration",
		"poseidon_used_runners environment_id,event_type=creation,id,stage=test count", "poseidon_used_runners environment_id,event_type=deletion,id,stage=test count",
		"poseidon_nomad_executions environment_id,event_type=creation,id,runner_id,stage=test count",
		"poseidon_nomad_executions environment_id,event_type=deletion,id,runner_id,stage=test count",
		"poseidon_nomad_jobs event_type=creation,id,stage=test count", "poseidon_nomad_jobs allocation_id,event_type=creation,id,stage=test count",
		"poseidon_nomad_jobs event_type=deletion,id,stage=test count",
		"poseidon_nomad_allocations client_status=pending,event_type=creation,id,job_id,nomad_agent,stage=test count",
		"poseidon_nomad_events key,stage=test,timestamp,topic=Job,type=JobRegistered payload",
		"poseidon_file_download environment_id,runner_id,stage=test actual_length,expected_length",
	} {
		if !db.has(want) {
			t.Errorf("there is no point %s", want)
		}
	}
	if t.Failed() {
		seen := map[string]bool{}
		for _, p := range db.points {
			seen[p.shape()] = true
		}
		for s := range seen {
			t.Log(s)
		}
	}
	if len(db.bad) > 0 {
		t.Errorf("lines that are none: %q", db.bad)
	}
	for _, p := range db.points {
		switch {
		case p.tags["stage"] != "test":
			t.Errorf("%+v has no %s", p, stage)
		case p.measurement == "poseidon_/files" && p.tags["status"] == "204" && p.fields["request_size"] != "40i":
			t.Errorf("the size of the request: %v", p.fields)
		case p.measurement == "poseidon_file_download" && (p.fields["expected_length"] != "3i" || p.fields["actual_length"] != "3i"):
			t.Errorf("the download: %v", p.fields)
		}
	}
}

// value is that of one series; "" = there is none.
func value(figures, series string) string {
	for line := range strings.SplitSeq(figures, "\n") {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			return rest
		}
	}
	return ""
}

func TestFiguresTellWhatHappened(t *testing.T) {
	t.Parallel()
	h := ready(t, "2", 2)
	id := h.claim("60")
	h.pool("10", 2, 1)
	ws := h.dial(h.execute(id, `{"command":"echo hello; err oh; cat"}`))
	figures := func() string { return h.want("GET", "/rockpool/metrics", "", 200, "rockpool") }
	h.eventually("the execution is counted", func() bool {
		f := figures()
		return value(f, `rockpool_gateway_executions_running{environment="10"}`) == "1" && value(f, `rockpool_gateway_requests_in_flight{route="/websocket"}`) == "1"
	})
	if err := ws.WriteMessage(1, []byte("\x04")); err != nil {
		t.Fatal(err)
	}
	h.rest(ws)
	h.want("POST", "/runners", `{"executionEnvironmentId":12345}`, 404, "unknown")
	h.want("PATCH", "/runners/"+id+"/files", `{"copy":[{"path":"a","content":"aGk="}]}`, 204, "")
	h.cluster.CutEvents()
	h.eventually("the gap is counted", func() bool { return value(figures(), "rockpool_gateway_cluster_event_gaps_total") == "1" })
	f := figures()
	for series, want := range map[string]string{
		`rockpool_gateway_pool_wanted_runners{environment="10"}`:                              "2",
		`rockpool_gateway_pool_idle_runners{environment="10"}`:                                "2",
		`rockpool_gateway_pool_starting_runners{environment="10"}`:                            "0",
		`rockpool_gateway_pool_used_runners{environment="10"}`:                                "1",
		`rockpool_gateway_claims_total{environment="10",outcome="hit"}`:                       "1",
		`rockpool_gateway_claims_total{environment="none",outcome="unknown"}`:                 "1",
		`rockpool_gateway_claim_duration_seconds_count{environment="10"}`:                     "1",
		`rockpool_gateway_executions_started_total{environment="10"}`:                         "1",
		`rockpool_gateway_executions_running{environment="10"}`:                               "0",
		`rockpool_gateway_executions_ended_total{environment="10",verdict="exit"}`:            "1",
		`rockpool_gateway_warm_executions_total{environment="10",start="warm"}`:               "1",
		`rockpool_gateway_execution_output_bytes_total{environment="10",stream="stdout"}`:     "6",
		`rockpool_gateway_execution_output_bytes_total{environment="10",stream="stderr"}`:     "3",
		`rockpool_gateway_request_duration_seconds_count{route="provideRunner",status="404"}`: "1",
		`rockpool_gateway_request_duration_seconds_count{route="/websocket",status="101"}`:    "1",
		`rockpool_gateway_requests_in_flight{route="/websocket"}`:                             "0",
		`rockpool_gateway_received_bytes_total{route="/files"}`:                               "40",
		`rockpool_gateway_cluster_call_duration_seconds_count{call="event.get",result="ok"}`:  "2",
		`rockpool_gateway_refused_total{reason="token"}`:                                      "0",
		`rockpool_gateway_influxdb_points_total{result="dropped"}`:                            "0",
	} {
		if got := value(f, series); got != want {
			t.Errorf("%s: %q, want %s", series, got, want)
		}
	}
	for _, name := range []string{"rockpool_gateway_runner_start_duration_seconds_count", "rockpool_gateway_cluster_event_lag_seconds_count", "go_goroutines", "process_open_fds"} {
		if !strings.Contains(f, name) {
			t.Errorf("%s is missing", name)
		}
	}
	if strings.Contains(f, id) || strings.Contains(f, "12345") {
		t.Error("an id of a runner, or one that a stranger made up, is a label")
	}
}

func TestFiguresAndProfilesAtTheirOwnAddresses(t *testing.T) {
	log := &bytes.Buffer{}
	start := func(change func(*config.Config)) (at func(key string) string, stop func()) {
		cfg := config.Default()
		cfg.Server.Port, cfg.Server.Token, cfg.Nomad.Address = 0, "secret", nomadtest.New(t).URL
		change(&cfg)
		log.Reset()
		l, err := logging.New(log, "info", logging.JSON)
		if err != nil {
			t.Fatal(err)
		}
		g, err := gateway.New(cfg, nil, l)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		return g.Operations, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(url, host string, header ...string) int {
		t.Helper()
		r, err := http.NewRequest("GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			r.Host = host
		}
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	expect := func(what string, got, want int) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	at, stop := start(func(c *config.Config) { c.Metrics.Address, c.Profiling.Address = "127.0.0.1:0", "localhost:0" })
	m, p := "http://"+at("127.0.0.1:0"), "http://"+at("localhost:0")
	expect("figures on loopback", get(m+"/metrics", ""), 200)
	expect("profiles where only figures are", get(m+"/debug/pprof/", ""), 404)
	expect("figures where only profiles are", get(p+"/metrics", ""), 404)
	expect("a profile", get(p+"/debug/pprof/goroutine", ""), 200)
	expect("a name of somebody else that means this machine", get(p+"/debug/pprof/heap", "evil.example:80"), 403)
	expect("anything else", get(m+"/", ""), 404)
	stop()

	file := tokenFile(t)
	at, stop = start(func(c *config.Config) { c.Metrics.Address, c.Server.TokenFile = "0.0.0.0:0", file })
	m = "http://" + strings.Replace(at("0.0.0.0:0"), "[::]", "127.0.0.1", 1)
	expect("without a token", get(m+"/metrics", ""), 401)
	expect("a wrong one", get(m+"/metrics", "", "Authorization", "Bearer x"), 401)
	expect("one without the scope", get(m+"/metrics", "", "Poseidon-Token", secrets["alice"]), 403)
	expect("one with the scope for some environments", get(m+"/metrics", "", "Authorization", "Bearer "+secrets["local"]), 403)
	expect("as Prometheus sends it", get(m+"/metrics", "", "Authorization", "Bearer "+secrets["root"]), 200)
	expect("the API's own header", get(m+"/metrics", "", "Poseidon-Token", "secret"), 200)
	stop()
}

func TestTheLogHoldsNeitherSecretsNorWhatProgramsRead(t *testing.T) {
	var log lockedBuffer
	cfg := config.Default()
	file := tokenFile(t)
	c := nomadtest.New(t)
	cfg.Server.Port, cfg.Server.Token, cfg.Nomad.Address, cfg.Server.TokenFile = 0, "server-secret-server", c.URL, file
	l, err := logging.New(&log, "trace", logging.JSON)
	if err != nil {
		t.Fatal(err)
	}
	g, err := gateway.New(cfg, nil, l)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	h := &harness{T: t, url: "http://" + g.Addr().String() + "/api/v1", cluster: c, http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	if code, _, _ := h.as("root", "PUT", "/execution-environments/10", env("1")); code != 201 {
		t.Fatal(code)
	}
	h.eventually("a runner", func() bool {
		_, body, _ := h.as("root", "GET", "/statistics/execution-environments", "")
		return strings.Contains(body, `"idleRunners":1`)
	})
	id := h.claimAs("root")
	if code, _, _ := h.as("wrong-wrong-wrong-wrong", "GET", "/rockpool/runners", ""); code != 401 {
		t.Fatal(code)
	}
	_, body, _ := h.as("root", "POST", "/runners/"+id+"/execute", `{"command":"echo program-output; cat"}`)
	url := strings.TrimSuffix(body[strings.Index(body, "ws://"):], `"}`)
	ws, _, err := websocket.DefaultDialer.Dial(url, http.Header{"Poseidon-Token": {secrets["root"]}})
	if err != nil {
		t.Fatal(err)
	}
	if err := ws.WriteMessage(1, []byte("typed-by-a-learner\n\x04")); err != nil {
		t.Fatal(err)
	}
	h.rest(ws)
	_ = ws.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	text := log.String()
	for _, secret := range []string{secrets["root"], "server-secret-server", "wrong-wrong", "program-output", "typed-by-a-learner"} {
		if strings.Contains(text, secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
	for _, want := range []string{`"method":"POST"`, `"code":200`, `"code":101`, `"path":"/api/v1/runners"`, `"duration":`, `"user_agent":`, `"request_id":`,
		fmt.Sprintf(`"runner_id":%q`, id), `"environment_id":10`, `"token":"root"`} {
		if !strings.Contains(text, want) {
			t.Errorf("the log lacks %s", want)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
