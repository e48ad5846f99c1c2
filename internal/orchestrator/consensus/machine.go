package consensus

import (
	"fmt"
	"io"

	"github.com/hashicorp/raft"
)

// machine is Raft's view of a Machine.
type machine struct {
	Machine
	fatal   chan<- error
	stopped error // once set, nothing is applied any more
}

var _ raft.BatchingFSM = (*machine)(nil)

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
	result, err := m.Machine.Apply(l.Index, l.Data)
	if err != nil {
		m.stopped = fmt.Errorf("apply entry %d: %w", l.Index, err)
		m.fatal <- m.stopped
		return m.stopped
	}
	return result
}

func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	if m.stopped != nil {
		return nil, m.stopped
	}
	return snapshot(m.Machine.Snapshot()), nil
}

func (m *machine) Restore(r io.ReadCloser) error {
	defer r.Close()
	return m.Machine.Restore(r)
}

type snapshot func(io.Writer) error

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s(sink); err != nil {
		_ = sink.Cancel()
		return fmt.Errorf("persist a snapshot: %w", err)
	}
	return sink.Close()
}

func (snapshot) Release() {}
