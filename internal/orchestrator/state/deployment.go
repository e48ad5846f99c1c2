package state

import (
	"cmp"
	"iter"
	"maps"
	"slices"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
)

const tableDeployments = "deployments"

func deploymentTables() []tableDef {
	return []tableDef{
		define(tableDeployments, 11, true, func(d *model.Deployment, to []string) []string { return append(to, d.ID) },
			map[string]parts[model.Deployment]{
				"job": func(d *model.Deployment, to []string) []string { return append(to, d.Namespace, d.JobID) },
				"active": func(d *model.Deployment, to []string) []string {
					if !d.Active() {
						return nil
					}
					return append(to, d.ID)
				},
			}),
	}
}

// DeploymentsIndex is the index of the newest change to any deployment.
func (s *Snapshot) DeploymentsIndex() uint64 { return s.tableIndex(tableDeployments) }

// Deployment is the deployment of that id, or nil.
func (s *Snapshot) Deployment(w Watch, id string) *model.Deployment {
	return first[model.Deployment](s, w, tableDeployments, id)
}

// Deployments yields all deployments whose id starts so, by id.
func (s *Snapshot) Deployments(w Watch, prefix string) iter.Seq[*model.Deployment] {
	return prefixed[model.Deployment](s, w, tableDeployments, prefix)
}

// ActiveDeployments yields those that have not ended, by id.
func (s *Snapshot) ActiveDeployments(w Watch) iter.Seq[*model.Deployment] {
	return all[model.Deployment](s, w, tableDeployments, "active")
}

// DeploymentsByJob yields a job's deployments, by id.
func (s *Snapshot) DeploymentsByJob(w Watch, namespace, id string) iter.Seq[*model.Deployment] {
	return all[model.Deployment](s, w, tableDeployments, "job", namespace, id)
}

// LatestDeployment is the newest of a job, or nil.
func (s *Snapshot) LatestDeployment(w Watch, namespace, id string) *model.Deployment {
	var latest *model.Deployment
	for d := range s.DeploymentsByJob(w, namespace, id) {
		if latest == nil || d.CreateIndex > latest.CreateIndex {
			latest = d
		}
	}
	return latest
}

// DeploymentStatus is a change of a deployment's status, as a plan or its watcher wants it.
type DeploymentStatus struct {
	DeploymentID string
	Status       string
	Description  string
}

// PutDeployment inserts or replaces a deployment; indexes and times are set here. The store keeps d.
func (t *Tx) PutDeployment(d *model.Deployment) {
	d.CreateIndex, d.CreateTime = t.index, t.now
	if old := t.Deployment(nil, d.ID); old != nil {
		d.CreateIndex, d.CreateTime = old.CreateIndex, old.CreateTime
	}
	d.ModifyIndex, d.ModifyTime = t.index, t.now
	t.put(tableDeployments, d)
}

// SetDeploymentStatus changes a deployment that has not ended; false when there is none such. The version of a job that was rolled out with success is a
// stable one.
func (t *Tx) SetDeploymentStatus(u DeploymentStatus) bool {
	return t.changeDeployment(u.DeploymentID, func(d *model.Deployment) {
		resumed := d.Status == model.DeploymentPaused && u.Status == model.DeploymentRunning
		d.Status, d.StatusDescription = u.Status, u.Description
		if u.Status == model.DeploymentSuccessful {
			t.SetStability(d.Namespace, d.JobID, d.JobVersion, true)
		}
		if !resumed {
			return
		}
		for _, g := range d.TaskGroups { // time that went by while it was paused does not count
			if g.RequireProgressBy != 0 && g.ProgressDeadline > 0 {
				g.RequireProgressBy = t.now + int64(g.ProgressDeadline)
			}
		}
	})
}

