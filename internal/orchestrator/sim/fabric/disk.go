package fabric

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// Disk keeps what Raft keeps: the log, the few values that must be stable, and snapshots. What a call has returned from is written; of what was being
// written when the server crashed, a beginning may be.
//
// It stands in for raft-wal and the snapshot directory, so it does not show faults of theirs: those are looked for with real processes.
type Disk struct {
	mu      sync.Mutex
	rnd     *rand.Rand
	slow    time.Duration // guarded by mu; of each write
	full    bool          // guarded by mu
	first   uint64        // guarded by mu; 0 = the log is empty
	last    uint64        // guarded by mu
	logs    map[uint64]*raft.Log
	writing []*raft.Log // guarded by mu; under way
	taken   int         // guarded by mu; snapshots ever
	values  map[string][]byte
	numbers map[string]uint64
	snaps   []*snapshot // guarded by mu; complete ones, the newest last
}

var (
	_ raft.LogStore      = (*Disk)(nil)
	_ raft.StableStore   = (*Disk)(nil)
	_ raft.SnapshotStore = (*Disk)(nil)
)

// NewDisk makes an empty one. The seed decides what a crash leaves of writes under way.
func NewDisk(seed uint64) *Disk {
	return &Disk{
		rnd: rand.New(rand.NewPCG(seed, 0x6469736b)), logs: map[uint64]*raft.Log{}, values: map[string][]byte{}, numbers: map[string]uint64{},
	}
}

// Slow makes each write take so long.
func (d *Disk) Slow(by time.Duration) {
	d.mu.Lock()
	d.slow = by
	d.mu.Unlock()
}

// Fill makes writes to the log and of snapshots fail for want of room, or lets them succeed again.
func (d *Disk) Fill(full bool) {
	d.mu.Lock()
	d.full = full
	d.mu.Unlock()
}

// Crash returns the disk as the next server finds it. The crashed one may go on writing to d, which nobody will read.
func (d *Disk) Crash() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &Disk{
		rnd: rand.New(rand.NewPCG(d.rnd.Uint64(), 1)), first: d.first, last: d.last,
		logs: make(map[uint64]*raft.Log, len(d.logs)), values: make(map[string][]byte, len(d.values)), numbers: make(map[string]uint64, len(d.numbers)),
		snaps: append([]*snapshot(nil), d.snaps...), taken: d.taken,
	}
	for i, l := range d.logs {
		c.logs[i] = l
	}
	for k, v := range d.values {
		c.values[k] = v
	}
	for k, v := range d.numbers {
		c.numbers[k] = v
	}
	c.put(d.writing[:d.rnd.IntN(len(d.writing)+1)])
	return c
}

// Forget loses the newest entries of the log, which no disk may do.
func (d *Disk) Forget(entries uint64) {
	last, _ := d.LastIndex()
	first, _ := d.FirstIndex()
	if last > first {
		_ = d.DeleteRange(max(first+1, last-min(entries, last)), last)
	}
}

// Taken is how many snapshots were written to the disk, or sent to it.
func (d *Disk) Taken() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.taken
}

// FirstIndex is that of the oldest entry of the log, 0 when it is empty.
func (d *Disk) FirstIndex() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.first, nil
}

// LastIndex is that of the newest entry, 0 when the log is empty.
func (d *Disk) LastIndex() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last, nil
}

// GetLog reads an entry.
func (d *Disk) GetLog(index uint64, into *raft.Log) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.logs[index]
	if l == nil {
		return raft.ErrLogNotFound
	}
	*into = *l
	return nil
}

// StoreLog writes one entry.
func (d *Disk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

// StoreLogs writes entries. It has one caller at a time, as Raft has it.
func (d *Disk) StoreLogs(logs []*raft.Log) error {
	d.mu.Lock()
	d.writing = make([]*raft.Log, len(logs))
	for i, l := range logs {
		c := *l
		d.writing[i] = &c
	}
	slow := d.slow
	d.mu.Unlock()
	if slow > 0 {
		time.Sleep(slow)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	written := d.writing
	d.writing = nil
	if d.full {
		return fmt.Errorf("write to the log: %w", syscall.ENOSPC)
	}
	d.put(written)
	return nil
}

// put is called with mu held.
func (d *Disk) put(logs []*raft.Log) {
	for _, l := range logs {
		d.logs[l.Index] = l
		if d.first == 0 {
			d.first = l.Index
		}
		d.last = max(d.last, l.Index)
	}
}

// DeleteRange removes entries, both ends included.
func (d *Disk) DeleteRange(least, most uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := least; i <= most; i++ {
		delete(d.logs, i)
	}
	if least <= d.first {
		d.first = most + 1
	}
	if most >= d.last {
		d.last = least - 1
	}
	if d.first > d.last {
		d.first, d.last = 0, 0
	}
	return nil
}

// Set keeps a value.
func (d *Disk) Set(key, value []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.values[string(key)] = append([]byte(nil), value...)
	return nil
}

// errNotFound has the words that Raft looks for.
var errNotFound = errors.New("not found")

// Get reads a value.
func (d *Disk) Get(key []byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, ok := d.values[string(key)]
	if !ok {
		return nil, errNotFound
	}
	return v, nil
}

// SetUint64 keeps a number.
func (d *Disk) SetUint64(key []byte, value uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.numbers[string(key)] = value
	return nil
}

// GetUint64 reads a number; 0 when there is none.
func (d *Disk) GetUint64(key []byte) (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.numbers[string(key)], nil
}

// snapshot is one that is being written, and later one that is there.
type snapshot struct {
	disk *Disk
	meta raft.SnapshotMeta
	data bytes.Buffer
}

// Create begins a snapshot. It counts once it is closed.
func (d *Disk) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, at uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full {
		return nil, fmt.Errorf("write a snapshot: %w", syscall.ENOSPC)
	}
	return &snapshot{disk: d, meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d-%08x", term, index, d.rnd.Uint32()), Index: index, Term: term, Configuration: c, ConfigurationIndex: at,
	}}, nil
}

// kept is how many snapshots there are at most.
const kept = 2

func (s *snapshot) Write(p []byte) (int, error) { return s.data.Write(p) }
func (s *snapshot) ID() string                  { return s.meta.ID }
func (s *snapshot) Cancel() error               { return nil }

func (s *snapshot) Close() error {
	s.disk.mu.Lock()
	slow := s.disk.slow
	s.disk.mu.Unlock()
	if slow > 0 {
		time.Sleep(slow)
	}
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	if s.disk.full {
		return fmt.Errorf("write a snapshot: %w", syscall.ENOSPC)
	}
	s.meta.Size = int64(s.data.Len())
	s.disk.taken++
	s.disk.snaps = append(s.disk.snaps, s)
	if n := len(s.disk.snaps); n > kept {
		s.disk.snaps = s.disk.snaps[n-kept:]
	}
	return nil
}

// List has the newest first.
func (d *Disk) List() ([]*raft.SnapshotMeta, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []*raft.SnapshotMeta
	for i := len(d.snaps) - 1; i >= 0; i-- {
		m := d.snaps[i].meta
		out = append(out, &m)
	}
	return out, nil
}

// Open reads a snapshot.
func (d *Disk) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.snaps {
		if s.meta.ID == id {
			m := s.meta
			return &m, io.NopCloser(bytes.NewReader(s.data.Bytes())), nil
		}
	}
	return nil, nil, fmt.Errorf("open snapshot %s: %w", id, errNotFound)
}
