package api

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"rockpool/internal/api/access"
	"rockpool/internal/api/dto"
	"rockpool/internal/api/openapi"
	"rockpool/internal/api/session"
	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/environment"
	"rockpool/internal/fault"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/runner"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/files"
	"rockpool/internal/timeline"
)

// Options of the API.
type Options struct {
	Tokens               *access.Tokens
	TLS                  bool   // our own listener speaks TLS
	PublicURL            string // replaces scheme and host in WebSocket URLs
	AlertThreshold       float64
	ForbidSingleQuote    bool
	CopyModificationTime bool
	ReattachBuffer       int64       // bytes of output that are held in all for clients that may come again
	Uploads              *files.Room // what files that are being sent may take in all; nil = anything
	Version              string      // empty = there is no release
	MaxExecutions        int         // that run or wait to be begun, of one runner and in all; 0 = no bound
	MaxExecutionsInAll   int
	Fits                 func(execution.Request) error // says what of a command cannot be passed on; nil = all can be
	Warms                func() bool                   // says whether interpreters wait in runners that ask for it; nil = they do not
	Watch                Watch
	Metrics              http.Handler // figures for Prometheus
	Gateways             Gateways     // nil = this one is alone
	GatewayTLS           *tls.Config
	Timeline             *timeline.Recorder // nil = nothing is recorded
}

// Watch is told what happens. Its methods must not block.
type Watch interface {
	Begin(route string)
	Observe(o endpoint.Observation)
	// Refused is told the reason: token, scope, rate, quota, executions or uploads.
	Refused(reason string)
	ExecutionStored(environment int, runner, execution string)
	// ExecutionBegun returns what is told its verdict, how its program was started (warm, cold or ""), and the bytes it wrote.
	ExecutionBegun(environment int, runner, execution string) (ended func(verdict, start string, stdout, stderr int64))
}

// API answers requests. Stop it before what it depends on.
type API struct {
	opts     Options
	envs     *environment.Service
	runners  *runner.Manager
	engine   *execution.Engine
	files    files.Store
	ready    <-chan struct{}
	log      logging.Logger
	server   http.Handler
	running  atomic.Int64 // executions
	sessions session.Set
	requests sync.WaitGroup  // http.Server does not wait for handlers of connections that were taken over
	life     context.Context // ends when the gateway stops
	stop     context.CancelCauseFunc
	draining context.Context // ends when new requests are refused
	drain    context.CancelFunc
	present  attendance    // WebSocket sessions
	held     chan struct{} // requests that wait for recovery
	relays   chan struct{}

	connections lifecycle.Tasks // of the sessions
}

// New builds the API. ready is closed when recovery is done.
func New(o Options, envs *environment.Service, runners *runner.Manager, engine *execution.Engine, store files.Store, ready <-chan struct{},
	log logging.Logger) *API {
	a := &API{opts: o, envs: envs, runners: runners, engine: engine, files: store, ready: ready, log: log,
		held: make(chan struct{}, maxHeld), relays: make(chan struct{}, maxRelays)}
	a.draining, a.drain = context.WithCancel(context.Background())
	a.life, a.stop = context.WithCancelCause(context.Background())
	a.sessions.Budget = o.ReattachBuffer
	a.server = endpoint.NewServer(a.table(), endpoint.Options{
		Auth: auth.Func(a.authenticate), Error: writeError, Lookup: a.lookup, Target: target, Begin: o.Watch.Begin, Observe: o.Watch.Observe, Log: log,
		Trace: a.trace,
	})
	return a
}

// Body limits in bytes, far above real submissions.
const (
	smallBody = 1 << 20
	filesBody = 512 << 20
)

const (
	prefix = "/api/v1"
	own    = prefix + "/rockpool" // of routes that Poseidon does not have

	websocketRoute = "/websocket"
)

