package state

import "rockpool/internal/orchestrator/model"

// The ids of a job, its evaluations and its allocations are in each of them and in the keys of all. Here they become one in memory: a job that has ended is for the most
// part such texts, and what is in memory is walked through in each collection of garbage.

func shareJob(_ *txn, v, before any, key string) {
	j := v.(*model.Job)
	named := j.Name == j.ID
	if before != nil {
		j.ID = before.(*model.Job).ID
	} else {
		j.ID = key[len(j.Namespace)+1 : len(key)-1]
	}
	if named {
		j.Name = j.ID
	}
}

func shareEval(t *txn, v, before any, key string) {
	e := v.(*model.Evaluation)
	if before != nil {
		b := before.(*model.Evaluation)
		e.ID = b.ID
		same(&e.JobID, b.JobID)
		return
	}
	e.ID = key[:len(key)-1]
	if j := t.first(tableNo(tableJobs), []string{e.Namespace, e.JobID}); j != nil {
		e.JobID = j.(*model.Job).ID
	}
}

func shareAlloc(t *txn, v, before any, key string) {
	a := v.(*model.Allocation)
	if before != nil {
		a.ID = before.(*model.Allocation).ID // the others were copied with the rest of it
		return
	}
	a.ID = key[:len(key)-1]
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
	a.EvalID = t.evalID
}

// same makes a text the one that equals it.
func same(text *string, other string) {
	if *text == other {
		*text = other
	}
}
