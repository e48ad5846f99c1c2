package leader

import (
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/sched"
	"rockpool/internal/orchestrator/state"
)

// DryRun is what an evaluation would come to on a state, without doing it.
func DryRun(snap *state.Snapshot, e *model.Evaluation, now int64) *sched.Decision {
	return sched.Schedule(view{snap}, e, now)
}
