package wire

import (
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/api/contexts"

	"rockpool/internal/orchestrator/model"
)

// Documents of access and of what people share.
type (
	ACLPolicy                    = api.ACLPolicy
	ACLPolicyListStub            = api.ACLPolicyListStub
	ACLRole                      = api.ACLRole
	ACLRoleListStub              = api.ACLRoleListStub
	ACLToken                     = api.ACLToken
	ACLTokenListStub             = api.ACLTokenListStub
	BootstrapRequest             = api.BootstrapRequest
	FuzzyMatch                   = api.FuzzyMatch
	Namespace                    = api.Namespace
	NodePool                     = api.NodePool
	OneTimeToken                 = api.OneTimeToken
	OneTimeTokenExchangeRequest  = api.OneTimeTokenExchangeRequest
	OneTimeTokenExchangeResponse = api.OneTimeTokenExchangeResponse
	OneTimeTokenUpsertResponse   = api.OneTimeTokenUpsertResponse
	QuotaLimit                   = api.QuotaLimit
	QuotaResources               = api.QuotaResources
	QuotaSpec                    = api.QuotaSpec
	QuotaUsage                   = api.QuotaUsage
	RootKeyMeta                  = api.RootKeyMeta
	SearchContext                = contexts.Context
	ServiceRegistration          = api.ServiceRegistration
	ServiceRegistrationListStub  = api.ServiceRegistrationListStub
	ServiceRegistrationStub      = api.ServiceRegistrationStub
	Variable                     = api.Variable
	VariableLock                 = api.VariableLock
	VariableMetadata             = api.VariableMetadata
)

// TokenOut is a token as its readers see it. secret is what the caller showed or gets to see this once; role names are looked up by name.
func TokenOut(t *model.ACLToken, secret string, name func(id string) string) *ACLToken {
	s := TokenStub(t, name)
	return &ACLToken{
		AccessorID: s.AccessorID, SecretID: secret, Name: s.Name, Type: s.Type, Policies: s.Policies, Roles: s.Roles, Global: s.Global,
		CreateTime: s.CreateTime, ExpirationTime: s.ExpirationTime, ExpirationTTL: time.Duration(t.TTL), CreateIndex: s.CreateIndex, ModifyIndex: s.ModifyIndex,
	}
}

// TokenStub is a token in a list.
func TokenStub(t *model.ACLToken, name func(id string) string) *ACLTokenListStub {
	out := &ACLTokenListStub{
		AccessorID: t.AccessorID, Name: t.Name, Type: t.Type, Policies: t.Policies, Global: t.Global, CreateTime: time.Unix(0, t.CreateTime).UTC(),
		CreateIndex: t.CreateIndex, ModifyIndex: t.ModifyIndex,
	}
	for _, id := range t.Roles {
		out.Roles = append(out.Roles, &api.ACLTokenRoleLink{ID: id, Name: name(id)})
	}
	if t.Expires != 0 {
		out.ExpirationTime = new(time.Unix(0, t.Expires).UTC())
	}
	return out
}

// PolicyOut is a policy.
func PolicyOut(p *model.ACLPolicy) *ACLPolicy {
	return &ACLPolicy{Name: p.Name, Description: p.Description, Rules: p.Rules, CreateIndex: p.CreateIndex, ModifyIndex: p.ModifyIndex}
}

// PolicyStub is a policy in a list.
func PolicyStub(p *model.ACLPolicy) *ACLPolicyListStub {
	return &ACLPolicyListStub{Name: p.Name, Description: p.Description, CreateIndex: p.CreateIndex, ModifyIndex: p.ModifyIndex}
}

// RoleOut is a role.
func RoleOut(r *model.ACLRole) *ACLRole {
	out := &ACLRole{ID: r.ID, Name: r.Name, Description: r.Description, CreateIndex: r.CreateIndex, ModifyIndex: r.ModifyIndex}
	for _, p := range r.Policies {
		out.Policies = append(out.Policies, &api.ACLRolePolicyLink{Name: p})
	}
	return out
}

// RoleStub is a role in a list.
func RoleStub(r *model.ACLRole) *ACLRoleListStub {
	o := RoleOut(r)
	return &ACLRoleListStub{ID: o.ID, Name: o.Name, Description: o.Description, Policies: o.Policies, CreateIndex: o.CreateIndex, ModifyIndex: o.ModifyIndex}
}

