package httpapi

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
	"rockpool/internal/fault"
	"rockpool/internal/ident"
	"rockpool/internal/orchestrator/command"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/orchestrator/wire"
)

// namespaceTable is how a cluster is parted: namespaces, quotas and node pools.
func (a *API) namespaceTable() endpoint.Table {
	t := endpoint.Table{
		endpoint.Call("namespace.list", "GET", "/v1/namespaces", read(auth.AnyRight), a.listNamespaces),
		endpoint.Call("namespace.get", "GET", "/v1/namespace/{name}", read(auth.AnyInNamespace), a.getNamespace),
		endpoint.Call("namespace.delete", "DELETE", "/v1/namespace/{name}", write(auth.Management, smallBody), a.deleteNamespace),
		endpoint.Call("quota.list", "GET", "/v1/quotas", read(auth.QuotaRead), a.listQuotas),
		endpoint.Call("quota.usages", "GET", "/v1/quota-usages", read(auth.QuotaRead), a.listQuotaUsages),
		endpoint.Call("quota.usage", "GET", "/v1/quota/usage/{name}", read(auth.QuotaRead), a.getQuotaUsage),
		endpoint.Call("quota.get", "GET", "/v1/quota/{name}", read(auth.QuotaRead), a.getQuota),
		endpoint.Call("quota.delete", "DELETE", "/v1/quota/{name}", write(auth.QuotaWrite, smallBody), a.deleteQuota),
		endpoint.Call("pool.list", "GET", "/v1/node/pools", read(auth.PoolRead), a.listPools),
		endpoint.Call("pool.get", "GET", "/v1/node/pool/{pool}", read(auth.PoolRead), a.getPool),
		endpoint.Call("pool.nodes", "GET", "/v1/node/pool/{pool}/nodes", read(auth.NodeRead), a.listPoolNodes),
		endpoint.Call("pool.jobs", "GET", "/v1/node/pool/{pool}/jobs", read(auth.ListJobs), a.listPoolJobs),
		endpoint.Call("pool.delete", "DELETE", "/v1/node/pool/{pool}", write(auth.PoolDelete, smallBody), a.deletePool),
	}
	return append(t, putAndPost(func(method, name string) endpoint.Table {
		return endpoint.Table{
			endpoint.Call("namespace.create"+name, method, "/v1/namespace", write(auth.Management, smallBody), a.putNewNamespace),
			endpoint.Call("namespace.update"+name, method, "/v1/namespace/{name}", write(auth.Management, smallBody), a.putNamespace),
			endpoint.Call("quota.create"+name, method, "/v1/quota", write(auth.QuotaWrite, smallBody), a.putNewQuota),
			endpoint.Call("quota.update"+name, method, "/v1/quota/{name}", write(auth.QuotaWrite, smallBody), a.putQuota),
			endpoint.Call("pool.create"+name, method, "/v1/node/pools", write(auth.PoolWrite, smallBody), a.putNewPool),
			endpoint.Call("pool.update"+name, method, "/v1/node/pool/{pool}", write(auth.PoolWrite, smallBody), a.putPool),
		}
	})...)
}

var sharedName = regexp.MustCompile(`^[a-zA-Z0-9-_]{1,128}$`)

// nameFor settles the name of what is put: the path's and the body's must not differ.
func nameFor(what, path, body string) (string, error) {
	if path != "" && body != "" && path != body {
		return "", fault.New(fault.Invalid, "the name of the body differs from that of the path")
	}
	name := cmp.Or(path, body)
	if !sharedName.MatchString(name) {
		return "", fault.New(fault.Invalid, "invalid name %q: a %s's name has 1 to 128 letters, digits, hyphens and underscores", name, what)
	}
	return name, nil
}

