package image_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rockpool/internal/image"
)

func TestHostHoldsNothingSecret(t *testing.T) {
	if _, err := os.Stat("/usr/bin"); err != nil {
		t.Skip("no /usr on this system")
	}
	dir := t.TempDir()
	store, err := image.New(image.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	host, err := store.Acquire(t.Context(), image.Host, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	lower := host.Root.Lower[0]
	for _, name := range []string{"etc/passwd", "etc/group", "etc/hosts", "etc/nsswitch.conf", "usr", "proc", "home/user"} {
		if _, err := os.Lstat(filepath.Join(lower, name)); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"etc/shadow", "etc/gshadow", "etc/machine-id", "etc/ssh", "etc/ssl/private", "etc/sudoers", "etc/fstab", "var/lib/dpkg"} {
		if _, err := os.Lstat(filepath.Join(lower, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is shown", name)
		}
	}
	if name, err := os.ReadFile("/etc/hostname"); err == nil && strings.TrimSpace(string(name)) != "runner" {
		if shown, _ := os.ReadFile(filepath.Join(lower, "etc/hostname")); string(shown) == string(name) {
			t.Error("the node's host name is shown")
		}
	}
	err = filepath.WalkDir(lower, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			if info, _ := entry.Info(); info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
				t.Errorf("%s is setuid", path)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}

	again, err := image.New(image.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if second, err := again.Acquire(t.Context(), image.Host, image.Options{}); err != nil || second.Root.Lower[0] != lower {
		t.Errorf("a second process made another skeleton: %v %v", second, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "work", "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