// Promote lets the groups named, or all of them, go on after their canaries. It refuses when canaries are missing or not well.
func (t *Tx) Promote(id string, groups []string) error {
	d := t.Deployment(nil, id)
	if d == nil {
		return fault.New(fault.NotFound, "deployment not found")
	}
	if !d.Active() {
		return fault.New(fault.Conflict, "can't promote terminal deployment")
	}
	waiting := 0
	for _, name := range sortedKeys(d.TaskGroups) {
		g := d.TaskGroups[name]
		if g.DesiredCanaries == 0 || g.Promoted || len(groups) > 0 && !slices.Contains(groups, name) {
			continue
		}
		waiting++
		if n := t.healthyCanaries(g); n < g.DesiredCanaries {
			return fault.New(fault.Conflict, "Task group %q has %d/%d healthy allocations", name, n, g.DesiredCanaries)
		}
	}
	if waiting == 0 {
		return fault.New(fault.Conflict, "no canaries to promote")
	}
	t.changeDeployment(id, func(d *model.Deployment) {
		for _, name := range sortedKeys(d.TaskGroups) {
			g := d.TaskGroups[name]
			if g.DesiredCanaries == 0 || len(groups) > 0 && !slices.Contains(groups, name) {
				continue
			}
			g.Promoted = true
			if g.ProgressDeadline > 0 {
				g.RequireProgressBy = t.now + int64(g.ProgressDeadline)
			}
			for _, id := range g.PlacedCanaries {
				t.noCanary(id)
			}
		}
		if d.Status == model.DeploymentRunning {
			d.StatusDescription = DeploymentIsRunning
		}
	})
	return nil
}

// DeploymentIsRunning describes a deployment that waits for nobody.
const DeploymentIsRunning = "Deployment is running"

func (s *Snapshot) healthyCanaries(g *model.DeploymentGroup) int {
	n := 0
	for _, id := range g.PlacedCanaries {
		if a := s.Alloc(nil, id); a != nil && Healthy(a) && !a.Terminal() {
			n++
		}
	}
	return n
}

// CanariesAreHealthy reports whether all canaries that a group wants are placed and well.
func (s *Snapshot) CanariesAreHealthy(g *model.DeploymentGroup) bool {
	return s.healthyCanaries(g) >= g.DesiredCanaries
}

// Healthy reports whether an allocation was found to be well.
func Healthy(a *model.Allocation) bool {
	return a.DeploymentStatus != nil && a.DeploymentStatus.Healthy != nil && *a.DeploymentStatus.Healthy
}

// Unhealthy reports whether it was found not to be.
func Unhealthy(a *model.Allocation) bool {
	return a.DeploymentStatus != nil && a.DeploymentStatus.Healthy != nil && !*a.DeploymentStatus.Healthy
}

// noCanary makes a canary one of many.
func (t *Tx) noCanary(id string) {
	a := t.Alloc(nil, id)
	if a == nil || a.DeploymentStatus == nil || !a.DeploymentStatus.Canary {
		return
	}
	c := *a
	h := *a.DeploymentStatus
	h.Canary, h.ModifyIndex = false, t.index
	c.DeploymentStatus = &h
	t.putAlloc(&c)
}

// SetHealth takes an operator's word for the health of allocations. It refuses allocations that are not of the deployment.
func (t *Tx) SetHealth(id string, healthy, unhealthy []string) error {
	d := t.Deployment(nil, id)
	if d == nil {
		return fault.New(fault.NotFound, "deployment not found")
	}
	if !d.Active() {
		return fault.New(fault.Conflict, "can't set health of allocations for a terminal deployment")
	}
	for _, list := range [][]string{healthy, unhealthy} {
		for _, allocID := range list {
			if a := t.Alloc(nil, allocID); a == nil {
				return fault.New(fault.NotFound, "unknown alloc %q", allocID)
			} else if a.DeploymentID != id {
				return fault.New(fault.Conflict, "alloc %q is not part of deployment %q", allocID, id)
			}
		}
	}
	for _, allocID := range healthy {
		if a := t.Alloc(nil, allocID); a.ClientTerminal() {
			return fault.New(fault.Conflict, "alloc %q is %s and cannot be healthy", allocID, a.ClientStatus)
		}
	}
	for i, list := range [][]string{healthy, unhealthy} {
		for _, allocID := range list {
			c := *t.Alloc(nil, allocID)
			if t.takeHealth(&c, &model.AllocHealth{Healthy: new(i == 0), Timestamp: t.now}) {
				t.putAlloc(&c)
			}
		}
	}
	return nil
}

