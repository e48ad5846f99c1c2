package state

import "rockpool/internal/orchestrator/model"

// The ids of a job, its evaluations and its allocations are in each of them and in the keys of all. Here they become one in memory: a job that has ended is for the most
// part such texts, and what is in memory is walked through in each collection of garbage.

func shareJob(_ *txn, j, before *model.Job, key string) {
	named := j.Name == j.ID
	if before != nil {
		same(&j.ID, before.ID)
	} else {
		same(&j.ID, key[len(j.Namespace)+1:len(key)-1])
	}
	if named {
		j.Name = j.ID
	}
}

// shareVersion is for a version that was read: where it was registered it is the job that was put just before.
func shareVersion(t *txn, j, _ *model.Job, _ string) {
	of, _ := t.first(tableNo(tableJobs), []string{j.Namespace, j.ID}).(*model.Job)
	if of == nil || of == j {
		return
	}
	named := j.Name == j.ID
	same(&j.ID, of.ID)
	if named {
		j.Name = j.ID
	}
}

func shareEval(t *txn, e, before *model.Evaluation, key string) {
	if before != nil {
		same(&e.ID, before.ID)
		same(&e.JobID, before.JobID)
		return
	}
	same(&e.ID, key[:len(key)-1])
	if j, _ := t.first(tableNo(tableJobs), []string{e.Namespace, e.JobID}).(*model.Job); j != nil {
		same(&e.JobID, j.ID)
	}
}

func shareAlloc(t *txn, a, before *model.Allocation, key string) {
	if before != nil {
		same(&a.ID, before.ID) // mostly it is a copy, which has all other texts of it
		return
	}
	same(&a.ID, key[:len(key)-1])
	if a.Job != nil {
		same(&a.Namespace, a.Job.Namespace)
		same(&a.JobID, a.Job.ID)
	}
	if a.EvalID != t.evalID { // those of one plan come one after the other
		e, _ := t.first(tableNo(tableEvals), []string{a.EvalID}).(*model.Evaluation)
		if e == nil {
			return
		}
		t.evalID = e.ID
	}
	same(&a.EvalID, t.evalID)
}

// shareTombstone lets go of the allocation's keys.
func shareTombstone(_ *txn, d, _ *Tombstone, key string) {
	same(&d.AllocID, key[:len(key)-1])
}

// same makes a text the one that equals it.
func same(text *string, other string) {
	if *text == other {
		*text = other
	}
}