// NamespaceOut is a namespace.
func NamespaceOut(n *model.Namespace) *Namespace {
	out := &Namespace{Name: n.Name, Description: n.Description, Quota: n.Quota, Meta: n.Meta, CreateIndex: n.CreateIndex, ModifyIndex: n.ModifyIndex}
	if len(n.EnabledDrivers)+len(n.DisabledDrivers)+len(n.EnabledNetworks)+len(n.DeniedNetworks) > 0 {
		out.Capabilities = &api.NamespaceCapabilities{
			EnabledTaskDrivers: n.EnabledDrivers, DisabledTaskDrivers: n.DisabledDrivers, EnabledNetworkModes: n.EnabledNetworks,
			DisabledNetworkModes: n.DeniedNetworks,
		}
	}
	if n.DefaultPool != "" || len(n.AllowedPools)+len(n.DeniedPools) > 0 {
		out.NodePoolConfiguration = &api.NamespaceNodePoolConfiguration{Default: n.DefaultPool, Allowed: n.AllowedPools, Denied: n.DeniedPools}
	}
	return out
}

// NamespaceIn is a namespace that was sent, and what of it cannot be.
func NamespaceIn(n *Namespace) (*model.Namespace, string) {
	out := &model.Namespace{Name: n.Name, Description: n.Description, Quota: n.Quota, Meta: n.Meta}
	if c := n.Capabilities; c != nil {
		out.EnabledDrivers, out.DisabledDrivers, out.EnabledNetworks, out.DeniedNetworks = c.EnabledTaskDrivers, c.DisabledTaskDrivers, c.EnabledNetworkModes, c.DisabledNetworkModes
	}
	if p := n.NodePoolConfiguration; p != nil {
		out.DefaultPool, out.AllowedPools, out.DeniedPools = p.Default, p.Allowed, p.Denied
		if len(p.Allowed) > 0 && len(p.Denied) > 0 {
			return nil, "node pools are either allowed or denied, not both"
		}
	}
	switch {
	case n.VaultConfiguration != nil && (n.VaultConfiguration.Default != "" || len(n.VaultConfiguration.Allowed)+len(n.VaultConfiguration.Denied) > 0),
		n.ConsulConfiguration != nil && (n.ConsulConfiguration.Default != "" || len(n.ConsulConfiguration.Allowed)+len(n.ConsulConfiguration.Denied) > 0):
		return nil, "Vault and Consul are not supported by Rockpool"
	case len(n.RequiredExtraClaims)+len(n.OptionalExtraClaims) > 0:
		return nil, "extra claims are not supported by Rockpool: there are no workload identities"
	}
	return out, ""
}

// PoolOut is a node pool.
func PoolOut(p *model.NodePool) *NodePool {
	out := &NodePool{Name: p.Name, Description: p.Description, Meta: p.Meta, CreateIndex: p.CreateIndex, ModifyIndex: p.ModifyIndex}
	if p.Scheduler != nil {
		out.SchedulerConfiguration = &api.NodePoolSchedulerConfiguration{
			SchedulerAlgorithm: api.SchedulerAlgorithm(p.Scheduler.Algorithm), MemoryOversubscriptionEnabled: p.Scheduler.MemoryOversubscribed,
		}
	}
	return out
}

// PoolIn is a node pool that was sent, and what of it cannot be.
func PoolIn(p *NodePool) (*model.NodePool, string) {
	out := &model.NodePool{Name: p.Name, Description: p.Description, Meta: p.Meta}
	if c := p.SchedulerConfiguration; c != nil {
		out.Scheduler = &model.PoolScheduling{Algorithm: string(c.SchedulerAlgorithm), MemoryOversubscribed: c.MemoryOversubscriptionEnabled}
		if a := out.Scheduler.Algorithm; a != "" && a != "binpack" && a != "spread" {
			return nil, "the scheduler algorithm of a node pool must be binpack or spread"
		}
	}
	if p.NodeIdentityTTL != 0 {
		return nil, "node_identity_ttl is not supported by Rockpool: nodes prove themselves by their secret"
	}
	return out, ""
}

// QuotaOut is a quota.
func QuotaOut(q *model.Quota) *QuotaSpec {
	var devices []*api.RequestedDevice
	for _, name := range sortedKeys(q.Devices) {
		devices = append(devices, &api.RequestedDevice{Name: name, Count: new(uint64(max(q.Devices[name], 0)))})
	}
	r := &QuotaResources{CPU: new(q.CPU), Cores: new(q.Cores), MemoryMB: new(q.MemoryMB), MemoryMaxMB: new(q.MemoryMaxMB), Devices: devices}
	if q.VariablesMB != 0 {
		r.Storage = &api.QuotaStorageResources{VariablesMB: q.VariablesMB}
	}
	return &QuotaSpec{
		Name: q.Name, Description: q.Description, Limits: []*QuotaLimit{{Region: "global", RegionLimit: r}}, CreateIndex: q.CreateIndex, ModifyIndex: q.ModifyIndex,
	}
}

