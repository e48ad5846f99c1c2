package consensus

import (
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
	raftwal "github.com/hashicorp/raft-wal"
)

// failstop is a log that takes nothing more after a write that failed, and tells so once. What raft-wal holds in memory is then no longer what is on the
// disk: a truncation that follows writes it down, and the log cannot be opened again. A start reads what is there, and drops the batch that was not written whole.
type failstop struct {
	*raftwal.WAL
	tell func(error)

	mu  sync.Mutex
	err error // guarded by mu; of the write that failed
}

var errStopped = errors.New("a write to the log has failed before: nothing more is written")

func (f *failstop) write(what string, do func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return fmt.Errorf("%s: %w", what, errStopped)
	}
	if f.err = do(); f.err == nil {
		return nil
	}
	f.tell(fmt.Errorf("%s: %w: the server ends, since it cannot keep what it promises; see to its disk and start it again", what, f.err))
	return fmt.Errorf("%s: %w", what, f.err)
}

// StoreLog appends an entry.
func (f *failstop) StoreLog(l *raft.Log) error { return f.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries.
func (f *failstop) StoreLogs(logs []*raft.Log) error {
	return f.write("write to the log", func() error { return f.WAL.StoreLogs(logs) })
}

// DeleteRange removes entries from one end of the log.
func (f *failstop) DeleteRange(least, most uint64) error {
	return f.write("shorten the log", func() error {
		if err := f.settled(); err != nil {
			return err
		}
		return f.WAL.DeleteRange(least, most)
	})
}

// settled returns when raft-wal has begun the next file, if the last write has filled one: it does so on a goroutine of its own, for which v0.4.0 waits before a write,
// but not before it shortens the log. What is then begun is not what belongs behind a shorter log, and cannot be opened. A write of what is there already waits,
// and is refused then without a change.
func (f *failstop) settled() error {
	last, err := f.WAL.LastIndex()
	if err != nil || last == 0 {
		return err
	}
	if err := f.WAL.StoreLogs([]*raft.Log{{Index: last}}); err == nil {
		return fmt.Errorf("entry %d was taken a second time", last)
	}
	return nil
}
