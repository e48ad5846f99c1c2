package execution

import (
	"context"
	"errors"
	"io"
	"time"
)

// Place is where a runner's programs are started.
type Place struct{ AllocID, NodeID string }

// Size is that of a terminal.
type Size struct{ Width, Height uint16 }

// Spec is one program to start. Everything is data; nothing of it is shell text but the command itself.
type Spec struct {
	ID          string
	Command     string // for bash -c
	Env         map[string]string
	Privileged  bool
	TTY         bool
	SplitStderr bool
	TimeLimit   time.Duration // after which the node kills it, whatever became of the gateway; 0 = none
	OutputLimit int64         // bytes of stdout and stderr together, likewise; 0 = none
}

// Stdio is what a program is connected to.
type Stdio struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan Size
}

// Exit is how a program ended, and how it was started.
type Exit struct {
	Code  int
	Start Start

	// Unproved is that of a program that was killed with all that could have told of it: it may be that the whole runner was, and that news of this follows.
	Unproved bool
}

// Start is how a program was started whose runner is kept warm; "" = it is not, or nobody knows.
type Start string

// The ways of starting.
const (
	Warm Start = "warm" // it took over an interpreter that waited
	Cold Start = "cold" // it did not
)

// Result is how a program ended.
type Result struct {
	ExitCode   int
	OOMKilled  bool // the kernel killed in its control group
	Killed     bool // by a signal that it could not handle
	CPUTime    time.Duration
	WallTime   time.Duration
	PeakMemory int64 // bytes
	// Verdict is the node's own word on what ended the program; VerdictOutput is acted on, the others are passed on.
	Verdict     string
	OutputBytes int64
}

// VerdictOutput is that of a program that wrote more than it may.
const VerdictOutput = "output limit"

// ErrNotOffered says that the cluster has no such operation.
var ErrNotOffered = errors.New("the cluster does not offer this")

// ErrLeftRunning says of an exec that failed that its program could not be ended, so that the runner is of no more use.
var ErrLeftRunning = errors.New("a program was left running")

// Executor starts programs in runners.
type Executor interface {
	// Exec returns when the program has ended and all its output was written. An error means that the outcome is not known, ErrLeftRunning in it that the program
	// may go on. Stdin is closed in the end, where it is an io.Closer.
	Exec(ctx context.Context, at Place, spec Spec, stdio Stdio) (Exit, error)
	// Result asks for the outcome of a program that has ended.
	Result(ctx context.Context, at Place, id string) (Result, error)
	Signal(ctx context.Context, at Place, id, signal string) error
	// Kill ends everything that belongs to the execution.
	Kill(ctx context.Context, at Place, id string) error
}
