package audit

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/logging"
)

func read(t *testing.T, path string) (lines []line) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var l line
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			t.Fatalf("%s: %v", s.Text(), err)
		}
		lines = append(lines, l)
	}
	return lines
}

// run writes what was noted.
func run(l *Log) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.Run(ctx) })
	cancel()
	wg.Wait()
}

func TestWhatWasAskedIsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := New(path, logging.Discard())
	l.Note(endpoint.Observation{Route: "job.get", Method: "GET", Path: "/v1/job/x", Status: 403, Caller: auth.Identity{Accessor: "a", Name: "n"}, Remote: "1.2.3.4:5"})
	run(l)
	got := read(t, path)
	if len(got) != 1 || got[0].Route != "job.get" || got[0].Status != 403 || got[0].Accessor != "a" || got[0].Remote != "1.2.3.4:5" || got[0].Time == "" {
		t.Errorf("%+v", got)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestAGapIsALine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := New(path, logging.Discard())
	for range queued + 7 {
		l.Note(endpoint.Observation{Route: "x"})
	}
	run(l)
	if got := read(t, path); len(got) != queued+1 || got[0].Lost != 7 {
		t.Errorf("%d lines, the first is %+v", len(got), got[0])
	}
}

func TestFilesAreRotated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := New(path, logging.Discard())
	l.limit = 10
	for range kept + 3 {
		l.Note(endpoint.Observation{Route: "x"})
		run(l)
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != kept+1 {
		t.Errorf("%v, %v", files, err)
	}
}

// A disk that cannot be written costs lines, which are counted, and nothing else.
func TestADirectoryThatIsMissing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	l := New(filepath.Join(dir, "audit.log"), logging.Discard())
	l.Note(endpoint.Observation{Route: "x"})
	run(l)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l.Note(endpoint.Observation{Route: "y"})
	run(l)
	if got := read(t, filepath.Join(dir, "audit.log")); len(got) != 2 || got[0].Lost != 1 || got[1].Route != "y" {
		t.Errorf("%+v", got)
	}
}
