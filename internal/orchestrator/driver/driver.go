// Package driver says what the node agent asks of whatever starts tasks, and what executions inside a task look like to
// the HTTP API. The native sandbox, the Docker Engine, plain processes and the mock are drivers; each passes the
// conformance suite of package drivertest.
package driver

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"time"

	"rockpool/internal/orchestrator/model"
)

// Errors that drivers return and the HTTP API tells apart with errors.Is.
var (
	ErrNotFound     = errors.New("file not found")
	ErrPermission   = errors.New("permission denied")
	ErrNotRegular   = errors.New("not a regular file")
	ErrNotSupported = errors.New("not supported by this driver")
	ErrTaskGone     = errors.New("the task is not running")
	ErrNoCommand    = errors.New("command not found") // ExecSpec.Argv[0] cannot be executed
)

// TaskConfig is one task to start.
type TaskConfig struct {
	ID        string // unique for ever: allocation id, task name and restart count
	AllocID   string
	JobID     string
	Namespace string
	Group     string
	Task      *model.Task
	Networks  []model.Network // what the group asks for
	Network   *Network        // what the node gave it; nil = none but loopback
	Resources model.AllocatedTask
	DiskMB    int
	Env       map[string]string // complete: NOMAD_* and the task's own
	StateDir  string            // private to this task, made by the agent
	Stdout    io.Writer         // takes what the main process writes, and never blocks for long or fails; nil = nobody wants it
	Stderr    io.Writer         // the same of its other stream
	Files     []File            // what the node puts into the task before its main process starts
	AllocDir  string            // a directory of the node that all tasks of the allocation write to, for drivers that are Sharer; "" = none
	Devices   []string          // the devices that the node gives, by their names in the Container Device Interface, such as nvidia.com/gpu=0; the task sees these and no others
	Mounts    []Mount           // directories of the node that the task sees; a driver that cannot show them refuses the task
	Emit      func(note string) // tells the task's events about progress, such as that of a pull; never nil, may be called from any goroutine
}

// File is one that a task finds when it starts.
type File struct {
	Path string // relative to the task's directory, clean, such as local/settings.ini: the root of a task with a file system of its own
	Mode int64  // permission bits
	Data []byte
}

// Mount is a directory of the node in a task.
type Mount struct {
	Source   string // absolute, on the node
	Target   string // absolute, inside
	ReadOnly bool
}

// Network is the allocation's network namespace, which all its tasks share. The agent made it before the first task starts
// and removes it after the last has ended.
type Network struct {
	NetNS       string // path of the namespace
	Address     string // of the allocation, without a mask
	Hostname    string // "" = the driver's choice
	Nameservers []string
	Searches    []string
	Options     []string // of resolv.conf
}

// Driver starts tasks and finds them again.
type Driver interface {
	// Name is what a job's task says in its driver field.
	Name() string
	// Fingerprint says whether the driver can be used, why not, and its attributes.
	Fingerprint(ctx context.Context) model.DriverInfo
	// Validate checks a task's driver configuration. The error names the key and what is allowed.
	Validate(t *model.Task) error
	// Start returns once executions are possible. After an error nothing is left behind.
	Start(ctx context.Context, cfg TaskConfig) (Task, error)
	// Recover takes back a task that an earlier process of the agent started. An error means that it is gone.
	Recover(ctx context.Context, cfg TaskConfig) (Task, error)
	// Cleanup destroys whatever is left of a task; a task that never was is no error.
	Cleanup(ctx context.Context, taskID string) error
}

// Task is a running task.
type Task interface {
	Done() <-chan struct{}
	// Exit is valid after Done.
	Exit() Exit
	// Stop sends signal (a number; 0 = the driver's default), and kills everything after the timeout, or at once when ctx
	// ends. It returns when nothing is left. From its call on, Exec and Files answer ErrTaskGone.
	Stop(ctx context.Context, signal int, timeout time.Duration) error
	Signal(ctx context.Context, signal int) error
	Exec(ctx context.Context, spec ExecSpec) (Execution, error)
	// Files is nil when the driver offers no direct access to the task's files.
	Files() Files
	Usage(ctx context.Context) (Usage, error)
}

// Exit is how a task's main process ended.
type Exit struct {
	ExitCode  int
	Signal    int
	OOMKilled bool
	Err       error // the outcome is not known: never success
}

// Usage is what a task uses now.
type Usage struct {
	MemoryBytes int64
	PeakMemory  int64 // bytes, the most there ever was; 0 = not known
	CPUTime     time.Duration
	PIDs        int64
}

// ExecSpec is one program to run inside a task. See sandbox.ExecSpec for the meaning of the fields.
type ExecSpec struct {
	ID          string
	Argv        []string
	Env         []string // added to the task's own
	Dir         string
	User        string
	TTY         bool
	Width       uint16
	Height      uint16
	SplitStderr bool // stderr apart even on a terminal
	TimeLimit   time.Duration
	CPULimit    time.Duration
	OutputLimit int64
	Grace       time.Duration
	Background  bool
}

