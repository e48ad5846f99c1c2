package state

import (
	"slices"
	"strconv"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/model"
)

// Bootstrap makes the first management token, or another one when reset is the index of the last. The store keeps tok.
func (t *Tx) Bootstrap(tok *model.ACLToken, reset uint64) error {
	if done := t.ACLBootstrapIndex(); done != 0 && done != reset {
		return Bootstrapped(done)
	}
	if err := t.PutACLToken(tok, true); err != nil {
		return err
	}
	t.put(tableACLBootstrap, &model.ACLBootstrap{Index: t.index})
	return nil
}

// Bootstrapped is the error of a second bootstrap; the index is what an operator writes into the reset file.
func Bootstrapped(index uint64) error {
	return fault.New(fault.Invalid, "ACL bootstrap already done (reset index: %d)", index)
}

// PutACLToken puts a token; fresh says that there must be none of its accessor. What may not change stays. The store keeps tok.
func (t *Tx) PutACLToken(tok *model.ACLToken, fresh bool) error {
	for _, id := range tok.Roles {
		if t.ACLRole(nil, id) == nil {
			return fault.New(fault.Invalid, "there is no ACL role %s", id)
		}
	}
	old := t.ACLToken(nil, tok.AccessorID)
	switch {
	case old == nil:
		if !fresh {
			return fault.New(fault.NotFound, "ACL token not found")
		}
		if t.ACLTokenBySecret(tok.SecretHash) != nil {
			return fault.New(fault.Invalid, "the secret of the token is in use")
		}
		tok.CreateIndex, tok.CreateTime = t.index, t.now
	case fresh:
		return fault.New(fault.Invalid, "there is a token of that accessor")
	default:
		if old.Type != tok.Type && tok.Type == model.TokenManagement {
			return fault.New(fault.Invalid, "a token cannot become a management token")
		}
		tok.SecretHash, tok.CreateIndex, tok.CreateTime, tok.Expires, tok.TTL, tok.Global = old.SecretHash, old.CreateIndex, old.CreateTime, old.Expires, old.TTL, old.Global
	}
	tok.ModifyIndex = t.index
	t.put(tableACLTokens, tok)
	return nil
}

// DeleteACLToken removes a token; false when there is none.
func (t *Tx) DeleteACLToken(accessor string) bool {
	tok := t.ACLToken(nil, accessor)
	if tok != nil {
		t.delete(tableACLTokens, tok)
	}
	return tok != nil
}

// PutACLPolicy inserts or replaces a policy. The store keeps p.
func (t *Tx) PutACLPolicy(p *model.ACLPolicy) {
	p.CreateIndex, p.ModifyIndex = t.index, t.index
	if old := t.ACLPolicy(nil, p.Name); old != nil {
		p.CreateIndex = old.CreateIndex
	}
	t.put(tableACLPolicies, p)
}

// DeleteACLPolicy removes a policy; false when there is none. Tokens and roles may go on naming it, to no effect.
func (t *Tx) DeleteACLPolicy(name string) bool {
	p := t.ACLPolicy(nil, name)
	if p != nil {
		t.delete(tableACLPolicies, p)
	}
	return p != nil
}

// PutACLRole puts a role; fresh says that there must be none of its id. The store keeps r.
func (t *Tx) PutACLRole(r *model.ACLRole, fresh bool) error {
	for _, name := range r.Policies {
		if t.ACLPolicy(nil, name) == nil {
			return fault.New(fault.Invalid, "there is no ACL policy %q", name)
		}
	}
	if same := t.ACLRoleByName(nil, r.Name); same != nil && same.ID != r.ID {
		return fault.New(fault.Invalid, "role with name %s already exists", r.Name)
	}
	r.CreateIndex, r.ModifyIndex = t.index, t.index
	old := t.ACLRole(nil, r.ID)
	switch {
	case old == nil && !fresh:
		return fault.New(fault.NotFound, "ACL role not found")
	case old != nil:
		r.CreateIndex = old.CreateIndex
	}
	t.put(tableACLRoles, r)
	return nil
}

