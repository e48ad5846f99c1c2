package state

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/hashicorp/go-msgpack/v2/codec"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/packed"
)

// Handle is the one binary encoding of model values.
var Handle = packed.Handle

// Kinds of records in a snapshot that are no table's. They are on disk: never renumber.
const (
	recordHeader = 1
	recordSpec   = 6 // a specification that only allocations still have
	recordEnd    = 99
	recordAllocs = 109 // many allocations, packed, each with the JobModifyIndex of its specification

	formatVersion = 1
)

type header struct {
	Format int
	Index  uint64
}

type allocRecord struct {
	Alloc *model.Allocation // without its job
	Spec  uint64            // JobModifyIndex of the job
}

type specKey struct {
	job   jobKey
	index uint64
}

func keyOf(j *model.Job) specKey { return specKey{jobKey{j.Namespace, j.ID}, j.JobModifyIndex} }

// writer writes the records of a snapshot.
type writer struct {
	enc   *codec.Encoder
	specs map[specKey]bool // that were written
	dense bool
	err   error // the first
}

func (w *writer) put(kind uint8, v any) {
	if w.err == nil {
		w.err = w.enc.Encode(kind)
	}
	if w.err == nil {
		w.err = w.enc.Encode(v)
	}
}

// reader reads them.
type reader struct {
	dec   *codec.Decoder
	specs map[specKey]*model.Job
}

// packedAllocs is a record of many allocations.
type packedAllocs struct {
	Allocs []byte   // see packed.Allocs
	Specs  []uint64 // by allocation
}

const allocsInRecord = 1024

// allocs writes all allocations, a job's beside each other, since these have most in common.
func (w *writer) allocs(s *Snapshot) {
	list := make([]*model.Allocation, 0, allocsInRecord)
	record := packedAllocs{}
	write := func() {
		var err error
		if record.Allocs, err = packed.Allocs(list, packed.Options{}); err != nil {
			w.err = cmp.Or(w.err, err)
			return
		}
		w.put(recordAllocs, record)
		list, record.Specs = list[:0], record.Specs[:0]
	}
	for a := range all[model.Allocation](s, nil, tableAllocs, "job") {
		w.spec(a.Job)
		list, record.Specs = append(list, a), append(record.Specs, a.Job.JobModifyIndex)
		if len(list) == allocsInRecord {
			write()
		}
	}
	if len(list) > 0 {
		write()
	}
}

// spec writes a specification unless it was written before.
func (w *writer) spec(j *model.Job) {
	if k := keyOf(j); !w.specs[k] {
		w.specs[k] = true
		w.put(recordSpec, bare(j))
	}
}

var errEmpty = errors.New("a record has nothing in it")

func (r *reader) job() (*model.Job, error) {
	var j packed.JobIn
	err := r.dec.Decode(&j)
	if err == nil && j.Job == nil {
		err = errEmpty
	}
	return j.Job, err
}

func (r *reader) allocs(txn *txn) error {
	var record packedAllocs
	if err := r.dec.Decode(&record); err != nil {
		return err
	}
	list, err := packed.ReadAllocs(record.Allocs, nil)
	if err != nil {
		return err
	}
	if len(list) != len(record.Specs) {
		return fmt.Errorf("a record has %d allocations with %d specifications", len(list), len(record.Specs))
	}
	no := tableNo(tableAllocs)
	for i, a := range list {
		a.Job = r.specs[specKey{jobKey{a.Namespace, a.JobID}, record.Specs[i]}]
		txn.put(no, a)
	}
	return nil
}

// Persist writes the whole state. Equal states give equal bytes.
func (s *Snapshot) Persist(w io.Writer) error { return s.persist(w, false) }

// PersistDense is Persist in less time and space, but what it writes depends on how the state came to be.
func (s *Snapshot) PersistDense(w io.Writer) error { return s.persist(w, true) }

func (s *Snapshot) persist(w io.Writer, dense bool) error {
	b := bufio.NewWriterSize(w, 1<<16)
	out := &writer{enc: codec.NewEncoder(b, Handle), specs: map[specKey]bool{}, dense: dense}
	out.put(recordHeader, header{formatVersion, s.Index()})
	for _, t := range tables {
		t.persist(s, out)
	}
	out.put(recordEnd, nil)
	if out.err != nil {
		return fmt.Errorf("write the state: %w", out.err)
	}
	return b.Flush()
}

// Hash is a digest of the whole state.
func (s *Snapshot) Hash() (string, error) {
	h := sha256.New()
	if err := s.Persist(h); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Hash is the digest of the newest state.
func (s *Store) Hash() (string, error) { return s.Snapshot().Hash() }

// Restore replaces the contents by what Persist wrote. Every watch fires. After an error the store is as it was.
func (s *Store) Restore(r io.Reader) error {
	db := newDatabase()
	txn := db.write()
	if err := restore(txn, codec.NewDecoder(bufio.NewReaderSize(r, 1<<16), Handle)); err != nil {
		return fmt.Errorf("restore the state: %w", err)
	}
	restoreUsage(txn)
	txn.commit()
	s.db.Store(db)
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.replaced)
	s.replaced = make(chan struct{})
	return nil
}

func restore(txn *txn, dec *codec.Decoder) error {
	r := &reader{dec, map[specKey]*model.Job{}}
	for {
		var kind uint8
		if err := dec.Decode(&kind); err != nil {
			return fmt.Errorf("the snapshot is cut off: %w", err)
		}
		var err error
		switch kind {
		case recordHeader:
			var h header
			if err = dec.Decode(&h); err == nil && h.Format != formatVersion {
				err = fmt.Errorf("format %d is not known, only %d", h.Format, formatVersion)
			}
		case recordSpec:
			var j *model.Job
			if j, err = r.job(); err == nil {
				r.specs[keyOf(j)] = j
			}
		case recordAllocs:
			err = r.allocs(txn)
		case recordEnd:
			recount(txn)
			return nil
		default:
			no, ok := byKind[kind]
			if !ok {
				return fmt.Errorf("record kind %d is not known: a newer version wrote this snapshot", kind)
			}
			var v any
			if v, err = tables[no].restore(r); err == nil {
				txn.put(no, v)
			}
		}
		if err != nil {
			return err
		}
	}
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
