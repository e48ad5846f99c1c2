package serve

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/wire"
)

// wall is one part of the containment table.
type wall struct {
	Wall   string
	Fences []driver.Fence
}

// fences is the containment table of the node, in its order.
func (h *Handler) fences(context.Context, auth.Identity, endpoint.None) ([]wall, error) {
	walls := []wall{}
	for _, f := range h.node.Fences() {
		i := slices.IndexFunc(walls, func(w wall) bool { return w.Wall == f.Wall })
		if i < 0 {
			i, walls = len(walls), append(walls, wall{Wall: f.Wall})
		}
		walls[i].Fences = append(walls[i].Fences, f)
	}
	return walls, nil
}

// taskError gives the errors of drivers their kind.
func taskError(err error, task string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, driver.ErrTaskGone):
		return fault.Wrap(fault.NotFound, err, "task %q is not running.", task)
	case errors.Is(err, driver.ErrNotSupported):
		return fault.Wrap(fault.Unsupported, err, "not supported by the task's driver")
	}
	return err
}

type taskPath struct {
	ID   string `path:"id"`
	Task string `query:"task"`
}

func (h *Handler) task(ctx context.Context, r taskPath) (driver.Task, error) {
	t, err := h.node.Task(ctx, r.ID, r.Task)
	return t, taskError(err, r.Task)
}

type executionPath struct {
	taskPath
	Exec string `path:"exec"`
}

type executionState struct {
	State           string
	ExitCode        int
	Signal          int
	OOMKilled       bool
	CPUTimeNS       int64
	WallTimeNS      int64
	PeakMemoryBytes int64
	Verdict         string
	OutputBytes     int64
	Warm            bool // it took over an interpreter that waited
	Cold            bool // its task is kept warm, and it did not
}

func (h *Handler) execution(_ context.Context, _ auth.Identity, r executionPath) (executionState, error) {
	state, res, err := h.node.Execution(r.ID, r.Task, r.Exec)
	return executionState{state, res.ExitCode, res.Signal, res.OOMKilled, int64(res.CPUTime), int64(res.WallTime), res.PeakMemory, res.Verdict,
			res.OutputBytes, res.Warm, res.Cold},
		taskError(err, r.Task)
}

type signalExecution struct {
	executionPath
	Body struct{ Signal string } `body:"json"`
}

func (h *Handler) signalExecution(_ context.Context, _ auth.Identity, r signalExecution) (done, error) {
	number, err := signalNumber(r.Body.Signal)
	if err != nil {
		return done{}, err
	}
	return done{}, taskError(h.node.SignalExecution(r.ID, r.Task, r.Exec, int(number)), r.Task)
}

func (h *Handler) killExecution(_ context.Context, _ auth.Identity, r executionPath) (done, error) {
	return done{}, taskError(h.node.KillExecution(r.ID, r.Task, r.Exec), r.Task)
}

func signalNumber(name string) (syscall.Signal, error) {
	up := strings.ToUpper(name)
	if !strings.HasPrefix(up, "SIG") {
		up = "SIG" + up
	}
	if n := unix.SignalNum(up); n != 0 {
		return n, nil
	}
	return 0, fault.New(fault.Invalid, "%q is not a signal", name)
}

type restart struct {
	ID   string `path:"id"`
	Body struct {
		TaskName string
		AllTasks bool
	} `body:"json"`
}

func (h *Handler) restart(ctx context.Context, _ auth.Identity, r restart) (done, error) {
	if _, err := h.tasksOf(r.ID, r.Body.TaskName); err != nil {
		return done{}, err
	}
	return done{}, taskError(h.node.RestartTask(ctx, r.ID, r.Body.TaskName), r.Body.TaskName)
}

type signal struct {
	ID   string                        `path:"id"`
	Body struct{ Task, Signal string } `body:"json"`
}

func (h *Handler) signal(ctx context.Context, _ auth.Identity, r signal) (done, error) {
	number, err := signalNumber(r.Body.Signal)
	if err != nil {
		return done{}, err
	}
	names, err := h.tasksOf(r.ID, r.Body.Task)
	if err != nil {
		return done{}, err
	}
	reached := 0
	for _, name := range names {
		err = taskError(h.node.SignalTask(ctx, r.ID, name, int(number)), name)
		switch {
		case err == nil:
			reached++
		case r.Body.Task != "" || !fault.Is(err, fault.NotFound): // of all tasks, those that do not run are left out
			return done{}, err
		}
	}
	if reached == 0 {
		return done{}, err
	}
	return done{}, nil
}

// tasksOf is the task of that name, or with no name all of the allocation.
func (h *Handler) tasksOf(allocID, name string) ([]string, error) {
	all, err := h.node.Tasks(allocID)
	if err != nil || name == "" && len(all) > 0 {
		return all, err
	}
	if !slices.Contains(all, name) {
		return nil, wire.Answer(http.StatusInternalServerError, "Could not find task runner for task: %s", name)
	}
	return []string{name}, nil
}

// execID checks the id that a client gave an execution.
func execID(id string) error {
	if !ident.ValidName(id) {
		return fault.New(fault.Invalid, "rockpool_id must be 1 to 64 letters, digits or hyphens")
	}
	return nil
}
