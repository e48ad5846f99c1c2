package httpapi

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/acl"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/keyring"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/orchestrator/wire"
)

// accessTable is who may do what, and what people share.
func (a *API) accessTable() endpoint.Table {
	return slices.Concat(a.aclTable(), a.namespaceTable(), a.variableTable(), a.serviceTable(), a.searchTable())
}

func (a *API) aclTable() endpoint.Table {
	t := endpoint.Table{
		endpoint.Call("acl.token.list", "GET", "/v1/acl/tokens", read(auth.Management), a.listTokens),
		endpoint.Stream("acl.token.self", "GET", "/v1/acl/token/self", read(auth.AnyToken), a.getOwnToken),
		endpoint.Call("acl.token.get", "GET", "/v1/acl/token/{id}", read(auth.AnyRight), a.getToken),
		endpoint.Call("acl.token.delete", "DELETE", "/v1/acl/token/{id}", write(auth.Management, smallBody), a.deleteToken),
		endpoint.Call("acl.policy.list", "GET", "/v1/acl/policies", read(auth.AnyRight), a.listPolicies),
		endpoint.Call("acl.policy.self", "GET", "/v1/acl/policy/self", read(auth.AnyToken), a.listOwnPolicies),
		endpoint.Call("acl.policy.get", "GET", "/v1/acl/policy/{id}", read(auth.AnyRight), a.getPolicy),
		endpoint.Call("acl.policy.delete", "DELETE", "/v1/acl/policy/{id}", write(auth.Management, smallBody), a.deletePolicy),
		endpoint.Call("acl.role.list", "GET", "/v1/acl/roles", read(auth.AnyRight), a.listRoles),
		endpoint.Call("acl.role.name", "GET", "/v1/acl/role/name/{name}", read(auth.AnyRight), a.getRoleByName),
		endpoint.Call("acl.role.get", "GET", "/v1/acl/role/{id}", read(auth.AnyRight), a.getRole),
		endpoint.Call("acl.role.delete", "DELETE", "/v1/acl/role/{id}", write(auth.Management, smallBody), a.deleteRole),
	}
	// Whoever bootstraps has no token yet, and the state allows it once. Where there is a configured token, though, nobody else may make one.
	first := auth.Public
	if a.cfg.Token != "" {
		first = auth.Management
	}
	return append(t, putAndPost(func(method, name string) endpoint.Table {
		return endpoint.Table{
			endpoint.Call("acl.bootstrap"+name, method, "/v1/acl/bootstrap", write(first, smallBody), a.bootstrap),
			endpoint.Call("acl.token.create"+name, method, "/v1/acl/token", write(auth.Management, smallBody), a.createToken),
			endpoint.Stream("acl.onetime.create"+name, method, "/v1/acl/token/onetime", write(auth.AnyToken, smallBody), a.createOneTime),
			// Public: the one-time secret is what proves the right.
			endpoint.Call("acl.onetime.exchange"+name, method, "/v1/acl/token/onetime/exchange", write(auth.Public, smallBody), a.exchangeOneTime),
			endpoint.Call("acl.token.update"+name, method, "/v1/acl/token/{id}", write(auth.Management, smallBody), a.updateToken),
			endpoint.Call("acl.policy.put"+name, method, "/v1/acl/policy/{id}", write(auth.Management, 4*acl.MaxRules), a.putPolicy),
			endpoint.Call("acl.role.create"+name, method, "/v1/acl/role", write(auth.Management, smallBody), a.createRole),
			endpoint.Call("acl.role.update"+name, method, "/v1/acl/role/{id}", write(auth.Management, smallBody), a.updateRole),
		}
	})...)
}

// enabled refuses what makes no sense without access control.
func (a *API) enabled() error {
	if !a.controlled() {
		return fault.New(fault.Invalid, "ACL support disabled")
	}
	return nil
}

const (
	minTokenTTL = time.Minute
	maxTokenTTL = 24 * time.Hour
	oneTimeTTL  = 10 * time.Minute
)

var aclName = regexp.MustCompile(`^[a-zA-Z0-9-]{1,128}$`)

// bootstrapRequest is read by hand, since its body may be missing.
type bootstrapRequest struct {
	Body io.Reader `body:"raw"`
}