func (a *API) listNamespaces(ctx context.Context, id auth.Identity, r query) (reply, error) {
	return a.read(ctx, r, func(s *state.Snapshot, w state.Watch) (found, error) {
		out, next, err := page(mapped(s.Namespaces(w, r.Prefix), func(n *model.Namespace) (*wire.Namespace, bool) {
			return wire.NamespaceOut(n), id.MayIn(auth.AnyInNamespace, n.Name)
		}), &r, func(n *wire.Namespace) string { return n.Name })
		return found{s.NamespacesIndex(), out, next}, err
	})
}

type nameRead struct {
	query
	Name string `path:"name"`
}

type namePath struct {
	Name string `path:"name"`
}

func (a *API) getNamespace(ctx context.Context, _ auth.Identity, r nameRead) (reply, error) {
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		n := s.Namespace(w, r.Name)
		if n == nil {
			return found{index: s.NamespacesIndex()}, notFound("Namespace")
		}
		return found{index: n.ModifyIndex, body: wire.NamespaceOut(n)}, nil
	})
}

type newNamespace struct {
	Body wire.Namespace `body:"json"`
}

type namespaceBody struct {
	newNamespace
	namePath
}

func (a *API) putNewNamespace(ctx context.Context, id auth.Identity, r newNamespace) (reply, error) {
	return a.putNamespace(ctx, id, namespaceBody{newNamespace: r})
}

func (a *API) putNamespace(ctx context.Context, _ auth.Identity, r namespaceBody) (reply, error) {
	name, err := nameFor("namespace", r.Name, r.Body.Name)
	if err != nil {
		return reply{}, err
	}
	n, problem := wire.NamespaceIn(&r.Body)
	if problem == "" && len(n.Description) > 256 {
		problem = "a namespace's description has at most 256 characters"
	}
	if problem == "" && n.DefaultPool != "" && a.store.Snapshot().NodePool(nil, n.DefaultPool) == nil {
		problem = fmt.Sprintf("the default node pool %q does not exist", n.DefaultPool)
	}
	if problem != "" {
		return reply{}, fault.New(fault.Invalid, "%s", problem)
	}
	n.Name = name
	return a.removed(ctx, &command.NamespaceUpsert{Now: time.Now().UnixNano(), Namespace: n}, "")
}

func (a *API) deleteNamespace(ctx context.Context, _ auth.Identity, r namePath) (reply, error) {
	return a.removed(ctx, &command.NamespaceDelete{Now: time.Now().UnixNano(), Name: r.Name}, "")
}

// choosePool gives a job that names no pool its namespace's default.
func choosePool(s *state.Snapshot, j *wire.Job) {
	if j.NodePool != nil && *j.NodePool != "" {
		return
	}
	name := model.DefaultNamespace
	if j.Namespace != nil && *j.Namespace != "" {
		name = *j.Namespace
	}
	if n := s.Namespace(nil, name); n != nil && n.DefaultPool != "" {
		j.NodePool = &n.DefaultPool
	}
}

func (a *API) listQuotas(ctx context.Context, _ auth.Identity, r query) (reply, error) {
	return a.read(ctx, r, func(s *state.Snapshot, w state.Watch) (found, error) {
		out, next, err := page(mapped(s.Quotas(w, r.Prefix), func(q *model.Quota) (*wire.QuotaSpec, bool) { return wire.QuotaOut(q), true }), &r,
			func(q *wire.QuotaSpec) string { return q.Name })
		return found{s.QuotasIndex(), out, next}, err
	})
}

// usageIndex is that of whatever changes what is held of quotas.
func usageIndex(s *state.Snapshot) uint64 {
	return max(s.QuotasIndex(), s.AllocsIndex(), s.NamespacesIndex(), s.VariablesIndex())
}

