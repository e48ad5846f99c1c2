package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// inPlace skips where zeros are not written ahead, see hole.
func inPlace(t *testing.T, dir string) {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		t.Fatal(err)
	}
	if s.Type != unix.EXT4_SUPER_MAGIC && s.Type != unix.XFS_SUPER_MAGIC {
		t.Skipf("%s is on a file system of type %x, where nothing is written ahead", dir, s.Type)
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

// What is in a file is what raft-wal's own files have in them, whatever is written, torn off and opened again.
func TestWritingAheadChangesNothingThatIsRead(t *testing.T) {
	top := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		dir := filepath.Join(top, fmt.Sprint(n))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		size := rapid.SampledFrom([]uint64{0, 4096, 100_000, fillAhead, 3*fillAhead + 17}).Draw(t, "size")
		both := map[string]types.VFS{"ours": newLogFiles(), "plain": walfs.New()}
		files := map[string]types.WritableFile{}
		for name, v := range both {
			f, err := v.Create(dir, name, size)
			if err != nil {
				t.Fatal(err)
			}
			files[name] = f
		}
		each := func(do func(name string, f types.WritableFile) error) {
			for name, f := range files {
				if err := do(name, f); err != nil {
					t.Fatal(name, err)
				}
			}
		}
		at := int64(0)
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0: // as a start after a crash
				each(func(name string, f types.WritableFile) error {
					again, err := both[name].OpenWriter(dir, name)
					files[name] = again
					return errors.Join(err, f.Close())
				})
			case 1: // what was torn is written again
				at = rapid.Int64Range(0, at).Draw(t, "from")
			case 2: // an index behind everything, as mend writes it
				each(func(name string, _ types.WritableFile) error {
					f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_APPEND, 0)
					if err != nil {
						return err
					}
					_, err = f.Write([]byte("index"))
					return errors.Join(err, f.Close())
				})
			default:
				length := rapid.SampledFrom([]int{1, 300, 4096, 70_000, fillAhead + 1}).Draw(t, "length")
				if left := files["ours"].(*logFile).filled - at; left > 0 && rapid.Bool().Draw(t, "up to what is filled") {
					length = int(max(1, left-rapid.SampledFrom([]int64{0, 1, 50}).Draw(t, "less")))
				}
				piece := bytes.Repeat([]byte{byte(rapid.IntRange(1, 255).Draw(t, "byte"))}, length)
				each(func(_ string, f types.WritableFile) error {
					_, err := f.WriteAt(piece, at)
					return err
				})
				at += int64(len(piece))
			}
			each(func(_ string, f types.WritableFile) error { return f.Sync() })
		}
		each(func(_ string, f types.WritableFile) error { return f.Close() })
		ours, err := os.ReadFile(filepath.Join(dir, "ours"))
		plain, err2 := os.ReadFile(filepath.Join(dir, "plain"))
		if err != nil || err2 != nil || !bytes.Equal(ours, plain) {
			t.Fatalf("%d bytes and %d differ, %v, %v", len(ours), len(plain), err, err2)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	})
}

// Blocks that entries come to were written before, also after a restart, but for the first of each quarter of a megabyte.
func TestEntriesAreWrittenToBlocksThatAreThere(t *testing.T) {
	dir := t.TempDir()
	inPlace(t, dir)
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
	if most := size/fillAhead + 1; moved == 0 || moved > most {
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

// Where something stands behind a hole nothing is written ahead.
func TestNothingIsWrittenAheadOverWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	inPlace(t, dir)
	path := filepath.Join(dir, "log")
	f := create(t, dir, "log", 1<<20)
	if _, err := f.WriteAt([]byte("entries"), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := keep(path, []byte("an index"), 0); err != nil {
		t.Fatal(err)
	}
	f, err := newLogFiles().OpenWriter(dir, "log")
	if err != nil {
		t.Fatal(err)
	}
	first := seek(t, path, 0, unix.SEEK_HOLE)
	if first <= 0 || first >= 1<<20 {
		t.Fatalf("there is no hole before the index, the first one is at %d", first)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 2*fillAhead), 7); err != nil {
		t.Fatal(err)
	}
	index := make([]byte, 8)
	if _, err := f.ReadAt(index, 1<<20); err != nil && !errors.Is(err, io.EOF) || string(index) != "an index" {
		t.Errorf("the index is %q, %v", index, err)
	}
	if end := seek(t, path, 0, unix.SEEK_HOLE); end > 2*fillAhead+8192 {
		t.Errorf("the file is filled up to %d", end)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
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
