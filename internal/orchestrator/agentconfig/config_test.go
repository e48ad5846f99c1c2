package agentconfig_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"rockpool/internal/orchestrator/agentconfig"
)

const example = "../../../orchestrator.example.hcl"

// A key counts as given when merging the example into other values brings the default back.
func TestTheExampleNamesEveryKeyWithItsDefault(t *testing.T) {
	data, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	for _, on := range []bool{false, true} {
		var odd agentconfig.Config
		disturb(reflect.ValueOf(&odd).Elem(), on)
		if problems := odd.Merge(example, data); len(problems) > 0 {
			t.Fatal(problems)
		}
		holdsDefaults(t, data, odd.Keys())
	}
	// A comment stands above each key or above the keys and the block around it.
	commented := false
	for i, line := range strings.Split(string(data), "\n") {
		switch l := strings.TrimSpace(line); {
		case strings.HasPrefix(l, "#"):
			commented = true
		case l == "" || l == "}":
			commented = false
		case strings.HasSuffix(l, "{"), strings.Contains(l, "enabled"):
		case !commented:
			t.Errorf("line %d has no comment: %s", i+1, l)
		}
	}
}

func holdsDefaults(t *testing.T, data []byte, got map[string]any) {
	t.Helper()
	for key, want := range agentconfig.Default().Keys() {
		v := reflect.ValueOf(want)
		if v.Kind() == reflect.Map {
			if !regexp.MustCompile(`(?m)^\s*` + key[strings.LastIndex(key, ".")+1:] + ` \{\}`).Match(data) {
				t.Errorf("%s: the example has not got it", key)
			}
			continue
		}
		if v.Kind() == reflect.Slice {
			want = reflect.MakeSlice(v.Type(), 0, 0).Interface()
		}
		if !reflect.DeepEqual(got[key], want) {
			t.Errorf("%s: the example says %v, the default is %v", key, got[key], want)
		}
	}
}

// disturb gives every field a value that is no default.
func disturb(v reflect.Value, on bool) {
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Struct:
			disturb(f, on)
		case reflect.String:
			f.SetString("odd")
		case reflect.Bool:
			f.SetBool(on)
		case reflect.Int, reflect.Int64:
			f.SetInt(123456789)
		case reflect.Float64:
			f.SetFloat(0.123)
		case reflect.Slice:
			f.Set(reflect.ValueOf([]string{"odd"}))
		}
	}
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestHCLAndYAMLSayTheSame(t *testing.T) {
	h, err := agentconfig.Load(write(t, "a.hcl", `
data_dir = "/var/lib/rockpool"
ports { http = 5646 }
server {
  enabled          = true
  bootstrap_expect = 1
  heartbeat_grace  = "20s"
}
client {
  enabled = true
  meta = {
    rack   = "r1"
    "slot" = 3
  }
  host_volume "data" {
    path      = "/srv/data"
    read_only = true
  }
  runtimes = ["runsc=/usr/bin/runsc"]
}
`))
	if err != nil {
		t.Fatal(err)
	}
	y, err := agentconfig.Load(write(t, "a.yaml", `
data_dir: /var/lib/rockpool
ports: {http: 5646}
server: {enabled: true, bootstrap_expect: 1, heartbeat_grace: 20s}
client:
  enabled: true
  meta: {rack: r1, slot: 3}
  host_volume:
    data: {path: /srv/data, read_only: true}
  runtimes: ["runsc=/usr/bin/runsc"]
`))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(h, y); d != "" {
		t.Errorf("HCL against YAML:\n%s", d)
	}
	if h.Ports.HTTP != 5646 || h.Ports.RPC != 4647 || h.Server.HeartbeatGrace != 20*time.Second || h.Client.Meta["slot"] != "3" || !h.Client.HostVolume["data"].ReadOnly {
		t.Errorf("read was %+v", h)
	}
}

