package tasklog_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/node/tasklog"
)

// read joins the files of a log, oldest first, and tells how many there are.
func read(t interface{ Fatal(...any) }, dir string) (all []byte, files int, largest int) {
	for i := 0; i < 1000; i++ {
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("t.stdout.%d", i)))
		if err != nil {
			continue
		}
		all, files, largest = append(all, b...), files+1, max(largest, len(b))
	}
	return all, files, largest
}

func TestALogKeepsItsEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "log")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		limits := tasklog.Limits{Files: rapid.IntRange(1, 4).Draw(t, "files"), FileBytes: rapid.Int64Range(1, 20).Draw(t, "bytes")}
		var written []byte
		w := tasklog.New(dir, "t.stdout.", limits)
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			if rapid.IntRange(0, 5).Draw(t, "reopen") == 0 { // as after a restart of the agent
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				w = tasklog.New(dir, "t.stdout.", limits)
			}
			p := rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "data")
			if n, err := w.Write(p); n != len(p) || err != nil {
				t.Fatal(n, err)
			}
			written = append(written, p...)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		kept, files, largest := read(t, dir)
		if !bytes.HasSuffix(written, kept) {
			t.Fatalf("kept %x of %x", kept, written)
		}
		if files > limits.Files || int64(largest) > limits.FileBytes {
			t.Fatalf("%d files, the largest of %d bytes: more than %+v", files, largest, limits)
		}
		if least := min(len(written), (limits.Files-1)*int(limits.FileBytes)); len(kept) < least {
			t.Fatalf("only %d bytes are kept of %d", len(kept), len(written))
		}
	})
}

func TestALogThatCannotBeKeptDoesNotHoldUpItsTask(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := tasklog.New(dir, "t.stdout.", tasklog.Limits{Files: 1, FileBytes: 10})
	if n, err := w.Write([]byte("hello")); n != 5 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if err := w.Close(); err == nil {
		t.Error("it does not tell that something is lost")
	}
}

func TestALogDoesNotFollowLinks(t *testing.T) {
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(outside, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "t.stdout.0")); err != nil {
		t.Fatal(err)
	}
	w := tasklog.New(dir, "t.stdout.", tasklog.Limits{Files: 1, FileBytes: 100})
	_, _ = w.Write([]byte("evil"))
	if err := w.Close(); err == nil {
		t.Error("it wrote to a link")
	}
	if b, _ := os.ReadFile(outside); string(b) != "precious" {
		t.Errorf("the file outside is now %q", b)
	}
}

func TestSeveralMayWriteAtATime(t *testing.T) {
	dir := t.TempDir()
	w := tasklog.New(dir, "t.stdout.", tasklog.Limits{Files: 100, FileBytes: 64})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				_, _ = w.Write([]byte("12345678"))
			}
		})
	}
	all.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if kept, _, _ := read(t, dir); len(kept) != 8*50*8 {
		t.Errorf("%d bytes", len(kept))
	}
}
