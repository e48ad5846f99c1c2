package command

import (
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// Names of the entries of access, namespaces and what people share, as the event stream shows them.
const (
	NameACLTokenUpserted  = "ACLTokenUpserted"
	NameACLTokenDeleted   = "ACLTokenDeleted"
	NameACLPolicyUpserted = "ACLPolicyUpserted"
	NameACLPolicyDeleted  = "ACLPolicyDeleted"
	NameACLRoleUpserted   = "ACLRoleUpserted"
	NameACLRoleDeleted    = "ACLRoleDeleted"
	NameNamespaceUpserted = "NamespaceUpserted"
	NameNamespaceDeleted  = "NamespaceDeleted"
	NameQuotaUpserted     = "QuotaUpserted"
	NameQuotaDeleted      = "QuotaDeleted"
	NameNodePoolUpserted  = "NodePoolUpserted"
	NameNodePoolDeleted   = "NodePoolDeleted"
	NameVariableChanged   = "VariableUpserted"
	NameKeyring           = "Keyring"
	NameServiceUpserted   = "ServiceRegistration"
	NameServiceDeleted    = "ServiceDeregistration"
)

// access are the entries of who may do what and of what people share.
var access = []row{
	define(60, NameACLTokenUpserted, applyACLBootstrap),
	define(61, NameACLTokenUpserted, applyACLTokenUpsert),
	define(62, NameACLTokenDeleted, applyACLTokenDelete),
	define(63, NameACLPolicyUpserted, applyACLPolicyUpsert),
	define(64, NameACLPolicyDeleted, applyACLPolicyDelete),
	define(65, NameACLRoleUpserted, applyACLRoleUpsert),
	define(66, NameACLRoleDeleted, applyACLRoleDelete),
	define(67, NameACLTokenUpserted, applyOneTimePut),
	define(68, NameACLTokenUpserted, applyOneTimeTake),
	define(69, NameACLTokenDeleted, applyAccessExpire),
	define(70, NameNamespaceUpserted, applyNamespaceUpsert),
	define(71, NameNamespaceDeleted, applyNamespaceDelete),
	define(72, NameQuotaUpserted, applyQuotaUpsert),
	define(73, NameQuotaDeleted, applyQuotaDelete),
	define(74, NameNodePoolUpserted, applyNodePoolUpsert),
	define(75, NameNodePoolDeleted, applyNodePoolDelete),
	define(76, NameVariableChanged, applyVariableChange),
	define(77, NameKeyring, applyRootKeyPut),
	define(78, NameKeyring, applyRootKeyDelete),
	define(79, NameKeyring, applyReseal),
	define(80, NameServiceUpserted, applyServiceUpsert),
	define(81, NameServiceDeleted, applyServiceDelete),
}

// ACLBootstrap makes the first management token. The result is the *model.ACLToken, or an error when it was done and Reset is not its index.
type ACLBootstrap struct {
	Now   int64
	Token *model.ACLToken
	Reset uint64
}

func (e *ACLBootstrap) at() int64 { return e.Now }

func applyACLBootstrap(tx *state.Tx, e *ACLBootstrap) (any, error) {
	return e.Token, tx.Bootstrap(e.Token, e.Reset)
}

// ACLTokenUpsert puts a token, a new one when Fresh. The result is the *model.ACLToken.
type ACLTokenUpsert struct {
	Now   int64
	Token *model.ACLToken
	Fresh bool
}

func (e *ACLTokenUpsert) at() int64 { return e.Now }

func applyACLTokenUpsert(tx *state.Tx, e *ACLTokenUpsert) (any, error) {
	return e.Token, tx.PutACLToken(e.Token, e.Fresh)
}

// ACLTokenDelete removes a token. The result is a bool: there was one.
type ACLTokenDelete struct {
	Now      int64
	Accessor string
}

func (e *ACLTokenDelete) at() int64 { return e.Now }

func applyACLTokenDelete(tx *state.Tx, e *ACLTokenDelete) (any, error) {
	return tx.DeleteACLToken(e.Accessor), nil
}

// ACLPolicyUpsert puts a policy, whose rules were checked.
type ACLPolicyUpsert struct {
	Now    int64
	Policy *model.ACLPolicy
}

func (e *ACLPolicyUpsert) at() int64 { return e.Now }

func applyACLPolicyUpsert(tx *state.Tx, e *ACLPolicyUpsert) (any, error) {
	tx.PutACLPolicy(e.Policy)
	return nil, nil
}

// ACLPolicyDelete removes a policy. The result is a bool: there was one.
type ACLPolicyDelete struct {
	Now  int64
	Name string
}

func (e *ACLPolicyDelete) at() int64 { return e.Now }

func applyACLPolicyDelete(tx *state.Tx, e *ACLPolicyDelete) (any, error) {
	return tx.DeleteACLPolicy(e.Name), nil
}

// ACLRoleUpsert puts a role, a new one when Fresh. The result is the *model.ACLRole.
type ACLRoleUpsert struct {
	Now   int64
	Role  *model.ACLRole
	Fresh bool
}

func (e *ACLRoleUpsert) at() int64 { return e.Now }

func applyACLRoleUpsert(tx *state.Tx, e *ACLRoleUpsert) (any, error) {
	return e.Role, tx.PutACLRole(e.Role, e.Fresh)
}

// ACLRoleDelete removes a role, from all tokens too. The result is a bool: there was one.
type ACLRoleDelete struct {
	Now int64
	ID  string
}

func (e *ACLRoleDelete) at() int64 { return e.Now }

func applyACLRoleDelete(tx *state.Tx, e *ACLRoleDelete) (any, error) {
	return tx.DeleteACLRole(e.ID), nil
}

// OneTimePut puts a one-time token. The result is the *model.OneTimeToken.
type OneTimePut struct {
	Now   int64
	Token *model.OneTimeToken
}

func (e *OneTimePut) at() int64 { return e.Now }

func applyOneTimePut(tx *state.Tx, e *OneTimePut) (any, error) {
	tx.PutOneTimeToken(e.Token)
	return e.Token, nil
}

// OneTimeTake uses a one-time token up. The result is a *model.OneTimeToken, nil when there is none that holds.
type OneTimeTake struct {
	Now        int64
	SecretHash string
}

func (e *OneTimeTake) at() int64 { return e.Now }

func applyOneTimeTake(tx *state.Tx, e *OneTimeTake) (any, error) {
	return tx.TakeOneTimeToken(e.SecretHash), nil
}

// AccessExpire removes tokens and locks whose time is over at Now, at most Limit. The result is an int: how many went.
type AccessExpire struct {
	Now   int64
	Limit int
}

func (e *AccessExpire) at() int64 { return e.Now }

func applyAccessExpire(tx *state.Tx, e *AccessExpire) (any, error) {
	return tx.ExpireAccess(e.Limit), nil
}

// NamespaceUpsert puts a namespace.
type NamespaceUpsert struct {
	Now       int64
	Namespace *model.Namespace
}

func (e *NamespaceUpsert) at() int64 { return e.Now }

func applyNamespaceUpsert(tx *state.Tx, e *NamespaceUpsert) (any, error) {
	return nil, tx.PutNamespace(e.Namespace)
}

// NamespaceDelete removes a namespace.
type NamespaceDelete struct {
	Now  int64
	Name string
}

func (e *NamespaceDelete) at() int64 { return e.Now }

func applyNamespaceDelete(tx *state.Tx, e *NamespaceDelete) (any, error) {
	return nil, tx.DeleteNamespace(e.Name)
}

// QuotaUpsert puts a quota. Evals are evaluations that waited for it.
type QuotaUpsert struct {
	Now   int64
	Quota *model.Quota
	Evals []*model.Evaluation `codec:",omitempty"`
}

func (e *QuotaUpsert) at() int64 { return e.Now }

func applyQuotaUpsert(tx *state.Tx, e *QuotaUpsert) (any, error) {
	tx.PutQuota(e.Quota)
	for _, ev := range e.Evals {
		tx.PutEval(ev)
	}
	return nil, nil
}

// QuotaDelete removes a quota.
type QuotaDelete struct {
	Now  int64
	Name string
}

func (e *QuotaDelete) at() int64 { return e.Now }

func applyQuotaDelete(tx *state.Tx, e *QuotaDelete) (any, error) {
	return nil, tx.DeleteQuota(e.Name)
}

// NodePoolUpsert puts a node pool that is not built in.
type NodePoolUpsert struct {
	Now  int64
	Pool *model.NodePool
}

func (e *NodePoolUpsert) at() int64 { return e.Now }

func applyNodePoolUpsert(tx *state.Tx, e *NodePoolUpsert) (any, error) {
	tx.PutNodePool(e.Pool)
	return nil, nil
}

// NodePoolDelete removes a node pool.
type NodePoolDelete struct {
	Now  int64
	Name string
}

func (e *NodePoolDelete) at() int64 { return e.Now }

func applyNodePoolDelete(tx *state.Tx, e *NodePoolDelete) (any, error) {
	return nil, tx.DeleteNodePool(e.Name)
}

// VariableChange writes to a variable. The result is a state.VariableChanged.
type VariableChange struct {
	Now    int64
	Change *state.VariableChange
}

func (e *VariableChange) at() int64 { return e.Now }

func applyVariableChange(tx *state.Tx, e *VariableChange) (any, error) {
	return tx.ChangeVariable(e.Change)
}

// RootKeyPut makes a key the active one. The result is the active *model.RootKey.
type RootKeyPut struct {
	Now    int64
	Key    *model.RootKey
	Absent bool // only where there is none
	Full   bool // what others sealed is to be sealed anew
}

func (e *RootKeyPut) at() int64 { return e.Now }

func applyRootKeyPut(tx *state.Tx, e *RootKeyPut) (any, error) {
	return tx.PutRootKey(e.Key, e.Absent, e.Full), nil
}

// RootKeyDelete removes a key.
type RootKeyDelete struct {
	Now   int64
	ID    string
	Force bool
}

func (e *RootKeyDelete) at() int64 { return e.Now }

func applyRootKeyDelete(tx *state.Tx, e *RootKeyDelete) (any, error) {
	return nil, tx.DeleteRootKey(e.ID, e.Force)
}

// Reseal replaces ciphertexts of the key KeyID.
type Reseal struct {
	Now   int64
	List  []*state.Resealed
	KeyID string
}

func (e *Reseal) at() int64 { return e.Now }

func applyReseal(tx *state.Tx, e *Reseal) (any, error) {
	tx.Reseal(e.List, e.KeyID)
	return nil, nil
}

// ServiceUpsert is all that some allocations of a node offer now.
type ServiceUpsert struct {
	Now    int64
	NodeID string
	Allocs []*model.AllocServices
}

func (e *ServiceUpsert) at() int64 { return e.Now }

func applyServiceUpsert(tx *state.Tx, e *ServiceUpsert) (any, error) {
	for _, s := range e.Allocs {
		tx.PutAllocServices(e.NodeID, s)
	}
	return nil, nil
}

// ServiceDelete removes one registration. The result is a bool: there was one.
type ServiceDelete struct {
	Now       int64
	Namespace string
	Name      string
	ID        string
}

func (e *ServiceDelete) at() int64 { return e.Now }

func applyServiceDelete(tx *state.Tx, e *ServiceDelete) (any, error) {
	return tx.DeleteService(e.Namespace, e.Name, e.ID), nil
}
