//go:build linux && cgo

package sandbox_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"rockpool/internal/sandbox"
)

func TestExitCodesAreTheProgramsOwn(t *testing.T) {
	s := create(t, newRuntime(t))
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "exit 255": 255, "exit 137": 137, "kill -TERM $$": 143, "kill -KILL $$": 137} {
		o := shell(t, s, "user", script)
		signalled := strings.HasPrefix(script, "kill")
		if o.ExitCode != want || (o.Signal != 0) != signalled || o.OOMKilled {
			t.Errorf("%s: %+v", script, o)
		}
	}
}

func TestStdinReachesItsEnd(t *testing.T) {
	s := create(t, newRuntime(t))
	o := collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"wc", "-c"}}), strings.Repeat("x", 1<<20))
	if strings.TrimSpace(o.stdout) != "1048576" {
		t.Fatalf("%+v", o)
	}
}

func TestStreamsStayApart(t *testing.T) {
	s := create(t, newRuntime(t))
	for _, tty := range []bool{false, true} {
		e := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "echo out; echo err >&2; echo again >/dev/stderr; echo more >/dev/stdout"}, User: "user", TTY: tty})
		o := collect(t, e, "")
		out := strings.ReplaceAll(o.stdout, "\r\n", "\n")
		if out != "out\nmore\n" || o.stderr != "err\nagain\n" {
			t.Errorf("tty %v: %q %q", tty, o.stdout, o.stderr)
		}
	}
	e := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "echo out; echo err >&2"}, MergeStderr: true})
	if o := collect(t, e, ""); o.stdout != "out\nerr\n" || e.Stderr() != nil {
		t.Errorf("merged: %q", o.stdout)
	}
}

func TestTerminal(t *testing.T) {
	s := create(t, newRuntime(t))
	e := begin(t, s, sandbox.ExecSpec{
		Argv: []string{"bash", "-c", "tty; stty size; stat -c %U $(tty); trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.05; done"},
		User: "user", TTY: true, Width: 80, Height: 24,
	})
	lines := bufio.NewScanner(e.Stdout())
	next := func() string { lines.Scan(); return strings.TrimSpace(lines.Text()) }
	for _, want := range []string{"/dev/pts/0", "24 80", "user", "ready"} {
		if got := next(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if err := e.Resize(120, 40); err != nil {
		t.Fatal(err)
	}
	if got := next(); got != "40 120" {
		t.Errorf("after resize: %q", got)
	}
	<-e.Done()
	if r, err := e.Result(); err != nil || r.ExitCode != 3 {
		t.Errorf("%+v %v", r, err)
	}
}

func TestInterruptCharacterAndCloseOnTerminal(t *testing.T) {
	s := create(t, newRuntime(t))
	// No read in the script: bash forgets a trap whose signal comes while it prepares one, until there is input.
	e := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "trap 'exit 9' INT; echo ready; while :; do sleep 0.05; done"}, TTY: true})
	lines := bufio.NewScanner(e.Stdout())
	lines.Scan()
	if _, err := io.WriteString(e.Stdin(), "\x03"); err != nil {
		t.Fatal(err)
	}
	_ = e.Stdin().Close()
	if _, err := io.WriteString(e.Stdin(), "x"); err == nil {
		t.Error("a closed stdin still accepts")
	}
	<-e.Done()
	if r, err := e.Result(); err != nil || r.ExitCode != 9 {
		t.Errorf("%+v %v", r, err)
	}
}

func TestTerminalOutputSurvivesASlowReader(t *testing.T) {
	s := create(t, newRuntime(t))
	e := begin(t, s, sandbox.ExecSpec{Argv: []string{"seq", "1", "500"}, TTY: true})
	<-e.Done() // 2 KB wait in the terminal when the program is long gone
	all, err := io.ReadAll(e.Stdout())
	if err != nil || !strings.HasSuffix(string(all), "500\r\n") || strings.Count(string(all), "\n") != 500 {
		t.Fatalf("%d bytes, %v", len(all), err)
	}
}

func TestSignal(t *testing.T) {
	s := create(t, newRuntime(t))
	e := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "trap 'exit 5' USR1; echo ready; while :; do sleep 0.05; done"}})
	bufio.NewScanner(e.Stdout()).Scan()
	if err := e.Signal(10); err != nil {
		t.Fatal(err)
	}
	<-e.Done()
	if r, _ := e.Result(); r.ExitCode != 5 {
		t.Errorf("%+v", r)
	}
	if err := e.Signal(10); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
}

// A child that left the session and holds the streams delays neither the end nor the last byte.
func TestNothingSurvivesItsExecution(t *testing.T) {
	s := create(t, newRuntime(t))
	for _, tty := range []bool{false, true} {
		start := time.Now()
		e := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "(setsid bash -c '(setsid sleep 1000 &)' &); sleep 1000 & echo last; exit 4"}, TTY: tty})
		o := collect(t, e, "")
		if strings.TrimSpace(o.stdout) != "last" || o.ExitCode != 4 || time.Since(start) > 10*time.Second {
			t.Errorf("tty %v: %+v", tty, o)
		}
	}
	if o := run(t, s, "bash", "-c", "ps ax | grep -c '[s]leep'"); strings.TrimSpace(o.stdout) != "0" {
		t.Errorf("left: %q", o.stdout)
	}
}

