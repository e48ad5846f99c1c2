package state

import (
	"iter"

	"rockpool/internal/orchestrator/model"
)

const (
	tableACLTokens      = "acl_tokens"
	tableACLPolicies    = "acl_policies"
	tableACLRoles       = "acl_roles"
	tableACLBootstrap   = "acl_bootstrap"
	tableOneTime        = "acl_one_time_tokens"
	tableNamespaces     = "namespaces"
	tableQuotas         = "quotas"
	tableNodePools      = "node_pools"
	tableVariables      = "variables"
	tableRootKeys       = "root_keys"
	tableServices       = "services"
	tableNamespaceUsage = "namespace_usage"
)

// namespaceUsage is what a namespace holds. It follows from allocations and variables, so a snapshot has none of it.
type namespaceUsage struct {
	Namespace string
	Used      model.QuotaUsage
}

func accessTables() []tableDef {
	usage := derived(define(tableNamespaceUsage, 51, false, func(u *namespaceUsage, to []string) []string { return append(to, u.Namespace) }, nil))
	return []tableDef{
		define(tableACLTokens, 40, true, func(t *model.ACLToken, to []string) []string { return append(to, t.AccessorID) }, map[string]parts[model.ACLToken]{
			"secret": func(t *model.ACLToken, to []string) []string { return append(to, t.SecretHash) },
		}),
		define(tableACLPolicies, 41, true, func(p *model.ACLPolicy, to []string) []string { return append(to, p.Name) }, nil),
		define(tableACLRoles, 42, true, func(r *model.ACLRole, to []string) []string { return append(to, r.ID) }, map[string]parts[model.ACLRole]{
			"name": func(r *model.ACLRole, to []string) []string { return append(to, r.Name) },
		}),
		define(tableACLBootstrap, 43, false, func(_ *model.ACLBootstrap, to []string) []string { return append(to, "bootstrap") }, nil),
		define(tableOneTime, 44, false, func(t *model.OneTimeToken, to []string) []string { return append(to, t.SecretHash) }, nil),
		define(tableNamespaces, 45, true, func(n *model.Namespace, to []string) []string { return append(to, n.Name) }, map[string]parts[model.Namespace]{
			"quota": func(n *model.Namespace, to []string) []string {
				if n.Quota == "" {
					return nil
				}
				return append(to, n.Quota)
			},
		}),
		define(tableQuotas, 46, true, func(q *model.Quota, to []string) []string { return append(to, q.Name) }, nil),
		define(tableNodePools, 47, true, func(p *model.NodePool, to []string) []string { return append(to, p.Name) }, nil),
		define(tableVariables, 48, true, func(v *model.Variable, to []string) []string { return append(to, v.Namespace, v.Path) }, map[string]parts[model.Variable]{
			"key": func(v *model.Variable, to []string) []string { return append(to, v.KeyID) },
		}),
		define(tableRootKeys, 49, false, func(k *model.RootKey, to []string) []string { return append(to, k.ID) }, nil),
		define(tableServices, 50, true, func(s *model.ServiceRegistration, to []string) []string {
			return append(to, s.Namespace, s.ServiceName, s.ID)
		},
			map[string]parts[model.ServiceRegistration]{
				"alloc": func(s *model.ServiceRegistration, to []string) []string { return append(to, s.AllocID) },
				"job":   func(s *model.ServiceRegistration, to []string) []string { return append(to, s.Namespace, s.JobID) },
				"node":  func(s *model.ServiceRegistration, to []string) []string { return append(to, s.NodeID) },
			}),
		usage,
	}
}

// ACLIndex is the index of the newest change to any token, policy or role.
func (s *Snapshot) ACLIndex() uint64 {
	return max(s.tableIndex(tableACLTokens), s.tableIndex(tableACLPolicies), s.tableIndex(tableACLRoles))
}

// WatchACL adds to w whatever may change what a token is allowed.
func (s *Snapshot) WatchACL(w Watch) {
	s.ACLTokens(w, "")
	s.ACLPolicies(w, "")
	s.ACLRoles(w)
}

