//go:build linux && cgo

package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"rockpool/internal/sandbox"
)

// nodes are processes of the node that come one after the other.
type nodes struct {
	dir, parent string
	now         *sandbox.Runtime
}

func newNodes(t *testing.T) *nodes {
	n := &nodes{dir: t.TempDir(), parent: fmt.Sprintf("rockpool-test-%d-%d", os.Getpid(), serial.Add(1))}
	openRuntime(t, n.dir, n.parent) // sweeps at the end
	n.next(t)
	t.Cleanup(func() {
		if err := errors.Join(n.now.Remove(context.Background(), "one"), n.now.Close()); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *nodes) next(t *testing.T) {
	t.Helper()
	if n.now != nil {
		if err := n.now.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r, err := sandbox.New(sandbox.Config{Dir: n.dir, CgroupParent: n.parent, IDBase: 0x30000000})
	if err != nil {
		t.Fatal(err)
	}
	n.now = r
}

func (n *nodes) create(t *testing.T, edit ...func(*sandbox.Spec)) *sandbox.Sandbox {
	t.Helper()
	spec := sandbox.Spec{ID: "one", Root: hostRoot(t)}
	for _, e := range edit {
		e(&spec)
	}
	s, err := n.now.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// resume is what the next process of the node does.
func (n *nodes) resume(t *testing.T) (*sandbox.Sandbox, *sandbox.Execution) {
	t.Helper()
	n.next(t)
	s, err := n.now.Attach(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	e, err := s.Resume(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s, e
}

func numbers(upTo int) string {
	var all strings.Builder
	for i := range upTo {
		fmt.Fprintln(&all, i+1)
	}
	return all.String()
}

func TestAKeptProgramGoesOnWithoutTheNode(t *testing.T) {
	n := newNodes(t)
	s := n.create(t)
	// 200,000 numbers are more than a pipe holds: it waits for the next reader.
	e := begin(t, s, sandbox.ExecSpec{ID: "main", Argv: []string{"bash", "-c", "seq 200000; seq 10 >&2; exit 7"}, User: "user", Keep: true})
	var got, errs strings.Builder
	part := make([]byte, 5000)
	if _, err := io.ReadFull(e.Stdout(), part); err != nil {
		t.Fatal(err)
	}
	got.Write(part)
	e.LetGo()
	var readers sync.WaitGroup
	both := func(e *sandbox.Execution) {
		readers.Go(func() { _, _ = io.Copy(&got, e.Stdout()) })
		readers.Go(func() { _, _ = io.Copy(&errs, e.Stderr()) })
	}
	both(e)
	<-e.Done()
	readers.Wait()
	if _, err := e.Result(); !errors.Is(err, sandbox.ErrLost) {
		t.Errorf("the outcome of what was let go: %v", err)
	}
	if _, err := s.Exec(t.Context(), sandbox.ExecSpec{ID: "second", Argv: []string{"true"}, Keep: true}); err == nil {
		t.Error("a sandbox keeps two programs")
	}
	_, e = n.resume(t)
	both(e)
	<-e.Done()
	readers.Wait()
	if r, err := e.Result(); err != nil || r.ExitCode != 7 || r.Verdict != sandbox.VerdictExit {
		t.Errorf("%+v, %v", r, err)
	}
	if got.String() != numbers(200000) || errs.String() != numbers(10) {
		t.Errorf("%d bytes of stdout, %d of stderr: something is lost or doubled", got.Len(), errs.Len())
	}
}

// How it ended is known for as long as the sandbox is there, and however often it is asked for.
func TestTheEndOfAKeptProgramIsKept(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		want   sandbox.Result
		out    string
	}{
		"exit code": {"sleep 0.1; echo last words; exit 3", sandbox.Result{Verdict: sandbox.VerdictExit, ExitCode: 3}, "last words\n"},
		"signal":    {"sleep 0.1; kill -TERM $$", sandbox.Result{Verdict: sandbox.VerdictSignal, ExitCode: 143, Signal: 15}, ""},
		"memory": {"sleep 0.1; exec python3 -c 'x = bytearray(300 << 20)'",
			sandbox.Result{Verdict: sandbox.VerdictMemory, ExitCode: 137, Signal: 9, OOMKilled: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNodes(t)
			s := n.create(t, func(s *sandbox.Spec) { s.Limits.MemoryBytes = 64 << 20 })
			begin(t, s, sandbox.ExecSpec{ID: "main", Argv: []string{"bash", "-c", c.script}, Keep: true})
			n.next(t)
			waitUntil(t, func() bool { return processes(t, n.parent+"/one/k-main") == "" })
			for range 2 {
				_, e := n.resume(t)
				out, err := io.ReadAll(e.Stdout())
				<-e.Done()
				r, resultErr := e.Result()
				got := sandbox.Result{Verdict: r.Verdict, ExitCode: r.ExitCode, Signal: r.Signal, OOMKilled: r.OOMKilled}
				if err != nil || resultErr != nil || got != c.want || string(out) != c.out {
					t.Errorf("%+v, %q, %v, %v", got, out, err, resultErr)
				}
				if err := e.Signal(15); !errors.Is(err, os.ErrProcessDone) {
					t.Errorf("a signal to what has ended: %v", err)
				}
				c.out = "" // it was read
			}
		})
	}
}

// processes lists those of a control group, in one hierarchy that has it.
func processes(t *testing.T, group string) string {
	t.Helper()
	found := controlGroups(group)
	if len(found) == 0 {
		t.Fatalf("there is no control group %s", group)
	}
	b, err := os.ReadFile(found[0] + "/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func waitUntil(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come")
		}
	}
}

func TestAResumedProgramIsSignalledAndKilled(t *testing.T) {
	n := newNodes(t)
	begin(t, n.create(t), sandbox.ExecSpec{ID: "main", Argv: []string{"bash", "-c", "trap 'echo got it' TERM; echo ready; while :; do sleep 0.05; done"}, Keep: true})
	s, e := n.resume(t)
	part := make([]byte, 6)
	if _, err := io.ReadFull(e.Stdout(), part); err != nil {
		t.Fatal(err)
	}
	if err := e.Signal(15); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 7)
	if _, err := io.ReadFull(e.Stdout(), answer); err != nil || string(answer) != "got it\n" {
		t.Errorf("%q, %v", answer, err)
	}
	if _, err := e.Stdin().Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("its input has ended: %v", err)
	}
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	<-e.Done()
	if r, err := e.Result(); err != nil || r.Verdict != sandbox.VerdictKilled {
		t.Errorf("%+v, %v", r, err)
	}
	if err := s.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := controlGroups(n.parent + "/one*"); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// What process 1 holds is out of reach inside: of the kept program, of its user, and of the sandbox's root.
func TestHeldStreamsAreOutOfReach(t *testing.T) {
	n := newNodes(t)
	s := n.create(t)
	e := begin(t, s, sandbox.ExecSpec{ID: "main", Argv: []string{"bash", "-c", "ls /proc/self/fd; echo done; sleep 1000"}, User: "user", Keep: true})
	var own strings.Builder
	for part := make([]byte, 1); !strings.HasSuffix(own.String(), "done\n"); {
		if _, err := e.Stdout().Read(part); err != nil {
			t.Fatal(err)
		}
		own.Write(part)
	}
	if own.String() != "0\n1\n2\n3\ndone\n" { // 3 is the listing itself
		t.Errorf("the kept program has %q", own.String())
	}
	for _, user := range []string{"user", "root"} {
		for _, attempt := range []string{
			"ls /proc/1/fd", "cat /proc/1/fd/*", "ls /proc/1/fdinfo", "readlink /proc/1/fd/6",
			// pidfd_open and pidfd_getfd, for every number that process 1 could have
			`python3 -c '
import ctypes, sys
c = ctypes.CDLL(None, use_errno=True)
p = c.syscall(434, 1, 0)
sys.exit(0 if p >= 0 and any(c.syscall(438, p, n, 0) >= 0 for n in range(64)) else 1)'`,
		} {
			if o := shell(t, s, user, attempt); o.ExitCode == 0 {
				t.Errorf("%s as %s: %+v", attempt, user, o)
			}
		}
		if o := shell(t, s, user, "ls /proc/self/fd"); o.stdout != "0\n1\n2\n3\n" {
			t.Errorf("another program of %s has %q", user, o.stdout)
		}
	}
}

func TestWhatCannotBeKeptIsRefused(t *testing.T) {
	s := create(t, newRuntime(t))
	for _, spec := range []sandbox.ExecSpec{{TTY: true}, {MergeStderr: true}, {Background: true}, {TimeLimit: time.Second}, {OutputLimit: 1}} {
		spec.ID, spec.Argv, spec.Keep = "main", []string{"true"}, true
		if _, err := s.Exec(t.Context(), spec); !errors.Is(err, sandbox.ErrInvalid) {
			t.Errorf("%+v: %v", spec, err)
		}
	}
	if _, err := s.Resume(t.Context()); !errors.Is(err, sandbox.ErrNotKept) {
		t.Errorf("resume of what never was: %v", err)
	}
}
