//go:build linux && cgo

package sandbox_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"rockpool/internal/sandbox"
)

func archive(t *testing.T, entries ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		content := e.Linkname
		e.Linkname = ""
		if e.Typeflag == tar.TypeSymlink {
			e.Linkname, content = content, ""
		}
		e.Size = int64(len(content))
		if err := w.WriteHeader(&e); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// file is a header whose link name stands for the content.
func file(name, content string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o744, ModTime: time.Unix(0, 0), Linkname: content}
}

func directory(name string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o1777, ModTime: time.Unix(0, 0)}
}

func list(t *testing.T, s *sandbox.Sandbox, spec sandbox.ListSpec) []string {
	t.Helper()
	all, err := s.Files().List(t.Context(), spec)
	if err != nil {
		return []string{err.Error()}
	}
	var lines []string
	for info, err := range all {
		if err != nil {
			t.Error(err)
			break
		}
		line := fmt.Sprintf("%c%s %s %s %d %s", info.Type, info.Permissions(), info.Owner, info.Group, info.Size, info.Name)
		if info.Type == 'd' || info.Type == 'l' { // sizes of these depend on the file system
			line = fmt.Sprintf("%c%s %s %s %s", info.Type, info.Permissions(), info.Owner, info.Group, info.Name)
		}
		if info.LinkTarget != "" {
			line += " -> " + info.LinkTarget
		}
		lines = append(lines, line)
	}
	return lines
}

func TestApplyAndList(t *testing.T) {
	s := create(t, newRuntime(t), func(spec *sandbox.Spec) { spec.Root = realHost(t) })
	shell(t, s, "user", "mkdir -p old/deep; echo x > old/deep/file; echo y > .hidden; ln -s /etc/passwd link; chmod 700 old")
	err := s.Files().Apply(t.Context(), []string{"./*", "../tmp/none"}, archive(t,
		directory("sub/"), file("sub/b.txt", "bb"), file("a.txt", "a"), file("/tmp/parents/made/c", "c"), directory("sub/deeper/"), file("sub/deeper/d", "")))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"-rwxr--r-- root root 1 ./a.txt", "drwxrwxrwt root root ./sub",
		"-rwxr--r-- root root 2 ./sub/b.txt", "drwxrwxrwt root root ./sub/deeper", "-rwxr--r-- root root 0 ./sub/deeper/d",
	}
	if got := list(t, s, sandbox.ListSpec{Path: "./", Recursive: true, User: "user"}); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := list(t, s, sandbox.ListSpec{Path: "sub", User: "user"}); !slices.Equal(got, []string{"-rwxr--r-- root root 2 b.txt", "drwxrwxrwt root root deeper"}) {
		t.Errorf("%q", got)
	}
	if got := list(t, s, sandbox.ListSpec{Path: "sub/b.txt", User: "user"}); !slices.Equal(got, []string{"-rwxr--r-- root root 2 sub/b.txt"}) {
		t.Errorf("%q", got)
	}
	if o := shell(t, s, "user", "cat .hidden; stat -c %a /tmp/parents /tmp/parents/made; stat -c %Y a.txt sub sub/deeper sub/deeper/d"); o.stdout != "y\n755\n755\n0\n0\n0\n0\n" {
		t.Errorf("%+v", o)
	}
	// A program keeps the file that it has open: replaced, not truncated.
	o := shell(t, s, "user", "exec 3< a.txt; echo -n; cat <&3")
	if o.stdout != "a" {
		t.Errorf("%+v", o)
	}
}

func TestListOfProcesses(t *testing.T) {
	s := create(t, newRuntime(t), func(spec *sandbox.Spec) { spec.Root = realHost(t) })
	for _, user := range []string{"root", "user"} {
		if got := list(t, s, sandbox.ListSpec{Path: "/proc/self/cwd", Recursive: true, User: user}); len(got) != 1 || !strings.HasSuffix(got[0], "/proc/self/cwd -> /workspace") {
			t.Errorf("%q", got)
		}
		if got := list(t, s, sandbox.ListSpec{Path: "/proc/1/cwd", Recursive: true, User: user}); len(got) != 1 || got[0][0] != 'l' || strings.Contains(got[0], "->") {
			t.Errorf("%q", got)
		}
		if _, _, err := s.Files().Open(t.Context(), "/proc/1/environ", user); err == nil {
			t.Error("the supervisor's environment can be read")
		}
	}
	err := s.Files().Apply(t.Context(), nil, archive(t, file("/proc/1/environ", "x"), file("after", "y"), file("/usr/bin/x", "z")))
	if err == nil || strings.Count(err.Error(), "Cannot open: ") != 2 || !strings.Contains(err.Error(), "/proc/1/environ") {
		t.Error(err)
	}
	if o := run(t, s, "cat", "/workspace/after"); o.stdout != "y" {
		t.Error("files after a failure are missing")
	}
}

