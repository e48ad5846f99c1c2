package state

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

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
	Algorithm            string // AlgorithmBinpack or AlgorithmSpread
	MemoryOversubscribed bool   // a task may use up to its memory_max; only its memory is reserved
	RejectRegistrations  bool
	PauseBroker          bool
	NodeLimit            int         // candidates that a placement is chosen from; 0 = as many as the job needs to be placed well
	Preemption           *Preemption `codec:",omitempty"` // nil = DefaultPreemption
	CreateIndex          uint64
	ModifyIndex          uint64
}

// Algorithms of a SchedulerConfig: full nodes first, or empty ones.
const (
	AlgorithmBinpack = "binpack"
	AlgorithmSpread  = "spread"
)

// Preemption says which types of jobs may end allocations of lower priority.
type Preemption struct{ System, Sysbatch, Batch, Service bool }

// DefaultPreemption is Nomad's.
func DefaultPreemption() Preemption { return Preemption{System: true} }

// Preempts is the preemption in force.
func (c *SchedulerConfig) Preempts() Preemption {
	if c.Preemption == nil {
		return DefaultPreemption()
	}
	return *c.Preemption
}

// DefaultSchedulerConfig is what holds until an operator sets something else.
func DefaultSchedulerConfig() *SchedulerConfig {
	return &SchedulerConfig{Algorithm: AlgorithmBinpack, MemoryOversubscribed: true}
}

type tableState struct {
	Table string
	Index uint64
}

// tableDef is one table: how it is indexed, and how it is written to and read from a snapshot.
type tableDef struct {
	shape    table
	kind     uint8 // of its records in a snapshot
	observed bool  // its changes are told to observers
	persist  func(*Snapshot, *writer)
	restore  func(*reader) (any, error)
}

// parts appends the parts of an object's key in an index; nil = the object is not in it.
type parts[T any] func(v *T, to []string) []string

// define makes a table of T. kind is on disk: never renumber, never use one again. id is the primary key, more are other indexes; a nil key leaves the
// object out of its index.
func define[T any](name string, kind uint8, observed bool, id parts[T], more map[string]parts[T]) tableDef {
	ofAny := func(of parts[T]) keyParts {
		return func(v any, to []string) []string { return of(v.(*T), to) }
	}
	shape := table{name: name, id: ofAny(id)}
	for _, n := range sortedKeys(more) {
		shape.more = append(shape.more, index{n, ofAny(more[n])})
	}
	return tableDef{shape: shape, kind: kind, observed: observed,
		persist: func(s *Snapshot, w *writer) {
			for v := range all[T](s, nil, name, "id") {
				w.put(kind, v)
			}
		},
		restore: func(r *reader) (any, error) {
			v := new(T)
			return v, r.dec.Decode(v)
		},
	}
}

// tables are all, in the order in which a snapshot has them. Each area adds its own in a file of its own. It is filled in at start, since what writes a table
// reads the table of tables.
var tables []tableDef

func init() {
	tables = slices.Concat(coreTables(), deploymentTables(), usageTables(), serverTables(), accessTables(), lifeTables())
}

func coreTables() []tableDef {
	return []tableDef{
		define(tableNodes, 2, true, func(n *model.Node, to []string) []string { return append(to, n.ID) }, nodeIndexes),
		jobTable(),
		versionTable(),
		sharing(define(tableEvals, 5, true, func(e *model.Evaluation, to []string) []string { return append(to, e.ID) }, map[string]parts[model.Evaluation]{
			"job": func(e *model.Evaluation, to []string) []string { return append(to, e.Namespace, e.JobID) },
			"ended": func(e *model.Evaluation, to []string) []string {
				if !e.Terminal() {
					return nil
				}
				return append(to, hexTime(e.ModifyTime))
			},
		}), shareEval),
		allocTable(),
		sharing(define(tableTombstones, 8, false, func(t *Tombstone, to []string) []string { return append(to, t.AllocID) }, map[string]parts[Tombstone]{
			"node":  func(t *Tombstone, to []string) []string { return append(to, t.NodeID) },
			"ended": func(t *Tombstone, to []string) []string { return append(to, hexTime(t.Time)) },
		}), shareTombstone),
		define(tableConfig, 9, false, func(_ *SchedulerConfig, to []string) []string { return append(to, "config") }, nil),
		define(tableIndex, 10, false, func(t *tableState, to []string) []string { return append(to, t.Table) }, nil),
	}
}