func (a *API) table() endpoint.Table {
	open := endpoint.Policy{Scope: auth.Public}
	call := endpoint.Policy{Scope: auth.GatewayRead, Body: smallBody, Timeout: time.Minute}
	// The body is read before a refusal: clients break on an answer that comes before they have sent everything.
	drained := endpoint.Policy{Scope: auth.GatewayRun, Body: smallBody, Timeout: time.Minute, Drain: true}
	list := drained // for clients that send a body with what asks for a list
	// The time of these depends on what is sent: they are bounded by progress.
	stream := endpoint.Policy{Scope: auth.GatewayRun, Body: filesBody, Drain: true}
	define := endpoint.Policy{Scope: auth.GatewayEnvironments, Body: smallBody, Timeout: time.Minute, Drain: true}
	operate := endpoint.Policy{Scope: auth.GatewayOperate, Timeout: time.Minute}
	// A claim may wait in a queue for longer than anything else.
	claim := drained
	claim.Timeout = 6 * time.Minute
	env, rid := prefix+"/execution-environments", prefix+"/runners/{runnerId}"
	return endpoint.Table{
		endpoint.Call("/health", "GET", prefix+"/health", open, a.health),
		endpoint.Call("/version", "GET", prefix+"/version", open, a.version),
		endpoint.Call("/execution-environments", "GET", prefix+"/statistics/execution-environments", call, a.statistics),
		endpoint.Call("list", "GET", env, call, a.listEnvironments),
		endpoint.Call("get", "GET", env+"/{id:[0-9]+}", call, a.getEnvironment),
		endpoint.Call("createOrUpdate", "PUT", env+"/{id:[0-9]+}", define, a.putEnvironment),
		endpoint.Call("delete", "DELETE", env+"/{id:[0-9]+}", undrained(define), a.deleteEnvironment),
		endpoint.Call("provideRunner", "POST", prefix+"/runners", claim, a.provideRunner),
		endpoint.Call("deleteRunner", "DELETE", rid, drained, a.deleteRunner),
		endpoint.Stream("/files_list", "GET", rid+"/files", list, a.listFiles),
		endpoint.Stream("/files", "PATCH", rid+"/files", stream, a.updateFiles),
		endpoint.Stream("/files/raw", "GET", rid+"/files/raw", stream, a.downloadFile),
		endpoint.Call("/execute", "POST", rid+"/execute", drained, a.execute),
		endpoint.Stream(websocketRoute, "GET", rid+"/websocket", stream, a.websocket),
		endpoint.Call("runners", "GET", own+"/runners", call, a.listRunners),
		endpoint.Stream("metrics", "GET", own+"/metrics", operate, a.metrics),
		endpoint.Call("timelines", "GET", own+"/timelines", operate, a.listTimelines),
		endpoint.Call("/pools", "GET", own+"/pools", call, a.listPools),
		endpoint.Call("/pool", "GET", own+"/pools/{id:[0-9]+}", call, a.getPool),
		endpoint.Call("/ready", "GET", own+"/ready", open, a.takes),
		endpoint.Stream("openapi", "GET", own+"/openapi.json", open, document("application/json", openapi.Document)),
		endpoint.Stream("websocketSchema", "GET", own+"/websocket.schema.json", open, document("application/schema+json", openapi.WebSocket)),
	}
}

// document answers with text that never changes. It needs no token: it says nothing of this gateway but what it is.
func document(contentType string, text []byte) endpoint.StreamHandler[endpoint.None] {
	return func(w http.ResponseWriter, _ *http.Request, _ auth.Identity, _ endpoint.None) error {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Content-Length", strconv.Itoa(len(text)))
		_, err := w.Write(text)
		return err
	}
}

func undrained(p endpoint.Policy) endpoint.Policy {
	p.Drain = false
	return p
}

// target is what a row's scope must hold for: the environment in the path. Runners are looked at by their owner.
func target(r *http.Request, _ endpoint.Route) string {
	if id := endpoint.PathVar(r, "id"); id != "" {
		return id
	}
	return auth.Everywhere
}

