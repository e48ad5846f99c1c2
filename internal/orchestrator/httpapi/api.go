package httpapi

import (
	"cmp"
	"context"
	"net/http"
	"sync"
	"sync/atomic"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/events"
	"rockpool/internal/orchestrator/keyring"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/link"
	"rockpool/internal/orchestrator/packed"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/timeline"
)

// Log is what handlers need of consensus.
type Log interface {
	Apply(ctx context.Context, entry any) (result any, index uint64, err error)
	Leader() (leads bool, id string)
	Stats() map[string]string
}

// Config is what the API is made of.
type Config struct {
	Store   *state.Store
	Log     Log
	Leader  *leader.Leader
	Events  *events.Broker
	Logger  logging.Logger
	Name    string // of the server
	Address string // ip:port that other servers would reach it by
	Version string
	// Token is a management token that no log has: of the gateway beside it, or for a start. It also switches access control on.
	Token string
	// ACL asks callers for tokens, which live in the state; the first comes from the route acl/bootstrap. With neither Token nor ACL there is no access
	// control, and everything is allowed.
	ACL bool
	// ACLResetFile may hold the reset index that allows another bootstrap, once all management tokens are lost. "" = it is never allowed.
	ACLResetFile string
	// KEK wraps the root keys that seal variables. nil = variables are refused, with a text that says what is missing.
	KEK *keyring.Key
	// Audit gets what was asked and by whom. nil = nothing is noted.
	Audit Auditor
	// JoinToken is what a node that is not known yet may show instead of Token to register.
	JoinToken  string
	Datacenter string
	Region     string // default global
	Cluster    Cluster
	// StrictIntroduction asks each node that is not known for an introduction token, JoinToken or Token, also where there is no Token.
	StrictIntroduction bool
	// Nodes knows the connections of nodes to this server. nil = the API has one of its own.
	Nodes *link.Hub
	// Timeline records where requests' time goes, for callers who ask. nil = nothing is recorded.
	Timeline *timeline.Recorder
	// Servers are the URLs of all servers' HTTP API, which nodes are told of. nil = they keep to those they know.
	Servers func() []string
}

// API is the handler.
type API struct {
	compiled compiledACLs
	roots    rootKeys
	cfg      Config
	store    *state.Store
	server   *endpoint.Server
	nodes    *link.Hub
	around   atomic.Pointer[Process]
	tallied  tally
	// closing ends when long answers must end.
	closing context.Context
	close   context.CancelFunc
	conns   tracker
	readers atomic.Int32 // of event streams
	pushes  *pushes
	specs   *specs // in JSON
	// denseSpecs are those of nodes that take packed lists.
	denseSpecs *specs
	// planning has room for the plans that are shown at a time; others wait.
	planning chan struct{}
	origins  http.CrossOriginProtection
	joining  sync.Map // ids of nodes that are being registered for the first time
}

const maxPlans = 2

// New builds the handler.
func New(cfg Config) *API {
	if cfg.Logger == nil {
		cfg.Logger = logging.Discard()
	}
	cfg.Region = cmp.Or(cfg.Region, "global")
	a := &API{cfg: cfg, store: cfg.Store, pushes: newPushes(), specs: newSpecs(inJSON), denseSpecs: newSpecs(packed.Job), nodes: cfg.Nodes, planning: make(chan struct{}, maxPlans)}
	if a.nodes == nil {
		a.nodes = link.NewHub()
	}
	cfg.Store.Observe(a.pushes.observe)
	cfg.Store.Observe(a.observeNodes)
	a.closing, a.close = context.WithCancel(context.Background())
	a.server = endpoint.NewServer(a.table(), endpoint.Options{
		Auth: auth.Func(a.authenticate), Error: a.writeError, CompressAbove: 1024, Log: cfg.Logger, Lookup: a.settled, Forward: a.forward,
		Target: a.target, Observe: a.observer(), TellSteps: true,
		Trace: func(r *http.Request, _ endpoint.Route) *timeline.Span {
			return cfg.Timeline.Partner(r.Header.Get(timeline.Header))
		},
	})
	a.server.SetFallbacks(http.HandlerFunc(a.notFound), http.HandlerFunc(a.wrongMethod))
	return a
}

// ServeHTTP serves the API. A page of another site that somebody's browser shows may not change anything here, for without access control nothing else would
// hold it back.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if a.origins.Check(r) != nil {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		a.writeError(w, r, fault.New(fault.Forbidden, "a page of another origin may not change anything here"))
		return
	}
	a.server.ServeHTTP(w, r)
}

// Run ends streams and WebSockets when ctx ends, and returns when all have.
func (a *API) Run(ctx context.Context) error {
	<-ctx.Done()
	a.close()
	return a.conns.wait(context.WithoutCancel(ctx))
}

func token(r *http.Request) string {
	if t := r.Header.Get("X-Nomad-Token"); t != "" {
		return t
	}
	const scheme = "Bearer "
	if h := r.Header.Get("Authorization"); len(h) > len(scheme) && http.CanonicalHeaderKey(h[:len(scheme)-1]) == "Bearer" {
		return h[len(scheme):]
	}
	return ""
}