func (a *API) listQuotaUsages(ctx context.Context, _ auth.Identity, r query) (reply, error) {
	return a.read(ctx, r, func(s *state.Snapshot, w state.Watch) (found, error) {
		out, next, err := page(mapped(s.Quotas(w, r.Prefix), func(q *model.Quota) (*wire.QuotaUsage, bool) {
			return wire.QuotaUsageOut(q, s.QuotaUsage(w, q.Name), usageIndex(s)), true
		}), &r, func(q *wire.QuotaUsage) string { return q.Name })
		return found{usageIndex(s), out, next}, err
	})
}

func (a *API) getQuotaUsage(ctx context.Context, _ auth.Identity, r nameRead) (reply, error) {
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		q := s.Quota(w, r.Name)
		if q == nil {
			return found{index: s.QuotasIndex()}, notFound("quota")
		}
		return found{index: usageIndex(s), body: wire.QuotaUsageOut(q, s.QuotaUsage(w, q.Name), usageIndex(s))}, nil
	})
}

func (a *API) getQuota(ctx context.Context, _ auth.Identity, r nameRead) (reply, error) {
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		q := s.Quota(w, r.Name)
		if q == nil {
			return found{index: s.QuotasIndex()}, notFound("quota")
		}
		return found{index: q.ModifyIndex, body: wire.QuotaOut(q)}, nil
	})
}

type newQuota struct {
	Body wire.QuotaSpec `body:"json"`
}

type quotaBody struct {
	newQuota
	namePath
}

func (a *API) putNewQuota(ctx context.Context, id auth.Identity, r newQuota) (reply, error) {
	return a.putQuota(ctx, id, quotaBody{newQuota: r})
}

func (a *API) putQuota(ctx context.Context, _ auth.Identity, r quotaBody) (reply, error) {
	name, err := nameFor("quota", r.Name, r.Body.Name)
	if err != nil {
		return reply{}, err
	}
	q, problem := wire.QuotaIn(&r.Body)
	if problem != "" {
		return reply{}, fault.New(fault.Invalid, "%s", problem)
	}
	q.Name = name
	return a.removed(ctx, &command.QuotaUpsert{Now: time.Now().UnixNano(), Quota: q, Evals: waiting(a.store.Snapshot(), name)}, "")
}

// waiting are new evaluations of the jobs whose own are blocked by a quota.
func waiting(s *state.Snapshot, quota string) []*model.Evaluation {
	var out []*model.Evaluation
	seen := map[[2]string]bool{}
	for e := range s.Evals(nil, "") {
		k := [2]string{e.Namespace, e.JobID}
		j := s.Job(nil, e.Namespace, e.JobID)
		if e.Status != model.EvalBlocked || e.QuotaReached != quota || seen[k] || j == nil || j.Stop {
			continue
		}
		seen[k] = true
		out = append(out, &model.Evaluation{
			ID: ident.NewNear(), Namespace: j.Namespace, Priority: j.Priority, Type: j.Type, TriggeredBy: model.TriggerQueuedAllocs, JobID: j.ID,
			JobModifyIndex: j.JobModifyIndex, Status: model.EvalPending,
		})
	}
	return out
}

func (a *API) deleteQuota(ctx context.Context, _ auth.Identity, r namePath) (reply, error) {
	return a.removed(ctx, &command.QuotaDelete{Now: time.Now().UnixNano(), Name: r.Name}, "")
}

type poolRead struct {
	query
	Pool string `path:"pool"`
}

type poolPath struct {
	Pool string `path:"pool"`
}

func (a *API) listPools(ctx context.Context, id auth.Identity, r query) (reply, error) {
	return a.read(ctx, r, func(s *state.Snapshot, w state.Watch) (found, error) {
		out, next, err := page(mapped(s.NodePools(w, r.Prefix), func(p *model.NodePool) (*wire.NodePool, bool) {
			return wire.PoolOut(p), id.MayIn(auth.PoolRead, p.Name)
		}), &r, func(p *wire.NodePool) string { return p.Name })
		return found{s.NodePoolsIndex(), out, next}, err
	})
}