// operates refuses a caller who may not operate all environments.
func (a *API) operates(caller auth.Identity) error {
	if tokenOf(caller).MayEverywhere(auth.GatewayOperate) {
		return nil
	}
	a.opts.Watch.Refused("scope")
	err := fault.New(fault.Forbidden, "the token does not have the scope %s for all execution environments", auth.GatewayOperate)
	return &answered{error: err, status: http.StatusForbidden}
}

// metrics tells of all environments.
func (a *API) metrics(w http.ResponseWriter, r *http.Request, caller auth.Identity, _ endpoint.None) error {
	if err := a.operates(caller); err != nil {
		return err
	}
	a.opts.Metrics.ServeHTTP(w, r)
	return nil
}

// Times of a connection.
const (
	bodyTime   = 15 * time.Second // to send a request's body
	bodyPerMiB = time.Second      // and in addition for each MiB of it
	writeTime  = time.Minute      // for a client to take some more of an answer
)

// ServeHTTP answers one request. The body has to arrive in time; afterwards the connection may rest, so that neither a WebSocket nor
// a long PUT is cut.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.requests.Add(1)
	defer a.requests.Done()
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Time{}) // that of the connection's request before
	w = &timedWriter{w, rc}
	if tooMany, ok := r.Context().Value(crowdedKey{}).(string); ok {
		refuse(w, r, tooMany)
		return
	}
	if r.ContentLength != 0 {
		// What a client says of the size must not buy it more time than the largest body would need.
		size := min(max(r.ContentLength, 0), filesBody)
		_ = rc.SetReadDeadline(time.Now().Add(bodyTime + time.Duration(size>>20)*bodyPerMiB))
		r.Body = &timedBody{ReadCloser: r.Body, rc: rc}
	}
	a.server.ServeHTTP(w, r)
}

type crowdedKey struct{}

// Crowded has every request of a connection refused because there are too many connections, as why says.
func Crowded(ctx context.Context, why string) context.Context {
	return context.WithValue(ctx, crowdedKey{}, why)
}

// refuse answers on a connection that is one too many, and has it closed. What checks ask for has a status of its own.
func refuse(w http.ResponseWriter, r *http.Request, why string) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime / 3))
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, smallBody)) // clients break on an answer that comes before they have sent everything
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Connection", "close")
	w.Header().Set("Retry-After", "5")
	err := fault.New(fault.Exhausted, "%s: close idle ones and try again", why)
	status := http.StatusInternalServerError
	if p := r.URL.Path; p == prefix+"/health" || p == own+"/ready" {
		status = http.StatusServiceUnavailable
	}
	writeError(w, r, &answered{error: err, status: status, code: dto.CodeOverload})
}

// timedWriter gives the client time for each piece of an answer, so that one who stops reading does not hold it for ever.
type timedWriter struct {
	http.ResponseWriter
	rc *http.ResponseController
}

func (w *timedWriter) WriteHeader(status int) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(writeTime))
	w.ResponseWriter.WriteHeader(status)
}

func (w *timedWriter) Write(p []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(writeTime))
	return w.ResponseWriter.Write(p)
}

// Unwrap keeps http.ResponseController and hijacking working.
func (w *timedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// timedBody lifts the connection's read deadline at the body's end.
type timedBody struct {
	io.ReadCloser
	rc *http.ResponseController
}

func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		_ = b.rc.SetReadDeadline(time.Time{})
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fault.Wrap(fault.Invalid, err, "the request body did not arrive within %v and %v more for each MiB: send it faster, or in smaller requests", bodyTime, bodyPerMiB)
	}
	return n, err
}

// Stop ends all WebSocket sessions with their final message and waits for them.
func (a *API) Stop(ctx context.Context) error {
	a.stop(execution.ErrShutdown)
	return a.connections.Wait(ctx)
}

// Wait waits for all handlers, after Stop and after the server has been shut down.
func (a *API) Wait() { a.requests.Wait() }

// tokenOf is the token that a caller showed.
func tokenOf(id auth.Identity) *access.Token { return id.Rights.(*access.Token) }

