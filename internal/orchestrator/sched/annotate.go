package sched

import "rockpool/internal/orchestrator/model"

// Counts is what a decision means for one group, by what becomes of its allocations. The names are those of Nomad's DesiredTGUpdates.
type Counts struct {
	Ignore, Place, Migrate, Stop, InPlaceUpdate, DestructiveUpdate, Canary, Preemptions int
}

// Annotate says what a decision would do, by group: a dry run shows it. The groups that could not reach their count are in Decision.Failed.
func Annotate(d *Decision) map[string]Counts {
	out := make(map[string]Counts, len(d.Counts))
	for name, c := range d.Counts {
		out[name] = *c
	}
	return out
}

// Proposed is s as it would be with the job j registered: what a dry run decides on.
func Proposed(s State, j *model.Job) State { return proposed{s, j} }

type proposed struct {
	State
	job *model.Job
}

func (p proposed) Job(namespace, id string) *model.Job {
	if namespace == p.job.Namespace && id == p.job.ID {
		return p.job
	}
	return p.State.Job(namespace, id)
}
