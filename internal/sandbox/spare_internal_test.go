//go:build linux && cgo

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// filesOf stands for a group of v1 with plain files.
func filesOf(t *testing.T, rel string, files map[string]string) group {
	t.Helper()
	base := t.TempDir()
	if err := os.Mkdir(filepath.Join(base, rel), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(base, rel, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return group{hierarchies: []hierarchy{{controllers: []string{"memory", "cpuacct", "pids"}, base: base}}, rel: rel, leaf: true}
}

func whole() map[string]string {
	return map[string]string{
		"memory.oom_control": "oom_kill 0\n", "memory.max_usage_in_bytes": "4096\n", "memory.usage_in_bytes": "4096\n", "cpuacct.usage": "7000000000\n", "pids.current": "0\n",
	}
}

// A figure that could not be read, as when the node has no descriptor left, is not nought: the next execution would be billed for what this one has used, or held to it.
func TestAGroupOfUnknownFiguresIsNotHandedOn(t *testing.T) {
	for without, handed := range map[string]bool{"": true, "memory.oom_control": false, "cpuacct.usage": false, "memory.usage_in_bytes": false, "memory.max_usage_in_bytes": true, "pids.current": false} {
		files := whole()
		delete(files, without)
		g := filesOf(t, "x-1", files)
		if got := new(Sandbox).putSpare(g, g.spent()); got != handed {
			t.Errorf("without %q: %v", without, got)
		}
	}
	for name, text := range map[string]string{"memory.oom_control": "oom_kill 1\n", "pids.current": "1\n", "memory.usage_in_bytes": fmt.Sprint(spareMost + 1)} {
		files := whole()
		files[name] = text
		g := filesOf(t, "x-1", files)
		if new(Sandbox).putSpare(g, g.spent()) {
			t.Errorf("%s is %q", name, text)
		}
	}
	if used := (counters{}).since(counters{cpu: time.Second}); used.cpu != 0 {
		t.Errorf("%+v", used)
	}
}

// A group that cannot be begun anew is neither handed out nor lost: no interpreter would wait in a sandbox that has groups of unknown use.
func TestASpareGroupIsNotLost(t *testing.T) {
	files := whole()
	s := &Sandbox{group: filesOf(t, "s", nil)}
	base := s.group.path(s.group.hierarchies[0])
	first := s.nextGroup()
	if err := first.make(); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(base, "x-1", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if !s.putSpare(first, first.spent()) || s.crowded() {
		t.Fatal("it is not kept")
	}
	peak := filepath.Join(base, "x-1", fileOfPeak)
	if err := os.Rename(peak, peak+".away"); err != nil {
		t.Fatal(err)
	}
	if next, isMade := s.groupForNext(); isMade || next.group.rel == first.rel || s.crowded() {
		t.Errorf("%+v %v, crowded %v", next, isMade, s.crowded())
	}
	if err := os.Rename(peak+".away", peak); err != nil {
		t.Fatal(err)
	}
	if next, isMade := s.groupForNext(); !isMade || next.group.rel != first.rel || next.before.cpu != 7*time.Second {
		t.Errorf("%+v %v", next, isMade)
	}
	if next, isMade := s.groupForNext(); isMade || next.before != (counters{}) {
		t.Errorf("it is handed out twice: %+v", next)
	}
}

// Many executions at a time, of which some are killed when they end anyway: no group has two of them, and what is handed on is empty and as free as a new one.
func TestAGroupHasOneExecution(t *testing.T) {
	s := withPrograms(t, testRuntime(t))
	const each = 40
	var mu sync.Mutex
	running := map[*Execution]bool{}
	one := func(id string, n int) error {
		e, err := s.Exec(t.Context(), ExecSpec{ID: id, Argv: []string{"cat"}, MergeStderr: true, TimeLimit: time.Minute})
		if err != nil {
			return err
		}
		mu.Lock()
		for other := range running {
			if other.group.rel == e.group.rel && other.cause.Load() != &settled {
				err = fmt.Errorf("%s and %s have the group %s", id, other.id, e.group.rel)
			}
		}
		running[e] = true
		mu.Unlock()
		if path, ok := e.group.file("pids", "pids.max", "pids.max"); ok {
			if most, readErr := readControl(path); readErr != nil || most != "max\n" {
				err = errors.Join(err, readErr, fmt.Errorf("%s may have %q processes", id, most))
			}
		}
		err = errors.Join(err, e.Stdin().Close())
		killed := n%4 == 3
		if killed {
			err = errors.Join(err, e.Kill())
		}
		_, _ = io.Copy(io.Discard, e.Stdout())
		if n%4 == 1 {
			err = errors.Join(err, e.Kill()) // more or less when it ends
		}
		<-e.Done()
		mu.Lock()
		delete(running, e)
		mu.Unlock()
		result, lost := e.Result()
		if n%2 == 0 && result.Verdict != VerdictExit {
			err = errors.Join(err, fmt.Errorf("%s: %+v", id, result))
		}
		return errors.Join(err, lost)
	}
	for _, together := range []int{1, 4} {
		before := s.grouped
		var wg sync.WaitGroup
		for w := range together {
			wg.Go(func() {
				for n := range each {
					if err := one(fmt.Sprintf("e-%d-%d-%d", together, w, n), n); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		made := s.grouped - before
		if _, resets := s.group.file("memory", fileOfPeak, ""); resets && made == together*each {
			t.Errorf("%d at a time: no group was handed on", together)
		}
		if s.crowded() {
			t.Errorf("left are %v", s.group.children())
		}
	}
}

// withPrograms is a sandbox that has the machine's own programs.
func withPrograms(t *testing.T, r *Runtime) *Sandbox {
	t.Helper()
	root := Root{Lower: []string{t.TempDir()}, Env: []string{"PATH=/usr/bin"}}
	for _, name := range []string{"bin", "lib", "lib64", "usr", "etc", "sbin"} {
		root.Binds = append(root.Binds, Bind{Source: "/" + name, Target: "/" + name})
	}
	s, err := r.Create(t.Context(), Spec{ID: "shared", Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// A service that its execution has left behind is not killed by who still means the execution.
func TestALateKillLeavesTheServiceAlone(t *testing.T) {
	s := withPrograms(t, testRuntime(t))
	lived := 0
	for i := range 60 {
		e, err := s.Exec(t.Context(), ExecSpec{ID: fmt.Sprint("s", i), Argv: []string{"sh", "-c", "sleep 1000 >/dev/null 2>&1 &"}, MergeStderr: true, Background: true})
		if err != nil {
			t.Fatal(err)
		}
		<-e.over
		for range i % 3 { // before, while and after its end is settled
			time.Sleep(20 * time.Microsecond)
		}
		if err := e.Kill(); err != nil {
			t.Error(err)
		}
		<-e.Done()
		alive, err := e.group.populated()
		if settled := e.cause.Load() == &settled; alive != settled || err != nil {
			t.Fatalf("the end is settled: %v, and the service is alive: %v, %v", settled, alive, err)
		}
		if alive {
			lived++
			if err := e.group.clear(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
	if lived == 0 {
		t.Error("none was killed too late")
	}
}
