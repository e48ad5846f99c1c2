//go:build !linux || !cgo

package sandbox

import (
	"context"
	"errors"
	"io"
	"iter"
)

var errUnsupported = errors.New("sandboxes need Linux and a build with cgo: use another driver on this node, or the Linux build")

// Runtime cannot exist in this build: New fails.
type Runtime struct{}

// Sandbox cannot exist in this build.
type Sandbox struct{}

// Execution cannot exist in this build.
type Execution struct{}

// Files cannot exist in this build.
type Files struct{}

// New says what to do instead.
func New(Config) (*Runtime, error) { return nil, errUnsupported }

// Fences says that no wall stands.
func (*Runtime) Fences() []Fence {
	return []Fence{{Name: "sandbox", Detail: errUnsupported.Error()}}
}

// SelfTest fails.
func (*Runtime) SelfTest(context.Context, Root) error { return errUnsupported }

// Create fails.
func (*Runtime) Create(context.Context, Spec) (*Sandbox, error) { return nil, errUnsupported }

// Attach fails.
func (*Runtime) Attach(context.Context, string) (*Sandbox, error) { return nil, errUnsupported }

// List fails.
func (*Runtime) List() ([]string, error) { return nil, errUnsupported }

// Lowers fails.
func (*Runtime) Lowers() ([]string, error) { return nil, errUnsupported }

// Remove fails.
func (*Runtime) Remove(context.Context, string) error { return errUnsupported }

// Close does nothing.
func (*Runtime) Close() error { return nil }

// ID is empty.
func (*Sandbox) ID() string { return "" }

// Spec is empty.
func (*Sandbox) Spec() Spec { return Spec{} }

// Exec fails.
func (*Sandbox) Exec(context.Context, ExecSpec) (*Execution, error) { return nil, errUnsupported }

// Warm fails.
func (*Sandbox) Warm(context.Context, WarmSpec) error { return errUnsupported }

// Done is nil.
func (*Sandbox) Done() <-chan struct{} { return nil }

// Resume fails.
func (*Sandbox) Resume(context.Context) (*Execution, error) { return nil, errUnsupported }

// Exit is empty.
func (*Sandbox) Exit() Exit { return Exit{} }

// Usage fails.
func (*Sandbox) Usage() (Usage, error) { return Usage{}, errUnsupported }

// Destroy fails.
func (*Sandbox) Destroy(context.Context) error { return errUnsupported }

// Files is nil.
func (*Sandbox) Files() *Files { return nil }

// ID is empty.
func (*Execution) ID() string { return "" }

// Stdin is nil.
func (*Execution) Stdin() io.WriteCloser { return nil }

// Stdout is nil.
func (*Execution) Stdout() io.Reader { return nil }

// Stderr is nil.
func (*Execution) Stderr() io.Reader { return nil }

// Resize fails.
func (*Execution) Resize(uint16, uint16) error { return errUnsupported }

// Signal fails.
func (*Execution) Signal(int) error { return errUnsupported }

// LetGo does nothing.
func (*Execution) LetGo() {}

// Kill fails.
func (*Execution) Kill() error { return errUnsupported }

// Done is nil.
func (*Execution) Done() <-chan struct{} { return nil }

// Result fails.
func (*Execution) Result() (Result, error) { return Result{}, errUnsupported }

// Apply fails.
func (*Files) Apply(context.Context, []string, io.Reader) error { return errUnsupported }

// List fails.
func (*Files) List(context.Context, ListSpec) (iter.Seq2[FileInfo, error], error) {
	return nil, errUnsupported
}

// Open fails.
func (*Files) Open(context.Context, string, string) (io.ReadCloser, FileInfo, error) {
	return nil, FileInfo{}, errUnsupported
}
