package state

import (
	"iter"
	"strings"

	"rockpool/internal/orchestrator/model"
)

// Snapshot is the state at one index.
type Snapshot struct {
	txn      *txn
	replaced <-chan struct{}
}

func (s *Snapshot) watch(w Watch, what span) {
	if w != nil {
		w[s.txn.watch(what)] = struct{}{}
		w[s.replaced] = struct{}{}
	}
}

// tableNo is a table's place; indexNo that of one of its indexes.
func tableNo(name string) int {
	no, ok := byName[name]
	if !ok {
		panic("state: there is no table " + name)
	}
	return no
}

func indexNo(table int, name string) int {
	if name == "id" {
		return 0
	}
	for i := range tables[table].shape.more {
		if tables[table].shape.more[i].name == name {
			return i + 1
		}
	}
	panic("state: " + tables[table].shape.name + " has no index " + name)
}

func first[T any](s *Snapshot, w Watch, table string, id ...string) *T {
	no := tableNo(table)
	if w != nil {
		s.watch(w, span{table: no, key: join(id)})
	}
	if v := s.txn.first(no, id); v != nil {
		return v.(*T)
	}
	return nil
}

// all yields what is in an index under these parts of its key, in its order. None = all. With "_prefix" behind the index's name the last one is the beginning
// of a part.
func all[T any](s *Snapshot, w Watch, table, index string, parts ...string) iter.Seq[*T] {
	what := span{table: tableNo(table)}
	index, open := strings.CutSuffix(index, "_prefix")
	what.index = indexNo(what.table, index)
	if open {
		what.key = join(parts[:len(parts)-1])
		s.watch(w, what)
		what.key += parts[len(parts)-1]
	} else {
		what.key = join(parts)
		s.watch(w, what)
	}
	return objects[T](s.txn.walk(what))
}

// atLeast yields what is in an index at these parts of its key or behind them.
func atLeast[T any](s *Snapshot, table, index string, parts ...string) iter.Seq[*T] {
	no := tableNo(table)
	return objects[T](s.txn.walk(span{table: no, index: indexNo(no, index), key: join(parts), from: true}))
}

func objects[T any](walk iter.Seq[any]) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		walk(func(v any) bool { return yield(v.(*T)) })
	}
}

// Index is the index of the update that made this state.
func (s *Snapshot) Index() uint64 { return s.tableIndex("") }

func (s *Snapshot) tableIndex(table string) uint64 {
	if t := first[tableState](s, nil, tableIndex, table); t != nil {
		return t.Index
	}
	return 0
}

// JobsIndex is the index of the newest change to any job; the others alike.
func (s *Snapshot) JobsIndex() uint64 { return s.tableIndex(tableJobs) }

// EvalsIndex is that of the evaluations.
func (s *Snapshot) EvalsIndex() uint64 { return s.tableIndex(tableEvals) }

// AllocsIndex is that of the allocations.
func (s *Snapshot) AllocsIndex() uint64 { return s.tableIndex(tableAllocs) }

// NodesIndex is that of the nodes.
func (s *Snapshot) NodesIndex() uint64 { return s.tableIndex(tableNodes) }

// Job is the job of that id, or nil.
func (s *Snapshot) Job(w Watch, namespace, id string) *model.Job {
	return first[model.Job](s, w, tableJobs, namespace, id)
}

// Jobs yields the jobs of a namespace ("*" = of all) by id.
func (s *Snapshot) Jobs(w Watch, namespace, prefix string) iter.Seq[*model.Job] {
	if namespace == "*" {
		return func(yield func(*model.Job) bool) {
			for j := range all[model.Job](s, w, tableJobs, "id") {
				if len(j.ID) >= len(prefix) && j.ID[:len(prefix)] == prefix && !yield(j) {
					return
				}
			}
		}
	}
	return all[model.Job](s, w, tableJobs, "id_prefix", namespace, prefix)
}

