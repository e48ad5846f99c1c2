package drivertest

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"rockpool/internal/sandbox"
)

// HostImages stands in for an image store. Whatever is asked for, it has this machine's own programs and an /etc of its own.
type HostImages struct{ lower string }

// NewHostImages makes the root in a temporary directory.
func NewHostImages(t testing.TB) HostImages {
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
	return HostImages{lower}
}

// Resolve gives the one root there is.
func (h HostImages) Resolve(context.Context, string) (sandbox.Root, error) {
	return sandbox.Root{Lower: []string{h.lower}, Binds: []sandbox.Bind{{Source: "/usr", Target: "/usr"}},
		Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"}}, nil
}