func TestOpen(t *testing.T) {
	s := create(t, newRuntime(t))
	shell(t, s, "user", "echo mine > mine; chmod 600 mine; mkfifo fifo; mkdir dir; ln -s mine link; ln -s /etc/shadow shadow; ln -s ../../../../../../etc/passwd up; ln -s loop loop")
	shell(t, s, "", "echo roots > roots; chmod 600 roots")
	for _, c := range []struct{ name, user, want string }{
		{"mine", "user", "mine\n"}, {"link", "user", "mine\n"}, {"mine", "root", "mine\n"}, {"roots", "root", "roots\n"}, {"roots", "user", ""},
		{"shadow", "root", ""}, {"dir", "root", ""}, {"fifo", "user", ""}, {"fifo", "root", ""}, {"/dev/zero", "root", ""}, {"/dev/pts/ptmx", "root", ""},
		{"loop", "root", ""}, {"", "root", ""}, {"/proc/self/mem/x", "user", ""}, {"/proc/1/root/etc/shadow", "root", ""}, {"/../../etc/passwd", "user", "root:"}, {"up", "user", "root:"},
	} {
		f, info, err := s.Files().Open(t.Context(), c.name, c.user)
		if (err == nil) != (c.want != "") {
			t.Errorf("%s as %s: %v", c.name, c.user, err)
			continue
		}
		if err != nil {
			continue
		}
		text, _ := io.ReadAll(f)
		_ = f.Close()
		if !strings.HasPrefix(string(text), c.want) || info.Size != int64(len(text)) {
			t.Errorf("%s: %q %+v", c.name, text, info)
		}
	}
	for _, name := range []string{"fifo", "dir", "/dev/zero"} {
		if _, _, err := s.Files().Open(t.Context(), name, "user"); !errors.Is(err, sandbox.ErrNotRegular) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f, info, err := s.Files().Open(t.Context(), "/proc/version", "user")
	if err != nil || !info.SizeUnknown {
		t.Fatal(err)
	}
	_ = f.Close()
}

func TestApplyRefusesWhatIsNoFile(t *testing.T) {
	s := create(t, newRuntime(t))
	err := s.Files().Apply(t.Context(), nil, archive(t,
		tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3},
		tar.Header{Name: "f", Typeflag: tar.TypeFifo}, file("good", "x")))
	if err == nil || strings.Count(err.Error(), "neither a regular file") != 3 {
		t.Error(err)
	}
	if got := list(t, s, sandbox.ListSpec{Path: "./"}); len(got) != 1 {
		t.Errorf("%q", got)
	}
}

func TestDeepTreesAreDeleted(t *testing.T) {
	s := create(t, newRuntime(t))
	o := shell(t, s, "user", "mkdir -p t/$(printf 'd/%.0s' {1..300})")
	if o.ExitCode != 0 {
		t.Fatalf("%+v", o)
	}
	if err := s.Files().Apply(t.Context(), []string{"./*"}, nil); err != nil {
		t.Fatal(err)
	}
	if o := shell(t, s, "", "ls -A"); o.stdout != "" {
		t.Errorf("left: %q", o.stdout)
	}
}

// A tenant exchanges a directory with a link out of it, as fast as the kernel can, while the node works in it.
func TestExchangeRace(t *testing.T) {
	const swap = `#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
#include <sys/stat.h>
int main(void) { puts("ready"); fflush(stdout); for (;;) renameat2(AT_FDCWD, "dir", AT_FDCWD, "out", RENAME_EXCHANGE); }`
	host := t.TempDir()
	s := create(t, newRuntime(t))
	install(t, s, build(t, swap, "-static"))
	shell(t, s, "user", "mkdir dir; ln -s ../../../../../../../.."+host+" out; echo in > dir/file")
	e := begin(t, s, sandbox.ExecSpec{Argv: []string{"./x"}, User: "user"})
	until := time.Now().Add(2 * time.Second)
	for i := 0; time.Now().Before(until); i++ {
		_ = s.Files().Apply(t.Context(), []string{"dir/file", "dir/sub"}, archive(t, file("dir/file", "in"), file("dir/sub/x", "in")))
		for _, line := range list(t, s, sandbox.ListSpec{Path: "dir/", Recursive: true}) {
			if strings.Contains(line, "secret") {
				t.Fatal(line)
			}
		}
		if f, _, err := s.Files().Open(t.Context(), "dir/file", "user"); err == nil {
			if text, _ := io.ReadAll(f); string(text) != "in" && string(text) != "in\n" {
				t.Fatalf("%q", text)
			}
			_ = f.Close()
		}
	}
	_ = e.Kill()
	<-e.Done()
	if entries := openHost(t, host); len(entries) > 0 {
		t.Errorf("written on the node: %v", entries)
	}
}

func openHost(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// A directory that can be written to is one of the node's, and has to be mapped: both are said before anything is made.
func TestAWritableBindIsOfTheNode(t *testing.T) {
	r := newRuntime(t)
	_, err := r.Create(t.Context(), sandbox.Spec{ID: "nowhere", Root: sandbox.Root{Lower: []string{t.TempDir()}, Binds: []sandbox.Bind{{Target: "/x", Writable: true}}}})
	if !errors.Is(err, sandbox.ErrInvalid) {
		t.Errorf("%v", err)
	}
}
