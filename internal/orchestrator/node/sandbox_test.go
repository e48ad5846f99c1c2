//go:build linux && cgo

package node_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"rockpool/internal/ident"
	"rockpool/internal/image"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/sandboxed"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node"
	"rockpool/internal/sandbox"
)

// withRuntime runs an agent with real sandboxes until f returns.
func withRuntime(t testing.TB, dir string, s *server, onStop node.OnStop, f func(*node.Agent)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	parent := fmt.Sprintf("rockpool-node-test-%d", os.Getpid())
	r, err := sandbox.New(sandbox.Config{Dir: filepath.Join(dir, "sandboxes"), CgroupParent: parent, IDBase: 0x3c000000})
	if err != nil {
		t.Skipf("this machine cannot run sandboxes: %v", err)
	}
	images, err := image.New(image.Config{Dir: filepath.Join(dir, "images")})
	if err != nil {
		t.Fatal(err)
	}
	d := sandboxed.New(sandboxed.Config{Runtime: sandboxed.Native(r), Images: images}, sandboxed.NameDocker)[0]
	a, stop := running(t, filepath.Join(dir, "node"), s, onStop, d)
	f(a)
	stop()
	left, err := r.List()
	if onStop == node.Remove && (len(left) != 0 || err != nil) {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if onStop == node.Remove {
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + parent)
		for _, g := range append(groups, "/sys/fs/cgroup/"+parent) {
			if err := os.Remove(g); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		}
	}
}

func sandboxAlloc(id string) *model.Allocation {
	a := alloc(id, config{"image": "host", "command": "sleep", "args": []any{"infinity"}, "network_mode": "none"})
	a.Job.TaskGroups[0].Tasks[0].Driver = sandboxed.NameDocker
	a.Resources = model.AllocatedResources{DiskMB: 16, Tasks: map[string]*model.AllocatedTask{"a": {CPU: 100, MemoryMB: 64}}}
	return a
}

// A job can ask for a fence: the table is in the node's own attributes.
func TestFencesAreAttributesOfTheNode(t *testing.T) {
	s := newServer()
	withRuntime(t, t.TempDir(), s, node.Remove, func(a *node.Agent) {
		<-a.Registered()
		s.mu.Lock()
		attributes := s.node.Attributes
		s.mu.Unlock()
		rows := a.Fences()
		for _, f := range rows {
			if got := attributes["sandbox.fence."+f.Name]; got != fmt.Sprint(f.InForce) {
				t.Errorf("%s is %v, the attribute says %q", f.Name, f.InForce, got)
			}
		}
		if len(rows) < 20 || attributes["sandbox.fence.seccomp"] != "true" {
			t.Errorf("%d rows, %v", len(rows), attributes)
		}
	})
}

func TestSandboxesSurviveTheAgent(t *testing.T) {
	dir, s := t.TempDir(), newServer()
	s.place(sandboxAlloc("stays"), sandboxAlloc("purged"))
	withRuntime(t, dir, s, node.Keep, func(a *node.Agent) {
		until(t, s, "stays", model.ClientRunning)
		until(t, s, "purged", model.ClientRunning)
		if code := exitCode(t, a, "stays", "sh", "-c", "echo here > kept"); code != 0 {
			t.Errorf("write: exit code %d", code)
		}
	})
	s.purge("purged")
	s.set(func() { delete(s.latest, "stays") })
	withRuntime(t, dir, s, node.Remove, func(a *node.Agent) {
		until(t, s, "stays", model.ClientRunning)
		if code := exitCode(t, a, "stays", "test", "-s", "kept"); code != 0 {
			t.Errorf("the sandbox taken back is another one: exit code %d", code)
		}
	})
}

func exitCode(t *testing.T, a *node.Agent, alloc string, argv ...string) int {
	t.Helper()
	e, err := a.Exec(t.Context(), alloc, "a", driver.ExecSpec{ID: ident.New(), Argv: argv})
	if err != nil {
		t.Fatal(err)
	}
	<-e.Done()
	r, err := e.Result()
	if err != nil {
		t.Fatal(err)
	}
	return r.ExitCode
}

// BenchmarkSandboxPlaceToRunning measures from a push to the report of a task that runs in a real sandbox.
func BenchmarkSandboxPlaceToRunning(b *testing.B) {
	s := newServer()
	withRuntime(b, b.TempDir(), s, node.Remove, func(*node.Agent) {
		for b.Loop() {
			id := ident.New()
			s.place(sandboxAlloc(id))
			until(b, s, id, model.ClientRunning)
			s.purge(id)
		}
	})
}
