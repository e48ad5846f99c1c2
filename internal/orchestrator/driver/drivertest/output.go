package drivertest

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"

	"rockpool/internal/orchestrator/driver"
)

// recorder takes a stream.
type recorder struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// output holds the driver to keeping what the main process writes: all of it is there when the task is done, each stream apart.
func (s Subject) output(t *testing.T) {
	if s.Says == nil {
		t.Skip("its tasks write nothing")
	}
	d := s.open(t)
	long := strings.Repeat("0123456789abcdef", 1000)
	cfg := s.config(t, d, s.Says(long, "oops"))
	var out, errs recorder
	cfg.Stdout, cfg.Stderr = &out, &errs
	task, err := d.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.clean(t, d, cfg)
	select {
	case <-task.Done():
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	if out.String() != long || errs.String() != "oops" {
		t.Errorf("%d bytes on stdout, %q on stderr, of a task that ended with %+v", len(out.String()), errs.String(), task.Exit())
	}
}

// outputRecovered holds drivers whose tasks with a command outlive the agent to losing nothing of what they write meanwhile.
func (s Subject) outputRecovered(t *testing.T) {
	if s.SaysOn == nil {
		t.Skip("its tasks with a command end with the agent, or what they write meanwhile is lost")
	}
	first := s.New(t)
	cfg := s.config(t, first, s.SaysOn)
	var before, after recorder
	cfg.Stdout, cfg.Stderr = &before, &before
	if _, err := first.Start(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "its first words", func() bool { return before.String() != "" })
	detach(t, first)
	time.Sleep(50 * time.Millisecond) // it goes on writing; how much depends on the machine, that nothing is lost does not
	second := s.open(t)
	cfg.Stdout, cfg.Stderr = &after, &after
	task, err := second.Recover(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.clean(t, second, cfg)
	select {
	case <-task.Done():
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	var want strings.Builder
	for i := range 100 {
		want.WriteString(strings.Repeat("x", i) + "\n")
	}
	if got := before.String() + after.String(); got != want.String() {
		t.Errorf("%d bytes of %d came", len(got), want.Len())
	}
}

func (s Subject) clean(t *testing.T, d driver.Driver, cfg driver.TaskConfig) {
	if err := d.Cleanup(t.Context(), cfg.ID); err != nil {
		t.Errorf("clean up: %v", err)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: did not come", what)
		}
	}
}
