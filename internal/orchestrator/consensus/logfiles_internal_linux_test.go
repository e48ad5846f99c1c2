package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// writtenAhead skips where zeros are not written ahead.
func writtenAhead(t *testing.T, dir string) {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if !inPlace(d.Fd()) {
		t.Skipf("%s is on a file system on which nothing is written ahead", dir)
	}
}

func create(t *testing.T, dir, name string, size uint64) types.WritableFile {
	t.Helper()
	f, err := newLogFiles().Create(dir, name, size)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func seek(t *testing.T, path string, from int64, whence int) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at, err := unix.Seek(int(f.Fd()), from, whence)
	if errors.Is(err, unix.ENXIO) {
		return -1
	}
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// Entries are in the file as they are in raft-wal's own, whatever is written and torn off, and behind them, where a later start looks for more, there is nothing.
func TestWritingAheadChangesNothingOfEntries(t *testing.T) {
	top := t.TempDir()
	writtenAhead(t, top)
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		dir := filepath.Join(top, fmt.Sprint(n))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		size := rapid.SampledFrom([]uint64{0, 4096, 100_000, fillAhead, 3*fillAhead + 17}).Draw(t, "size")
		files := newLogFiles()
		f, err := files.Create(dir, "log", size)
		if err != nil {
			t.Fatal(err)
		}
		var want []byte
		torn := false // there may be the rest of a batch behind, if nothing was written ahead of the last one
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			if rapid.IntRange(0, 5).Draw(t, "what") == 0 { // a start after a crash, which has left some of the last batches
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
				want = want[:rapid.IntRange(0, len(want)).Draw(t, "kept")]
				if f, err = files.OpenWriter(dir, "log"); err != nil {
					t.Fatal(err)
				}
				torn = true
				continue
			}
			length := rapid.SampledFrom([]int{1, 300, 4096, largeBatch - 1, largeBatch, fillAhead + 1}).Draw(t, "length")
			if left := f.(*logFile).filled - int64(len(want)); left > 0 && rapid.Bool().Draw(t, "up to what is filled") {
				length = int(max(1, left-rapid.SampledFrom([]int64{0, 1, nextFrame, 50}).Draw(t, "less")))
			}
			batch := bytes.Repeat([]byte{byte(rapid.IntRange(1, 255).Draw(t, "byte"))}, length)
			if _, err := f.WriteAt(batch, int64(len(want))); err != nil {
				t.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			want = append(want, batch...)
			got, err := os.ReadFile(filepath.Join(dir, "log"))
			if err != nil || !bytes.HasPrefix(got, want) {
				t.Fatalf("the entries are not there whole, %v", err)
			}
			if length >= largeBatch && torn {
				continue
			}
			if behind := got[len(want):min(len(got), len(want)+nextFrame)]; bytes.Count(behind, []byte{0}) != len(behind) && uint64(len(want)) < size {
				t.Fatalf("behind the entries there is %x", behind)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(filepath.Join(dir, "log")); err != nil || info.Size() > int64(max(size, uint64(len(want)))) && !torn {
			t.Fatalf("the file is %v, %v: it became longer", info, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	})
}

// Blocks that entries come to were written before, also after a restart, but for the first of each quarter of a megabyte and the first one then.
func TestEntriesAreWrittenToBlocksThatAreThere(t *testing.T) {
	dir := t.TempDir()
	writtenAhead(t, dir)
	const size = 1 << 20
	path := filepath.Join(dir, "log")
	f := create(t, dir, "log", size)
	entry := bytes.Repeat([]byte{1}, 1000)
	moved := 0
	for at := int64(0); at+int64(len(entry)) <= size; at += int64(len(entry)) {
		if at == 300_000 { // in the middle of what was filled
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			var err error
			if f, err = newLogFiles().OpenWriter(dir, "log"); err != nil {
				t.Fatal(err)
			}
		}
		before := seek(t, path, 0, unix.SEEK_HOLE)
		if _, err := f.WriteAt(entry, at); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if seek(t, path, 0, unix.SEEK_HOLE) != before {
			moved++
		}
	}
	if most := size/fillAhead + 2; moved == 0 || moved > most {
		t.Errorf("blocks were written for the first time %d times, at most %d should", moved, most)
	}
	if got := seek(t, path, 0, unix.SEEK_HOLE); got != size {
		t.Errorf("the file is filled up to %d of %d", got, size)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != size {
		t.Errorf("the file is %v, %v: filling made it longer", info, err)
	}
}

// What a crash has left behind the entries is not taken for more of them, also where these end just before it.
func TestWhatACrashLeftDoesNotFollowEntries(t *testing.T) {
	dir := t.TempDir()
	writtenAhead(t, dir)
	f := create(t, dir, "log", 1<<20)
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := newLogFiles().OpenWriter(dir, "log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := int64(100) // what recovery kept
	for _, less := range []int64{1000, 0, nextFrame - 1, nextFrame, 0} {
		batch := []byte{1}
		if left := f.(*logFile).filled - at - less; left > 0 {
			batch = bytes.Repeat(batch, int(left))
		}
		if _, err := f.WriteAt(batch, at); err != nil {
			t.Fatal(err)
		}
		at += int64(len(batch))
		behind := make([]byte, nextFrame)
		if _, err := f.ReadAt(behind, at); err != nil || !bytes.Equal(behind, zeros[:nextFrame]) {
			t.Errorf("behind %d bytes there is %x, %v", at, behind, err)
		}
	}
}

// Where nothing can be written ahead entries are, and where they cannot be either that is told.
func TestADiskThatTakesNothingAheadTakesEntries(t *testing.T) {
	for _, all := range []bool{false, true} {
		f := &logFile{osFile: &refusing{osFile: create(t, t.TempDir(), "log", 1<<20).(*logFile).osFile, all: all}, end: 1 << 20}
		for i := range int64(3) {
			n, err := f.WriteAt([]byte("entries"), 7*i)
			if (err != nil) != all || !all && n != 7 {
				t.Errorf("all is refused %t: %d bytes, %v", all, n, err)
			}
		}
		if asked := f.osFile.(*refusing).zeros; asked == 0 {
			t.Error("nothing was written ahead")
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// refusing is a disk that takes no zeros, or nothing.
type refusing struct {
	osFile
	all   bool
	zeros int
}

func (r *refusing) WriteAt(b []byte, at int64) (int, error) {
	ahead := len(b) > 0 && b[0] == 0
	if ahead {
		r.zeros++
	}
	if ahead || r.all {
		return 0, unix.ENOSPC
	}
	return r.osFile.WriteAt(b, at)
}

// A sync that did not happen is told, the first one and others.
func TestASyncThatFailsIsTold(t *testing.T) {
	dir := t.TempDir()
	for _, synced := range []bool{false, true} {
		f := create(t, dir, fmt.Sprint(synced), 4096)
		if synced {
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err == nil {
			t.Errorf("synced before %t: a closed file was synced", synced)
		}
	}
}

// BenchmarkLogWrite is a batch of entries until it is on the disk, one right after the other: as it is, and as raft-wal does it alone.
func BenchmarkLogWrite(b *testing.B) {
	for name, v := range map[string]types.VFS{"ours": newLogFiles(), "plain": walfs.New()} {
		b.Run(name, func(b *testing.B) {
			f, err := v.Create(b.TempDir(), "log", 64<<20)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			batch, at := bytes.Repeat([]byte{1}, 6000), int64(0)
			for b.Loop() {
				if _, err := f.WriteAt(batch, at%(60<<20)); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
				at += int64(len(batch))
			}
		})
	}
}