// Execution is a program running inside a task. Readers of Stdout and Stderr must be drained; both reach EOF once the
// program has ended and all that it wrote was read.
type Execution interface {
	Stdin() io.WriteCloser
	Stdout() io.Reader
	Stderr() io.Reader // nil when merged into Stdout
	Resize(width, height uint16) error
	Signal(n int) error
	Kill() error
	Done() <-chan struct{}
	// Result is valid after Done; an error means that the outcome is not known.
	Result() (ExecResult, error)
}

// ExecResult is how an execution ended.
type ExecResult struct {
	Verdict     string // one of sandbox.Verdict
	ExitCode    int
	Signal      int
	OOMKilled   bool
	CPUTime     time.Duration
	WallTime    time.Duration
	PeakMemory  int64 // bytes
	OutputBytes int64
	Warm        bool // it took over an interpreter that waited for a program
	Cold        bool // its task is kept warm, and it did not
}

// Files is access to a task's file system as its inside sees it, confined to its root. Relative paths start at the
// working directory. Errors wrap ErrNotFound, ErrPermission, ErrNotRegular.
type Files interface {
	// Apply deletes (recursively, forced; "./*" means every entry that is not hidden), then unpacks a tar archive.
	Apply(ctx context.Context, deletes []string, archive io.Reader) error
	// List yields the entries of path in the order of ls -R, read as user.
	List(ctx context.Context, path string, recursive bool, user string) iter.Seq2[FileInfo, error]
	// Open opens a regular file for reading, as user. Size is -1 when it is not known.
	Open(ctx context.Context, path, user string) (io.ReadCloser, FileInfo, error)
}

// FileInfo describes one directory entry.
type FileInfo struct {
	Name        string `json:"name"`
	Type        string `json:"type"` // one character as in ls: - d l p s c b
	LinkTarget  string `json:"link_target,omitempty"`
	Size        int64  `json:"size"`
	ModTime     int64  `json:"mod_time"`    // unix seconds
	Permissions string `json:"permissions"` // nine characters as in ls
	Owner       string `json:"owner"`
	Group       string `json:"group"`
}

// Preparer is implemented by drivers whose tasks need what takes long to get, such as an image. The agent calls Prepare before each
// Start, and before the task takes one of the node's turns to start, so that a slow registry holds up nobody else.
type Preparer interface {
	Prepare(ctx context.Context, cfg TaskConfig) error
}

// Networker is implemented by drivers that may give tasks a network themselves. Where OwnNetwork is true the agent makes none for them, maps none of
// their ports, and refuses what only its own networks enforce.
type Networker interface {
	OwnNetwork() bool
}

// Detacher is implemented by drivers that hold goroutines or descriptors for their tasks. Detach lets go of all tasks
// without ending them, so that a later process can recover them, and returns when nothing of the driver runs any more in
// this one. Tasks and executions handed out before are of no use afterwards.
type Detacher interface {
	Detach(ctx context.Context) error
}

// Fence is one row of a node's containment table: what is in force, not what was configured.
type Fence struct {
	Wall    string `json:"-"` // the part of the table
	Name    string
	InForce bool
	Detail  string
	Note    bool // tells about the machine: nothing that the containment rests on
}

// Fenced is implemented by drivers, and by what gives tasks their network, where they know which fences hold.
type Fenced interface {
	Fences() []Fence
}

// Fences is the table of all that are [Fenced], each row once, whoever shares it.
func Fences(drivers iter.Seq[Driver], others ...any) []Fence {
	var all []any
	for d := range drivers {
		all = append(all, d)
	}
	var rows []Fence
	for _, o := range append(all, others...) {
		fenced, ok := o.(Fenced)
		if !ok {
			continue
		}
		for _, f := range fenced.Fences() {
			if !slices.ContainsFunc(rows, func(had Fence) bool { return had.Name == f.Name }) {
				rows = append(rows, f)
			}
		}
	}
	return rows
}

// Bare is implemented by drivers whose tasks keep nothing on the node's disk: the agent makes no directory for them.
type Bare interface {
	Bare() bool
}

// Rooted is implemented by drivers whose tasks have a file system of their own: paths of the task begin at its root, and the driver puts TaskConfig.Files
// there. For others the agent writes the files below its own directory of the task, and tells that by NOMAD_TASK_DIR.
type Rooted interface {
	Rooted() bool
}

// Sharer is implemented by drivers whose tasks can have a directory in common, below AllocDir. Shares says whether a task is such a one.
type Sharer interface {
	Shares(t *model.Task) bool
}

// SharedDir is where a task with a file system of its own has the allocation's directory (NOMAD_ALLOC_DIR). What all tasks share is data in it.
const SharedDir = "/alloc"

// Sweeper is implemented by drivers that can find what earlier processes left behind. Sweep destroys all of it but the
// tasks whose ids are kept. The agent calls it before it starts any task.
type Sweeper interface {
	Sweep(ctx context.Context, keep []string) error
}
