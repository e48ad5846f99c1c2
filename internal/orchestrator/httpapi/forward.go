package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/link"
	"rockpool/internal/orchestrator/peer"
)

const (
	// leaderWait is how long a request is held while there is no leader. It is Nomad's.
	leaderWait = 5 * time.Second
	// leaderPause is how long to wait after a leader could not be reached.
	leaderPause = 50 * time.Millisecond
	// replayable is how large a body, in bytes, may be to be kept for a second attempt.
	replayable = 256 << 10
	// notServed marks the answer of a server that has not looked at a forwarded request, so that it may be sent to another one.
	notServed = "X-Rockpool-Not-Served"
)

type forwardedKey struct{}

// Forwarded marks requests as sent by another server, which forwards once. Only the listener of servers may do so: nothing that a client can send says it.
func Forwarded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), forwardedKey{}, true)))
	})
}

func forwarded(r *http.Request) bool { return r.Context().Value(forwardedKey{}) != nil }

func noLeader() error { return fault.New(fault.Unavailable, "No cluster leader") }

// fresh reports whether a row's answer must be the newest there is.
func fresh(r *http.Request, p endpoint.Policy) bool {
	return p.Serve == endpoint.LeaderUnlessStale && !stale(r)
}

// stale reports whether a caller takes an answer of any age.
func stale(r *http.Request) bool {
	v, ok := r.URL.Query()["stale"]
	return ok && v[0] != "false" && v[0] != "0"
}

// forward hands a request to the leader where that must serve it. It is held while there is none.
func (a *API) forward(w http.ResponseWriter, r *http.Request, route endpoint.Route) (bool, error) {
	switch err := a.cutOff(r, route); {
	case errors.Is(err, link.ErrNoPath):
		return a.seek(w, r, route)
	case route.Policy.Serve != endpoint.Leader && !fresh(r, route.Policy) && err == nil:
		return false, nil
	}
	if a.cfg.Leader.Leading() {
		return false, nil
	}
	c := a.cfg.Cluster
	if c == nil {
		return false, noLeader()
	}
	ctx, cancel := context.WithTimeout(r.Context(), leaderWait)
	defer cancel()
	defer context.AfterFunc(a.closing, cancel)()
	var p *passing
	for {
		changed := c.Changed()
		leads, id := a.cfg.Log.Leader()
		var again <-chan time.Time
		switch {
		case a.cfg.Leader.Leading():
			if p != nil {
				return false, p.rewind(r)
			}
			return false, nil
		case leads || id == "": // it takes over, or nobody does yet
		case forwarded(r):
			w.Header().Set(notServed, "true")
			return false, noLeader()
		default:
			if p == nil {
				var err error
				if p, err = newPassing(r, route.Policy.Body); err != nil {
					return false, err
				}
			}
			if err := p.pass(w, r, c.LeaderAddress(), c.Transport()); !errors.Is(err, errNotServed) {
				return true, err
			}
			again = time.After(leaderPause)
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return false, noLeader()
		}
	}
}

// cutOff says why this server cannot reach the node that a request names, or whose allocation it names: the node has no connection to it, or it has not heard
// of the allocation yet, for followers come to know of it a little later than those who asked for it.
func (a *API) cutOff(r *http.Request, route endpoint.Route) (err error) {
	if route.Policy.Serve != endpoint.OwningNode {
		return nil
	}
	if strings.Contains(route.Path, "{id}") {
		_, err = a.nodeOfAlloc(endpoint.PathVar(r, "id"))
	} else if id := r.URL.Query().Get("node_id"); id != "" {
		_, err = a.nodes.To(id)
	}
	return err
}

// seek hands a request to the server that has a connection of the node, the leader being asked first. After a start a server has none for a moment. One that
// has none either says that it has not looked at the request; when all do, it is answered here.
func (a *API) seek(w http.ResponseWriter, r *http.Request, route endpoint.Route) (bool, error) {
	if forwarded(r) {
		w.Header().Set(notServed, "true")
		return false, link.ErrNoPath
	}
	c := a.cfg.Cluster
	if c == nil || c.Transport() == nil {
		return false, nil
	}
	peers, _, err := c.Peers()
	if err != nil {
		return false, err
	}
	p, err := newPassing(r, route.Policy.Body)
	if err != nil {
		return false, err
	}
	servers := []string{c.LeaderAddress()}
	for _, other := range peers {
		if !slices.Contains(servers, other.Address) {
			servers = append(servers, other.Address)
		}
	}
	for _, address := range servers {
		if address == c.Address() {
			continue
		}
		if err := p.pass(w, r, address, c.Transport()); !errors.Is(err, errNotServed) {
			return true, err
		}
	}
	return false, p.rewind(r)
}

// passing is a request on its way to another server.
type passing struct {
	kept []byte // the body, where it is small enough
	body *untouched
}

