package httpapi

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/acl"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// denied is the one answer to whoever may not do something, whatever the reason: it says nothing of what there is.
func denied() error { return fault.New(fault.Forbidden, "Permission denied") }

// controlled reports whether callers are asked who they are.
func (a *API) controlled() bool { return a.cfg.ACL || a.cfg.Token != "" }

// authenticate knows the configured token, those of the state, and nodes by their secret.
func (a *API) authenticate(r *http.Request) (auth.Identity, error) {
	node := a.nodeOf(r)
	id, err := a.identify(a.store.Snapshot(), token(r))
	id.NodeID = node
	switch {
	case err == nil:
		return id, nil
	case node != "":
		return auth.Identity{NodeID: node}, nil
	case !a.cfg.Leader.Leading() && !r.URL.Query().Has("stale"):
		return id, fault.New(fault.Unavailable, "No cluster leader") // the token may be one that the log still brings
	}
	return id, err
}

// identify says who shows a secret; "" = nobody in particular.
func (a *API) identify(s *state.Snapshot, secret string) (auth.Identity, error) {
	if !a.controlled() || a.cfg.Token != "" && auth.TokenEqual(secret, a.cfg.Token) {
		return auth.Identity{Name: "management", Management: true}, nil
	}
	if secret == "" {
		p := s.ACLPolicy(nil, model.AnonymousPolicy)
		if p == nil {
			return auth.Identity{}, denied()
		}
		return auth.Identity{Name: model.AnonymousPolicy, Rights: a.compiled.of([]*model.ACLPolicy{p})}, nil
	}
	t := s.ACLTokenBySecret(hashOf(secret))
	if t == nil || t.Expires != 0 && t.Expires <= time.Now().UnixNano() {
		return auth.Identity{}, denied()
	}
	id := auth.Identity{Name: t.Name, Accessor: t.AccessorID, Management: t.Type == model.TokenManagement, Expires: t.Expires}
	if !id.Management {
		id.Rights = a.compiled.of(policiesOf(s, t))
	}
	return id, nil
}

// hashOf is what is kept of a secret. Secrets are random, so that a hash without a salt gives nothing away, and finding one by its hash takes no longer the
// more of the secret was guessed.
func hashOf(secret string) string {
	h := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(h[:])
}

// policiesOf are a token's own policies and those of its roles that there are, each once, by name.
func policiesOf(s *state.Snapshot, t *model.ACLToken) []*model.ACLPolicy {
	names := slices.Clone(t.Policies)
	for _, id := range t.Roles {
		if r := s.ACLRole(nil, id); r != nil {
			names = append(names, r.Policies...)
		}
	}
	slices.Sort(names)
	var out []*model.ACLPolicy
	for _, n := range slices.Compact(names) {
		if p := s.ACLPolicy(nil, n); p != nil {
			out = append(out, p)
		}
	}
	return out
}

// compiledACLs keeps what sets of policies were compiled to, since each request needs one. The key holds the policies' indexes, so an old one is never taken
// for a new one.
type compiledACLs struct {
	mu   sync.Mutex
	sets map[string]*acl.ACL // guarded by mu
}

const maxCompiled = 1024 // sets; the next one drops them all