// optionalJSON decodes a body that may be empty.
func optionalJSON(r io.Reader, into any) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "the request body could not be read")
	}
	if len(strings.TrimSpace(string(data))) == 0 || string(data) == "null" {
		return nil
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fault.New(fault.Invalid, "%s", err.Error())
	}
	return nil
}

func (a *API) bootstrap(ctx context.Context, _ auth.Identity, r bootstrapRequest) (reply, error) {
	if err := a.enabled(); err != nil {
		return reply{}, err
	}
	if !a.cfg.Leader.Leading() {
		return reply{}, fault.New(fault.Unavailable, "No cluster leader")
	}
	var body wire.BootstrapRequest
	if err := optionalJSON(r.Body, &body); err != nil {
		return reply{}, err
	}
	secret := body.BootstrapSecret
	if secret == "" {
		secret = ident.New()
	} else if !ident.Valid(secret) {
		return reply{}, fault.New(fault.Invalid, "the bootstrap secret must be a UUID")
	}
	reset, err := a.resetIndex()
	if err != nil {
		return reply{}, err
	}
	result, index, err := a.apply(ctx, &command.ACLBootstrap{Now: time.Now().UnixNano(), Reset: reset, Token: &model.ACLToken{
		AccessorID: ident.New(), SecretHash: hashOf(secret), Name: "Bootstrap Token", Type: model.TokenManagement, Global: true,
	}})
	if err != nil {
		return reply{}, err
	}
	if reset != 0 {
		// The index in it has been used up; leaving it would do no harm.
		if err := os.Remove(a.cfg.ACLResetFile); err != nil {
			logging.From(ctx).WithField("error", err.Error()).Warn("the ACL reset file could not be removed")
		}
	}
	return a.written(index, wire.TokenOut(result.(*model.ACLToken), secret, a.roleName)), nil
}

// resetIndex is what an operator with access to the server's files allows another bootstrap with; 0 = nothing.
func (a *API) resetIndex() (uint64, error) {
	if a.cfg.ACLResetFile == "" {
		return 0, nil
	}
	data, err := os.ReadFile(a.cfg.ACLResetFile)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the ACL reset file: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, fault.New(fault.Invalid, "the ACL reset file holds no number: write the reset index into it")
	}
	return n, nil
}

func (a *API) roleName(id string) string {
	if r := a.store.Snapshot().ACLRole(nil, id); r != nil {
		return r.Name
	}
	return ""
}

type listTokens struct {
	query
	Global string `query:"global"`
}

func (a *API) listTokens(ctx context.Context, _ auth.Identity, r listTokens) (reply, error) {
	if err := a.enabled(); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		stubs := mapped(s.ACLTokens(w, r.Prefix), func(t *model.ACLToken) (*wire.ACLTokenListStub, bool) {
			return wire.TokenStub(t, a.roleName), r.Global != "true" || t.Global
		})
		out, next, err := page(stubs, &r.query, func(t *wire.ACLTokenListStub) string { return t.AccessorID })
		return found{s.ACLIndex(), out, next}, err
	})
}

// getOwnToken shows the caller's token, with the secret that the caller has just shown.
func (a *API) getOwnToken(w http.ResponseWriter, r *http.Request, id auth.Identity, _ endpoint.None) error {
	if err := a.enabled(); err != nil {
		return err
	}
	if id.Accessor == "" {
		return flushed(w, a.written(a.store.Index(), &wire.ACLToken{Name: "configured", Type: model.TokenManagement, Global: true}))
	}
	t := a.store.Snapshot().ACLToken(nil, id.Accessor)
	if t == nil {
		return denied()
	}
	return flushed(w, a.written(t.ModifyIndex, wire.TokenOut(t, token(r), a.roleName)))
}

type byName struct {
	query
	ID string `path:"id"`
}

// getToken shows a token to management and to itself. Its secret is known to nobody any more.
func (a *API) getToken(ctx context.Context, id auth.Identity, r byName) (reply, error) {
	if err := a.enabled(); err != nil {
		return reply{}, err
	}
	if !id.Management && id.Accessor != r.ID {
		return reply{}, denied()
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		t := s.ACLToken(w, r.ID)
		if t == nil {
			return found{index: s.ACLIndex()}, fault.New(fault.NotFound, "ACL token not found")
		}
		return found{index: t.ModifyIndex, body: wire.TokenOut(t, "", a.roleName)}, nil
	})
}