// newPassing keeps a small body. limit is the row's bound.
func newPassing(r *http.Request, limit int64) (*passing, error) {
	if r.ContentLength > limit && limit > 0 {
		return nil, fault.New(fault.TooLarge, "the request body is larger than %d bytes", limit)
	}
	if r.ContentLength < 0 || r.ContentLength > replayable {
		return &passing{body: &untouched{ReadCloser: r.Body}}, nil
	}
	if r.ContentLength == 0 {
		return &passing{}, nil
	}
	kept, err := io.ReadAll(io.LimitReader(r.Body, replayable))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the request body could not be read")
	}
	return &passing{kept: kept}, nil
}

// rewind makes the request one that can be served here after all.
func (p *passing) rewind(r *http.Request) error {
	switch {
	case p.kept != nil:
		r.Body = io.NopCloser(bytes.NewReader(p.kept))
	case p.body != nil && p.body.read:
		return lost(nil)
	case p.body != nil:
		r.Body = p.body.ReadCloser
	}
	return nil
}

// untouched is a body that nobody closes and that knows whether anything was read of it.
type untouched struct {
	io.ReadCloser
	read bool
}

func (b *untouched) Read(p []byte) (int, error) {
	b.read = true
	return b.ReadCloser.Read(p)
}

func (b *untouched) Close() error { return nil }

var errNotServed = errors.New("the server did not look at the request")

// lost is what is said of a request of which nobody knows whether it took effect. It is never sent again.
func lost(err error) error {
	return fault.Wrap(fault.Deadline, cause(err), "the leader's answer was lost: it is not known whether the request took effect")
}

func cause(err error) error {
	if err == nil {
		return errors.New("the leader was lost")
	}
	return err
}

// pass sends the request on and its answer back: streams, long bodies and upgrades as they are, with the caller's own token. errNotServed says that it may be
// sent to another server, because the one asked was not reached or has not looked at it.
func (p *passing) pass(w http.ResponseWriter, r *http.Request, address string, t http.RoundTripper) (err error) {
	if address == "" {
		return errNotServed
	}
	if p.body != nil && p.body.read {
		return lost(nil)
	}
	proxy := &httputil.ReverseProxy{
		Transport: t, FlushInterval: -1,
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(&url.URL{Scheme: "http", Host: address})
			pr.Out.URL.RawQuery = pr.In.URL.RawQuery // as it came, also what net/url would drop
			pr.Out.Host = pr.In.Host
			pr.SetXForwarded()
			switch {
			case p.kept != nil:
				pr.Out.Body = io.NopCloser(bytes.NewReader(p.kept))
			case p.body != nil:
				pr.Out.Body = p.body
			}
		},
		ModifyResponse: func(resp *http.Response) error {
			if resp.Header.Get(notServed) != "" {
				return errNotServed
			}
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, e error) { err = e },
	}
	proxy.ServeHTTP(w, r)
	switch {
	case err == nil, errors.Is(err, errNotServed) && (p.body == nil || !p.body.read):
		return err
	case r.Context().Err() != nil:
		return r.Context().Err()
	case unreached(err) && (p.body == nil || !p.body.read), harmless(r):
		return errNotServed
	}
	return lost(err)
}

// unreached reports whether the other server was never connected to, so that it cannot have read anything.
func unreached(err error) bool { return errors.Is(err, peer.ErrUnreached) }

// harmless reports whether a request changes nothing, whether or not it was served.
func harmless(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.Header.Get("Upgrade") == ""
}

// settled refuses what would be decided on a state that is behind. After a start the log is applied anew: until then what exists looks as if it did
// not, and a client that believed it would give up what it has. As in Nomad a client may ask for a stale answer. A leader asks the others whether it still
// leads before it answers a read, for there may be a newer one.
func (a *API) settled(r *http.Request, route endpoint.Route, _ auth.Identity) (context.Context, error) {
	p := route.Policy
	if p.Scope == auth.NodeSelf {
		r = r.WithContext(withToken(r))
	}
	aboutServer := p.Scope == auth.Public || p.Scope == auth.AgentRead
	c := a.cfg.Cluster
	switch {
	case aboutServer && p.Serve == endpoint.AnyServer || stale(r):
		return r.Context(), nil
	case fresh(r, p) && c != nil && a.cfg.Leader.Leading():
		if err := c.Verify(r.Context()); err != nil {
			return nil, fmt.Errorf("answer a read: %w", err)
		}
		return r.Context(), nil
	case a.cfg.Leader.Leading(), (p.Serve == endpoint.AnyServer || p.Serve == endpoint.OwningNode) && c != nil && c.CaughtUp():
		return r.Context(), nil
	}
	return nil, noLeader()
}

// contact says how a reply's state relates to the leader's.
func (a *API) contact(r reply) reply {
	_, id := a.cfg.Log.Leader()
	r.leader = id != ""
	if c := a.cfg.Cluster; c != nil {
		r.age = max(c.LastContact(), 0)
	}
	return r
}
