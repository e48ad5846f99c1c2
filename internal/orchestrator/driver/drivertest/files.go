package drivertest

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"rockpool/internal/orchestrator/driver"
)

// tarball is an archive of regular files and, with a name that ends in a slash, directories.
func tarball(t *testing.T, entries ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		content := []byte(h.Linkname) // borrowed: no entry is a link
		h.Linkname, h.Size = "", int64(len(content))
		if h.Typeflag = tar.TypeReg; h.Name[len(h.Name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func list(t *testing.T, f driver.Files, path, user string) (lines []string) {
	t.Helper()
	for e, err := range f.List(bounded(t), path, true, user) {
		if err != nil {
			t.Fatalf("list %s: %v", path, err)
		}
		lines = append(lines, e.Type+e.Permissions+" "+e.Name+" "+e.Owner)
	}
	return lines
}

func (s Subject) files(t *testing.T) {
	task := s.running(t)
	f := task.Files()
	if f == nil {
		t.Skip("this driver offers no direct access to files")
	}
	first := tarball(t, tar.Header{Name: "old", Mode: 0o644, Linkname: "old"}, tar.Header{Name: ".hidden", Mode: 0o644})
	if err := f.Apply(bounded(t), nil, first); errors.Is(err, driver.ErrNotSupported) {
		t.Skip("this driver offers no direct access to files")
	} else if err != nil {
		t.Fatal(err)
	}
	second := tarball(t, tar.Header{Name: "dir/", Mode: 0o755}, tar.Header{Name: "dir/a", Mode: 0o600, Linkname: "hello"})
	if err := f.Apply(bounded(t), []string{"./*"}, second); err != nil {
		t.Fatal(err)
	}
	if got, want := list(t, f, ".", ""), []string{"drwxr-xr-x ./dir root", "-rw------- ./dir/a root"}; !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
	r, info, err := f.Open(bounded(t), "dir/a", "")
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(r)
	if _ = r.Close(); err != nil || string(content) != "hello" || info.Size != 5 {
		t.Errorf("read %q, %v, %+v", content, err, info)
	}
	for _, c := range []struct {
		path, user string
		want       error
	}{{"none", "", driver.ErrNotFound}, {"dir", "", driver.ErrNotRegular}, {"dir/a", "1000", driver.ErrPermission}, {"../../../../none/etc/passwd", "", driver.ErrNotFound}} {
		if _, _, err := f.Open(bounded(t), c.path, c.user); !errors.Is(err, c.want) {
			t.Errorf("open %s as %q: %v, want %v", c.path, c.user, err, c.want)
		}
	}
	if err := task.Stop(bounded(t), 9, 0); err != nil {
		t.Fatal(err)
	}
	refuses(t, f, "dir/a")
}

// refuses holds the files of a task that was stopped to being out of reach.
func refuses(t *testing.T, f driver.Files, path string) {
	t.Helper()
	if _, _, err := f.Open(bounded(t), path, ""); !errors.Is(err, driver.ErrTaskGone) {
		t.Errorf("open after the task's end: %v, want ErrTaskGone", err)
	}
	for _, err := range f.List(bounded(t), ".", false, "") {
		if !errors.Is(err, driver.ErrTaskGone) {
			t.Errorf("list after the task's end: %v, want ErrTaskGone", err)
		}
	}
	if err := f.Apply(bounded(t), []string{path}, tarball(t)); !errors.Is(err, driver.ErrTaskGone) {
		t.Errorf("apply after the task's end: %v, want ErrTaskGone", err)
	}
}
