package sandboxed

import (
	"context"
	"io"

	"rockpool/internal/image"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/sandbox"
)

// Runtime is the node's side of all sandboxes.
type Runtime interface {
	Create(ctx context.Context, spec sandbox.Spec) (Sandbox, error)
	Attach(ctx context.Context, id string) (Sandbox, error)
	List() ([]string, error)
	Remove(ctx context.Context, id string) error
	Fences() []sandbox.Fence
}

// Sandbox is one sandbox.
type Sandbox interface {
	Exec(ctx context.Context, spec sandbox.ExecSpec) (Execution, error)
	Resume(ctx context.Context) (Execution, error) // what was started with Keep; sandbox.ErrNotKept where the runtime keeps nothing
	Done() <-chan struct{}
	Exit() sandbox.Exit
	Usage() (sandbox.Usage, error)
	Destroy(ctx context.Context) error
	Files() driver.Files
}

// Execution is a program inside.
type Execution interface {
	Stdin() io.WriteCloser
	Stdout() io.Reader
	Stderr() io.Reader
	Resize(width, height uint16) error
	Signal(n int) error
	Kill() error
	Done() <-chan struct{}
	Result() (sandbox.Result, error)
}

// Keeper is implemented by executions that can go on without the node's process, when they were started with Keep.
type Keeper interface {
	LetGo()
}

// Images turns an image reference into a root file system, which stays for as long as it is leased.
type Images interface {
	Acquire(ctx context.Context, ref string, o image.Options) (*image.Image, error)
}