type tokenBody struct {
	ID   string        `path:"id"`
	Body wire.ACLToken `body:"json"`
}

type newToken struct {
	Body wire.ACLToken `body:"json"`
}

func (a *API) createToken(ctx context.Context, _ auth.Identity, r newToken) (reply, error) {
	if r.Body.AccessorID != "" {
		return reply{}, fault.New(fault.Invalid, "a new token gets its accessor from the server: use the route of the accessor to change or bring one")
	}
	return a.putToken(ctx, &r.Body, true)
}

// updateToken changes a token, or brings one with a secret of its own, as an upload does.
func (a *API) updateToken(ctx context.Context, _ auth.Identity, r tokenBody) (reply, error) {
	if r.Body.AccessorID != "" && r.Body.AccessorID != r.ID {
		return reply{}, fault.New(fault.Invalid, "the accessor of the body differs from that of the path")
	}
	if !ident.Valid(r.ID) {
		return reply{}, fault.New(fault.Invalid, "an accessor is a UUID")
	}
	r.Body.AccessorID = r.ID
	fresh := a.store.Snapshot().ACLToken(nil, r.ID) == nil
	if fresh && r.Body.SecretID == "" {
		return reply{}, fault.New(fault.NotFound, "ACL token not found")
	}
	if fresh && r.Body.Type == model.TokenManagement {
		return reply{}, fault.New(fault.Invalid, "a management token cannot be uploaded")
	}
	return a.putToken(ctx, &r.Body, fresh)
}

func (a *API) putToken(ctx context.Context, b *wire.ACLToken, fresh bool) (reply, error) {
	if err := a.enabled(); err != nil {
		return reply{}, err
	}
	now := time.Now()
	secret := b.SecretID
	t := &model.ACLToken{AccessorID: b.AccessorID, Name: b.Name, Type: b.Type, Policies: b.Policies, Global: b.Global}
	if t.AccessorID == "" {
		t.AccessorID = ident.New()
	}
	if secret == "" {
		secret = ident.New()
	}
	snap := a.store.Snapshot()
	for _, link := range b.Roles {
		id := ""
		if link != nil && link.ID != "" {
			id = link.ID
		} else if link != nil {
			if role := snap.ACLRoleByName(nil, link.Name); role != nil {
				id = role.ID
			}
		}
		if id == "" {
			return reply{}, fault.New(fault.Invalid, "the token names a role that does not exist")
		}
		t.Roles = append(t.Roles, id)
	}
	for _, name := range t.Policies {
		if snap.ACLPolicy(nil, name) == nil {
			return reply{}, fault.New(fault.Invalid, "there is no ACL policy %q", name)
		}
	}
	switch {
	case len(b.Name) > 256:
		return reply{}, fault.New(fault.Invalid, "a token's name has at most 256 characters")
	case !ident.Valid(secret):
		return reply{}, fault.New(fault.Invalid, "a token's secret is a UUID")
	case t.Type == model.TokenManagement && len(t.Policies)+len(t.Roles) > 0:
		return reply{}, fault.New(fault.Invalid, "management token cannot be associated with policies or roles")
	case t.Type == model.TokenClient && len(t.Policies)+len(t.Roles) == 0:
		return reply{}, fault.New(fault.Invalid, "client token missing policies or roles")
	case t.Type != model.TokenManagement && t.Type != model.TokenClient:
		return reply{}, fault.New(fault.Invalid, "token type must be client or management")
	}
	if fresh {
		ttl := b.ExpirationTTL
		if b.ExpirationTime != nil && !b.ExpirationTime.IsZero() {
			if ttl != 0 {
				return reply{}, fault.New(fault.Invalid, "a token gets an expiration time or a TTL, not both")
			}
			ttl = b.ExpirationTime.Sub(now)
		}
		if ttl != 0 {
			if ttl < minTokenTTL || ttl > maxTokenTTL {
				return reply{}, fault.New(fault.Invalid, "a token that expires does so after %v to %v, not after %v", minTokenTTL, maxTokenTTL, ttl)
			}
			t.Expires, t.TTL = now.Add(ttl).UnixNano(), int64(b.ExpirationTTL)
		}
	}
	t.SecretHash = hashOf(secret)
	result, index, err := a.apply(ctx, &command.ACLTokenUpsert{Now: now.UnixNano(), Token: t, Fresh: fresh})
	if err != nil {
		return reply{}, err
	}
	if !fresh {
		secret = ""
	}
	return a.written(index, wire.TokenOut(result.(*model.ACLToken), secret, a.roleName)), nil
}