// DeleteACLRole removes a role, from tokens too; false when there is none.
func (t *Tx) DeleteACLRole(id string) bool {
	r := t.ACLRole(nil, id)
	if r == nil {
		return false
	}
	t.delete(tableACLRoles, r)
	for _, tok := range slices.Collect(t.ACLTokens(nil, "")) {
		if slices.Contains(tok.Roles, id) {
			c := *tok
			c.Roles = slices.DeleteFunc(slices.Clone(tok.Roles), func(r string) bool { return r == id })
			c.ModifyIndex = t.index
			t.put(tableACLTokens, &c)
		}
	}
	return true
}

// PutOneTimeToken puts one. An older one of the same token goes. The store keeps o.
func (t *Tx) PutOneTimeToken(o *model.OneTimeToken) {
	for _, old := range slices.Collect(t.OneTimeTokens(nil)) {
		if old.AccessorID == o.AccessorID {
			t.delete(tableOneTime, old)
		}
	}
	o.CreateIndex, o.ModifyIndex = t.index, t.index
	t.put(tableOneTime, o)
}

// TakeOneTimeToken removes one and returns it; nil when there is none that still holds.
func (t *Tx) TakeOneTimeToken(hash string) *model.OneTimeToken {
	o := t.OneTimeToken(hash)
	if o == nil {
		return nil
	}
	t.delete(tableOneTime, o)
	if o.Expires <= t.now {
		return nil
	}
	return o
}

// ExpireAccess removes tokens and locks whose time is over, at most limit, and returns how many went.
func (t *Tx) ExpireAccess(limit int) int {
	n := 0
	for _, tok := range slices.Collect(t.ACLTokens(nil, "")) {
		if tok.Expires != 0 && tok.Expires <= t.now && n < limit {
			t.delete(tableACLTokens, tok)
			n++
		}
	}
	for _, o := range slices.Collect(t.OneTimeTokens(nil)) {
		if o.Expires <= t.now && n < limit {
			t.delete(tableOneTime, o)
			n++
		}
	}
	for _, v := range slices.Collect(t.Variables(nil, "*", "")) {
		if v.Lock != nil && v.Lock.Free(t.now) && n < limit {
			c := *v
			c.Lock = nil
			c.ModifyIndex = t.index
			t.put(tableVariables, &c)
			n++
		}
	}
	return n
}

// PutNamespace inserts or replaces a namespace. The store keeps n.
func (t *Tx) PutNamespace(n *model.Namespace) error {
	if n.Quota != "" && t.Quota(nil, n.Quota) == nil {
		return fault.New(fault.Invalid, "there is no quota %q", n.Quota)
	}
	n.CreateIndex, n.ModifyIndex = t.index, t.index
	if old := t.Namespace(nil, n.Name); old != nil {
		n.CreateIndex = old.CreateIndex
	}
	t.put(tableNamespaces, n)
	return nil
}

// DeleteNamespace removes a namespace in which nothing is left to run.
func (t *Tx) DeleteNamespace(name string) error {
	n := first[model.Namespace](&t.Snapshot, nil, tableNamespaces, name)
	switch {
	case name == model.DefaultNamespace:
		return fault.New(fault.Invalid, "default namespace can not be deleted")
	case n == nil:
		return fault.New(fault.NotFound, "Namespace not found")
	}
	for j := range t.Jobs(nil, name, "") {
		if j.Status != model.JobDead {
			return fault.New(fault.Conflict, "namespace %q has non-terminal jobs in regions: [global]", name)
		}
	}
	for range t.Variables(nil, name, "") {
		return fault.New(fault.Conflict, "namespace %q has variables: remove them first", name)
	}
	t.delete(tableNamespaces, n)
	return nil
}

// PutQuota inserts or replaces a quota. The store keeps q.
func (t *Tx) PutQuota(q *model.Quota) {
	q.CreateIndex, q.ModifyIndex = t.index, t.index
	if old := t.Quota(nil, q.Name); old != nil {
		q.CreateIndex = old.CreateIndex
	}
	t.put(tableQuotas, q)
}

