package model

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
	Devices     map[string]int `codec:",omitempty"` // instances by device name
	CreateIndex uint64
	ModifyIndex uint64
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