// ACLToken is the token of that accessor, or nil.
func (s *Snapshot) ACLToken(w Watch, accessor string) *model.ACLToken {
	return first[model.ACLToken](s, w, tableACLTokens, accessor)
}

// ACLTokenBySecret is the token whose secret has that hash, or nil.
func (s *Snapshot) ACLTokenBySecret(hash string) *model.ACLToken {
	for t := range all[model.ACLToken](s, nil, tableACLTokens, "secret", hash) {
		return t
	}
	return nil
}

// ACLTokens yields the tokens whose accessor starts so, by accessor.
func (s *Snapshot) ACLTokens(w Watch, prefix string) iter.Seq[*model.ACLToken] {
	return prefixed[model.ACLToken](s, w, tableACLTokens, prefix)
}

// ACLPolicy is the policy of that name, or nil.
func (s *Snapshot) ACLPolicy(w Watch, name string) *model.ACLPolicy {
	return first[model.ACLPolicy](s, w, tableACLPolicies, name)
}

// ACLPolicies yields the policies whose name starts so, by name.
func (s *Snapshot) ACLPolicies(w Watch, prefix string) iter.Seq[*model.ACLPolicy] {
	return prefixed[model.ACLPolicy](s, w, tableACLPolicies, prefix)
}

// ACLRole is the role of that id, or nil.
func (s *Snapshot) ACLRole(w Watch, id string) *model.ACLRole {
	return first[model.ACLRole](s, w, tableACLRoles, id)
}

// ACLRoleByName is the role of that name, or nil.
func (s *Snapshot) ACLRoleByName(w Watch, name string) *model.ACLRole {
	for r := range all[model.ACLRole](s, w, tableACLRoles, "name", name) {
		return r
	}
	return nil
}

// ACLRoles yields all roles, by id.
func (s *Snapshot) ACLRoles(w Watch) iter.Seq[*model.ACLRole] {
	return all[model.ACLRole](s, w, tableACLRoles, "id")
}

// ACLBootstrapIndex is the index at which the first management token was made; 0 = there is none.
func (s *Snapshot) ACLBootstrapIndex() uint64 {
	if b := first[model.ACLBootstrap](s, nil, tableACLBootstrap, "bootstrap"); b != nil {
		return b.Index
	}
	return 0
}

// OneTimeToken is the one whose secret has that hash, or nil.
func (s *Snapshot) OneTimeToken(hash string) *model.OneTimeToken {
	return first[model.OneTimeToken](s, nil, tableOneTime, hash)
}

// OneTimeTokens yields all, by hash.
func (s *Snapshot) OneTimeTokens(w Watch) iter.Seq[*model.OneTimeToken] {
	return all[model.OneTimeToken](s, w, tableOneTime, "id")
}

// NamespacesIndex is the index of the newest change to any namespace.
func (s *Snapshot) NamespacesIndex() uint64 { return max(s.tableIndex(tableNamespaces), 1) }

// Namespace is the namespace of that name, or nil. The default one is always there.
func (s *Snapshot) Namespace(w Watch, name string) *model.Namespace {
	n := first[model.Namespace](s, w, tableNamespaces, name)
	if n == nil && name == model.DefaultNamespace {
		return &model.Namespace{Name: name, Description: "Default shared namespace", CreateIndex: 1, ModifyIndex: 1}
	}
	return n
}

// Namespaces yields all whose name starts so, by name, but a default one that nobody changed comes first.
func (s *Snapshot) Namespaces(w Watch, prefix string) iter.Seq[*model.Namespace] {
	return withBuiltIn(prefixed[model.Namespace](s, w, tableNamespaces, prefix), s.Namespace(w, model.DefaultNamespace), prefix,
		func(n *model.Namespace) string { return n.Name })
}

// NodePoolsIndex is the index of the newest change to any node pool.
func (s *Snapshot) NodePoolsIndex() uint64 { return max(s.tableIndex(tableNodePools), 1) }

