package state

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"reflect"
	"slices"

	"github.com/hashicorp/go-memdb"
	"github.com/hashicorp/go-msgpack/v2/codec"

	"rockpool/internal/orchestrator/model"
)

// Handle is the one binary encoding of model values: MessagePack with sorted maps, so that equal values give equal bytes.
var Handle = func() *codec.MsgpackHandle {
	h := &codec.MsgpackHandle{WriteExt: true}
	h.Canonical = true
	h.RawToString = true
	h.MapType = reflect.TypeFor[map[string]any]()
	return h
}()

// Kinds of records in a snapshot. They are on disk: never renumber.
const (
	recordHeader    = 1
	recordNode      = 2
	recordJob       = 3
	recordVersion   = 4
	recordEval      = 5
	recordSpec      = 6 // a specification that only allocations still have
	recordAlloc     = 7
	recordTombstone = 8
	recordConfig    = 9
	recordIndex     = 10
	recordEnd       = 99

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

// Persist writes the whole state. Equal states give equal bytes.
func (s *Snapshot) Persist(w io.Writer) error {
	b := bufio.NewWriterSize(w, 1<<16)
	enc := codec.NewEncoder(b, Handle)
	var errs []error
	put := func(kind uint8, v any) {
		if err := enc.Encode(kind); err != nil {
			errs = append(errs, err)
		}
		if err := enc.Encode(v); err != nil {
			errs = append(errs, err)
		}
	}
	put(recordHeader, header{formatVersion, s.Index()})
	each(put, recordNode, all[model.Node](s, nil, tableNodes, "id"))
	each(put, recordJob, all[model.Job](s, nil, tableJobs, "id"))
	known := map[specKey]bool{}
	for j := range all[model.Job](s, nil, tableVersions, "id") {
		put(recordVersion, j)
		known[keyOf(j)] = true
	}
	each(put, recordEval, all[model.Evaluation](s, nil, tableEvals, "id"))
	for a := range all[model.Allocation](s, nil, tableAllocs, "id") {
		if k := keyOf(a.Job); !known[k] {
			known[k] = true
			put(recordSpec, a.Job)
		}
		c := *a
		c.Job = nil
		put(recordAlloc, allocRecord{&c, a.Job.JobModifyIndex})
	}
	each(put, recordTombstone, all[Tombstone](s, nil, tableTombstones, "id"))
	each(put, recordConfig, all[SchedulerConfig](s, nil, tableConfig, "id"))
	each(put, recordIndex, all[tableState](s, nil, tableIndex, "id"))
	put(recordEnd, nil)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("write the state: %w", err)
	}
	return b.Flush()
}

func each[T any](put func(uint8, any), kind uint8, seq iter.Seq[*T]) {
	for v := range seq {
		put(kind, v)
	}
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
	db := newDB()
	txn := db.Txn(true)
	if err := restore(txn, codec.NewDecoder(bufio.NewReaderSize(r, 1<<16), Handle)); err != nil {
		txn.Abort()
		return fmt.Errorf("restore the state: %w", err)
	}
	txn.Commit()
	s.db.Store(db)
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.replaced)
	s.replaced = make(chan struct{})
	return nil
}

func restore(txn *memdb.Txn, dec *codec.Decoder) error {
	specs := map[specKey]*model.Job{}
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
		case recordNode:
			_, err = load[model.Node](txn, dec, tableNodes)
		case recordJob:
			_, err = load[model.Job](txn, dec, tableJobs)
		case recordVersion:
			var j *model.Job
			if j, err = load[model.Job](txn, dec, tableVersions); err == nil {
				specs[keyOf(j)] = j
			}
		case recordSpec:
			j := new(model.Job)
			if err = dec.Decode(j); err == nil {
				specs[keyOf(j)] = j
			}
		case recordEval:
			_, err = load[model.Evaluation](txn, dec, tableEvals)
		case recordAlloc:
			var r allocRecord
			if err = dec.Decode(&r); err == nil {
				r.Alloc.Job = specs[specKey{jobKey{r.Alloc.Namespace, r.Alloc.JobID}, r.Spec}]
				err = txn.Insert(tableAllocs, r.Alloc)
			}
		case recordTombstone:
			_, err = load[Tombstone](txn, dec, tableTombstones)
		case recordConfig:
			_, err = load[SchedulerConfig](txn, dec, tableConfig)
		case recordIndex:
			_, err = load[tableState](txn, dec, tableIndex)
		case recordEnd:
			return nil
		default:
			err = fmt.Errorf("record kind %d is not known: a newer version wrote this snapshot", kind)
		}
		if err != nil {
			return err
		}
	}
}

func load[T any](txn *memdb.Txn, dec *codec.Decoder, table string) (*T, error) {
	v := new(T)
	if err := dec.Decode(v); err != nil {
		return nil, err
	}
	return v, txn.Insert(table, v)
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
