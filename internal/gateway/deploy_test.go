package gateway_test

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"rockpool/internal/config"
	"rockpool/internal/metrics"
	"rockpool/internal/metrics/influx"
)

const deploy = "../../deploy"

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// exposed are the names of all metrics once each has been measured.
func exposed(t *testing.T) map[string]bool {
	t.Helper()
	g := metrics.NewGateway(func() map[int]metrics.PoolState { return map[int]metrics.PoolState{10: {Automatic: true, Short: true}} })
	g.RequestBegun("list")
	g.RequestEnded("list", 200, 1, 1, 1)
	g.Claimed(10, "hit", 1)
	g.ExecutionBegun(10)("exit", "warm", 1, 1)
	g.RunnerStarted(10, 1)
	g.RunnerFailed(10)
	g.ClusterCall("job.put", "ok", 1)
	w := httptest.NewRecorder()
	g.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	names := map[string]bool{}
	for line := range strings.SplitSeq(w.Body.String(), "\n") {
		if !strings.HasPrefix(line, "#") && line != "" {
			names[regexp.MustCompile(`^[a-z_]+`).FindString(line)] = true
		}
	}
	return names
}

func TestTheDashboardAsksForMetricsThatThereAre(t *testing.T) {
	names := exposed(t)
	var dashboard struct {
		Panels []struct {
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct{ Query string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, filepath.Join(deploy, "grafana/gateway.json"))), &dashboard); err != nil {
		t.Fatal(err)
	}
	metric := regexp.MustCompile(`\b(rockpool|go|process)_[a-z_]+`)
	asked := map[string]bool{}
	check := func(what, query string) {
		for _, name := range metric.FindAllString(query, -1) {
			asked[name] = true
			if !names[name] {
				t.Errorf("%s asks for %s, which nobody measures", what, name)
			}
		}
	}
	for _, p := range dashboard.Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			check(p.Title, target.Expr)
		}
	}
	for _, v := range dashboard.Templating.List {
		check("a variable", v.Query)
	}
	for name := range names {
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
		if strings.HasPrefix(name, "rockpool_") && !asked[name] && !asked[base+"_bucket"] && !asked[base+"_count"] {
			t.Errorf("no panel shows %s", name)
		}
	}
}

func TestDeploymentsSetKeysThatThereAre(t *testing.T) {
	known := map[string]bool{}
	for key := range config.Keys() {
		known["ROCKPOOL_"+strings.ToUpper(strings.ReplaceAll(key, ".", "_"))] = true
	}
	variable := regexp.MustCompile(`\bROCKPOOL_[A-Z_]+`)
	for _, pattern := range []string{"jobs/gateway.nomad.hcl", "systemd/rockpool-gateway.*", "systemd/rockpool-embedded.service"} {
		files, err := filepath.Glob(filepath.Join(deploy, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", pattern, files, err)
		}
		for _, f := range files {
			for _, name := range variable.FindAllString(read(t, f), -1) {
				if !known[name] {
					t.Errorf("%s sets %s, which is no key", filepath.Base(f), name)
				}
			}
		}
	}
}

func TestTheJobHasRoomForTheBuffers(t *testing.T) {
	found := regexp.MustCompile(`(?m)^\s*memory\s*=\s*(\d+)$`).FindAllStringSubmatch(read(t, filepath.Join(deploy, "jobs/gateway.nomad.hcl")), -1)
	if len(found) != 1 {
		t.Fatalf("the memory of the task: %v", found)
	}
	memory, err := strconv.Atoi(found[0][1])
	if err != nil {
		t.Fatal(err)
	}
	const rest = 256 // MB for connections, requests and executions
	if need := int(config.Default().Server.ReattachBuffer+config.Default().Server.Limits.UploadMemory) + influx.MaxBytes>>20 + rest; memory < need {
		t.Errorf("the job reserves %d MB, full buffers need %d", memory, need)
	}
}

func TestTheUnitsAreUnderstoodBySystemd(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	units, err := filepath.Glob(filepath.Join(deploy, "systemd/*"))
	if err != nil || len(units) < 4 {
		t.Fatalf("%v, %v", units, err)
	}
	dir := t.TempDir()
	args := []string{"verify", "--man=no"}
	binary := regexp.MustCompile(`/usr/local/bin/(gateway|orchestrator)`)
	for _, u := range units {
		path := filepath.Join(dir, filepath.Base(u))
		if err := os.WriteFile(path, []byte(binary.ReplaceAllString(read(t, u), "/bin/true")), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
	}
	out, err := exec.Command(analyze, args...).CombinedOutput()
	if err != nil || strings.Contains(string(out), dir) {
		t.Errorf("%v: %s", err, out)
	}
}