// JobVersions yields the kept versions of a job as they were registered, oldest first.
func (s *Snapshot) JobVersions(w Watch, namespace, id string) iter.Seq[*model.Job] {
	return all[model.Job](s, w, tableVersions, "id_prefix", namespace, id, "")
}

// spec is the registered specification that allocations of a job share, or nil.
func (s *Snapshot) spec(namespace, id string, jobModifyIndex uint64) *model.Job {
	for j := range s.JobVersions(nil, namespace, id) {
		if j.JobModifyIndex == jobModifyIndex {
			return j
		}
	}
	return nil
}

// Eval is the evaluation of that id, or nil.
func (s *Snapshot) Eval(w Watch, id string) *model.Evaluation {
	return first[model.Evaluation](s, w, tableEvals, id)
}

// Evals yields all evaluations whose id starts so, by id.
func (s *Snapshot) Evals(w Watch, prefix string) iter.Seq[*model.Evaluation] {
	return prefixed[model.Evaluation](s, w, tableEvals, prefix)
}

// EvalsByJob yields a job's evaluations, by id.
func (s *Snapshot) EvalsByJob(w Watch, namespace, id string) iter.Seq[*model.Evaluation] {
	return all[model.Evaluation](s, w, tableEvals, "job", namespace, id)
}

// Alloc is the allocation of that id, or nil.
func (s *Snapshot) Alloc(w Watch, id string) *model.Allocation {
	return first[model.Allocation](s, w, tableAllocs, id)
}

// Allocs yields all allocations whose id starts so, by id.
func (s *Snapshot) Allocs(w Watch, prefix string) iter.Seq[*model.Allocation] {
	return prefixed[model.Allocation](s, w, tableAllocs, prefix)
}

// AllocsByJob yields a job's allocations, by id.
func (s *Snapshot) AllocsByJob(w Watch, namespace, id string) iter.Seq[*model.Allocation] {
	return all[model.Allocation](s, w, tableAllocs, "job", namespace, id)
}

// AllocsByNode yields a node's allocations, by the index of the servers' last change to each.
func (s *Snapshot) AllocsByNode(w Watch, id string) iter.Seq[*model.Allocation] {
	return all[model.Allocation](s, w, tableAllocs, "node_prefix", id, "")
}

// AllocsByNodeSince yields those of a node's allocations that the servers changed after index, in the order of the changes.
func (s *Snapshot) AllocsByNodeSince(id string, index uint64) iter.Seq[*model.Allocation] {
	return func(yield func(*model.Allocation) bool) {
		for a := range atLeast[model.Allocation](s, tableAllocs, "node", id, hexIndex(index+1)) {
			if a.NodeID != id || !yield(a) {
				return
			}
		}
	}
}

// AllocsByEval yields the allocations that an evaluation placed, by id.
func (s *Snapshot) AllocsByEval(w Watch, id string) iter.Seq[*model.Allocation] {
	return all[model.Allocation](s, w, tableAllocs, "eval", id)
}

// Node is the node of that id, or nil.
func (s *Snapshot) Node(w Watch, id string) *model.Node {
	return first[model.Node](s, w, tableNodes, id)
}

// Nodes yields all nodes whose id starts so, by id.
func (s *Snapshot) Nodes(w Watch, prefix string) iter.Seq[*model.Node] {
	return prefixed[model.Node](s, w, tableNodes, prefix)
}

// Tombstones yields what a node must still learn to be gone, by allocation id.
func (s *Snapshot) Tombstones(w Watch, nodeID string) iter.Seq[*Tombstone] {
	return all[Tombstone](s, w, tableTombstones, "node", nodeID)
}

// SchedulerConfig is the one in force.
func (s *Snapshot) SchedulerConfig() *SchedulerConfig {
	if c := first[SchedulerConfig](s, nil, tableConfig, "config"); c != nil {
		return c
	}
	return DefaultSchedulerConfig()
}

func prefixed[T any](s *Snapshot, w Watch, table, prefix string) iter.Seq[*T] {
	if prefix == "" {
		return all[T](s, w, table, "id")
	}
	return all[T](s, w, table, "id_prefix", prefix)
}
