//go:build linux && cgo

package sandboxed_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"rockpool/internal/ident"
	"rockpool/internal/image"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/sandboxed"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/sandbox"
)

// probe is the one program that an image of these tests has: it says who and where it is, and what it sees.
const probe = `package main
import ("fmt"; "os"; "strings"; "syscall")
func main() {
	wd, err := os.Getwd()
	fmt.Println(os.Getuid(), os.Getgid(), wd, err, os.Getenv("COURSE"))
	for _, path := range os.Args[1:] {
		var s syscall.Stat_t
		if rest, ok := strings.CutPrefix(path, "+"); ok {
			fmt.Println(rest, os.WriteFile(rest, []byte("written"), 0o600))
			continue
		}
		err := syscall.Lstat(path, &s)
		text, _ := os.ReadFile(path)
		fmt.Printf("%s %o %d:%d %d %.20q %v\n", path, s.Mode, s.Uid, s.Gid, s.Nlink, text, err)
	}
}`

// bench is where images are made and run.
type bench struct {
	t     *testing.T
	local string
	probe []byte
	d     driver.Driver
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	source, binary := filepath.Join(t.TempDir(), "main.go"), filepath.Join(t.TempDir(), "probe")
	if err := os.WriteFile(source, []byte(probe), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("go", "build", "-o", binary, source)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if text, err := c.CombinedOutput(); err != nil {
		t.Skipf("no Go to build the image's program with: %s", text)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	r, err := sandbox.New(sandbox.Config{Dir: t.TempDir(), CgroupParent: fmt.Sprintf("rockpool-image-test-%d", os.Getpid()), IDBase: 0x39000000})
	if err != nil {
		t.Skipf("this machine cannot run sandboxes: %v", err)
	}
	t.Cleanup(func() {
		left, _ := r.List()
		for _, id := range left {
			t.Errorf("sandbox %s was left behind: %v", id, r.Remove(context.Background(), id))
		}
		_ = r.Close()
		groups, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/rockpool-image-test-%d", os.Getpid()))
		for _, g := range append(groups, fmt.Sprintf("/sys/fs/cgroup/rockpool-image-test-%d", os.Getpid())) {
			_ = os.Remove(g)
		}
	})
	b := &bench{t: t, local: t.TempDir(), probe: program}
	store, err := image.New(image.Config{Dir: t.TempDir(), LocalDirs: []string{b.local}, InUse: r.Lowers})
	if err != nil {
		t.Fatal(err)
	}
	b.d = sandboxed.New(sandboxed.Config{Runtime: sandboxed.Native(r), Images: store}, sandboxed.Name)[0]
	return b
}

// image saves an image of layers, each a list of entries; the content of a file is its Linkname. It returns the reference.
func (b *bench) image(change func(*v1.Config), layers ...[]tar.Header) string {
	b.t.Helper()
	i := empty.Image
	for _, headers := range layers {
		var text bytes.Buffer
		w := tar.NewWriter(&text)
		for _, h := range headers {
			content := ""
			if h.Typeflag == tar.TypeReg {
				content, h.Linkname = h.Linkname, ""
				h.Size = int64(len(content))
			}
			if err := w.WriteHeader(&h); err != nil {
				b.t.Fatal(err)
			}
			_, _ = io.WriteString(w, content)
		}
		_ = w.Close()
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text.Bytes())), nil })
		if err == nil {
			i, err = mutate.AppendLayers(i, l)
		}
		if err != nil {
			b.t.Fatal(err)
		}
	}
	c := v1.Config{Env: []string{"PATH=/", "COURSE=go"}, Entrypoint: []string{"/must-not-run"}}
	if change != nil {
		change(&c)
	}
	i, err := mutate.Config(i, c)
	if err != nil {
		b.t.Fatal(err)
	}
	file := filepath.Join(b.local, ident.New()+".tar")
	tag, _ := name.NewTag("x:1")
	if err := tarball.WriteToFile(file, tag, i); err != nil {
		b.t.Fatal(err)
	}
	return "docker-archive:" + file
}

func (b *bench) only() []tar.Header {
	return []tar.Header{{Typeflag: tar.TypeReg, Name: "probe", Mode: 0o755, Linkname: string(b.probe)}}
}

