package sched

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"rockpool/internal/orchestrator/model"
)

// missing is an allocation to be placed.
type missing struct {
	name       string
	previous   *model.Allocation // that it replaces; nil = none
	avoid      string            // node where the previous one failed
	reschedule bool              // it counts as an attempt of the reschedule policy
	canary     bool
	job        *model.Job // an earlier specification that it gets; nil = the job's
}

// StoppedByUser is the description of an allocation that a user stopped and that is to be replaced.
const StoppedByUser = "alloc was stopped by a user"

// slotting is a group of a batch or service job being brought to its count.
type slotting struct {
	*pass
	g        *model.TaskGroup
	counts   *Counts
	keep     []*model.Allocation // hold a slot, running or ended for good
	canaries []*model.Allocation // run beside them until somebody promotes them
	want     []missing
	later    int  // slots kept free for replacements that are not due yet
	known    bool // there is or was an allocation of the job's version
}

// counted brings a group of a batch or service job to its count.
func (p *pass) counted(g *model.TaskGroup, allocs []*model.Allocation) {
	s := &slotting{pass: p, g: g, counts: p.counts(g.Name)}
	for _, a := range p.allocs {
		s.known = s.known || current(a, p.job)
	}
	dropped := s.reconnected(allocs)
	for _, a := range allocs {
		if !dropped[a] {
			s.sort(a)
		}
	}
	s.trim()
	destructive := s.update()
	s.roll(destructive)
}

// sort decides what becomes of one allocation, whatever its specification.
func (s *slotting) sort(a *model.Allocation) {
	if a.DesiredStatus != model.DesiredRun {
		if (a.DesiredDescription == StoppedByUser || a.DesiredStatus == model.DesiredEvict) && !s.replaced(a) && a.Job.CreateIndex == s.job.CreateIndex {
			s.want = append(s.want, missing{name: a.Name, previous: a})
		}
		return
	}
	if a.ClientTerminal() && outdated(a, s.job) {
		return // of an earlier specification: the new one starts afresh
	}
	switch where := s.whereabouts(a); {
	case a.ClientStatus == model.ClientLost || !a.ClientTerminal() && where == nodeGone:
		s.lose(a)
	case !a.ClientTerminal() && (where == nodeAway || a.ClientStatus == model.ClientUnknown):
		s.away(a, where)
	case a.ClientStatus == model.ClientFailed:
		s.failed(a)
	case a.ClientStatus == model.ClientComplete && s.job.Type == model.JobTypeService:
		if !s.replaced(a) { // a service is never done
			s.want = append(s.want, missing{name: a.Name, previous: a})
		}
	case a.ClientStatus == model.ClientComplete:
		s.keep = append(s.keep, a)
	case s.unpromoted(a):
		s.canary(a)
	case a.Transition != nil && a.Transition.Migrate:
		s.end(Stop{Alloc: a, Description: whyMigrating})
		s.counts.Migrate++
		s.want = append(s.want, missing{name: a.Name, previous: a})
	case a.Transition != nil && (a.Transition.Reschedule || a.Transition.ForceReschedule):
		s.stop(a, whyRescheduled)
		s.want = append(s.want, missing{name: a.Name, previous: a, avoid: a.NodeID, reschedule: true})
	default:
		s.keep = append(s.keep, a)
	}
}

// lose replaces what went with its node.
func (s *slotting) lose(a *model.Allocation) {
	if !a.ClientTerminal() {
		s.end(Stop{Alloc: a, Description: whyLost, Lost: true})
		s.counts.Stop++
	}
	if !s.replaced(a) {
		s.want = append(s.want, missing{name: a.Name, previous: a, avoid: a.NodeID, canary: s.unpromoted(a)})
	}
}

// failed replaces what failed, when its policy allows it.
func (s *slotting) failed(a *model.Allocation) {
	asked := a.Transition != nil && a.Transition.ForceReschedule
	at, ok := reschedule(a, s.g.Reschedule, s.now)
	if a.Transition != nil && a.Transition.Reschedule {
		at = 0
	}
	m := missing{name: a.Name, previous: a, avoid: a.NodeID, reschedule: true, canary: s.unpromoted(a)}
	switch {
	case s.replaced(a):
	case asked:
		s.want = append(s.want, m)
	case !ok || s.giveUp(a):
		if !m.canary {
			s.keep = append(s.keep, a) // the slot stays as it is
		} else {
			s.canaries = append(s.canaries, a)
		}
	case at > s.now:
		if m.canary {
			s.canaries = append(s.canaries, a) // its place is taken until then
		} else {
			s.later++
		}
		s.followUp(a, at, model.TriggerFollowUp)
	default:
		s.want = append(s.want, m)
	}
}

func (p *pass) followUp(a *model.Allocation, at int64, trigger string) {
	if a.FollowupEvalID == "" || a.FollowupEvalID == p.eval.ID || trigger == model.TriggerDisconnect {
		p.out.FollowUps = append(p.out.FollowUps, FollowUp{a.ID, at, trigger})
	}
}

