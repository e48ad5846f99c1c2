//go:build linux

package node_test

import (
	"context"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rockpool/internal/ident"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/mock"
	"rockpool/internal/orchestrator/driver/raw"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node"
)

// running starts an agent outside of a bubble and gives what stops it.
func running(t testing.TB, dir string, s *server, onStop node.OnStop, d driver.Driver) (a *node.Agent, stop func()) {
	t.Helper()
	a, err := node.New(node.Config{DataDir: dir, Drivers: []driver.Driver{d}, Servers: s, OnStop: onStop, Log: logging.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	return a, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		s.set(func() { s.streams = nil })
	}
}

// until waits for an allocation to be reported with a status.
func until(t testing.TB, s *server, id, status string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for s.status(id) != status {
		select {
		case <-s.reported:
		case <-deadline:
			t.Fatalf("allocation %s is %q, want %q", id, s.status(id), status)
		}
	}
}

func TestPlainProcessesSurviveTheAgent(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir, s := t.TempDir(), newServer()
	open := func() driver.Driver { return raw.New(raw.Config{Enabled: true, Dir: filepath.Join(dir, "raw")}) }
	one := alloc("one", config{"command": "sleep", "args": []any{"300"}})
	one.Job.TaskGroups[0].Tasks[0].Driver = raw.Name
	s.place(one)
	_, stop := running(t, dir, s, node.Keep, open())
	until(t, s, "one", model.ClientRunning)
	stop()

	s.set(func() { delete(s.latest, "one") })
	a, stop := running(t, dir, s, node.Remove, open())
	until(t, s, "one", model.ClientRunning)
	e, err := a.Exec(t.Context(), "one", "a", driver.ExecSpec{Argv: []string{"sh", "-c", `echo "$NOMAD_ALLOC_ID $NOMAD_TASK_NAME"`}})
	if err != nil {
		t.Fatal(err)
	}
	_ = e.Stdin().Close()
	out, err := io.ReadAll(e.Stdout())
	if err != nil || strings.TrimSpace(string(out)) != "one a" {
		t.Errorf("exec in a recovered task: %q, %v", out, err)
	}
	_, _ = io.ReadAll(e.Stderr())
	<-e.Done()
	stop()
	if s.status("one") != model.ClientFailed {
		t.Errorf("after removal it is %q", s.status("one"))
	}
}

// BenchmarkPlaceToRunning measures what the agent itself adds, from a push to the report of a running task.
func BenchmarkPlaceToRunning(b *testing.B) {
	s := newServer()
	_, stop := running(b, b.TempDir(), s, node.Remove, mock.New())
	defer stop()
	s.place(alloc("first", config{}))
	until(b, s, "first", model.ClientRunning)
	for b.Loop() {
		id := ident.New()
		s.place(alloc(id, config{}))
		until(b, s, id, model.ClientRunning)
		s.purge(id)
	}
}