func (b *bench) start(ref string, more ...any) (driver.Task, error) {
	b.t.Helper()
	c := map[string]any{"image": ref}
	for i := 0; i+1 < len(more); i += 2 {
		c[more[i].(string)] = more[i+1]
	}
	cfg := driver.TaskConfig{ID: ident.New() + ".task.1", StateDir: b.t.TempDir(), DiskMB: 32, Task: &model.Task{Name: "task", Config: c}, Emit: func(string) {}}
	if err := b.d.(driver.Preparer).Prepare(b.t.Context(), cfg); err != nil {
		return nil, err
	}
	task, err := b.d.Start(b.t.Context(), cfg)
	if err == nil {
		b.t.Cleanup(func() {
			if err := b.d.Cleanup(context.Background(), cfg.ID); err != nil {
				b.t.Error(err)
			}
		})
	}
	return task, err
}

// run runs the image's program and returns its lines.
func (b *bench) run(task driver.Task, user string, argv ...string) []string {
	b.t.Helper()
	e, err := task.Exec(b.t.Context(), driver.ExecSpec{ID: ident.New(), Argv: append([]string{"/probe"}, argv...), User: user})
	if err != nil {
		b.t.Fatal(err)
	}
	_ = e.Stdin().Close()
	out, _ := io.ReadAll(e.Stdout())
	text, _ := io.ReadAll(e.Stderr())
	<-e.Done()
	if r, err := e.Result(); err != nil || r.ExitCode != 0 {
		b.t.Fatalf("%+v %v %s", r, err, text)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// TestAnImageWithNothingButOneProgram is the poorest of images: no shell, no tar, no accounts, no directories.
func TestAnImageWithNothingButOneProgram(t *testing.T) {
	b := newBench(t)
	task, err := b.start(b.image(nil, b.only()))
	if err != nil {
		t.Fatal(err)
	}
	for user, want := range map[string]string{
		"": "0 0 /workspace <nil> go", "user": "1000 1000 /workspace <nil> go", "1234": "1234 1234 /workspace <nil> go", "5:6": "5 6 /workspace <nil> go",
	} {
		if got := b.run(task, user, "+/workspace/by-"+user, "+/tmp/by-"+user); got[0] != want || !strings.HasSuffix(got[1], "<nil>") || !strings.HasSuffix(got[2], "<nil>") {
			t.Errorf("as %q: %q", user, got)
		}
	}
	if got := b.run(task, "user", "+/home/user/.profile"); !strings.HasSuffix(got[1], "<nil>") {
		t.Errorf("the home of an unprivileged user: %q", got)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "main.go", Mode: 0o644, Size: 4})
	_, _ = io.WriteString(w, "code")
	_ = w.Close()
	if err := task.Files().Apply(t.Context(), []string{"./*"}, &archive); err != nil {
		t.Fatal(err)
	}
	var names []string
	for e, err := range task.Files().List(t.Context(), ".", false, "user") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, e.Name)
	}
	if len(names) != 1 || !strings.HasSuffix(names[0], "main.go") {
		t.Errorf("listed %q", names)
	}
	f, _, err := task.Files().Open(t.Context(), "main.go", "user")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(f)
	_ = f.Close()
	if string(text) != "code" {
		t.Errorf("read %q", text)
	}
	if _, err := task.Exec(t.Context(), driver.ExecSpec{ID: "x", Argv: []string{"/probe"}, User: "nobody-here"}); err == nil {
		t.Error("a user that does not exist was taken")
	}
}

func TestShStandsInForBash(t *testing.T) {
	b := newBench(t)
	task, err := b.start(b.image(nil, append(b.only(), tar.Header{Typeflag: tar.TypeLink, Name: "bin/sh", Linkname: "probe"})))
	if err != nil {
		t.Fatal(err)
	}
	e, err := task.Exec(t.Context(), driver.ExecSpec{ID: "x", Argv: []string{"/bin/bash", "/bin/sh"}, User: "user"})
	if err != nil {
		t.Fatal(err)
	}
	_ = e.Stdin().Close()
	out, _ := io.ReadAll(e.Stdout())
	<-e.Done()
	if !strings.HasPrefix(string(out), "1000 1000 ") {
		t.Errorf("%q", out)
	}
	if _, err := task.Exec(t.Context(), driver.ExecSpec{ID: "y", Argv: []string{"/bin/zsh"}}); !errors.Is(err, driver.ErrNoCommand) {
		t.Error(err)
	}
}

