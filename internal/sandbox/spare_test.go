//go:build linux && cgo

package sandbox_test

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"rockpool/internal/sandbox"
)

// Executions that follow one another may have one control group. Each has figures of its own all the same, whatever the one before it has done.
func TestFiguresAreAnExecutionsOwn(t *testing.T) {
	s := create(t, newRuntime(t), func(spec *sandbox.Spec) { spec.Limits.MemoryBytes = 256 << 20 })
	quiet := []string{"/bin/true"}
	if alone := run(t, s, quiet...); alone.PeakMemory <= 0 || alone.PeakMemory > 4<<20 {
		t.Fatalf("%+v", alone)
	}
	for name, before := range map[string]string{
		"CPU time":             "for ((i = 0; i < 300000; i++)); do :; done",
		"memory that was used": "x=$(head -c 30000000 /dev/zero | tr '\\0' x)",
		"files that stay":      "head -c 20000000 /dev/zero > /tmp/file",
		"out of memory":        "x=$(head -c 500000000 /dev/zero | tr '\\0' x)",
		"left to run":          "(setsid sleep 1000 &); exit 3",
		"killed by itself":     "kill -9 $$",
	} {
		t.Run(name, func(t *testing.T) {
			first := shell(t, s, "", before)
			for range 2 {
				o := run(t, s, quiet...)
				if o.ExitCode != 0 || o.OOMKilled || o.Verdict != sandbox.VerdictExit || o.PeakMemory <= 0 || o.PeakMemory > 4<<20 || o.CPUTime <= 0 || o.CPUTime > 100e6 {
					t.Errorf("after %+v: %+v", first, o)
				}
			}
		})
	}
	// A limit counts from the beginning of the execution, too.
	for range 3 {
		o := collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "for ((i = 0; i < 60000; i++)); do :; done"}, CPULimit: 5e9}), "")
		if o.Verdict != sandbox.VerdictExit || o.ExitCode != 0 {
			t.Errorf("%+v", o)
		}
	}
	if o := collect(t, begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "while :; do :; done"}, CPULimit: 200e6}), ""); o.Verdict != sandbox.VerdictCPU || o.CPUTime < 200e6 {
		t.Errorf("%+v", o)
	}
}

// However many there were, a sandbox in which nothing runs has a group for process 1 and one for the next execution, at most.
func TestGroupsDoNotGrowInNumber(t *testing.T) {
	parent := fmt.Sprintf("rockpool-test-%d-%d", os.Getpid(), serial.Add(1))
	s := create(t, openRuntime(t, t.TempDir(), parent))
	for range 3 {
		var all []*sandbox.Execution
		for range 4 {
			all = append(all, begin(t, s, sandbox.ExecSpec{Argv: []string{"cat"}}))
		}
		for _, e := range all {
			collect(t, e, "")
		}
	}
	perHierarchy := map[string]int{}
	for _, g := range controlGroups(parent + "/s-*/*") {
		if strings.HasSuffix(g, "/init") {
			continue
		}
		if perHierarchy[g[:strings.Index(g, parent)]]++; perHierarchy[g[:strings.Index(g, parent)]] > 1 {
			t.Error(g)
		}
	}
}

// A kill is for the execution it was meant for: one that comes when that has ended does nothing to the next, which may have its group.
func TestALateKillMeetsNobody(t *testing.T) {
	s := create(t, newRuntime(t))
	for start, i := time.Now(), 0; i < 150 && (i < 30 || time.Since(start) < 5*time.Second); i++ {
		e := begin(t, s, sandbox.ExecSpec{Argv: []string{"/bin/true"}, MergeStderr: true})
		_ = e.Stdin().Close()
		_, _ = io.Copy(io.Discard, e.Stdout())
		late := make(chan error)
		go func() { late <- e.Kill() }()
		<-e.Done()
		next := begin(t, s, sandbox.ExecSpec{Argv: []string{"bash", "-c", "read x; echo $x"}, MergeStderr: true})
		if err := <-late; err != nil {
			t.Fatal(err)
		}
		if o := collect(t, next, "lives\n"); o.stdout != "lives\n" || o.Verdict != sandbox.VerdictExit {
			t.Fatalf("%+v", o)
		}
	}
}
