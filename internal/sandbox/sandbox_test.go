//go:build linux && cgo

package sandbox_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rockpool/internal/sandbox"
)

var serial atomic.Int64

// newRuntime gives a runtime with a state directory, control groups and id range of its own.
func newRuntime(t testing.TB) *sandbox.Runtime {
	t.Helper()
	return openRuntime(t, t.TempDir(), fmt.Sprintf("rockpool-test-%d-%d", os.Getpid(), serial.Add(1)))
}

func openRuntime(t testing.TB, dir, parent string, edit ...func(*sandbox.Config)) *sandbox.Runtime {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	cfg := sandbox.Config{Dir: dir, CgroupParent: parent, IDBase: 0x30000000}
	for _, e := range edit {
		e(&cfg)
	}
	r, err := sandbox.New(cfg)
	if err != nil {
		t.Skipf("this machine cannot run sandboxes: %v", err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close runtime: %v", err)
		}
		for _, g := range controlGroups(parent) {
			if err := os.Remove(g); err != nil {
				t.Errorf("control groups left: %v", err)
			}
		}
	})
	return r
}

// controlGroups finds groups in the hierarchies of v1 and hybrid machines, and in the only one of v2.
func controlGroups(pattern string) []string {
	v1, _ := filepath.Glob("/sys/fs/cgroup/*/" + pattern + "/cgroup.procs")
	v2, _ := filepath.Glob("/sys/fs/cgroup/" + pattern + "/cgroup.procs")
	var found []string
	for _, file := range append(v1, v2...) {
		found = append(found, filepath.Dir(file))
	}
	return found
}

// hostRoot is a root file system of the machine's own programs.
func hostRoot(t testing.TB) sandbox.Root {
	t.Helper()
	lower := t.TempDir()
	if err := os.Chmod(lower, 0o755); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"usr", "etc/alternatives", "proc", "dev", "tmp", "home/user", "root", "var/tmp"} {
		must(os.MkdirAll(filepath.Join(lower, dir), 0o755))
	}
	must(os.Chown(filepath.Join(lower, "home/user"), 1000, 1000))
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if target, err := os.Readlink("/" + name); err == nil {
			must(os.Symlink(target, filepath.Join(lower, name)))
		}
	}
	must(os.WriteFile(filepath.Join(lower, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n"), 0o644))
	must(os.WriteFile(filepath.Join(lower, "etc/group"), []byte("root:x:0:\nuser:x:1000:\nextra:x:77:user\n"), 0o644))
	for _, name := range []string{"ld.so.cache"} {
		text, err := os.ReadFile("/etc/" + name)
		must(err)
		must(os.WriteFile(filepath.Join(lower, "etc", name), text, 0o644))
	}
	links, _ := filepath.Glob("/etc/alternatives/*")
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil {
			must(os.Symlink(target, filepath.Join(lower, "etc/alternatives", filepath.Base(link))))
		}
	}
	return sandbox.Root{
		Lower: []string{lower},
		Binds: []sandbox.Bind{{Source: "/usr", Target: "/usr"}},
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"},
	}
}

func create(t testing.TB, r *sandbox.Runtime, edit ...func(*sandbox.Spec)) *sandbox.Sandbox {
	t.Helper()
	spec := sandbox.Spec{ID: fmt.Sprintf("s-%d", serial.Add(1)), Root: hostRoot(t)}
	for _, e := range edit {
		e(&spec)
	}
	s, err := r.Create(t.Context(), spec)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := s.Destroy(ctx); err != nil {
			t.Errorf("destroy: %v", err)
		}
	})
	return s
}

type outcome struct {
	sandbox.Result
	stdout, stderr string
}

// begin starts a program and fails the test when that fails.
func begin(t testing.TB, s *sandbox.Sandbox, spec sandbox.ExecSpec) *sandbox.Execution {
	t.Helper()
	if spec.ID == "" {
		spec.ID = fmt.Sprintf("e-%d", serial.Add(1))
	}
	e, err := s.Exec(t.Context(), spec)
	if err != nil {
		t.Fatalf("exec %q: %v", spec.Argv, err)
	}
	return e
}

// collect gives the program its input, reads all output and waits for the end.
func collect(t testing.TB, e *sandbox.Execution, input string) outcome {
	t.Helper()
	var o outcome
	var out, errs bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.WriteString(e.Stdin(), input)
		_ = e.Stdin().Close()
	})
	wg.Go(func() { _, _ = io.Copy(&out, e.Stdout()) })
	if e.Stderr() != nil {
		wg.Go(func() { _, _ = io.Copy(&errs, e.Stderr()) })
	}
	select {
	case <-e.Done():
	case <-time.After(60 * time.Second):
		_ = e.Kill()
		t.Errorf("execution did not end")
	}
	wg.Wait()
	<-e.Done()
	result, err := e.Result()
	if err != nil {
		t.Errorf("result: %v", err)
	}
	o.Result, o.stdout, o.stderr = result, out.String(), errs.String()
	return o
}

func run(t testing.TB, s *sandbox.Sandbox, argv ...string) outcome {
	t.Helper()
	return collect(t, begin(t, s, sandbox.ExecSpec{Argv: argv}), "")
}

func shell(t testing.TB, s *sandbox.Sandbox, user, script string) outcome {
	t.Helper()
	return collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", script}, User: user}), "")
}

func TestEcho(t *testing.T) {
	s := create(t, newRuntime(t))
	if o := run(t, s, "echo", "hello"); o.stdout != "hello\n" || o.ExitCode != 0 {
		t.Fatalf("%+v", o)
	}
}

// A creation that is given up in the middle must have ended its process when it returns.
func TestCreationGivenUp(t *testing.T) {
	r := newRuntime(t)
	for i := range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*300*time.Microsecond)
		s, err := r.Create(ctx, sandbox.Spec{ID: fmt.Sprintf("given-up-%d", i), Root: hostRoot(t)})
		cancel()
		if err == nil {
			if err := s.Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if left := childrenInNamespaces(t); len(left) > 0 {
			t.Fatalf("attempt %d (%v) left %q", i, err, left)
		}
	}
}

// childrenInNamespaces lists this process's children that live in a pid namespace of their own.
func childrenInNamespaces(t *testing.T) (left []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		data, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(data), fmt.Sprintf("\nPPid:\t%d\n", os.Getpid())) && regexp.MustCompile(`NSpid:\t\d+\t`).Match(data) {
			left = append(left, path)
		}
	}
	return left
}

// All sandboxes together leave the node some memory, whatever their own limits say.
func TestSandboxesTogetherAreBounded(t *testing.T) {
	parent := fmt.Sprintf("bounded-%d", serial.Add(1))
	openRuntime(t, t.TempDir(), parent)
	var total uint64
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(string(meminfo), "MemTotal: %d kB", &total); err != nil {
		t.Fatal(err)
	}
	var found []string
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == parent {
			for _, name := range []string{"memory.limit_in_bytes", "memory.max"} {
				if data, err := os.ReadFile(filepath.Join(path, name)); err == nil {
					found = append(found, strings.TrimSpace(string(data)))
				}
			}
		}
		return nil
	})
	if err != nil || len(found) != 1 {
		t.Fatalf("the parent group's limits are %q, %v", found, err)
	}
	if limit, err := strconv.ParseUint(found[0], 10, 64); err != nil || limit == 0 || limit > total<<10 {
		t.Errorf("the limit is %q of %d KiB, %v", found[0], total, err)
	}
}
