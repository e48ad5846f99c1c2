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
	store, err := image.New(image.Config{Dir: filepath.Join(t.TempDir(), "images")})
	if err != nil {
		t.Fatal(err)
	}
	host, err := store.Acquire(t.Context(), image.Host, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m.root = host.Root
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

func TestStreamsAndTerminal(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t)
		o := collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"cat"}}), strings.Repeat("0123456789abcde\n", 1<<16))
		if len(o.stdout) != 1<<20 {
			t.Errorf("%d bytes of 1 MiB came back", len(o.stdout))
		}
		// A device that is opened again is the same stream.
		o = shell(t, s, "user", "echo a > /dev/stdout; echo b > /dev/stderr")
		if o.stdout != "a\n" || o.stderr != "b\n" {
			t.Errorf("%+v", o)
		}
		e := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "tty; stty size; test -t 2 || echo apart >&2; read x; stty size; cat"}, TTY: true, Width: 80, Height: 24, User: "user"})
		lines := make([]byte, len("/dev/pts/0\r\n24 80\r\n"))
		if _, err := io.ReadFull(e.Stdout(), lines); err != nil || string(lines) != "/dev/pts/0\r\n24 80\r\n" {
			t.Fatalf("%q %v", lines, err)
		}
		if err := e.Resize(120, 40); err != nil {
			t.Fatal(err)
		}
		if o := collect(t, e, "\nlast words\n\x04"); o.err != nil || !strings.Contains(o.stdout, "40 120\r\n") || strings.Count(o.stdout, "last words\r\n") != 2 ||
			o.stderr != "apart\n" || o.ExitCode != 0 {
			t.Errorf("%+v", o)
		}
		// 2 KB wait in the terminal when the program is long gone.
		e = begin(t, s, sandbox.ExecSpec{Argv: []string{"seq", "1", "500"}, TTY: true, MergeStderr: true})
		<-e.Done()
		all, err := io.ReadAll(e.Stdout())
		if err != nil || !strings.HasSuffix(string(all), "500\r\n") || strings.Count(string(all), "\n") != 500 {
			t.Errorf("%d bytes, %v", len(all), err)
		}
		// More than all pipes hold, from a program that has ended when the first byte is read.
		e = begin(t, s, sandbox.ExecSpec{Argv: []string{"seq", "1", "50000"}, TTY: true, MergeStderr: true})
		if o := collect(t, e, ""); strings.Count(o.stdout, "\n") != 50000 {
			t.Errorf("%d lines", strings.Count(o.stdout, "\n"))
		}
		e = begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "sleep 1000 & wait"}, TTY: true, MergeStderr: true})
		if o := collect(t, e, "\x03"); o.Signal != 2 && o.ExitCode != 130 {
			t.Errorf("interrupt character: %+v", o)
		}
	})
}

func TestSignals(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t)
		for _, n := range []int{1, 2, 3, 6, 9, 10, 14, 15, 34} {
			e := begin(t, s, sandbox.ExecSpec{Argv: []string{"sleep", "1000"}, User: "user"})
			if err := e.Signal(n); err != nil {
				t.Fatal(err)
			}
			if o := collect(t, e, ""); o.Signal != n || o.ExitCode != 128+n || o.Verdict != sandbox.VerdictSignal {
				t.Errorf("signal %d: %+v", n, o)
			}
			if err := e.Signal(n); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("signal after the end: %v", err)
			}
		}
	})
}

// A child that left the session and holds the streams delays neither the end nor the last byte, and is gone afterwards.
func TestNothingSurvivesItsExecution(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t)
		for _, tty := range []bool{false, true} {
			for _, user := range []string{"root", "user"} {
				e := begin(t, s, sandbox.ExecSpec{TTY: tty, User: user,
					Argv: []string{"bash", "-c", "(setsid bash -c '(setsid sleep 1000 &)' &); sleep 1000 & echo last; exit 4"}})
				if o := collect(t, e, ""); strings.TrimSpace(o.stdout) != "last" || o.ExitCode != 4 {
					t.Errorf("tty %v: %+v", tty, o)
				}
			}
		}
		e := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "trap '' TERM INT; echo ready; (setsid sleep 1000 &) ; while :; do :; done"}})
		_, _ = io.ReadFull(e.Stdout(), make([]byte, 6))
		if err := e.Kill(); err != nil {
			t.Fatal(err)
		}
		if o := collect(t, e, ""); o.ExitCode != 137 || o.Verdict != sandbox.VerdictKilled || o.CPUTime <= 0 {
			t.Errorf("%+v", o)
		}
		if o := shell(t, s, "", "grep -ls sleep /proc/[0-9]*/comm | wc -l"); o.stdout != "0\n" {
			t.Errorf("left: %q", o.stdout)
		}
	})
}

func TestABackgroundProcessStays(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t)
		e := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "setsid sleep 1000 >/dev/null 2>&1 & exit 3"}, Background: true})
		if o := collect(t, e, ""); o.ExitCode != 3 {
			t.Errorf("%+v", o)
		}
		if o := shell(t, s, "", "grep -ls sleep /proc/[0-9]*/comm | wc -l"); o.stdout != "1\n" {
			t.Errorf("%q", o.stdout)
		}
	})
}

