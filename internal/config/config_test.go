package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"rockpool/internal/config"
)

const example = "../../configuration.example.yaml"

func TestTheExampleNamesEveryKeyWithItsDefault(t *testing.T) {
	data, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := yaml.Unmarshal(data, &tree); err != nil {
		t.Fatal(err)
	}
	given := map[string]any{}
	flatten("", tree, given)
	for path, want := range config.Keys() {
		got, ok := given[path]
		delete(given, path)
		if path == "server.loggingfiltertoken" {
			want = "" // random
		}
		if v := reflect.ValueOf(want); v.Kind() == reflect.Slice {
			want = []any{}
		}
		if !ok || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: the example says %v, the default is %v", path, got, want)
		}
	}
	for path := range given {
		t.Errorf("%s: the example has it, the code has not", path)
	}
	if _, _, err := config.Load(example, nil); err != nil {
		t.Error(err)
	}
}

func flatten(prefix string, tree map[string]any, into map[string]any) {
	for k, v := range tree {
		if sub, ok := v.(map[string]any); ok {
			flatten(prefix+k+".", sub, into)
		} else {
			into[prefix+k] = v
		}
	}
}

func load(t *testing.T, text string, env ...string) (config.Config, config.Notes, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return config.Load(path, env)
}

func TestTheEnvironmentWinsOverTheFile(t *testing.T) {
	c, notes, err := load(t, "server:\n  port: 1\n  claimwait: 2\nnomad:\n  network:\n    dns:\n      servers: [a]\naws:\n  enabled: true\n",
		"POSEIDON_SERVER_PORT=3", "ROCKPOOL_SERVER_PORT=4", "POSEIDON_SERVER_ALERT_PREWARMINGPOOLTHRESHOLD=0.5",
		`ROCKPOOL_NOMAD_NETWORK_DNS_SERVERS="b c"`, "POSEIDON_SENTRY_DSN=x", "ROCKPOOL_PORT=tcp://1.2.3.4:5")
	if err != nil {
		t.Fatal(err)
	}
	if c.Server.Port != 4 || c.Server.ClaimWait != 2 || c.Server.Alert.PrewarmingPoolThreshold != 0.5 {
		t.Errorf("got %+v", c.Server)
	}
	if got := strings.Join(c.Nomad.Network.DNS.Servers, " "); got != "a b c" {
		t.Errorf("servers: got %q", got)
	}
	if got := strings.Join(notes.Ignored, " "); got != "POSEIDON_SENTRY_DSN aws" {
		t.Errorf("ignored: got %q", got)
	}
}

func TestAllProblemsAreListedTogether(t *testing.T) {
	_, _, err := load(t, "server:\n  port: 70000\nlogger: 3\nnomad:\n  enabled: false\n", "ROCKPOOL_SERVER_MAXCONNECTIONS=2000000")
	if err == nil {
		t.Fatal("nothing was refused")
	}
	for _, want := range []string{"server.port (line 2)", "logger (line 3)", "nomad.enabled", "server.maxconnections"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not named in: %v", want, err)
		}
	}
}

