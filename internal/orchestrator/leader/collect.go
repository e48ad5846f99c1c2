package leader

import (
	"cmp"
	"context"
	"slices"
	"time"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// Keep says how much of the past stays. What is older than the age goes, and beyond the count the oldest.
type Keep struct {
	Every      time.Duration // default 30 s
	Evals      time.Duration // terminal evaluations; default 1 h
	EvalCount  int           // default 5,000
	Allocs     time.Duration // ended allocations; default 4 h
	AllocCount int           // default 5,000
	Jobs       time.Duration // dead jobs; default 4 h
	Tombstones time.Duration // default 10 min

	Nodes       time.Duration // nodes that are down and hold nothing; default 24 h
	Deployments time.Duration // ended ones but the newest of each job; default 1 h
}

func (k *Keep) defaults() {
	k.Every = cmp.Or(k.Every, 30*time.Second)
	k.Evals = cmp.Or(k.Evals, time.Hour)
	k.EvalCount = cmp.Or(k.EvalCount, 5000)
	k.Allocs = cmp.Or(k.Allocs, 4*time.Hour)
	k.AllocCount = cmp.Or(k.AllocCount, 5000)
	k.Jobs = cmp.Or(k.Jobs, 4*time.Hour)
	k.Tombstones = cmp.Or(k.Tombstones, 10*time.Minute)
	k.Nodes = cmp.Or(k.Nodes, 24*time.Hour)
	k.Deployments = cmp.Or(k.Deployments, time.Hour)
}

const collectStep = 256 // records per log entry, so that nobody waits long behind one

type collector struct{ cfg Config }

func newCollector(cfg Config) *collector { return &collector{cfg} }

func (c *collector) run(ctx context.Context) error {
	tick := time.NewTicker(c.cfg.Keep.Every)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			if _, err := c.collect(ctx, Garbage(c.cfg.Store.Snapshot(), c.cfg.Keep, now.UnixNano())); err != nil && ctx.Err() == nil {
				c.cfg.Logger.WithField("error", err.Error()).Warn("collection was cut short")
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// Collect removes now all that has ended, whatever its age.
func (l *Leader) Collect(ctx context.Context) error {
	if err := l.collectLate(ctx, -1); err != nil {
		return err
	}
	c := newCollector(l.cfg)
	_, err := c.collect(ctx, Garbage(l.cfg.Store.Snapshot(), Keep{Evals: -1, Allocs: -1, Jobs: -1, Tombstones: l.cfg.Keep.Tombstones},
		time.Now().UnixNano()))
	return err
}

// collect removes in small steps.
func (c *collector) collect(ctx context.Context, g *command.Collect) (int, error) {
	total := 0
	for len(g.Jobs)+len(g.Allocs)+len(g.Evals)+len(g.Tombstones) > 0 {
		step := &command.Collect{Now: time.Now().UnixNano()}
		step.Jobs, g.Jobs = cut(g.Jobs)
		step.Allocs, g.Allocs = cut(g.Allocs)
		step.Evals, g.Evals = cut(g.Evals)
		step.Tombstones, g.Tombstones = cut(g.Tombstones)
		actx, cancel := context.WithTimeout(ctx, logBound)
		n, _, err := c.cfg.Log.Apply(actx, step)
		cancel()
		if err != nil {
			return total, err
		}
		total += n.(int)
	}
	if total > 0 {
		c.cfg.Logger.WithFields(logging.Fields{"records": total}).Debug("old records collected")
	}
	return total, nil
}

func cut[T any](s []T) (head, tail []T) {
	n := min(len(s), collectStep)
	return s[:n:n], s[n:]
}

// Garbage lists what may go by now. A negative age means everything that has ended. A dead job stays while it was not stopped and
// all of its groups have count 0: such a job was never meant to run, it is a store of its specification.
func Garbage(snap *state.Snapshot, k Keep, now int64) *command.Collect {
	g := &command.Collect{}
	old := func(t int64, age time.Duration) bool { return age < 0 || now-t > int64(age) }

	gone := map[[2]string]bool{}
	for j := range snap.Jobs(nil, "*", "") {
		if j.Status == model.JobDead && ran(j) && settled(snap, j, func(t int64) bool { return old(t, k.Jobs) }) {
			gone[[2]string{j.Namespace, j.ID}] = true
			g.Jobs = append(g.Jobs, [2]string{j.Namespace, j.ID})
		}
	}
	var allocs []*model.Allocation
	for a := range snap.Allocs(nil, "") {
		if a.Terminal() && a.ClientTerminal() && !needed(snap, a) {
			allocs = append(allocs, a)
		}
	}
	slices.SortFunc(allocs, func(a, b *model.Allocation) int { return cmp.Compare(a.ModifyTime, b.ModifyTime) })
	for i, a := range allocs {
		if old(a.ModifyTime, k.Allocs) || len(allocs)-i > k.AllocCount {
			g.Allocs = append(g.Allocs, a.ID)
		}
	}
	var evals []*model.Evaluation
	for e := range snap.Evals(nil, "") {
		if e.Terminal() {
			evals = append(evals, e)
		}
	}
	slices.SortFunc(evals, func(a, b *model.Evaluation) int { return cmp.Compare(a.ModifyTime, b.ModifyTime) })
	for i, e := range evals {
		if old(e.ModifyTime, k.Evals) || len(evals)-i > k.EvalCount {
			g.Evals = append(g.Evals, e.ID)
		}
	}
	for t := range snap.AllTombstones() {
		if now-t.Time > int64(k.Tombstones) {
			g.Tombstones = append(g.Tombstones, t.AllocID)
		}
	}
	return g
}

// ran reports whether a job was meant to run at all.
func ran(j *model.Job) bool {
	return j.Stop || slices.ContainsFunc(j.TaskGroups, func(g *model.TaskGroup) bool { return g.Count > 0 })
}

// settled reports whether all of a job has ended, long ago.
func settled(snap *state.Snapshot, j *model.Job, old func(int64) bool) bool {
	if !old(j.SubmitTime) {
		return false
	}
	for a := range snap.AllocsByJob(nil, j.Namespace, j.ID) {
		if !a.Terminal() || !a.ClientTerminal() || !old(a.ModifyTime) {
			return false
		}
	}
	for e := range snap.EvalsByJob(nil, j.Namespace, j.ID) {
		if !e.Terminal() || !old(e.ModifyTime) {
			return false
		}
	}
	return true
}

// needed reports whether an ended allocation still holds its slot: that of a batch job which is not stopped, without which
// the work would be done again.
func needed(snap *state.Snapshot, a *model.Allocation) bool {
	if a.DesiredStatus != model.DesiredRun || a.NextAllocation != "" {
		return false
	}
	j := snap.Job(nil, a.Namespace, a.JobID)
	return j != nil && !j.Stop && j.CreateIndex == a.Job.CreateIndex
}