func (a *API) deleteToken(ctx context.Context, id auth.Identity, r nodePath) (reply, error) {
	if r.ID == id.Accessor {
		return reply{}, fault.New(fault.Invalid, "a token cannot delete itself")
	}
	return a.removed(ctx, &command.ACLTokenDelete{Now: time.Now().UnixNano(), Accessor: r.ID}, "ACL token not found")
}

// removed applies an entry whose result says whether there was what it removes.
func (a *API) removed(ctx context.Context, entry any, missing string) (reply, error) {
	there, index, err := a.apply(ctx, entry)
	if err != nil {
		return reply{}, err
	}
	if ok, is := there.(bool); is && !ok {
		return reply{}, fault.New(fault.NotFound, "%s", missing)
	}
	return a.written(index, indexBody{index}), nil
}

// seesPolicy reports whether a caller has a policy, or may see all.
func (a *API) seesPolicy(s *state.Snapshot, id auth.Identity, name string) bool {
	if id.Management {
		return true
	}
	if id.Accessor == "" {
		return name == model.AnonymousPolicy
	}
	t := s.ACLToken(nil, id.Accessor)
	return t != nil && slices.ContainsFunc(policiesOf(s, t), func(p *model.ACLPolicy) bool { return p.Name == name })
}

// policyStubs lists the policies that a caller sees.
func policyStubs(a *API, s *state.Snapshot, w state.Watch, r query, id auth.Identity) (found, error) {
	stubs := mapped(s.ACLPolicies(w, r.Prefix), func(p *model.ACLPolicy) (*wire.ACLPolicyListStub, bool) {
		return wire.PolicyStub(p), a.seesPolicy(s, id, p.Name)
	})
	out, next, err := page(stubs, &r, func(p *wire.ACLPolicyListStub) string { return p.Name })
	return found{s.ACLIndex(), out, next}, err
}

func (a *API) listPolicies(ctx context.Context, id auth.Identity, r query) (reply, error) {
	if err := a.enabled(); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r, func(s *state.Snapshot, w state.Watch) (found, error) { return policyStubs(a, s, w, r, id) })
}

func (a *API) listOwnPolicies(ctx context.Context, id auth.Identity, r query) (reply, error) {
	if err := a.enabled(); err != nil {
		return reply{}, err
	}
	id.Management = false // which has no policies of its own
	return a.read(ctx, r, func(s *state.Snapshot, w state.Watch) (found, error) { return policyStubs(a, s, w, r, id) })
}

func (a *API) getPolicy(ctx context.Context, id auth.Identity, r byName) (reply, error) {
	if err := a.enabled(); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		if !a.seesPolicy(s, id, r.ID) {
			return found{index: s.ACLIndex()}, denied()
		}
		p := s.ACLPolicy(w, r.ID)
		if p == nil {
			return found{index: s.ACLIndex()}, fault.New(fault.NotFound, "ACL policy not found")
		}
		return found{index: p.ModifyIndex, body: wire.PolicyOut(p)}, nil
	})
}

type policyBody struct {
	ID   string         `path:"id"`
	Body wire.ACLPolicy `body:"json"`
}

