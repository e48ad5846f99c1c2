package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

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
)

// Options of the API.
type Options struct {
	Token                string // empty = no authentication
	TLS                  bool   // our own listener speaks TLS
	PublicURL            string // replaces scheme and host in WebSocket URLs
	AlertThreshold       float64
	ForbidSingleQuote    bool
	CopyModificationTime bool
	ReattachBuffer       int64  // bytes of output that are held in all for clients that may come again
	Version              string // empty = there is no release
	Observe              func(endpoint.Observation)
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
	sessions session.Set
	requests sync.WaitGroup // http.Server does not wait for handlers of connections that were taken over

	connections lifecycle.Tasks // of the sessions
}

// New builds the API. ready is closed when recovery is done.
func New(o Options, envs *environment.Service, runners *runner.Manager, engine *execution.Engine, store files.Store, ready <-chan struct{},
	log logging.Logger) *API {
	a := &API{opts: o, envs: envs, runners: runners, engine: engine, files: store, ready: ready, log: log}
	a.sessions.Budget = o.ReattachBuffer
	a.server = endpoint.NewServer(a.table(), endpoint.Options{
		Auth: auth.Func(a.authenticate), Error: writeError, Lookup: a.lookup, Observe: o.Observe, Log: log,
	})
	return a
}

// Body limits in bytes, far above real submissions.
const (
	smallBody = 1 << 20
	filesBody = 512 << 20
)

const prefix = "/api/v1"

func (a *API) table() endpoint.Table {
	open := endpoint.Policy{Scope: auth.Public}
	call := endpoint.Policy{Scope: auth.Gateway, Body: smallBody, Timeout: time.Minute}
	// The body is read before a refusal: clients break on an answer that comes before they have sent everything.
	drained := endpoint.Policy{Scope: auth.Gateway, Body: smallBody, Timeout: time.Minute, Drain: true}
	stream := endpoint.Policy{Scope: auth.Gateway, Body: filesBody, Drain: true}
	env, rid := prefix+"/execution-environments", prefix+"/runners/{runnerId}"
	return endpoint.Table{
		endpoint.Call("/health", "GET", prefix+"/health", open, a.health),
		endpoint.Call("/version", "GET", prefix+"/version", open, a.version),
		endpoint.Call("/execution-environments", "GET", prefix+"/statistics/execution-environments", call, a.statistics),
		endpoint.Call("list", "GET", env, call, a.listEnvironments),
		endpoint.Call("get", "GET", env+"/{id:[0-9]+}", call, a.getEnvironment),
		endpoint.Call("createOrUpdate", "PUT", env+"/{id:[0-9]+}", drained, a.putEnvironment),
		endpoint.Call("delete", "DELETE", env+"/{id:[0-9]+}", call, a.deleteEnvironment),
		endpoint.Call("provideRunner", "POST", prefix+"/runners", drained, a.provideRunner),
		endpoint.Call("deleteRunner", "DELETE", rid, drained, a.deleteRunner),
		endpoint.Stream("/files_list", "GET", rid+"/files", stream, a.listFiles),
		endpoint.Stream("/files", "PATCH", rid+"/files", stream, a.updateFiles),
		endpoint.Stream("/files/raw", "GET", rid+"/files/raw", stream, a.downloadFile),
		endpoint.Call("/execute", "POST", rid+"/execute", drained, a.execute),
		endpoint.Stream("/websocket", "GET", rid+"/websocket", stream, a.websocket),
	}
}

// Times of a connection.
const (
	bodyTime   = 15 * time.Second // to send a request's body
	bodyPerMiB = time.Second      // and in addition for each MiB of it
)

// ServeHTTP answers one request. The body has to arrive in time; afterwards the connection may rest, so that neither a WebSocket nor
// a long PUT is cut.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.requests.Add(1)
	defer a.requests.Done()
	rc := http.NewResponseController(w)
	if r.ContentLength != 0 {
		// What a client says of the size must not buy it more time than the largest body would need.
		size := min(max(r.ContentLength, 0), filesBody)
		_ = rc.SetReadDeadline(time.Now().Add(bodyTime + time.Duration(size>>20)*bodyPerMiB))
		r.Body = &timedBody{ReadCloser: r.Body, rc: rc}
	}
	a.server.ServeHTTP(w, r)
}

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
	return n, err
}

// Stop ends all WebSocket sessions with their final message and waits for them.
func (a *API) Stop(ctx context.Context) error {
	a.sessions.End(execution.ErrShutdown)
	return a.connections.Wait(ctx)
}

// Wait waits for all handlers, after Stop and after the server has been shut down.
func (a *API) Wait() { a.requests.Wait() }

func (a *API) authenticate(r *http.Request) (auth.Identity, error) {
	if a.opts.Token != "" && !auth.TokenEqual(r.Header.Get("Poseidon-Token"), a.opts.Token) {
		return auth.Identity{}, fault.New(fault.Unauthenticated, "wrong or missing token")
	}
	return auth.Identity{Name: "client", Scopes: map[auth.Scope]bool{auth.Gateway: true}}, nil
}

type runnerKey struct{}

// lookup holds requests back until recovery is done, and finds the runner that a path names.
func (a *API) lookup(r *http.Request, route endpoint.Route) (context.Context, error) {
	ctx := r.Context()
	if route.Policy.Scope == auth.Public {
		return ctx, nil
	}
	select {
	case <-a.ready:
	case <-ctx.Done():
		return ctx, context.Cause(ctx)
	}
	ctx = context.WithValue(ctx, hostKey{}, r.Host)
	id := endpoint.PathVar(r, "runnerId")
	if id == "" {
		return ctx, nil
	}
	found, err := a.runners.Lookup(id)
	if err != nil {
		return ctx, err
	}
	ctx = logging.With(ctx, logging.From(ctx).WithFields(logging.Fields{"runner_id": id, "environment_id": int(found.Env)}))
	return context.WithValue(ctx, runnerKey{}, found), nil
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
