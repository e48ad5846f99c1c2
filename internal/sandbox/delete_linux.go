//go:build linux && cgo

package sandbox

import (
	"context"
	"crypto/rand"
	"errors"
	"path"

	"golang.org/x/sys/unix"
)

// maxDepth bounds the descriptors that a deletion holds at a time. A deeper tree is folded: its directories are moved up
// to the top and deleted from there.
const maxDepth = 64

// delete removes one entry of a request, recursively, and never follows a link out of the parent that it resolved.
func (w *writer) delete(ctx context.Context, name string) {
	if name == "./*" {
		fd, err := w.open(w.files.sandbox.spec.Root.WorkDir, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return
		}
		defer func() { _ = unix.Close(fd) }()
		names, _ := entries(fd)
		for _, n := range names {
			if n[0] != '.' {
				w.remove(ctx, fd, fd, n, 0)
			}
		}
		return
	}
	target := path.Clean(w.files.below(name))
	if target == "/" {
		return
	}
	parent, err := w.open(path.Dir(target), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(parent) }()
	w.remove(ctx, parent, parent, path.Base(target), 0)
}

// remove deletes a name in a directory. Errors are passed over: a tenant who puts back what is deleted only loses time, as
// each directory is read a bounded number of times.
func (w *writer) remove(ctx context.Context, top, dir int, name string, depth int) {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) || ctx.Err() != nil {
		return
	}
	if depth >= maxDepth {
		folded := ".rockpool-" + rand.Text()
		if unix.Renameat2(dir, name, top, folded, unix.RENAME_NOREPLACE) == nil {
			w.remove(ctx, top, top, folded, 1)
		}
		return
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	for range 3 {
		names, _ := entries(fd)
		for _, n := range names {
			w.remove(ctx, top, fd, n, depth+1)
		}
		if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err == nil || !errors.Is(err, unix.ENOTEMPTY) {
			break
		}
		if _, err := unix.Seek(fd, 0, 0); err != nil {
			break
		}
	}
	_ = unix.Close(fd)
}
