package httpapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/keyring"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/orchestrator/wire"
)

const (
	maxVariable = 64 << 10  // bytes of a variable's items, keys and values together
	variableReq = 512 << 10 // bytes of a request with them in JSON

	minLockTTL, maxLockTTL   = 10 * time.Second, 24 * time.Hour
	defaultLock, maxLockWait = 15 * time.Second, 24 * time.Hour
)

// variableTable is variables, their locks, and the keyring that seals them.
func (a *API) variableTable() endpoint.Table {
	const path = "/v1/var/{path:.+}"
	t := endpoint.Table{
		endpoint.Call("variable.list", "GET", "/v1/vars", read(auth.VariablesList), a.listVariables),
		endpoint.Call("variable.get", "GET", path, read(auth.VariablesRead), a.getVariable),
		// Any right on variables will do for the pipeline: the handler asks for the right to what is asked for, at its path.
		endpoint.Call("variable.delete", "DELETE", path, write(auth.AnyInNamespace, smallBody), a.deleteVariable),
		endpoint.Call("keyring.list", "GET", "/v1/operator/keyring/keys", read(auth.Management), a.listKeys),
		endpoint.Call("keyring.delete", "DELETE", "/v1/operator/keyring/key/{id}", write(auth.Management, smallBody), a.deleteKey),
	}
	return append(t, putAndPost(func(method, name string) endpoint.Table {
		return endpoint.Table{
			endpoint.Call("variable.put"+name, method, path, write(auth.AnyInNamespace, variableReq), a.putVariable),
			endpoint.Call("keyring.rotate"+name, method, "/v1/operator/keyring/rotate", write(auth.Management, smallBody), a.rotateKeys),
		}
	})...)
}

// rootKeys keeps the keys that were unwrapped.
type rootKeys struct {
	mu   sync.Mutex
	open map[string]*keyring.Key // guarded by mu
}

// rootKey unwraps a root key.
func (a *API) rootKey(k *model.RootKey) (*keyring.Key, error) {
	a.roots.mu.Lock()
	defer a.roots.mu.Unlock()
	if key := a.roots.open[k.ID]; key != nil {
		return key, nil
	}
	key, err := a.cfg.KEK.Root(k.ID, k.Wrapped)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the key file of this server does not open root key %s: all servers need the same one", k.ID)
	}
	if a.roots.open == nil || len(a.roots.open) > 100 {
		a.roots.open = map[string]*keyring.Key{}
	}
	a.roots.open[k.ID] = key
	return key, nil
}

// sealable refuses variables where nothing can seal them.
func (a *API) sealable() error {
	if a.cfg.KEK == nil {
		return fault.New(fault.Unsupported, "variables need a key file: give all servers of the cluster the same one (key_file)")
	}
	return nil
}

// activeKey is the key that seals now; where there is none yet, it is made.
func (a *API) activeKey(ctx context.Context) (string, *keyring.Key, error) {
	k := a.store.Snapshot().ActiveKey()
	if k == nil {
		id := ident.New()
		made, _, err := a.apply(ctx, &command.RootKeyPut{Now: time.Now().UnixNano(), Key: &model.RootKey{ID: id, Wrapped: a.cfg.KEK.NewRoot(id)}, Absent: true})
		if err != nil {
			return "", nil, err
		}
		k = made.(*model.RootKey)
	}
	key, err := a.rootKey(k)
	return k.ID, key, err
}

// openItems decrypts a variable. No error tells anything of its contents.
func (a *API) openItems(s *state.Snapshot, v *model.Variable) (map[string]string, error) {
	if err := a.sealable(); err != nil {
		return nil, err
	}
	k := s.RootKey(v.KeyID)
	if k == nil {
		return nil, fault.New(fault.Internal, "the root key of the variable was removed: its items are lost")
	}
	key, err := a.rootKey(k)
	if err != nil {
		return nil, err
	}
	plain, err := key.Open(v.Data, keyring.Place(v.Namespace, v.Path, v.KeyID))
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the variable cannot be decrypted")
	}
	items := map[string]string{}
	if json.Unmarshal(plain, &items) != nil {
		return nil, errors.New("a decrypted variable holds no items")
	}
	return items, nil
}

