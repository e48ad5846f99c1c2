package httpapi

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/wire"
)

// clientTable is what the node of an allocation answers.
func (a *API) clientTable() endpoint.Table {
	const alloc = "/v1/client/allocation/{id}"
	files := onNode(auth.WriteFS, filesBody)
	files.Drain = true
	t := endpoint.Table{
		// Public, because the token may come in the first message; the handler asks for it before anything else.
		endpoint.Stream("client.exec", "GET", alloc+"/exec", onNode(auth.Public, 0), a.exec),
		endpoint.Call("client.execution", "GET", alloc+"/execution/{exec}", onNode(auth.AllocExec, 0), a.execution),
		endpoint.Call("client.execution.signal", "PUT", alloc+"/execution/{exec}/signal", onNode(auth.AllocExec, smallBody), a.signalExecution),
		endpoint.Call("client.execution.kill", "DELETE", alloc+"/execution/{exec}", onNode(auth.AllocExec, smallBody), a.killExecution),
		endpoint.Stream("client.files.apply", "PUT", alloc+"/files", files, a.applyFiles),
		endpoint.Stream("client.files.list", "GET", alloc+"/files", onNode(auth.ReadFS, 0), a.listFiles),
		endpoint.Stream("client.files.raw", "GET", alloc+"/files/raw", onNode(auth.ReadFS, 0), a.readFile),
		endpoint.Call("client.stats", "GET", alloc+"/stats", onNode(auth.ReadJob, 0), a.stats),
	}
	return append(t, putAndPost(func(method, name string) endpoint.Table {
		return endpoint.Table{
			endpoint.Call("client.restart"+name, method, alloc+"/restart", onNode(auth.AllocLife, smallBody), a.restart),
			endpoint.Call("client.signal"+name, method, alloc+"/signal", onNode(auth.AllocLife, smallBody), a.signal),
		}
	})...)
}

// owner is the agent of the node that an allocation is on.
func (a *API) owner(allocID string) (LocalNode, *model.Allocation, error) {
	al := a.store.Snapshot().Alloc(nil, allocID)
	if al == nil {
		return nil, nil, fault.New(fault.NotFound, "Unknown allocation %q", allocID)
	}
	n := a.local.Load()
	if n == nil || (*n).ID() != al.NodeID {
		return nil, nil, fault.New(fault.Unsupported, "allocation %q is on node %s; reaching other nodes than this server's own is not supported by Rockpool",
			allocID, al.NodeID)
	}
	return *n, al, nil
}

// wall is one part of the containment table.
type wall struct {
	Wall   string
	Fences []driver.Fence
}

