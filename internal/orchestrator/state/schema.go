package state

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/go-memdb"

	"rockpool/internal/orchestrator/model"
)

// Tables.
const (
	tableNodes      = "nodes"
	tableJobs       = "jobs"
	tableVersions   = "job_versions"
	tableEvals      = "evals"
	tableAllocs     = "allocs"
	tableTombstones = "tombstones"
	tableConfig     = "scheduler_config"
	tableIndex      = "index"
)

// Tombstone tells a node that an allocation's record is gone, until the node confirms it or so much time has passed that the
// node had to start over with a full listing anyway.
type Tombstone struct {
	NodeID  string
	AllocID string
	Index   uint64
	Time    int64
}

// SchedulerConfig is what operators may change of scheduling at run time.
type SchedulerConfig struct {
	Algorithm            string // binpack, spread
	MemoryOversubscribed bool   // a task may use up to its memory_max; only its memory is reserved
	RejectRegistrations  bool
	PauseBroker          bool
	NodeLimit            int // nodes looked at per placement with spread or affinity; 0 = all
	CreateIndex          uint64
	ModifyIndex          uint64
}

// DefaultSchedulerConfig is what holds until an operator sets something else.
func DefaultSchedulerConfig() *SchedulerConfig {
	return &SchedulerConfig{Algorithm: "binpack", MemoryOversubscribed: true}
}

type tableState struct {
	Table string
	Index uint64
}

// key indexes an object of type T by a list of strings, each ended by a NUL, so that no key is a prefix of another.
type key[T any] func(*T) []string

func (k key[T]) FromObject(o any) (bool, []byte, error) {
	v, ok := o.(*T)
	if !ok {
		return false, nil, fmt.Errorf("state: %T in a table of %T", o, v)
	}
	parts := k(v)
	return parts != nil, join(parts), nil
}

func (k key[T]) FromArgs(args ...any) ([]byte, error) {
	parts := make([]string, len(args))
	for i, a := range args {
		s, ok := a.(string)
		if !ok {
			return nil, fmt.Errorf("state: key of type %T", a)
		}
		parts[i] = s
	}
	return join(parts), nil
}

func (k key[T]) PrefixFromArgs(args ...any) ([]byte, error) {
	b, err := k.FromArgs(args...)
	if err != nil || len(b) == 0 {
		return nil, err
	}
	return b[:len(b)-1], nil
}

func join(parts []string) []byte {
	n := 0
	for _, p := range parts {
		n += len(p) + 1
	}
	b := make([]byte, 0, n)
	for _, p := range parts {
		b = append(append(b, p...), 0)
	}
	return b
}

// tableDef is one table: how it is indexed, and how it is written to and read from a snapshot.
type tableDef struct {
	schema   *memdb.TableSchema
	kind     uint8 // of its records in a snapshot
	observed bool  // its changes are told to observers
	persist  func(*Snapshot, *writer)
	restore  func(*memdb.Txn, *reader) error
}

// define makes a table of T. kind is on disk: never renumber, never use one again. id is the primary key, more are other indexes; a nil key leaves the
// object out of its index.
func define[T any](name string, kind uint8, observed bool, id func(*T) []string, more map[string]func(*T) []string) tableDef {
	t := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{
		"id": {Name: "id", Unique: true, Indexer: key[T](id)},
	}}
	for n, k := range more {
		t.Indexes[n] = &memdb.IndexSchema{Name: n, AllowMissing: true, Indexer: key[T](k)}
	}
	return tableDef{t, kind, observed,
		func(s *Snapshot, w *writer) {
			for v := range all[T](s, nil, name, "id") {
				w.put(kind, v)
			}
		},
		func(txn *memdb.Txn, r *reader) error {
			v := new(T)
			if err := r.dec.Decode(v); err != nil {
				return err
			}
			return txn.Insert(name, v)
		},
	}
}

// tables are all, in the order in which a snapshot has them. Each area adds its own in a file of its own. It is filled in at start, since what writes a table
// reads the table of tables.
var tables []tableDef

