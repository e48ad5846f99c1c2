// Package tasklog keeps what tasks write, in files that take turns.
//
// A log is a series of files <prefix>0, <prefix>1, … in one directory. What comes is appended to the newest; one that is full is never written again, and
// the oldest goes when there are more than are kept. So a log takes a bounded part of the disk, a reader that knows the number and the offset it has
// got to misses nothing that is still there, and a file that has a successor is complete.
//
// A write never waits for more than the disk and never fails: a task must not stop because nobody can keep what it says. What could not be written is
// lost, and counted. There is no buffer: what was written is there for readers, and for a later process, at once.
package tasklog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// Limits bound one log.
type Limits struct {
	Files     int   // at least 1
	FileBytes int64 // at least 1
}

// Writer appends to one log. It is safe for use by several goroutines. Nothing is on disk before the first write.
type Writer struct {
	dir, prefix string
	limits      Limits

	mu     sync.Mutex
	file   *os.File // nil = not opened yet
	index  int
	size   int64
	closed bool
	lost   int64
	err    error // the first one, of what was lost
}

// New makes a writer that goes on where an earlier one of the same log has ended.
func New(dir, prefix string, l Limits) *Writer {
	return &Writer{dir: dir, prefix: prefix, limits: Limits{max(l.Files, 1), max(l.FileBytes, 1)}}
}

// Write takes all of p.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(p)
	for len(p) > 0 && !w.closed {
		if err := w.ready(); err != nil {
			w.lose(len(p), err)
			break
		}
		part := p[:min(int64(len(p)), w.limits.FileBytes-w.size)]
		k, err := w.file.WriteAt(part, w.size)
		w.size += int64(k)
		p = p[k:]
		if err != nil {
			w.lose(len(p), err)
			break
		}
	}
	return n, nil
}

// ready makes sure that there is a file with room in it.
func (w *Writer) ready() error {
	for w.file == nil || w.size >= w.limits.FileBytes {
		if err := w.next(); err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) lose(n int, err error) {
	w.lost += int64(n)
	if w.err == nil {
		w.err = err
	}
}

// next opens the file to write to: the newest there is, or the one after a full one.
func (w *Writer) next() error {
	if w.file == nil {
		if err := os.MkdirAll(w.dir, 0o700); err != nil {
			return err
		}
		newest, ok, err := w.newest()
		if err != nil {
			return err
		}
		if ok {
			w.index = newest
		}
	} else {
		_ = w.file.Close()
		w.file = nil
		w.index++
	}
	// Whoever can write into the directory could have put a link there.
	f, err := os.OpenFile(w.path(w.index), os.O_WRONLY|os.O_CREATE|noFollow, 0o600)
	if err != nil {
		return err
	}
	i, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return err
	}
	w.file, w.size = f, i.Size()
	if old := w.index - w.limits.Files; old >= 0 {
		if err := os.Remove(w.path(old)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// newest is the highest number among the files of the log.
func (w *Writer) newest() (index int, ok bool, err error) {
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return 0, false, err
	}
	for _, e := range entries {
		number, mine := strings.CutPrefix(e.Name(), w.prefix)
		if n, err := strconv.Atoi(number); mine && err == nil && n >= index {
			index, ok = n, true
		}
	}
	return index, ok, nil
}

func (w *Writer) path(index int) string {
	return filepath.Join(w.dir, w.prefix+strconv.Itoa(index))
}

// Close ends the log. What comes later is dropped. The error tells how much could not be kept, and why.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.file != nil {
		if err := w.file.Close(); err != nil && w.err == nil {
			w.err = err
		}
		w.file = nil
	}
	if w.err != nil {
		return fmt.Errorf("task log: %d bytes could not be kept: %w", w.lost, w.err)
	}
	return nil
}
