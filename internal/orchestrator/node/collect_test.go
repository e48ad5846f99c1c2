package node_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"rockpool/internal/orchestrator/model"
)

// kept are the allocations of which the node keeps files.
func (m *machine) kept() (ids []string) {
	m.t.Helper()
	entries, err := os.ReadDir(filepath.Join(m.dir, "allocs"))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids
}

func TestLogsOfAllocationsThatHaveEndedAreKeptByCountAndAge(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		m.keepEnded, m.keepEndedFor = 2, time.Hour
		m.start()
		m.server.place(alloc("runs", config{"stdout_string": "x"}))
		for _, id := range []string{"one", "two", "three"} {
			m.server.place(alloc(id, config{"stdout_string": "x", "run_for": "1s"}))
			after(2 * time.Second)
			m.expect(id, model.ClientComplete)
		}
		if got := m.kept(); !slices.Equal(got, []string{"one", "runs", "three", "two"}) {
			t.Errorf("at first %v", got)
		}
		after(2 * time.Minute)
		if got := m.kept(); !slices.Equal(got, []string{"runs", "three", "two"}) {
			t.Errorf("beyond the number: %v", got)
		}
		if s := m.server.status("one"); s != model.ClientComplete {
			t.Errorf("the first is reported as %q", s)
		}
		after(2 * time.Hour)
		if got := m.kept(); !slices.Equal(got, []string{"runs"}) {
			t.Errorf("beyond the age: %v", got)
		}
		m.restart() // their records are there still
		m.expect("runs", model.ClientRunning)
		if s := m.driver.Started(); len(s) != 4 {
			t.Errorf("started %v", s)
		}
	})
}
