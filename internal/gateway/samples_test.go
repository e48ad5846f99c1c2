package gateway_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// sample is one program of the documentation.
func sample(t *testing.T, language string) string {
	t.Helper()
	m := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindStringSubmatch(read(t, "../../docs/integration.md"))
	if m == nil {
		t.Fatalf("there is no sample in %s", language)
	}
	return m[1]
}

// command finds an interpreter, and skips where there is none.
func command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return exec.CommandContext(t.Context(), path, args...)
}

func TestTheSamplesOfTheDocumentationRun(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("they are compiled")
	}
	python := "/usr/bin/python3"
	for _, s := range []struct {
		language, file string
		start          func(t *testing.T, path string) *exec.Cmd
		executes       bool
	}{
		{"sh", "sample.sh", func(t *testing.T, path string) *exec.Cmd {
			command(t, "curl")
			return command(t, "sh", path)
		}, false},
		{"python", "sample.py", func(t *testing.T, path string) *exec.Cmd {
			if out, err := command(t, python, "-m", "py_compile", path).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if command(t, python, "-c", "import websocket").Run() != nil {
				t.Skip("it compiles; the package websocket-client, which it needs to run, is not installed")
			}
			return command(t, python, path)
		}, true},
		{"javascript", "sample.mjs", func(t *testing.T, path string) *exec.Cmd {
			if out, err := command(t, "node", "--check", path).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for _, flag := range []string{"--no-warnings", "--experimental-websocket"} { // which releases before 22 need
				out, err := command(t, "node", flag, "--print", "typeof WebSocket").Output()
				if err == nil && strings.TrimSpace(string(out)) == "function" {
					return command(t, "node", flag, path)
				}
			}
			t.Skip("it compiles; this Node.js is too old to run it")
			return nil
		}, true},
		{"go", "sample.go", func(t *testing.T, path string) *exec.Cmd { return command(t, "go", "run", path) }, true},
	} {
		t.Run(s.language, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), s.file)
			if err := os.WriteFile(path, []byte(sample(t, s.language)), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := s.start(t, path)
			h := ready(t, "1", 1)
			cmd.Env = append(os.Environ(), "ROCKPOOL_URL="+h.url, "ROCKPOOL_TOKEN=secret", "no_proxy=127.0.0.1")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if s.executes && !strings.Contains(string(out), "exit code 0") {
				t.Errorf("it says\n%s", out)
			}
			if got := len(h.cluster.Uploads()); got != 1 {
				t.Errorf("%d uploads", got)
			}
			if _, used := h.stats("10"); used != 0 {
				t.Errorf("it leaves %d runners", used)
			}
		})
	}
}
