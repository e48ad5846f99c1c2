package state

import (
	"iter"
	"slices"

	"rockpool/internal/orchestrator/model"
)

// Tables of what goes along with a job, and of nodes that fell silent.
const (
	tableLaunches    = "periodic_launches"
	tableScaling     = "scaling_events"
	tableSubmissions = "job_submissions"
	tableChildren    = "job_children"
	tableSilent      = "silent_nodes"
)

// Launch is when a periodic job was started last.
type Launch struct {
	Namespace   string
	JobID       string
	Time        int64 // unix ns of the occasion, not of the start
	ModifyIndex uint64
}

// ScalingEvent is one change of a group's count, or a note of one that failed.
type ScalingEvent struct {
	Group         string
	Count         *int64 // nil = it was left as it is
	PreviousCount int64
	Error         bool
	Message       string
	Meta          map[string]any `codec:",omitempty"`
	EvalID        string
	Time          int64
	Index         uint64
}

// keptScalingEvents bounds those of one group.
const keptScalingEvents = 20

// ScalingEvents are those of one job, oldest first.
type ScalingEvents struct {
	Namespace string
	JobID     string
	Events    []ScalingEvent
}

// Submission is the text that a version of a job was made of.
type Submission struct {
	Namespace     string
	JobID         string
	Version       uint64
	Source        string
	Format        string
	VariableFlags map[string]string `codec:",omitempty"`
	Variables     string            `codec:",omitempty"`
}

// Children counts the jobs that were made of a template, by their status.
type Children struct {
	Namespace string
	JobID     string
	Pending   int64
	Running   int64
	Dead      int64
}

// SilentNode is a node that was not heard of for longer than its TTL. A new leader reads here for how long already: to all others it grants their full time.
type SilentNode struct {
	NodeID string
	Since  int64 // unix ns; it was heard of last then
}

func lifeTables() []tableDef {
	return []tableDef{
		define(tableLaunches, 30, false, func(l *Launch, to []string) []string { return append(to, l.Namespace, l.JobID) }, nil),
		define(tableScaling, 31, false, func(e *ScalingEvents, to []string) []string { return append(to, e.Namespace, e.JobID) }, nil),
		define(tableSubmissions, 32, false, func(s *Submission, to []string) []string {
			return append(to, s.Namespace, s.JobID, hexIndex(s.Version))
		}, nil),
		define(tableChildren, 33, false, func(c *Children, to []string) []string { return append(to, c.Namespace, c.JobID) }, nil),
		define(tableSilent, 34, false, func(n *SilentNode, to []string) []string { return append(to, n.NodeID) }, nil),
	}
}

// jobIndexes find the jobs that services look for without a walk over all others.
var jobIndexes = map[string]parts[model.Job]{
	"periodic": func(j *model.Job, to []string) []string {
		if j.Periodic == nil || j.Parameterized != nil && !j.Dispatched {
			return nil
		}
		return append(to, j.Namespace, j.ID)
	},
	"scaling": func(j *model.Job, to []string) []string {
		if !slices.ContainsFunc(j.TaskGroups, func(g *model.TaskGroup) bool { return g.Scaling != nil }) {
			return nil
		}
		return append(to, j.Namespace, j.ID)
	},
	"parent": func(j *model.Job, to []string) []string {
		if j.ParentID == "" {
			return nil
		}
		return append(to, j.Namespace, j.ParentID, j.ID)
	},
	"ended": func(j *model.Job, to []string) []string {
		if j.Status != model.JobDead || !j.MeantToRun() {
			return nil
		}
		return append(to, hexIndex(j.ModifyIndex))
	},
	"dispatch": func(j *model.Job, to []string) []string {
		if j.DispatchToken == "" || !j.Dispatched {
			return nil
		}
		return append(to, j.Namespace, j.ParentID, j.DispatchToken)
	},
}

// nodeIndexes find the nodes that are being emptied.
var nodeIndexes = map[string]parts[model.Node]{
	"draining": func(n *model.Node, to []string) []string {
		if n.Drain == nil {
			return nil
		}
		return append(to, n.ID)
	},
}

// DrainingNodes yields the nodes that are being emptied, by id.
func (s *Snapshot) DrainingNodes(w Watch) iter.Seq[*model.Node] {
	return all[model.Node](s, w, tableNodes, "draining")
}

// PeriodicJobs yields the jobs that are started by the clock, enabled or not.
func (s *Snapshot) PeriodicJobs(w Watch) iter.Seq[*model.Job] {
	return all[model.Job](s, w, tableJobs, "periodic")
}