// TestADebianRootFileSystem is a real distribution, made by debootstrap and used as a directory.
func TestADebianRootFileSystem(t *testing.T) {
	if testing.Short() || os.Getenv("ROCKPOOL_TEST_DEBOOTSTRAP") == "" {
		t.Skip("making a Debian takes a minute and a mirror: set ROCKPOOL_TEST_DEBOOTSTRAP=1")
	}
	maker, err := exec.LookPath("debootstrap")
	if err != nil {
		t.Skip("debootstrap is not installed")
	}
	b := newBench(t)
	root := filepath.Join(b.local, "debian")
	bounded, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	if text, err := exec.CommandContext(bounded, maker, "--variant=minbase", "stable", root).CombinedOutput(); err != nil {
		t.Skipf("debootstrap: %v: %.500s", err, text)
	}
	task, err := b.start("dir:" + root)
	if err != nil {
		t.Fatal(err)
	}
	e, err := task.Exec(t.Context(), driver.ExecSpec{ID: "x", Argv: []string{"/bin/bash", "-c", "id -u; pwd; cat /etc/debian_version >/workspace/v && ls /workspace; apt-get --version | head -1"}, User: "user"})
	if err != nil {
		t.Fatal(err)
	}
	_ = e.Stdin().Close()
	out, _ := io.ReadAll(e.Stdout())
	<-e.Done()
	if !strings.HasPrefix(string(out), "1000\n/workspace\nv\napt ") {
		t.Errorf("%q", out)
	}
}

// TestLayersAsSeenFromInside looks at what unpacking made, through the overlay and the sandbox's range of ids.
func TestLayersAsSeenFromInside(t *testing.T) {
	b := newBench(t)
	reg := func(name, content string, uid int) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Uid: uid, Gid: uid, Linkname: content}
	}
	folder := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }
	task, err := b.start(b.image(nil,
		append(b.only(), reg("gone", "x", 0), folder("all"), reg("all/below", "x", 0), folder("etc"), reg("etc/mine", "1000's", 1000), reg("high", "x", 60000),
			tar.Header{Typeflag: tar.TypeLink, Name: "linked", Linkname: "etc/mine"}, reg("changed", "old", 0)),
		[]tar.Header{reg(".wh.gone", "", 0), folder("all"), reg("all/.wh..wh..opq", "", 0), reg("all/above", "y", 7), reg("changed", "new", 0)},
	))
	if err != nil {
		t.Fatal(err)
	}
	got := b.run(task, "", "/gone", "/all/below", "/all/above", "/etc/mine", "/linked", "/high", "/changed")
	for i, want := range []string{"no such file", "no such file", `100644 7:7 1 "y" <nil>`, `100644 1000:1000 2 "1000's" <nil>`, `100644 1000:1000 2 "1000's" <nil>`,
		`100644 60000:60000 1 "x" <nil>`, `100644 0:0 1 "new" <nil>`} {
		if !strings.Contains(got[i+1], want) {
			t.Errorf("%s, want %s", got[i+1], want)
		}
	}
}