func (a *API) listVariables(ctx context.Context, id auth.Identity, r query) (reply, error) {
	r.Prefix = strings.TrimLeft(r.Prefix, "/")
	return a.read(ctx, r, func(s *state.Snapshot, w state.Watch) (found, error) {
		now := time.Now().UnixNano()
		out, next, err := page(mapped(s.Variables(w, r.namespace(), r.Prefix), func(v *model.Variable) (*wire.VariableMetadata, bool) {
			return wire.VariableMeta(v, now, false), id.MayVariable(auth.VariablesList, v.Namespace, v.Path)
		}), &r, func(v *wire.VariableMetadata) string { return v.Namespace + "." + v.Path })
		return found{s.VariablesIndex(), out, next}, err
	})
}

type variableRead struct {
	query
	Path string `path:"path"`
}

// missingVariable is a 404 whose words the command line knows.
func missingVariable() error { return fault.New(fault.NotFound, "variable not found") }

func (a *API) getVariable(ctx context.Context, id auth.Identity, r variableRead) (reply, error) {
	if !id.MayVariable(auth.VariablesRead, r.namespace(), r.Path) {
		return reply{}, denied()
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		v := s.Variable(w, r.namespace(), r.Path)
		if v == nil {
			return found{index: s.VariablesIndex()}, missingVariable()
		}
		items, err := a.openItems(s, v)
		writer := id.MayVariable(auth.VariablesWrite, v.Namespace, v.Path)
		return found{index: v.ModifyIndex, body: wire.VariableOut(v, items, time.Now().UnixNano(), writer)}, err
	})
}

type variableWrite struct {
	Namespace string         `query:"namespace"`
	Path      string         `path:"path"`
	CAS       []string       `query:"cas"`
	Acquire   endpoint.Flag  `query:"lock-acquire"`
	Renew     endpoint.Flag  `query:"lock-renew"`
	Release   endpoint.Flag  `query:"lock-release"`
	Body      *wire.Variable `body:"json"`
}

// variableReply answers a write: 200, 204 after a deletion, or 409 with the variable that was in the way.
type variableReply struct {
	reply
	status int
}

// HTTPStatus is the status.
func (r variableReply) HTTPStatus() int { return r.status }

var variablePath = regexp.MustCompile(`^[a-zA-Z0-9-_~/]{1,128}$`)

func checkPath(path string) error {
	switch {
	case !variablePath.MatchString(path) || strings.HasPrefix(path, "/") || strings.HasSuffix(path, "/") || strings.Contains(path, "//"):
		return fault.New(fault.Invalid, "invalid path %q: a path has 1 to 128 letters, digits and -_~/, and no empty part", path)
	case path == "nomad", strings.HasPrefix(path, "nomad/") && path != "nomad/jobs" && !strings.HasPrefix(path, "nomad/jobs/") &&
		!strings.HasPrefix(path, "nomad/job-templates/"):
		return fault.New(fault.Invalid, "only paths at \"nomad/jobs\" or \"nomad/job-templates\" and below are valid in the reserved root \"nomad\"")
	}
	if rest, ok := strings.CutPrefix(path, "nomad/jobs/"); ok && strings.Count(rest, "/") > 2 {
		return fault.New(fault.Invalid, "a path at \"nomad/jobs\" is that of a job, a group or a task")
	}
	return nil
}

func boundedDuration(s, what string, fallback, least, most time.Duration) (int64, error) {
	d := fallback
	if s != "" {
		var err error
		if d, err = time.ParseDuration(s); err != nil {
			return 0, fault.New(fault.Invalid, "%s is not a duration such as 30s", what)
		}
	}
	if d < least || d > most {
		return 0, fault.New(fault.Invalid, "%s must be between %v and %v", what, least, most)
	}
	return int64(d), nil
}

