//go:build linux && cgo

package sandbox_test

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rockpool/internal/sandbox"
)

// Names are bytes that a tenant or a client has chosen. Whatever they are, nothing outside the sandbox changes or shows.
func FuzzFileNames(f *testing.F) {
	outside := f.TempDir()
	if err := os.Chmod(outside, 0o755); err != nil {
		f.Fatal(err)
	}
	canary := filepath.Join(outside, "canary")
	const secret = "what only the node may see"
	if err := os.WriteFile(canary, []byte(secret), 0o644); err != nil {
		f.Fatal(err)
	}
	s := create(f, newRuntime(f))
	if o := run(f, s, "bash", "-c", "ln -s "+canary+" /workspace/link; ln -s / /workspace/root; ln -s ../../../../../.. /workspace/up; ln -s /proc/self/fd /workspace/fd; mkfifo /workspace/fifo"); o.ExitCode != 0 {
		f.Fatalf("%+v", o)
	}
	for _, name := range []string{
		"", ".", "..", "/", "//", "./*", "../*", "*", "a", "link", "root" + canary, "up" + canary, canary, "../../../../../.." + canary, "/proc/1/root" + canary,
		"/proc/self/root" + canary, "fd/3", "/proc/self/cwd", "/dev/fd/5", "fifo", "/dev/tty", "/proc/sys/kernel/core_pattern", "a\nb", "-rf", "$(x)", "\xff\xfe", "a\x00b",
		strings.Repeat("x", 255), strings.Repeat("x", 256), strings.Repeat("d/", 2100), "/usr/bin/true", "/etc/passwd/x", "a/./b/../../../" + canary, "\u202etxt.exe",
	} {
		f.Add([]byte(name), uint8(0))
		f.Add([]byte(name), uint8(1))
	}
	f.Fuzz(func(t *testing.T, raw []byte, kind uint8) {
		name := string(raw)
		user := []string{"root", "user"}[kind%2]
		if all, err := s.Files().List(t.Context(), sandbox.ListSpec{Path: name, User: user, Recursive: false}); err == nil {
			for info, err := range all {
				if err == nil && strings.Contains(info.Name, "canary") && info.Size == int64(len(secret)) {
					t.Errorf("%q lists the canary", name)
				}
			}
		}
		if r, _, err := s.Files().Open(t.Context(), name, user); err == nil {
			text, _ := io.ReadAll(io.LimitReader(r, 1<<16))
			_ = r.Close()
			if bytes.Contains(text, []byte(secret)) {
				t.Errorf("%q reads the canary", name)
			}
		}
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		types := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeFifo}
		header := tar.Header{Name: name, Typeflag: types[int(kind/2)%len(types)], Mode: 0o644, Linkname: canary, Format: tar.FormatPAX}
		if header.Typeflag == tar.TypeReg {
			header.Size, header.Linkname = 4, ""
		}
		if w.WriteHeader(&header) == nil {
			_, _ = io.WriteString(w, "over")
			_ = w.Close()
			_ = s.Files().Apply(t.Context(), nil, &b)
		}
		if err := w.Close(); err == nil || len(raw) > 0 {
			_ = s.Files().Apply(t.Context(), []string{name}, &bytes.Buffer{})
		}
		text, err := os.ReadFile(canary)
		entries, listErr := os.ReadDir(outside)
		if err != nil || listErr != nil || string(text) != secret || len(entries) != 1 {
			t.Fatalf("%q changed what is outside: %q %v, %d entries", name, text, err, len(entries))
		}
		select {
		case <-s.Done():
			t.Fatalf("%q has ended the sandbox", name)
		default:
		}
	})
}
