package state

import (
	"iter"

	"rockpool/internal/orchestrator/model"
)

// What has ended is in an index of its own, by the time of its end, so that collecting it does not look at what has not.

// EndedJobs yields the dead jobs that were meant to run, by the index of their death, from that of from on.
func (s *Snapshot) EndedJobs(from int64) iter.Seq[*model.Job] {
	return since[model.Job](s, tableJobs, hexTime(from))
}

// EndedEvals yields the evaluations that ended at from, unix nanoseconds, or later, oldest first.
func (s *Snapshot) EndedEvals(from int64) iter.Seq[*model.Evaluation] {
	return since[model.Evaluation](s, tableEvals, hexTime(from))
}

// EndedAllocs yields the allocations of which nothing runs and nothing shall, alike.
func (s *Snapshot) EndedAllocs(from int64) iter.Seq[*model.Allocation] {
	return since[model.Allocation](s, tableAllocs, hexTime(from))
}

// EndedTombstones yields the tombstones made at from or later, alike.
func (s *Snapshot) EndedTombstones(from int64) iter.Seq[*Tombstone] {
	return since[Tombstone](s, tableTombstones, hexTime(from))
}

// NewestEndedJobs yields EndedJobs backwards.
func (s *Snapshot) NewestEndedJobs() iter.Seq[*model.Job] { return newest[model.Job](s, tableJobs) }

// NewestEndedEvals yields EndedEvals backwards.
func (s *Snapshot) NewestEndedEvals() iter.Seq[*model.Evaluation] {
	return newest[model.Evaluation](s, tableEvals)
}

// NewestEndedAllocs yields EndedAllocs backwards.
func (s *Snapshot) NewestEndedAllocs() iter.Seq[*model.Allocation] {
	return newest[model.Allocation](s, tableAllocs)
}

func since[T any](s *Snapshot, table, from string) iter.Seq[*T] {
	return atLeast[T](s, table, "ended", from)
}

func newest[T any](s *Snapshot, table string) iter.Seq[*T] {
	no := tableNo(table)
	return objects[T](s.txn.backwards(no, indexNo(no, "ended")))
}
