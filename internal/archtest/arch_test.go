package archtest_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const root = "../.."

// file is one parsed Go file of the project.
type file struct {
	path string // from the root of the module
	pkg  string // import path below the module, such as internal/api
	test bool
	fset *token.FileSet
	ast  *ast.File
}

func (f file) imports() []string {
	var all []string
	for _, i := range f.ast.Imports {
		p, _ := strconv.Unquote(i.Path.Value)
		all = append(all, p)
	}
	return all
}

func parse(t *testing.T) []file {
	t.Helper()
	var files []file
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		fset := token.NewFileSet()
		a, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		files = append(files, file{rel, filepath.ToSlash(filepath.Dir(rel)), strings.HasSuffix(path, "_test.go"), fset, a})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 50 {
		t.Fatalf("only %d files were found", len(files))
	}
	return files
}

func below(pkg string, dirs ...string) bool {
	for _, d := range dirs {
		if pkg == d || strings.HasPrefix(pkg, d+"/") {
			return true
		}
	}
	return false
}

var leaves = []string{
	"internal/auth", "internal/fault", "internal/lifecycle", "internal/logging", "internal/config", "internal/ident", "internal/metrics", "internal/certs", "internal/timeline", "pkg",
}

var gatewaySide = []string{"internal/api", "internal/environment", "internal/runner", "internal/nomad", "internal/peers", "internal/gateway", "internal/client"}

// rules say what a package must not import of ours, and why.
var rules = []struct {
	from, not []string
	except    []string // importing packages the rule does not hold for
	why       string
}{
	{leaves, []string{"internal", "cmd", "tests"}, nil, "a leaf knows nothing of the domain"},
	{[]string{"internal/endpoint"}, append([]string{"internal/orchestrator", "internal/sandbox", "internal/image"}, gatewaySide...), nil, "the pipeline serves both halves and knows neither"},
	{gatewaySide, []string{"internal/orchestrator", "internal/sandbox", "internal/image"}, []string{"internal/gateway"}, "the halves meet on HTTP alone"},
	{[]string{"internal/gateway"}, []string{"internal/orchestrator/", "internal/sandbox", "internal/image"}, nil, "the gateway starts the orchestrator's composition root and nothing below it"},
	{[]string{"internal/orchestrator", "internal/sandbox", "internal/image"}, gatewaySide, nil, "the halves meet on HTTP alone"},
	{[]string{"internal/orchestrator/model"}, []string{"internal"}, nil, "the model knows no store and no wire"},
	{[]string{"internal/orchestrator/sched"}, []string{"internal/orchestrator/state", "internal/orchestrator/consensus", "internal/orchestrator/httpapi", "internal/orchestrator/wire"}, nil, "scheduling is pure: it sees the state through its own interface"},
	{[]string{"internal/orchestrator/state"}, []string{"internal/orchestrator/consensus", "internal/orchestrator/httpapi", "internal/orchestrator/node"}, nil, "state flows one way"},
	{[]string{"internal/sandbox"}, []string{"internal/orchestrator", "internal/image", "internal/endpoint"}, nil, "the sandbox knows neither jobs nor HTTP"},
	{[]string{"internal/image"}, []string{"internal/orchestrator", "internal/endpoint"}, nil, "images know neither jobs nor HTTP"},
	{[]string{"tests"}, []string{"internal", "cmd"}, nil, "the tests there look at the product from outside, by URL and process"},
}

// allowedLeaves are leaves that another leaf may stand on.
var allowedLeaves = map[string][]string{
	"internal/auth":     {"internal/fault"},
	"internal/config":   {"internal/logging", "internal/fault", "internal/timeline"},
	"internal/metrics":  {"internal/logging", "internal/lifecycle"},
	"internal/timeline": {"internal/logging"},
}

func TestImportDirections(t *testing.T) {
	for _, f := range parse(t) {
		if f.test {
			continue
		}
		for _, imp := range f.imports() {
			ours, ok := strings.CutPrefix(imp, "rockpool/")
			if !ok || ours == f.pkg {
				continue
			}
			for _, r := range rules {
				if !below(f.pkg, r.from...) || below(f.pkg, r.except...) {
					continue
				}
				for _, not := range r.not {
					hit := below(ours, not)
					if strings.HasSuffix(not, "/") {
						hit = strings.HasPrefix(ours, not)
					}
					if hit && !below(ours, r.from...) && !below(ours, allowedLeaves[f.pkg]...) {
						t.Errorf("%s imports %s: %s", f.path, ours, r.why)
					}
				}
			}
		}
	}
}