// The contract: unknown keys and variables that cannot be read are ignored. Each is told of.
func TestWhatIsIgnoredIsToldOf(t *testing.T) {
	c, notes, err := load(t, "server:\n  prot: 1\n  port: 1\n  entirely: {unknown: 3}\nmetrics:\n  adress: x\nnobody:\n  knows: this\n",
		"ROCKPOOL_SERVER_CLAIMWAIT=-1", "POSEIDON_SERVER_TOKN=x", "ROCKPOOL_SERVER_PORT=many", "ROCKPOOL_SERVER_INTERACTIVESTDERR=yes", "ROCKPOOL_NOMAD_COLOUR=red")
	if err != nil {
		t.Fatal(err)
	}
	if c.Server.Port != 1 || c.Server.ClaimWait != 0 || !c.Server.InteractiveStderr || c.Server.Token != "" {
		t.Errorf("got %+v", c.Server)
	}
	want := []string{
		"POSEIDON_SERVER_TOKN: there is no such key (is server.token meant?)",
		"ROCKPOOL_NOMAD_COLOUR: there is no such key",
		`ROCKPOOL_SERVER_CLAIMWAIT: "-1" is not a whole number between 0 and 18446744073709551615`,
		`ROCKPOOL_SERVER_INTERACTIVESTDERR: "yes" is neither true nor false`,
		`ROCKPOOL_SERVER_PORT: "many" is not a whole number between 0 and 65535`,
		"metrics.adress (line 6): there is no such key (is metrics.address meant?)",
		"nobody (line 7): there is no such key",
		"server.entirely (line 4): there is no such key",
		"server.prot (line 2): there is no such key (is server.port meant?)",
	}
	if got := strings.Join(notes.Doubts, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("told:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
}

func TestSeveralGateways(t *testing.T) {
	const cluster = "nomad:\n  address: 10.0.0.1\n"
	const secret = "  peersecret: 0123456789abcdef\n"
	for text, want := range map[string]string{
		"server:\n  peeraddress: http://10.0.0.5:7200\n" + secret + cluster:                                       "",
		"server:\n  peeraddress: http://[fd00::5]:7200/\n" + secret + cluster:                                     "",
		"server:\n  peeraddress: http://10.0.0.5:7200\n" + cluster:                                                "openssl rand",
		"server:\n  token: short\n  peeraddress: http://10.0.0.5:7200\n" + cluster:                                "server.peersecret",
		"server:\n  token: 0123456789abcdef\n  peeraddress: http://10.0.0.5:7200\n" + cluster:                     "",
		"server:\n  peeraddress: http://10.0.0.5:7200\n":                                                          "set nomad.address",
		"server:\n  peeraddress: 10.0.0.5:7200\n" + secret + cluster:                                              "it is not what other gateways can reach",
		"server:\n  peeraddress: http://a:1/path\n" + secret + cluster:                                            "it is not what other gateways can reach",
		"server:\n  peeraddress: http://user:secret@a:1\n" + secret + cluster:                                     "it is not what other gateways can reach",
		"server:\n  peeraddress: https://a:1\n" + secret + cluster:                                                "server.tls.active",
		"server:\n  stoptimeout: 86401\n":                                                                         "server.stoptimeout",
		"server:\n  stoptimeout: 60\n":                                                                            "",
		"server:\n  tls: {active: true, certfile: c, keyfile: k}\n  peeraddress: http://a:1\n" + secret + cluster: "server.tls.active",
	} {
		if _, _, err := load(t, text); (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

func TestGPUsOfTheEmbeddedNode(t *testing.T) {
	c, _, err := load(t, "orchestrator:\n  gpu:\n    enabled: false\n    ignoredids: [GPU-fef8089b-4820-abfc-e83e-94318197576e, \"0000:3b:00.0\"]\n    onunhealthy: stop\n    slots: 4\n    slotmemory: 8192\n    slottedgpus: [Tesla T4]\n", "ROCKPOOL_ORCHESTRATOR_GPU_PERIOD=5")
	if want := (config.GPU{IgnoredIDs: []string{"GPU-fef8089b-4820-abfc-e83e-94318197576e", "0000:3b:00.0"}, Period: 5, OnUnhealthy: config.Stop, Slots: 4, SlotMemory: 8192, SlottedGPUs: []string{"Tesla T4"}}); err != nil || !reflect.DeepEqual(c.Orchestrator.GPU, want) {
		t.Errorf("got %+v, %v; want %+v", c.Orchestrator.GPU, err, want)
	}
	_, _, err = load(t, "orchestrator:\n  gpu:\n    ignoredids: [\"0\"]\n    period: 0\n    onunhealthy: remove\n    slots: 1\n    slotmemory: 1073741825\n    slottedgpus: [GPU-x]\n")
	for _, want := range []string{`orchestrator.gpu.ignoredids[0]: "0"`, "orchestrator.gpu.period: 0 is not", `orchestrator.gpu.onunhealthy: "remove" is neither keep nor stop`,
		"orchestrator.gpu.slots: 1 is not from 2 to 64", "orchestrator.gpu.slotmemory: 1073741825 is more", `orchestrator.gpu.slottedgpus[0]: "GPU-x" is neither`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in: %v", want, err)
		}
	}
	if _, _, err := load(t, "orchestrator:\n  gpu:\n    slotmemory: 1\n"); err == nil || !strings.Contains(err.Error(), "set it to how many slots a GPU has") {
		t.Errorf("memory of slots that there are none of: %v", err)
	}
}

// What is wrong with a configuration is told, and logged, without the secrets that are in it, also where they are at a wrong place.
func TestProblemsNameNoSecrets(t *testing.T) {
	const secret = "hunter2"
	for text, want := range map[string]string{
		"influxdb: {url: \"http://u:hunter2@x y\", organization: o, bucket: b}\n":                                        "influxdb.url",
		"influxdb: {url: \"ftp://u:hunter2@h\", organization: o, bucket: b}\n":                                           "influxdb.url",
		"tracing: {timelines: 1, endpoint: \"http://127.0.0.1:4318\", headers: [\"Authorization: Bearer hunter2=\"]}\n":  "tracing.headers",
		"tracing: {timelines: 1, endpoint: \"http://127.0.0.1:4318\", headers: [hunter2]}\n":                             "tracing.headers",
		"tracing: {timelines: 1, endpoint: \"http://127.0.0.1:4318\", headers: [\"Authorization=Bearer hunter2\\n\"]}\n": "tracing.headers",
		"tracing: {endpoint: \"http://u:hunter2@127.0.0.1:4318\"}\n":                                                     "tracing.endpoint",
		"server: {peeraddress: \"http://u:hunter2@a:1\", peersecret: 0123456789abcdef}\nnomad: {address: 127.0.0.1}\n":   "server.peeraddress",
		"server: {peeraddress: \"http://a:1\", peersecret: hunter2}\nnomad: {address: 127.0.0.1}\n":                      "server.peersecret",
		"server: {token: [hunter2]}\n": "server.token",
	} {
		_, _, err := load(t, text)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Who sends spans is said by OpenTelemetry's own variables; a file has no key for it.
func TestTheEnvironmentSaysWhoSends(t *testing.T) {
	c, _, err := load(t, "tracing:\n  timelines: 1\n", "OTEL_SERVICE_NAME=mine", "OTEL_RESOURCE_ATTRIBUTES=host.name=a%20b")
	if o := c.Tracing.Options(); err != nil || o.Service != "mine" || o.Resource["host.name"] != "a b" {
		t.Errorf("%+v, %v", o, err)
	}
	for _, key := range []string{"-", `""`, "service"} {
		if c, n, err := load(t, "tracing:\n  "+key+": mine\n"); err != nil || c.Tracing.Service != "" || len(n.Doubts) != 1 {
			t.Errorf("key %s: %+v, %+v, %v", key, c.Tracing, n, err)
		}
	}
}
