//go:build linux && cgo

package sandbox

import (
	"context"
	"crypto/rand"
	"errors"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// maxDepth bounds the descriptors that a deletion holds at a time. A deeper tree is folded: its directories are moved up
// to the top and deleted from there.
const maxDepth = 64

// removal is one deletion below a directory, top. Errors are passed over: a tenant who puts back what is deleted only
// keeps his own files, and each directory is read once.
type removal struct {
	ctx    context.Context //nolint:containedctx // the value lives for one call
	top    int
	folded []string // names in top that are still to be deleted
}

// delete removes one entry of a request, recursively, and never follows a link out of the parent that it resolved.
func (w *writer) delete(ctx context.Context, name string) {
	all := name == "./*"
	target := path.Clean(w.files.below(name))
	if all {
		target = path.Join(w.files.sandbox.spec.Root.WorkDir, "any")
	}
	if target == "/" {
		return
	}
	top, err := w.open(path.Dir(target), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(top) }()
	names := []string{path.Base(target)}
	if all {
		names, _ = entries(top)
		names = slices.DeleteFunc(names, func(n string) bool { return n[0] == '.' })
	}
	r := &removal{ctx: ctx, top: top, folded: names}
	for len(r.folded) > 0 {
		next := r.folded[0]
		r.folded = r.folded[1:]
		r.remove(top, next, 0)
	}
}

// mountedOn says whether something is mounted on an entry. The kernel protects only the mount points of the caller's own namespace: the node
// could remove one of a sandbox, or rename over it, and so take away /proc, /dev or what hides files of the node.
func mountedOn(dir int, name string) bool {
	var s unix.Statx_t
	err := unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &s)
	return err == nil && s.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// remove takes away an entry with all that is below it; of what something is mounted on, only what is in there.
func (r *removal) remove(dir int, name string, depth int) {
	mounted := mountedOn(dir, name)
	if !mounted {
		if err := unix.Unlinkat(dir, name, 0); err == nil || errors.Is(err, unix.ENOENT) {
			return
		}
	}
	if r.ctx.Err() != nil {
		return
	}
	if depth >= maxDepth {
		folded := ".rockpool-" + rand.Text()
		if unix.Renameat2(dir, name, r.top, folded, unix.RENAME_NOREPLACE) == nil {
			r.folded = append(r.folded, folded)
		}
		return
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	names, _ := entries(fd)
	for _, n := range names {
		r.remove(fd, n, depth+1)
	}
	_ = unix.Close(fd)
	if !mounted {
		_ = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	}
}
