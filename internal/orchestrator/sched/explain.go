package sched

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"rockpool/internal/orchestrator/model"
)

// Circumstances are what Explain looks at.
type Circumstances struct {
	Job         *model.Job
	Evaluations []*model.Evaluation // of the job, any order
	Allocs      []*model.Allocation // of the job, any order
	Deployment  *model.Deployment   // the newest; nil = none
	Paused      bool                // operators have paused scheduling
	Prohibited  string              // what does not let it start, in words, such as an earlier run; "" = nothing
	Now         int64               // unix ns
}

// Explain says in one sentence, for people, what a job waits for.
func Explain(c Circumstances) string {
	newest, blocked, pending := find(c.Evaluations)
	for _, why := range []func() string{
		func() string { return c.template() },
		func() string {
			if c.Prohibited != "" {
				return "It may not start: " + c.Prohibited + "."
			}
			return ""
		},
		func() string { return c.queued(pending) },
		func() string { return shortage(c.Job, blocked) },
		func() string { return c.rollout() },
		func() string { return c.used() },
		func() string {
			if newest != nil && newest.Status == model.EvalFailed {
				return fmt.Sprintf("The last evaluation failed: %s.", newest.StatusDescription)
			}
			return ""
		},
	} {
		if s := why(); s != "" {
			return s
		}
	}
	return c.fine()
}

func find(list []*model.Evaluation) (newest, blocked, pending *model.Evaluation) {
	for _, e := range list {
		if newest == nil || e.CreateIndex > newest.CreateIndex {
			newest = e
		}
		if e.Status == model.EvalBlocked && (blocked == nil || e.CreateIndex > blocked.CreateIndex) {
			blocked = e
		}
		if e.Status == model.EvalPending && (pending == nil || e.WaitUntil < pending.WaitUntil) {
			pending = e
		}
	}
	return newest, blocked, pending
}

func (c *Circumstances) template() string {
	j := c.Job
	switch {
	case j.Stop:
		return "The job is stopped."
	case j.Parameterized != nil && !j.Dispatched:
		return "The job is a template: it runs when somebody dispatches it."
	case j.Periodic != nil && !j.Periodic.Enabled:
		return "The job is started by the clock, which is switched off for it."
	case j.Periodic != nil:
		return "The job is a template: the clock starts it at its times."
	}
	return ""
}

func (c *Circumstances) queued(e *model.Evaluation) string {
	switch {
	case e == nil:
		return ""
	case c.Paused:
		return "Scheduling is paused by an operator (PauseEvalBroker): nothing is placed until it goes on."
	case e.WaitUntil > c.Now:
		return fmt.Sprintf("It waits until %s: %s.", time.Unix(0, e.WaitUntil).UTC().Format(time.RFC3339), occasion(e.TriggeredBy))
	}
	return "Its evaluation waits for its turn in the queue."
}

func occasion(trigger string) string {
	switch trigger {
	case model.TriggerFollowUp, model.TriggerReschedule:
		return "an allocation failed, and its replacement is delayed by the reschedule policy"
	case model.TriggerDisconnect:
		return "a node is cut off, and its allocations are given up then"
	case model.TriggerRolling:
		return "the next part of its update comes then"
	case model.TriggerMaxPlans:
		return "other work was faster too often, and it is tried again"
	}
	return "its next evaluation is delayed"
}

// shortage tells of the first group that finds no place.
func shortage(j *model.Job, e *model.Evaluation) string {
	if e == nil || len(e.FailedTGAllocs) == 0 {
		return ""
	}
	names := sortedKeys(e.FailedTGAllocs)
	m := e.FailedTGAllocs[names[0]]
	waiting := max(e.QueuedAllocations[names[0]], 1)
	s := fmt.Sprintf("Group %q waits with %s: %s", names[0], plural(waiting, "allocation"), noRoom(j, m, e.QuotaReached))
	if more := len(names) - 1; more > 0 {
		s += fmt.Sprintf("; and %s without a place", plural(more, "other group"))
	}
	return s + "."
}