func TestKillEndsTheWholeGroup(t *testing.T) {
	s := create(t, newRuntime(t))
	e := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "trap '' TERM INT; echo ready; (setsid sleep 1000 &) ; while :; do :; done"}})
	bufio.NewScanner(e.Stdout()).Scan()
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	<-e.Done()
	if r, err := e.Result(); err != nil || r.ExitCode != 137 || r.Signal != 9 || r.OOMKilled || r.CPUTime <= 0 {
		t.Errorf("%+v %v", r, err)
	}
}

func TestOutOfMemoryIsTheKernelsVerdict(t *testing.T) {
	s := create(t, newRuntime(t), func(spec *sandbox.Spec) { spec.Limits.MemoryBytes = 64 << 20 })
	o := run(t, s, "/usr/bin/python3", "-c", "x = bytearray(1 << 30)")
	if o.ExitCode != 137 || !o.OOMKilled || o.PeakMemory < 32<<20 {
		t.Errorf("%+v", o)
	}
	if o := run(t, s, "bash", "-c", "echo the allocation was OOM Killed; exit 137"); o.OOMKilled || o.ExitCode != 137 {
		t.Errorf("neighbour: %+v", o)
	}
}

func TestForkBombEndsAtTheLimit(t *testing.T) {
	s := create(t, newRuntime(t), func(spec *sandbox.Spec) { spec.Limits.PIDs = 40 })
	e := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "for i in {1..200}; do sleep 1000 & done; wait"}, User: "user", MergeStderr: true})
	go func() {
		lines := bufio.NewScanner(e.Stdout())
		for lines.Scan() {
			if strings.Contains(lines.Text(), "fork") {
				break
			}
		}
		_ = e.Kill()
	}()
	select {
	case <-e.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the limit on processes does not hold")
	}
	if o := run(t, s, "true"); o.ExitCode != 0 {
		t.Errorf("after the bomb: %+v", o)
	}
}

func TestManyAtOnce(t *testing.T) {
	s := create(t, newRuntime(t))
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			want := fmt.Sprintf("%d\n", i)
			if o := run(t, s, "echo", fmt.Sprint(i)); o.stdout != want || o.ExitCode != 0 {
				t.Errorf("%d: %+v", i, o)
			}
		})
	}
	wg.Wait()
}

func TestWhatCannotBeExecuted(t *testing.T) {
	s := create(t, newRuntime(t))
	shell(t, s, "", "echo hello > /tmp/text; echo hello > /tmp/x; chmod 755 /tmp/x")
	for _, c := range []struct {
		spec sandbox.ExecSpec
		want error
	}{
		{sandbox.ExecSpec{Argv: []string{"no-such-program"}}, sandbox.ErrNotFound},
		{sandbox.ExecSpec{Argv: []string{"/no/such"}}, sandbox.ErrNotFound},
		{sandbox.ExecSpec{Argv: []string{"/tmp/text"}}, sandbox.ErrNotExecutable},
		{sandbox.ExecSpec{Argv: []string{"/tmp/x"}}, sandbox.ErrNotExecutable},
		{sandbox.ExecSpec{Argv: []string{"/tmp"}}, sandbox.ErrNotExecutable},
		{sandbox.ExecSpec{Argv: []string{"true"}, Dir: "/nowhere"}, sandbox.ErrDirectory},
		{sandbox.ExecSpec{Argv: []string{"true"}, Dir: "/proc/1"}, sandbox.ErrDirectory},
		{sandbox.ExecSpec{Argv: []string{"true"}, Dir: "/proc/self/fd/3"}, sandbox.ErrDirectory},
		{sandbox.ExecSpec{Argv: []string{"true"}, Dir: "/proc"}, sandbox.ErrDirectory},
		{sandbox.ExecSpec{Argv: []string{"true"}, User: "nobody-here"}, sandbox.ErrNoUser},
		{sandbox.ExecSpec{}, sandbox.ErrInvalid},
	} {
		c.spec.ID = fmt.Sprintf("e-%d", serial.Add(1))
		if _, err := s.Exec(t.Context(), c.spec); !errors.Is(err, c.want) {
			t.Errorf("%v in %q: %v", c.spec.Argv, c.spec.Dir, err)
		}
	}
}

