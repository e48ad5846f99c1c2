//go:build linux && cgo

package oci_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rockpool/internal/image"
	"rockpool/internal/sandbox"
	"rockpool/internal/sandbox/oci"
)

// patience bounds every wait for something that must happen.
const patience = 60 * time.Second

var serial atomic.Int64

// programs finds the OCI runtimes of this machine. gVisor's is looked for where ROCKPOOL_RUNSC says, too.
func programs() map[string]string {
	found := map[string]string{}
	for _, name := range []string{"crun", "runc", "runsc"} {
		if path, err := exec.LookPath(name); err == nil {
			found[name] = path
		}
	}
	if path := os.Getenv("ROCKPOOL_RUNSC"); path != "" {
		found["runsc"] = path
	}
	return found
}

// everywhere runs a test with each runtime that is here.
func everywhere(t *testing.T, test func(t *testing.T, m *machine)) {
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	all := programs()
	for _, name := range []string{"crun", "runc", "runsc"} {
		t.Run(name, func(t *testing.T) {
			if all[name] == "" {
				t.Skipf("%s is not installed here (runsc is looked for in ROCKPOOL_RUNSC too)", name)
			}
			test(t, newMachine(t, name, all[name]))
		})
	}
}

// machine is a place for runtimes, which is found clean at the end of the test.
type machine struct {
	cfg  oci.Config
	root sandbox.Root
}

func newMachine(t *testing.T, name, program string) *machine {
	t.Helper()
	unique := fmt.Sprintf("rockpool-oci-test-%d-%d", os.Getpid(), serial.Add(1))
	m := &machine{cfg: oci.Config{Name: name, Program: program, Dir: t.TempDir(), MountDir: "/run/" + unique, CgroupParent: unique, IDBase: 0x60000000}}
	store, err := image.NewStore(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	if m.root, err = store.Resolve(t.Context(), image.Host); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.verifyClean(t) })
	return m
}

func (m *machine) verifyClean(t *testing.T) {
	r, err := oci.New(m.cfg)
	if err != nil {
		t.Error(err)
		return
	}
	ids, _ := r.List()
	for _, id := range ids {
		t.Errorf("sandbox %s is left: %v", id, r.Remove(context.Background(), id))
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), m.cfg.MountDir) {
		t.Errorf("mounts are left below %s", m.cfg.MountDir)
	}
	left, _ := filepath.Glob("/sys/fs/cgroup/*/" + m.cfg.CgroupParent + "/*/cgroup.procs")
	if len(left) > 0 {
		t.Errorf("control groups are left: %v", left)
	}
	parents, _ := filepath.Glob("/sys/fs/cgroup/*/" + m.cfg.CgroupParent)
	for _, p := range append(parents, "/sys/fs/cgroup/"+m.cfg.CgroupParent) {
		_ = os.Remove(p)
	}
}

func (m *machine) runtime(t *testing.T) *oci.Runtime {
	t.Helper()
	r, err := oci.New(m.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (m *machine) create(t *testing.T, change ...func(*sandbox.Spec)) *oci.Sandbox {
	t.Helper()
	return m.createIn(t, m.runtime(t), change...)
}

func (m *machine) createIn(t *testing.T, r *oci.Runtime, change ...func(*sandbox.Spec)) *oci.Sandbox {
	t.Helper()
	spec := sandbox.Spec{ID: fmt.Sprintf("s-%d", serial.Add(1)), Root: m.root}
	for _, c := range change {
		c(&spec)
	}
	s, err := r.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Destroy(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

func begin(t *testing.T, s *oci.Sandbox, spec sandbox.ExecSpec) *oci.Execution {
	t.Helper()
	spec.ID = fmt.Sprintf("e-%d", serial.Add(1))
	e, err := s.Exec(t.Context(), spec)
	if err != nil {
		t.Fatalf("%q: %v", spec.Argv, err)
	}
	return e
}

type outcome struct {
	sandbox.Result
	stdout, stderr string
	err            error
}

// collect feeds an execution and takes all that it writes.
func collect(t *testing.T, e *oci.Execution, input string) outcome {
	t.Helper()
	var o outcome
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.WriteString(e.Stdin(), input)
		_ = e.Stdin().Close()
	})
	wg.Go(func() {
		b, _ := io.ReadAll(e.Stdout())
		o.stdout = string(b)
	})
	if e.Stderr() != nil {
		wg.Go(func() {
			b, _ := io.ReadAll(e.Stderr())
			o.stderr = string(b)
		})
	}
	select {
	case <-e.Done():
	case <-time.After(patience):
		t.Fatal("the execution does not end")
	}
	wg.Wait()
	o.Result, o.err = e.Result()
	return o
}

func shell(t *testing.T, s *oci.Sandbox, user, script string) outcome {
	t.Helper()
	return collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", script}, User: user}), "")
}

func TestExecution(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t)
		o := collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"cat"}}), "hello")
		if o.err != nil || o.stdout != "hello" || o.ExitCode != 0 || o.Verdict != sandbox.VerdictExit || o.OutputBytes != 5 {
			t.Errorf("%+v", o)
		}
		o = shell(t, s, "user", `echo out; echo err >&2; id -u; pwd; exit 4`)
		if o.stdout != "out\n1000\n/workspace\n" || o.stderr != "err\n" || o.ExitCode != 4 {
			t.Errorf("%+v", o)
		}
	})
}

func TestWhatCannotBeExecuted(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t)
		shell(t, s, "", "echo hello > /tmp/text; echo hello > /tmp/x; chmod 755 /tmp/x")
		for _, c := range []struct {
			spec sandbox.ExecSpec
			want error
		}{
			{sandbox.ExecSpec{Argv: []string{"no-such-program"}}, sandbox.ErrNotFound},
			{sandbox.ExecSpec{Argv: []string{"/no/such"}}, sandbox.ErrNotFound},
			{sandbox.ExecSpec{Argv: []string{"/tmp/text"}}, sandbox.ErrNotExecutable},
			{sandbox.ExecSpec{Argv: []string{"/tmp/x"}}, sandbox.ErrNotExecutable},
			{sandbox.ExecSpec{Argv: []string{"true"}, Dir: "/nowhere"}, sandbox.ErrDirectory},
			{sandbox.ExecSpec{Argv: []string{"true"}, Dir: "/proc/1"}, sandbox.ErrDirectory},
			{sandbox.ExecSpec{Argv: []string{"true"}, Dir: "/proc/self/fd/3"}, sandbox.ErrDirectory},
			{sandbox.ExecSpec{Argv: []string{"true"}, User: "nobody-here"}, sandbox.ErrNoUser},
			{sandbox.ExecSpec{}, sandbox.ErrInvalid},
		} {
			c.spec.ID = fmt.Sprintf("e-%d", serial.Add(1))
			if _, err := s.Exec(t.Context(), c.spec); !errors.Is(err, c.want) {
				t.Errorf("%v in %q: %v", c.spec.Argv, c.spec.Dir, err)
			}
		}
	})
}