func TestWorkdirAndUserOfAnImage(t *testing.T) {
	b := newBench(t)
	accounts := []tar.Header{
		{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644, Linkname: "root:x:0:0::/root:/x\nada:x:1815:1816::/home/ada:/x\n"},
		{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644, Linkname: "root:x:0:\nstaff:x:50:\n"},
	}
	for _, c := range []struct{ user, dir, want, owner string }{
		{"", "", "0 0 /workspace <nil> go", ""},
		{"ada", "/srv/app", "1815 1816 /srv/app <nil> go", "1815:1815"},
		{"ada:staff", "/srv/app", "1815 50 /srv/app <nil> go", "1815:1815"},
		{"7:staff", "/srv/app", "7 50 /srv/app <nil> go", "7:7"},
		{"7:8", "relative/dir", "7 8 /relative/dir <nil> go", "7:7"},
		{"", "/made", "0 0 /made <nil> go", "0:0"},
	} {
		ref := b.image(func(i *v1.Config) { i.User, i.WorkingDir = c.user, c.dir }, append(b.only(), accounts...))
		// The task's own command runs as the image's user, and leaves what it saw.
		task, err := b.start(ref, "command", "/probe", "args", []any{"/probe"})
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		<-task.Done()
		if e := task.Exit(); e.ExitCode != 0 || e.Err != nil {
			t.Errorf("%+v: %+v", c, e)
		}
		waiting, err := b.start(ref)
		if err != nil {
			t.Fatal(err)
		}
		dir := strings.Fields(c.want)[2]
		got := b.run(waiting, c.user, dir)
		if got[0] != c.want || !strings.Contains(got[1], " "+c.owner+" ") && c.owner != "" {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// TestHostileRootFileSystems: what a sandbox needs of an image is there in a shape that it should not have.
func TestHostileRootFileSystems(t *testing.T) {
	b := newBench(t)
	reg := func(name string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Linkname: "x"}
	}
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	for name, c := range map[string]struct {
		entries []tar.Header
		says    string // of the error; "" = it works
	}{
		"/tmp is a file":              {[]tar.Header{reg("tmp")}, "/tmp in the image"},
		"/dev is a file":              {[]tar.Header{reg("dev")}, "/dev in the image"},
		"/proc is a file":             {[]tar.Header{reg("proc")}, "/proc in the image"},
		"/workspace is a file":        {[]tar.Header{reg("workspace")}, "/workspace in the image"},
		"/tmp leads nowhere":          {[]tar.Header{link("tmp", "/nowhere")}, "/tmp in the image"},
		"/tmp leads in a circle":      {[]tar.Header{link("tmp", "tmp")}, "/tmp in the image"},
		"/tmp leads out":              {[]tar.Header{link("tmp", "../../../../tmp")}, "/tmp in the image"},
		"/workspace leads to a place": {[]tar.Header{{Typeflag: tar.TypeDir, Name: "data", Mode: 0o755}, link("workspace", "/data")}, ""},
		"/var/tmp leads to /tmp":      {[]tar.Header{link("var/tmp", "/tmp"), {Typeflag: tar.TypeDir, Name: "tmp", Mode: 0o777}}, ""},
		"/etc/passwd leads out":       {[]tar.Header{link("etc/passwd", "/../../etc/shadow")}, ""},
		"/etc/passwd is a directory":  {[]tar.Header{{Typeflag: tar.TypeDir, Name: "etc/passwd", Mode: 0o755}}, ""},
		"/etc/passwd waits":           {[]tar.Header{{Typeflag: tar.TypeFifo, Name: "etc/passwd", Mode: 0o666}}, ""},
		"homes are everywhere":        {[]tar.Header{{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644, Linkname: "a:x:1000:1000::/home/../etc:/x\nb:x:1001:1001::/home/../../proc:/x\n"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			task, err := b.start(b.image(nil, append(b.only(), c.entries...)))
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%v, want %q", err, c.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := b.run(task, "user", "+/workspace/x"); got[0] != "1000 1000 /workspace <nil> go" && !slices.Contains([]string{"1000 1000 /data <nil> go"}, got[0]) {
				t.Errorf("%q", got)
			}
		})
	}
}

// TestASharedRootStaysWhatItIs writes where it can from inside; the next sandbox sees nothing of it.
func TestASharedRootStaysWhatItIs(t *testing.T) {
	b := newBench(t)
	ref := b.image(nil, append(b.only(), tar.Header{Typeflag: tar.TypeReg, Name: "shared", Mode: 0o666, Linkname: "as it was"}))
	first, err := b.start(ref)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.run(first, "", "+/shared", "+/probe", "/shared"); !strings.Contains(got[3], "written") {
		t.Errorf("%q", got)
	}
	second, err := b.start(ref)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.run(second, "", "/shared"); !strings.Contains(got[1], "as it was") {
		t.Errorf("%q", got)
	}
}
