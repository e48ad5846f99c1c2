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
	define(60, NameACLTokenUpserted, func(tx *state.Tx, e *ACLBootstrap) (any, error) { return e.Token, tx.Bootstrap(e.Token, e.Reset) }),
	define(61, NameACLTokenUpserted, func(tx *state.Tx, e *ACLTokenUpsert) (any, error) { return e.Token, tx.PutACLToken(e.Token, e.Fresh) }),
	define(62, NameACLTokenDeleted, func(tx *state.Tx, e *ACLTokenDelete) (any, error) { return tx.DeleteACLToken(e.Accessor), nil }),
	define(63, NameACLPolicyUpserted, applyACLPolicyUpsert),
	define(64, NameACLPolicyDeleted, func(tx *state.Tx, e *ACLPolicyDelete) (any, error) { return tx.DeleteACLPolicy(e.Name), nil }),
	define(65, NameACLRoleUpserted, func(tx *state.Tx, e *ACLRoleUpsert) (any, error) { return e.Role, tx.PutACLRole(e.Role, e.Fresh) }),
	define(66, NameACLRoleDeleted, func(tx *state.Tx, e *ACLRoleDelete) (any, error) { return tx.DeleteACLRole(e.ID), nil }),
	define(67, NameACLTokenUpserted, applyOneTimePut),
	define(68, NameACLTokenUpserted, func(tx *state.Tx, e *OneTimeTake) (any, error) { return tx.TakeOneTimeToken(e.SecretHash), nil }),
	define(69, NameACLTokenDeleted, func(tx *state.Tx, e *AccessExpire) (any, error) { return tx.ExpireAccess(e.Limit), nil }),
	define(70, NameNamespaceUpserted, func(tx *state.Tx, e *NamespaceUpsert) (any, error) { return nil, tx.PutNamespace(e.Namespace) }),
	define(71, NameNamespaceDeleted, func(tx *state.Tx, e *NamespaceDelete) (any, error) { return nil, tx.DeleteNamespace(e.Name) }),
	define(72, NameQuotaUpserted, applyQuotaUpsert),
	define(73, NameQuotaDeleted, func(tx *state.Tx, e *QuotaDelete) (any, error) { return nil, tx.DeleteQuota(e.Name) }),
	define(74, NameNodePoolUpserted, applyNodePoolUpsert),
	define(75, NameNodePoolDeleted, func(tx *state.Tx, e *NodePoolDelete) (any, error) { return nil, tx.DeleteNodePool(e.Name) }),
	define(76, NameVariableChanged, func(tx *state.Tx, e *VariableChange) (any, error) { return tx.ChangeVariable(e.Change) }),
	define(77, NameKeyring, func(tx *state.Tx, e *RootKeyPut) (any, error) { return tx.PutRootKey(e.Key, e.Absent, e.Full), nil }),
	define(78, NameKeyring, func(tx *state.Tx, e *RootKeyDelete) (any, error) { return nil, tx.DeleteRootKey(e.ID, e.Force) }),
	define(79, NameKeyring, applyReseal),
	define(80, NameServiceUpserted, applyServiceUpsert),
	define(81, NameServiceDeleted, func(tx *state.Tx, e *ServiceDelete) (any, error) {
		return tx.DeleteService(e.Namespace, e.Name, e.ID), nil
	}),
}

// ACLBootstrap makes the first management token. The result is the *model.ACLToken, or an error when it was done and Reset is not its index.
type ACLBootstrap struct {
	Now   int64
	Token *model.ACLToken
	Reset uint64
}

func (e *ACLBootstrap) at() int64 { return e.Now }

// ACLTokenUpsert puts a token, a new one when Fresh. The result is the *model.ACLToken.
type ACLTokenUpsert struct {
	Now   int64
	Token *model.ACLToken
	Fresh bool
}

func (e *ACLTokenUpsert) at() int64 { return e.Now }

// ACLTokenDelete removes a token. The result is a bool: there was one.
type ACLTokenDelete struct {
	Now      int64
	Accessor string
}

func (e *ACLTokenDelete) at() int64 { return e.Now }

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

// ACLRoleUpsert puts a role, a new one when Fresh. The result is the *model.ACLRole.
type ACLRoleUpsert struct {
	Now   int64
	Role  *model.ACLRole
	Fresh bool
}

func (e *ACLRoleUpsert) at() int64 { return e.Now }

// ACLRoleDelete removes a role, from all tokens too. The result is a bool: there was one.
type ACLRoleDelete struct {
	Now int64
	ID  string
}

func (e *ACLRoleDelete) at() int64 { return e.Now }

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

// AccessExpire removes tokens and locks whose time is over at Now, at most Limit. The result is an int: how many went.
type AccessExpire struct {
	Now   int64
	Limit int
}

func (e *AccessExpire) at() int64 { return e.Now }

// NamespaceUpsert puts a namespace.
type NamespaceUpsert struct {
	Now       int64
	Namespace *model.Namespace
}

func (e *NamespaceUpsert) at() int64 { return e.Now }

// NamespaceDelete removes a namespace.
type NamespaceDelete struct {
	Now  int64
	Name string
}

func (e *NamespaceDelete) at() int64 { return e.Now }

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

// VariableChange writes to a variable. The result is a state.VariableChanged.
type VariableChange struct {
	Now    int64
	Change *state.VariableChange
}

func (e *VariableChange) at() int64 { return e.Now }

// RootKeyPut makes a key the active one. The result is the active *model.RootKey.
type RootKeyPut struct {
	Now    int64
	Key    *model.RootKey
	Absent bool // only where there is none
	Full   bool // what others sealed is to be sealed anew
}

func (e *RootKeyPut) at() int64 { return e.Now }

// RootKeyDelete removes a key.
type RootKeyDelete struct {
	Now   int64
	ID    string
	Force bool
}

func (e *RootKeyDelete) at() int64 { return e.Now }

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
