package state

import (
	"maps"
	"slices"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
)

// DeleteEvals removes evaluations, whatever their status, and returns how many there were.
func (t *Tx) DeleteEvals(ids []string) int {
	n := 0
	for _, id := range ids {
		if e := t.Eval(nil, id); e != nil {
			t.delete(tableEvals, e)
			t.touch(e.Namespace, e.JobID)
			n++
		}
	}
	return n
}

// Child is a job that is made of a template: all but what stands here is the template's.
type Child struct {
	Namespace string
	ParentID  string
	ID        string
	Meta      map[string]string // over that of the template
	Payload   []byte
	Token     string // idempotency token of a dispatch
	Priority  int    // 0 = the template's
}

// Dispatch makes a job of a parameterized one. The child shares the template's groups, so it costs little. Where the token was used before, that child is
// returned, and made is false.
func (t *Tx) Dispatch(c Child) (child *model.Job, made bool, err error) {
	parent := t.Job(nil, c.Namespace, c.ParentID)
	switch {
	case parent == nil:
		return nil, false, fault.New(fault.NotFound, "parameterized job not found")
	case parent.Parameterized == nil || parent.Dispatched:
		return nil, false, fault.New(fault.Conflict, "Specified job %q is not a parameterized job", c.ParentID)
	case parent.Stop:
		return nil, false, fault.New(fault.Conflict, "Specified job %q is stopped", c.ParentID)
	}
	if c.Token != "" {
		if old := t.Dispatched(c.Namespace, c.ParentID, c.Token); old != nil {
			return old, false, nil
		}
	}
	j := t.child(parent, c)
	j.Dispatched, j.DispatchToken, j.Payload = true, c.Token, c.Payload
	j, err = t.RegisterJob(j, true, 0)
	return j, err == nil, err
}

// LaunchPeriodic makes a job of a periodic one, for the occasion at. It makes none, and says nil, when that occasion or a later one was taken already, when the
// job is not to be started any more, and when an earlier child lives and may not be overlapped; the occasion counts as taken then too. Force makes one anyway.
func (t *Tx) LaunchPeriodic(c Child, at int64, force bool) (*model.Job, error) {
	parent := t.Job(nil, c.Namespace, c.ParentID)
	switch {
	case parent == nil:
		return nil, fault.New(fault.NotFound, "job not found")
	case parent.Periodic == nil:
		return nil, fault.New(fault.Conflict, "can't periodically launch non-periodic job")
	case parent.Stop:
		return nil, fault.New(fault.Conflict, "Specified job %q is stopped", c.ParentID)
	}
	if !force {
		l := t.Launch(nil, c.Namespace, c.ParentID)
		if !parent.Periodic.Enabled || l != nil && l.Time >= at {
			return nil, nil
		}
		t.PutLaunch(c.Namespace, c.ParentID, at)
		if n := t.Children(nil, c.Namespace, c.ParentID); parent.Periodic.ProhibitOverlap && n.Pending+n.Running > 0 {
			return nil, nil
		}
	}
	if t.Job(nil, c.Namespace, c.ID) != nil {
		if force {
			return nil, fault.New(fault.Conflict, "job %q was started for this second already", c.ParentID)
		}
		return nil, nil
	}
	j := t.child(parent, c)
	j.Periodic = nil
	return t.RegisterJob(j, true, 0)
}

func (t *Tx) child(parent *model.Job, c Child) *model.Job {
	j := *parent
	j.ID, j.Name, j.ParentID = c.ID, c.ID, parent.ID
	j.Stable, j.VersionTag, j.StatusDescription = false, nil, ""
	if c.Priority != 0 {
		j.Priority = c.Priority
	}
	if len(c.Meta) > 0 {
		j.Meta = make(map[string]string, len(parent.Meta)+len(c.Meta))
		for k, v := range parent.Meta {
			j.Meta[k] = v
		}
		for k, v := range c.Meta {
			j.Meta[k] = v
		}
	}
	return &j
}

