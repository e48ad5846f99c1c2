package sched

import (
	"slices"

	"rockpool/internal/orchestrator/model"
)

// Descriptions of deployments, in Nomad's words: its command line shows them.
const (
	deploymentRunning      = "Deployment is running"
	deploymentNeedsPromote = "Deployment is running but requires manual promotion"
	deploymentAutoPromote  = "Deployment is running pending automatic promotion"
	deploymentNewerJob     = "Cancelled due to newer version of job"
	deploymentStoppedJob   = "Cancelled because job is stopped"
)

// findDeployment finds the one of the job's version, and cancels one that a newer version or the job's end has overtaken.
func (p *pass) findDeployment() {
	d := p.state.LatestDeployment(p.eval.Namespace, p.eval.JobID)
	if d == nil {
		return
	}
	why := ""
	switch {
	case p.job == nil || p.job.Stop:
		why = deploymentStoppedJob
	case d.JobVersion != p.job.Version || d.JobCreateIndex != p.job.CreateIndex:
		why = deploymentNewerJob
	default:
		p.rollout = d
		p.out.DeploymentID = d.ID
		return
	}
	if d.Active() {
		p.out.DeploymentUpdates = append(p.out.DeploymentUpdates, DeploymentUpdate{d.ID, model.DeploymentCancelled, why})
	}
}

// moving reports whether a deployment may go on.
func moving(d *model.Deployment) bool {
	return d.Status == model.DeploymentRunning || d.Status == model.DeploymentInitializing
}

// unpromoted reports whether an allocation is a canary about which nobody has decided, or never will.
func (p *pass) unpromoted(a *model.Allocation) bool {
	if a.DeploymentStatus == nil || !a.DeploymentStatus.Canary {
		return false
	}
	d := p.rollout
	if d == nil || d.ID != a.DeploymentID {
		d = p.state.Deployment(a.DeploymentID)
	}
	if d == nil {
		return false
	}
	g := d.TaskGroups[a.TaskGroup]
	return g != nil && !g.Promoted
}

// canary keeps a canary while its deployment goes on.
func (s *slotting) canary(a *model.Allocation) {
	if d := s.rollout; d == nil || d.ID != a.DeploymentID || !d.Active() {
		s.stop(a, whyCanary)
		return
	}
	if a.Transition != nil && (a.Transition.Migrate || a.Transition.Reschedule || a.Transition.ForceReschedule) {
		s.end(Stop{Alloc: a, Description: whyMigrating})
		s.counts.Migrate++
		s.want = append(s.want, missing{name: a.Name, previous: a, canary: true})
		return
	}
	s.canaries = append(s.canaries, a)
	s.counts.Ignore++
}

// giveUp reports whether a failed allocation stays as it is because the deployment that it never was healthy in has failed.
func (s *slotting) giveUp(a *model.Allocation) bool {
	d := s.rollout
	return d != nil && a.DeploymentID == d.ID && !d.Active() && d.Status != model.DeploymentSuccessful && !healthy(a)
}

func healthy(a *model.Allocation) bool {
	return a.DeploymentStatus != nil && a.DeploymentStatus.Healthy != nil && *a.DeploymentStatus.Healthy
}

func unhealthy(a *model.Allocation) bool {
	return a.DeploymentStatus != nil && a.DeploymentStatus.Healthy != nil && !*a.DeploymentStatus.Healthy
}

// roll replaces what is outdated as fast as the group's update policy allows, and places what is missing.
func (s *slotting) roll(destructive []*model.Allocation) {
	d, state := s.join(destructive)
	canarying := state != nil && state.DesiredCanaries > 0 && !state.Promoted
	frozen := d != nil && !moving(d) && d.Status != model.DeploymentSuccessful
	if !canarying { // canaries that are to be replaced are canaries no more
		for i := range s.want {
			s.want[i].canary = false
		}
	}
	canaryWants := s.takeCanaries()

	limit := len(destructive)
	if d != nil && d.Status != model.DeploymentSuccessful && state != nil {
		limit = s.pace(d)
	}
	if canarying || frozen {
		limit = 0
	}
	gone := map[*model.Allocation]bool{}
	var replaced []missing
	for _, a := range destructive[:min(limit, len(destructive))] {
		s.end(Stop{Alloc: a, Description: whyUpdating})
		s.counts.DestructiveUpdate++
		gone[a] = true
		replaced = append(replaced, missing{name: a.Name, previous: a})
	}
	s.counts.Ignore += len(destructive) - len(gone)
	s.keep = slices.DeleteFunc(s.keep, func(a *model.Allocation) bool { return gone[a] })
	room := s.g.Count - len(s.keep) - s.later - len(replaced)
	if d != nil && frozen && d.Active() { // paused: what was there is kept up, nothing is added
		room = min(room, len(s.want))
		s.out.Queued[s.g.Name] += max(s.g.Count-len(s.keep)-s.later-len(replaced)-room, 0)
	}
	s.fill(room, replaced)
	if canarying || frozen {
		s.keepVersion(destructive)
	}
	s.want = append(replaced, s.want...)
	if canarying && d.Active() && !frozen {
		canaryWants = s.newCanaries(canaryWants, state, destructive)
		s.want = append(s.want, canaryWants...)
	}
	s.place(s.g, s.want, d)
}

