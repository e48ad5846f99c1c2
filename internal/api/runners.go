package api

import (
	"context"
	"net/http"
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
	if done, err := a.relay(w, r, q.Execution); done {
		return err
	}
	run := runnerOf(r.Context())
	req, ok := run.Executions.Take(q.Execution)
	if !ok {
		return fault.New(fault.NotFound, "execution id unknown")
	}
	conn, err := session.Upgrade(w, r, refuseUpgrade)
	if err != nil {
		run.Executions.Restore(q.Execution, req)
		return nil // it has been answered
	}
	// http.Server does not wait for hijacked connections; the sessions' own set does.
	done := make(chan struct{})
	a.present.enter()
	defer a.present.leave()
	if !a.sessions.Go(func() { defer close(done); a.serve(r.Context(), conn, run, q.Execution, req) }) {
		return conn.Close()
	}
	<-done
	return nil
}

func (a *API) serve(ctx context.Context, conn *session.Conn, run *runner.Runner, id string, req execution.Request) {
	log := logging.From(ctx).WithField("exec_id", id)
	// The request's own context ends in ways that say nothing about the client once the connection is taken over.
	ctx, unbind := run.Bind(logging.With(context.WithoutCancel(ctx), log))
	defer unbind()
	ctx, release := a.untilStopped(ctx)
	defer release()
	run.Touch()
	out := session.Serve(ctx, conn, req.Size, func(ctx context.Context, c execution.Client) execution.Outcome {
		return a.engine.Run(ctx, run.Place(), id, req, c, func(err error) { a.runners.Discard(run, err) })
	}, func(ctx context.Context, name string) {
		if err := a.engine.Executor.Signal(ctx, run.Place(), id, name); err != nil {
			log.WithField("error", err.Error()).Debug("a signal was not delivered")
		}
	})
	if out.Err != nil {
		log.WithField("error", out.Err.Error()).Warn("an execution failed")
	}
}