// DeleteQuota removes a quota that no namespace names.
func (t *Tx) DeleteQuota(name string) error {
	q := t.Quota(nil, name)
	if q == nil {
		return fault.New(fault.NotFound, "quota not found")
	}
	for n := range all[model.Namespace](&t.Snapshot, nil, tableNamespaces, "quota", name) {
		return fault.New(fault.Conflict, "quota %q is in use by namespace %q", name, n.Name)
	}
	t.delete(tableQuotas, q)
	return nil
}

// ensureNodePool makes the pool that a node says it is in.
func (t *Tx) ensureNodePool(name string) {
	if name != "" && t.NodePool(nil, name) == nil {
		t.PutNodePool(&model.NodePool{Name: name})
	}
}

// PutNodePool inserts or replaces a pool that is not built in. The store keeps p.
func (t *Tx) PutNodePool(p *model.NodePool) {
	p.CreateIndex, p.ModifyIndex = t.index, t.index
	if old := t.NodePool(nil, p.Name); old != nil {
		p.CreateIndex = old.CreateIndex
	}
	t.put(tableNodePools, p)
}

// DeleteNodePool removes a pool that no node and no job is in.
func (t *Tx) DeleteNodePool(name string) error {
	p := t.NodePool(nil, name)
	switch {
	case p == nil:
		return fault.New(fault.NotFound, "node pool not found")
	case builtInPools[name] != nil:
		return fault.New(fault.Invalid, "node pool %q is built in and cannot be deleted", name)
	}
	for n := range t.Nodes(nil, "") {
		if n.NodePool == name {
			return fault.New(fault.Conflict, "node pool %q has nodes in regions: [global]", name)
		}
	}
	for j := range t.Jobs(nil, "*", "") {
		if j.NodePool == name && j.Status != model.JobDead {
			return fault.New(fault.Conflict, "node pool %q has non-terminal jobs in regions: [global]", name)
		}
	}
	t.delete(tableNodePools, p)
	return nil
}

// What a VariableChange does.
const (
	VariableSet     = "set"
	VariableDelete  = "delete"
	VariableAcquire = "lock-acquire"
	VariableRenew   = "lock-renew"
	VariableRelease = "lock-release"
)

// VariableChange is one write to a variable.
type VariableChange struct {
	Op        string
	Namespace string
	Path      string
	Data      []byte // nil with VariableAcquire = as it was
	KeyID     string
	CAS       bool
	AtIndex   uint64              // with CAS: the variable's ModifyIndex; 0 = there must be none
	LockID    string              // that the caller shows
	NewLock   *model.VariableLock // with VariableAcquire; Expires is set here
}

// At takes the values of a query parameter cas, of which there are none or one.
func (c *VariableChange) At(values []string) error {
	if len(values) == 0 {
		return nil
	}
	n, err := strconv.ParseUint(values[0], 10, 64)
	if err != nil || len(values) > 1 {
		return fault.New(fault.Invalid, "cas must be the variable's ModifyIndex, or 0 where there must be none")
	}
	c.CAS, c.AtIndex = true, n
	return nil
}

// VariableChanged is what became of it: the variable as it is now, nil after a deletion, or the one that was in the way.
type VariableChanged struct {
	Variable *model.Variable
	Conflict *model.Variable
}

