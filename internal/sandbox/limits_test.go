//go:build linux && cgo

package sandbox_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"rockpool/internal/sandbox"
)

// Every way in which an execution can end has one verdict, and what the program prints or returns cannot change it.
func TestVerdicts(t *testing.T) {
	const spin = "while :; do :; done"
	s := create(t, newRuntime(t), func(spec *sandbox.Spec) { spec.Limits.MemoryBytes = 64 << 20 })
	python := func(text string) []string { return []string{"/usr/bin/python3", "-c", text} }
	bash := func(text string) []string { return []string{"bash", "-c", text} }
	for _, c := range []struct {
		name    string
		spec    sandbox.ExecSpec
		verdict sandbox.Verdict
		code    int // -1 = either of the limit's signals, or what the program made of it
		oom     bool
	}{
		{"returns", sandbox.ExecSpec{Argv: bash("exit 3")}, sandbox.VerdictExit, 3, false},
		{"137 by choice", sandbox.ExecSpec{Argv: bash("exit 137"), TimeLimit: time.Minute}, sandbox.VerdictExit, 137, false},
		{"143 by choice", sandbox.ExecSpec{Argv: bash("exit 143"), OutputLimit: 1 << 20}, sandbox.VerdictExit, 143, false},
		{"124 by choice", sandbox.ExecSpec{Argv: bash("echo time limit exceeded; exit 124"), CPULimit: time.Minute}, sandbox.VerdictExit, 124, false},
		{"text of another verdict", sandbox.ExecSpec{Argv: bash("echo the allocation was OOM Killed; exit 137")}, sandbox.VerdictExit, 137, false},
		{"a signal to itself", sandbox.ExecSpec{Argv: bash("kill -TERM $$")}, sandbox.VerdictSignal, 143, false},
		{"KILL to itself", sandbox.ExecSpec{Argv: bash("kill -KILL $$")}, sandbox.VerdictSignal, 137, false},
		{"sleeps too long", sandbox.ExecSpec{Argv: bash("sleep 1000"), TimeLimit: 100 * time.Millisecond}, sandbox.VerdictTime, 137, false},
		{"heeds QUIT", sandbox.ExecSpec{Argv: bash("trap 'exit 0' QUIT; while :; do sleep 0.01; done"), TimeLimit: 200 * time.Millisecond, Grace: time.Minute},
			sandbox.VerdictTime, -1, false},
		{"ignores QUIT", sandbox.ExecSpec{Argv: bash("trap '' QUIT INT TERM HUP; " + spin), TimeLimit: time.Second, Grace: 100 * time.Millisecond},
			sandbox.VerdictTime, 137, false},
		{"stopped itself", sandbox.ExecSpec{Argv: bash("kill -STOP $$"), TimeLimit: time.Second, Grace: 50 * time.Millisecond}, sandbox.VerdictTime, 137, false},
		{"spins", sandbox.ExecSpec{Argv: bash(spin), CPULimit: 100 * time.Millisecond}, sandbox.VerdictCPU, 137, false},
		{"spins in grandchildren", sandbox.ExecSpec{Argv: bash("(setsid bash -c '" + spin + "' &); sleep 1000"), CPULimit: 100 * time.Millisecond},
			sandbox.VerdictCPU, 137, false},
		{"spins in short-lived children", sandbox.ExecSpec{Argv: bash("while :; do (for ((i=0;i<2000;i++)); do :; done); done"), CPULimit: 200 * time.Millisecond},
			sandbox.VerdictCPU, 137, false},
		{"returns beyond its CPU time", sandbox.ExecSpec{Argv: bash("for ((i=0;i<20000;i++)); do :; done"), CPULimit: time.Millisecond}, sandbox.VerdictCPU, -1, false},
		{"endless stdout", sandbox.ExecSpec{Argv: []string{"cat", "/dev/zero"}, OutputLimit: 1 << 20}, sandbox.VerdictOutput, 137, false},
		{"endless stderr", sandbox.ExecSpec{Argv: bash("exec cat /dev/zero >&2"), OutputLimit: 1 << 20}, sandbox.VerdictOutput, 137, false},
		{"both, endless, on a terminal", sandbox.ExecSpec{Argv: bash("cat /dev/zero & exec cat /dev/zero >&2"), OutputLimit: 1 << 18, TTY: true}, sandbox.VerdictOutput, 137, false},
		{"a little too much", sandbox.ExecSpec{Argv: bash("printf 12345; printf 6789 >&2"), OutputLimit: 8}, sandbox.VerdictOutput, -1, false},
		{"a little too much on a terminal", sandbox.ExecSpec{Argv: bash("printf 123456789"), OutputLimit: 8, TTY: true}, sandbox.VerdictOutput, -1, false},
		{"just as much as it may", sandbox.ExecSpec{Argv: bash("printf 1234; printf 5678 >&2"), OutputLimit: 8}, sandbox.VerdictExit, 0, false},
		{"too much memory", sandbox.ExecSpec{Argv: python("x = bytearray(1 << 30)")}, sandbox.VerdictMemory, 137, true},
		{"a child's memory", sandbox.ExecSpec{Argv: bash("/usr/bin/python3 -c 'x = bytearray(1 << 30)'; echo $?; exit 5")}, sandbox.VerdictExit, 5, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			began := time.Now()
			o := collect(t, begin(t, s, c.spec), "")
			if o.Verdict != c.verdict || o.OOMKilled != c.oom || c.code >= 0 && o.ExitCode != c.code {
				t.Errorf("%+v", o.Result)
			}
			if got := int64(len(o.stdout) + len(o.stderr)); got != o.OutputBytes || c.spec.OutputLimit > 0 && got > c.spec.OutputLimit {
				t.Errorf("%d bytes were delivered, %d are in the result", got, o.OutputBytes)
			}
			if c.verdict == sandbox.VerdictOutput && o.OutputBytes != c.spec.OutputLimit {
				t.Errorf("%d bytes came through, the limit is %d", o.OutputBytes, c.spec.OutputLimit)
			}
			if limit := c.spec.CPULimit; c.verdict == sandbox.VerdictCPU && (o.CPUTime < limit || o.CPUTime > limit+time.Second) {
				t.Errorf("%v of CPU time, the limit is %v", o.CPUTime, limit)
			}
			if time.Since(began) > 20*time.Second {
				t.Errorf("took %v", time.Since(began))
			}
			if after := run(t, s, "true"); after.Verdict != sandbox.VerdictExit || after.ExitCode != 0 {
				t.Errorf("the runner is of no use afterwards: %+v", after.Result)
			}
		})
	}
}

