package sandboxed

import (
	"context"

	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/sandbox"
)

// concreteRuntime is a runtime whose methods return its own types.
type concreteRuntime[S any] interface {
	Create(ctx context.Context, spec sandbox.Spec) (S, error)
	Attach(ctx context.Context, id string) (S, error)
	List() ([]string, error)
	Remove(ctx context.Context, id string) error
	Fences() []sandbox.Fence
}

type concreteSandbox[E any] interface {
	Exec(ctx context.Context, spec sandbox.ExecSpec) (E, error)
	Done() <-chan struct{}
	Exit() sandbox.Exit
	Usage() (sandbox.Usage, error)
	Destroy(ctx context.Context) error
}

// Bind makes a Runtime of one that returns its own types. Files gives access to a sandbox's files, or nil; translate turns its errors into those of package driver.
func Bind[R concreteRuntime[S], S concreteSandbox[E], E Execution](
	r R, files func(S) driver.Files, translate func(error) error) Runtime {
	return bound[R, S, E]{r, files, translate}
}

type bound[R concreteRuntime[S], S concreteSandbox[E], E Execution] struct {
	runtime   R
	files     func(S) driver.Files
	translate func(error) error
}

func (b bound[R, S, E]) Create(ctx context.Context, spec sandbox.Spec) (Sandbox, error) {
	s, err := b.runtime.Create(ctx, spec)
	if err != nil {
		return nil, b.translate(err)
	}
	return boundSandbox[S, E]{s, b.files, b.translate}, nil
}

func (b bound[R, S, E]) Attach(ctx context.Context, id string) (Sandbox, error) {
	s, err := b.runtime.Attach(ctx, id)
	if err != nil {
		return nil, b.translate(err)
	}
	return boundSandbox[S, E]{s, b.files, b.translate}, nil
}

func (b bound[R, S, E]) List() ([]string, error) { return b.runtime.List() }
func (b bound[R, S, E]) Remove(ctx context.Context, id string) error {
	return b.runtime.Remove(ctx, id)
}
func (b bound[R, S, E]) Fences() []sandbox.Fence { return b.runtime.Fences() }

type boundSandbox[S concreteSandbox[E], E Execution] struct {
	sandbox   S
	files     func(S) driver.Files
	translate func(error) error
}

func (b boundSandbox[S, E]) Exec(ctx context.Context, spec sandbox.ExecSpec) (Execution, error) {
	e, err := b.sandbox.Exec(ctx, spec)
	if err != nil {
		return nil, b.translate(err)
	}
	return e, nil
}

func (b boundSandbox[S, E]) Resume(ctx context.Context) (Execution, error) {
	keeps, ok := any(b.sandbox).(interface {
		Resume(ctx context.Context) (E, error)
	})
	if !ok {
		return nil, b.translate(sandbox.ErrNotKept)
	}
	e, err := keeps.Resume(ctx)
	if err != nil {
		return nil, b.translate(err)
	}
	return e, nil
}

func (b boundSandbox[S, E]) Warm(ctx context.Context, spec sandbox.WarmSpec) error {
	w, ok := any(b.sandbox).(Warmer)
	if !ok {
		return driver.ErrNotSupported
	}
	return w.Warm(ctx, spec)
}

func (b boundSandbox[S, E]) Done() <-chan struct{}             { return b.sandbox.Done() }
func (b boundSandbox[S, E]) Exit() sandbox.Exit                { return b.sandbox.Exit() }
func (b boundSandbox[S, E]) Usage() (sandbox.Usage, error)     { return b.sandbox.Usage() }
func (b boundSandbox[S, E]) Destroy(ctx context.Context) error { return b.sandbox.Destroy(ctx) }
func (b boundSandbox[S, E]) Files() driver.Files               { return b.files(b.sandbox) }
