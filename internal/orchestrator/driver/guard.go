package driver

import (
	"context"
	"io"
	"iter"
)

// FilesUntil gives access to a task's files until gone says that the task stops: from then on it is ErrTaskGone, whatever the runtime still allows. The root
// of a container can be reached for a moment longer than the container is said to run.
func FilesUntil(gone func() bool, files Files) Files {
	if files == nil {
		return nil
	}
	return guarded{files, gone}
}

type guarded struct {
	files Files
	gone  func() bool
}

func (g guarded) Apply(ctx context.Context, deletes []string, archive io.Reader) error {
	if g.gone() {
		return ErrTaskGone
	}
	return g.files.Apply(ctx, deletes, archive)
}

func (g guarded) List(ctx context.Context, path string, recursive bool, user string) iter.Seq2[FileInfo, error] {
	if g.gone() {
		return func(yield func(FileInfo, error) bool) { yield(FileInfo{}, ErrTaskGone) }
	}
	return g.files.List(ctx, path, recursive, user)
}

func (g guarded) Open(ctx context.Context, path, user string) (io.ReadCloser, FileInfo, error) {
	if g.gone() {
		return nil, FileInfo{}, ErrTaskGone
	}
	return g.files.Open(ctx, path, user)
}