// pool is read for the node pool of the path.
func (a *API) pool(ctx context.Context, id auth.Identity, r poolRead, f func(*state.Snapshot, state.Watch, *model.NodePool) (found, error)) (reply, error) {
	if err := require(id, auth.PoolRead, r.Pool); err != nil {
		return reply{}, err
	}
	return a.read(ctx, r.query, func(s *state.Snapshot, w state.Watch) (found, error) {
		p := s.NodePool(w, r.Pool)
		if p == nil {
			return found{index: s.NodePoolsIndex()}, notFound("node pool")
		}
		return f(s, w, p)
	})
}

func (a *API) getPool(ctx context.Context, id auth.Identity, r poolRead) (reply, error) {
	return a.pool(ctx, id, r, func(_ *state.Snapshot, _ state.Watch, p *model.NodePool) (found, error) {
		return found{index: p.ModifyIndex, body: wire.PoolOut(p)}, nil
	})
}

func (a *API) listPoolNodes(ctx context.Context, id auth.Identity, r poolRead) (reply, error) {
	return a.pool(ctx, id, r, func(s *state.Snapshot, w state.Watch, p *model.NodePool) (found, error) {
		out, next, err := page(mapped(s.Nodes(w, r.Prefix), func(n *model.Node) (*wire.NodeListStub, bool) {
			return wire.NodeStub(n, false, false), p.Name == model.PoolAll || cmp.Or(n.NodePool, model.PoolDefault) == p.Name
		}), &r.query, func(n *wire.NodeListStub) string { return n.ID })
		return found{s.NodesIndex(), out, next}, err
	})
}

func (a *API) listPoolJobs(ctx context.Context, id auth.Identity, r poolRead) (reply, error) {
	return a.pool(ctx, id, r, func(s *state.Snapshot, w state.Watch, p *model.NodePool) (found, error) {
		out, next, err := page(mapped(s.Jobs(w, r.namespace(), r.Prefix), func(j *model.Job) (*wire.JobListStub, bool) {
			if !r.sees(j.Namespace) || cmp.Or(j.NodePool, model.PoolDefault) != p.Name {
				return nil, false
			}
			return wire.JobStub(j, summary(s, nil, j), false), true
		}), &r.query, func(j *wire.JobListStub) string { return j.Namespace + "." + j.ID })
		return found{s.JobsIndex(), out, next}, err
	})
}

type newPool struct {
	Body wire.NodePool `body:"json"`
}

type poolBody struct {
	newPool
	poolPath
}

func (a *API) putNewPool(ctx context.Context, id auth.Identity, r newPool) (reply, error) {
	return a.putPool(ctx, id, poolBody{newPool: r})
}

func (a *API) putPool(ctx context.Context, id auth.Identity, r poolBody) (reply, error) {
	name, err := nameFor("node pool", r.Pool, r.Body.Name)
	if err != nil {
		return reply{}, err
	}
	if err := require(id, auth.PoolWrite, name); err != nil {
		return reply{}, err
	}
	if name == model.PoolAll || name == model.PoolDefault {
		return reply{}, fault.New(fault.Invalid, "modifying node pool %q is not allowed: it is built in", name)
	}
	p, problem := wire.PoolIn(&r.Body)
	if problem == "" && len(p.Description) > 256 {
		problem = "a node pool's description has at most 256 characters"
	}
	if problem != "" {
		return reply{}, fault.New(fault.Invalid, "%s", problem)
	}
	p.Name = name
	return a.removed(ctx, &command.NodePoolUpsert{Now: time.Now().UnixNano(), Pool: p}, "")
}

func (a *API) deletePool(ctx context.Context, id auth.Identity, r poolPath) (reply, error) {
	if err := require(id, auth.PoolDelete, r.Pool); err != nil {
		return reply{}, err
	}
	return a.removed(ctx, &command.NodePoolDelete{Now: time.Now().UnixNano(), Name: r.Pool}, "")
}