var builtInPools = map[string]*model.NodePool{
	model.PoolAll:     {Name: model.PoolAll, Description: "Node pool with all nodes in the cluster.", CreateIndex: 1, ModifyIndex: 1},
	model.PoolDefault: {Name: model.PoolDefault, Description: "Default node pool.", CreateIndex: 1, ModifyIndex: 1},
}

// NodePool is the pool of that name, or nil. The pools all and default are always there.
func (s *Snapshot) NodePool(w Watch, name string) *model.NodePool {
	if p := builtInPools[name]; p != nil {
		return p
	}
	return first[model.NodePool](s, w, tableNodePools, name)
}

// NodePools yields all whose name starts so: first the built-in ones, then the others by name.
func (s *Snapshot) NodePools(w Watch, prefix string) iter.Seq[*model.NodePool] {
	name := func(p *model.NodePool) string { return p.Name }
	stored := prefixed[model.NodePool](s, w, tableNodePools, prefix)
	return withBuiltIn(withBuiltIn(stored, builtInPools[model.PoolDefault], prefix, name), builtInPools[model.PoolAll], prefix, name)
}

// withBuiltIn yields first, if its name starts so, and then the others.
func withBuiltIn[T any](others iter.Seq[*T], first *T, prefix string, name func(*T) string) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		n := name(first)
		if len(n) >= len(prefix) && n[:len(prefix)] == prefix && !yield(first) {
			return
		}
		for v := range others {
			if name(v) != n && !yield(v) {
				return
			}
		}
	}
}

// QuotasIndex is the index of the newest change to any quota.
func (s *Snapshot) QuotasIndex() uint64 { return s.tableIndex(tableQuotas) }

// Quota is the quota of that name, or nil.
func (s *Snapshot) Quota(w Watch, name string) *model.Quota {
	return first[model.Quota](s, w, tableQuotas, name)
}

// Quotas yields all whose name starts so, by name.
func (s *Snapshot) Quotas(w Watch, prefix string) iter.Seq[*model.Quota] {
	return prefixed[model.Quota](s, w, tableQuotas, prefix)
}

// QuotaUsage is what the namespaces that name a quota hold together.
func (s *Snapshot) QuotaUsage(w Watch, name string) model.QuotaUsage {
	var sum model.QuotaUsage
	for n := range all[model.Namespace](s, w, tableNamespaces, "quota", name) {
		sum.Add(s.NamespaceUsage(w, n.Name), 1)
	}
	return sum
}

// NamespaceUsage is what a namespace holds.
func (s *Snapshot) NamespaceUsage(w Watch, namespace string) model.QuotaUsage {
	var sum model.QuotaUsage
	if u := first[namespaceUsage](s, w, tableNamespaceUsage, namespace); u != nil {
		sum.Add(u.Used, 1) // a copy, with a map of its own
	}
	return sum
}

// QuotaOf is the quota that a namespace names, or nil.
func (s *Snapshot) QuotaOf(namespace string) *model.Quota {
	n := first[model.Namespace](s, nil, tableNamespaces, namespace)
	if n == nil || n.Quota == "" {
		return nil
	}
	return s.Quota(nil, n.Quota)
}

// NamespacesOfQuota yields the namespaces that name a quota.
func (s *Snapshot) NamespacesOfQuota(quota string) iter.Seq[*model.Namespace] {
	return all[model.Namespace](s, nil, tableNamespaces, "quota", quota)
}

// NamespaceQuota is the quota that a namespace names and what is held of it, by all its namespaces; nil where there is none.
func (s *Snapshot) NamespaceQuota(namespace string) (*model.Quota, model.QuotaUsage) {
	q := s.QuotaOf(namespace)
	if q == nil {
		return nil, model.QuotaUsage{}
	}
	return q, s.QuotaUsage(nil, q.Name)
}

// VariablesIndex is the index of the newest change to any variable.
func (s *Snapshot) VariablesIndex() uint64 { return s.tableIndex(tableVariables) }

