package state

import (
	"fmt"
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

func table[T any](name string, id func(*T) []string, more map[string]func(*T) []string) *memdb.TableSchema {
	t := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{
		"id": {Name: "id", Unique: true, Indexer: key[T](id)},
	}}
	for n, k := range more {
		t.Indexes[n] = &memdb.IndexSchema{Name: n, AllowMissing: true, Indexer: key[T](k)}
	}
	return t
}

func schema() *memdb.DBSchema {
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, t := range []*memdb.TableSchema{
		table(tableNodes, func(n *model.Node) []string { return []string{n.ID} }, nil),
		table(tableJobs, func(j *model.Job) []string { return []string{j.Namespace, j.ID} }, nil),
		table(tableVersions, func(j *model.Job) []string {
			return []string{j.Namespace, j.ID, fmt.Sprintf("%016x", j.Version)}
		}, nil),
		table(tableEvals, func(e *model.Evaluation) []string { return []string{e.ID} }, map[string]func(*model.Evaluation) []string{
			"job": func(e *model.Evaluation) []string { return []string{e.Namespace, e.JobID} },
		}),
		table(tableAllocs, func(a *model.Allocation) []string { return []string{a.ID} }, map[string]func(*model.Allocation) []string{
			"job":  func(a *model.Allocation) []string { return []string{a.Namespace, a.JobID} },
			"node": func(a *model.Allocation) []string { return []string{a.NodeID} },
			"eval": func(a *model.Allocation) []string { return []string{a.EvalID} },
		}),
		table(tableTombstones, func(t *Tombstone) []string { return []string{t.AllocID} }, map[string]func(*Tombstone) []string{
			"node": func(t *Tombstone) []string { return []string{t.NodeID} },
		}),
		table(tableConfig, func(*SchedulerConfig) []string { return []string{"config"} }, nil),
		table(tableIndex, func(t *tableState) []string { return []string{t.Table} }, nil),
	} {
		s.Tables[t.Name] = t
	}
	return s
}

// jobKey names a job across namespaces.
type jobKey struct{ namespace, id string }

// ValidKey reports whether s can be part of a key.
func ValidKey(s string) bool { return !strings.ContainsRune(s, 0) }
