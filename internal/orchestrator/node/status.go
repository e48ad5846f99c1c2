package node

import "rockpool/internal/orchestrator/model"

// clientStatus derives an allocation's status from those of its tasks: any failed is failed; else any running is
// running; else any pending is pending; else all have ended well and it is complete.
func clientStatus(states map[string]*model.TaskState) (status, description string) {
	var pending, running bool
	for _, s := range states {
		switch {
		case s.State == model.TaskDead && s.Failed:
			return model.ClientFailed, "Failed tasks"
		case s.State == model.TaskRunning:
			running = true
		case s.State == model.TaskPending:
			pending = true
		}
	}
	switch {
	case running:
		return model.ClientRunning, "Tasks are running"
	case pending:
		return model.ClientPending, "No tasks have started"
	}
	return model.ClientComplete, "All tasks have completed"
}
