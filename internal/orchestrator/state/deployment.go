package state

import (
	"iter"
	"maps"
	"slices"

	"rockpool/internal/orchestrator/model"
)

const tableDeployments = "deployments"

func deploymentTables() []tableDef {
	return []tableDef{
		define(tableDeployments, 11, true, func(d *model.Deployment) []string { return []string{d.ID} },
			map[string]func(*model.Deployment) []string{
				"job": func(d *model.Deployment) []string { return []string{d.Namespace, d.JobID} },
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

// SetDeploymentStatus changes a deployment that has not ended; false when there is none such.
func (t *Tx) SetDeploymentStatus(u DeploymentStatus) bool {
	return t.changeDeployment(u.DeploymentID, func(d *model.Deployment) { d.Status, d.StatusDescription = u.Status, u.Description })
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
