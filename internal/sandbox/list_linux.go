//go:build linux && cgo

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// listing is one walk over a tree, on a thread with the user's rights.
type listing struct {
	thread *thread
	names  accounts
	id     identity
	itself bool // the path is about /proc/self: the process looked at is the looker
	send   func(FileInfo) bool
}

const listBatch = 128

// List lists a directory as ls would, or names one file. Hidden files are left out; names are in byte order, one block for
// each directory, depth first. What may not be read is passed over; only a path that cannot be found is an error.
func (f *Files) List(ctx context.Context, spec ListSpec) (iter.Seq2[FileInfo, error], error) {
	if spec.Path == "" || strings.ContainsRune(spec.Path, 0) {
		return nil, fmt.Errorf("%w path", ErrInvalid)
	}
	id, err := f.sandbox.lookUp(spec.User)
	if err != nil {
		return nil, err
	}
	target, release, err := f.resolveSelf(ctx, f.below(spec.Path), id)
	if err != nil {
		return nil, err
	}
	defer release()
	l := &listing{names: f.names(), id: id, itself: target != f.below(spec.Path)}
	var top *os.File
	var single *FileInfo
	err = f.sandbox.runAs(id, readingRights(id), func(t *thread) error {
		l.thread = t
		return t.with(lookRights(id), func() error {
			top, single, err = l.find(f.sandbox.root, spec.Path, target)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list files: %w", err)
	}
	if single != nil {
		return func(yield func(FileInfo, error) bool) { yield(*single, nil) }, nil
	}
	prefix := ""
	if spec.Recursive {
		prefix = strings.TrimRight(spec.Path, "/") + "/"
	}
	return func(yield func(FileInfo, error) bool) {
		defer func() { _ = top.Close() }()
		f.walk(ctx, l, top, prefix, spec.Recursive, yield)
	}, nil
}

// find opens the top of a listing; what is no directory is the whole listing. A link counts itself, unless the path ends
// with a slash.
func (l *listing) find(root *os.File, shown, target string) (*os.File, *FileInfo, error) {
	fd, err := openBelow(root, target, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, err
	}
	top := os.NewFile(uintptr(fd), shown)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, nil, errors.Join(err, top.Close())
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		return top, nil, nil
	}
	defer func() { _ = top.Close() }()
	info := l.names.info(shown, &stat)
	if info.Type == 'l' {
		if !l.itself {
			if err := l.thread.use(0); err != nil {
				return nil, nil, err
			}
		}
		info.LinkTarget = readLink(fd, "")
	}
	return nil, &info, nil
}

// walk reads on one goroutine, which has the user's rights, and hands over batches to the caller's.
func (f *Files) walk(ctx context.Context, l *listing, top *os.File, prefix string, recursive bool, yield func(FileInfo, error) bool) {
	ctx, cancel := context.WithCancel(ctx)
	batches := make(chan []FileInfo, 1)
	finished := make(chan error, 1)
	var reading sync.WaitGroup
	defer reading.Wait()
	reading.Go(func() {
		defer close(batches)
		var batch []FileInfo
		flush := func() bool {
			select {
			case batches <- batch:
				batch = nil
				return true
			case <-ctx.Done():
				return false
			}
		}
		l.send = func(info FileInfo) bool {
			batch = append(batch, info)
			return len(batch) < listBatch || flush()
		}
		finished <- f.sandbox.runAs(l.id, readingRights(l.id)&^seesProcesses, func(t *thread) error {
			l.thread = t
			l.tree(int(top.Fd()), prefix, recursive)
			flush()
			return ctx.Err()
		})
	})
	stopped := false
	for batch := range batches {
		for i := 0; i < len(batch) && !stopped; i++ {
			if !yield(batch[i], nil) {
				stopped = true
				cancel()
			}
		}
	}
	err := <-finished
	cancel()
	if err != nil && !stopped {
		yield(FileInfo{}, err)
	}
}

// pending is a directory still to be shown; the path of its parent is shared by all of a block.
type pending struct{ parent, name string }

// tree shows a directory and what is below it. Each directory is opened from the top again, without following links, so
// that depth costs no descriptors; a path longer than the kernel takes is passed over.
func (l *listing) tree(top int, prefix string, recursive bool) {
	todo := []pending{{"", "."}}
	for len(todo) > 0 {
		next := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		place := next.parent + next.name
		how := unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		}
		fd, err := unix.Openat2(top, place, &how)
		if err != nil {
			continue
		}
		shown, inside := prefix, ""
		if place != "." {
			shown, inside = prefix+place+"/", place+"/"
		}
		dirs, more := l.block(fd, shown)
		_ = unix.Close(fd)
		if !more {
			return
		}
		if recursive {
			for _, name := range slices.Backward(dirs) {
				todo = append(todo, pending{inside, name})
			}
		}
	}
}

// block shows the entries of one directory and names its directories.
func (l *listing) block(fd int, prefix string) (dirs []string, more bool) {
	names, err := entries(fd)
	if err != nil {
		return nil, true
	}
	slices.Sort(names)
	for _, name := range names {
		if name[0] == '.' {
			continue
		}
		var stat unix.Stat_t
		if unix.Fstatat(fd, name, &stat, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		info := l.names.info(prefix+name, &stat)
		switch info.Type {
		case 'l':
			info.LinkTarget = readLink(fd, name)
		case 'd':
			dirs = append(dirs, name)
		}
		if !l.send(info) {
			return nil, false
		}
	}
	return dirs, true
}

// entries are the names in a directory, without "." and "..".
func entries(fd int) ([]string, error) {
	var names []string
	buffer := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(fd, buffer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buffer[:n], -1, names)
	}
}

func readLink(dir int, name string) string {
	buffer := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buffer)
	if err != nil {
		return ""
	}
	return string(buffer[:n])
}
