package docker

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
)

func TestConfiguration(t *testing.T) {
	c, err := parse(map[string]any{
		"image": "registry.test/a/b:1", "command": "sleep", "args": []any{"1"}, "entrypoint": []string{"e"}, "network_mode": "default",
		"ulimit": map[string]any{"nofile": "1:2", "nproc": 3.0}, "auth": []map[string]any{{"username": "u", "password": "p"}},
		"image_pull_timeout": "1m", "labels": map[string]any{"a": 1}, "memory_hard_limit": "64", "force_pull": "true", "init": true, "cap_drop": []any{"all"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.networkMode != "bridge" || len(c.ulimits) != 2 || c.ulimits[0].Soft != 1 || c.ulimits[0].Hard != 2 || c.auth.Password != "p" || c.pullTimeout != time.Minute ||
		c.labels["a"] != "1" || c.memoryHardMB != 64 || !c.forcePull || c.pids != defaultPIDs || strings.Join(command(c), " ") != "sleep 1" {
		t.Errorf("%+v", c)
	}
}

func TestWrongConfigurationIsRefusedByName(t *testing.T) {
	wrong := map[string]any{
		"image": "UPPER CASE", "command": 1, "args": "x", "work_dir": "relative", "memory_hard_limit": 0, "pids_limit": -1, "ulimit": map[string]any{"nofile": "2:1"},
		"auth": map[string]any{"token": "secret"}, "image_pull_timeout": "soon", "force_pull": "maybe", "network_mode": "host", "colour": "red", "labels": "x",
	}
	for key := range table.Refused {
		wrong[key] = true
	}
	for key, value := range wrong {
		config := map[string]any{"image": "a"}
		config[key] = value
		_, err := parse(config)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), `"`+key+`"`) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestNetworkAndPorts(t *testing.T) {
	d, err := New(Config{Endpoint: "unix:///nowhere", Node: "n", Networks: []string{"bridge", "lab"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Detach(t.Context()) }()
	if _, err := d.container(&config{image: "a", networkMode: "other"}, driver.TaskConfig{ID: "x", Task: &model.Task{}}, &engine{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "dockernetworks") {
		t.Errorf("a network that the operator does not name: %v", err)
	}
	group := model.Network{Mode: "bridge", DynamicPorts: []model.Port{{Label: "web-ui", To: 80}}, DNS: &model.DNS{Servers: []string{"192.0.2.1"}}}
	env := map[string]string{"NOMAD_HOST_PORT_web_ui": "20001", "NOMAD_PORT_web_ui": "80", "NOMAD_IP_web_ui": "192.0.2.9"}
	for name, c := range map[string]struct {
		config map[string]any
		group  []model.Network
		mode   string
		ports  int
	}{
		"nobody asks":          {nil, nil, "none", 0},
		"the group asks":       {nil, []model.Network{group}, "bridge", 2}, // TCP and UDP
		"the task wants none":  {map[string]any{"network_mode": "none"}, []model.Network{group}, "none", 0},
		"the task names it":    {map[string]any{"network_mode": "lab", "ports": []any{"web-ui"}}, []model.Network{group}, "lab", 2},
		"the group wants none": {nil, []model.Network{{Mode: "none"}}, "none", 0},
	} {
		config := map[string]any{"image": "a"}
		for k, v := range c.config {
			config[k] = v
		}
		parsed, err := parse(config)
		if err != nil {
			t.Fatal(err)
		}
		o, err := d.container(parsed, driver.TaskConfig{ID: "x", Task: &model.Task{}, Networks: c.group, Env: env}, &engine{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if h := o.HostConfig; string(h.NetworkMode) != c.mode || len(h.PortBindings) != c.ports || (c.mode != "none") != (len(h.DNS) == 1) {
			t.Errorf("%s: mode %s, ports %v, DNS %v", name, h.NetworkMode, h.PortBindings, h.DNS)
		}
		for p, b := range o.HostConfig.PortBindings {
			if p.Num() != 80 || b[0].HostPort != "20001" || b[0].HostIP.String() != "192.0.2.9" {
				t.Errorf("%s: port %v at %v", name, p, b)
			}
		}
	}
}

func TestFencesAsTheEngineTellsThem(t *testing.T) {
	bare, whole := &engine{}, &engine{boundsDisk: true}
	whole.SecurityOptions = []string{"name=seccomp,profile=builtin", "name=userns"}
	whole.MemoryLimit, whole.SwapLimit, whole.PidsLimit, whole.CPUShares = true, true, true, true
	for name, c := range map[string]struct {
		engine  *engine
		missing string
	}{
		"none":  {bare, "user seccomp memory swap pids cpu disk network"},
		"whole": {whole, "network"}, // that of containers is the engine's
	} {
		var missing []string
		for _, f := range c.engine.fences() {
			if f.Detail == "" || f.Wall != wall {
				t.Errorf("%s: %+v", name, f)
			}
			if !f.InForce {
				missing = append(missing, strings.TrimPrefix(f.Name, "docker."))
			}
		}
		if got := strings.Join(missing, " "); got != c.missing {
			t.Errorf("%s: not in force are %q, want %q", name, got, c.missing)
		}
	}
	away, err := New(Config{Endpoint: "unix:///nowhere", Node: "n"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = away.Detach(t.Context()) }()
	if f := away.Fences(); len(f) != 1 || f[0].InForce || !strings.Contains(f[0].Detail, "/nowhere") {
		t.Errorf("of an engine that is away: %+v", f)
	}
}

func TestDevicesAreRequestedByTheirNames(t *testing.T) {
	d, err := New(Config{Endpoint: "unix:///nowhere", Node: "n"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Detach(t.Context()) }()
	names := []string{"nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-2"}
	c, err := parse(map[string]any{"image": "a"})
	if err != nil {
		t.Fatal(err)
	}
	for _, given := range [][]string{nil, names} {
		o, err := d.container(c, driver.TaskConfig{ID: "x", Task: &model.Task{}, Devices: given,
			Env: map[string]string{"NVIDIA_VISIBLE_DEVICES": "all"}}, &engine{})
		if err != nil {
			t.Fatal(err)
		}
		h := o.HostConfig
		if len(h.Devices) > 0 || h.Privileged || (len(given) == 0) != (len(h.DeviceRequests) == 0) {
			t.Errorf("%v: %+v", given, h)
		}
		want := map[bool]string{true: "NVIDIA_VISIBLE_DEVICES=void", false: "NVIDIA_VISIBLE_DEVICES=GPU-1,GPU-2"}[given == nil]
		if !slices.Equal(o.Config.Env, []string{want}) { // NVIDIA's runtime would take what the job says for a request
			t.Errorf("%v: the environment is %q", given, o.Config.Env)
		}
		if len(given) > 0 && (h.DeviceRequests[0].Driver != "cdi" || strings.Join(h.DeviceRequests[0].DeviceIDs, " ") != strings.Join(names, " ") || len(h.DeviceRequests[0].Capabilities) > 0) {
			t.Errorf("%+v", h.DeviceRequests)
		}
	}
	for text, want := range map[string]string{
		`could not select device driver "cdi" with capabilities: []`:           "features.cdi",
		`CDI device injection failed: unresolvable CDI devices nvidia.com/gpu`: "/etc/cdi",
	} {
		if err := d.explain(errors.New(text), "start container"); !fault.Is(err, fault.Unsupported) || !strings.Contains(fault.Public(err), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
