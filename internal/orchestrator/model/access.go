package model

import (
	"maps"
	"slices"
	"strings"
)

// Namespace parts a cluster among users.
type Namespace struct {
	Name            string
	Description     string
	Quota           string            // name; "" = none
	Meta            map[string]string `codec:",omitempty"`
	EnabledDrivers  []string          `codec:",omitempty"` // empty = all
	DisabledDrivers []string          `codec:",omitempty"`
	DefaultPool     string            `codec:",omitempty"`
	AllowedPools    []string          `codec:",omitempty"` // globs; empty = all
	DeniedPools     []string          `codec:",omitempty"`
	EnabledNetworks []string          `codec:",omitempty"` // network modes; empty = all
	DeniedNetworks  []string          `codec:",omitempty"`
	CreateIndex     uint64
	ModifyIndex     uint64
}

// Quota bounds what the allocations of the namespaces that name it may hold together; 0 = unlimited, negative = nothing.
type Quota struct {
	Name        string
	Description string
	CPU         int // MHz
	Cores       int
	MemoryMB    int
	MemoryMaxMB int
	Devices     map[string]int `codec:",omitempty"` // instances by device name: type, vendor/type or vendor/type/name
	VariablesMB int            `codec:",omitempty"` // of encrypted variables, in MiB
	CreateIndex uint64
	ModifyIndex uint64
}

// QuotaUsage is what allocations and variables hold of a quota.
type QuotaUsage struct {
	CPU           int // MHz
	Cores         int
	MemoryMB      int
	MemoryMaxMB   int
	Devices       map[string]int // instances by vendor/type/name
	VariableBytes int
}

// Add takes, or with sign -1 gives back, what o holds. It changes u's map.
func (u *QuotaUsage) Add(o QuotaUsage, sign int) {
	u.CPU += sign * o.CPU
	u.Cores += sign * o.Cores
	u.MemoryMB += sign * o.MemoryMB
	u.MemoryMaxMB += sign * o.MemoryMaxMB
	u.VariableBytes += sign * o.VariableBytes
	for name, n := range o.Devices {
		if u.Devices == nil {
			u.Devices = map[string]int{}
		}
		if u.Devices[name] += sign * n; u.Devices[name] == 0 {
			delete(u.Devices, name)
		}
	}
}

// QuotaUsage is what the allocation of job j counts for its namespace's quota: what it holds until it has ended or is to stop.
func (a *Allocation) QuotaUsage(j *Job) QuotaUsage {
	var u QuotaUsage
	if a.Terminal() {
		return u
	}
	if j != nil {
		if g := j.Group(a.TaskGroup); g != nil {
			for _, t := range g.Tasks {
				u.Cores += t.Resources.Cores
			}
		}
	}
	for _, t := range a.Resources.Tasks {
		u.CPU += t.CPU
		u.MemoryMB += t.MemoryMB
		u.MemoryMaxMB += max(t.MemoryMB, t.MemoryMaxMB)
		for _, d := range t.Devices {
			if u.Devices == nil {
				u.Devices = map[string]int{}
			}
			u.Devices[d.Vendor+"/"+d.Type+"/"+d.Name] += len(d.DeviceIDs)
		}
	}
	return u
}

// Exceeded lists the dimensions, sorted, in which used is more than the quota allows. A nil quota allows everything.
func (q *Quota) Exceeded(used QuotaUsage) []string {
	if q == nil {
		return nil
	}
	var out []string
	check := func(name string, limit, n int) {
		if limit > 0 && n > limit || limit < 0 && n > 0 {
			out = append(out, name)
		}
	}
	check("cores", q.Cores, used.Cores)
	check("cpu", q.CPU, used.CPU)
	for _, want := range slices.Sorted(maps.Keys(q.Devices)) {
		n := 0
		for name, held := range used.Devices {
			if deviceIs(name, want) {
				n += held
			}
		}
		check("device "+want, q.Devices[want], n)
	}
	check("memory", q.MemoryMB, used.MemoryMB)
	check("memory_max", q.MemoryMaxMB, used.MemoryMaxMB)
	check("variables", q.VariablesMB*(1<<20), used.VariableBytes)
	return out
}

// deviceIs reports whether the device vendor/type/name is what want names: its type, vendor/type or all three.
func deviceIs(device, want string) bool {
	parts := strings.SplitN(device, "/", 3)
	switch strings.Count(want, "/") {
	case 0:
		return parts[1] == want
	case 1:
		return parts[0]+"/"+parts[1] == want
	}
	return device == want
}