func TestKilledIsAVerdict(t *testing.T) {
	s := create(t, newRuntime(t))
	e := begin(t, s, sandbox.ExecSpec{Argv: []string{"sleep", "1000"}, TimeLimit: time.Minute})
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	<-e.Done()
	if r, err := e.Result(); err != nil || r.Verdict != sandbox.VerdictKilled || r.ExitCode != 137 {
		t.Errorf("%+v %v", r, err)
	}
}

// Nobody reads: the pipe bounds what waits, and the time limit ends it.
func TestOutputThatNobodyReads(t *testing.T) {
	s := create(t, newRuntime(t))
	e := begin(t, s, sandbox.ExecSpec{Argv: []string{"cat", "/dev/zero"}, OutputLimit: 1 << 30, TimeLimit: time.Second})
	<-e.Done()
	r, err := e.Result()
	if err != nil || r.Verdict != sandbox.VerdictTime {
		t.Errorf("%+v %v", r, err)
	}
	got, _ := io.Copy(io.Discard, e.Stdout())
	if got != r.OutputBytes || got == 0 || got > 1<<20 {
		t.Errorf("%d bytes, %d in the result", got, r.OutputBytes)
	}
	_, _ = io.Copy(io.Discard, e.Stderr())
}

func TestNegativeLimitsAreRefused(t *testing.T) {
	s := create(t, newRuntime(t))
	for _, spec := range []sandbox.ExecSpec{{TimeLimit: -1}, {CPULimit: -1}, {OutputLimit: -1}, {Grace: -1}} {
		spec.ID, spec.Argv = "negative", []string{"true"}
		if _, err := s.Exec(t.Context(), spec); !errors.Is(err, sandbox.ErrInvalid) {
			t.Errorf("%+v: %v", spec, err)
		}
	}
}