// ScalableJobs yields the jobs with a scaling policy.
func (s *Snapshot) ScalableJobs(w Watch) iter.Seq[*model.Job] {
	return all[model.Job](s, w, tableJobs, "scaling")
}

// ChildJobs yields the jobs that were made of a template, by id.
func (s *Snapshot) ChildJobs(w Watch, namespace, parent string) iter.Seq[*model.Job] {
	return all[model.Job](s, w, tableJobs, "parent_prefix", namespace, parent, "")
}

// Dispatched is the job that a parameterized one was made into under an idempotency token, or nil.
func (s *Snapshot) Dispatched(namespace, parent, token string) *model.Job {
	for j := range all[model.Job](s, nil, tableJobs, "dispatch", namespace, parent, token) {
		return j
	}
	return nil
}

// JobVersion is one kept version of a job, or nil.
func (s *Snapshot) JobVersion(namespace, id string, v uint64) *model.Job {
	return first[model.Job](s, nil, tableVersions, namespace, id, hexIndex(v))
}

// TaggedVersion is the version of a job that bears a tag, or nil.
func (s *Snapshot) TaggedVersion(namespace, id, tag string) *model.Job {
	for v := range s.JobVersions(nil, namespace, id) {
		if v.VersionTag != nil && v.VersionTag.Name == tag {
			return v
		}
	}
	return nil
}

// StableVersion is the newest version of a job before another that is known to work, or nil.
func (s *Snapshot) StableVersion(namespace, id string, before uint64) *model.Job {
	var stable *model.Job
	for v := range s.JobVersions(nil, namespace, id) {
		if v.Stable && !v.Stop && v.Version < before {
			stable = v
		}
	}
	return stable
}

// Launch is the newest start of a periodic job, or nil.
func (s *Snapshot) Launch(w Watch, namespace, id string) *Launch {
	return first[Launch](s, w, tableLaunches, namespace, id)
}

// ScalingEvents are those of a job, oldest first.
func (s *Snapshot) ScalingEvents(w Watch, namespace, id string) []ScalingEvent {
	if e := first[ScalingEvents](s, w, tableScaling, namespace, id); e != nil {
		return e.Events
	}
	return nil
}

// Submission is the text of a version of a job, or nil.
func (s *Snapshot) Submission(w Watch, namespace, id string, v uint64) *Submission {
	return first[Submission](s, w, tableSubmissions, namespace, id, hexIndex(v))
}

// Children counts a template's jobs.
func (s *Snapshot) Children(w Watch, namespace, id string) Children {
	if c := first[Children](s, w, tableChildren, namespace, id); c != nil {
		return *c
	}
	return Children{Namespace: namespace, JobID: id}
}

// SilentNodes yields the nodes that were not heard of for a while.
func (s *Snapshot) SilentNodes() iter.Seq[*SilentNode] {
	return all[SilentNode](s, nil, tableSilent, "id")
}

// putJob writes a job, and counts it with its siblings.
func (t *Tx) putJob(j *model.Job) {
	if j.ParentID != "" {
		t.countChild(t.Job(nil, j.Namespace, j.ID), j)
	}
	t.put(tableJobs, j)
}

// countChild moves a template's counts from a child as it was to it as it is; nil = it is not there.
func (t *Tx) countChild(old, now *model.Job) {
	parent := func(j *model.Job) (string, string) {
		if j == nil {
			return "", ""
		}
		return j.ParentID, j.Status
	}
	op, os := parent(old)
	np, ns := parent(now)
	if op == np && os == ns {
		return
	}
	t.addChild(old, op, os, -1)
	t.addChild(now, np, ns, 1)
}

func (t *Tx) addChild(child *model.Job, parent, status string, n int64) {
	if parent == "" {
		return
	}
	c := t.Children(nil, child.Namespace, parent)
	switch status {
	case model.JobPending:
		c.Pending += n
	case model.JobRunning:
		c.Running += n
	default:
		c.Dead += n
	}
	if c.Pending == 0 && c.Running == 0 && c.Dead == 0 {
		t.delete(tableChildren, &c)
		return
	}
	t.put(tableChildren, &c)
}

