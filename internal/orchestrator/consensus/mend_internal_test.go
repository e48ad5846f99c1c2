package consensus

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

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

// A crash leaves any of the sectors of a write that nobody was told of. What was acknowledged is there afterwards, also after several in a row.
func TestACrashInAWriteLosesNothingThatWasAcknowledged(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	const sector = 512
	for range 60 {
		dir := t.TempDir()
		stored := uint64(0)
		for crash := range 4 {
			w, end := openLog(t, dir, true)
			if crash > 0 {
				last, err := w.LastIndex()
				if err != nil || last < stored {
					t.Fatalf("the log ends at %d, %d were acknowledged, %v", last, stored, err)
				}
				for i := uint64(1); i <= last; i++ {
					var l raft.Log
					if err := w.GetLog(i, &l); err != nil || string(l.Data[100:]) != fmt.Sprintf("entry %d", i) {
						t.Fatalf("entry %d of %d, %d acknowledged: %q, %v", i, last, stored, l.Data, err)
					}
				}
				stored = last
			}
			for range rnd.IntN(4) + 1 {
				n := uint64(rnd.IntN(30) + 1)
				if err := w.StoreLogs(entries(stored+1, stored+n)); err != nil {
					t.Fatal(err)
				}
				stored += n
			}
			path := filepath.Join(dir, lastFile(t, dir))
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.StoreLogs(entries(stored+1, stored+uint64(rnd.IntN(60)+1))); err != nil {
				t.Fatal(err)
			}
			end()
			if filepath.Join(dir, lastFile(t, dir)) != path {
				break // the write has filled a file, and the next one was begun
			}
			after, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for at := 0; at+sector <= min(len(before), len(after)); at += sector {
				if rnd.IntN(2) == 0 {
					copy(after[at:at+sector], before[at:])
				}
			}
			if err := os.WriteFile(path, after, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// lastFile is the file of the log that is written to.
func lastFile(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	return filepath.Base(slices.Max(files))
}
