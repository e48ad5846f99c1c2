//go:build linux && cgo

package sandboxed_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"rockpool/internal/image"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/drivertest"
	"rockpool/internal/orchestrator/driver/sandboxed"
	"rockpool/internal/sandbox/oci"
)

// ociClosing is a driver whose runtime ends with it, as both do when an agent ends.
type ociClosing struct {
	driver.Driver
	runtime *oci.Runtime
}

func (c ociClosing) Sweep(ctx context.Context, keep []string) error {
	return c.Driver.(driver.Sweeper).Sweep(ctx, keep)
}

func (c ociClosing) Detach(ctx context.Context) error {
	return errors.Join(c.Driver.(driver.Detacher).Detach(ctx), c.runtime.Close())
}

// ociOpener gives drivers of one machine that have one OCI runtime. The machine is left clean at the end of the test.
func ociOpener(t *testing.T, name string) func(t *testing.T) driver.Driver {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	program := os.Getenv("ROCKPOOL_RUNSC")
	if name != "runsc" || program == "" {
		var err error
		if program, err = exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed here (runsc is looked for in ROCKPOOL_RUNSC too)", name)
		}
	}
	images, err := image.New(image.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	unique := fmt.Sprintf("rockpool-oci-driver-%s-%d", name, os.Getpid())
	cfg := oci.Config{Name: name, Program: program, Dir: t.TempDir(), MountDir: "/run/" + unique, CgroupParent: unique, IDBase: 0x68000000}
	t.Cleanup(func() {
		if r, err := oci.New(cfg); err == nil {
			left, _ := r.List()
			for _, id := range left {
				t.Errorf("sandbox %s was left behind: %v", id, r.Remove(context.Background(), id))
			}
			_ = r.Close()
		}
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + unique)
		for _, g := range append(groups, "/sys/fs/cgroup/"+unique) {
			_ = os.Remove(g)
		}
	})
	native := newFake() // no task of the suite is in it
	return func(t *testing.T) driver.Driver {
		r, err := oci.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		d := sandboxed.New(sandboxed.Config{Runtime: native, Classes: map[string]sandboxed.Class{name: sandboxed.OCI(r)}, Images: images}, sandboxed.NameDocker)[0]
		return ociClosing{d, r}
	}
}

func TestConformanceInOCIRuntimes(t *testing.T) {
	for _, name := range []string{"crun", "runc", "runsc"} {
		t.Run(name, func(t *testing.T) {
			drivertest.Run(t, drivertest.ShellSubject(drivertest.Subject{
				New:     ociOpener(t, name),
				Forever: map[string]any{"image": "host", "runtime": name, "command": "sleep", "args": []any{"infinity"}},
				Exits:   map[string]any{"image": "host", "runtime": name, "command": "sh", "args": []any{"-c", "exit 3"}},
				Wrong:   map[string]any{"image": "host", "runtime": "no-such", "command": "true"},
				Names:   name, // what there is instead
			}))
		})
	}
}
