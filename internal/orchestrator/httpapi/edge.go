package httpapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/wire"
)

// EdgeConfig is what the API of an agent without a server is made of.
type EdgeConfig struct {
	Servers []string // base addresses of servers' HTTP API
	// Known are those that there are now, as the servers said; nil = always Servers. What it gives stands before Servers, which are asked when none of it answers.
	Known func() []string
	// Transport reaches them.
	Transport http.RoundTripper
	NodeID    string
	Name      string
	Version   string
	// Registered reports whether the servers know the node.
	Registered func() bool
	Process    Process
	Log        logging.Logger
}

// Edge is the HTTP API of an agent that has a node and no server: what is about this process it answers itself, everything else a server does, with the
// caller's own token.
type Edge struct {
	cfg     EdgeConfig
	servers []*url.URL
	at      atomic.Uint32
	proxy   *httputil.ReverseProxy
	local   map[string]func(http.ResponseWriter, *http.Request)
}

// NewEdge makes an Edge.
func NewEdge(cfg EdgeConfig) (*Edge, error) {
	if cfg.Log == nil {
		cfg.Log = logging.Discard()
	}
	e := &Edge{cfg: cfg}
	for _, s := range cfg.Servers {
		u, err := url.Parse(s)
		if err != nil {
			return nil, err
		}
		e.servers = append(e.servers, u)
	}
	if len(e.servers) == 0 {
		return nil, errors.New("an agent without a server needs addresses of servers")
	}
	e.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(e.server())
			r.SetXForwarded()
		},
		Transport: cfg.Transport, FlushInterval: -1, // streams come as they are
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			e.at.Add(1) // the next request tries another one
			cfg.Log.WithField("error", err.Error()).Warn("no server answered")
			http.Error(w, "No server answered", http.StatusInternalServerError)
		},
	}
	e.local = map[string]func(http.ResponseWriter, *http.Request){"/v1/agent/self": e.self, "/v1/metrics": e.metrics}
	return e, nil
}

// server is the one to ask now.
func (e *Edge) server() *url.URL {
	var all []*url.URL
	if e.cfg.Known != nil {
		for _, s := range e.cfg.Known() {
			if u, err := url.Parse(s); err == nil && u.Host != "" {
				all = append(all, u)
			}
		}
	}
	all = append(all, e.servers...)
	return all[int(e.at.Load())%len(all)]
}

func (e *Edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.URL.Path == "/v1/agent/health" && r.Method == http.MethodGet {
		e.health(w)
		return
	}
	if q := r.URL.Query(); ofProcess(r.URL.Path) && q.Get("node_id") == "" && q.Get("server_id") == "" {
		// A server asks for the caller's right, and then this agent over the connection that it holds.
		q.Set("node_id", e.cfg.NodeID)
		r = r.Clone(r.Context())
		r.URL.RawQuery = q.Encode()
	}
	local := e.local[r.URL.Path]
	if local == nil || r.Method != http.MethodGet {
		e.proxy.ServeHTTP(w, r)
		return
	}
	if err := e.allowed(r); err != nil {
		status := fault.KindOf(err).Status()
		if fault.Is(err, fault.Unavailable) {
			status = http.StatusInternalServerError // as Nomad answers where there is no server
		}
		http.Error(w, fault.Public(err), status)
		return
	}
	local(w, r)
}

// ofProcess reports whether a path is about the process that is asked, and one that servers hand on to nodes.
func ofProcess(path string) bool {
	return path == "/v1/agent/host" || path == "/v1/agent/monitor" || strings.HasPrefix(path, "/v1/agent/pprof/")
}

const allowBound = 10 * time.Second

// allowed asks a server whether the caller may ask an agent about itself: only servers know tokens.
func (e *Edge) allowed(r *http.Request) error {
	base := e.server()
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, base.JoinPath("/v1/agent/self").String(), nil)
	if err != nil {
		return err
	}
	for _, h := range []string{"X-Nomad-Token", "Authorization"} {
		if v := r.Header.Get(h); v != "" {
			req.Header.Set(h, v)
		}
	}
	resp, err := (&http.Client{Transport: e.cfg.Transport, Timeout: allowBound}).Do(req)
	if err != nil {
		e.at.Add(1)
		return fault.Wrap(fault.Unavailable, err, "no server could be asked whether this is allowed")
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusForbidden, http.StatusUnauthorized:
		return fault.New(fault.Forbidden, "Permission denied")
	}
	return fault.New(fault.Unavailable, "no server could say whether this is allowed")
}

func (e *Edge) health(w http.ResponseWriter) {
	h := &wire.AgentHealth{Ok: e.cfg.Registered(), Message: "ok"}
	status := http.StatusOK
	if !h.Ok {
		h.Message, status = "the servers do not know the node yet", http.StatusInternalServerError
	}
	e.write(w, status, &wire.AgentHealthResponse{Client: h})
}

func (e *Edge) self(w http.ResponseWriter, _ *http.Request) {
	e.write(w, http.StatusOK, map[string]any{
		"config": map[string]any{
			"NodeName": e.cfg.Name, "Version": map[string]any{"Version": e.cfg.Version, "VersionPrerelease": "", "VersionMetadata": "", "Revision": ""},
			"Server": map[string]any{"Enabled": false}, "Client": map[string]any{"Enabled": true}, "Agent": e.cfg.Process.config(),
		},
		"member": wire.AgentMember{},
		"stats":  map[string]map[string]string{"client": {"node_id": e.cfg.NodeID}, "nomad": {"server": "false"}},
	})
}

func (e *Edge) metrics(w http.ResponseWriter, r *http.Request) {
	switch p := e.cfg.Process; {
	case p.Metrics == nil || r.URL.Query().Get("format") == "prometheus" && p.NoPrometheus:
		http.Error(w, fault.Public(unsupported()), http.StatusNotImplemented)
	case r.URL.Query().Get("format") == "prometheus":
		p.Metrics.Prometheus().ServeHTTP(w, r)
	default:
		e.write(w, http.StatusOK, p.Metrics.Summary())
	}
}

func (e *Edge) write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		e.cfg.Log.WithField("error", err.Error()).Debug("an answer was not taken")
	}
}