// takeCanaries takes those out of what is wanted that are to be canaries.
func (s *slotting) takeCanaries() (canaries []missing) {
	s.want = slices.DeleteFunc(s.want, func(m missing) bool {
		if m.canary {
			canaries = append(canaries, m)
		}
		return m.canary
	})
	return canaries
}

// newCanaries adds to those that replace others until there are enough. They are named after the first of those that they will replace.
func (s *slotting) newCanaries(want []missing, g *model.DeploymentGroup, destructive []*model.Allocation) []missing {
	taken := map[string]bool{}
	for _, a := range s.canaries {
		taken[a.Name] = true
	}
	for _, m := range want {
		taken[m.name] = true
	}
	open := g.DesiredCanaries - len(s.canaries) - len(want)
	if open < 0 {
		want = want[:max(len(want)+open, 0)]
	}
	for _, a := range destructive {
		if open > 0 && !taken[a.Name] {
			want = append(want, missing{name: a.Name, canary: true})
			taken[a.Name] = true
			open--
		}
	}
	for i := 0; open > 0; i++ {
		if name := allocName(s.job.ID, s.g.Name, i); !taken[name] {
			want = append(want, missing{name: name, canary: true})
			open--
		}
	}
	return want
}

// keptVersions is how far back the specification of a job is sure to be in the state.
const keptVersions = 4

// keepVersion has what replaces an outdated allocation run what that one ran, and what is merely missing too: a version about which nobody has decided yet,
// or that has failed, does not spread.
func (s *slotting) keepVersion(destructive []*model.Allocation) {
	old := func(a *model.Allocation) *model.Job {
		if a == nil || current(a, s.job) || a.Job.CreateIndex != s.job.CreateIndex || a.Job.Version+keptVersions < s.job.Version || s.inPlace(a) {
			return nil
		}
		return a.Job
	}
	for i := range s.want {
		m := &s.want[i]
		switch {
		case m.previous != nil:
			m.job = old(m.previous)
		case len(destructive) > 0:
			m.job = old(destructive[0])
		}
	}
}

// pace is how many more allocations may be out of service for the deployment: those that it placed must be healthy first.
func (s *slotting) pace(d *model.Deployment) int {
	limit := s.g.Update.MaxParallel
	for _, a := range s.keep {
		if a.DeploymentID != d.ID {
			continue
		}
		if unhealthy(a) {
			return 0
		}
		if !healthy(a) {
			limit--
		}
	}
	for _, m := range s.want { // being replaced: not healthy either
		if m.previous != nil && m.previous.DeploymentID == d.ID {
			limit--
		}
	}
	return max(limit-s.later, 0)
}

// join finds the group's part in the deployment of the job's version, and begins one where there is none and something is to be rolled out.
func (s *slotting) join(destructive []*model.Allocation) (*model.Deployment, *model.DeploymentGroup) {
	if s.job.Type != model.JobTypeService || s.g.Update == nil || s.g.Update.MaxParallel <= 0 {
		return nil, nil
	}
	var updated []*model.Allocation
	for _, a := range s.out.Update {
		if a.TaskGroup == s.g.Name {
			updated = append(updated, a)
		}
	}
	if d := s.rollout; d != nil && s.out.Deployment == nil {
		if g := d.TaskGroups[s.g.Name]; g != nil {
			if d.Active() {
				s.out.Join = append(s.out.Join, updated...)
			}
			return d, g
		}
		return nil, nil
	}
	if s.g.Count == 0 || s.known && len(destructive)+len(updated) == 0 {
		return nil, nil
	}
	if s.rollout == nil {
		id := uuidOf(s.digest("deployment"))
		s.rollout = &model.Deployment{
			ID: id, Namespace: s.job.Namespace, JobID: s.job.ID, JobVersion: s.job.Version, JobModifyIndex: s.job.ModifyIndex,
			JobSpecModifyIndex: s.job.JobModifyIndex, JobCreateIndex: s.job.CreateIndex, EvalPriority: s.eval.Priority,
			TaskGroups: map[string]*model.DeploymentGroup{}, Status: model.DeploymentRunning,
		}
		s.out.Deployment, s.out.DeploymentID = s.rollout, id
	}
	u := s.g.Update
	g := &model.DeploymentGroup{
		AutoRevert: u.AutoRevert, AutoPromote: u.AutoPromote, ProgressDeadline: u.ProgressDeadline, DesiredTotal: s.g.Count,
	}
	if u.Canary > 0 && len(destructive) > 0 {
		g.DesiredCanaries = u.Canary
	}
	s.rollout.TaskGroups[s.g.Name] = g
	s.out.Join = append(s.out.Join, updated...)
	return s.rollout, g
}

// describe says of a new deployment what it waits for.
func (p *pass) describe() {
	d := p.out.Deployment
	if d == nil {
		return
	}
	d.StatusDescription = deploymentRunning
	if d.NeedsPromotion() {
		d.StatusDescription = deploymentAutoPromote
		for _, g := range d.TaskGroups {
			if g.DesiredCanaries > 0 && !g.AutoPromote {
				d.StatusDescription = deploymentNeedsPromote
			}
		}
	}
}
