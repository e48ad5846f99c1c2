//go:build linux && cgo

package sandboxed_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/drivertest"
	"rockpool/internal/orchestrator/driver/sandboxed"
	"rockpool/internal/sandbox"
)

// hostImages knows one image: the machine's own programs and an /etc of its own.
type hostImages struct{ lower string }

func newHostImages(t *testing.T) hostImages {
	t.Helper()
	lower := t.TempDir()
	if err := os.Chmod(lower, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"usr", "etc", "proc", "dev", "tmp", "home/user", "root", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(lower, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if target, err := os.Readlink("/" + name); err == nil {
			if err := os.Symlink(target, filepath.Join(lower, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, text := range map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n", "group": "root:x:0:\nuser:x:1000:\n"} {
		if err := os.WriteFile(filepath.Join(lower, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return hostImages{lower}
}

func (h hostImages) Resolve(context.Context, string) (sandbox.Root, error) {
	return sandbox.Root{Lower: []string{h.lower}, Binds: []sandbox.Bind{{Source: "/usr", Target: "/usr"}},
		Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"}}, nil
}

// closing is a driver whose runtime ends with it, as both do when an agent ends.
type closing struct {
	driver.Driver
	runtime *sandbox.Runtime
}

func (c closing) Sweep(ctx context.Context, keep []string) error {
	return c.Driver.(driver.Sweeper).Sweep(ctx, keep)
}

func (c closing) Detach(ctx context.Context) error {
	return errors.Join(c.Driver.(driver.Detacher).Detach(ctx), c.runtime.Close())
}

func TestConformanceInRealSandboxes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	dir, parent, images := t.TempDir(), fmt.Sprintf("rockpool-driver-test-%d", os.Getpid()), newHostImages(t)
	t.Cleanup(func() {
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + parent)
		for _, g := range append(groups, "/sys/fs/cgroup/"+parent) {
			_ = os.Remove(g)
		}
	})
	open := func(t *testing.T) driver.Driver {
		r, err := sandbox.New(sandbox.Config{Dir: dir, CgroupParent: parent, IDBase: 0x38000000})
		if err != nil {
			t.Skipf("this machine cannot run sandboxes: %v", err)
		}
		t.Cleanup(func() { _ = r.Close() })
		d := sandboxed.New(sandboxed.Config{Runtime: sandboxed.Native(r), Images: images}, sandboxed.NameDocker)[0]
		return closing{d, r}
	}
	t.Cleanup(func() { // also after a failure nothing stays behind
		r, err := sandbox.New(sandbox.Config{Dir: dir, CgroupParent: parent, IDBase: 0x38000000})
		if err != nil {
			return
		}
		defer r.Close()
		left, _ := r.List()
		for _, id := range left {
			t.Errorf("sandbox %s was left behind: %v", id, r.Remove(context.Background(), id))
		}
	})
	drivertest.Run(t, drivertest.ShellSubject(drivertest.Subject{
		New:     open,
		Forever: map[string]any{"image": "host", "command": "sleep", "args": []any{"infinity"}},
		Exits:   map[string]any{"image": "host", "command": "sh", "args": []any{"-c", "exit 3"}},
		Wrong:   map[string]any{"image": "host", "command": "true", "entrypoint": "x"},
		Names:   "entrypoint",
	}))
}
