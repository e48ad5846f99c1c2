package sandbox

import (
	"os"
	"time"
)

// Spec says what one sandbox is made of. It is plain data, kept on disk beside the sandbox so that a later process of
// the node can take the sandbox back.
type Spec struct {
	ID       string // unique for ever on this node: [a-zA-Z0-9-]{1,64}
	Hostname string // shown inside; empty = "runner"
	Root     Root
	Limits   Limits
	NetNS    string   // path of a network namespace that the node made and filled; "" = an own one with loopback only
	Devices  []Device `json:",omitempty"`
}

// Device is a device of the node that a sandbox is given. Its node is made in the private /dev for every user inside. A sandbox with devices may open these, and
// the harmless ones that each has, and no others: the control group holds it to that, whatever nodes there are. OCI runtimes with a kernel of their own refuse it.
type Device struct {
	Path         string // inside: absolute, below /dev
	Source       string // its node on this machine: absolute
	Major, Minor uint32
	Block        bool   `json:",omitempty"` // else a character device
	Access       string // what may be done with it: "r", "w" or "rw"
}

// Root is the root file system a sandbox starts from, made by package image. Nothing of it is ever written: the sandbox
// puts a bounded writable layer of its own on top.
type Root struct {
	Lower   []string // overlay lower directories on the node, topmost first; at least one
	Binds   []Bind   // read-only binds on top of the overlay, in order
	Env     []string // KEY=VALUE defaults of the image
	WorkDir string   // absolute; "" = /workspace
	User    string   // user of a task's main process; "" = root
}

// Bind shows one directory or file of the node inside, read-only, nosuid, nodev, not recursive.
type Bind struct {
	Source string // absolute path on the node; "" = a directory with nothing but Links in it, which hides what is at Target
	Target string // absolute path inside; exists in a lower directory, if it is no directory and not Made
	// Made has what the image lacks of Target made, a file too, and follows no link of the image on the way, but those of a merged /usr, such as /lib to usr/lib.
	Made  bool              `json:",omitempty"`
	Links map[string]string `json:",omitempty"` // symbolic links in a directory without a Source: plain names to what they say
	// Writable lets the inside write to a directory. What it writes has on the node the ids that it has inside, root's among them, so the directory must lie
	// on a bounded file system of its own, mounted nosuid, where nobody but root comes. OCI runtimes refuse it.
	Writable bool `json:",omitempty"`
}

// Limits bound what one sandbox can take. Zero means the default given with each field.
type Limits struct {
	MemoryBytes   int64   // RAM and swap together, for all processes; default 512 MiB
	CPUShares     int64   // relative weight in Nomad's MHz; default 100
	CPUQuota      float64 // hard cap in cores; 0 = none
	PIDs          int64   // processes and threads; default 512
	DiskBytes     int64   // writable layer, /workspace, /tmp and homes together; default 256 MiB
	DiskInodes    int64   // default 65536
	OpenFiles     int64   // RLIMIT_NOFILE; default 4096
	FileSizeBytes int64   // RLIMIT_FSIZE; default DiskBytes
	IOBytes       int64   // read from, and as much written to, each block device that the root lies on, in a second; 0 = not bounded
	IOPS          int64   // the same in operations; 0 = not bounded
}

// ExecSpec is one program to run inside a sandbox.
type ExecSpec struct {
	ID          string   // unique within the sandbox: [a-zA-Z0-9-]{1,64}
	Argv        []string // at least one; Argv[0] is looked up in the PATH of Env
	Env         []string // KEY=VALUE, complete: nothing is added but what the image's Root.Env gives as defaults
	Dir         string   // absolute path inside; "" = the root's WorkDir
	User        string   // name in the sandbox's /etc/passwd, or decimal uid; "" = root
	TTY         bool     // a pseudo-terminal for stdin and stdout
	Width       uint16   // of the terminal in columns; 0 = unset
	Height      uint16   // in rows; 0 = unset
	MergeStderr bool     // stderr goes where stdout goes; else it has a FIFO of its own

	TimeLimit   time.Duration // wall time after which it is ended with VerdictTime; 0 = none
	CPULimit    time.Duration // CPU time of all its processes together, likewise; 0 = none
	OutputLimit int64         // bytes of stdout and stderr together, after which it is ended with VerdictOutput; 0 = none
	Grace       time.Duration // between QUIT to the main process and KILL of the group where a limit ends it; 0 = KILL at once
	Background  bool          // what the main process leaves behind lives on until the sandbox ends: a service
	Keep        bool          // it goes on without the node's process, and a later one takes it back by Resume: once in a sandbox, without terminal and limits. OCI runtimes take no notice

	extra []*os.File // what an interpreter that waits finds open beside its streams
}

// Verdict says what ended an execution. It comes from the kernel's counters and the node's clock, never from output.
type Verdict string

// Verdicts of an execution.
const (
	VerdictExit   Verdict = "exit"         // the main process returned by itself
	VerdictSignal Verdict = "signal"       // a signal ended it that no limit and no kill of the node explains
	VerdictKilled Verdict = "killed"       // the node was asked to kill it
	VerdictTime   Verdict = "time limit"   // TimeLimit
	VerdictCPU    Verdict = "cpu limit"    // CPULimit
	VerdictMemory Verdict = "memory limit" // the kernel killed its main process, or all of the sandbox, for memory
	VerdictOutput Verdict = "output limit" // OutputLimit
)

// Result is how an execution ended. Verdicts come from the kernel's counters, never from output.
type Result struct {
	Verdict     Verdict
	ExitCode    int           // 0 to 255; 128+n when ended by signal n
	Signal      int           // number of the ending signal, 0 when the program returned by itself
	OOMKilled   bool          // the kernel killed a process of this execution for memory
	CPUTime     time.Duration // user and system, of all processes
	WallTime    time.Duration
	PeakMemory  int64 // bytes; 0 when the kernel does not count it
	OutputBytes int64 // of stdout and stderr together, as read by the node
	Warm        bool  // it took over an interpreter that waited, see Sandbox.Warm
}

// Exit is how a whole sandbox ended.
type Exit struct {
	OOMKilled bool // the runner's control group was killed for memory
	Removed   bool // Destroy was called
}

// Usage is what a sandbox uses at one moment.
type Usage struct {
	MemoryBytes int64
	PeakMemory  int64 // bytes, the most there ever was; 0 when the kernel does not count it
	CPUTime     time.Duration
	PIDs        int64
}

// Fence is one row of the containment table: what is in force on the running kernel, not what was configured.
type Fence struct {
	Wall    Wall
	Name    string // "namespace.user", "seccomp", "cgroup.memory", …
	InForce bool
	Detail  string // what was found, what was tried, or what is missing and what to do about it
	Note    bool   // tells about the machine: nothing that the containment rests on
}

// Wall is a part of the containment table.
type Wall string

// The parts, in the order of the table.
const (
	WallNamespaces Wall = "Namespaces"
	WallPrivilege  Wall = "Privilege"
	WallCalls      Wall = "System calls"
	WallFiles      Wall = "Files"
	WallResources  Wall = "Resource limits"
	WallGroups     Wall = "Control groups"
	WallMachine    Wall = "Machine"
)