func (a *API) putVariable(ctx context.Context, id auth.Identity, r variableWrite) (variableReply, error) {
	namespace := cmp.Or(r.Namespace, model.DefaultNamespace)
	if !id.MayVariable(auth.VariablesWrite, namespace, r.Path) {
		return variableReply{}, denied()
	}
	if err := a.sealable(); err != nil {
		return variableReply{}, err
	}
	if err := checkPath(r.Path); err != nil {
		return variableReply{}, err
	}
	b := r.Body
	switch {
	case b == nil:
		return variableReply{}, fault.New(fault.Invalid, "the variable is missing")
	case b.Path != "" && strings.Trim(b.Path, " /") != r.Path:
		return variableReply{}, fault.New(fault.Invalid, "the path of the body differs from that of the request")
	case r.Namespace != "" && b.Namespace != "" && b.Namespace != namespace:
		return variableReply{}, fault.New(fault.Invalid, "the namespace of the body differs from that of the request")
	case r.Namespace == "" && b.Namespace != "" && b.Namespace != namespace:
		return variableReply{}, fault.New(fault.Invalid, "the namespace %q must be in the query too", b.Namespace)
	case namespace == auth.Everywhere:
		return variableReply{}, fault.New(fault.Invalid, "a variable is in one namespace")
	}
	c := &state.VariableChange{Op: state.VariableSet, Namespace: namespace, Path: r.Path}
	if b.Lock != nil {
		c.LockID = b.Lock.ID
	}
	for flag, op := range map[string]endpoint.Flag{state.VariableAcquire: r.Acquire, state.VariableRenew: r.Renew, state.VariableRelease: r.Release} {
		if op && c.Op != state.VariableSet {
			return variableReply{}, fault.New(fault.Invalid, "only one operation on a lock can be asked for")
		}
		if op {
			c.Op = flag
		}
	}
	if err := c.At(r.CAS); err != nil {
		return variableReply{}, err
	}
	switch c.Op {
	case state.VariableAcquire:
		ttl, delay := "", ""
		if b.Lock != nil {
			ttl, delay = b.Lock.TTL, b.Lock.LockDelay
		}
		l := &model.VariableLock{ID: ident.New()}
		var err error
		if l.TTL, err = boundedDuration(ttl, "the lock's TTL", defaultLock, minLockTTL, maxLockTTL); err != nil {
			return variableReply{}, err
		}
		if l.Delay, err = boundedDuration(delay, "the lock's delay", defaultLock, 0, maxLockWait); err != nil {
			return variableReply{}, err
		}
		c.NewLock = l
	case state.VariableRenew, state.VariableRelease:
		if c.LockID == "" {
			return variableReply{}, fault.New(fault.Invalid, "the id of the lock is missing")
		}
	case state.VariableSet:
		if len(b.Items) == 0 {
			return variableReply{}, fault.New(fault.Invalid, "variable missing required Items object")
		}
	}
	if c.Op == state.VariableSet || c.Op == state.VariableAcquire && (len(b.Items) > 0 || a.store.Snapshot().Variable(nil, namespace, r.Path) == nil) {
		if err := a.sealItems(ctx, c, b.Items); err != nil {
			return variableReply{}, err
		}
	}
	return a.changeVariable(ctx, id, c)
}

// sealItems encrypts what is written before it goes anywhere.
func (a *API) sealItems(ctx context.Context, c *state.VariableChange, items map[string]string) error {
	size := 0
	for k, v := range items {
		size += len(k) + len(v)
	}
	if size > maxVariable {
		return fault.New(fault.Invalid, "variables are limited to 64KiB in total size")
	}
	if items == nil {
		items = map[string]string{}
	}
	plain, err := json.Marshal(items)
	if err != nil {
		return errors.New("the items cannot be encoded") // without the cause, which might tell of them
	}
	id, key, err := a.activeKey(ctx)
	if err != nil {
		return err
	}
	c.KeyID, c.Data = id, key.Seal(plain, keyring.Place(c.Namespace, c.Path, id))
	return nil
}

type variableDelete struct {
	Namespace string   `query:"namespace"`
	Path      string   `path:"path"`
	CAS       []string `query:"cas"`
	LockID    string   `query:"lock-id"`
}