func (a *API) authenticate(r *http.Request) (auth.Identity, error) {
	if word := r.Header.Get(relayed); word != "" && a.opts.Gateways != nil {
		return a.vouched(r, word)
	}
	t := a.opts.Tokens.Find(r.Header.Get("Poseidon-Token"))
	if t == nil {
		a.opts.Watch.Refused("token")
		return auth.Identity{}, fault.New(fault.Unauthenticated, "wrong or missing token")
	}
	if wait, ok := t.Admit(time.Now()); !ok {
		a.opts.Watch.Refused("rate")
		err := fault.New(fault.Exhausted, "the token's rate of requests is used up: try again in %v", wait.Round(time.Millisecond))
		return auth.Identity{}, &answered{error: err, status: http.StatusTooManyRequests, retryAfter: wait}
	}
	return identity(t), nil
}

func identity(t *access.Token) auth.Identity {
	return auth.Identity{Name: t.Name, Scopes: map[auth.Scope]bool{auth.Gateway: true}, Rights: t}
}

// vouched is the client of a request that another gateway passes on. What its token may do is as this gateway knows it; that it was not too often was looked at there.
func (a *API) vouched(r *http.Request, word string) (auth.Identity, error) {
	name, err := a.opts.Gateways.Vouched(r, word)
	if err != nil {
		a.opts.Watch.Refused("token")
		return auth.Identity{}, fault.Wrap(fault.Unauthenticated, err, "the request is not passed on by a gateway of this cluster: %v", err)
	}
	t := a.opts.Tokens.Named(name)
	if t == nil {
		a.opts.Watch.Refused("token")
		return auth.Identity{}, fault.New(fault.Unauthenticated, "this gateway has no token of the name %q: give all gateways the same tokens", name)
	}
	return identity(t), nil
}

type runnerKey struct{}

// lookup lets requests in, and finds the runner that a path names.
func (a *API) lookup(r *http.Request, route endpoint.Route, caller auth.Identity) (context.Context, error) {
	ctx := r.Context()
	if route.Policy.Scope == auth.Public {
		return ctx, nil
	}
	// Who comes again to an execution is no newcomer: a gateway that stops in order waits for it.
	if again := route.Name == websocketRoute && r.URL.Query().Has("offset"); !again || !a.isDraining() {
		if err := a.admit(ctx); err != nil {
			return ctx, err
		}
	}
	ctx = context.WithValue(ctx, hostKey{}, r.Host)
	id := endpoint.PathVar(r, "runnerId")
	if id == "" {
		return ctx, nil
	}
	found, err := a.runners.Find(ctx, id)
	if err != nil {
		return ctx, err
	}
	if !tokenOf(caller).Owns(found.Owner, strconv.Itoa(int(found.Env))) {
		return ctx, runner.Unknown(id) // nobody learns what others have
	}
	noteRunner(ctx, found)
	ctx = logging.Add(logging.Add(ctx, "runner_id", id), "environment_id", int(found.Env))
	return context.WithValue(ctx, runnerKey{}, found), nil
}

// noteRunner names a runner in the request's observation, once it is known to be one: what a path says is a stranger's word.
func noteRunner(ctx context.Context, r *runner.Runner) {
	endpoint.Note(ctx, "runner_id", r.ID)
	endpoint.Note(ctx, "environment_id", strconv.Itoa(int(r.Env)))
	span := timeline.From(ctx)
	span.About(r.ID)
	span.Number(timeline.Environment, int64(r.Env))
}

// runnerOf is the runner that lookup found.
func runnerOf(ctx context.Context) *runner.Runner { return ctx.Value(runnerKey{}).(*runner.Runner) }

// webSocketURL is where an execution begins.
func (a *API) webSocketURL(host, runnerID, executionID string) string {
	base := "ws://" + host
	if a.opts.TLS {
		base = "wss://" + host
	}
	if p := a.opts.PublicURL; p != "" {
		base = strings.TrimSuffix(strings.Replace(p, "http", "ws", 1), "/")
	}
	return base + prefix + "/runners/" + runnerID + "/websocket?executionID=" + executionID
}