// Rollback registers an earlier version of a job anew, as its newest one.
func (t *Tx) Rollback(namespace, id string, v uint64) (*model.Job, error) {
	old := t.JobVersion(namespace, id, v)
	if old == nil {
		return nil, fault.New(fault.NotFound, "job %q in namespace %q at version %d not found", id, namespace, v)
	}
	c := *old
	c.Stop, c.Stable, c.VersionTag = false, false, nil
	return t.RegisterJob(&c, false, 0)
}

// ScaleJob sets the count of a group as a new version of its job.
func (t *Tx) ScaleJob(namespace, id, group string, to int) (*model.Job, error) {
	old := t.Job(nil, namespace, id)
	if old == nil || old.Group(group) == nil {
		return nil, fault.New(fault.NotFound, "task group %q specified for scaling does not exist in job", group)
	}
	c := *old
	c.Stable, c.VersionTag = false, nil
	c.TaskGroups = slices.Clone(old.TaskGroups)
	for i, g := range c.TaskGroups {
		if g.Name == group {
			cg := *g
			cg.Count = to
			c.TaskGroups[i] = &cg
		}
	}
	return t.RegisterJob(&c, false, 0)
}

// markedBytes is what the meta of a group may have, keys and values together, once it was marked.
const markedBytes = 16 << 10

// MarkJob sets keys in the meta of a group that places nothing, if the job's JobModifyIndex is at. No allocation depends on them: there is nothing to evaluate, it
// is no new version, and allocations keep the specification that they were started with until an evaluation gives them the present one. What cannot be a
// mark is Unprocessable, and a registration all the same: a plan that is on its way was made for the specification that a mark replaces.
func (t *Tx) MarkJob(namespace, id, group string, meta map[string]string, at uint64) (*model.Job, error) {
	old, err := t.CheckIndex(namespace, id, at)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(old.TaskGroups, func(g *model.TaskGroup) bool { return g.Name == group })
	switch {
	case i < 0:
		return nil, fault.New(fault.Unprocessable, "job %q has no group %q that could be marked", id, group)
	case old.TaskGroups[i].Count != 0:
		return nil, fault.New(fault.Unprocessable, "group %q of job %q has tasks that see its meta: register the job instead", group, id)
	}
	for e := range t.EvalsByJob(nil, namespace, id) {
		if !e.Terminal() {
			return nil, fault.New(fault.Unprocessable, "job %q is being evaluated: register it instead", id)
		}
	}
	g := *old.TaskGroups[i]
	g.Meta = make(map[string]string, len(g.Meta)+len(meta))
	maps.Copy(g.Meta, old.TaskGroups[i].Meta)
	maps.Copy(g.Meta, meta)
	if maps.Equal(g.Meta, old.TaskGroups[i].Meta) {
		return old, nil
	}
	n := 0
	for k, v := range g.Meta {
		n += len(k) + len(v)
	}
	if n > markedBytes {
		return nil, fault.New(fault.Unprocessable, "the meta of group %q would have more than %d bytes", group, markedBytes)
	}
	j := *old
	j.TaskGroups = slices.Clone(old.TaskGroups)
	j.TaskGroups[i] = &g
	j.ModifyIndex, j.JobModifyIndex = t.index, t.index
	t.putJob(&j)
	t.put(tableVersions, &j)
	return &j, nil
}

// CheckIndex is the job of that id, if its JobModifyIndex is at; 0 = whatever it is.
func (t *Tx) CheckIndex(namespace, id string, at uint64) (*model.Job, error) {
	j := t.Job(nil, namespace, id)
	if j == nil {
		return nil, fault.New(fault.NotFound, "job not found")
	}
	if at != 0 && at != j.JobModifyIndex {
		return nil, fault.New(fault.Conflict, "Enforcing job modify index %d: job exists with conflicting job modify index: %d", at, j.JobModifyIndex)
	}
	return j, nil
}
