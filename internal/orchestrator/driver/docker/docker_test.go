package docker_test

import (
	"testing"

	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/docker"
	"rockpool/internal/orchestrator/driver/drivertest"
)

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
			return open(t, docker.Config{Endpoint: e.endpoint, Node: node})
		},
		Forever: map[string]any{"image": testImage, "command": "sleep", "args": []any{"infinity"}},
		Exits:   map[string]any{"image": testImage, "command": "sh", "args": []any{"-c", "exit 3"}},
		Wrong:   map[string]any{"image": testImage, "privileged": true},
		Names:   "privileged",
	}))
}