func (a *API) deleteVariable(ctx context.Context, id auth.Identity, r variableDelete) (variableReply, error) {
	namespace := cmp.Or(r.Namespace, model.DefaultNamespace)
	if !id.MayVariable(auth.VariablesDestroy, namespace, r.Path) {
		return variableReply{}, denied()
	}
	c := &state.VariableChange{Op: state.VariableDelete, Namespace: namespace, Path: r.Path, LockID: r.LockID}
	if err := c.At(r.CAS); err != nil {
		return variableReply{}, err
	}
	return a.changeVariable(ctx, id, c)
}

func (a *API) changeVariable(ctx context.Context, id auth.Identity, c *state.VariableChange) (variableReply, error) {
	now := time.Now().UnixNano()
	result, index, err := a.apply(ctx, &command.VariableChange{Now: now, Change: c})
	if err != nil {
		return variableReply{}, err
	}
	done, ok := result.(state.VariableChanged)
	if !ok {
		return variableReply{}, fmt.Errorf("change a variable: the log answered %T", result)
	}
	v, status := done.Variable, http.StatusOK
	if done.Conflict != nil {
		v, status = done.Conflict, http.StatusConflict
	}
	switch {
	case v == nil:
		return variableReply{a.written(index, nil), http.StatusNoContent}, nil
	case c.Op == state.VariableRenew && done.Conflict == nil:
		return variableReply{a.written(index, wire.VariableMeta(v, now, true)), status}, nil
	}
	// A conflict tells no more than the caller may read, and never the id of somebody else's lock.
	var items map[string]string
	if len(v.Data) > 0 && (done.Conflict == nil || id.MayVariable(auth.VariablesRead, v.Namespace, v.Path)) {
		if items, err = a.openItems(a.store.Snapshot(), v); err != nil {
			return variableReply{}, err
		}
	}
	return variableReply{a.written(index, wire.VariableOut(v, items, now, done.Conflict == nil)), status}, nil
}

func (a *API) listKeys(ctx context.Context, _ auth.Identity, r query) (reply, error) {
	return a.read(ctx, r, func(s *state.Snapshot, w state.Watch) (found, error) {
		index := uint64(0)
		out, next, err := page(mapped(s.RootKeys(w), func(k *model.RootKey) (*wire.RootKeyMeta, bool) {
			index = max(index, k.ModifyIndex)
			return wire.KeyOut(k), strings.HasPrefix(k.ID, r.Prefix)
		}), &r, func(k *wire.RootKeyMeta) string { return k.KeyID })
		return found{index, out, next}, err
	})
}

type rotateKeys struct {
	Algorithm string        `query:"algo"`
	Full      endpoint.Flag `query:"full"`
	Publish   int64         `query:"publish_time"`
}

func (a *API) rotateKeys(ctx context.Context, _ auth.Identity, r rotateKeys) (reply, error) {
	switch {
	case a.sealable() != nil:
		return reply{}, a.sealable()
	case r.Algorithm != "" && r.Algorithm != "aes256-gcm":
		return reply{}, fault.New(fault.Invalid, "the algorithm %q is not known, only aes256-gcm", r.Algorithm)
	case r.Publish != 0:
		return reply{}, fault.New(fault.Unsupported, "prepublished keys are not supported by Rockpool: nothing outside of the cluster uses its root keys")
	}
	id := ident.New()
	made, index, err := a.apply(ctx, &command.RootKeyPut{
		Now: time.Now().UnixNano(), Key: &model.RootKey{ID: id, Wrapped: a.cfg.KEK.NewRoot(id)}, Full: bool(r.Full),
	})
	if err != nil {
		return reply{}, err
	}
	return a.written(index, struct {
		Key   *wire.RootKeyMeta
		Index uint64
	}{wire.KeyOut(made.(*model.RootKey)), index}), nil
}

type keyPath struct {
	ID    string        `path:"id"`
	Force endpoint.Flag `query:"force"`
}

func (a *API) deleteKey(ctx context.Context, _ auth.Identity, r keyPath) (reply, error) {
	return a.removed(ctx, &command.RootKeyDelete{Now: time.Now().UnixNano(), ID: r.ID, Force: bool(r.Force)}, "")
}
