//go:build linux

package network

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"rockpool/internal/orchestrator/model"
)

// call is what the plugin of the tests writes down.
type call struct {
	Command, ID, NS, Interface string
	Config                     struct {
		RuntimeConfig struct {
			PortMappings []portMapping
		}
		PrevResult map[string]any
	}
}

func withPlugin(t *testing.T, w *world) (calls func() []call) {
	t.Helper()
	dir := t.TempDir()
	w.cfg.CNIConfigs, w.cfg.CNIPlugins = filepath.Join(dir, "config"), filepath.Join(dir, "bin")
	check(t, os.MkdirAll(w.cfg.CNIConfigs, 0o755))
	check(t, os.MkdirAll(w.cfg.CNIPlugins, 0o755))
	build := exec.Command("go", "build", "-o", filepath.Join(w.cfg.CNIPlugins, "recorder"), "./testdata/cniplugin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v\n%s", err, out)
	}
	configure(t, w, "lab.conflist", `{"cniVersion":"1.0.0","name":"lab","plugins":[{"type":"recorder","capabilities":{"portMappings":true}}]}`)
	configure(t, w, "full.conflist", `{"cniVersion":"1.0.0","name":"full","plugins":[{"type":"recorder","fail":"ADD"}]}`)
	configure(t, w, "old.conf", `{"cniVersion":"0.4.0","name":"old","type":"recorder"}`)
	configure(t, w, "broken.conflist", `{"cniVersion":`)
	return func() (all []call) {
		f, err := os.Open(filepath.Join(w.cfg.CNIPlugins, "calls"))
		if err != nil {
			return nil
		}
		defer f.Close()
		for d := json.NewDecoder(f); d.More(); {
			var c call
			check(t, d.Decode(&c))
			all = append(all, c)
		}
		return all
	}
}

func configure(t *testing.T, w *world, name, text string) {
	t.Helper()
	check(t, os.WriteFile(filepath.Join(w.cfg.CNIConfigs, name), []byte(text), 0o644))
}

func commands(calls []call) (all []string) {
	for _, c := range calls {
		all = append(all, c.Command)
	}
	return all
}

func TestCNIConfigurations(t *testing.T) {
	w := newWorld(t)
	calls := withPlugin(t, w)
	m := must[*Manager](t)(New(w.cfg))
	check(t, m.Sweep(t.Context(), nil))
	attr := m.Fingerprint()
	if attr["network.cni/lab"] != "1" || attr["network.cni/full"] != "1" || attr["network.cni/old"] != "1" || attr["network.cni/broken"] != "" {
		t.Errorf("attributes: %v", attr)
	}
	r := w.attach(m, "one", Request{Mode: "cni/lab", Ports: ports(20080, 80), Hostname: "box", DNS: &model.DNS{Options: []string{"ndots:1"}}})
	if r.at.Address != "10.88.0.5" || r.at.Interface != "eth0" || r.at.Hostname != "box" || !slices.Equal(r.at.Nameservers, []string{"10.88.0.1"}) ||
		!slices.Equal(r.at.Searches, []string{"lab.example"}) || !slices.Equal(r.at.Options, []string{"ndots:1"}) {
		t.Errorf("it got %+v", r.at)
	}
	got := calls()
	if len(got) != 1 || got[0].Command != "ADD" || got[0].ID != "one" || got[0].NS != r.at.NetNS || got[0].Interface != "eth0" {
		t.Fatalf("calls: %+v", got)
	}
	if want := []portMapping{{20080, 80, "tcp", ""}, {20080, 80, "udp", ""}}; !slices.Equal(got[0].Config.RuntimeConfig.PortMappings, want) {
		t.Errorf("port mappings: %+v", got[0].Config.RuntimeConfig.PortMappings)
	}
	if r.reaches("203.0.113.10:80") == nil {
		t.Error("the namespace is not the one of the plugin alone")
	}

	_, err := m.Attach(t.Context(), "two", Request{Mode: "cni/full"})
	if err == nil || !strings.Contains(err.Error(), "this network is full") {
		t.Errorf("a plugin that refuses: %v", err)
	}
	if got := commands(calls()); !slices.Equal(got, []string{"ADD", "ADD", "DEL"}) {
		t.Errorf("calls after a refusal: %v", got)
	}

	// A later process takes back what this one made, although the configuration has changed meanwhile.
	abandon(t, m)
	second := must[*Manager](t)(New(w.cfg))
	check(t, second.Sweep(t.Context(), []string{"one"}))
	w.run(second)
	at, err := second.Recover(t.Context(), "one")
	if err != nil || at.Address != "10.88.0.5" {
		t.Errorf("after a restart: %+v, %v", at, err)
	}
	if got := commands(calls()); got[len(got)-1] != "CHECK" {
		t.Errorf("calls of a restart: %v", got)
	}
	check(t, os.Remove(filepath.Join(w.cfg.CNIConfigs, "lab.conflist")))
	check(t, second.Detach(t.Context(), "one"))
	got = calls()
	if last := got[len(got)-1]; last.Command != "DEL" || last.Config.PrevResult == nil || len(last.Config.RuntimeConfig.PortMappings) != 2 {
		t.Errorf("the last call: %+v", last)
	}
	for _, trace := range w.traces() {
		if strings.Contains(trace, "one") || strings.Contains(trace, "cni") {
			t.Errorf("left is: %s", trace)
		}
	}
	w.attach(second, "old", Request{Mode: "cni/old"})
	check(t, second.Detach(t.Context(), "old"))
	if got := commands(calls()); !slices.Equal(got[len(got)-2:], []string{"ADD", "DEL"}) {
		t.Errorf("calls of a configuration in the old form: %v", got)
	}
	if _, err := second.Attach(t.Context(), "three", Request{Mode: "cni/full", Egress: "203.0.113.0/24"}); err == nil {
		t.Error("an allow list is accepted where nothing follows from it")
	}
}
