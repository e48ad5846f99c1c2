package consensus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	raftwal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
)

func entries(from, to uint64) (out []*raft.Log) {
	for i := from; i <= to; i++ {
		out = append(out, &raft.Log{Index: i, Term: 1, Data: fmt.Appendf(make([]byte, 100), "entry %d", i)})
	}
	return out
}

// openLog opens a log, mended or as the library does it. The function returned closes it.
func openLog(t *testing.T, dir string, mended bool) (*raftwal.WAL, func()) {
	t.Helper()
	meta := &metadb.BoltMetaDB{}
	if mended {
		if err := mend(dir, meta); err != nil {
			t.Fatal(err)
		}
	}
	w, err := raftwal.Open(dir, raftwal.WithSegmentSize(8<<10), raftwal.WithMetaStore(meta), raftwal.WithSegmentFiler(segment.NewFiler(dir, newLogFiles())))
	if err != nil {
		t.Fatal(err)
	}
	return w, func() {
		if err := errors.Join(w.Close(), meta.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// holds checks that a log has the entries and takes more.
func holds(t *testing.T, w *raftwal.WAL, first, last uint64) error {
	t.Helper()
	for i := first; i <= last; i++ {
		var l raft.Log
		if err := w.GetLog(i, &l); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		if want := fmt.Sprintf("entry %d", i); l.Index != i || string(l.Data[100:]) != want {
			t.Errorf("entry %d is %d, %q", i, l.Index, l.Data[100:])
		}
	}
	if got, err := w.LastIndex(); err != nil || got != last {
		t.Errorf("the log ends at %d, not %d, %v", got, last, err)
	}
	return w.StoreLogs(entries(last+1, last+200)) // several files more
}

// A leader's entries that take the place of others may come while the next file is begun.
func TestALogIsShortenedRightAfterAFileWasFilled(t *testing.T) {
	for kept := range uint64(40) {
		dir := t.TempDir()
		w, end := openLog(t, dir, true)
		log := &failstop{WAL: w, tell: func(err error) { t.Error(err) }}
		if err := log.StoreLogs(entries(1, 80)); err != nil { // more than a file
			t.Fatal(err)
		}
		if err := log.DeleteRange(kept+1, 80); err != nil {
			t.Fatal(err)
		}
		if err := log.StoreLogs(entries(kept+1, kept+1)); err != nil {
			t.Fatalf("after %d of 80 were kept: %v", kept, err)
		}
		end()
		w, end = openLog(t, dir, true)
		if err := holds(t, w, 1, kept+1); err != nil {
			t.Fatal(err)
		}
		end()
	}
}

func TestALogThatWasShortenedOpensAgain(t *testing.T) {
	for _, c := range []struct{ stored, front, kept uint64 }{{20, 0, 10}, {20, 5, 19}, {500, 0, 499}, {500, 100, 130}, {500, 0, 1}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			dir := t.TempDir()
			w, end := openLog(t, dir, false)
			if err := w.StoreLogs(entries(1, 1)); err != nil {
				t.Fatal(err)
			}
			for i := uint64(2); i <= c.stored; i++ {
				if err := w.StoreLogs(entries(i, i)); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.DeleteRange(c.kept+1, c.stored); err != nil {
				t.Fatal(err)
			}
			if c.front > 0 {
				if err := w.DeleteRange(1, c.front); err != nil {
					t.Fatal(err)
				}
			}
			end()
			for range 2 { // also what was mended before
				w, end = openLog(t, dir, true)
				last, _ := w.LastIndex()
				if err := holds(t, w, c.front+1, last); err != nil {
					t.Error(err)
				}
				if last < c.kept {
					t.Errorf("the log ends at %d, before %d", last, c.kept)
				}
				end()
			}
		})
	}
}

// TestALogWhoseLastFileIsFullTakesMore crashes at every place around the end of a file.
func TestALogWhoseLastFileIsFullTakesMore(t *testing.T) {
	for stored := uint64(40); stored < 70; stored++ {
		dir := t.TempDir()
		w, end := openLog(t, dir, false)
		for i := uint64(1); i <= stored; i++ {
			if err := w.StoreLogs(entries(i, i)); err != nil {
				t.Fatal(err)
			}
		}
		end() // which may come before the note that a file is full
		w, end = openLog(t, dir, true)
		if err := holds(t, w, 1, stored); err != nil {
			t.Errorf("after %d entries: %v", stored, err)
		}
		end()
	}
}

// TestALogWhoseLastWriteIsTornOpens cuts the last write of a log off at every place, as a crash or a full disk may.
func TestALogWhoseLastWriteIsTornOpens(t *testing.T) {
	const stored = 56 // the last of them fills the first file; see the test above
	for cut := int64(1); cut < 500; cut += 19 {
		dir := t.TempDir()
		w, end := openLog(t, dir, false)
		for i := uint64(1); i < stored; i++ {
			if err := w.StoreLogs(entries(i, i)); err != nil {
				t.Fatal(err)
			}
		}
		end()
		file := filepath.Join(dir, fmt.Sprintf("%020d-%016x.wal", 1, 0))
		before, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		meta, err := os.ReadFile(filepath.Join(dir, "wal-meta.db"))
		if err != nil {
			t.Fatal(err)
		}
		w, end = openLog(t, dir, false)
		if err := w.StoreLogs(entries(stored, stored)); err != nil {
			t.Fatal(err)
		}
		end()
		after, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		first := int64(0) // byte that the last write has changed
		for first < int64(len(before)) && before[first] == after[first] {
			first++
		}
		copy(after[min(first+cut, int64(len(after))):], make([]byte, len(after)))
		if err := errors.Join(os.WriteFile(file, after, 0o600), os.WriteFile(filepath.Join(dir, "wal-meta.db"), meta, 0o600)); err != nil {
			t.Fatal(err)
		}
		w, end = openLog(t, dir, true)
		last, _ := w.LastIndex()
		if last != stored && last != stored-1 {
			t.Errorf("cut off after %d bytes the log ends at %d", cut, last)
		}
		if err := holds(t, w, 1, last); err != nil {
			t.Errorf("cut off after %d bytes: %v", cut, err)
		}
		end()
	}
}
