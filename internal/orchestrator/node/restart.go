package node

import (
	"fmt"
	"time"

	"rockpool/internal/orchestrator/model"
)

// restarts counts the restarts of one task within its policy's interval. It is plain data, kept with the task's record.
type restarts struct {
	Count int
	Since time.Time // when the interval began: the first end of a task in it
}

// decision is what becomes of a task whose process has ended, and why.
type decision struct {
	restart bool
	delay   time.Duration
	reason  string
}

// next counts one end of the task at now and decides by the policy.
func (r *restarts) next(p model.RestartPolicy, now time.Time) decision {
	if p.Attempts <= 0 {
		return decision{reason: "Policy allows no restarts"}
	}
	if r.Count == 0 || now.Sub(r.Since) > p.Interval {
		*r = restarts{Since: now}
	}
	r.Count++
	switch {
	case r.Count <= p.Attempts:
		return decision{restart: true, delay: p.Delay, reason: "Restart within policy"}
	case p.Mode == model.RestartModeDelay:
		return decision{restart: true, delay: max(p.Delay, r.Since.Add(p.Interval).Sub(now)),
			reason: fmt.Sprintf("Exceeded allowed attempts %d in interval %v, applying a delay", p.Attempts, p.Interval)}
	}
	return decision{reason: fmt.Sprintf("Exceeded allowed attempts %d in interval %v and mode is %q",
		p.Attempts, p.Interval, model.RestartModeFail)}
}

// endsWithSuccess reports whether a task of that type of job is done when its process returned 0. Tasks of services are
// meant to run for ever: their end counts as a failure.
func endsWithSuccess(jobType string) bool {
	return jobType == model.JobTypeBatch || jobType == model.JobTypeSysbatch
}