func noRoom(j *model.Job, m *model.AllocMetric, quota string) string {
	pool := cmp.Or(j.NodePool, defaultPool)
	available := 0
	for _, n := range m.NodesAvailable {
		available += n
	}
	switch {
	case len(m.QuotaExhausted) > 0:
		return fmt.Sprintf("the quota %q of its namespace is used up (%s)", quota, strings.Join(m.QuotaExhausted, ", "))
	case m.NodesInPool == 0 && available == 0:
		return fmt.Sprintf("no node of the pool %q is ready", pool)
	case available == 0:
		return fmt.Sprintf("none of the %s of the pool %q is in its datacenters (%s)", plural(m.NodesInPool, "ready node"), pool, strings.Join(j.Datacenters, ", "))
	case m.NodesExhausted == 0:
		return fmt.Sprintf("all %s are ruled out (%s)", plural(m.NodesEvaluated, "node"), reasons(m.ConstraintFiltered))
	}
	s := fmt.Sprintf("there is no room on %d of %s (%s)", m.NodesExhausted, plural(m.NodesEvaluated, "node"), reasons(m.DimensionExhausted))
	if m.NodesFiltered > 0 {
		s += fmt.Sprintf(", the others are ruled out (%s)", reasons(m.ConstraintFiltered))
	}
	return s
}

// shownReasons are so many as a sentence can bear.
const shownReasons = 3

// reasons names the most frequent ones.
func reasons(counts map[string]int) string {
	keys := sortedKeys(counts)
	slices.SortStableFunc(keys, func(a, b string) int { return cmp.Compare(counts[b], counts[a]) })
	var out []string
	for _, k := range keys[:min(len(keys), shownReasons)] {
		out = append(out, fmt.Sprintf("%s on %d", k, counts[k]))
	}
	if len(keys) > shownReasons {
		out = append(out, "and more")
	}
	return strings.Join(out, ", ")
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (c *Circumstances) rollout() string {
	d := c.Deployment
	if d == nil || d.JobVersion != c.Job.Version || d.JobCreateIndex != c.Job.CreateIndex {
		return ""
	}
	switch {
	case d.Status == model.DeploymentPaused:
		return fmt.Sprintf("Its deployment %s is paused.", d.ID)
	case d.Status == model.DeploymentFailed:
		return fmt.Sprintf("Its deployment %s failed: %s.", d.ID, strings.TrimSuffix(d.StatusDescription, "."))
	case !d.Active():
		return ""
	}
	for _, name := range sortedKeys(d.TaskGroups) {
		g := d.TaskGroups[name]
		if g.DesiredCanaries > 0 && !g.Promoted && g.Healthy >= g.DesiredCanaries {
			return fmt.Sprintf("Its deployment %s waits for somebody to promote the canaries of group %q.", d.ID, name)
		}
		if want := max(g.DesiredTotal, g.DesiredCanaries); g.Healthy < want {
			most := 0
			if tg := c.Job.Group(name); tg != nil && tg.Update != nil {
				most = tg.Update.MaxParallel
			}
			return fmt.Sprintf("Its deployment %s goes on when those of group %q that were placed are healthy: %d of %d are, and max_parallel is %d.",
				d.ID, name, g.Healthy, want, most)
		}
	}
	return ""
}

// used tells of what failed for good.
func (c *Circumstances) used() string {
	spent := map[string]int{}
	replaced := map[string]bool{}
	for _, a := range c.Allocs {
		replaced[a.PreviousAllocation] = true
	}
	for _, a := range c.Allocs {
		if a.ClientStatus == model.ClientFailed && a.DesiredStatus == model.DesiredRun && !replaced[a.ID] && !outdated(a, c.Job) {
			spent[a.TaskGroup]++
		}
	}
	if len(spent) == 0 {
		return ""
	}
	g := sortedKeys(spent)[0]
	return fmt.Sprintf("%s of group %q failed, and the reschedule policy allows no more attempts.", plural(spent[g], "allocation"), g)
}

func (c *Circumstances) fine() string {
	starting, running, ended := 0, 0, 0
	for _, a := range c.Allocs {
		switch {
		case outdated(a, c.Job):
		case !a.Terminal() && a.ClientStatus == model.ClientPending:
			starting++
		case !a.Terminal():
			running++
		case a.ClientStatus == model.ClientComplete:
			ended++
		}
	}
	switch {
	case starting > 0:
		return fmt.Sprintf("Everything is placed: %s still to start, %d run.", plural(starting, "allocation"), running)
	case running > 0:
		return fmt.Sprintf("Nothing is missing: %s run.", plural(running, "allocation"))
	case ended > 0:
		return fmt.Sprintf("It is done: %s completed.", plural(ended, "allocation"))
	}
	return "It asks for no allocations."
}