func init() { tables = slices.Concat(coreTables(), deploymentTables(), serverTables()) }

func coreTables() []tableDef {
	return []tableDef{
		define(tableNodes, 2, true, func(n *model.Node) []string { return []string{n.ID} }, nil),
		define(tableJobs, 3, true, func(j *model.Job) []string { return []string{j.Namespace, j.ID} }, nil),
		versionTable(),
		define(tableEvals, 5, true, func(e *model.Evaluation) []string { return []string{e.ID} }, map[string]func(*model.Evaluation) []string{
			"job": func(e *model.Evaluation) []string { return []string{e.Namespace, e.JobID} },
		}),
		allocTable(),
		define(tableTombstones, 8, false, func(t *Tombstone) []string { return []string{t.AllocID} }, map[string]func(*Tombstone) []string{
			"node": func(t *Tombstone) []string { return []string{t.NodeID} },
		}),
		define(tableConfig, 9, false, func(*SchedulerConfig) []string { return []string{"config"} }, nil),
		define(tableIndex, 10, false, func(t *tableState) []string { return []string{t.Table} }, nil),
	}
}

func versionTable() tableDef {
	t := define(tableVersions, 4, false, func(j *model.Job) []string {
		return []string{j.Namespace, j.ID, fmt.Sprintf("%016x", j.Version)}
	}, nil)
	t.persist = func(s *Snapshot, w *writer) {
		for j := range all[model.Job](s, nil, tableVersions, "id") {
			w.put(t.kind, j)
			w.specs[keyOf(j)] = true
		}
	}
	t.restore = func(txn *memdb.Txn, r *reader) error {
		j := new(model.Job)
		if err := r.dec.Decode(j); err != nil {
			return err
		}
		r.specs[keyOf(j)] = j
		return txn.Insert(tableVersions, j)
	}
	return t
}

func allocTable() tableDef {
	t := define(tableAllocs, 7, true, func(a *model.Allocation) []string { return []string{a.ID} }, map[string]func(*model.Allocation) []string{
		"job":  func(a *model.Allocation) []string { return []string{a.Namespace, a.JobID} },
		"node": func(a *model.Allocation) []string { return []string{a.NodeID} },
		"eval": func(a *model.Allocation) []string { return []string{a.EvalID} },
	})
	t.persist = func(s *Snapshot, w *writer) {
		for a := range all[model.Allocation](s, nil, tableAllocs, "id") {
			if k := keyOf(a.Job); !w.specs[k] {
				w.specs[k] = true
				w.put(recordSpec, a.Job)
			}
			c := *a
			c.Job = nil
			w.put(t.kind, allocRecord{&c, a.Job.JobModifyIndex})
		}
	}
	t.restore = func(txn *memdb.Txn, r *reader) error {
		var a allocRecord
		if err := r.dec.Decode(&a); err != nil {
			return err
		}
		a.Alloc.Job = r.specs[specKey{jobKey{a.Alloc.Namespace, a.Alloc.JobID}, a.Spec}]
		return txn.Insert(tableAllocs, a.Alloc)
	}
	return t
}

func schema() *memdb.DBSchema {
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, t := range tables {
		if s.Tables[t.schema.Name] != nil {
			panic("state: two tables are called " + t.schema.Name)
		}
		s.Tables[t.schema.Name] = t.schema
	}
	return s
}

// byKind finds the table of a snapshot's record; observed are those whose changes are told.
var byKind, observed = map[uint8]tableDef{}, map[string]bool{}

func init() {
	for _, t := range tables {
		if _, taken := byKind[t.kind]; taken || t.kind == recordHeader || t.kind == recordSpec || t.kind == recordEnd {
			panic(fmt.Sprintf("state: record kind %d is used twice", t.kind))
		}
		byKind[t.kind] = t
		observed[t.schema.Name] = t.observed
	}
}

// jobKey names a job across namespaces.
type jobKey struct{ namespace, id string }

// ValidKey reports whether s can be part of a key.
func ValidKey(s string) bool { return !strings.ContainsRune(s, 0) }
