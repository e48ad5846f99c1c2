package docker_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/docker"
	"rockpool/internal/orchestrator/driver/drivertest"
	"rockpool/internal/orchestrator/model"
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
			return open(t, docker.Config{Endpoint: e.endpoint, Node: node, Files: lasting(t)})
		},
		Forever: map[string]any{"image": testImage, "command": "sleep", "args": []any{"infinity"}},
		Exits:   map[string]any{"image": testImage, "command": "sh", "args": []any{"-c", "exit 3"}},
		Wrong:   map[string]any{"image": testImage, "privileged": true},
		Names:   "privileged",
	}))
}

// lasting gives access to a container's root that outlives the container, as an engine may that takes its time.
func lasting(t *testing.T) func(root *os.File, idBase uint32, workDir string) driver.Files {
	if filesOf == nil {
		return nil
	}
	return func(root *os.File, idBase uint32, workDir string) driver.Files {
		fd, err := unix.Dup(int(root.Fd()))
		if err != nil {
			t.Error(err)
			return nil
		}
		kept := os.NewFile(uintptr(fd), root.Name())
		t.Cleanup(func() { _ = kept.Close() })
		return filesOf(kept, idBase, workDir)
	}
}

// An engine that is too old for devices, and one that does not know these, say so; no container is left.
func TestARealEngineWithoutTheDevices(t *testing.T) {
	e := realEngine(t)
	d := open(t, docker.Config{Endpoint: e.endpoint, Node: ident.New(), Files: filesOf})
	t.Cleanup(func() {
		if err := d.Detach(context.Background()); err != nil {
			t.Error(err)
		}
	})
	cfg := driver.TaskConfig{ID: ident.New() + ".task.1", StateDir: t.TempDir(), Emit: func(string) {}, Devices: []string{"vendor.test/thing=none"},
		Task: &model.Task{Name: "task", Resources: model.Resources{MemoryMB: 32}, Config: map[string]any{"image": testImage, "command": "sleep", "args": []any{"infinity"}}}}
	_, err := d.Start(t.Context(), cfg)
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(fault.Public(err), "gives no devices") && !strings.Contains(fault.Public(err), "does not know the devices") {
		t.Errorf("%v", err)
	}
	if _, err := d.Recover(t.Context(), cfg); err == nil {
		t.Error("a container was left")
	}
}