// NodePool is a set of nodes that jobs may name. The pools all and default are built in.
type NodePool struct {
	Name        string
	Description string
	Meta        map[string]string `codec:",omitempty"`
	Scheduler   *PoolScheduling   `codec:",omitempty"` // nil = the cluster's
	CreateIndex uint64
	ModifyIndex uint64
}

// PoolScheduling differs from the cluster's scheduler configuration for one pool.
type PoolScheduling struct {
	Algorithm            string // "" = the cluster's
	MemoryOversubscribed *bool  // nil = the cluster's
}

// Node pools that are always there. A node is in one pool; jobs of the pool all may be placed on any.
const (
	PoolAll     = "all"
	PoolDefault = "default"
)

// Types of ACL tokens.
const (
	TokenClient     = "client"
	TokenManagement = "management"
)

// AnonymousPolicy is the policy that holds for whoever shows no token.
const AnonymousPolicy = "anonymous"

// ACLToken is what a caller proves itself by. Of the secret only a hash is kept, see docs/adr.
type ACLToken struct {
	AccessorID  string
	SecretHash  string // SHA-256 of the secret, in hex
	Name        string
	Type        string
	Policies    []string
	Roles       []string // ids
	Global      bool     // accepted and shown; there is one region
	CreateTime  int64
	Expires     int64 // unix ns; 0 = never
	TTL         int64 `codec:",omitempty"` // ns, as it was asked for
	CreateIndex uint64
	ModifyIndex uint64
}

// ACLPolicy is a named set of rules in the language of package acl.
type ACLPolicy struct {
	Name        string
	Description string
	Rules       string
	CreateIndex uint64
	ModifyIndex uint64
}

// ACLRole is a named set of policies.
type ACLRole struct {
	ID          string
	Name        string
	Description string
	Policies    []string
	CreateIndex uint64
	ModifyIndex uint64
}

// OneTimeToken lets whoever knows its secret have the secret of an ACL token, once. That one is sealed by the one-time secret, which is not kept.
type OneTimeToken struct {
	SecretHash  string // SHA-256 of the one-time secret, in hex
	AccessorID  string
	Sealed      []byte
	Expires     int64 // unix ns
	CreateIndex uint64
	ModifyIndex uint64
}

// ACLBootstrap notes that the first management token was made.
type ACLBootstrap struct{ Index uint64 }

// Variable is a set of items at a path. The items are here only as ciphertext.
type Variable struct {
	Namespace   string
	Path        string
	Data        []byte // sealed by the root key KeyID
	KeyID       string
	Lock        *VariableLock `codec:",omitempty"` // nil = there is none
	CreateIndex uint64
	ModifyIndex uint64
	CreateTime  int64
	ModifyTime  int64
}

// VariableLock is held by whoever knows its ID.
type VariableLock struct {
	ID      string
	TTL     int64 // ns
	Delay   int64 // ns after the end of a lock that was not released in which nobody gets it
	Expires int64 // unix ns
}

// Held reports whether somebody holds the lock. A nil lock is free.
func (l *VariableLock) Held(now int64) bool { return l != nil && now < l.Expires }

// Free reports whether the lock may be taken.
func (l *VariableLock) Free(now int64) bool { return l == nil || now >= l.Expires+l.Delay }

// States of a RootKey.
const (
	KeyActive   = "active"
	KeyInactive = "inactive"
	KeyRekeying = "rekeying" // what it sealed is being sealed by the active one
)

// RootKey seals variables. It is kept wrapped by a key that is in no log and no snapshot.
type RootKey struct {
	ID          string
	State       string
	Wrapped     []byte
	CreateTime  int64
	CreateIndex uint64
	ModifyIndex uint64
}

// ServiceRegistration is one address at which an allocation offers a service.
type ServiceRegistration struct {
	ID          string
	ServiceName string
	Namespace   string
	NodeID      string
	Datacenter  string
	JobID       string
	AllocID     string
	Tags        []string
	Address     string
	Port        int
	CreateIndex uint64
	ModifyIndex uint64
}

// AllocServices is all that one allocation offers now, as its node says.
type AllocServices struct {
	AllocID  string
	Services []*ServiceRegistration // ID, ServiceName, Tags, Address and Port; the servers know the rest
}