// fences is the containment table of this server's own node, in its order.
func (a *API) fences(context.Context, auth.Identity, endpoint.None) ([]wall, error) {
	n := a.local.Load()
	if n == nil {
		return nil, fault.New(fault.NotFound, "there is no node in this process: ask the process of the node")
	}
	walls := []wall{}
	for _, f := range (*n).Fences() {
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

func (a *API) task(r taskPath) (driver.Task, error) {
	n, _, err := a.owner(r.ID)
	if err != nil {
		return nil, err
	}
	t, err := n.Task(r.ID, r.Task)
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
}

func (a *API) execution(_ context.Context, _ auth.Identity, r executionPath) (executionState, error) {
	n, _, err := a.owner(r.ID)
	if err != nil {
		return executionState{}, err
	}
	state, res, err := n.Execution(r.ID, r.Task, r.Exec)
	return executionState{state, res.ExitCode, res.Signal, res.OOMKilled, int64(res.CPUTime), int64(res.WallTime), res.PeakMemory, res.Verdict,
			res.OutputBytes},
		taskError(err, r.Task)
}

type signalExecution struct {
	executionPath
	Body struct{ Signal string } `body:"json"`
}

func (a *API) signalExecution(_ context.Context, _ auth.Identity, r signalExecution) (indexBody, error) {
	n, _, err := a.owner(r.ID)
	if err != nil {
		return indexBody{}, err
	}
	number, err := signalNumber(r.Body.Signal)
	if err != nil {
		return indexBody{}, err
	}
	return indexBody{}, taskError(n.SignalExecution(r.ID, r.Task, r.Exec, int(number)), r.Task)
}

func (a *API) killExecution(_ context.Context, _ auth.Identity, r executionPath) (indexBody, error) {
	n, _, err := a.owner(r.ID)
	if err != nil {
		return indexBody{}, err
	}
	return indexBody{}, taskError(n.KillExecution(r.ID, r.Task, r.Exec), r.Task)
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

func (a *API) restart(ctx context.Context, _ auth.Identity, r restart) (indexBody, error) {
	n, al, err := a.owner(r.ID)
	if err != nil {
		return indexBody{}, err
	}
	names, err := tasksOf(al, r.Body.TaskName)
	if err != nil {
		return indexBody{}, err
	}
	for _, t := range names {
		if err := n.RestartTask(ctx, r.ID, t); err != nil {
			return indexBody{}, taskError(err, t)
		}
	}
	return indexBody{}, nil
}

type signal struct {
	ID   string                        `path:"id"`
	Body struct{ Task, Signal string } `body:"json"`
}

func (a *API) signal(ctx context.Context, _ auth.Identity, r signal) (indexBody, error) {
	n, al, err := a.owner(r.ID)
	if err != nil {
		return indexBody{}, err
	}
	number, err := signalNumber(r.Body.Signal)
	if err != nil {
		return indexBody{}, err
	}
	names, err := tasksOf(al, r.Body.Task)
	if err != nil {
		return indexBody{}, err
	}
	for _, name := range names {
		t, err := n.Task(r.ID, name)
		if err == nil {
			err = t.Signal(ctx, int(number))
		}
		if err != nil {
			return indexBody{}, taskError(err, name)
		}
	}
	return indexBody{}, nil
}

// tasksOf is the task of that name, or with no name all of the allocation.
func tasksOf(al *model.Allocation, name string) ([]string, error) {
	var out []string
	if g := al.Job.Group(al.TaskGroup); g != nil {
		for _, t := range g.Tasks {
			if name == "" || t.Name == name {
				out = append(out, t.Name)
			}
		}
	}
	if len(out) == 0 {
		return nil, answer(http.StatusInternalServerError, "Could not find task runner for task: %s", name)
	}
	return out, nil
}

func (a *API) stats(ctx context.Context, _ auth.Identity, r taskPath) (*wire.AllocResourceUsage, error) {
	n, al, err := a.owner(r.ID)
	if err != nil {
		return nil, err
	}
	names, err := tasksOf(al, r.Task)
	if err != nil {
		return nil, err
	}
	now := time.Now().UnixNano()
	sum := &wire.ResourceUsage{MemoryStats: &wire.MemoryStats{Measured: measured}, CpuStats: &wire.CpuStats{}}
	out := &wire.AllocResourceUsage{ResourceUsage: sum, Tasks: map[string]*wire.TaskResourceUsage{}, Timestamp: now}
	for _, name := range names {
		t, err := n.Task(r.ID, name)
		if err != nil {
			return nil, taskError(err, name)
		}
		u, err := t.Usage(ctx)
		if err != nil {
			return nil, taskError(err, name)
		}
		bytes := uint64(max(u.MemoryBytes, 0))
		sum.MemoryStats.Usage += bytes
		out.Tasks[name] = &wire.TaskResourceUsage{Timestamp: now, ResourceUsage: &wire.ResourceUsage{
			MemoryStats: &wire.MemoryStats{Usage: bytes, Measured: measured}, CpuStats: &wire.CpuStats{},
		}}
	}
	return out, nil
}

var measured = []string{"Usage"}

// execID checks the id that a client gave an execution.
func execID(id string) error {
	if !ident.ValidName(id) {
		return fault.New(fault.Invalid, "rockpool_id must be 1 to 64 letters, digits or hyphens")
	}
	return nil
}
