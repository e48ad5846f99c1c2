package consensus

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// letters is a machine whose state is text.
type letters struct{ state string }

func (l *letters) Apply(_ uint64, b []byte) (any, error) { l.state += string(b); return nil, nil }

func (l *letters) Snapshot() func(io.Writer) error {
	state := l.state
	return func(w io.Writer) error { _, err := io.WriteString(w, state); return err }
}

func (l *letters) Restore(r io.Reader) error {
	b, err := io.ReadAll(r)
	l.state = string(b)
	return err
}

type shelf struct{ bytes.Buffer }

func (*shelf) ID() string    { return "s" }
func (*shelf) Cancel() error { return nil }
func (*shelf) Close() error  { return nil }

// A snapshot is due when as many bytes were applied as are configured, or as the last one has, whatever is more: with a state of a million entries the next snapshot is not due after ten.
func TestSnapshotsAreAsFarApartAsTheyAreLarge(t *testing.T) {
	m := newMachine(Config{Machine: &letters{}, SnapshotBytes: 10}, nil, new(atomic.Int32), new(atomic.Int32))
	due := func(after int) {
		t.Helper()
		for i := range after {
			select {
			case <-m.full:
				t.Fatalf("due after %d of %d bytes", i, after)
			default:
			}
			m.apply(&raft.Log{Type: raft.LogCommand, Data: []byte("x")})
		}
		select {
		case <-m.full:
		default:
			t.Fatalf("not due after %d bytes", after)
		}
	}
	write := func() *shelf {
		t.Helper()
		s, err := m.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		to := &shelf{}
		if err := s.Persist(to); err != nil {
			t.Fatal(err)
		}
		return to
	}
	due(10)
	write() // of 10
	due(10)
	write() // of 20
	due(20)
	last := write() // of 40
	due(40)

	if err := m.Restore(io.NopCloser(&last.Buffer)); err != nil {
		t.Fatal(err)
	}
	write()
	due(40)
	if err := m.Restore(io.NopCloser(strings.NewReader("xyz"))); err != nil {
		t.Fatal(err)
	}
	write()
	due(10)
}

// What a snapshot that failed would have had is as old as it was, so that the next attempt does not wait for its age anew.
func TestAFailedSnapshotIsDueAgain(t *testing.T) {
	m := newMachine(Config{Machine: &letters{}, SnapshotBytes: 1 << 20}, nil, new(atomic.Int32), new(atomic.Int32))
	for _, sink := range []raft.SnapshotSink{&shelf{}, fullShelf{&shelf{}}} {
		before := time.Now()
		m.apply(&raft.Log{Type: raft.LogCommand, Data: []byte("x")})
		applied := time.Now()
		s, err := m.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if m.older(applied.Add(time.Hour), 0) {
			t.Error("what is being written counts as unwritten")
		}
		m.apply(&raft.Log{Type: raft.LogCommand, Data: []byte("y")})
		_, full := sink.(fullShelf)
		if err := s.Persist(sink); (err != nil) != full {
			t.Errorf("it was written: %v", err)
		}
		if first := time.Unix(0, m.since.Load()); full != (!first.Before(before) && !first.After(applied)) {
			t.Errorf("a failed one: %v, and the first entry that is not written is of %v, the first of all was between %v and %v", full, first, before, applied)
		}
		if _, err := m.Snapshot(); err != nil {
			t.Fatal(err)
		}
	}
}

type fullShelf struct{ *shelf }

func (fullShelf) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestASnapshotRestsWhileThereIsOtherWork(t *testing.T) {
	for _, c := range []struct {
		worked      time.Duration
		busy, hurry bool
		want        time.Duration
	}{
		{2 * time.Millisecond, true, false, 6 * time.Millisecond},
		{time.Second, true, false, longestRest}, // a sink that waits for a disk is no reason to wait longer
		{2 * time.Millisecond, false, false, 0},
		{2 * time.Millisecond, true, true, 0},
	} {
		if got := rest(c.worked, c.busy, c.hurry); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// Pauses come of entries only: what nobody disturbs is written without one.
func TestASnapshotOfAnIdleServerDoesNotRest(t *testing.T) {
	m := newMachine(Config{Machine: &letters{}, SnapshotBytes: 1 << 20}, nil, new(atomic.Int32), new(atomic.Int32))
	w := &background{Writer: io.Discard, machine: m}
	paused := func(entry bool) bool {
		w.begun = time.Now().Add(-time.Hour)
		if entry {
			m.apply(&raft.Log{Type: raft.LogCommand, Data: []byte("x")})
		}
		begun := time.Now()
		if _, err := w.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		return time.Since(begun) >= longestRest
	}
	if paused(false) || !paused(true) || paused(false) {
		t.Error("it does not rest after an entry, or it does without one")
	}
	m.awaited.Add(1)
	if paused(true) {
		t.Error("it rests while somebody waits for it")
	}
	m.end()
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("a server that ends goes on writing")
	}
}