func (a *API) putPolicy(ctx context.Context, _ auth.Identity, r policyBody) (reply, error) {
	b := r.Body
	switch {
	case a.enabled() != nil:
		return reply{}, a.enabled()
	case b.Name != "" && b.Name != r.ID:
		return reply{}, fault.New(fault.Invalid, "ACL policy name does not match request path")
	case !aclName.MatchString(r.ID):
		return reply{}, fault.New(fault.Invalid, "invalid name %q: a policy's name has 1 to 128 letters, digits and hyphens", r.ID)
	case len(b.Description) > 256:
		return reply{}, fault.New(fault.Invalid, "a policy's description has at most 256 characters")
	case b.JobACL != nil && b.JobACL.JobID != "":
		return reply{}, fault.New(fault.Unsupported, "policies of jobs are not supported by Rockpool: there are no workload identities")
	}
	if _, err := acl.Parse(b.Rules); err != nil {
		return reply{}, fault.New(fault.Invalid, "failed to parse the rules: %v", err)
	}
	return a.removed(ctx, &command.ACLPolicyUpsert{Now: time.Now().UnixNano(), Policy: &model.ACLPolicy{
		Name: r.ID, Description: b.Description, Rules: b.Rules,
	}}, "")
}

func (a *API) deletePolicy(ctx context.Context, _ auth.Identity, r nodePath) (reply, error) {
	return a.removed(ctx, &command.ACLPolicyDelete{Now: time.Now().UnixNano(), Name: r.ID}, "ACL policy not found")
}

// seesRole reports whether a caller has a role, or may see all.
func (a *API) seesRole(s *state.Snapshot, id auth.Identity, role string) bool {
	if id.Management {
		return true
	}
	t := s.ACLToken(nil, id.Accessor)
	return id.Accessor != "" && t != nil && slices.Contains(t.Roles, role)
}

func (a *API) listRoles(ctx context.Context, id auth.Identity, r query) (reply, error) {
	if err := a.enabled(); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r, func(s *state.Snapshot, w state.Watch) (found, error) {
		stubs := mapped(s.ACLRoles(w), func(o *model.ACLRole) (*wire.ACLRoleListStub, bool) {
			return wire.RoleStub(o), strings.HasPrefix(o.ID, r.Prefix) && a.seesRole(s, id, o.ID)
		})
		out, next, err := page(stubs, &r, func(o *wire.ACLRoleListStub) string { return o.ID })
		return found{s.ACLIndex(), out, next}, err
	})
}

type roleByName struct {
	query
	Name string `path:"name"`
}

func (a *API) getRoleByName(ctx context.Context, id auth.Identity, r roleByName) (reply, error) {
	return a.oneRole(ctx, id, r.query, func(s *state.Snapshot, w state.Watch) *model.ACLRole { return s.ACLRoleByName(w, r.Name) })
}

func (a *API) getRole(ctx context.Context, id auth.Identity, r byName) (reply, error) {
	return a.oneRole(ctx, id, r.query, func(s *state.Snapshot, w state.Watch) *model.ACLRole { return s.ACLRole(w, r.ID) })
}

func (a *API) oneRole(ctx context.Context, id auth.Identity, q query, find func(*state.Snapshot, state.Watch) *model.ACLRole) (reply, error) {
	if err := a.enabled(); err != nil {
		return reply{}, err
	}
	return a.read(ctx, q, func(s *state.Snapshot, w state.Watch) (found, error) {
		o := find(s, w)
		switch {
		case o == nil && !id.Management, o != nil && !a.seesRole(s, id, o.ID):
			return found{index: s.ACLIndex()}, denied()
		case o == nil:
			return found{index: s.ACLIndex()}, fault.New(fault.NotFound, "ACL role not found")
		}
		return found{index: o.ModifyIndex, body: wire.RoleOut(o)}, nil
	})
}

type newRole struct {
	Body wire.ACLRole `body:"json"`
}

type roleBody struct {
	newRole
	ID string `path:"id"`
}

func (a *API) createRole(ctx context.Context, _ auth.Identity, r newRole) (reply, error) {
	if r.Body.ID != "" {
		return reply{}, fault.New(fault.Invalid, "a new role gets its id from the server")
	}
	return a.putRole(ctx, ident.New(), &r.Body, true)
}

func (a *API) updateRole(ctx context.Context, _ auth.Identity, r roleBody) (reply, error) {
	if r.Body.ID != "" && r.Body.ID != r.ID {
		return reply{}, fault.New(fault.Invalid, "ACL role ID does not match request path")
	}
	return a.putRole(ctx, r.ID, &r.Body, false)
}