// trim stops what is beyond the count and returns the rest: first what a newer allocation of the same name stands for, then the highest indexes.
func (s *slotting) trim() {
	slices.SortStableFunc(s.keep, func(a, b *model.Allocation) int { return cmp.Compare(indexOf(a.Name), indexOf(b.Name)) })
	over := len(s.keep) - s.g.Count
	if over <= 0 {
		return
	}
	newest := map[string]bool{}
	for _, a := range s.keep {
		newest[a.Name] = newest[a.Name] || current(a, s.job)
	}
	spare := func(a *model.Allocation) bool { return newest[a.Name] && !current(a, s.job) }
	for i := len(s.keep) - 1; i >= 0 && over > 0; i-- {
		if a := s.keep[i]; spare(a) {
			s.stop(a, whyNotNeeded)
			s.keep = slices.Delete(s.keep, i, i+1)
			over--
		}
	}
	for over = len(s.keep) - s.g.Count; over > 0; over-- {
		last := len(s.keep) - 1
		s.stop(s.keep[last], whyNotNeeded)
		s.keep = s.keep[:last]
	}
}

// update updates in place what can be, and returns what has to be replaced.
func (s *slotting) update() (destructive []*model.Allocation) {
	for _, a := range s.keep {
		switch {
		case a.ClientTerminal() || current(a, s.job):
			s.counts.Ignore++
		case s.inPlace(a):
			s.out.Update = append(s.out.Update, a)
			s.counts.InPlaceUpdate++
		default:
			destructive = append(destructive, a)
		}
	}
	return destructive
}

func (p *pass) inPlace(a *model.Allocation) bool {
	old := a.Job.Group(a.TaskGroup)
	return old != nil && InPlace(a.Job, old, p.job, p.job.Group(a.TaskGroup))
}

// fill adds names that are free, lowest first, until there are so many to be placed beside those that are replaced; what is beyond is left out.
func (s *slotting) fill(total int, replaced []missing) {
	if len(s.want) > total {
		s.want = s.want[:max(total, 0)]
		return
	}
	taken := make(map[string]bool, len(s.keep)+total)
	for _, a := range s.keep {
		taken[a.Name] = true
	}
	for _, m := range slices.Concat(s.want, replaced) {
		taken[m.name] = true
	}
	for i := 0; len(s.want) < total; i++ {
		if name := allocName(s.job.ID, s.g.Name, i); !taken[name] {
			s.want = append(s.want, missing{name: name})
		}
	}
}

func allocName(job, group string, i int) string {
	return job + "." + group + "[" + strconv.Itoa(i) + "]"
}

func indexOf(name string) int {
	i := strings.LastIndexByte(name, '[')
	n, err := strconv.Atoi(strings.TrimSuffix(name[i+1:], "]"))
	if err != nil {
		return 0
	}
	return n
}

// current reports whether an allocation runs a job's specification as it is now.
func current(a *model.Allocation, j *model.Job) bool { return a.Job.JobModifyIndex == j.JobModifyIndex }

func outdated(a *model.Allocation, j *model.Job) bool {
	return a.Job.Version < j.Version || a.Job.CreateIndex < j.CreateIndex
}

func (p *pass) replaced(a *model.Allocation) bool {
	return a.NextAllocation != "" || p.next[a.ID] != nil
}

// InPlace reports whether a running group can go on under a new specification: everything that its processes were started with
// is the same. The count, policies, constraints and all of the other groups may differ.
func InPlace(oldJob *model.Job, old *model.TaskGroup, newJob *model.Job, g *model.TaskGroup) bool {
	if len(old.Tasks) != len(g.Tasks) || !reflect.DeepEqual(old.Networks, g.Networks) || old.EphemeralDisk != g.EphemeralDisk ||
		!reflect.DeepEqual(old.Volumes, g.Volumes) {
		return false
	}
	for _, n := range g.Tasks {
		o := old.Task(n.Name)
		if o == nil || o.Driver != n.Driver || o.User != n.User || o.DispatchPayload != n.DispatchPayload ||
			!reflect.DeepEqual(o.Config, n.Config) || !maps.Equal(o.Env, n.Env) || !reflect.DeepEqual(o.Resources, n.Resources) ||
			!reflect.DeepEqual(o.Lifecycle, n.Lifecycle) || !slices.Equal(o.VolumeMounts, n.VolumeMounts) || !slices.Equal(o.Templates, n.Templates) ||
			!maps.Equal(taskMeta(oldJob, old, o), taskMeta(newJob, g, n)) {
			return false
		}
	}
	return true
}

// taskMeta is what a task sees of meta in its environment.
func taskMeta(j *model.Job, g *model.TaskGroup, t *model.Task) map[string]string {
	m := map[string]string{}
	maps.Copy(m, j.Meta)
	maps.Copy(m, g.Meta)
	maps.Copy(m, t.Meta)
	return m
}
