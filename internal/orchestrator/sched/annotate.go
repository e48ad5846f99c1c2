package sched

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