func TestLaterFilesWin(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"10-base.hcl": "data_dir = \"/d\"\nserver {\n enabled = true\n bootstrap_expect = 1\n}\nclient {\n meta {\n a = \"1\"\n b = \"1\"\n}\n images {\n mirrors = [\"x=y\"]\n}\n}\n",
		"20-site.yml": "log_level: debug\nclient:\n  meta: {b: \"2\"}\n  images: {mirrors: [\"p=q\"]}\n",
		"ignored.txt": "nonsense",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := agentconfig.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(c.LogLevel, c.Client.Meta, c.Client.Images.Mirrors, c.Server.Enabled); got != "debugmap[a:1 b:2] [p=q] true" {
		t.Errorf("merged was %s", got)
	}
}

func TestMistakesAreNamedWithTheirPlaces(t *testing.T) {
	for _, c := range []struct{ name, file, text, want string }{
		{"an unknown key with a near one", "a.hcl", "datadir = \"/d\"", `a.hcl:1: there is no key datadir, did you mean data_dir?`},
		{"an unknown key in a block", "a.hcl", "server {\n enable = true\n}", `a.hcl:2: there is no key server.enable, did you mean server.enabled?`},
		{"an unknown key with none near", "a.hcl", "something_else = 1", `there is no key something_else`},
		{"a plugin block", "a.hcl", "plugin \"docker\" {}", `plugin is not offered: drivers and devices are built in`},
		{"a key of Nomad's with another name here", "a.hcl", "server {\n retry_join = []\n}", "use server.server_join.retry_join"},
		{"a text for a number", "a.hcl", "ports {\n http = \"x\"\n}", "a.hcl:2: ports.http: a whole number is needed here"},
		{"a number for a duration", "a.hcl", "server {\n heartbeat_grace = 3\n}", "a.hcl:2: server.heartbeat_grace: a duration"},
		{"a block for a value", "a.hcl", "data_dir {}", "data_dir is a value, not a block"},
		{"a value for a block", "a.hcl", "server = 3", "server is a block"},
		{"a reference", "a.hcl", "data_dir = env.HOME", "a.hcl:1: data_dir: a plain value"},
		{"a computed value", "a.hcl", "data_dir = \"${1e9999999}\"", "a.hcl:1: data_dir: a plain value"},
		{"a monstrous number", "a.hcl", "data_dir = 1e9999999", "write it in quotes"},
		{"broken HCL", "a.hcl", "server {", "a.hcl:1: "},
		{"an unknown key in YAML", "a.yaml", "server:\n  bootstrap_expct: 1\n", "a.yaml:2: there is no key server.bootstrap_expct, did you mean server.bootstrap_expect?"},
		{"a key twice in YAML", "a.yaml", "log_json: true\nlog_json: false\n", "a.yaml"},
		{"a list of lists in YAML", "a.yaml", "client: {servers: [[a]]}", "a single value is needed here"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := agentconfig.Default()
			got := fmt.Sprint(conf.Merge(c.file, []byte(c.text)))
			if !strings.Contains(got, c.want) {
				t.Errorf("got %s, want it to contain %q", got, c.want)
			}
		})
	}
}

