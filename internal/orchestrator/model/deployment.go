package model

import "time"

// Statuses of a deployment.
const (
	DeploymentInitializing = "initializing"
	DeploymentPending      = "pending"
	DeploymentRunning      = "running"
	DeploymentPaused       = "paused"
	DeploymentBlocked      = "blocked"
	DeploymentUnblocking   = "unblocking"
	DeploymentSuccessful   = "successful"
	DeploymentFailed       = "failed"
	DeploymentCancelled    = "cancelled"
)

// Deployment is the roll-out of one version of a service.
type Deployment struct {
	ID                 string
	Namespace          string
	JobID              string
	JobVersion         uint64
	JobModifyIndex     uint64
	JobSpecModifyIndex uint64
	JobCreateIndex     uint64
	EvalPriority       int
	TaskGroups         map[string]*DeploymentGroup
	Status             string
	StatusDescription  string
	CreateIndex        uint64
	ModifyIndex        uint64
	CreateTime         int64
	ModifyTime         int64
}

// DeploymentGroup is how far one group has got.
type DeploymentGroup struct {
	AutoRevert        bool
	AutoPromote       bool
	Promoted          bool
	ProgressDeadline  time.Duration
	RequireProgressBy int64    // unix ns; 0 = nothing was placed yet
	PlacedCanaries    []string // allocation ids
	DesiredCanaries   int
	DesiredTotal      int
	Placed            int
	Healthy           int
	Unhealthy         int
}

// Active reports whether the deployment has not ended.
func (d *Deployment) Active() bool {
	switch d.Status {
	case DeploymentSuccessful, DeploymentFailed, DeploymentCancelled:
		return false
	}
	return true
}

// NeedsPromotion reports whether canaries wait for somebody's word.
func (d *Deployment) NeedsPromotion() bool {
	for _, g := range d.TaskGroups {
		if g.DesiredCanaries > 0 && !g.Promoted {
			return true
		}
	}
	return false
}
