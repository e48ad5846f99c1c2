package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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
	"rockpool/internal/timeline"
)

type claimRequest struct {
	Key  string            `header:"Idempotency-Key"`
	Body dto.RunnerRequest `body:"json"`
}

func (a *API) provideRunner(ctx context.Context, caller auth.Identity, r claimRequest) (dto.Runner, error) {
	token := tokenOf(caller)
	c := runner.Claim{
		Env: environment.ID(r.Body.ExecutionEnvironmentID), Timeout: seconds(r.Body.InactivityTimeout),
		By: runner.Holder{Owner: token.Owner, Quota: token.Runners},
	}
	if c.Timeout < 0 {
		return dto.Runner{}, fault.New(fault.Invalid, "inactivityTimeout must not be negative")
	}
	asked := r.Body.WaitTimeout
	if asked != nil {
		if *asked < 0 {
			return dto.Runner{}, fault.New(fault.Invalid, "waitTimeout must not be negative")
		}
		c.Wait = seconds(*asked)
	}
	var err error
	if c.Key, err = claimKey(token.Owner, r.Key); err != nil {
		return dto.Runner{}, err
	}
	if env := strconv.Itoa(int(c.Env)); !caller.MayIn(auth.GatewayRun, env) {
		return dto.Runner{}, fault.Wrap(fault.Forbidden, &endpoint.Denied{Scope: auth.GatewayRun, Target: env}, "Permission denied")
	}
	patient, release := a.untilDraining(ctx)
	defer release()
	got, err := a.runners.Claim(patient, c)
	if err != nil && errors.Is(context.Cause(patient), errDraining) {
		err = errDraining
	}
	if errors.Is(err, runner.ErrQuota) {
		a.opts.Watch.Refused("quota")
	}
	if busy, ok := errors.AsType[*runner.Busy](err); ok && asked != nil {
		status, code := statusOf(err)
		return dto.Runner{}, &answered{error: err, status: status, code: code, queue: &dto.Queue{
			Position: busy.Position, Waiting: busy.Waiting, EstimateSeconds: int(math.Ceil(busy.Expected.Seconds())),
		}}
	}
	if err != nil {
		return dto.Runner{}, err
	}
	noteRunner(ctx, got)
	out := dto.Runner{RunnerID: got.ID, MappedPorts: []dto.MappedPort{}}
	for _, p := range got.Ports() {
		out.MappedPorts = append(out.MappedPorts, dto.MappedPort{ExposedPort: p.Exposed, HostAddress: p.Address})
	}
	return out, nil
}

// maxKeyLen bounds an Idempotency-Key, in bytes.
const maxKeyLen = 255

// claimKey is what a claim that may be repeated is known by: one owner's keys mean nothing to another, and neither is stored in the clear.
func claimKey(owner, key string) (string, error) {
	if key == "" {
		return "", nil
	}
	if len(key) > maxKeyLen || strings.ContainsFunc(key, func(c rune) bool { return c < ' ' || c > '~' }) {
		return "", fault.New(fault.Invalid, "the Idempotency-Key must be 1 to %d printable ASCII characters", maxKeyLen)
	}
	sum := sha256.Sum256([]byte(owner + "\x00" + key))
	return hex.EncodeToString(sum[:16]), nil
}

// maxSeconds is what a number of seconds in a request means at most: 68 years, which no sum of times overflows with.
const maxSeconds = 1 << 31

func seconds(n int) time.Duration {
	return time.Duration(max(min(n, maxSeconds), -maxSeconds)) * time.Second
}

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
	if a.opts.Fits != nil {
		if err := a.opts.Fits(req); err != nil {
			return dto.Execution{}, err
		}
	}
	if k := b.Reattach; k != nil {
		var err error
		if req.Keep, err = execution.NewKeep(k.BufferBytes, k.GraceSeconds, k.Acknowledge); err != nil {
			return dto.Execution{}, err
		}
	}
	run := runnerOf(ctx)
	if err := a.room(run, run.Executions.Waiting()+int(run.Executions.Running.Load())+1, int(a.running.Load())+1); err != nil {
		return dto.Execution{}, err
	}
	req.Span = timeline.From(ctx)
	id, err := run.Executions.Put(req)
	if err != nil {
		return dto.Execution{}, err
	}
	req.Span.Text(timeline.ExecutionID, id)
	a.opts.Watch.ExecutionStored(int(run.Env), run.ID, id)
	host, _ := ctx.Value(hostKey{}).(string)
	return dto.Execution{WebSocketURL: a.webSocketURL(host, run.ID, id)}, nil
}

// room refuses what would be an execution more than may be under way. CodeOcean takes it for a runner that is not available.
func (a *API) room(run *runner.Runner, ofRunner, inAll int) error {
	err := error(nil)
	if n := a.opts.MaxExecutions; n > 0 && ofRunner > n {
		err = fault.New(fault.Exhausted, "the runner has %d executions that run or wait for their WebSocket, which is all it may have: let one end first", n)
	} else if n := a.opts.MaxExecutionsInAll; n > 0 && inAll > n {
		err = fault.New(fault.Exhausted, "%d executions are under way, which is all that this gateway takes on: try again later", n)
	}
	if err != nil {
		a.opts.Watch.Refused("executions")
	}
	return err
}

