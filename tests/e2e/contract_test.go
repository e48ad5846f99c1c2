package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"rockpool/tests/platform"
	"rockpool/tests/service"
)

func TestEnvironments(t *testing.T) {
	s, ctx := start(t), bounded(t)
	body := `{"prewarmingPoolSize":1,"cpuLimit":50,"memoryLimit":80,"image":"host","networkAccess":false,"exposedPorts":[]}`
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"a new environment", "PUT", "/execution-environments/10", body, 201, ""},
		{"the same again", "PUT", "/execution-environments/10", body, 204, ""},
		{"the list has it", "GET", "/execution-environments", "", 200,
			`{"executionEnvironments":[{"id":10,"prewarmingPoolSize":1,"cpuLimit":50,"memoryLimit":80,"image":"host","networkAccess":false,"exposedPorts":[]}]}`},
		{"alone", "GET", "/execution-environments/10", "", 200, `"memoryLimit":80`},
		{"fetched from the cluster", "GET", "/execution-environments/10?fetch=true", "", 200, `"memoryLimit":80`},
		{"an unknown one", "GET", "/execution-environments/11", "", 404, ""},
		{"deleted", "DELETE", "/execution-environments/10", "", 204, ""},
		{"deleted twice", "DELETE", "/execution-environments/10", "", 404, ""},
		{"an empty list", "GET", "/execution-environments", "", 200, `{"executionEnvironments":[]}`},
	} {
		var b any
		if c.body != "" {
			b = c.body
		}
		status, got, err := s.Do(ctx, c.method, c.path, b)
		if err != nil {
			t.Fatal(err)
		}
		if status != c.status || !sameOrPart(string(got), c.want) {
			t.Errorf("%s: %d %s, want %d %s", c.name, status, got, c.status, c.want)
		}
	}
}

// sameOrPart compares JSON objects as values, anything else as a part of the text.
func sameOrPart(got, want string) bool {
	if want == "" {
		return got == ""
	}
	var a, b any
	if json.Unmarshal([]byte(got), &a) == nil && json.Unmarshal([]byte(want), &b) == nil {
		x, _ := json.Marshal(a)
		y, _ := json.Marshal(b)
		return string(x) == string(y)
	}
	return strings.Contains(got, want)
}

func TestBadInput(t *testing.T) {
	s, ctx := start(t, func(o *service.Options) { o.Env = append(o.Env, "ROCKPOOL_NOMAD_NETWORK_MODE=cni/nowhere") }), bounded(t)
	provision(ctx, t, s, 10, 1, 64)
	r := claim(ctx, t, s, 10)
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		message                  bool
	}{
		{"malformed JSON", "PUT", "/execution-environments/11", `{"image":`, 400, true},
		{"a wrong type", "PUT", "/execution-environments/11", `{"prewarmingPoolSize":"three"}`, 400, true},
		{"a negative number", "PUT", "/execution-environments/11", `{"memoryLimit":-1}`, 400, true},
		{"a port that is none", "PUT", "/execution-environments/11", `{"exposedPorts":[70000]}`, 400, true},
		{"a network that the node does not offer", "PUT", "/execution-environments/11", `{"image":"host","memoryLimit":64,"networkAccess":true}`, 500, true},
		{"an image at an address that it may not have", "PUT", "/execution-environments/11", `{"image":"127.0.0.1:1/python:3","memoryLimit":64}`, 500, true},
		{"a limit above the machine's memory", "PUT", "/execution-environments/11", `{"image":"host","memoryLimit":2000000000}`, 500, true},
		{"an id too large", "PUT", "/execution-environments/99999999999999999999", `{}`, 400, true},
		{"an id that is no number", "PUT", "/execution-environments/abc", `{}`, 404, false},
		{"an unreadable fetch", "GET", "/execution-environments?fetch=perhaps", ``, 400, true},
		{"a claim in an unknown environment", "POST", "/runners", `{"executionEnvironmentId":77}`, 404, true},
		{"a claim without a body", "POST", "/runners", ``, 400, true},
		{"files of an unknown runner", "PATCH", "/runners/10-unknown/files", `{"copy":[]}`, 410, true},
		{"a listing of an unknown runner", "GET", "/runners/10-unknown/files", ``, 410, true},
		{"the deletion of an unknown runner", "DELETE", "/runners/10-unknown", ``, 410, true},
		{"malformed files", "PATCH", "/runners/" + r + "/files", `{"copy":[{"path":"a","content":"%%%"}]}`, 400, true},
		{"malformed execution", "POST", "/runners/" + r + "/execute", `[]`, 400, true},
		{"a bad variable name", "POST", "/runners/" + r + "/execute", `{"command":"env","environment":{"a b":"c"}}`, 400, true},
		{"an unknown execution", "GET", "/runners/" + r + "/websocket?executionID=nope", ``, 404, true},
		{"a missing path", "GET", "/runners/" + r + "/files?path=/no/such", ``, 424, true},
		{"a download of a directory", "GET", "/runners/" + r + "/files/raw?path=/tmp", ``, 424, true},
		{"an unknown path", "GET", "/nothing", ``, 404, false},
		{"a wrong method", "PUT", "/health", ``, 405, false},
		{"an oversize body", "POST", "/runners/" + r + "/execute", `{"command":"` + strings.Repeat("x", 64<<20) + `"}`, 400, true},
	} {
		status, got, err := s.Do(ctx, c.method, c.path, c.body)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var m struct{ Message string }
		jsonErr := json.Unmarshal(got, &m)
		if status != c.status || c.message != (jsonErr == nil && m.Message != "") {
			t.Errorf("%s: %d %.200s, want %d", c.name, status, got, c.status)
		}
	}

	wrong := platform.New(s.URL, "wrong")
	defer wrong.Close()
	wrong.Check(documents, func(err error) { t.Error(err) })
	for path, want := range map[string]int{"/statistics/execution-environments": 401, "/runners/" + r + "/files": 401, "/health": 204, "/version": 200} {
		status, got, err := wrong.Do(ctx, http.MethodGet, path, nil)
		if err != nil || status != want && !(path == "/version" && status == 404) || want == 401 && len(got) > 0 {
			t.Errorf("%s with a wrong token: %d %q %v", path, status, got, err)
		}
	}
}
