package httpapi

import (
	"context"
	"net/http"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/events"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/link"
	"rockpool/internal/orchestrator/state"
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
	// Token is the management token; empty = no access control, everything is allowed.
	Token string
	// JoinToken is what a node that is not known yet may show instead of Token to register.
	JoinToken  string
	Datacenter string
	// Nodes knows the connections of nodes to this server. nil = the API has one of its own.
	Nodes *link.Hub
	// Servers are the URLs of all servers' HTTP API, which nodes are told of. nil = they keep to those they know.
	Servers func() []string
}

// API is the handler.
type API struct {
	cfg    Config
	store  *state.Store
	server *endpoint.Server
	nodes  *link.Hub
	// closing ends when long answers must end.
	closing context.Context
	close   context.CancelFunc
	conns   tracker
}

// New builds the handler.
func New(cfg Config) *API {
	if cfg.Logger == nil {
		cfg.Logger = logging.Discard()
	}
	a := &API{cfg: cfg, store: cfg.Store, nodes: cfg.Nodes}
	if a.nodes == nil {
		a.nodes = link.NewHub()
	}
	a.closing, a.close = context.WithCancel(context.Background())
	a.server = endpoint.NewServer(a.table(), endpoint.Options{
		Auth: auth.Func(a.authenticate), Error: a.writeError, CompressAbove: 1024, Log: cfg.Logger, Lookup: a.settled,
	})
	a.server.SetFallbacks(http.HandlerFunc(a.notFound), http.HandlerFunc(a.wrongMethod))
	return a
}

func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.server.ServeHTTP(w, r) }

// Run ends streams and WebSockets when ctx ends, and returns when all have.
func (a *API) Run(ctx context.Context) error {
	<-ctx.Done()
	a.close()
	return a.conns.wait(context.WithoutCancel(ctx))
}

// settled refuses what would be decided on a state that is behind. After a start the log is applied anew: until then what exists looks as if it did
// not, and a client that believed it would give up what it has. As in Nomad a client may ask for a stale answer.
func (a *API) settled(r *http.Request, route endpoint.Route) (context.Context, error) {
	aboutServer := route.Policy.Scope == auth.Public || route.Policy.Scope == auth.AgentRead
	if aboutServer || a.cfg.Leader.Leading() || r.URL.Query().Has("stale") {
		return r.Context(), nil
	}
	return nil, fault.New(fault.Unavailable, "No cluster leader")
}

// authenticate knows one token, and nodes by their secret.
func (a *API) authenticate(r *http.Request) (auth.Identity, error) {
	id := auth.Identity{NodeID: a.nodeOf(r)}
	if a.cfg.Token == "" || auth.TokenEqual(token(r), a.cfg.Token) {
		id.Name, id.Management = "management", true
		return id, nil
	}
	if id.NodeID != "" {
		return id, nil
	}
	return id, fault.New(fault.Forbidden, "Permission denied")
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