// ChangeVariable does it, unless the compare-and-set or a lock is in the way.
func (t *Tx) ChangeVariable(c *VariableChange) (VariableChanged, error) {
	old := t.Variable(nil, c.Namespace, c.Path)
	next := model.Variable{Namespace: c.Namespace, Path: c.Path, CreateIndex: t.index, CreateTime: t.now}
	var lock *model.VariableLock
	if old != nil {
		next, lock = *old, old.Lock
	}
	conflict := VariableChanged{Conflict: &next}
	held := lock.Held(t.now)
	switch {
	case c.CAS && next.ModifyIndex != c.AtIndex,
		held && lock.ID != c.LockID,                        // somebody else's
		!held && c.LockID != "" && c.Op != VariableAcquire, // it was lost meanwhile
		c.Op == VariableAcquire && !held && !lock.Free(t.now),
		(c.Op == VariableRenew || c.Op == VariableRelease) && !held:
		return conflict, nil
	}
	switch c.Op {
	case VariableDelete:
		if old != nil {
			t.delete(tableVariables, old)
		}
		return VariableChanged{}, nil
	case VariableRenew:
		l := *lock
		l.Expires = t.now + l.TTL
		next.Lock = &l
		t.put(tableVariables, &next) // the variable itself is as it was
		return VariableChanged{Variable: &next}, nil
	case VariableRelease:
		next.Lock = nil
	case VariableAcquire:
		l := *c.NewLock
		if held {
			l.ID = lock.ID
		}
		l.Expires = t.now + l.TTL
		next.Lock = &l
	}
	if c.Op == VariableSet || c.Op == VariableAcquire && (c.Data != nil || old == nil) {
		if err := t.admitVariable(c, len(next.Data)); err != nil {
			return VariableChanged{}, err
		}
		next.Data, next.KeyID = c.Data, c.KeyID
	}
	next.ModifyIndex, next.ModifyTime = t.index, t.now
	t.put(tableVariables, &next)
	return VariableChanged{Variable: &next}, nil
}

// admitVariable holds a variable's new size against namespace and quota. The usage is that before this update, in which it is the only change.
func (t *Tx) admitVariable(c *VariableChange, before int) error {
	if t.Namespace(nil, c.Namespace) == nil {
		return fault.New(fault.Invalid, "namespace %q does not exist", c.Namespace)
	}
	q, used := t.NamespaceQuota(c.Namespace)
	used = model.QuotaUsage{VariableBytes: used.VariableBytes + len(c.Data) - before}
	if len(c.Data) > before && len(q.Exceeded(used)) > 0 {
		return fault.New(fault.Exhausted, "the variables of quota %q would be larger than it allows", q.Name)
	}
	return nil
}

// PutRootKey makes a key the active one. With absent it does so only where there is none yet. With full what older keys sealed is to be sealed anew.
func (t *Tx) PutRootKey(k *model.RootKey, absent, full bool) *model.RootKey {
	if active := t.ActiveKey(); active != nil && absent {
		return active
	}
	for _, old := range slices.Collect(t.RootKeys(nil)) {
		state := old.State
		if state == model.KeyActive {
			state = model.KeyInactive
		}
		if full {
			state = model.KeyRekeying
		}
		if state != old.State {
			t.setKeyState(old, state)
		}
	}
	k.State, k.CreateTime, k.CreateIndex, k.ModifyIndex = model.KeyActive, t.now, t.index, t.index
	t.put(tableRootKeys, k)
	return k
}

func (t *Tx) setKeyState(k *model.RootKey, state string) {
	c := *k
	c.State, c.ModifyIndex = state, t.index
	t.put(tableRootKeys, &c)
}

// DeleteRootKey removes a key that is not active and, unless forced, has sealed nothing that is there.
func (t *Tx) DeleteRootKey(id string, force bool) error {
	k := t.RootKey(id)
	switch {
	case k == nil:
		return fault.New(fault.NotFound, "key not found")
	case k.State == model.KeyActive:
		return fault.New(fault.Invalid, "active root key cannot be deleted")
	}
	for range t.VariablesByKey(id) {
		if !force {
			return fault.New(fault.Invalid, "root key in use, cannot be deleted: rotate with full first, or use force to lose what it sealed")
		}
		break
	}
	t.delete(tableRootKeys, k)
	return nil
}

// Resealed is a variable's new ciphertext of the same items.
type Resealed struct {
	Namespace, Path string
	AtIndex         uint64 // ModifyIndex that was read; a variable that changed meanwhile stays
	Data            []byte
	KeyID           string
}

// Reseal replaces ciphertexts, and ends the rekeying of a key that has sealed nothing any more.
func (t *Tx) Reseal(list []*Resealed, keyID string) {
	for _, r := range list {
		if v := t.Variable(nil, r.Namespace, r.Path); v != nil && v.ModifyIndex == r.AtIndex && t.RootKey(r.KeyID) != nil {
			c := *v
			c.Data, c.KeyID = r.Data, r.KeyID
			t.put(tableVariables, &c)
		}
	}
	for range t.VariablesByKey(keyID) {
		return
	}
	if k := t.RootKey(keyID); k != nil && k.State == model.KeyRekeying {
		t.setKeyState(k, model.KeyInactive)
	}
}