// takeHealth puts what is new of an allocation's health into a, which is a copy, and into the counts of its deployment. False means that nothing is.
func (t *Tx) takeHealth(a *model.Allocation, h *model.AllocHealth) bool {
	if h == nil || h.Healthy == nil {
		return false
	}
	was := a.DeploymentStatus
	if was != nil && was.Healthy != nil && *was.Healthy == *h.Healthy {
		return false
	}
	now := &model.AllocHealth{Healthy: h.Healthy, Timestamp: cmp.Or(h.Timestamp, t.now), ModifyIndex: t.index}
	if was != nil {
		now.Canary = was.Canary
	}
	a.DeploymentStatus = now
	t.changeDeployment(a.DeploymentID, func(d *model.Deployment) {
		g := d.TaskGroups[a.TaskGroup]
		if g == nil {
			return
		}
		if was != nil && was.Healthy != nil { // it was counted as the opposite
			g.Healthy -= count(!*h.Healthy)
			g.Unhealthy -= count(*h.Healthy)
		}
		g.Healthy += count(*h.Healthy)
		g.Unhealthy += count(!*h.Healthy)
		if *h.Healthy && g.ProgressDeadline > 0 {
			g.RequireProgressBy = max(g.RequireProgressBy, t.now+int64(g.ProgressDeadline))
		}
	})
	return true
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// DeleteDeployments removes those of a list that have ended, and returns how many.
func (t *Tx) DeleteDeployments(ids []string) int {
	n := 0
	for _, id := range ids {
		if d := t.Deployment(nil, id); d != nil && !d.Active() {
			t.delete(tableDeployments, d)
			n++
		}
	}
	return n
}

// changeDeployment changes a copy, with groups of its own, of a deployment that has not ended.
func (t *Tx) changeDeployment(id string, f func(*model.Deployment)) bool {
	old := t.Deployment(nil, id)
	if old == nil || !old.Active() {
		return false
	}
	c := *old
	c.TaskGroups = make(map[string]*model.DeploymentGroup, len(old.TaskGroups))
	for name, g := range old.TaskGroups {
		cg := *g
		cg.PlacedCanaries = slices.Clone(g.PlacedCanaries)
		c.TaskGroups[name] = &cg
	}
	f(&c)
	t.PutDeployment(&c)
	return true
}

// countPlaced notes in their deployments what a plan placed.
func (t *Tx) countPlaced(placed []*model.Allocation) {
	byDeployment := map[string][]*model.Allocation{}
	for _, a := range placed {
		if a.DeploymentID != "" {
			byDeployment[a.DeploymentID] = append(byDeployment[a.DeploymentID], a)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(byDeployment)) {
		t.changeDeployment(id, func(d *model.Deployment) {
			for _, a := range byDeployment[id] {
				g := d.TaskGroups[a.TaskGroup]
				if g == nil {
					continue
				}
				g.Placed++
				if a.DeploymentStatus != nil && a.DeploymentStatus.Canary {
					g.PlacedCanaries = append(g.PlacedCanaries, a.ID)
				}
				if g.RequireProgressBy == 0 && g.ProgressDeadline > 0 {
					g.RequireProgressBy = t.now + int64(g.ProgressDeadline)
				}
			}
		})
	}
}

// joinDeployment makes allocations that were updated in place part of the roll-out of what they were updated to. They went on running, so they are well.
func (t *Tx) joinDeployment(id string, allocs []string) {
	if id == "" || len(allocs) == 0 {
		return
	}
	t.changeDeployment(id, func(d *model.Deployment) {
		for _, allocID := range allocs {
			a := t.Alloc(nil, allocID)
			if a == nil || a.Terminal() || a.DeploymentID == id {
				continue
			}
			g := d.TaskGroups[a.TaskGroup]
			if g == nil {
				continue
			}
			c := *a
			c.DeploymentID = id
			c.DeploymentStatus = &model.AllocHealth{Healthy: new(true), Timestamp: t.now, ModifyIndex: t.index}
			t.putAlloc(&c)
			g.Placed++
			g.Healthy++
		}
	})
}