func TestLimitsOfAnExecution(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t)
		for name, c := range map[string]struct {
			spec sandbox.ExecSpec
			want sandbox.Verdict
			code int
		}{
			"time":         {sandbox.ExecSpec{Argv: []string{"sleep", "1000"}, TimeLimit: 300 * time.Millisecond}, sandbox.VerdictTime, 137},
			"grace":        {sandbox.ExecSpec{Argv: []string{"bash", "-c", "trap 'exit 5' QUIT; while :; do read -t 0.1 <> <(:); done"}, TimeLimit: 500 * time.Millisecond, Grace: patience}, sandbox.VerdictTime, 5},
			"no grace":     {sandbox.ExecSpec{Argv: []string{"bash", "-c", "trap '' QUIT; sleep 1000"}, TimeLimit: 300 * time.Millisecond, Grace: 200 * time.Millisecond}, sandbox.VerdictTime, 137},
			"cpu":          {sandbox.ExecSpec{Argv: []string{"bash", "-c", "(while :; do :; done) & while :; do :; done"}, CPULimit: 400 * time.Millisecond, TimeLimit: patience}, sandbox.VerdictCPU, 137},
			"cpu of waits": {sandbox.ExecSpec{Argv: []string{"sleep", "1"}, CPULimit: 400 * time.Millisecond}, sandbox.VerdictExit, 0},
			"output":       {sandbox.ExecSpec{Argv: []string{"yes"}, OutputLimit: 100000}, sandbox.VerdictOutput, 137},
		} {
			t.Run(name, func(t *testing.T) {
				o := collect(t, begin(t, s, c.spec), "")
				if o.err != nil || o.Verdict != c.want || o.ExitCode != c.code {
					t.Errorf("%+v", o.Result)
				}
				if limit := c.spec.OutputLimit; limit > 0 && (int64(len(o.stdout)) != limit || o.OutputBytes != limit) {
					t.Errorf("%d bytes were handed on, %d counted", len(o.stdout), o.OutputBytes)
				}
				if limit := c.spec.CPULimit; c.want == sandbox.VerdictCPU && (o.CPUTime < limit || o.CPUTime > limit+5*time.Second) {
					t.Errorf("CPU time %v", o.CPUTime)
				}
			})
		}
	})
}

func TestMemoryLimit(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t, func(spec *sandbox.Spec) { spec.Limits.MemoryBytes = 192 << 20 })
		o := collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"/usr/bin/python3", "-c", "x = bytearray(1 << 30)"}}), "")
		if o.ExitCode != 137 || !o.OOMKilled || o.Verdict != sandbox.VerdictMemory {
			t.Errorf("%+v %v", o.Result, o.err)
		}
		if m.cfg.Name == "runsc" { // its kernel is one process of the node, and all of the sandbox ended
			<-s.Done()
			if !s.Exit().OOMKilled {
				t.Errorf("%+v", s.Exit())
			}
			return
		}
		if o := shell(t, s, "", "exit 137"); o.OOMKilled || o.ExitCode != 137 || o.Verdict != sandbox.VerdictExit {
			t.Errorf("neighbour: %+v", o)
		}
	})
}

func TestForkBombEndsAtTheLimit(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t, func(spec *sandbox.Spec) { spec.Limits.PIDs = 100 })
		e := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "bomb() { bomb | bomb & }; bomb; echo going; sleep 1000"}, User: "user", TimeLimit: 2 * time.Second, MergeStderr: true})
		o := collect(t, e, "")
		if m.cfg.Name == "runsc" && o.err != nil { // its kernel may end for want of threads: nobody calls that a success
			return
		}
		if o.err != nil || o.ExitCode != 137 || o.Verdict != sandbox.VerdictTime {
			t.Errorf("%+v %v", o.Result, o.err)
		}
		if o := shell(t, s, "", "true"); o.ExitCode != 0 || o.err != nil {
			t.Errorf("after the bomb: %+v", o)
		}
	})
}

func TestDiskLimit(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t, func(spec *sandbox.Spec) {
			spec.Limits.DiskBytes, spec.Limits.DiskInodes, spec.Limits.FileSizeBytes = 8<<20, 400, 1<<30
		})
		for _, dir := range []string{"/workspace", "/tmp", "/var", "/dev/shm"} {
			o := shell(t, s, "", "dd if=/dev/zero of="+dir+"/full bs=64k count=500 2>&1; rm -f "+dir+"/full")
			if !strings.Contains(o.stdout, "No space left") {
				t.Errorf("%s: %q", dir, o.stdout)
			}
		}
		if o := shell(t, s, "", "for i in $(seq 1000); do : > /workspace/$i || exit 9; done 2>/dev/null"); o.ExitCode != 9 {
			t.Errorf("inodes: %+v", o)
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		s := m.create(t)
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				e := begin(t, s, sandbox.ExecSpec{Argv: []string{"echo", fmt.Sprint(i)}})
				if o := collect(t, e, ""); o.stdout != fmt.Sprintf("%d\n", i) || o.ExitCode != 0 {
					t.Errorf("%d: %+v", i, o)
				}
			})
		}
		wg.Wait()
	})
}

