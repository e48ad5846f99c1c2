// Package dto holds the JSON bodies of the gateway's API. Names and shapes are the contract's.
package dto

// Environment is an execution environment.
type Environment struct {
	ID                 int      `json:"id"`
	PrewarmingPoolSize uint     `json:"prewarmingPoolSize"`
	CPULimit           uint     `json:"cpuLimit"`
	MemoryLimit        uint     `json:"memoryLimit"`
	Image              string   `json:"image"`
	NetworkAccess      bool     `json:"networkAccess"`
	ExposedPorts       []uint16 `json:"exposedPorts"`
	NetworkEgress      []string `json:"networkEgress,omitempty"`
	Runtime            string   `json:"runtime,omitempty"`
	Devices            []Device `json:"devices,omitempty"`
	WarmUp             *WarmUp  `json:"warmup,omitempty"`
	PoolSizeMin        uint     `json:"poolSizeMin,omitempty"`
	PoolSizeMax        uint     `json:"poolSizeMax,omitempty"`
}

// EnvironmentRequest is the body of a PUT; an id in it is ignored.
type EnvironmentRequest struct {
	PrewarmingPoolSize uint           `json:"prewarmingPoolSize"`
	CPULimit           uint           `json:"cpuLimit"`
	MemoryLimit        uint           `json:"memoryLimit"`
	Image              string         `json:"image"`
	NetworkAccess      bool           `json:"networkAccess"`
	ExposedPorts       []uint16       `json:"exposedPorts"`
	NetworkEgress      []string       `json:"networkEgress,omitempty"`
	Runtime            string         `json:"runtime,omitempty"`
	Devices            []Device       `json:"devices,omitempty"`
	WarmUp             *WarmUpRequest `json:"warmup,omitempty"`
	PoolSizeMin        *uint          `json:"poolSizeMin,omitempty"` // null in both = as they are, while prewarmingPoolSize stays
	PoolSizeMax        *uint          `json:"poolSizeMax,omitempty"`
}

// Environments is the list of all environments.
type Environments struct {
	ExecutionEnvironments []Environment `json:"executionEnvironments"`
}

// Statistics is one environment's pool.
type Statistics struct {
	ID                 int      `json:"id"`
	PrewarmingPoolSize uint     `json:"prewarmingPoolSize"`
	IdleRunners        uint     `json:"idleRunners"`
	UsedRunners        uint     `json:"usedRunners"`
	Devices            []Device `json:"devices,omitempty"`         // that each of them has
	PossibleRunners    *uint    `json:"possibleRunners,omitempty"` // null = there is room for all that are wanted
}

// RunnerRequest asks for a runner. WaitTimeout is an extension.
type RunnerRequest struct {
	ExecutionEnvironmentID int  `json:"executionEnvironmentId"`
	InactivityTimeout      int  `json:"inactivityTimeout"` // seconds, 0 = never
	WaitTimeout            *int `json:"waitTimeout"`       // seconds; null = the client does not ask for it
}

// Runner is a runner that was handed out.
type Runner struct {
	RunnerID    string       `json:"runnerId"`
	MappedPorts []MappedPort `json:"mappedPorts"`
}

// ClaimedRunners is the list of claimed runners that the caller may use.
type ClaimedRunners struct {
	Runners []ClaimedRunner `json:"runners"`
}

// ClaimedRunner is one of them. Times are whole seconds; TimeLeft is -1 where the runner never expires.
type ClaimedRunner struct {
	ID                string `json:"id"`
	Environment       int    `json:"executionEnvironmentId"`
	State             string `json:"state"`
	Owner             string `json:"owner,omitempty"` // name of the token that claimed it
	Age               int    `json:"ageSeconds"`      // since the claim, or since this gateway found it
	InactivityTimeout int    `json:"inactivityTimeout"`
	TimeLeft          int    `json:"timeLeft"`
	Executions        int    `json:"executions"`        // that run
	Waiting           int    `json:"executionsWaiting"` // whose WebSocket was not connected yet
}

// Timelines is what was recorded lately, newest first.
type Timelines struct {
	Timelines []Timeline `json:"timelines"`
}

// Timeline is one trace: of a request, of an execution, or of the start of a runner.
type Timeline struct {
	TraceID     string `json:"traceId"`
	RunnerID    string `json:"runnerId,omitempty"`
	ExecutionID string `json:"executionId,omitempty"`
	Begun       string `json:"begun"` // RFC 3339
	Steps       []Step `json:"steps"`
	Dropped     int    `json:"dropped"` // steps that there was no room for
}

// Step is one of a timeline's. Times are microseconds.
type Step struct {
	Step       string            `json:"step"`
	Depth      int               `json:"depth"`
	Start      float64           `json:"startUs"` // after the timeline's beginning
	Duration   float64           `json:"durationUs"`
	Open       bool              `json:"open,omitempty"`      // it goes on
	Elsewhere  bool              `json:"elsewhere,omitempty"` // told by the cluster
	Failed     bool              `json:"failed,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
}

// MappedPort is where an exposed port can be reached.
type MappedPort struct {
	ExposedPort uint   `json:"exposedPort"`
	HostAddress string `json:"hostAddress"`
}

// ExecutionRequest asks for an execution. TTY, Width, Height and Reattach are extensions.
type ExecutionRequest struct {
	Command             string            `json:"command"`
	PrivilegedExecution bool              `json:"privilegedExecution"`
	TimeLimit           int               `json:"timeLimit"` // seconds, 0 = none
	Environment         map[string]string `json:"environment"`
	TTY                 *bool             `json:"tty"` // default true
	Width               uint16            `json:"width"`
	Height              uint16            `json:"height"`
	Reattach            *Reattach         `json:"reattach"`
}

// Reattach asks for an execution that outlives a connection that breaks. 0 stands for a default.
type Reattach struct {
	BufferBytes  int  `json:"bufferBytes"`
	GraceSeconds int  `json:"graceSeconds"`
	Acknowledge  bool `json:"acknowledge"`
}

// Execution is where the execution begins.
type Execution struct {
	WebSocketURL string `json:"websocketUrl"`
}

// FileHeader is one entry of a listing.
type FileHeader struct {
	Name             string `json:"name"`
	EntryType        string `json:"entryType"`
	LinkTarget       string `json:"linkTarget,omitempty"`
	Size             int64  `json:"size"`
	ModificationTime int64  `json:"modificationTime"`
	Permissions      string `json:"permissions"`
	Owner            string `json:"owner"`
	Group            string `json:"group"`
}

// ClientError is the body of 4xx.
type ClientError struct {
	Message string `json:"message"`
}

// ServerError is the body of 5xx.
type ServerError struct {
	Message   string    `json:"message"`
	ErrorCode ErrorCode `json:"errorCode"`
	Queue     *Queue    `json:"queue,omitempty"` // only for a client that asked to wait
}

// Queue is where a claim stood when it was refused.
type Queue struct {
	Position        int `json:"position"`                  // from 1
	Waiting         int `json:"waiting"`                   // claims that wait now
	EstimateSeconds int `json:"estimateSeconds,omitempty"` // 0 = it cannot be told
}

// ErrorCode tells server errors apart. There are no others.
type ErrorCode string

// The error codes.
const (
	CodeUnreachable ErrorCode = "NOMAD_UNREACHABLE"
	CodeOverload    ErrorCode = "NOMAD_OVERLOAD"
	CodeInternal    ErrorCode = "NOMAD_INTERNAL_SERVER_ERROR"
	CodeDepleting   ErrorCode = "PREWARMING_POOL_DEPLETING"
	CodeUnknown     ErrorCode = "UNKNOWN"
)