// begin takes a place for an execution until the function it returns is called.
func (a *API) begin(run *runner.Runner) (end func(), err error) {
	end = func() { a.running.Add(-1); run.Executions.Running.Add(-1) }
	if err := a.room(run, int(run.Executions.Running.Add(1)), int(a.running.Add(1))); err != nil {
		end()
		return nil, err
	}
	return end, nil
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

func (a *API) websocket(w http.ResponseWriter, r *http.Request, caller auth.Identity, q websocketRequest) error {
	if done, err := a.relay(w, r, caller, q.Execution); done {
		return err
	}
	run := runnerOf(r.Context())
	offset, again, err := q.offset()
	if err != nil {
		return err
	}
	key := run.ID + "/" + q.Execution
	// Counted before it is asked whether the gateway stops: a stop then either waits for this one or has it refused.
	a.present.enter()
	defer a.present.leave()
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
	case a.isDraining():
		run.Executions.Restore(q.Execution, req)
		return errDraining
	}
	end, err := a.begin(run)
	if err != nil {
		run.Executions.Restore(q.Execution, req)
		return err
	}
	defer end()
	// http.Server does not wait for hijacked connections; this set does.
	if !a.connections.Do(func() {
		conn, err := session.Upgrade(w, r, refuseUpgrade)
		if err != nil { // it has been answered
			run.Executions.Restore(q.Execution, req)
			return
		}
		a.serve(r.Context(), conn, run, q.Execution, req)
	}) {
		run.Executions.Restore(q.Execution, req)
		return errDraining
	}
	return nil
}

// resume has an execution that is under way go on with another connection.
func (a *API) resume(w http.ResponseWriter, r *http.Request, run *runner.Runner, key string, offset int64) error {
	if !session.Offers(r) {
		return fault.New(fault.Invalid, "offset: only clients of the subprotocol %s may come again", session.Protocol)
	}
	if !a.connections.Do(func() {
		if conn, err := session.Upgrade(w, r, refuseUpgrade); err == nil { // otherwise it has been answered
			run.Touch()
			a.sessions.Resume(context.WithoutCancel(r.Context()), conn, key, offset)
		}
	}) {
		return errDraining
	}
	return nil
}

func (a *API) serve(ctx context.Context, conn *session.Conn, run *runner.Runner, id string, req execution.Request) {
	// The request's own context ends in ways that say nothing about the client once the connection is taken over.
	ctx, unbind := run.Bind(logging.Add(context.WithoutCancel(ctx), "exec_id", id))
	defer unbind()
	log := logging.From(ctx)
	ctx, release := a.untilStopped(ctx)
	defer release()
	run.Touch()
	var stdout, stderr atomic.Int64
	out := execution.Outcome{Kind: execution.Failed} // also after a panic
	span := req.Span.Child(timeline.ExecutionRun)
	ctx = timeline.With(ctx, span)
	var judged time.Time // zero = it has no outcome
	defer func() {
		if span != nil && !judged.IsZero() {
			span.Past(timeline.ExecClose, judged, time.Now())
		}
		span.Text(timeline.Outcome, out.Kind.String())
		span.Fail(out.Err)
		span.End()
	}()
	told := a.opts.Watch.ExecutionBegun(int(run.Env), run.ID, id)
	tell := sync.OnceFunc(func() { told(out.Kind.String(), string(out.Start), stdout.Load(), stderr.Load()) })
	defer tell()
	out = a.sessions.Serve(ctx, conn, session.Execution{
		Key: run.ID + "/" + id, Size: req.Size, Keep: req.Keep,
		Run: func(ctx context.Context, c execution.Client) execution.Outcome {
			c.Stdout, c.Stderr = meter{c.Stdout, &stdout}, meter{c.Stderr, &stderr}
			out = a.engine.Run(ctx, run.Place(), id, req, c, func(err error) { a.runners.Discard(run, err) })
			judged = time.Now()
			tell() // the time that the client takes to read the end, or to come for it, is not the execution's
			return out
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

// meter counts what is written.
type meter struct {
	io.Writer
	bytes *atomic.Int64
}

func (m meter) Write(p []byte) (int, error) {
	n, err := m.Writer.Write(p)
	m.bytes.Add(int64(n))
	return n, err
}

// listRunners is everything that the caller has claimed, or with the scope operate that anybody has.
func (a *API) listRunners(_ context.Context, caller auth.Identity, _ endpoint.None) (dto.ClaimedRunners, error) {
	token, now := tokenOf(caller), time.Now()
	out := dto.ClaimedRunners{Runners: []dto.ClaimedRunner{}}
	for _, r := range a.runners.Claimed() {
		if !token.Owns(r.Owner, strconv.Itoa(int(r.Env))) {
			continue
		}
		since, timeout, left := r.Times(now)
		out.Runners = append(out.Runners, dto.ClaimedRunner{
			ID: r.ID, Environment: int(r.Env), State: "used", Owner: a.opts.Tokens.NameOf(r.Owner), Age: int(now.Sub(since) / time.Second),
			InactivityTimeout: int(timeout / time.Second), TimeLeft: int(left / time.Second),
			Executions: int(r.Executions.Running.Load()), Waiting: r.Executions.Waiting(),
		})
	}
	return out, nil
}
