package leader

import (
	"cmp"
	"context"
	"iter"
	"math"
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
	JobCount   int           // default 10,000
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
	k.JobCount = cmp.Or(k.JobCount, 10_000)
	k.Tombstones = cmp.Or(k.Tombstones, 10*time.Minute)
	k.Nodes = cmp.Or(k.Nodes, 24*time.Hour)
	k.Deployments = cmp.Or(k.Deployments, time.Hour)
}

const (
	collectStep = 256     // records of a kind in one log entry, so that nobody waits long behind one
	lookStep    = 4096    // records of a kind that are looked at for one
	lookMost    = 1 << 20 // records that a round by the clock looks at; the next one goes on from there
)

type collector struct {
	cfg   Config
	sweep Sweep
}

func newCollector(cfg Config) *collector { return &collector{cfg, Sweep{Keep: cfg.Keep}} }

func (c *collector) run(ctx context.Context) error {
	tick := time.NewTicker(c.cfg.Keep.Every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := c.collect(ctx, lookMost); err != nil && ctx.Err() == nil {
				c.cfg.Logger.WithField("error", err.Error()).Warn("collection was cut short")
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// Collect removes now all that has ended, whatever its age, in small steps. It returns when it is done or ctx ends.
func (l *Leader) Collect(ctx context.Context) error {
	if err := l.collectLate(ctx, -1); err != nil {
		return err
	}
	c := &collector{l.cfg, Sweep{Keep: Keep{Evals: -1, Allocs: -1, Jobs: -1, Tombstones: l.cfg.Keep.Tombstones}}}
	return c.collect(ctx, math.MaxInt)
}

// collect takes steps until a sweep is through or so many records were looked at. Each is decided on the newest state.
func (c *collector) collect(ctx context.Context, most int) error {
	total := 0
	for looked, more := 0, true; more && looked < most; {
		now := time.Now().UnixNano()
		var step *command.Collect
		var n int
		step, n, more = c.sweep.Next(c.cfg.Store.Snapshot(), now)
		looked += n
		if len(step.Jobs)+len(step.Allocs)+len(step.Evals)+len(step.Tombstones) == 0 {
			continue
		}
		step.Now = now
		actx, cancel := context.WithTimeout(ctx, logBound)
		removed, _, err := c.cfg.Log.Apply(actx, step)
		cancel()
		if err != nil {
			return err
		}
		total += removed.(int)
	}
	if total > 0 {
		c.cfg.Logger.WithFields(logging.Fields{"records": total}).Debug("old records collected")
	}
	return nil
}

// Sweep finds what may go, a step at a time, from the oldest on.
type Sweep struct {
	Keep                Keep
	begun               bool
	jobs, evals, allocs walk
}

// walk is where a sweep is among the records of one kind. Jobs are in the order of indexes, the others in that of times.
type walk struct {
	at      int64 // the next to look at
	crowded int64 // those before it are more than their count allows
	done    bool
}

// Next is the next step of a sweep, and how many records were looked at for it. Without more the sweep is through, and the next call begins another one.
//
// With an age below 0 everything that has ended is old. A dead job stays while it was not stopped and all of its groups have count 0: such a job was
// never meant to run, it is a store of its specification. Tombstones go by age alone.
func (s *Sweep) Next(snap *state.Snapshot, now int64) (step *command.Collect, looked int, more bool) {
	k := s.Keep
	if !s.begun {
		*s = Sweep{Keep: k, begun: true,
			jobs:   walk{crowded: nth(snap.NewestEndedJobs(), k.JobCount, diedAt)},
			evals:  walk{crowded: nth(snap.NewestEndedEvals(), k.EvalCount, evalEnd)},
			allocs: walk{crowded: nth(snap.NewestEndedAllocs(), k.AllocCount, allocEnd)},
		}
	}
	old := func(t int64, age time.Duration) bool { return age < 0 || now-t > int64(age) }
	g := &command.Collect{}
	looked += walkOn(&s.jobs, snap.EndedJobs, diedAt, func(j *model.Job) verdict {
		crowded := diedAt(j) < s.jobs.crowded
		if !settled(snap, j, func(t int64) bool { return crowded || old(t, k.Jobs) }) {
			return pass // what is registered again, or waits for a node, holds up nobody
		}
		if many := manyAllocs(snap, j); len(many) > 0 {
			g.Allocs = many
			return pause // a part of it now, so that its own removal is a small step too
		}
		g.Jobs = append(g.Jobs, [2]string{j.Namespace, j.ID})
		return take
	})
	looked += walkOn(&s.allocs, snap.EndedAllocs, allocEnd, func(a *model.Allocation) verdict {
		switch {
		case !old(a.ModifyTime, k.Allocs) && a.ModifyTime >= s.allocs.crowded:
			return end
		case len(g.Allocs) >= collectStep:
			return pause
		case needed(snap, a):
			return pass
		}
		g.Allocs = append(g.Allocs, a.ID)
		return take
	})
	looked += walkOn(&s.evals, snap.EndedEvals, evalEnd, func(e *model.Evaluation) verdict {
		if !old(e.ModifyTime, k.Evals) && e.ModifyTime >= s.evals.crowded {
			return end
		}
		g.Evals = append(g.Evals, e.ID)
		return take
	})
	buried := walk{}
	looked += walkOn(&buried, snap.EndedTombstones, func(t *state.Tombstone) int64 { return t.Time }, func(t *state.Tombstone) verdict {
		if now-t.Time <= int64(k.Tombstones) {
			return end
		}
		g.Tombstones = append(g.Tombstones, t.AllocID)
		return take
	})
	s.begun = !s.jobs.done || !s.allocs.done || !s.evals.done || !buried.done
	return g, looked, s.begun
}

func diedAt(j *model.Job) int64          { return int64(j.ModifyIndex) }
func evalEnd(e *model.Evaluation) int64  { return e.ModifyTime }
func allocEnd(a *model.Allocation) int64 { return a.ModifyTime }

// nth is the place of the n-th newest record; what is before it is beyond the count.
func nth[T any](newest iter.Seq[T], n int, at func(T) int64) int64 {
	if n <= 0 {
		return math.MaxInt64
	}
	for v := range newest {
		if n--; n == 0 {
			return at(v)
		}
	}
	return math.MinInt64
}

// verdict is what becomes of a record.
type verdict int

const (
	pass  verdict = iota // it stays, older than others that may go
	take                 // it goes
	pause                // it is looked at again with the next step
	end                  // it stays, and so do all that are younger
)

// walkOn goes on from the oldest record that was not looked at, until the step is full.
func walkOn[T any](w *walk, ended func(from int64) iter.Seq[T], at func(T) int64, f func(T) verdict) (looked int) {
	if w.done {
		return 0
	}
	taken, begun := 0, w.at
	for v := range ended(w.at) {
		w.at = at(v)
		if taken == collectStep {
			return looked
		}
		if looked == lookStep {
			if w.at == begun { // so many of one time, none of which may go
				w.at++
			}
			return looked
		}
		looked++
		switch f(v) {
		case take:
			taken++
		case pause:
			return looked
		case end:
			w.done = true
			return looked
		}
	}
	w.done = true
	return looked
}

// manyAllocs is a step's worth of a job's allocations where there are more.
func manyAllocs(snap *state.Snapshot, j *model.Job) []string {
	var ids []string
	for a := range snap.AllocsByJob(nil, j.Namespace, j.ID) {
		if len(ids) == collectStep {
			return ids
		}
		ids = append(ids, a.ID)
	}
	return nil
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
