package nomad

import (
	"slices"

	"rockpool/internal/runner/pool"
)

// failing are the types of task events that say why a task does not run.
var failing = []string{"Driver Failure", "Setup Failure", "Failed Artifact Download", "Failed Validation", "Task hook failed", "Sibling Task Failed"}

// reasonOf is why a runner is not ready, in the cluster's words; "" = it said nothing.
func reasonOf(a *allocation, s pool.State) string {
	if s == pool.Ready {
		return ""
	}
	if task := a.TaskStates[mainTask]; task != nil {
		last := ""
		for _, e := range slices.Backward(task.Events) {
			switch {
			case e == nil || e.DisplayMessage == "":
			case slices.Contains(failing, e.Type):
				return e.DisplayMessage
			case last == "":
				last = e.DisplayMessage
			}
		}
		if last != "" {
			return last
		}
	}
	if s == pool.Ended {
		return a.ClientDescription
	}
	return ""
}

// refused takes in whether a runner could be placed, and reports whether that is news.
func (v *view) refused(e *evaluation) bool {
	t := v.runners[e.JobID]
	if t == nil || t.State != pool.Pending || t.Place.AllocID != "" {
		return false
	}
	why, noRoom := t.Reason, t.NoRoom
	switch r := e.FailedTGAllocs[mainGroup]; {
	case r != nil:
		why, noRoom = "it cannot be placed: "+r.String(), true
	case e.Status == "blocked":
		noRoom = true // the one before said why
	case e.Status == "complete":
		why, noRoom = "", false
	}
	if why == t.Reason && noRoom == t.NoRoom {
		return false
	}
	t.Reason, t.NoRoom = why, noRoom
	return true
}
