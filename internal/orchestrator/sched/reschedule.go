package sched

import (
	"time"

	"rockpool/internal/orchestrator/model"
)

// reschedule says whether and when a failed allocation is replaced.
func reschedule(a *model.Allocation, pol model.ReschedulePolicy, now int64) (at int64, ok bool) {
	if !pol.Unlimited {
		attempts := 0
		for _, r := range a.Reschedules {
			if now-r.Time < int64(pol.Interval) {
				attempts++
			}
		}
		if attempts >= pol.Attempts {
			return 0, false
		}
	}
	return failedAt(a) + int64(delay(a, pol)), true
}

// MayReschedule reports whether a policy ever replaces anything.
func MayReschedule(pol model.ReschedulePolicy) bool { return pol.Unlimited || pol.Attempts > 0 }

func failedAt(a *model.Allocation) int64 {
	at := int64(0)
	for _, s := range a.TaskStates {
		if s != nil {
			at = max(at, s.FinishedAt)
		}
	}
	if at == 0 {
		return a.ModifyTime
	}
	return at
}

// delay follows from those of the replacements before. An allocation that ran for longer than the longest delay starts over.
func delay(a *model.Allocation, pol model.ReschedulePolicy) time.Duration {
	n := len(a.Reschedules)
	if n == 0 || pol.MaxDelay > 0 && failedAt(a)-a.Reschedules[n-1].Time > int64(pol.MaxDelay) {
		return pol.Delay
	}
	last := time.Duration(a.Reschedules[n-1].Delay)
	d := pol.Delay
	switch pol.DelayFunction {
	case "exponential":
		d = max(2*last, pol.Delay)
	case "fibonacci":
		d = max(last, pol.Delay)
		if n > 1 {
			d = max(last+time.Duration(a.Reschedules[n-2].Delay), pol.Delay)
		}
	}
	if pol.MaxDelay > 0 {
		d = min(d, pol.MaxDelay)
	}
	return min(d, longestDelay)
}

const (
	longestDelay    = 24 * 365 * time.Hour // keeps doubling from overflowing
	keptReschedules = 5                    // of a policy without a limit
)

// track is the history that the replacement of a failed allocation carries.
func track(a *model.Allocation, pol model.ReschedulePolicy, now int64) []model.Reschedule {
	kept := a.Reschedules
	if most := max(keptReschedules, pol.Attempts) - 1; len(kept) > most {
		kept = kept[len(kept)-most:]
	}
	return append(kept[:len(kept):len(kept)], model.Reschedule{Time: now, PrevAlloc: a.ID, PrevNode: a.NodeID, Delay: int64(delay(a, pol))})
}