// RecountChildren counts the children of all templates anew, and returns of how many the numbers were wrong.
func (t *Tx) RecountChildren() int {
	right := map[jobKey]*Children{}
	for j := range t.Jobs(nil, "*", "") {
		if j.ParentID == "" {
			continue
		}
		k := jobKey{j.Namespace, j.ParentID}
		if right[k] == nil {
			right[k] = &Children{Namespace: j.Namespace, JobID: j.ParentID}
		}
		switch j.Status {
		case model.JobPending:
			right[k].Pending++
		case model.JobRunning:
			right[k].Running++
		default:
			right[k].Dead++
		}
	}
	wrong := 0
	for _, c := range slices.Collect(all[Children](&t.Snapshot, nil, tableChildren, "id")) {
		if k := (jobKey{c.Namespace, c.JobID}); right[k] == nil {
			t.delete(tableChildren, c)
			wrong++
		} else if *right[k] == *c {
			delete(right, k)
		}
	}
	keys := make([]jobKey, 0, len(right))
	for k := range right {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, jobKey.compare)
	for _, k := range keys {
		t.put(tableChildren, right[k])
		wrong++
	}
	return wrong
}

// removeVersion removes a version and its text.
func (t *Tx) removeVersion(v *model.Job) {
	t.delete(tableVersions, v)
	if s := t.Submission(nil, v.Namespace, v.ID, v.Version); s != nil {
		t.delete(tableSubmissions, s)
	}
}

// removeCompanions removes what goes along with a job that is gone.
func (t *Tx) removeCompanions(j *model.Job) {
	if l := t.Launch(nil, j.Namespace, j.ID); l != nil {
		t.delete(tableLaunches, l)
	}
	if e := first[ScalingEvents](&t.Snapshot, nil, tableScaling, j.Namespace, j.ID); e != nil {
		t.delete(tableScaling, e)
	}
	for _, d := range slices.Collect(t.DeploymentsByJob(nil, j.Namespace, j.ID)) {
		t.delete(tableDeployments, d)
	}
}

// PutSubmission keeps the text of the newest version of a job. The store keeps s.
func (t *Tx) PutSubmission(s *Submission) {
	if j := t.Job(nil, s.Namespace, s.JobID); j != nil {
		s.Version = j.Version
		t.put(tableSubmissions, s)
	}
}

// AddScalingEvent keeps the newest of each group.
func (t *Tx) AddScalingEvent(namespace, id string, e ScalingEvent) {
	e.Index, e.Time = t.index, t.now
	events := append(slices.Clone(t.ScalingEvents(nil, namespace, id)), e)
	n := 0
	for i := len(events) - 1; i >= 0; i-- {
		if events[i].Group != e.Group {
			continue
		}
		if n++; n > keptScalingEvents {
			events = slices.Delete(events, i, i+1)
		}
	}
	t.put(tableScaling, &ScalingEvents{namespace, id, events})
}

// PutLaunch notes the start of a periodic job.
func (t *Tx) PutLaunch(namespace, id string, at int64) {
	t.put(tableLaunches, &Launch{namespace, id, at, t.index})
}

// SetStability says whether a version of a job is known to work. False means that there is no such version.
func (t *Tx) SetStability(namespace, id string, v uint64, stable bool) bool {
	return t.changeVersion(namespace, id, v, func(j *model.Job) { j.Stable = stable })
}

// TagVersion names a version of a job, or with nil takes its name away. False means that there is no such version.
func (t *Tx) TagVersion(namespace, id string, v uint64, tag *model.VersionTag) bool {
	return t.changeVersion(namespace, id, v, func(j *model.Job) { j.VersionTag = tag })
}

// changeVersion changes what a version does not ask for: not its specification.
func (t *Tx) changeVersion(namespace, id string, v uint64, f func(*model.Job)) bool {
	old := t.JobVersion(namespace, id, v)
	if old == nil {
		return false
	}
	c := *old
	f(&c)
	c.ModifyIndex = t.index
	t.put(tableVersions, &c)
	if j := t.Job(nil, namespace, id); j != nil && j.Version == v {
		c := *j
		f(&c)
		c.ModifyIndex = t.index
		t.putJob(&c)
	}
	return true
}

// NoteSilence keeps since when nodes have not been heard of, and forgets those that have been again.
func (t *Tx) NoteSilence(silent []SilentNode, heard []string) {
	for _, n := range silent {
		if t.Node(nil, n.NodeID) != nil {
			t.put(tableSilent, &n)
		}
	}
	for _, id := range heard {
		if n := first[SilentNode](&t.Snapshot, nil, tableSilent, id); n != nil {
			t.delete(tableSilent, n)
		}
	}
}

// bare is a version without what was noted of it after its registration. Allocations that were placed earlier may share the version as it was before, so what
// they refer to is written without notes: else a restored store would differ from the one that it was saved of.
func bare(j *model.Job) *model.Job {
	c := *j
	c.Stable, c.VersionTag, c.ModifyIndex = false, nil, j.JobModifyIndex
	return &c
}
