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
	awaited *atomic.Int32 // calls under way that wait for a snapshot
	asked   atomic.Bool   // for a snapshot: it waits for its turn or is being written
	ending  atomic.Bool

	entries, bytes atomic.Int64
	since          atomic.Int64 // unix nanoseconds of the first of them; 0 = none
	size           atomic.Int64 // bytes of the newest snapshot that was written or read
}

var _ raft.BatchingFSM = (*machine)(nil)

func newMachine(cfg Config, fatal chan<- error, timed, awaited *atomic.Int32) *machine {
	return &machine{Machine: cfg.Machine, fatal: fatal, full: make(chan struct{}, 1), bound: cfg.SnapshotBytes, timed: timed, awaited: awaited}
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
	if m.bytes.Add(bytes) >= m.enough() {
		select {
		case m.full <- struct{}{}:
		default:
		}
	}
}

// enough is how many bytes of entries make a snapshot worth its while: with as many as it is large itself, all snapshots together cost no more than the entries, however large
// the state becomes.
func (m *machine) enough() int64 { return max(m.bound, m.size.Load()) }

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
	since := m.since.Swap(0)
	select {
	case <-m.full:
	default:
	}
	return snapshot{m.Machine.Snapshot(), m, since}, nil
}

func (m *machine) Restore(r io.ReadCloser) error {
	defer r.Close()
	read := counted{Reader: r}
	err := m.Machine.Restore(&read)
	if err == nil {
		m.size.Store(read.n)
	}
	return err
}

type counted struct {
	io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

// end has a snapshot that is being written given up: a large one takes longer than a server may take to stop, and the log has all of it.
func (m *machine) end() { m.ending.Store(true) }

var errEnding = errors.New("the server ends")

type snapshot struct {
	persist func(io.Writer) error
	machine *machine
	since   int64 // when the first of its entries was applied that no snapshot has
}

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	w := &background{Writer: sink, machine: s.machine, begun: time.Now()}
	err := s.persist(w)
	if err != nil {
		_ = sink.Cancel()
	} else {
		err = sink.Close()
	}
	if err != nil {
		// Its entries are as old as they were. Their bytes are not counted again: where a disk is full, each entry would ask for the next attempt.
		if s.since != 0 {
			s.machine.since.Store(s.since)
		}
		return fmt.Errorf("persist a snapshot: %w", err)
	}
	s.machine.size.Store(w.n)
	return nil
}

func (snapshot) Release() {}

// background writes a snapshot beside other work: a state that takes seconds to be written must not take them from who waits for an entry.
type background struct {
	io.Writer
	machine *machine
	n       int64
	begun   time.Time // the work for the next Write
	entries int64     // of the machine, at that time
}

func (w *background) Write(b []byte) (int, error) {
	if w.machine.ending.Load() {
		return 0, errEnding
	}
	n, err := w.Writer.Write(b)
	w.n += int64(n)
	entries := w.machine.entries.Load()
	hurry := w.machine.awaited.Load() > 0 || w.machine.bytes.Load() > w.machine.enough()/2
	time.Sleep(rest(time.Since(w.begun), entries != w.entries, hurry))
	w.begun, w.entries = time.Now(), entries
	return n, err
}

const longestRest = 50 * time.Millisecond

// rest is the pause after so much work on a snapshot: three times as long while entries are applied, none while nobody else has work, or in a hurry: somebody waits for it, or so
// much was applied since that the next snapshot is in sight.
func rest(worked time.Duration, busy, hurry bool) time.Duration {
	if !busy || hurry {
		return 0
	}
	return min(3*worked, longestRest)
}
