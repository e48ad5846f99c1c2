package model

import "time"

// Node statuses.
const (
	NodeInitializing = "initializing"
	NodeReady        = "ready"
	NodeDown         = "down"
	NodeDisconnected = "disconnected"
)

// Scheduling eligibilities.
const (
	NodeEligible   = "eligible"
	NodeIneligible = "ineligible"
)

// Node is a machine that runs allocations.
type Node struct {
	ID                    string
	SecretID              string // proves the node's identity to the servers; never leaves them
	Name                  string
	Datacenter            string
	NodePool              string
	NodeClass             string
	HTTPAddr              string // where its agent serves the HTTP API; empty = only through a server
	TLSEnabled            bool   `codec:",omitempty"` // HTTPAddr speaks TLS
	Attributes            map[string]string
	Meta                  map[string]string
	Resources             NodeResources
	Reserved              NodeResources
	Drivers               map[string]*DriverInfo // pointers: see the test of state.Handle
	Status                string
	StatusDescription     string
	StatusUpdatedAt       int64
	SchedulingEligibility string
	ComputedClass         string                 `codec:",omitempty"` // equal for nodes that feasibility cannot tell apart
	Drain                 *Drain                 `codec:",omitempty"` // nil = it is not drained
	LastDrain             *LastDrain             `codec:",omitempty"`
	Events                []NodeEvent            `codec:",omitempty"` // the newest 10, oldest first
	HostVolumes           map[string]*HostVolume `codec:",omitempty"`
	LastSeen              int64                  `codec:",omitempty"` // unix ns, coarse: it is renewed seldom
	CreateIndex           uint64
	ModifyIndex           uint64
}

// Ready reports whether new allocations may be placed on the node.
func (n *Node) Ready() bool {
	return n.Status == NodeReady && n.SchedulingEligibility != NodeIneligible && n.Drain == nil
}

// Drain is how a node is to be emptied.
type Drain struct {
	Deadline         time.Duration // as asked for: 0 = none, -1 ns = everything goes at once
	IgnoreSystemJobs bool
	StartedAt        int64 // unix ns
	ForceDeadline    int64 // unix ns; 0 = none
}

// Statuses of LastDrain.
const (
	DrainDraining = "draining"
	DrainComplete = "complete"
	DrainCanceled = "canceled"
)

// LastDrain is the newest drain, under way or past.
type LastDrain struct {
	StartedAt  int64
	UpdatedAt  int64
	Status     string
	AccessorID string
	Meta       map[string]string
}

// NodeEvent is something worth knowing that happened to a node.
type NodeEvent struct {
	Message   string
	Subsystem string
	Details   map[string]string
	Timestamp int64 // unix ns
	Index     uint64
}

// HostVolume is a directory that the node's operator offers.
type HostVolume struct {
	Path     string
	ReadOnly bool
}

// NodeResources is what a node has.
type NodeResources struct {
	CPU      int // MHz, all cores together
	Cores    int
	MemoryMB int
	DiskMB   int
	Devices  []NodeDevice
}

// NodeDevice is a group of equal device instances.
type NodeDevice struct {
	Vendor, Type, Name string
	Attributes         map[string]Attribute
	Instances          []DeviceInstance
}

// DeviceInstance is one device.
type DeviceInstance struct {
	ID                string
	Healthy           bool
	HealthDescription string // why it is not healthy
	PCIBusID          string
	NUMANode          *int     `codec:",omitempty"` // nil = not known
	Peers             []string `codec:",omitempty"` // ids of the instances of this node that a fast link leads to, such as NVLink; sorted
	Parent            string   `codec:",omitempty"` // id of the whole device that this is a part of
	ParentMemoryMB    int      `codec:",omitempty"` // MiB that the whole device has, which bound what its slots are promised together; 0 = it is no slot
}

// DriverInfo is what a node says about one of its drivers.
type DriverInfo struct {
	Detected          bool
	Healthy           bool
	HealthDescription string
	Attributes        map[string]string
	UpdateTime        int64
}

// NodeLease answers a registration or a heartbeat.
type NodeLease struct {
	HeartbeatTTL time.Duration // the node is down when it has not been heard of for this long and the servers' grace
	Index        uint64
	Servers      []string `json:",omitempty"` // URLs of the HTTP API of all servers; empty = as the node knows them
	Packed       bool     `json:",omitempty"` // the server reads reports in their packed form
}

// AllocPush is one message on the stream from a server to a node. The first message of a stream is a full one.
//
// A node starts what is new, stops what is desired to stop, and destroys what a full message no longer has or Purged
// names. Generation grows with every message and across streams; a node ignores one that is not newer than the last.
type AllocPush struct {
	Generation uint64 // the state index the message was made at
	Full       bool
	Allocs     []*Allocation // with their Job
	Purged     []string      // allocation ids whose record is gone
}

// PackedPush is an AllocPush with its allocations in the form of package packed, their jobs in MessagePack, and without how they came to be placed. A node asks for
// such with PackedType as what it accepts.
type PackedPush struct {
	Generation uint64
	Full       bool
	Packed     []byte
	Purged     []string
}

// PackedType is the media type of a stream of PackedPush, each in JSON.
const PackedType = "application/vnd.rockpool.packed+json"