// On a busy machine a runtime has long returned when its container's process 1 becomes our program. Here that takes half a second each time.
func TestASlowProcess1IsWaitedFor(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed here")
	}
	everywhere(t, func(t *testing.T, m *machine) {
		if m.cfg.Name == "runsc" {
			t.Skip("its kernel starts process 1 itself")
		}
		slow := filepath.Join(t.TempDir(), m.cfg.Name)
		script := fmt.Sprintf(`#!/bin/bash
for a; do [ "$a" = run ] && exec %s -DDD -f -o /dev/null -e trace=execve -e inject=execve:delay_enter=500000 %s "$@"; done
exec %s "$@"
`, strace, m.cfg.Program, m.cfg.Program)
		if err := os.WriteFile(slow, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		m.cfg.Program = slow
		if o := collect(t, begin(t, m.create(t), sandbox.ExecSpec{Argv: []string{"echo", "up"}}), ""); o.stdout != "up\n" || o.ExitCode != 0 || o.err != nil {
			t.Errorf("%+v", o)
		}
	})
}

func TestAttachAfterRestart(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		first, err := oci.New(m.cfg)
		if err != nil {
			t.Fatal(err)
		}
		s, err := first.Create(t.Context(), sandbox.Spec{ID: "kept", Root: m.root})
		if err != nil {
			t.Fatal(err)
		}
		shell(t, s, "", "echo here > /workspace/file")
		begin(t, s, sandbox.ExecSpec{Argv: []string{"sleep", "1000"}})
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		second := m.runtime(t)
		if ids, err := second.List(); err != nil || len(ids) != 1 || ids[0] != "kept" {
			t.Fatalf("%v %v", ids, err)
		}
		again, err := second.Attach(t.Context(), "kept")
		if err != nil {
			t.Fatal(err)
		}
		if o := shell(t, again, "", "cat file; grep -ls sleep /proc/[0-9]*/comm | wc -l"); o.stdout != "here\n0\n" {
			t.Errorf("%+v", o)
		}
		if err := again.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := second.Attach(t.Context(), "kept"); !errors.Is(err, sandbox.ErrUnknown) {
			t.Errorf("attach after destroy: %v", err)
		}
	})
}

// A runtime that is configured no more, and may be gone, leaves nothing.
func TestDiscard(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		r, err := oci.New(m.cfg)
		if err != nil {
			t.Fatal(err)
		}
		s, err := r.Create(t.Context(), sandbox.Spec{ID: "forgotten", Root: m.root})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Exec(t.Context(), sandbox.ExecSpec{ID: "service", Background: true, Argv: []string{"bash", "-c", "setsid sleep 1000 &"}}); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		gone := m.cfg
		gone.Program = "/no/such/program"
		if err := oci.Discard(t.Context(), gone); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(m.cfg.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("state is left: %v", err)
		}
	})
}

func TestDestroyEndsExecutions(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		r := m.runtime(t)
		s := m.createIn(t, r)
		e := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "(setsid sleep 1000 &); sleep 1000"}})
		if _, err := r.Create(t.Context(), sandbox.Spec{ID: s.ID(), Root: m.root}); !errors.Is(err, sandbox.ErrExists) {
			t.Errorf("a second one of the same id: %v", err)
		}
		if err := s.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Result(); !errors.Is(err, sandbox.ErrLost) {
			t.Errorf("an outcome that nobody saw: %v", err)
		}
		if !s.Exit().Removed {
			t.Error("not marked as removed")
		}
		if _, err := s.Exec(t.Context(), sandbox.ExecSpec{ID: "late", Argv: []string{"true"}}); !errors.Is(err, sandbox.ErrEnded) {
			t.Errorf("exec after the end: %v", err)
		}
	})
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, m *machine) {
		r := m.runtime(t)
		root := m.root
		root.Binds = append(root.Binds[:len(root.Binds):len(root.Binds)], sandbox.Bind{Source: "/etc/passwd", Target: "/not/there"})
		if _, err := r.Create(t.Context(), sandbox.Spec{ID: "bad", Root: root}); err == nil || !strings.Contains(err.Error(), "/not/there") {
			t.Error(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.Create(ctx, sandbox.Spec{ID: "never", Root: m.root}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if ids, _ := r.List(); len(ids) != 0 {
			t.Error(ids)
		}
	})
}

func TestAProgramThatIsNoRuntimeIsNamed(t *testing.T) {
	for _, program := range []string{"/bin/echo", "/no/such/runtime", "/bin/false"} {
		_, err := oci.New(oci.Config{Name: "strange", Program: program, Dir: t.TempDir()})
		if err == nil || !strings.Contains(err.Error(), "strange") || !strings.Contains(err.Error(), program) {
			t.Errorf("%v", err)
		}
	}
}
