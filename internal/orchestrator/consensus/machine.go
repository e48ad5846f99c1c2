package consensus

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// machine is Raft's view of a Machine. It counts what was applied since the last snapshot.
type machine struct {
	Machine
	fatal   chan<- error
	full    chan struct{} // of 1: there are enough bytes for a snapshot
	bound   int64
	stopped error         // once set, nothing is applied any more
	timed   *atomic.Int32 // calls under way that want to know when their entry was applied
	ending  atomic.Bool

	entries, bytes atomic.Int64
	since          atomic.Int64 // unix nanoseconds of the first of them; 0 = none
}

var _ raft.BatchingFSM = (*machine)(nil)

func newMachine(cfg Config, fatal chan<- error, timed *atomic.Int32) *machine {
	return &machine{Machine: cfg.Machine, fatal: fatal, full: make(chan struct{}, 1), bound: cfg.SnapshotBytes, timed: timed}
}

func (m *machine) Apply(l *raft.Log) any { return m.apply(l) }

// ApplyBatch takes all entries that one fsync made durable; the answers go out together.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	for i, l := range logs {
		out[i] = m.apply(l)
	}
	return out
}

func (m *machine) apply(l *raft.Log) any {
	if l.Type != raft.LogCommand {
		return nil
	}
	if m.stopped != nil {
		return m.stopped
	}
	begun := time.Time{}
	if m.timed.Load() > 0 {
		begun = time.Now() // for whoever asked alone; the state does not see it
	}
	result, err := m.Machine.Apply(l.Index, l.Data)
	if err != nil {
		m.stopped = fmt.Errorf("apply entry %d: %w", l.Index, err)
		select {
		case m.fatal <- m.stopped:
		default:
		}
		return m.stopped
	}
	m.count(int64(len(l.Data)))
	if !begun.IsZero() {
		return applied{result, l.AppendedAt, begun, time.Now()}
	}
	return result
}

// applied is a result with the times of its entry on this server.
type applied struct {
	result                 any
	appended, begun, ended time.Time // appended is zero where another server led
}

func (m *machine) count(bytes int64) {
	if m.entries.Add(1) == 1 {
		m.since.Store(time.Now().UnixNano()) // of this server's own snapshots; the state does not see it
	}
	if m.bytes.Add(bytes) >= m.bound {
		select {
		case m.full <- struct{}{}:
		default:
		}
	}
}

// older reports whether something was applied so long ago and is in no snapshot.
func (m *machine) older(now time.Time, age time.Duration) bool {
	t := m.since.Load()
	return t != 0 && now.Sub(time.Unix(0, t)) >= age
}

// trailing is how many entries of the present size make so many bytes.
func (m *machine) trailing(bytes int64) uint64 {
	each := m.bytes.Load() / max(m.entries.Load(), 1)
	return uint64(min(max(bytes/max(each, 1), trailingLeast), trailingMost))
}

func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	if m.stopped != nil {
		return nil, m.stopped
	}
	m.entries.Store(0)
	m.bytes.Store(0)
	m.since.Store(0)
	select {
	case <-m.full:
	default:
	}
	return snapshot{m.Machine.Snapshot(), &m.ending}, nil
}

func (m *machine) Restore(r io.ReadCloser) error {
	defer r.Close()
	return m.Machine.Restore(r)
}

// end has a snapshot that is being written given up: a large one takes longer than a server may take to stop, and the log has all of it.
func (m *machine) end() { m.ending.Store(true) }

var errEnding = errors.New("the server ends")

type snapshot struct {
	persist func(io.Writer) error
	ending  *atomic.Bool
}

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.persist(unlessEnding{sink, s.ending}); err != nil {
		_ = sink.Cancel()
		return fmt.Errorf("persist a snapshot: %w", err)
	}
	return sink.Close()
}

func (snapshot) Release() {}

type unlessEnding struct {
	io.Writer
	ending *atomic.Bool
}

func (w unlessEnding) Write(b []byte) (int, error) {
	if w.ending.Load() {
		return 0, errEnding
	}
	return w.Writer.Write(b)
}
