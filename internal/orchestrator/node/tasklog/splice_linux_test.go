package tasklog_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/node/tasklog"
)

// What is spliced and what is written make one log, in order, and the files are as large as they may be and no larger.
func TestSplicedIsAsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "log")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		r, into, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Close() }()
		limits := tasklog.Limits{Files: rapid.IntRange(1, 4).Draw(t, "files"), FileBytes: rapid.Int64Range(1, 20).Draw(t, "bytes")}
		w := tasklog.New(dir, "t.stdout.", limits)
		var all []byte
		for range rapid.IntRange(0, 20).Draw(t, "steps") {
			p := rapid.SliceOfN(rapid.Byte(), 1, 50).Draw(t, "data")
			all = append(all, p...)
			switch rapid.IntRange(0, 2).Draw(t, "how") {
			case 0:
				_, _ = w.Write(p)
				continue
			case 1: // as after a restart of the agent
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				w = tasklog.New(dir, "t.stdout.", limits)
			}
			if _, err := into.Write(p); err != nil {
				t.Fatal(err)
			}
			for {
				n, err := w.Splice(int(r.Fd()), rapid.IntRange(1, 60).Draw(t, "limit"))
				if errors.Is(err, unix.EAGAIN) {
					break
				}
				if err != nil || n == 0 {
					t.Fatal(n, err)
				}
			}
		}
		_ = into.Close()
		if n, err := w.Splice(int(r.Fd()), 1); n != 0 || err != nil {
			t.Fatalf("at the end of the pipe: %d, %v", n, err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		kept, files, largest := read(t, dir)
		if !bytes.HasSuffix(all, kept) || files > limits.Files || int64(largest) > limits.FileBytes {
			t.Fatalf("%d files, the largest of %d bytes, kept %x of %x", files, largest, kept, all)
		}
		if least := min(len(all), (limits.Files-1)*int(limits.FileBytes)); len(kept) < least {
			t.Fatalf("only %d bytes are kept of %d", len(kept), len(all))
		}
	})
}

// What a log cannot take stays in the pipe: the reader decides what becomes of it.
func TestWhatCannotBeSplicedStaysInThePipe(t *testing.T) {
	r, into, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), into.Close() }()
	if _, err := into.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	w := tasklog.New(t.TempDir(), "t.stdout.", tasklog.Limits{Files: 1, FileBytes: 10})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := w.Splice(int(r.Fd()), 5); n != 0 || !errors.Is(err, os.ErrClosed) {
		t.Fatalf("%d, %v", n, err)
	}
	held := make([]byte, 8)
	if n, err := r.Read(held); string(held[:n]) != "hello" {
		t.Errorf("%q, %v", held[:n], err)
	}
}
