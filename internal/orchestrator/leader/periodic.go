package leader

import (
	"context"
	"fmt"
	"time"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/cron"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// periodic starts jobs by the clock. When a job was started last is in the state: what became due while nobody led is made up for once, however often it was.
type periodic struct {
	schedules map[[2]string]*planned
	log       logging.Logger
}

// planned is a job's schedule with what it was worked out of.
type planned struct {
	spec     uint64 // JobModifyIndex
	launched int64
	due      time.Time // zero = never
	schedule *cron.Schedule
	err      error
	held     string // why it was not started when it was due; it is once nothing stands against it
}

func (t *term) dispatchPeriodic(ctx context.Context) error {
	p := &periodic{schedules: map[[2]string]*planned{}, log: t.cfg.Logger}
	for {
		watch := state.NewWatch()
		entries, next := p.steps(t.cfg.Store.Snapshot(), watch, time.Now())
		if err := t.applyAll(ctx, "a periodic job's start", entries); err != nil {
			next = time.Now().Add(time.Second).UnixNano()
		} else if len(entries) > 0 {
			continue
		}
		if !wait(ctx, watch, next) {
			return nil
		}
	}
}

// steps are the starts that are due now, and when the next one is.
func (p *periodic) steps(snap *state.Snapshot, w state.Watch, now time.Time) (entries []any, next int64) {
	seen := map[[2]string]bool{}
	for j := range snap.PeriodicJobs(w) {
		if j.Stop || !j.Periodic.Enabled {
			continue
		}
		k := [2]string{j.Namespace, j.ID}
		seen[k] = true
		s := p.plan(k, j, snap.Launch(w, j.Namespace, j.ID))
		switch {
		case s.err != nil || s.due.IsZero():
		case s.due.After(now):
			next = soonest(next, s.due.UnixNano())
		case p.holds(s, j, Misplaced(snap, w, j)):
		default:
			at := s.due
			if later := s.schedule.Next(at); !later.IsZero() && !later.After(now) {
				at = now.Truncate(time.Second) // more than one was missed: once is enough
			}
			entries = append(entries, LaunchPeriodic(j, at, false))
		}
	}
	for k := range p.schedules {
		if !seen[k] {
			delete(p.schedules, k)
		}
	}
	return entries, next
}

// holds tells of a job, once, that it is not started, and reports whether there is a reason for that.
func (p *periodic) holds(s *planned, j *model.Job, reason string) bool {
	if reason != "" && reason != s.held {
		p.log.WithFields(logging.Fields{"namespace": j.Namespace, "job_id": j.ID, "reason": reason}).Warn("a periodic job is due and not allowed where it is, it is not started")
	}
	s.held = reason
	return reason != ""
}

func (p *periodic) plan(k [2]string, j *model.Job, l *state.Launch) *planned {
	from := j.SubmitTime
	if l != nil {
		from = max(from, l.Time)
	}
	s := p.schedules[k]
	if s == nil || s.spec != j.JobModifyIndex {
		s = &planned{spec: j.JobModifyIndex}
		s.schedule, s.err = cron.Parse(j.Periodic)
		p.schedules[k] = s
	}
	if s.err == nil && (s.launched != from || s.due.IsZero()) {
		s.launched, s.due = from, s.schedule.Next(time.Unix(0, from))
	}
	return s
}

// NextLaunch is when a periodic job is due next after t; zero = never.
func NextLaunch(p *model.Periodic, t time.Time) time.Time {
	s, err := cron.Parse(p)
	if err != nil || !p.Enabled {
		return time.Time{}
	}
	return s.Next(t)
}

// LaunchPeriodic is the entry that starts a periodic job for an occasion. The child's id is what Nomad would give it.
func LaunchPeriodic(j *model.Job, at time.Time, force bool) *command.PeriodicLaunch {
	id := fmt.Sprintf("%s/periodic-%d", j.ID, at.Unix())
	e := JobEval(j, model.TriggerPeriodic)
	e.JobID = id
	return &command.PeriodicLaunch{
		Now: time.Now().UnixNano(), Child: state.Child{Namespace: j.Namespace, ParentID: j.ID, ID: id}, Time: at.UnixNano(), Force: force, Eval: e,
	}
}
