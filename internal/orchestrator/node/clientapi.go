package node

import (
	"context"
	"os"
	"path/filepath"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/wire"
)

// runner finds what runs an allocation, or the image of one that was retired.
func (a *Agent) runner(allocID string) (*allocRunner, error) {
	r, e, err := a.find(allocID)
	if r != nil || err != nil {
		return r, err
	}
	image, err := a.image(allocID, e)
	if err != nil {
		if _, _, gone := a.find(allocID); gone != nil { // it was forgotten meanwhile
			return nil, gone
		}
	}
	return image, err
}

// find looks an allocation up: what runs it, or nil and what is left in memory of one that was retired. What is going is not known any more.
func (a *Agent) find(allocID string) (*allocRunner, ended, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e, ok := a.ended[allocID]; ok && !e.going {
		return nil, e, nil
	}
	if r := a.runners[allocID]; r != nil && !r.purge.isSet() {
		return r, ended{}, nil
	}
	return nil, ended{}, fault.New(fault.NotFound, "Unknown allocation %q", allocID)
}

// Tasks are the names of an allocation's tasks, in the order of its job.
func (a *Agent) Tasks(allocID string) (names []string, err error) {
	r, err := a.runner(allocID)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if g := r.alloc.Job.Group(r.alloc.TaskGroup); g != nil {
		for _, t := range g.Tasks {
			names = append(names, t.Name)
		}
	}
	return names, nil
}

// SignalTask signals a task's main process.
func (a *Agent) SignalTask(ctx context.Context, allocID, task string, signal int) error {
	t, handle, err := a.running(ctx, allocID, task)
	if err != nil {
		return err
	}
	_ = t.update(func(r *taskRecord) { // an error is logged there
		r.State = withEvents(r.State, event(model.TaskSignaling, "Task being sent signal "+signalName(signal), "signal", signalName(signal)))
	})
	return handle.Signal(ctx, signal)
}

// Directory is the path of an allocation's directory as clients see it. What it always has is made when somebody asks for the first time.
func (a *Agent) Directory(allocID string) (string, error) {
	names, err := a.Tasks(allocID)
	if err != nil {
		return "", err
	}
	dir := a.db.files(allocID)
	for _, d := range append(names, logDir) {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return "", fault.Wrap(fault.Internal, err, "the allocation's directory cannot be made")
		}
	}
	return dir, nil
}

// Ended reports whether a task will write no more.
func (a *Agent) Ended(allocID, task string) (bool, error) {
	r, _, err := a.find(allocID)
	if err != nil {
		return false, err
	}
	if r == nil { // it has ended, and those who follow its logs ask again and again
		return true, nil
	}
	t := r.tasks[task]
	if t == nil {
		return true, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return t.record.State.State == model.TaskDead && len(t.output) == 0, nil
}

// Checks are the newest results of an allocation's checks.
func (a *Agent) Checks(allocID string) (wire.AllocCheckStatuses, error) {
	r, err := a.runner(allocID)
	if err != nil {
		return nil, err
	}
	return r.offers.all(), nil
}