// What a service leaves behind lives on; what any other execution leaves behind does not; all of it ends with the sandbox.
func TestBackground(t *testing.T) {
	s := create(t, newRuntime(t))
	count := func() string {
		return strings.TrimSpace(run(t, s, "bash", "-c", "ps ax | grep -c '[s]leep 1234'").stdout)
	}
	daemon := []string{"bash", "-c", "(setsid sleep 1234 >/dev/null 2>&1 &); exit 3"}
	if o := collect(t, begin(t, s, sandbox.ExecSpec{Argv: daemon, Background: true}), ""); o.ExitCode != 3 || o.Verdict != sandbox.VerdictExit {
		t.Errorf("%+v", o)
	}
	collect(t, begin(t, s, sandbox.ExecSpec{Argv: daemon}), "")
	if got := count(); got != "1" {
		t.Errorf("%s services run, want 1", got)
	}
	// Beyond a limit nothing lives on.
	o := collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "(setsid sleep 1234 &); sleep 1000"}, Background: true, TimeLimit: 100 * time.Millisecond}), "")
	if o.Verdict != sandbox.VerdictTime || count() != "1" {
		t.Errorf("%+v, %s services run", o.Result, count())
	}
	// A service that left nothing leaves no group either: its id is free again.
	for range 2 {
		collect(t, begin(t, s, sandbox.ExecSpec{ID: "again", Argv: []string{"true"}, Background: true}), "")
	}
}

func TestAServiceOutlivesTheNodesProcess(t *testing.T) {
	dir, parent := t.TempDir(), fmt.Sprintf("rockpool-test-%d-%d", os.Getpid(), serial.Add(1))
	second := openRuntime(t, dir, parent)
	first, err := sandbox.New(sandbox.Config{Dir: dir, CgroupParent: parent, IDBase: 0x30000000})
	if err != nil {
		t.Fatal(err)
	}
	s, err := first.Create(t.Context(), sandbox.Spec{ID: "kept", Root: hostRoot(t)})
	if err != nil {
		t.Fatal(err)
	}
	collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "(setsid sleep 1234 >/dev/null 2>&1 &)"}, Background: true}), "")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := second.Attach(t.Context(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	if o := run(t, again, "bash", "-c", "ps ax | grep -c '[s]leep 1234'"); o.stdout != "1\n" {
		t.Errorf("%+v", o)
	}
	if err := again.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestEverySignalArrives(t *testing.T) {
	s := create(t, newRuntime(t))
	e := begin(t, s, sandbox.ExecSpec{Argv: []string{"/usr/bin/python3", "-u", "-c", `
import signal
every = range(1, 65)
signal.pthread_sigmask(signal.SIG_BLOCK, every)
print("ready")
while True: print(int(signal.sigwait(every)))`}})
	lines := bufio.NewScanner(e.Stdout())
	lines.Scan()
	for n := 1; n <= 64; n++ {
		if n == 9 || n == 19 || n == 32 || n == 33 { // KILL and STOP cannot be caught; the C library keeps two for itself
			continue
		}
		if err := e.Signal(n); err != nil {
			t.Error(err)
		}
		if lines.Scan(); lines.Text() != fmt.Sprint(n) {
			t.Fatalf("signal %d arrived as %q", n, lines.Text())
		}
	}
	if err := e.Signal(9); err != nil {
		t.Error(err)
	}
	<-e.Done()
	if r, err := e.Result(); err != nil || r.Signal != 9 || r.Verdict != sandbox.VerdictSignal {
		t.Errorf("%+v %v", r, err)
	}
	for _, n := range []int{0, -1, 65} {
		if err := e.Signal(n); !errors.Is(err, sandbox.ErrInvalid) {
			t.Errorf("signal %d: %v", n, err)
		}
	}
}

// Arguments, values and directories are bytes: nothing between the caller and execve reads meaning into them.
func TestAnyBytesAreData(t *testing.T) {
	s := create(t, newRuntime(t))
	var every strings.Builder
	for b := 1; b < 256; b++ {
		every.WriteByte(byte(b))
	}
	dir := "/workspace/d\n \xff'\"$(x)`"
	if o := run(t, s, "mkdir", dir); o.ExitCode != 0 {
		t.Fatalf("%+v", o)
	}
	e := begin(t, s, sandbox.ExecSpec{
		Argv: []string{"/usr/bin/python3", "-c", `import os, sys
w = sys.stdout.buffer
w.write(os.fsencode(sys.argv[1]) + b"\0" + os.environb[b"V"] + b"\0" + os.getcwdb() + b"\0" + os.environb[b"EMPTY"])`, every.String()},
		Env: []string{"V=" + every.String(), "EMPTY="}, Dir: dir,
	})
	o := collect(t, e, "")
	if want := every.String() + "\x00" + every.String() + "\x00" + dir + "\x00"; o.stdout != want {
		t.Errorf("%q, %q", o.stdout, o.stderr)
	}
}
