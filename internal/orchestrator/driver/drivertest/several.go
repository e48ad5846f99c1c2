package drivertest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"

	"rockpool/internal/orchestrator/driver"
)

// signals sends those that end a program which does not care for them.
func (s Subject) signals(t *testing.T) {
	task := s.running(t)
	for _, n := range []int{1, 2, 9, 10, 14, 15} { // HUP, INT, KILL, USR1, ALRM, TERM
		e := exec(t, task, driver.ExecSpec{Argv: s.Sleep})
		if err := e.Signal(n); err != nil {
			t.Fatal(err)
		}
		if o := finish(t, e); o.fate != nil || o.res.Signal != n || o.res.ExitCode != 128+n {
			t.Errorf("signal %d: %+v", n, o)
		}
		if err := e.Signal(n); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("signal %d after the end: %v", n, err)
		}
	}
}

// several runs executions side by side in one task. Each has its own streams and outcome, and killing one leaves the others alone.
func (s Subject) several(t *testing.T) {
	task := s.running(t)
	killed := exec(t, task, driver.ExecSpec{Argv: s.Sleep})
	const n = 4
	var running [n]driver.Execution
	for i := range running {
		running[i] = exec(t, task, driver.ExecSpec{Argv: s.Cat})
	}
	if err := killed.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of the killed execution", killed.Done())
	var wg sync.WaitGroup
	for i, e := range running {
		wg.Go(func() {
			if _, err := fmt.Fprintf(e.Stdin(), "execution %d", i); err != nil {
				t.Errorf("execution %d: %v", i, err)
			}
			_ = e.Stdin().Close()
			if r := e.Stderr(); r != nil {
				wg.Go(func() { _, _ = io.Copy(io.Discard, r) })
			}
			got, err := io.ReadAll(e.Stdout())
			if want := fmt.Sprintf("execution %d", i); err != nil || string(got) != want {
				t.Errorf("read %q, %v, want %q", got, err, want)
			}
		})
	}
	wg.Wait()
	for i, e := range running {
		await(t, "the end of an execution", e.Done())
		if r, err := e.Result(); err != nil || r.ExitCode != 0 {
			t.Errorf("execution %d: %+v, %v", i, r, err)
		}
	}
}
