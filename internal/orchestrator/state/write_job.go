package state

import (
	"reflect"
	"slices"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/packed"
)

const keptVersions = 6

// RegisterJob puts a job and returns it as it is now. With enforce, the job's JobModifyIndex must be at, 0 meaning that there
// must be no such job. An unchanged specification keeps its version and indexes. The store keeps j.
func (t *Tx) RegisterJob(j *model.Job, enforce bool, at uint64) (*model.Job, error) {
	old := t.Job(nil, j.Namespace, j.ID)
	if enforce {
		switch {
		case at == 0 && old != nil:
			return nil, fault.New(fault.Conflict, "Enforcing job modify index 0: job already exists")
		case at != 0 && old == nil:
			return nil, fault.New(fault.Conflict, "Enforcing job modify index %d: job does not exist", at)
		case at != 0 && old.JobModifyIndex != at:
			return nil, fault.New(fault.Conflict,
				"Enforcing job modify index %d: job exists with conflicting job modify index: %d", at, old.JobModifyIndex)
		}
	}
	t.touch(j.Namespace, j.ID)
	if old != nil && SameSpec(old, j) {
		return old, nil
	}
	j.CreateIndex, j.Version, j.Status = t.index, 0, model.JobPending
	if old != nil {
		j.CreateIndex, j.Version, j.Status = old.CreateIndex, old.Version+1, old.Status
	}
	j.ModifyIndex, j.JobModifyIndex, j.SubmitTime = t.index, t.index, t.now
	t.putVersion(j)
	return j, nil
}

func (t *Tx) putVersion(j *model.Job) {
	t.putJob(j)
	t.put(tableVersions, j)
	kept := slices.DeleteFunc(slices.Collect(t.JobVersions(nil, j.Namespace, j.ID)), func(v *model.Job) bool { return v.VersionTag != nil })
	for len(kept) > keptVersions {
		t.removeVersion(kept[0])
		kept = kept[1:]
	}
}

// SameSpec reports whether two jobs ask for the same.
func SameSpec(a, b *model.Job) bool {
	return reflect.DeepEqual(specOf(a), specOf(b))
}

func specOf(j *model.Job) model.Job {
	c := *j
	c.Status, c.StatusDescription, c.Stable, c.VersionTag = "", "", false, nil
	c.Version, c.SubmitTime, c.CreateIndex, c.ModifyIndex, c.JobModifyIndex = 0, 0, 0, 0, 0
	return c
}

// DeregisterJob stops a job, or with purge removes it, its versions and its allocations at once; nodes learn of those by
// tombstones. It returns the job as it was, nil when there is none.
func (t *Tx) DeregisterJob(namespace, id string, purge bool) *model.Job {
	old := t.Job(nil, namespace, id)
	if old == nil {
		return nil
	}
	if !purge {
		c := *old
		c.Stop, c.Stable, c.VersionTag = true, false, nil
		c.Version, c.ModifyIndex, c.JobModifyIndex, c.SubmitTime = old.Version+1, t.index, t.index, t.now
		t.touch(namespace, id)
		t.putVersion(&c)
		return old
	}
	t.removeJob(old)
	for _, e := range slices.Collect(t.EvalsByJob(nil, namespace, id)) {
		if !e.Terminal() {
			c := *e
			c.Status, c.StatusDescription = model.EvalCanceled, "the job was purged"
			t.PutEval(&c)
		}
	}
	return old
}

func (t *Tx) removeJob(j *model.Job) {
	t.delete(tableJobs, j)
	t.countChild(j, nil)
	t.removeCompanions(j)
	for _, v := range slices.Collect(t.JobVersions(nil, j.Namespace, j.ID)) {
		t.removeVersion(v)
	}
	for _, a := range slices.Collect(t.AllocsByJob(nil, j.Namespace, j.ID)) {
		t.removeAlloc(a)
	}
}

// PutEval inserts or replaces an evaluation; indexes and times are set here. The store keeps e.
func (t *Tx) PutEval(e *model.Evaluation) {
	old := t.Eval(nil, e.ID)
	e.CreateIndex, e.CreateTime = t.index, t.now
	if old != nil {
		e.CreateIndex, e.CreateTime = old.CreateIndex, old.CreateTime
	}
	e.ModifyIndex, e.ModifyTime = t.index, t.now
	packed.Words(&e.Namespace, &e.Type, &e.TriggeredBy, &e.Status, &e.StatusDescription)
	e.QueuedAllocations = packed.Counts(e.QueuedAllocations)
	t.put(tableEvals, e)
	t.touch(e.Namespace, e.JobID)
}

// FinishEval is PutEval for an evaluation that a worker is done with: one that has ended meanwhile, or is gone, stays so.
func (t *Tx) FinishEval(e *model.Evaluation) {
	if old := t.Eval(nil, e.ID); old != nil && !old.Terminal() {
		t.PutEval(e)
	}
}

// Collect removes what nobody needs any more. Only what is terminal now is removed, so an outdated list does no harm.
func (t *Tx) Collect(evals, allocs []string, jobs [][2]string, tombstones []string) int {
	n := 0
	for _, id := range evals {
		if e := t.Eval(nil, id); e != nil && e.Terminal() {
			t.delete(tableEvals, e)
			n++
		}
	}
	for _, id := range allocs {
		if a := t.Alloc(nil, id); a != nil && a.Terminal() && a.ClientTerminal() {
			t.removeAlloc(a)
			n++
		}
	}
	for _, k := range jobs {
		if j := t.Job(nil, k[0], k[1]); j != nil && j.Status == model.JobDead {
			t.removeJob(j)
			n++
		}
	}
	for _, id := range tombstones {
		if d := first[Tombstone](&t.Snapshot, nil, tableTombstones, id); d != nil {
			t.delete(tableTombstones, d)
			n++
		}
	}
	return n
}

// SetSchedulerConfig replaces the configuration; with cas only if its ModifyIndex is at.
func (t *Tx) SetSchedulerConfig(c *SchedulerConfig, cas bool, at uint64) bool {
	old := t.SchedulerConfig()
	if cas && old.ModifyIndex != at {
		return false
	}
	c.CreateIndex, c.ModifyIndex = old.CreateIndex, t.index
	if c.CreateIndex == 0 {
		c.CreateIndex = t.index
	}
	t.put(tableConfig, c)
	return true
}