// sharing has f make texts of what is put into a table those of others, see table.share. before is nil where nothing is replaced.
func sharing[T any](t tableDef, f func(t *txn, v, before *T, key string)) tableDef {
	t.shape.share = func(txn *txn, v, before any, key string) {
		b, _ := before.(*T)
		f(txn, v.(*T), b, key)
	}
	return t
}

// derived makes a table one that is filled in from others: it is in no snapshot on disk.
func derived(t tableDef) tableDef {
	t.persist = func(*Snapshot, *writer) {}
	return t
}

func jobTable() tableDef {
	t := define(tableJobs, 3, true, func(j *model.Job, to []string) []string { return append(to, j.Namespace, j.ID) }, jobIndexes)
	t = sharing(t, shareJob)
	t.restore = func(r *reader) (any, error) { return r.job() }
	return t
}

func versionTable() tableDef {
	t := define(tableVersions, 4, false, func(j *model.Job, to []string) []string {
		return append(to, j.Namespace, j.ID, hexIndex(j.Version))
	}, nil)
	t = sharing(t, shareVersion)
	t.persist = func(s *Snapshot, w *writer) {
		for j := range all[model.Job](s, nil, tableVersions, "id") {
			w.put(t.kind, j)
			w.specs[keyOf(j)] = true
		}
	}
	t.restore = func(r *reader) (any, error) {
		j, err := r.job()
		if err == nil {
			r.specs[keyOf(j)] = j
		}
		return j, err
	}
	return t
}

func allocTable() tableDef {
	t := define(tableAllocs, 7, true, func(a *model.Allocation, to []string) []string { return append(to, a.ID) }, map[string]parts[model.Allocation]{
		"job": func(a *model.Allocation, to []string) []string { return append(to, a.Namespace, a.JobID) },
		// What a node must be told is what the servers changed since the last time: a range of this index.
		"node": func(a *model.Allocation, to []string) []string {
			return append(to, a.NodeID, hexIndex(a.AllocModifyIndex))
		},
		"eval": func(a *model.Allocation, to []string) []string { return append(to, a.EvalID) },
		"ended": func(a *model.Allocation, to []string) []string {
			if !a.Terminal() || !a.ClientTerminal() {
				return nil
			}
			return append(to, hexTime(a.ModifyTime))
		},
	})
	t = sharing(t, shareAlloc)
	t.persist = func(s *Snapshot, w *writer) {
		if w.dense {
			w.allocs(s)
			return
		}
		for a := range all[model.Allocation](s, nil, tableAllocs, "id") {
			w.spec(a.Job)
			c := *a
			c.Job = nil
			w.put(t.kind, allocRecord{&c, a.Job.JobModifyIndex})
		}
	}
	t.restore = func(r *reader) (any, error) {
		var a allocRecord
		if err := r.dec.Decode(&a); err != nil {
			return nil, err
		}
		if a.Alloc == nil {
			return nil, errEmpty
		}
		a.Alloc.Job = r.specs[specKey{jobKey{a.Alloc.Namespace, a.Alloc.JobID}, a.Spec}]
		return a.Alloc, nil
	}
	return t
}

// byKind finds the table of a snapshot's record, byName that of a name. Both have places in tables.
var (
	byKind = map[uint8]int{}
	byName = map[string]int{}
)

func init() {
	for i, t := range tables {
		if _, taken := byKind[t.kind]; taken || t.kind == recordHeader || t.kind == recordSpec || t.kind == recordEnd || t.kind == recordAllocs {
			panic(fmt.Sprintf("state: record kind %d is used twice", t.kind))
		}
		if _, taken := byName[t.shape.name]; taken {
			panic("state: two tables are called " + t.shape.name)
		}
		byKind[t.kind], byName[t.shape.name] = i, i
	}
}

// hexIndex writes a number so that the order of texts is that of numbers.
func hexIndex(n uint64) string {
	const digits = "0123456789abcdef"
	var b [16]byte
	for i := range b {
		b[15-i] = digits[n&15]
		n >>= 4
	}
	return string(b[:])
}

// hexTime is hexIndex of a time in unix nanoseconds. What is before 1970 counts as 1970.
func hexTime(ns int64) string { return hexIndex(uint64(max(ns, 0))) }

// jobKey names a job across namespaces.
type jobKey struct{ namespace, id string }

func (k jobKey) compare(o jobKey) int {
	return cmp.Or(cmp.Compare(k.namespace, o.namespace), cmp.Compare(k.id, o.id))
}

// ValidKey reports whether s can be part of a key.
func ValidKey(s string) bool { return !strings.ContainsRune(s, 0) }
