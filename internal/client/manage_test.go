package client_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"rockpool/internal/client"
)

// fake is a gateway that keeps environments.
type fake struct {
	envs  map[string]string
	puts  []string
	calls []string
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.calls = append(f.calls, r.Method+" "+r.URL.Path)
	if r.Header.Get("Poseidon-Token") != "secret" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	id := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	answer := func(status int, text string) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}
	switch path := r.Method + " " + strings.TrimPrefix(r.URL.Path, "/api/v1"); {
	case path == "GET /execution-environments":
		answer(200, `{"executionEnvironments":[{"id":10,"image":"host\u001b[2J","prewarmingPoolSize":3,"cpuLimit":100,"memoryLimit":256,"networkAccess":true,"exposedPorts":[80,81],"devices":[{"name":"nvidia/gpu","count":2}]}]}`)
	case strings.HasPrefix(path, "GET /execution-environments/"):
		if e, ok := f.envs[id]; ok {
			answer(200, e)
			return
		}
		w.WriteHeader(http.StatusNotFound)
	case strings.HasPrefix(path, "PUT /execution-environments/"):
		body, _ := io.ReadAll(r.Body)
		f.puts = append(f.puts, string(body))
		if strings.Contains(string(body), "refused") {
			answer(400, `{"message":"image \"refused\" is not a reference of an image"}`)
			return
		}
		_, known := f.envs[id]
		f.envs[id] = string(body)
		if known {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.WriteHeader(http.StatusCreated)
	case strings.HasPrefix(path, "DELETE /execution-environments/"):
		if _, ok := f.envs[id]; !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		delete(f.envs, id)
		w.WriteHeader(http.StatusNoContent)
	case path == "GET /rockpool/pools":
		answer(200, `{"pools":[{"id":10,"wanted":5,"idle":4,"starting":1,"used":2,"failed":0,"claims":{"hitRate":0.99},"queue":{"waiting":7},"failures":{"reason":"no room"}}]}`)
	case path == "GET /rockpool/pools/10":
		answer(200, `{"id":10,"wanted":5,"idle":4,"runners":[{"id":"10-a","state":"idle","ageSeconds":61},{"id":"10-b","state":"removing","ageSeconds":3.2,"reason":"no room"}]}`)
	case path == "GET /rockpool/runners":
		answer(200, `{"runners":[{"id":"10-a","executionEnvironmentId":10,"state":"used","ageSeconds":90,"timeLeft":-1,"executions":1,"owner":"alice"}]}`)
	case path == "POST /runners":
		answer(200, `{"runnerId":"10-new","mappedPorts":[]}`)
	case path == "DELETE /runners/10-new":
		w.WriteHeader(http.StatusNoContent)
	case strings.HasPrefix(path, "DELETE /runners/"):
		answer(410, `{"message":"the runner is not known (any more)"}`)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func gatewayOf(t *testing.T) (*fake, client.Target) {
	t.Helper()
	f := &fake{envs: map[string]string{"10": `{"id":10,"image":"host","prewarmingPoolSize":3,"cpuLimit":100,"memoryLimit":256,"networkAccess":false,"exposedPorts":[],"gpus":1}`}}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return f, client.Target{URL: s.URL, Token: "secret"}
}

func TestApplySaysWhatChangesAndKeepsTheRest(t *testing.T) {
	f, target := gatewayOf(t)
	defs, err := client.ReadDefinitions([]byte("id: 10\nprewarmingPoolSize: 5\n---\n- id: 11\n  image: debian:12\n  exposedPorts: [80]\n"))
	if err != nil {
		t.Fatal(err)
	}
	const says = "environment 10 changes\n  ~ prewarmingPoolSize: 3 -> 5\n" +
		"environment 11 is new\n  + cpuLimit: 100\n  + exposedPorts: [80]\n  + image: \"debian:12\"\n  + memoryLimit: 256\n  + networkAccess: false\n  + prewarmingPoolSize: 0\n"
	var dry, wet, again strings.Builder
	if err := client.ApplyEnvironments(t.Context(), target, defs, true, &dry); err != nil || dry.String() != says || len(f.puts) > 0 {
		t.Errorf("a dry run: %v, %q, and sent %q", err, dry.String(), f.puts)
	}
	if err := client.ApplyEnvironments(t.Context(), target, defs, false, &wet); err != nil || wet.String() != says {
		t.Errorf("%v, %q", err, wet.String())
	}
	var sent map[string]any
	if err := json.Unmarshal([]byte(f.envs["10"]), &sent); err != nil || sent["prewarmingPoolSize"] != 5.0 || sent["memoryLimit"] != 256.0 || sent["gpus"] != 1.0 {
		t.Errorf("what was not given did not stay as it was: %v", sent)
	}
	if err := client.ApplyEnvironments(t.Context(), target, defs[:1], false, &again); err != nil || !strings.Contains(again.String(), "environment 10 is unchanged") {
		t.Errorf("%v, %q", err, again.String())
	}
}

func TestDevicesAreComparedByWhatTheyMean(t *testing.T) {
	f, target := gatewayOf(t)
	f.envs["10"] = `{"id":10,"image":"host","devices":[{"name":"nvidia/gpu","count":1,"constraints":[{"attribute":"memory","operator":">=","value":"40 GiB"}]}]}`
	for _, c := range []struct{ text, says string }{
		{"devices: [{name: nvidia/gpu, constraints: [{attribute: \"${device.attr.memory}\", operator: \">=\", value: 40 GiB}]}]", "environment 10 is unchanged; a tag that has moved is followed\n"},
		{"devices: [{name: nvidia/gpu, share: only}]", "environment 10 changes\n" +
			`  ~ devices: [{"constraints":[{"attribute":"memory","operator":">=","value":"40 GiB"}],"count":1,"name":"nvidia/gpu"}] -> [{"count":1,"name":"nvidia/gpu","share":"only"}]` + "\n"},
	} {
		defs, err := client.ReadDefinitions([]byte("id: 10\n" + c.text))
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		if err := client.ApplyEnvironments(t.Context(), target, defs, true, &out); err != nil || out.String() != c.says {
			t.Errorf("%s: %v\n%s", c.text, err, out.String())
		}
	}
	for _, c := range []struct {
		words []string
		want  string
	}{
		{[]string{"nvidia/gpu"}, `[{"count":1,"name":"nvidia/gpu"}]`},
		{[]string{"nvidia/gpu=2", "amd/gpu"}, `[{"count":2,"name":"nvidia/gpu"},{"count":1,"name":"amd/gpu"}]`},
		{[]string{"none"}, `[]`},
		{[]string{"none", "gpu"}, ""},
		{[]string{"gpu=0"}, ""},
		{[]string{"=2"}, ""},
	} {
		got, err := client.ParseDevices(c.words)
		data, _ := json.Marshal(got)
		if (err == nil) != (c.want != "") || err == nil && string(data) != c.want {
			t.Errorf("%q: %s, %v", c.words, data, err)
		}
	}
}

func TestDefinitionsThatAreWrongAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "no environment in it",
		"image: host":                  "needs an id",
		"id: -1":                       "needs an id",
		"id: ten":                      "needs an id",
		"id: 1\nimgae: host":           `no field "imgae", only`,
		"- id: 1\n- image: host\n":     "line 2",
		"id: 1\ndevices: nvidia/gpu":   "devices: a list is wanted",
		"id: 1\ndevices: [{nam: gpu}]": `unknown field "nam"`,
		"id: 1\ndevices: [{name: gpu, share: mig}]": "share is none of",
		"[1, 2]":                      "line 1",
		"id: 1\n id: 2":               "yaml",
		`{"executionEnvironments":3}`: "line 1",
	} {
		if d, err := client.ReadDefinitions([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v", text, d, err)
		}
	}
	listed, err := client.ReadDefinitions([]byte(`{"executionEnvironments":[{"id":1,"image":"host"},{"id":2,"image":"host"}]}`))
	if err != nil || len(listed) != 2 || listed[1].ID != 2 {
		t.Errorf("what the gateway lists cannot be applied: %v, %v", listed, err)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	_, target := gatewayOf(t)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	apply := func(text string) error {
		d, err := client.ReadDefinitions([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return client.ApplyEnvironments(t.Context(), target, d, false, io.Discard)
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{client.ListRunners(t.Context(), client.Target{URL: target.URL, Token: "x"}, io.Discard), "give it with --token or ROCKPOOL_TOKEN"},
		{client.ListRunners(t.Context(), client.Target{URL: "localhost"}, io.Discard), "--url"},
		{client.ListRunners(t.Context(), client.Target{URL: gone.URL}, io.Discard), "start one with gateway serve"},
		{client.DeleteEnvironments(t.Context(), target, []int{99}, io.Discard), "gateway env list"},
		{client.ReleaseRunners(t.Context(), target, []string{"10-x"}, io.Discard), "not known"},
		{apply("id: 12"), "environment 12 is new and needs an image"},
		{apply("{id: 12, image: refused}"), "is not a reference of an image"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("got %v, want %s", c.err, c.want)
		}
	}
}

func TestTablesAndJSON(t *testing.T) {
	_, target := gatewayOf(t)
	ten := 10
	raw := target
	raw.JSON = true
	for name, c := range map[string]struct {
		print func(w io.Writer) error
		want  string
	}{
		"environments": {func(w io.Writer) error { return client.ListEnvironments(t.Context(), target, w) },
			"ID  IMAGE     POOL  CPU MHZ  MEMORY MB  NETWORK  PORTS  RUNTIME  DEVICES\n10  host\uFFFD[2J  3     100      256        public   80,81  -        2 nvidia/gpu\n"},
		"pools":    {func(w io.Writer) error { return client.ShowPools(t.Context(), target, nil, w) }, "10           5       4     1         2     0       7        99.0%     no room\n"},
		"one pool": {func(w io.Writer) error { return client.ShowPools(t.Context(), target, &ten, w) }, "10-b    removing  3s    no room"},
		"its ages": {func(w io.Writer) error { return client.ShowPools(t.Context(), target, &ten, w) }, "10-a    idle      1m1s  -"},
		"runners":  {func(w io.Writer) error { return client.ListRunners(t.Context(), target, w) }, "10-a    10           used   1m30s  never       1           alice\n"},
		"as JSON":  {func(w io.Writer) error { return client.ShowPools(t.Context(), raw, nil, w) }, `"failures":{"reason":"no room"}}]}` + "\n"},
		"claim":    {func(w io.Writer) error { return client.ClaimRunner(t.Context(), target, 10, 60, w) }, "10-new\n"},
		"release":  {func(w io.Writer) error { return client.ReleaseRunners(t.Context(), target, []string{"10-new"}, w) }, "10-new is given back\n"},
	} {
		var out strings.Builder
		if err := c.print(&out); err != nil || !strings.Contains(out.String(), c.want) {
			t.Errorf("%s: %v\n%s", name, err, out.String())
		}
	}
}