func TestValuesThatCannotBe(t *testing.T) {
	good := func() agentconfig.Config {
		c := agentconfig.Default()
		c.DataDir, c.Server.Enabled, c.Server.BootstrapExpect = "/d", true, 1
		return c
	}
	if c := good(); len(c.Check()) > 0 {
		t.Fatal(c.Check())
	}
	for want, change := range map[string]func(*agentconfig.Config){
		"would do nothing":              func(c *agentconfig.Config) { c.Server.Enabled = false },
		"client.cdi_dirs: an absolute":  func(c *agentconfig.Config) { c.Client.CDIDirs = []string{"cdi"} },
		"data_dir: an absolute path":    func(c *agentconfig.Config) { c.DataDir = "d" },
		"is none of 1, 3 and 5":         func(c *agentconfig.Config) { c.Server.BootstrapExpect = 2 },
		"retry_join, which is empty":    func(c *agentconfig.Config) { c.Server.BootstrapExpect = 3 },
		"set it to 1 for a server":      func(c *agentconfig.Config) { c.Server.BootstrapExpect = 0 },
		"gossip keyring generate":       func(c *agentconfig.Config) { c.Server.Encrypt = "c2hvcnQ=" },
		"client.servers: name":          func(c *agentconfig.Config) { c.Server.Enabled, c.Client.Enabled = false, true },
		"are both 4646":                 func(c *agentconfig.Config) { c.Ports.RPC = 4646 },
		"would be open to everybody":    func(c *agentconfig.Config) { c.BindAddr = "0.0.0.0" },
		"tls: http and rpc need":        func(c *agentconfig.Config) { c.TLS.HTTP = true },
		"verify_https_client: it needs": func(c *agentconfig.Config) { c.TLS.VerifyHTTPSClient = true },
		"tls.rpc: servers that have": func(c *agentconfig.Config) {
			c.TLS = agentconfig.TLS{HTTP: true, CAFile: "a", CertFile: "b", KeyFile: "c"}
		},
		"client.gc_max_allocs: 0 is less": func(c *agentconfig.Config) { c.Client.GCMaxAllocs = 0 },
		"neither keep nor remove":         func(c *agentconfig.Config) { c.Client.OnStop = "stop" },
		"log_level":                       func(c *agentconfig.Config) { c.LogLevel = "loud" },
		"not an IPv4 prefix":              func(c *agentconfig.Config) { c.Client.Network.Range = "fd00::/8" },
		"not of the form name=value":      func(c *agentconfig.Config) { c.Client.Runtimes = []string{"runsc"} },
		"event_buffer_bytes: 64 bytes":    func(c *agentconfig.Config) { c.Server.EventBufferBytes = 64 },
		"min_heartbeat_ttl: it must":      func(c *agentconfig.Config) { c.Server.MinHeartbeatTTL = 0 },
		"is shorter than 1s":              func(c *agentconfig.Config) { c.Client.GPU.FingerprintPeriod = time.Millisecond },
		"neither keep nor stop":           func(c *agentconfig.Config) { c.Client.GPU.OnUnhealthy = "remove" },
		"slots: 1 is not from 2 to 64":    func(c *agentconfig.Config) { c.Client.GPU.Slots = 1 },
		"slots: 65 is not":                func(c *agentconfig.Config) { c.Client.GPU.Slots = 65 },
		"slot_memory: \"8 gib\" is no":    func(c *agentconfig.Config) { c.Client.GPU.Slots, c.Client.GPU.SlotMemory = 2, "8 gib" },
		"slot_memory: \"8\" is no":        func(c *agentconfig.Config) { c.Client.GPU.Slots, c.Client.GPU.SlotMemory = 2, "8" },
		"slot_memory: \"-1 GiB\" is no":   func(c *agentconfig.Config) { c.Client.GPU.Slots, c.Client.GPU.SlotMemory = 2, "-1 GiB" },
		"slots: it is 0, so that":         func(c *agentconfig.Config) { c.Client.GPU.SlotMemory = "8 GiB" },
		"slotted_gpus[0]: \"GPU-x\" is":   func(c *agentconfig.Config) { c.Client.GPU.Slots, c.Client.GPU.SlottedGPUs = 2, []string{"GPU-x"} },
		"ignored_gpu_ids[1]: \"0\" is":    func(c *agentconfig.Config) { c.Client.GPU.IgnoredGPUIDs = []string{"0000:3B:00.0", "0"} },
	} {
		c := good()
		change(&c)
		if got := fmt.Sprint(c.Check()); !strings.Contains(got, want) {
			t.Errorf("got %s, want it to contain %q", got, want)
		}
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	c := agentconfig.Default()
	c.Server.Encrypt, c.Server.JoinToken, c.Client.JoinToken = "geheim1", "geheim2", "geheim3"
	if s := fmt.Sprint(c.Public()); strings.Contains(s, "geheim") || !strings.Contains(s, "[redacted]") || !strings.Contains(s, "bootstrap_expect") {
		t.Errorf("shown was %s", s)
	}
}

func FuzzMerge(f *testing.F) {
	data, err := os.ReadFile(example)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("a.hcl", data)
	f.Add("a.yaml", []byte("server: {enabled: true, server_join: {retry_join: [a, 1, true, null]}}\n"))
	f.Add("a.hcl", []byte("client {\n meta = { a = 1 }\n host_volume \"x\" { path = 1e400 }\n}"))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		c := agentconfig.Default()
		if problems := c.Merge(name, data); len(problems) == 0 {
			c.Check()
			c.Public()
		}
	})
}
