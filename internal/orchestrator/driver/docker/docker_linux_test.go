package docker_test

import (
	"os"
	"testing"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/docker"
	"rockpool/internal/orchestrator/driver/drivertest"
)

// filesOf is set where the build has access to files by descriptors.
var filesOf func(root *os.File, idBase uint32, workDir string) driver.Files

func open(t *testing.T, cfg docker.Config) *docker.Driver {
	t.Helper()
	d, err := docker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestConformanceOfARealEngine(t *testing.T) {
	e := realEngine(t)
	node := ident.New()
	drivertest.Run(t, drivertest.ShellSubject(drivertest.Subject{
		New: func(t *testing.T) driver.Driver {
			return open(t, docker.Config{Endpoint: e.endpoint, Node: node, Files: filesOf})
		},
		Forever: map[string]any{"image": testImage, "command": "sleep", "args": []any{"infinity"}},
		Exits:   map[string]any{"image": testImage, "command": "sh", "args": []any{"-c", "exit 3"}},
		Wrong:   map[string]any{"image": testImage, "privileged": true},
		Names:   "privileged",
	}))
}