// PutAllocServices makes what a node's allocation offers what the node says. Of an allocation that has ended, or is another node's, nothing is taken.
func (t *Tx) PutAllocServices(nodeID string, s *model.AllocServices) {
	a := t.Alloc(nil, s.AllocID)
	if a == nil || a.NodeID != nodeID {
		return
	}
	offered := map[[2]string]*model.ServiceRegistration{}
	if !a.ClientTerminal() {
		for _, r := range s.Services {
			offered[[2]string{r.ServiceName, r.ID}] = r
		}
	}
	for _, old := range slices.Collect(t.ServicesByAlloc(nil, a.ID)) {
		if offered[[2]string{old.ServiceName, old.ID}] == nil {
			t.delete(tableServices, old)
		}
	}
	if a.ClientTerminal() {
		return
	}
	datacenter := ""
	if n := t.Node(nil, nodeID); n != nil {
		datacenter = n.Datacenter
	}
	for _, r := range s.Services {
		c := *r
		c.Namespace, c.NodeID, c.Datacenter, c.JobID, c.AllocID = a.Namespace, nodeID, datacenter, a.JobID, a.ID
		c.CreateIndex, c.ModifyIndex = t.index, t.index
		if old := first[model.ServiceRegistration](&t.Snapshot, nil, tableServices, c.Namespace, c.ServiceName, c.ID); old != nil {
			if old.AllocID != a.ID {
				continue // nobody takes over another allocation's registration
			}
			c.CreateIndex = old.CreateIndex
			if slices.Equal(old.Tags, c.Tags) && old.Address == c.Address && old.Port == c.Port {
				continue
			}
		}
		t.put(tableServices, &c)
	}
}

// DeleteService removes one registration; false when there is none.
func (t *Tx) DeleteService(namespace, name, id string) bool {
	s := first[model.ServiceRegistration](&t.Snapshot, nil, tableServices, namespace, name, id)
	if s != nil {
		t.delete(tableServices, s)
	}
	return s != nil
}

// withdrawServices removes what allocations that have ended and nodes that are gone in the step under way offered.
func (t *Tx) withdrawServices() {
	for _, c := range slices.Clone(t.changes[t.first:]) {
		switch before := c.Before.(type) {
		case *model.Allocation:
			if after, _ := c.After.(*model.Allocation); after == nil || after.ClientTerminal() {
				for _, s := range slices.Collect(t.ServicesByAlloc(nil, before.ID)) {
					t.delete(tableServices, s)
				}
			}
		case *model.Node:
			if after, _ := c.After.(*model.Node); after == nil || after.Status == model.NodeDown {
				for _, s := range slices.Collect(t.ServicesByNode(nil, before.ID)) {
					t.delete(tableServices, s)
				}
			}
		}
	}
}

// countNamespaces brings what namespaces hold up to date.
func (t *Tx) countNamespaces() {
	sums := usages{}
	for _, c := range t.changes {
		sums.count(c.Before, -1)
		sums.count(c.After, 1)
	}
	for _, name := range sortedKeys(sums) {
		if sums[name].Zero() {
			continue
		}
		u := &namespaceUsage{Namespace: name, Used: t.NamespaceUsage(nil, name)}
		u.Used.Add(*sums[name], 1)
		t.put(tableNamespaceUsage, u)
	}
}

// restoreUsage counts anew what a snapshot does not say.
func restoreUsage(txn *txn) {
	t := &Tx{Snapshot: Snapshot{txn: txn}}
	sums := usages{}
	for a := range t.Allocs(nil, "") {
		sums.count(a, 1)
	}
	for _, v := range slices.Collect(t.Variables(nil, "*", "")) {
		sums.count(v, 1)
	}
	for _, name := range sortedKeys(sums) {
		t.insert(tableNamespaceUsage, &namespaceUsage{name, *sums[name]})
	}
}