func (a *API) putRole(ctx context.Context, id string, b *wire.ACLRole, fresh bool) (reply, error) {
	o := &model.ACLRole{ID: id, Name: b.Name, Description: b.Description}
	for _, p := range b.Policies {
		if p != nil {
			o.Policies = append(o.Policies, p.Name)
		}
	}
	switch {
	case a.enabled() != nil:
		return reply{}, a.enabled()
	case !aclName.MatchString(b.Name):
		return reply{}, fault.New(fault.Invalid, "invalid name %q: a role's name has 1 to 128 letters, digits and hyphens", b.Name)
	case len(b.Description) > 256:
		return reply{}, fault.New(fault.Invalid, "a role's description has at most 256 characters")
	case len(o.Policies) == 0:
		return reply{}, fault.New(fault.Invalid, "a role needs at least one policy")
	}
	result, index, err := a.apply(ctx, &command.ACLRoleUpsert{Now: time.Now().UnixNano(), Role: o, Fresh: fresh})
	if err != nil {
		return reply{}, err
	}
	return a.written(index, wire.RoleOut(result.(*model.ACLRole))), nil
}

func (a *API) deleteRole(ctx context.Context, _ auth.Identity, r nodePath) (reply, error) {
	return a.removed(ctx, &command.ACLRoleDelete{Now: time.Now().UnixNano(), ID: r.ID}, "ACL role not found")
}

const oneTimePurpose = "one-time token"

// createOneTime seals the caller's secret with one that is shown once and kept by nobody.
func (a *API) createOneTime(w http.ResponseWriter, r *http.Request, id auth.Identity, _ endpoint.None) error {
	if err := a.enabled(); err != nil {
		return err
	}
	if id.Accessor == "" {
		return fault.New(fault.Invalid, "only the secrets of tokens that the cluster made can be handed over by a one-time token")
	}
	raw := make([]byte, 24)
	_, _ = rand.Read(raw)
	once := base64.RawURLEncoding.EncodeToString(raw)
	key, err := keyring.Derive([]byte(once), oneTimePurpose)
	if err != nil {
		return err
	}
	now := time.Now()
	result, index, err := a.apply(r.Context(), &command.OneTimePut{Now: now.UnixNano(), Token: &model.OneTimeToken{
		SecretHash: hashOf(once), AccessorID: id.Accessor, Sealed: key.Seal([]byte(token(r)), id.Accessor), Expires: now.Add(oneTimeTTL).UnixNano(),
	}})
	if err != nil {
		return err
	}
	t := result.(*model.OneTimeToken)
	return flushed(w, a.written(index, &wire.OneTimeTokenUpsertResponse{OneTimeToken: &wire.OneTimeToken{
		OneTimeSecretID: once, AccessorID: t.AccessorID, ExpiresAt: time.Unix(0, t.Expires).UTC(), CreateIndex: t.CreateIndex, ModifyIndex: t.ModifyIndex,
	}}))
}

type exchangeOneTime struct {
	Body wire.OneTimeTokenExchangeRequest `body:"json"`
}

func (a *API) exchangeOneTime(ctx context.Context, _ auth.Identity, r exchangeOneTime) (reply, error) {
	if err := a.enabled(); err != nil {
		return reply{}, err
	}
	once := r.Body.OneTimeSecretID
	if a.store.Snapshot().OneTimeToken(hashOf(once)) == nil {
		return reply{}, denied() // without an entry in the log, since everybody may ask
	}
	result, index, err := a.apply(ctx, &command.OneTimeTake{Now: time.Now().UnixNano(), SecretHash: hashOf(once)})
	if err != nil {
		return reply{}, err
	}
	o := result.(*model.OneTimeToken)
	if o == nil {
		return reply{}, denied()
	}
	key, err := keyring.Derive([]byte(once), oneTimePurpose)
	if err != nil {
		return reply{}, err
	}
	secret, err := key.Open(o.Sealed, o.AccessorID)
	if err != nil {
		return reply{}, fmt.Errorf("open the one-time token: %w", err)
	}
	t := a.store.Snapshot().ACLToken(nil, o.AccessorID)
	if t == nil || t.Expires != 0 && t.Expires <= time.Now().UnixNano() {
		return reply{}, denied()
	}
	return a.written(index, &wire.OneTimeTokenExchangeResponse{Token: wire.TokenOut(t, string(secret), a.roleName)}), nil
}
