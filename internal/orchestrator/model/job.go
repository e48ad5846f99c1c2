package model

import "time"

// DefaultNamespace is where an object lives when nothing else was said.
const DefaultNamespace = "default"

// Job types.
const (
	JobTypeBatch    = "batch"
	JobTypeService  = "service"
	JobTypeSystem   = "system"
	JobTypeSysbatch = "sysbatch"
)

// Job statuses.
const (
	JobPending = "pending"
	JobRunning = "running"
	JobDead    = "dead"
)

// Job is what a user asks to have run.
type Job struct {
	Region            string
	Namespace         string
	ID                string
	ParentID          string
	Name              string
	Type              string
	Priority          int // 1 to 100, default 50
	AllAtOnce         bool
	Datacenters       []string
	NodePool          string
	Constraints       []Constraint
	Affinities        []Affinity
	Spreads           []Spread
	TaskGroups        []*TaskGroup
	Meta              map[string]string
	Periodic          *Periodic      `codec:",omitempty"` // nil = not periodic
	Parameterized     *Parameterized `codec:",omitempty"` // nil = it runs as it is
	Dispatched        bool           `codec:",omitempty"` // it was made of a parameterized job
	DispatchToken     string         `codec:",omitempty"` // idempotency token of the dispatch
	Payload           []byte         `codec:",omitempty"` // of a dispatched job; never in events
	VersionTag        *VersionTag    `codec:",omitempty"`
	Stop              bool
	Status            string
	StatusDescription string
	Stable            bool
	Version           uint64
	SubmitTime        int64
	CreateIndex       uint64
	ModifyIndex       uint64
	JobModifyIndex    uint64 // index of the last change by a user; what EnforceIndex compares
}

// TaskGroup is a set of tasks placed together on one node, Count times.
type TaskGroup struct {
	Name          string
	Count         int
	Constraints   []Constraint
	Affinities    []Affinity
	Spreads       []Spread
	Networks      []Network
	Tasks         []*Task
	Restart       RestartPolicy
	Reschedule    ReschedulePolicy
	EphemeralDisk EphemeralDisk
	Meta          map[string]string
	MaxRunTime    time.Duration // 0 = unlimited

	Update        *UpdatePolicy             `codec:",omitempty"` // nil = all at once, without a deployment
	Migrate       *MigratePolicy            `codec:",omitempty"` // nil = DefaultMigrate
	Disconnect    *DisconnectPolicy         `codec:",omitempty"` // nil = a node that is away has lost the allocation
	Services      []*Service                `codec:",omitempty"`
	Volumes       map[string]*VolumeRequest `codec:",omitempty"`
	Scaling       *Scaling                  `codec:",omitempty"`
	ShutdownDelay time.Duration             `codec:",omitempty"` // between the end of the registration and the stop of the tasks
}

// Task is one process of a group, started by a driver.
type Task struct {
	Name        string
	Driver      string
	User        string
	Config      map[string]any // the driver's own; JSON values only
	Env         map[string]string
	Resources   Resources
	Constraints []Constraint
	Affinities  []Affinity
	Meta        map[string]string
	KillTimeout time.Duration
	KillSignal  string
	Leader      bool
	LogConfig   LogConfig

	Restart         *RestartPolicy `codec:",omitempty"` // nil = the group's
	Lifecycle       *Lifecycle     `codec:",omitempty"` // nil = a main task
	Services        []*Service     `codec:",omitempty"`
	VolumeMounts    []VolumeMount  `codec:",omitempty"`
	Templates       []Template     `codec:",omitempty"`
	DispatchPayload string         `codec:",omitempty"` // file in the task's local directory that the payload is written to
	ShutdownDelay   time.Duration  `codec:",omitempty"`
}

// Resources is what a task asks for.
type Resources struct {
	CPU         int // MHz, a weight
	Cores       int
	MemoryMB    int // reserved
	MemoryMaxMB int // hard limit; 0 = MemoryMB
	DiskMB      int
	Devices     []DeviceRequest
}

// HardMemoryMB is the limit that the kernel enforces, in MiB.
func (r Resources) HardMemoryMB() int { return max(r.MemoryMB, r.MemoryMaxMB) }

// DeviceRequest asks for instances of a device, such as nvidia/gpu.
type DeviceRequest struct {
	Name        string
	Count       uint64
	Constraints []Constraint
	Affinities  []Affinity
}

// Constraint is a condition that a node must meet. Operands are those of Nomad's constraint block.
type Constraint struct {
	LTarget string
	RTarget string
	Operand string
}

// Affinity prefers (Weight > 0) or avoids (< 0) nodes; -100 to 100.
type Affinity struct {
	LTarget string
	RTarget string
	Operand string
	Weight  int8
}

// Spread distributes allocations over the values of an attribute.
type Spread struct {
	Attribute string
	Weight    int8
	Targets   []SpreadTarget
}

// SpreadTarget is the wanted share of one value.
type SpreadTarget struct {
	Value   string
	Percent uint8
}

// Network asks for a network and ports for a group.
type Network struct {
	Mode          string // "none", "bridge", "host", "cni/…"; "" = none
	Hostname      string
	DNS           *DNS
	ReservedPorts []Port
	DynamicPorts  []Port
}

// DNS is the name service configuration of a network.
type DNS struct {
	Servers, Searches, Options []string
}

// Port is one port of a network. Value is set for reserved ports and filled in on allocations.
type Port struct {
	Label       string
	Value       int
	To          int
	HostNetwork string
}

// Modes of a RestartPolicy.
const (
	RestartModeFail  = "fail"
	RestartModeDelay = "delay"
)

// RestartPolicy says how often a failed task starts again on its node.
type RestartPolicy struct {
	Attempts int
	Interval time.Duration
	Delay    time.Duration
	Mode     string
}

// ReschedulePolicy says how a failed allocation is replaced.
type ReschedulePolicy struct {
	Attempts      int
	Interval      time.Duration
	Delay         time.Duration
	DelayFunction string // constant, exponential, fibonacci
	MaxDelay      time.Duration
	Unlimited     bool
}

// EphemeralDisk is the disk an allocation may write.
type EphemeralDisk struct {
	SizeMB  int
	Sticky  bool
	Migrate bool
}

// LogConfig bounds the logs kept of a task.
type LogConfig struct {
	MaxFiles      int
	MaxFileSizeMB int
	Disabled      bool
}

// MeantToRun reports whether a job is more than a store of its specification: that is one which was not stopped and all of whose groups have count 0, or
// one from which others are made.
func (j *Job) MeantToRun() bool {
	if j.Stop {
		return true
	}
	if j.Periodic != nil || j.Parameterized != nil && !j.Dispatched {
		return false
	}
	for _, g := range j.TaskGroups {
		if g.Count > 0 {
			return true
		}
	}
	return j.Type == JobTypeSystem || j.Type == JobTypeSysbatch
}

// Group returns the task group of that name, or nil.
func (j *Job) Group(name string) *TaskGroup {
	for _, g := range j.TaskGroups {
		if g.Name == name {
			return g
		}
	}
	return nil
}

// Task returns the task of that name, or nil.
func (g *TaskGroup) Task(name string) *Task {
	for _, t := range g.Tasks {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// IsTemplate reports whether a job only stands for those that are made of it, by the clock or by dispatch, and is never placed itself.
func (j *Job) IsTemplate() bool { return j.Periodic != nil || j.Parameterized != nil && !j.Dispatched }