func TestDestroyLeavesNothing(t *testing.T) {
	dir, parent := t.TempDir(), fmt.Sprintf("rockpool-test-%d-%d", os.Getpid(), serial.Add(1))
	r := openRuntime(t, dir, parent)
	before := openDescriptors(t)
	s := create(t, r)
	e := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "(setsid sleep 1000 &); sleep 1000"}})
	if err := s.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Result(); !errors.Is(err, sandbox.ErrLost) {
		t.Errorf("an outcome that nobody saw: %v", err)
	}
	<-s.Done()
	if !s.Exit().Removed {
		t.Error("not marked as removed")
	}
	groups := append(controlGroups(parent+"/s-*"), controlGroups(parent+"/s-*/*")...)
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	left, _ := os.ReadDir(filepath.Join(dir, "sandboxes"))
	if len(groups) > 0 || strings.Contains(string(mounts), dir) || len(left) > 0 {
		t.Errorf("left: %v %v", groups, left)
	}
	_, _ = io.ReadAll(e.Stdout())
	_, _ = io.ReadAll(e.Stderr())
	if after := openDescriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	if _, err := s.Exec(t.Context(), sandbox.ExecSpec{ID: "late", Argv: []string{"true"}}); !errors.Is(err, sandbox.ErrEnded) {
		t.Errorf("exec after the end: %v", err)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestAttachAfterRestart(t *testing.T) {
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
	shell(t, s, "", "echo here > /workspace/file")
	begin(t, s, sandbox.ExecSpec{Argv: []string{"sleep", "1000"}})
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	if ids, err := second.List(); err != nil || len(ids) != 1 || ids[0] != "kept" {
		t.Fatalf("%v %v", ids, err)
	}
	again, err := second.Attach(t.Context(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	if o := shell(t, again, "", "cat file; ps ax | grep -c '[s]leep 1000'"); o.stdout != "here\n0\n" {
		t.Errorf("%+v", o)
	}
	if err := again.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Attach(t.Context(), "kept"); !errors.Is(err, sandbox.ErrUnknown) {
		t.Errorf("attach after destroy: %v", err)
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	r := newRuntime(t)
	root := hostRoot(t)
	root.Binds = append(root.Binds, sandbox.Bind{Source: "/etc/passwd", Target: "/not/there"})
	if s, err := r.Create(t.Context(), sandbox.Spec{ID: "bad", Root: root}); err == nil {
		_ = s.Destroy(context.Background())
		t.Fatal("created")
	} else if !strings.Contains(err.Error(), "target of a bind") {
		t.Error(err)
	}
	if ids, _ := r.List(); len(ids) != 0 {
		t.Error(ids)
	}
}

func TestSupervisorsEndIsSeen(t *testing.T) {
	r := newRuntime(t)
	s := create(t, r)
	e := begin(t, s, sandbox.ExecSpec{Argv: []string{"sleep", "1000"}})
	if err := r.Remove(t.Context(), s.ID()); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	<-e.Done()
	if r, err := e.Result(); err == nil || r.ExitCode == 0 {
		t.Errorf("%+v %v", r, err)
	}
}

func TestACancelledStartLeavesNothing(t *testing.T) {
	r := newRuntime(t)
	s := create(t, r)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Exec(ctx, sandbox.ExecSpec{ID: "never", Argv: []string{"sleep", "1000"}}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := r.Create(ctx, sandbox.Spec{ID: "never", Root: hostRoot(t)}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if o := run(t, s, "bash", "-c", "ps ax | grep -c '[s]leep'"); strings.TrimSpace(o.stdout) != "0" {
		t.Errorf("left: %q", o.stdout)
	}
	if ids, _ := r.List(); len(ids) != 1 {
		t.Error(ids)
	}
}

// A stream that was handed to another execution stays open there; the first one ends all the same.
func TestAStreamHeldByAnotherExecution(t *testing.T) {
	s := create(t, newRuntime(t))
	e := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "echo $$; read x; echo last"}, User: "user"})
	lines := bufio.NewReader(e.Stdout())
	pid, _ := lines.ReadString('\n')
	holder := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "exec 5>/proc/" + strings.TrimSpace(pid) + "/fd/1; echo held; sleep 1000"}, User: "user"})
	if got, _ := bufio.NewReader(holder.Stdout()).ReadString('\n'); got != "held\n" {
		t.Fatalf("%q", got)
	}
	_, _ = io.WriteString(e.Stdin(), "\n")
	rest, err := io.ReadAll(lines)
	if string(rest) != "last\n" || err != nil {
		t.Errorf("%q %v", rest, err)
	}
	<-e.Done()
	_ = holder.Kill()
	<-holder.Done()
}

// A program that closes its terminal before it ends must neither be hung up by that nor lose what it prints later.
func TestAProgramThatClosesItsTerminal(t *testing.T) {
	s := create(t, newRuntime(t))
	script := "echo before; exec <&- >&-; read -t 0.01 < <(read -t 0.01 </dev/tty); echo after > /dev/tty; exit 3"
	for range 20 {
		o := collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", script}, TTY: true}), "")
		if o.stdout != "before\r\nafter\r\n" || o.ExitCode != 3 {
			t.Fatalf("%+v", o)
		}
	}
}
