package sched

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"rockpool/internal/orchestrator/model"
)

// missing is an allocation to be placed.
type missing struct {
	name     string
	previous *model.Allocation // that it replaces; nil = none
	avoid    string            // node where the previous one failed
}

// counted brings a group of a batch or service job to its count.
func (p *pass) counted(g *model.TaskGroup) {
	var keep []*model.Allocation // hold a slot
	var want []missing
	later := 0 // slots kept free for a replacement that is not due yet
	for _, a := range p.allocs {
		if a.TaskGroup != g.Name || a.DesiredStatus != model.DesiredRun {
			if a.TaskGroup == g.Name && a.NextAllocation == "" && a.DesiredDescription == StoppedByUser && !replaced(p.allocs, a) {
				want = append(want, missing{a.Name, a, ""})
			}
			continue
		}
		if a.ClientTerminal() && outdated(a, p.job) {
			continue // of an earlier specification: the new one starts afresh
		}
		switch {
		case a.ClientStatus == model.ClientLost || !a.ClientTerminal() && p.lost(a):
			if !a.ClientTerminal() {
				p.out.Stop = append(p.out.Stop, Stop{Alloc: a, Description: "alloc is lost since its node is down", Lost: true})
			}
			if !replaced(p.allocs, a) {
				want = append(want, missing{a.Name, a, a.NodeID})
			}
		case a.ClientStatus == model.ClientFailed:
			switch at, ok := p.reschedule(a, g); {
			case replaced(p.allocs, a):
			case !ok:
				keep = append(keep, a) // it used up its attempts: the slot stays as it is
			case at > p.now:
				later++
				if a.FollowupEvalID == "" || a.FollowupEvalID == p.eval.ID {
					p.out.FollowUps = append(p.out.FollowUps, FollowUp{a.ID, at})
				}
			default:
				want = append(want, missing{a.Name, a, a.NodeID})
			}
		case a.ClientStatus == model.ClientComplete && p.job.Type == model.JobTypeService:
			// A service is never done.
		default:
			keep = append(keep, a)
		}
	}
	keep = p.trim(g, keep)
	for _, a := range keep {
		if a.ClientTerminal() || a.Job.JobModifyIndex == p.job.JobModifyIndex {
			continue
		}
		if old := a.Job.Group(g.Name); old != nil && InPlace(a.Job, old, p.job, g) {
			p.out.Update = append(p.out.Update, a)
		} else {
			p.stop(a, "alloc is being updated due to job update")
			want = append(want, missing{a.Name, a, ""})
		}
	}
	total := len(keep) + later
	for _, m := range want {
		if m.previous != nil && slices.Contains(keep, m.previous) {
			total-- // its slot was counted with keep
		}
	}
	if room := g.Count - total; len(want) > room {
		want = want[:max(room, 0)]
	} else {
		taken := map[string]bool{}
		for _, a := range keep {
			taken[a.Name] = true
		}
		for _, m := range want {
			taken[m.name] = true
		}
		for i := 0; len(want) < room; i++ {
			if name := allocName(p.job.ID, g.Name, i); !taken[name] {
				want = append(want, missing{name: name})
			}
		}
	}
	p.place(g, want)
}

// StoppedByUser is the description of an allocation that a user stopped and that is to be replaced.
const StoppedByUser = "alloc was stopped by a user"

// trim stops what is beyond the count, the highest indexes first, and returns the rest.
func (p *pass) trim(g *model.TaskGroup, keep []*model.Allocation) []*model.Allocation {
	if len(keep) <= g.Count {
		return keep
	}
	slices.SortStableFunc(keep, func(a, b *model.Allocation) int { return cmp.Compare(indexOf(a.Name), indexOf(b.Name)) })
	for _, a := range keep[g.Count:] {
		p.stop(a, "alloc not needed due to job update")
	}
	return keep[:g.Count]
}

func allocName(job, group string, i int) string { return fmt.Sprintf("%s.%s[%d]", job, group, i) }

func indexOf(name string) int {
	i := strings.LastIndexByte(name, '[')
	n, err := strconv.Atoi(strings.TrimSuffix(name[i+1:], "]"))
	if err != nil {
		return 0
	}
	return n
}

func outdated(a *model.Allocation, j *model.Job) bool {
	return a.Job.Version < j.Version || a.Job.CreateIndex < j.CreateIndex
}

func replaced(allocs []*model.Allocation, a *model.Allocation) bool {
	return a.NextAllocation != "" || slices.ContainsFunc(allocs, func(b *model.Allocation) bool { return b.PreviousAllocation == a.ID })
}

func (p *pass) lost(a *model.Allocation) bool {
	n := p.state.Node(a.NodeID)
	return n == nil || n.Status == model.NodeDown
}

// reschedule says whether and when a failed allocation is replaced.
func (p *pass) reschedule(a *model.Allocation, g *model.TaskGroup) (at int64, ok bool) {
	chain := []*model.Allocation{}
	for b := a; b != nil; {
		i := slices.IndexFunc(p.allocs, func(c *model.Allocation) bool { return c.ID == b.PreviousAllocation })
		if i < 0 {
			break
		}
		chain = append(chain, b)
		b = p.allocs[i]
	}
	pol := g.Reschedule
	attempts := 0 // replacements within the interval
	for _, b := range chain {
		if pol.Unlimited || p.now-b.CreateTime < int64(pol.Interval) {
			attempts++
		}
	}
	if !pol.Unlimited && attempts >= pol.Attempts {
		return 0, false
	}
	return failedAt(a) + int64(delay(pol, attempts)), true
}

// MayReschedule reports whether a policy ever replaces anything.
func MayReschedule(pol model.ReschedulePolicy) bool { return pol.Unlimited || pol.Attempts > 0 }

func failedAt(a *model.Allocation) int64 {
	at := int64(0)
	for _, s := range a.TaskStates {
		at = max(at, s.FinishedAt)
	}
	if at == 0 {
		return a.ModifyTime
	}
	return at
}

func delay(pol model.ReschedulePolicy, attempts int) time.Duration {
	d, prev := pol.Delay, time.Duration(0)
	for range min(attempts, 64) {
		switch pol.DelayFunction {
		case "exponential":
			d *= 2
		case "fibonacci":
			d, prev = d+prev, d
			if prev == 0 {
				prev = d
			}
		}
		if pol.MaxDelay > 0 && d > pol.MaxDelay {
			return pol.MaxDelay
		}
	}
	return d
}

// InPlace reports whether a running group can go on under a new specification: everything that its processes were started with
// is the same. The count, policies, constraints and all of the other groups may differ.
func InPlace(oldJob *model.Job, old *model.TaskGroup, newJob *model.Job, g *model.TaskGroup) bool {
	if len(old.Tasks) != len(g.Tasks) || !reflect.DeepEqual(old.Networks, g.Networks) || old.EphemeralDisk != g.EphemeralDisk {
		return false
	}
	for _, n := range g.Tasks {
		o := old.Task(n.Name)
		if o == nil || o.Driver != n.Driver || o.User != n.User ||
			!reflect.DeepEqual(o.Config, n.Config) || !maps.Equal(o.Env, n.Env) || !reflect.DeepEqual(o.Resources, n.Resources) ||
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