// homes say where each third-party library may be imported.
var homes = map[string][]string{
	"github.com/hashicorp/nomad/api":              {"internal/nomad", "internal/orchestrator/wire", "internal/orchestrator/jobspec", "internal/orchestrator/cli"},
	"github.com/prometheus":                       {"internal/metrics"},
	"github.com/hashicorp/go-metrics":             {"internal/metrics"},
	"github.com/spf13/pflag":                      {"cmd", "internal/orchestrator/cli"},
	"github.com/gorilla/mux":                      {"internal/endpoint"},
	"github.com/gorilla/websocket":                {"internal/api/session", "internal/orchestrator/httpapi", "internal/orchestrator/node/serve", "internal/client", "internal/nomad", "tests"},
	"github.com/hashicorp/raft":                   {"internal/orchestrator/consensus", "internal/orchestrator/sim"},
	"github.com/hashicorp/raft-wal":               {"internal/orchestrator/consensus"},
	"github.com/hashicorp/raft-autopilot":         {"internal/orchestrator/consensus"},
	"github.com/hashicorp/serf":                   {"internal/orchestrator/membership"},
	"github.com/hashicorp/memberlist":             {"internal/orchestrator/membership", "internal/orchestrator/sim"},
	"github.com/hashicorp/cronexpr":               {"internal/orchestrator/cron"},
	"github.com/google/btree":                     {"internal/orchestrator/state"},
	"github.com/influxdata/influxdb-client-go/v2": {"internal/metrics/influx"},
	"github.com/NVIDIA":                           {"internal/orchestrator/device/nvidia"},
	"github.com/opencontainers/runtime-spec":      {"internal/sandbox/oci"},
	"github.com/opencontainers/cgroups":           {"internal/sandbox"},
	"tags.cncf.io/container-device-interface":     {"internal/orchestrator/driver/cdi"},
	"github.com/google/go-containerregistry":      {"internal/image"},
	"github.com/klauspost/compress":               {"internal/image"},
	"github.com/hashicorp/yamux":                  {"internal/orchestrator/link"},
	"github.com/shirou/gopsutil/v4":               {"internal/orchestrator/node"},
	"github.com/spf13/cobra":                      {"cmd"},
	"github.com/vishvananda/netlink":              {"internal/orchestrator/network", "tests/world"},
	"github.com/vishvananda/netns":                {"internal/orchestrator/network"},
	"github.com/google/nftables":                  {"internal/orchestrator/network"},
	"github.com/containernetworking/cni":          {"internal/orchestrator/network"},
	"github.com/miekg/dns":                        {"internal/orchestrator/network"},
	"github.com/moby/moby":                        {"internal/orchestrator/driver/docker"},
	"github.com/docker/go-units":                  {"internal/orchestrator/driver/docker"},
	"github.com/distribution/reference":           {"internal/orchestrator/driver/docker"},
	"github.com/docker/cli":                       {"internal/image", "internal/orchestrator/driver/docker"},
	"github.com/anishathalye/porcupine":           {"internal/orchestrator/sim"},
	"github.com/containerd/errdefs":               {"internal/orchestrator/driver/docker"},
	"github.com/santhosh-tekuri/jsonschema/v6":    {"tests/contract"},
	"go.opentelemetry.io":                         {"internal/timeline"},
}

func TestEachLibraryHasOneHome(t *testing.T) {
	for _, f := range parse(t) {
		if f.test {
			continue
		}
		for _, imp := range f.imports() {
			for lib, where := range homes {
				if below(imp, lib) && !below(f.pkg, where...) {
					t.Errorf("%s imports %s, whose home is %s", f.path, lib, strings.Join(where, " and "))
				}
			}
			if below(imp, "github.com/hashicorp/nomad") && !below(imp, "github.com/hashicorp/nomad/api") {
				t.Errorf("%s imports %s: only its api module has a licence we can use", f.path, imp)
			}
		}
	}
}

func TestGoroutinesHaveOwners(t *testing.T) {
	for _, f := range parse(t) {
		if f.test || below(f.pkg, "internal/lifecycle", "tests") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s: a bare go statement: use a WaitGroup, an errgroup or lifecycle.Tasks, and wait for it", f.fset.Position(g.Pos()))
			}
			return true
		})
	}
}

func TestPackagesAreDocumented(t *testing.T) {
	docs := map[string]bool{}
	for _, f := range parse(t) {
		if f.test {
			continue
		}
		if f.ast.Doc != nil && len(f.ast.Doc.Text()) > 40 {
			docs[f.pkg] = true
		} else if !docs[f.pkg] {
			docs[f.pkg] = false
		}
	}
	for pkg, ok := range docs {
		if !ok {
			t.Errorf("package %s has no documentation", pkg)
		}
	}
}

func TestForbiddenNames(t *testing.T) {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() {
			return nil
		}
		if path != root && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		switch d.Name() {
		case "util", "utils", "common", "helpers", "structs":
			t.Errorf("%s says nothing of what is in it", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestMainsAreThin(t *testing.T) {
	for _, f := range parse(t) {
		if f.ast.Name.Name != "main" || !below(f.pkg, "cmd") {
			continue
		}
		src, err := os.ReadFile(filepath.Join(root, f.path))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(src), "\n"); n > 200 {
			t.Errorf("%s has %d lines: a main holds flags and an exit code, nothing else", f.path, n)
		}
	}
}