// QuotaIn is a quota that was sent, and what of it cannot be.
func QuotaIn(s *QuotaSpec) (*model.Quota, string) {
	out := &model.Quota{Name: s.Name, Description: s.Description}
	if len(s.Limits) > 1 {
		return nil, "a quota has one limit, that of the region \"global\""
	}
	for _, l := range s.Limits {
		if l == nil || l.Region != "" && l.Region != "global" {
			return nil, "a quota's limit is that of the region \"global\""
		}
		if l.VariablesLimit != nil {
			out.VariablesMB = *l.VariablesLimit
		}
		r := l.RegionLimit
		if r == nil {
			continue
		}
		out.CPU, out.Cores, out.MemoryMB, out.MemoryMaxMB = val(r.CPU), val(r.Cores), val(r.MemoryMB), val(r.MemoryMaxMB)
		for _, d := range r.Devices {
			if d == nil || d.Name == "" || strings.Count(d.Name, "/") > 2 {
				return nil, "a device of a quota is named type, vendor/type or vendor/type/name"
			}
			if len(d.Constraints)+len(d.Affinities) > 0 {
				return nil, "constraints and affinities of a quota's devices are not supported by Rockpool"
			}
			if out.Devices == nil {
				out.Devices = map[string]int{}
			}
			out.Devices[d.Name] = -1
			if n := int(val(d.Count)); n > 0 {
				out.Devices[d.Name] = n
			}
		}
		if st := r.Storage; st != nil {
			out.VariablesMB = st.VariablesMB
			if st.HostVolumesMB != 0 {
				return nil, "a quota of host volumes is not supported by Rockpool"
			}
		}
		if len(r.NodePools) > 0 || val(r.SecretsMB) != 0 || r.NUMA != nil {
			return nil, "quotas by node pool, of secrets and of NUMA are not supported by Rockpool"
		}
	}
	return out, ""
}

// QuotaUsageOut is what is held of a quota.
func QuotaUsageOut(q *model.Quota, u model.QuotaUsage, index uint64) *QuotaUsage {
	var devices []*api.RequestedDevice
	for _, name := range sortedKeys(u.Devices) {
		devices = append(devices, &api.RequestedDevice{Name: name, Count: new(uint64(u.Devices[name]))})
	}
	return &QuotaUsage{Name: q.Name, CreateIndex: q.CreateIndex, ModifyIndex: max(q.ModifyIndex, index), Used: map[string]*QuotaLimit{"global": {
		Region: "global", RegionLimit: &QuotaResources{
			CPU: new(u.CPU), Cores: new(u.Cores), MemoryMB: new(u.MemoryMB), MemoryMaxMB: new(u.MemoryMaxMB), Devices: devices,
			Storage: &api.QuotaStorageResources{VariablesMB: (u.VariableBytes + 1<<20 - 1) >> 20},
		},
	}}}
}

// VariableMeta is a variable without its items. The id of its lock is shown to those alone who may write it.
func VariableMeta(v *model.Variable, now int64, writer bool) *VariableMetadata {
	return &VariableMetadata{
		Namespace: v.Namespace, Path: v.Path, CreateIndex: v.CreateIndex, ModifyIndex: v.ModifyIndex, CreateTime: v.CreateTime, ModifyTime: v.ModifyTime,
		Lock: lockOut(v.Lock, now, writer),
	}
}

// VariableOut is a variable with the items given.
func VariableOut(v *model.Variable, items map[string]string, now int64, writer bool) *Variable {
	return &Variable{
		Namespace: v.Namespace, Path: v.Path, CreateIndex: v.CreateIndex, ModifyIndex: v.ModifyIndex, CreateTime: v.CreateTime, ModifyTime: v.ModifyTime,
		Items: items, Lock: lockOut(v.Lock, now, writer),
	}
}

func lockOut(l *model.VariableLock, now int64, writer bool) *VariableLock {
	if !l.Held(now) {
		return nil
	}
	out := &VariableLock{TTL: time.Duration(l.TTL).String(), LockDelay: time.Duration(l.Delay).String()}
	if writer {
		out.ID = l.ID
	}
	return out
}

// KeyOut is a root key's description; the key itself is shown to nobody.
func KeyOut(k *model.RootKey) *RootKeyMeta {
	return &RootKeyMeta{
		KeyID: k.ID, Algorithm: api.EncryptionAlgorithmAES256GCM, CreateTime: k.CreateTime, CreateIndex: k.CreateIndex, ModifyIndex: k.ModifyIndex,
		State: api.RootKeyState(k.State),
	}
}

// ServiceOut is a registration.
func ServiceOut(s *model.ServiceRegistration) *ServiceRegistration {
	return &ServiceRegistration{
		ID: s.ID, ServiceName: s.ServiceName, Namespace: s.Namespace, NodeID: s.NodeID, Datacenter: s.Datacenter, JobID: s.JobID, AllocID: s.AllocID,
		Tags: slices.Clone(s.Tags), Address: s.Address, Port: s.Port, CreateIndex: s.CreateIndex, ModifyIndex: s.ModifyIndex,
	}
}