func (c *compiledACLs) of(policies []*model.ACLPolicy) *acl.ACL {
	var key strings.Builder
	for _, p := range policies {
		key.WriteString(p.Name + "\x00" + strconv.FormatUint(p.ModifyIndex, 16) + "\x00")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if found := c.sets[key.String()]; found != nil {
		return found
	}
	var parsed []*acl.Policy
	for _, p := range policies {
		rules, err := acl.Parse(p.Rules)
		if err != nil {
			// It was checked when it came. What an older version took must not stop the others, and gives nothing.
			continue
		}
		parsed = append(parsed, rules)
	}
	if c.sets == nil || len(c.sets) >= maxCompiled {
		c.sets = map[string]*acl.ACL{}
	}
	made := acl.Compile(parsed...)
	c.sets[key.String()] = made
	return made
}

// Restored forgets what was made of a state that another one has replaced: that one may use an index again. It must be called before the next update.
func (a *API) Restored() {
	a.compiled.mu.Lock()
	clear(a.compiled.sets)
	a.compiled.mu.Unlock()
	a.roots.mu.Lock()
	clear(a.roots.open)
	a.roots.mu.Unlock()
	a.pushes.restored()
}

// owned are the routes whose path names an object by an id that says nothing of its namespace. Their scope must hold in the namespace that the object lives
// in, whatever the query says.
var owned = []struct {
	prefix    string
	namespace func(s *state.Snapshot, id string) string
}{
	{"/v1/allocation/", allocNamespace},
	{"/v1/client/allocation/", allocNamespace},
	{"/v1/client/fs/", allocNamespace},
	{"/v1/evaluation/", func(s *state.Snapshot, id string) string {
		if e := s.Eval(nil, id); e != nil {
			return e.Namespace
		}
		return ""
	}},
	{"/v1/deployment/", func(s *state.Snapshot, id string) string {
		if d := s.Deployment(nil, id); d != nil {
			return d.Namespace
		}
		return ""
	}},
	{"/v1/scaling/policy/", func(s *state.Snapshot, id string) string {
		for p := range policies(s, nil) {
			if p.ID == id {
				return p.Namespace
			}
		}
		return ""
	}},
}

func allocNamespace(s *state.Snapshot, id string) string {
	if al := s.Alloc(nil, id); al != nil {
		return al.Namespace
	}
	return ""
}

// inBody are routes that may name their namespace in the body alone; their handlers ask again once they have read it.
var inBody = map[string]bool{}

func init() {
	for _, r := range []string{"job.register", "job.update", "job.plan", "job.validate"} {
		inBody[r+".put"], inBody[r+".post"] = true, true
	}
}

// target is what a route's scope must hold for: the namespace that the named object lives in, or else the one that the request asks about.
func (a *API) target(r *http.Request, route endpoint.Route) string {
	asked := r.URL.Query().Get("namespace")
	switch route.Policy.Scope {
	case auth.PoolRead, auth.PoolWrite, auth.PoolDelete:
		return cmp.Or(endpoint.PathVar(r, "pool"), auth.Everywhere)
	case auth.AnyInNamespace:
		return cmp.Or(endpoint.PathVar(r, "name"), auth.Everywhere)
	}
	for _, o := range owned {
		if !strings.HasPrefix(route.Path, o.prefix) {
			continue
		}
		if ns := o.namespace(a.store.Snapshot(), endpoint.PathVar(r, "id")); ns != "" {
			return ns
		}
	}
	if asked == "" && inBody[route.Name] {
		return auth.Everywhere
	}
	return cmp.Or(asked, model.DefaultNamespace)
}

// sameRights reports whether two answers to who somebody is allow the same.
func sameRights(x, y auth.Identity) bool {
	return x.Accessor == y.Accessor && x.Management == y.Management && x.Rights == y.Rights && maps.Equal(x.Scopes, y.Scopes)
}

// still reports whether a caller whose request has waited has its token yet, and with it the scope of the route for anything. Tokens of the configuration and of
// nodes do not change.
func (a *API) still(c endpoint.Caller) bool {
	if !a.controlled() || c.Accessor == "" && c.Rights == nil {
		return true
	}
	s := a.store.Snapshot()
	var policies []*model.ACLPolicy
	if c.Accessor == "" {
		if p := s.ACLPolicy(nil, model.AnonymousPolicy); p != nil {
			policies = append(policies, p)
		}
	} else {
		t := s.ACLToken(nil, c.Accessor)
		if t == nil || t.Expires != 0 && t.Expires <= time.Now().UnixNano() {
			return false
		}
		if t.Type == model.TokenManagement {
			return true
		}
		policies = policiesOf(s, t)
	}
	now := auth.Identity{Accessor: c.Accessor, NodeID: c.NodeID, Rights: a.compiled.of(policies)}
	return now.May(c.Scope)
}
