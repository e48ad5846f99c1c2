package gateway_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/config"
	"rockpool/internal/nomad/nomadtest"
)

// secrets of the tokens in the file below, by name.
var secrets = map[string]string{"alice": "alice-alice-alice-alice", "bob": "bob-bob-bob-bob-bob-bob", "reader": "reader-reader-reader-1",
	"root": "root-root-root-root-root", "slow": "slow-slow-slow-slow-slow", "spent": "spent-spent-spent-spent", "operator": "operator-operator-operator",
	"local": "local-local-local-local"}

func tokenFile(t *testing.T) string {
	t.Helper()
	text := "tokens:\n"
	for name, rest := range map[string]string{
		"alice": "scopes: [run, read], environments: [10], runners: 2", "bob": "scopes: [run, read]", "reader": "scopes: [read]",
		"root": "scopes: [operate, read, run, environments]", "slow": "scopes: [read], rate: 0.01, burst: 2",
		"spent": "scopes: [read, run, environments, operate], rate: 0.001, burst: 1", "operator": "scopes: [operate]",
		"local": "scopes: [operate], environments: [10]",
	} {
		sum := sha256.Sum256([]byte(secrets[name]))
		text += fmt.Sprintf("- {name: %s, sha256: %s, %s}\n", name, hex.EncodeToString(sum[:]), rest)
	}
	path := filepath.Join(t.TempDir(), "tokens.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// as is a request with a token of the file, or with another secret.
func (h *harness) as(name, method, path, body string) (int, string, http.Header) {
	h.Helper()
	secret, ok := secrets[name]
	if !ok {
		secret = name
	}
	r, err := http.NewRequest(method, h.url+path, strings.NewReader(body))
	if err != nil {
		h.Fatal(err)
	}
	r.Header.Set("Poseidon-Token", secret)
	resp, err := h.http.Do(r)
	if err != nil {
		h.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		h.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(data)), resp.Header
}

func (h *harness) claimAs(name string) string {
	h.Helper()
	code, body, _ := h.as(name, "POST", "/runners", `{"executionEnvironmentId":10,"inactivityTimeout":60}`)
	_, id, found := strings.Cut(body, `"runnerId":"`)
	if code != 200 || !found {
		h.Fatalf("the claim of %s: %d %s", name, code, body)
	}
	return id[:strings.Index(id, `"`)]
}

// everything that can be tried with a runner's id.
var attempts = []struct{ method, path, body string }{
	{"DELETE", "", ""}, {"GET", "/files", ""}, {"GET", "/files?path=/etc&privilegedExecution=true", ""}, {"PATCH", "/files", `{"delete":["./*"]}`},
	{"GET", "/files/raw?path=a", ""}, {"POST", "/execute", `{"command":"id"}`}, {"GET", "/websocket?executionID=x", ""},
}

func TestARunnerOfAnotherTokenLooksAsIfItDidNotExist(t *testing.T) {
	file := tokenFile(t)
	change := func(c *config.Config) { c.Server.TokenFile = file }
	c := nomadtest.New(t)
	h := start(t, c, change)
	h.want("PUT", "/execution-environments/10", env("3"), 201, "")
	h.pool("10", 3, 0)
	mine, ofServer := h.claimAs("alice"), h.claimAs("secret")
	if got := c.Meta(ofServer)["owner"]; got != "" {
		t.Errorf("the one token of the configuration leaves the key owner with %q in the job", got)
	}
	if got := c.Meta(mine)["owner"]; got == "" || strings.Contains(got, "alice") {
		t.Errorf("the owner in the job: %q", got)
	}
	attack := func() {
		t.Helper()
		for _, a := range attempts {
			for _, victim := range []struct{ id, by string }{{mine, "bob"}, {ofServer, "bob"}, {ofServer, "alice"}} {
				code, body, _ := h.as(victim.by, a.method, "/runners/"+victim.id+a.path, a.body)
				_, unknown, _ := h.as(victim.by, a.method, "/runners/10-0000"+victim.id[7:]+a.path, a.body)
				if code != 410 || strings.ReplaceAll(unknown, "10-0000"+victim.id[7:], victim.id) != body {
					t.Errorf("%s %s with the token of %s: %d %s", a.method, a.path, victim.by, code, body)
				}
			}
		}
		if _, body, _ := h.as("bob", "GET", "/rockpool/runners", ""); body != `{"runners":[]}` {
			t.Errorf("bob sees %s", body)
		}
		if _, body, _ := h.as("alice", "GET", "/rockpool/runners", ""); !strings.Contains(body, mine) || strings.Contains(body, ofServer) {
			t.Errorf("alice sees %s", body)
		}
		for by, sees := range map[string][2]bool{"alice": {true, false}, "bob": {false, false}, "root": {true, true}, "secret": {true, true}} {
			_, body, _ := h.as(by, "GET", "/rockpool/pools/10", "")
			if strings.Contains(body, mine) != sees[0] || strings.Contains(body, ofServer) != sees[1] || !strings.Contains(body, `"state":"idle"`) {
				t.Errorf("%s sees the pool as %s", by, body)
			}
		}
		if code, body, _ := h.as("alice", "GET", "/runners/"+mine+"/files", ""); code != 200 {
			t.Errorf("alice's own runner: %d %s", code, body)
		}
		if _, body, _ := h.as("root", "GET", "/rockpool/runners", ""); !strings.Contains(body, mine) || !strings.Contains(body, `"owner":"alice"`) || !strings.Contains(body, ofServer) {
			t.Errorf("who operates sees %s", body)
		}
	}
	attack()
	// A restart knows whose they are.
	h.stop()
	h = start(t, c, change)
	h.pool("10", 3, 2)
	attack()
	if code, _, _ := h.as("root", "DELETE", "/runners/"+mine, ""); code != 204 {
		t.Errorf("who operates gives another's runner back: %d", code)
	}
}

func TestTokensMayWhatTheirScopesSay(t *testing.T) {
	file := tokenFile(t)
	h := ready(t, "1", 1, func(c *config.Config) { c.Server.TokenFile = file })
	h.want("PUT", "/execution-environments/11", env("0"), 201, "")
	for _, c := range []struct {
		by, method, path, body string
		status                 int
		text                   string
	}{
		{"nobody", "GET", "/execution-environments", "", 401, ""},
		{"", "GET", "/rockpool/metrics", "", 401, ""},
		{"", "GET", "/rockpool/timelines", "", 401, ""},
		{"reader", "POST", "/runners", `{"executionEnvironmentId":10}`, 403, `{"message":"the token does not have the scope run"}`},
		{"reader", "PUT", "/execution-environments/12", env("1"), 403, "the scope environments for execution environment 12"},
		{"reader", "DELETE", "/execution-environments/10", "", 403, "the scope environments"},
		{"reader", "GET", "/rockpool/metrics", "", 403, "the scope operate"},
		{"reader", "GET", "/runners/10-x/files", "", 403, "the scope run"},
		{"alice", "POST", "/runners", `{"executionEnvironmentId":11}`, 403, "the scope run for execution environment 11"},
		{"alice", "POST", "/runners", `{"executionEnvironmentId":99}`, 403, "the scope run for execution environment 99"}, // which does not exist
		{"alice", "GET", "/execution-environments/11", "", 403, "execution environment 11"},
		{"alice", "GET", "/execution-environments/011", "", 403, "execution environment 011"},
		{"reader", "GET", "/execution-environments/11", "", 200, `"id":11`},
		{"local", "GET", "/rockpool/metrics", "", 403, "the scope operate for all execution environments"},
		{"reader", "GET", "/rockpool/timelines", "", 403, "the scope operate"},
		{"local", "GET", "/rockpool/timelines", "", 403, "the scope operate for all execution environments"},
		{"root", "GET", "/rockpool/timelines", "", 404, "tracing.timelines"},
		{"root", "GET", "/rockpool/metrics", "", 200, "rockpool_gateway_pool_idle_runners"},
		{"secret", "GET", "/rockpool/metrics", "", 200, "go_goroutines"},
	} {
		if code, body, _ := h.as(c.by, c.method, c.path, c.body); code != c.status || !strings.Contains(body, c.text) || c.text == "" && body != "" {
			t.Errorf("%s: %s %s: %d %.200s", c.by, c.method, c.path, code, body)
		}
	}
	if _, body, _ := h.as("alice", "GET", "/execution-environments", ""); !strings.Contains(body, `"id":10`) || strings.Contains(body, `"id":11`) {
		t.Errorf("alice's list: %s", body)
	}
	if _, body, _ := h.as("alice", "GET", "/statistics/execution-environments", ""); !strings.Contains(body, `"10"`) || strings.Contains(body, `"11"`) {
		t.Errorf("alice's statistics: %s", body)
	}
}

func TestEveryRouteHoldsScopesAndRates(t *testing.T) {
	file := tokenFile(t)
	h := ready(t, "1", 1, func(c *config.Config) { c.Server.TokenFile = file })
	id := h.claimAs("root")
	h.as("spent", "GET", "/execution-environments", "")
	for _, r := range routes(id) {
		by := "operator" // has no scope but that one
		if r[1] == "/rockpool/metrics" || r[1] == "/rockpool/timelines" {
			by = "reader"
		}
		if code, body, _ := h.as(by, r[0], r[1], strings.Repeat(" ", 100_000)); code != 403 || !strings.Contains(body, "the token does not have the scope") {
			t.Errorf("%s %s without the scope: %d %s", r[0], r[1], code, body)
		}
		if code, body, header := h.as("spent", r[0], r[1], ""); code != 429 || header.Get("Retry-After") == "" {
			t.Errorf("%s %s beyond the rate: %d %s", r[0], r[1], code, body)
		}
	}
}

func TestRatesAndQuotas(t *testing.T) {
	file := tokenFile(t)
	h := ready(t, "4", 4, func(c *config.Config) { c.Server.TokenFile = file })
	for range 2 {
		if code, _, _ := h.as("slow", "GET", "/execution-environments", ""); code != 200 {
			t.Fatalf("within the burst: %d", code)
		}
	}
	code, body, header := h.as("slow", "GET", "/execution-environments", "")
	if code != 429 || header.Get("Retry-After") == "" || !strings.Contains(body, "rate of requests") {
		t.Errorf("beyond the rate: %d %s %v", code, body, header)
	}
	first := h.claimAs("alice")
	h.claimAs("alice")
	code, body, _ = h.as("alice", "POST", "/runners", `{"executionEnvironmentId":10}`)
	if code != 500 || !strings.Contains(body, `"errorCode":"NOMAD_OVERLOAD"`) || !strings.Contains(body, "quota of 2 runners") {
		t.Errorf("beyond the quota: %d %s", code, body)
	}
	h.claimAs("bob") // others are not concerned
	if code, _, _ := h.as("alice", "DELETE", "/runners/"+first, ""); code != 204 {
		t.Fatal(code)
	}
	h.claimAs("alice")
	_, figures, _ := h.as("root", "GET", "/rockpool/metrics", "")
	for _, want := range []string{`rockpool_gateway_refused_total{reason="rate"} 1`, `rockpool_gateway_refused_total{reason="quota"} 1`,
		`rockpool_gateway_claims_total{environment="10",outcome="quota"} 1`, `rockpool_gateway_claims_total{environment="10",outcome="hit"} 4`} {
		if !strings.Contains(figures, want) {
			t.Errorf("%s is not among the figures", want)
		}
	}
}

func TestExecutionsAreBounded(t *testing.T) {
	h := ready(t, "2", 2, func(c *config.Config) { c.Server.Limits.Executions, c.Server.Limits.ExecutionsPerRunner = 2, 2 })
	a, b := h.claim("60"), h.claim("60")
	one, two := h.dial(h.execute(a, `{"command":"cat"}`)), h.execute(a, `{"command":"cat"}`)
	h.want("POST", "/runners/"+a+"/execute", `{"command":"cat"}`, 500, "the runner has 2 executions")
	third := h.execute(b, `{"command":"cat"}`)
	second := h.dial(two)
	h.want("POST", "/runners/"+b+"/execute", `{"command":"cat"}`, 500, "2 executions are under way")
	// One that was accepted before is refused when it begins, and is not lost by that.
	_, resp, err := websocket.DefaultDialer.Dial(third, http.Header{"Poseidon-Token": {"secret"}})
	if err == nil || resp == nil || resp.StatusCode != 500 {
		t.Fatalf("a third execution began: %v", err)
	}
	_ = resp.Body.Close()
	for _, c := range []*websocket.Conn{one, second} {
		if err := c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(5*time.Second)); err != nil {
			t.Fatal(err)
		}
		h.rest(c)
	}
	h.eventually("there is room again", func() bool {
		c, resp, err := websocket.DefaultDialer.Dial(third, http.Header{"Poseidon-Token": {"secret"}})
		if resp != nil {
			_ = resp.Body.Close()
		}
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
}

func TestConnectionsOfOneAddressAreBounded(t *testing.T) {
	h := start(t, nomadtest.New(t), func(c *config.Config) { c.Server.Limits.ConnectionsPerAddress = 2 })
	release := h.hold(2)
	h.eventually("the connections are taken in", func() bool { code, _, _, _ := h.refused("GET", "/version", ""); return code == 500 })
	code, body, header, closing := h.refused("GET", "/version", "")
	if code != 500 || !closing || header.Get("Retry-After") == "" ||
		body != `{"message":"your address has 2 connections, which is the limit (server.limits.connectionsperaddress): close idle ones and try again","errorCode":"NOMAD_OVERLOAD"}` {
		t.Errorf("one connection too many: %d %s %v", code, body, header)
	}
	release()
	h.eventually("there is room again", func() bool { code, _, _ := h.do("GET", "/version", ""); return code == 200 })
}
