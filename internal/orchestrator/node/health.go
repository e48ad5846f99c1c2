package node

import (
	"time"

	"rockpool/internal/orchestrator/model"
)

// healthTracker finds out whether a new allocation of a service does its work: once, for a deployment or for whoever waits until it replaces another.
// It is plain data; judge takes the time.
type healthTracker struct {
	checks   bool // the results of checks count, not only the tasks' states
	least    time.Duration
	deadline time.Duration
	began    time.Time // zero until it is first asked
	well     time.Time // since when all is well; zero = it is not
}

// newHealthTracker returns nil where nobody waits for the allocation's health, or it is known, or an operator tells it.
func newHealthTracker(a *model.Allocation) *healthTracker {
	g := a.Job.Group(a.TaskGroup)
	if g == nil || a.Job.Type != model.JobTypeService || a.DeploymentStatus != nil && a.DeploymentStatus.Healthy != nil {
		return nil
	}
	var p model.MigratePolicy
	switch {
	case a.DeploymentID != "" && g.Update != nil:
		p = model.MigratePolicy{HealthCheck: g.Update.HealthCheck, MinHealthyTime: g.Update.MinHealthyTime, HealthyDeadline: g.Update.HealthyDeadline}
	case a.DeploymentID != "" || a.PreviousAllocation != "":
		if p = model.DefaultMigrate(); g.Migrate != nil {
			p = *g.Migrate
		}
	default:
		return nil
	}
	if p.HealthCheck == model.HealthManual {
		return nil
	}
	return &healthTracker{checks: p.HealthCheck != model.HealthTaskStates, least: p.MinHealthyTime, deadline: p.HealthyDeadline}
}

// judge decides for good, or says when to ask again; a zero time is when something has changed.
func (h *healthTracker) judge(now time.Time, parts map[string]part, checksPass bool) (healthy *bool, again time.Time) {
	if h.began.IsZero() {
		h.began = now
	}
	well := checksPass || !h.checks
	for _, p := range parts {
		dead := p.state.State == model.TaskDead
		switch {
		case dead && p.state.Failed, dead && (p.phase == phaseMain || p.phase.sidecar()):
			return new(false), time.Time{}
		case p.phase == phaseMain, p.phase.sidecar():
			well = well && p.state.State == model.TaskRunning
			// One that was started again has been well since then only.
			if at := time.Unix(0, max(p.state.StartedAt, p.state.LastRestart)); at.After(h.well) && !h.well.IsZero() {
				h.well = at
			}
		case p.phase == phasePrestart:
			well = well && dead
		}
	}
	late := h.began.Add(h.deadline)
	if h.deadline > 0 && !now.Before(late) {
		return new(false), time.Time{}
	}
	if !well {
		h.well = time.Time{}
		if h.deadline > 0 {
			again = late
		}
		return nil, again
	}
	if h.well.IsZero() {
		h.well = now
	}
	if !now.Before(h.well.Add(h.least)) {
		return new(true), time.Time{}
	}
	again = h.well.Add(h.least)
	if h.deadline > 0 && late.Before(again) {
		again = late
	}
	return nil, again
}