// Variable is the variable at that path, or nil.
func (s *Snapshot) Variable(w Watch, namespace, path string) *model.Variable {
	return first[model.Variable](s, w, tableVariables, namespace, path)
}

// Variables yields those of a namespace ("*" = of all) whose path starts so, by namespace and path.
func (s *Snapshot) Variables(w Watch, namespace, prefix string) iter.Seq[*model.Variable] {
	if namespace != "*" {
		return all[model.Variable](s, w, tableVariables, "id_prefix", namespace, prefix)
	}
	return func(yield func(*model.Variable) bool) {
		for v := range all[model.Variable](s, w, tableVariables, "id") {
			if len(v.Path) >= len(prefix) && v.Path[:len(prefix)] == prefix && !yield(v) {
				return
			}
		}
	}
}

// VariablesByKey yields those that a root key sealed.
func (s *Snapshot) VariablesByKey(keyID string) iter.Seq[*model.Variable] {
	return all[model.Variable](s, nil, tableVariables, "key", keyID)
}

// RootKey is the key of that id, or nil.
func (s *Snapshot) RootKey(id string) *model.RootKey {
	return first[model.RootKey](s, nil, tableRootKeys, id)
}

// RootKeys yields all, by id.
func (s *Snapshot) RootKeys(w Watch) iter.Seq[*model.RootKey] {
	return all[model.RootKey](s, w, tableRootKeys, "id")
}

// ActiveKey is the key that seals now, or nil.
func (s *Snapshot) ActiveKey() *model.RootKey {
	for k := range s.RootKeys(nil) {
		if k.State == model.KeyActive {
			return k
		}
	}
	return nil
}

// ServicesIndex is the index of the newest change to any registration of a service.
func (s *Snapshot) ServicesIndex() uint64 { return s.tableIndex(tableServices) }

// Services yields the registrations of a namespace ("*" = of all), by namespace, name and id.
func (s *Snapshot) Services(w Watch, namespace string) iter.Seq[*model.ServiceRegistration] {
	if namespace == "*" {
		return all[model.ServiceRegistration](s, w, tableServices, "id")
	}
	return all[model.ServiceRegistration](s, w, tableServices, "id_prefix", namespace, "")
}

// ServicesByName yields the registrations of one service, by id.
func (s *Snapshot) ServicesByName(w Watch, namespace, name string) iter.Seq[*model.ServiceRegistration] {
	return all[model.ServiceRegistration](s, w, tableServices, "id_prefix", namespace, name, "")
}

// ServicesByJob yields what a job's allocations offer.
func (s *Snapshot) ServicesByJob(w Watch, namespace, job string) iter.Seq[*model.ServiceRegistration] {
	return all[model.ServiceRegistration](s, w, tableServices, "job", namespace, job)
}

// ServicesByAlloc yields what an allocation offers.
func (s *Snapshot) ServicesByAlloc(w Watch, allocID string) iter.Seq[*model.ServiceRegistration] {
	return all[model.ServiceRegistration](s, w, tableServices, "alloc", allocID)
}

// ServicesByNode yields what the allocations of a node offer.
func (s *Snapshot) ServicesByNode(w Watch, nodeID string) iter.Seq[*model.ServiceRegistration] {
	return all[model.ServiceRegistration](s, w, tableServices, "node", nodeID)
}

// usages sums what changes do to namespaces.
type usages map[string]*model.QuotaUsage

func (u usages) of(namespace string) *model.QuotaUsage {
	if u[namespace] == nil {
		u[namespace] = &model.QuotaUsage{}
	}
	return u[namespace]
}

func (u usages) count(object any, sign int) {
	switch o := object.(type) {
	case *model.Allocation:
		if o != nil && !o.Terminal() {
			u.of(o.Namespace).Add(o.QuotaUsage(o.Job), sign)
		}
	case *model.Variable:
		if o != nil {
			u.of(o.Namespace).VariableBytes += sign * len(o.Data)
		}
	}
}
