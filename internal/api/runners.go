package api

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"rockpool/internal/api/dto"
	"rockpool/internal/api/session"
	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/environment"
	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/runner"
	"rockpool/internal/runner/execution"
)

type claimRequest struct {
	Body dto.RunnerRequest `body:"json"`
}

func (a *API) provideRunner(ctx context.Context, _ auth.Identity, r claimRequest) (dto.Runner, error) {
	if r.Body.InactivityTimeout < 0 {
		return dto.Runner{}, fault.New(fault.Invalid, "inactivityTimeout must not be negative")
	}
	got, err := a.runners.Claim(ctx, environment.ID(r.Body.ExecutionEnvironmentID), seconds(r.Body.InactivityTimeout))
	if err != nil {
		return dto.Runner{}, err
	}
	out := dto.Runner{RunnerID: got.ID, MappedPorts: []dto.MappedPort{}}
	for _, p := range got.Ports() {
		out.MappedPorts = append(out.MappedPorts, dto.MappedPort{ExposedPort: p.Exposed, HostAddress: p.Address})
	}
	return out, nil
}

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }

type runnerRequest struct {
	ID string `path:"runnerId"`
}

func (a *API) deleteRunner(ctx context.Context, _ auth.Identity, _ runnerRequest) (endpoint.NoContent, error) {
	if err := a.runners.Destroy(ctx, runnerOf(ctx), execution.ErrDeleted); err != nil {
		return endpoint.NoContent{}, coded(err, dto.CodeInternal)
	}
	return endpoint.NoContent{}, nil
}

type executeRequest struct {
	ID   string               `path:"runnerId"`
	Body dto.ExecutionRequest `body:"json"`
}

// hostKey is where lookup leaves the request's Host, which the WebSocket URL depends on and handlers do not see.
type hostKey struct{}

func (a *API) execute(ctx context.Context, _ auth.Identity, r executeRequest) (dto.Execution, error) {
	b := r.Body
	if a.opts.ForbidSingleQuote && strings.Contains(b.Command, "'") {
		return dto.Execution{}, fault.New(fault.Invalid, "use of forbidden character")
	}
	req := execution.Request{
		Command: b.Command, Privileged: b.PrivilegedExecution, TimeLimit: seconds(b.TimeLimit), Env: b.Environment,
		TTY: b.TTY == nil || *b.TTY, Size: execution.Size{Width: b.Width, Height: b.Height},
	}
	if err := req.Validate(); err != nil {
		return dto.Execution{}, err
	}
	if k := b.Reattach; k != nil {
		var err error
		if req.Keep, err = execution.NewKeep(k.BufferBytes, k.GraceSeconds, k.Acknowledge); err != nil {
			return dto.Execution{}, err
		}
	}
	run := runnerOf(ctx)
	id, err := run.Executions.Put(req)
	if err != nil {
		return dto.Execution{}, err
	}
	host, _ := ctx.Value(hostKey{}).(string)
	return dto.Execution{WebSocketURL: a.webSocketURL(host, run.ID, id)}, nil
}

type websocketRequest struct {
	ID        string `path:"runnerId"`
	Execution string `query:"executionID"`
	Offset    string `query:"offset"`
}

// offset is the number of the output message that a client wants first. Without one it wants to begin.
func (q websocketRequest) offset() (n int64, given bool, err error) {
	if q.Offset == "" {
		return 0, false, nil
	}
	n, err = strconv.ParseInt(q.Offset, 10, 64)
	if err != nil || n < 0 {
		return 0, true, fault.New(fault.Invalid, "offset: %q is no number of messages", q.Offset)
	}
	return n, true, nil
}

// refuseUpgrade answers a handshake that cannot become a WebSocket.
func refuseUpgrade(w http.ResponseWriter, r *http.Request, status int, reason error) {
	if status == http.StatusForbidden {
		writeError(w, r, &answered{error: fault.New(fault.Forbidden, "the origin is not allowed"), status: status})
		return
	}
	writeError(w, r, fault.Wrap(fault.Invalid, reason, "this is not a WebSocket handshake"))
}

func (a *API) websocket(w http.ResponseWriter, r *http.Request, _ auth.Identity, q websocketRequest) error {
	run := runnerOf(r.Context())
	offset, again, err := q.offset()
	if err != nil {
		return err
	}
	key := run.ID + "/" + q.Execution
	req, ok := run.Executions.Take(q.Execution)
	switch {
	case !ok && again && a.sessions.Keeps(key):
		return a.resume(w, r, run, key, offset)
	case !ok && again:
		return fault.New(fault.NotFound, "execution id unknown, or not held for a client that comes again")
	case !ok:
		return fault.New(fault.NotFound, "execution id unknown")
	case offset > 0:
		run.Executions.Restore(q.Execution, req)
		return fault.New(fault.Invalid, "offset: the execution has not begun")
	}
	conn, err := session.Upgrade(w, r, refuseUpgrade)
	if err != nil {
		run.Executions.Restore(q.Execution, req)
		return nil // it has been answered
	}
	// http.Server does not wait for hijacked connections; the sessions' own set does.
	if !a.connections.Do(func() { a.serve(r.Context(), conn, run, q.Execution, req) }) {
		return conn.Close()
	}
	return nil
}

// resume has an execution that is under way go on with another connection.
func (a *API) resume(w http.ResponseWriter, r *http.Request, run *runner.Runner, key string, offset int64) error {
	if !session.Offers(r) {
		return fault.New(fault.Invalid, "offset: only clients of the subprotocol %s may come again", session.Protocol)
	}
	conn, err := session.Upgrade(w, r, refuseUpgrade)
	if err != nil {
		return nil // it has been answered
	}
	run.Touch()
	if !a.connections.Do(func() { a.sessions.Resume(context.WithoutCancel(r.Context()), conn, key, offset) }) {
		return conn.Close()
	}
	return nil
}

func (a *API) serve(ctx context.Context, conn *session.Conn, run *runner.Runner, id string, req execution.Request) {
	log := logging.From(ctx).WithField("exec_id", id)
	// The request's own context ends in ways that say nothing about the client once the connection is taken over.
	ctx, unbind := run.Bind(logging.With(context.WithoutCancel(ctx), log))
	defer unbind()
	run.Touch()
	out := a.sessions.Serve(ctx, conn, session.Execution{
		Key: run.ID + "/" + id, Size: req.Size, Keep: req.Keep,
		Run: func(ctx context.Context, c execution.Client) execution.Outcome {
			return a.engine.Run(ctx, run.Place(), id, req, c, func(err error) { a.runners.Discard(run, err) })
		},
		Signal: func(ctx context.Context, name string) {
			if err := a.engine.Executor.Signal(ctx, run.Place(), id, name); err != nil {
				log.WithField("error", err.Error()).Debug("a signal was not delivered")
			}
		},
	})
	if out.Err != nil {
		log.WithField("error", out.Err.Error()).Warn("an execution failed")
	}
}
