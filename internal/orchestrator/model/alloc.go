package model

// Desired and client statuses of an allocation.
const (
	DesiredRun   = "run"
	DesiredStop  = "stop"
	DesiredEvict = "evict"

	ClientPending  = "pending"
	ClientRunning  = "running"
	ClientComplete = "complete"
	ClientFailed   = "failed"
	ClientLost     = "lost"
	ClientUnknown  = "unknown"
)

// Allocation is one placement of a task group on a node.
type Allocation struct {
	ID                 string
	Namespace          string
	EvalID             string
	Name               string // job.group[index]
	NodeID             string
	NodeName           string
	JobID              string
	Job                *Job // the specification it runs
	TaskGroup          string
	Resources          AllocatedResources
	DesiredStatus      string
	DesiredDescription string
	ClientStatus       string
	ClientDescription  string
	TaskStates         map[string]*TaskState
	NetworkStatus      *NetworkStatus `codec:",omitempty"` // nil = no network, or the node has not told
	PreviousAllocation string
	NextAllocation     string
	FollowupEvalID     string
	DeploymentID       string             `codec:",omitempty"`
	DeploymentStatus   *AllocHealth       `codec:",omitempty"` // nil = nothing is known yet
	Transition         *DesiredTransition `codec:",omitempty"` // what the servers want to become of it; nil = nothing
	Reschedules        []Reschedule       `codec:",omitempty"` // the replacements that led to it, oldest first
	Preempts           []string           `codec:",omitempty"` // allocations that had to go for it
	PreemptedBy        string             `codec:",omitempty"`
	UnknownSince       int64              `codec:",omitempty"` // unix ns; its node was cut off then
	Metrics            *AllocMetric
	CreateIndex        uint64
	ModifyIndex        uint64
	AllocModifyIndex   uint64 // index of the last change by the servers
	CreateTime         int64
	ModifyTime         int64
}

// AllocHealth is whether an allocation does its work, as its node or an operator says.
type AllocHealth struct {
	Healthy     *bool // nil = not decided
	Canary      bool
	Timestamp   int64
	ModifyIndex uint64
}

// DesiredTransition asks the scheduler to move an allocation.
type DesiredTransition struct {
	Migrate         bool // its node is drained
	Reschedule      bool
	ForceReschedule bool // whatever the policy says
	NoShutdownDelay bool
}

// Reschedule is one replacement of a failed allocation.
type Reschedule struct {
	Time       int64 // unix ns
	PrevAlloc  string
	PrevNode   string
	Delay      int64 // ns
	Successful bool
}

// AllocatedResources is what a placement holds on its node.
type AllocatedResources struct {
	Tasks  map[string]*AllocatedTask // pointers: see the test of state.Handle
	DiskMB int
	Ports  []AllocatedPort
}

// AllocatedTask is one task's part.
type AllocatedTask struct {
	CPU         int // MHz
	MemoryMB    int // reserved
	MemoryMaxMB int
	Devices     []AllocatedDevice
}

// AllocatedDevice names the instances of one device that a task holds.
type AllocatedDevice struct {
	Vendor, Type, Name string
	DeviceIDs          []string
	MemoryMB           int `codec:",omitempty"` // MiB that each instance was promised; 0 = not known
}

// AllocatedPort maps a port of the node to one of the group's network.
type AllocatedPort struct {
	Label  string
	Value  int
	To     int
	HostIP string
}

// Task states.
const (
	TaskPending = "pending"
	TaskRunning = "running"
	TaskDead    = "dead"
)

// TaskState is the life of one task as its node reports it.
type TaskState struct {
	State       string
	Failed      bool
	Restarts    uint64
	LastRestart int64
	StartedAt   int64
	FinishedAt  int64
	Events      []*TaskEvent // a ring of 10, newest last
}

// Types of task events that this project emits; the names are Nomad's.
const (
	TaskReceived      = "Received"
	TaskSetup         = "Task Setup"
	TaskSetupFailure  = "Setup Failure"
	TaskDriver        = "Driver"
	TaskDriverFailure = "Driver Failure"
	TaskStarted       = "Started"
	TaskTerminated    = "Terminated"
	TaskRestarting    = "Restarting"
	TaskNotRestarting = "Not Restarting"
	TaskKilling       = "Killing"
	TaskKilled        = "Killed"
	TaskSignaling     = "Signaling"
)

// TaskEvent is one step in a task's life. Details uses Nomad's keys (exit_code, signal, oom_killed, …).
type TaskEvent struct {
	Type           string
	Time           int64
	DisplayMessage string
	Details        map[string]string
}

// Terminal reports whether neither the servers nor the node will do anything more with the allocation.
func (a *Allocation) Terminal() bool {
	return a.DesiredStatus != DesiredRun || a.ClientTerminal()
}

// ClientTerminal reports whether nothing of the allocation runs any more.
func (a *Allocation) ClientTerminal() bool {
	switch a.ClientStatus {
	case ClientComplete, ClientFailed, ClientLost:
		return true
	}
	return false
}

// AllocUpdate is what a node reports about one allocation.
type AllocUpdate struct {
	ID                string
	ClientStatus      string
	ClientDescription string
	TaskStates        map[string]*TaskState
	NetworkStatus     *NetworkStatus `codec:",omitempty"` // nil = as it was
	Health            *AllocHealth   `codec:",omitempty"` // nil = as it was
	ModifyTime        int64
	Buried            bool `codec:",omitempty"` // nothing of it is left on the node; nothing else of the update counts then
}

// NetworkStatus is what a node tells of an allocation's network.
type NetworkStatus struct {
	InterfaceName string // inside
	Address       string // inside, without a mask
	DNS           *DNS   // as the inside has it
}

// AllocMetric explains a placement, or why there is none.
type AllocMetric struct {
	NodesEvaluated     int
	NodesFiltered      int
	NodesExhausted     int
	NodesAvailable     map[string]int // by datacenter
	ConstraintFiltered map[string]int
	ClassFiltered      map[string]int
	DimensionExhausted map[string]int
	CoalescedFailures  int
	AllocationTimeNS   int64
	Scores             map[string]float64 // by node id
	ScoreMeta          []NodeScore        `codec:",omitempty"` // of the best nodes, best first
	QuotaExhausted     []string           `codec:",omitempty"` // dimensions
	NodesInPool        int                `codec:",omitempty"`
	NodePool           string             `codec:",omitempty"` // of what found no place; else it is that of the allocation's job
}

// NodeScore explains what a node was given.
type NodeScore struct {
	NodeID string
	Scores map[string]float64 // binpack, job-anti-affinity, node-affinity, allocation-spread, …
	Norm   float64            // their mean
}
