package sandboxed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"syscall"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/sandbox"
)

// Files makes a task's files of a sandbox's.
func Files(inner *sandbox.Files) driver.Files { return nativeFiles{inner} }

// nativeFiles translates between the sandbox's files and those of a task.
type nativeFiles struct{ inner *sandbox.Files }

// Apply deletes and unpacks. What could not be written is for the client to read: the names are its own.
func (f nativeFiles) Apply(ctx context.Context, deletes []string, archive io.Reader) error {
	err := f.inner.Apply(ctx, deletes, archive)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("copy files: %w", context.Cause(ctx))
	}
	if err = translateFile(err); errors.Is(err, driver.ErrTaskGone) {
		return err
	}
	return fault.Wrap(fault.Unprocessable, err, "%v", err)
}

func (f nativeFiles) List(ctx context.Context, path string, recursive bool, user string) iter.Seq2[driver.FileInfo, error] {
	return func(yield func(driver.FileInfo, error) bool) {
		entries, err := f.inner.List(ctx, sandbox.ListSpec{Path: path, Recursive: recursive, User: user})
		if err != nil {
			yield(driver.FileInfo{}, translateFile(err))
			return
		}
		for e, err := range entries {
			if err != nil {
				yield(driver.FileInfo{}, translateFile(err))
				return
			}
			if !yield(fileInfo(e), nil) {
				return
			}
		}
	}
}

func (f nativeFiles) Open(ctx context.Context, path, user string) (io.ReadCloser, driver.FileInfo, error) {
	r, info, err := f.inner.Open(ctx, path, user)
	if err != nil {
		return nil, driver.FileInfo{}, translateFile(err)
	}
	i := fileInfo(info)
	if info.SizeUnknown {
		i.Size = -1
	}
	return r, i, nil
}

func fileInfo(i sandbox.FileInfo) driver.FileInfo {
	return driver.FileInfo{Name: i.Name, Type: string(rune(i.Type)), LinkTarget: i.LinkTarget, Size: i.Size, ModTime: i.ModTime.Unix(),
		Permissions: i.Permissions(), Owner: i.Owner, Group: i.Group}
}

func translateFile(err error) error {
	for _, m := range []struct{ is, means error }{
		{sandbox.ErrEnded, driver.ErrTaskGone},
		{sandbox.ErrNotRegular, driver.ErrNotRegular},
		{fs.ErrNotExist, driver.ErrNotFound},
		{syscall.ENOTDIR, driver.ErrNotFound},
		{syscall.ELOOP, driver.ErrNotFound},
		{fs.ErrPermission, driver.ErrPermission},
	} {
		if errors.Is(err, m.is) {
			return marked{err, m.means}
		}
	}
	return err
}

// marked is an error with a meaning beside its text, which stays as it is.
type marked struct{ text, means error }

func (m marked) Error() string   { return m.text.Error() }
func (m marked) Unwrap() []error { return []error{m.text, m.means} }
