package standin_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"rockpool/internal/fault"
	"rockpool/internal/nomad/standin"
)

func TestUploads(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Options{})
	home := filepath.Join(r.server.Root(jobID), "workspace")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(home, "old"), nil, 0o600))
	must(os.WriteFile(filepath.Join(home, ".hidden"), nil, 0o600))
	must(os.WriteFile(filepath.Join(home, "*"), nil, 0o600))
	must(os.MkdirAll(filepath.Join(home, "deep/er"), 0o755))
	must(os.Symlink("/etc", filepath.Join(home, "link")))
	big := strings.Repeat("\x00\x01\xff\n", 1<<20)
	must(r.client.Apply(t.Context(), r.at, []string{"./*", "nothing", "$(touch /tmp/pwned)", "a\nb"}, archive(t,
		tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o1777},
		tar.Header{Name: "dir/a.txt", Mode: 0o744, Linkname: "hello"},
		tar.Header{Name: "-n it's\n$(id) ü", Mode: 0o744, Linkname: "x"},
		tar.Header{Name: "parent/made/b", Mode: 0o744, Linkname: ""},
		tar.Header{Name: "/abs/c", Mode: 0o744, Linkname: "abs"},
		tar.Header{Name: "../up", Mode: 0o744, Linkname: "up"},
		tar.Header{Name: "big", Mode: 0o744, Linkname: big},
	)))
	var names []string
	entries, err := os.ReadDir(home)
	must(err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{"-n it's\n$(id) ü", ".hidden", "big", "dir", "parent"}; !slices.Equal(names, want) {
		t.Errorf("the workspace holds %q, want %q", names, want)
	}
	for path, want := range map[string]string{
		"dir": "1777 0 0 0", "dir/a.txt": "744 0 0 0", "parent": "755 0 0", "parent/made/b": "744 0 0 0", "../abs/c": "744 0 0 0", "../up": "744 0 0 0", "big": "744 0 0 0",
	} {
		info, err := os.Stat(filepath.Join(home, path))
		must(err)
		st := info.Sys().(*syscall.Stat_t)
		got := fmt.Sprintf("%o %d %d", st.Mode&0o7777, st.Uid, st.Gid)
		if strings.Count(want, " ") == 3 {
			got += fmt.Sprintf(" %d", st.Mtim.Sec)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if data, _ := os.ReadFile(filepath.Join(home, "big")); string(data) != big {
		t.Errorf("a file of %d bytes became one of %d", len(big), len(data))
	}
	if _, err := os.Stat(filepath.Join(r.server.Root(jobID), "tmp/pwned")); err == nil {
		t.Error("a path was run as a command")
	}

	// Existing files are replaced, not written into.
	must(os.Link(filepath.Join(home, "dir/a.txt"), filepath.Join(home, "other")))
	must(r.client.Apply(t.Context(), r.at, nil, archive(t, tar.Header{Name: "dir/a.txt", Mode: 0o744, Linkname: "new"})))
	if data, _ := os.ReadFile(filepath.Join(home, "other")); string(data) != "hello" {
		t.Errorf("the other name of the old file says %q", data)
	}

	// What cannot be written is named, and the rest is written.
	err = r.client.Apply(t.Context(), r.at, nil, archive(t, tar.Header{Name: "/proc/1/environ", Mode: 0o744, Linkname: "x"}, tar.Header{Name: "after", Mode: 0o744, Linkname: "x"}))
	if !fault.Is(err, fault.Unprocessable) || !strings.Contains(err.Error(), "/proc/1/environ: Cannot open: ") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(home, "after")); err != nil {
		t.Error(err)
	}
	r.clean()
}

func TestAnUploadThatBreaksIsAnError(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Options{Version: "1.9.0"})
	for name, f := range map[string]standin.ExecFault{
		"cut at the start": {Close: 1006, AtStart: true}, "cut in the end": {Close: 1000, After: 41}, "refused": {Status: 500, Text: "rpc error: x"}, "lost": {Close: 1008, AtStart: true, Text: `Unknown allocation "a"`},
	} {
		f.Match = "tar --extract"
		r.server.FailExec(f)
		err := r.client.Apply(t.Context(), r.at, nil, archive(t, tar.Header{Name: "x", Mode: 0o744, Linkname: "x"}))
		r.server.HealExec()
		if err == nil || fault.Is(err, fault.NotFound) || (name == "lost") != fault.Is(err, fault.Gone) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// Nomad 1.9.0 keeps the end of stdin to itself.
	r.server.FailExec(standin.ExecFault{Match: "tar --extract", NoEOF: true})
	if err := r.client.Apply(t.Context(), r.at, nil, archive(t, tar.Header{Name: "y", Mode: 0o744, Linkname: "x"})); err != nil {
		t.Error(err)
	}
	r.clean()
}

func TestListingsSurviveEveryName(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Options{})
	root := r.server.Root(jobID)
	home := filepath.Join(root, "workspace")
	strange := []string{"a\nb", "a -> b", "dir:", "total 0", "\"q\\", "\xff\xfe", "ü", " lead", "trail ", "-l", "tab\t", "*", "\x01"}
	for _, n := range strange {
		if err := os.WriteFile(filepath.Join(home, n), []byte(n), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Mkdir(filepath.Join(home, "s:\nub"), 0o755), os.WriteFile(filepath.Join(home, "s:\nub", "in\n"), nil, 0o644), os.WriteFile(filepath.Join(home, ".hidden"), nil, 0o644),
		os.Symlink("to -> \n\"there\"", filepath.Join(home, "li -> nk")), os.Mkdir(filepath.Join(home, "closed"), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	check := func(t *testing.T) {
		all, err := r.list("./", true, false)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range all {
			names = append(names, e.Name)
			name := strings.TrimPrefix(e.Name, "./")
			if slices.Contains(strange, name) && (e.Size != int64(len(name)) || e.Type != "-" || e.Permissions != "rw-r-----" || e.Owner != "root" || e.ModTime == 0) {
				t.Errorf("%+v", e)
			}
			if e.Type == "l" && e.LinkTarget != "to -> \n\"there\"" {
				t.Errorf("%+v", e)
			}
		}
		want := append(slices.Clone(strange), "s:\nub", "li -> nk", "closed")
		slices.Sort(want)
		want = append(want, "s:\nub/in\n")
		for i := range want {
			want[i] = "./" + want[i]
		}
		if !slices.Equal(names, want) {
			t.Errorf("got  %q\nwant %q", names, want)
		}
		for _, c := range []struct {
			path      string
			recursive bool
			want      string
		}{
			{"s:\nub", false, "in\n"}, {"s:\nub", true, "s:\nub/in\n"}, {"/workspace/s:\nub/", true, "/workspace/s:\nub/in\n"}, {"./\xff\xfe", true, "./\xff\xfe"}, {"-l", true, "-l"}, {"a\nb", false, "a\nb"},
		} {
			all, err := r.list(c.path, c.recursive, false)
			if err != nil || len(all) != 1 || strings.TrimPrefix(all[0].Name, "./") != strings.TrimPrefix(c.want, "./") {
				t.Errorf("%q: got %+v, %v", c.path, all, err)
			}
		}
		for _, path := range []string{"missing", "", "$(id)", "closed", "a\x00b"} {
			if all, err := r.list(path, true, false); !fault.Is(err, fault.NotFound) || len(all) != 0 {
				t.Errorf("%q: got %v, %v", path, all, err)
			}
		}
		if all, err := r.list("closed", true, true); err != nil || len(all) != 0 {
			t.Errorf("an empty directory: got %v, %v", all, err)
		}
	}
	t.Run("by ls", check)
	// As where ls is busybox's: it cannot quote.
	if err := os.WriteFile(filepath.Join(root, "usr/local/bin/ls"), []byte("#!/bin/sh\ncase \"$*\" in *--quoting*) exit 1;; esac\nexec /bin/ls \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Run("by the shell's patterns", check)
	_ = os.Remove(filepath.Join(root, "usr/local/bin/ls"))

	for e, err := range r.client.List(t.Context(), r.at, "/proc/1", false, false) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Name == "cwd" && (e.LinkTarget != "" || e.Type != "l") {
			t.Errorf("%+v", e)
		}
	}
	for range r.client.List(t.Context(), r.at, "/etc", true, true) {
		break // the reader has seen enough
	}
	r.server.FailExec(standin.ExecFault{Match: "quoting-style", Close: 1006, After: 50})
	if _, err := r.list("./", true, true); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a listing that was cut off gave %v", err)
	}
	r.server.HealExec()
	r.clean()
}

func TestDownloadsBySize(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Options{})
	home := filepath.Join(r.server.Root(jobID), "workspace")
	big := strings.Repeat("\x00\x1e\xff\n", 1<<19)
	for name, content := range map[string]string{"a": "hello", "it's\n$(id) \xff": "x", "empty": "", "big": big, "secret": "no"} {
		mode := os.FileMode(0o644)
		if name == "secret" {
			mode = 0o600
		}
		if err := os.WriteFile(filepath.Join(home, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("a", filepath.Join(home, "link")), syscall.Mkfifo(filepath.Join(home, "fifo"), 0o666)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, want string
		size       int64
	}{{"a", "hello", 5}, {"link", "hello", 5}, {"it's\n$(id) \xff", "x", 1}, {"empty", "", 0}, {"big", big, int64(len(big))}, {"/proc/self/comm", "cat\n", -1}} {
		f, size, err := r.client.Open(t.Context(), r.at, c.path, false)
		if err != nil {
			t.Errorf("%q: %v", c.path, err)
			continue
		}
		data, err := io.ReadAll(f)
		if err != nil || f.Close() != nil || (string(data) != c.want && c.size >= 0) || size != c.size || len(data) == 0 && c.size != 0 {
			t.Errorf("%q: %d bytes of size %d, %v", c.path, len(data), size, err)
		}
	}
	for _, path := range []string{"missing", "", ".", "/dev/null", "fifo", "secret", "/proc/1/environ", "/dev/tcp/127.0.0.1/80", "a\x00"} {
		if _, _, err := r.client.Open(t.Context(), r.at, path, false); !fault.Is(err, fault.NotFound) {
			t.Errorf("%q: %v", path, err)
		}
	}
	f, _, err := r.client.Open(t.Context(), r.at, "secret", true)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(f); string(data) != "no" || err != nil || f.Close() != nil {
		t.Errorf("%q, %v", data, err)
	}
	// One that nobody reads to its end.
	f, _, err = r.client.Open(t.Context(), r.at, "big", false)
	if err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	// One that is cut off.
	r.server.FailExec(standin.ExecFault{Match: "fd/3", Close: 1006, After: 100000})
	f, size, err := r.client.Open(t.Context(), r.at, "big", false)
	if err != nil || size != int64(len(big)) {
		t.Fatal(size, err)
	}
	if data, err := io.ReadAll(f); err == nil {
		t.Errorf("%d bytes came without an error", len(data))
	}
	_ = f.Close()
	r.server.HealExec()
	r.clean()
}
