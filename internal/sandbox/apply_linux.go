//go:build linux && cgo

package sandbox

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxReported bounds the errors that one request gathers.
const maxReported = 32

// Apply deletes, then unpacks a tar archive, both as root of the sandbox. A deletion that fails is passed over. The entry
// "./*" deletes what is not hidden in the working directory; every other one is taken literally. An archive may hold regular
// files and directories. Files that could not be written are named in the error, and the others are written.
func (f *Files) Apply(ctx context.Context, deletes []string, archive io.Reader) error {
	return f.sandbox.runAs(identity{}, rootWrites, func(*thread) error {
		w := &writer{files: f, base: f.sandbox.runtime.idBase(f.sandbox.slot), dated: map[string]time.Time{}}
		for _, name := range deletes {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			w.delete(ctx, name)
		}
		if archive == nil {
			return nil
		}
		return w.unpack(ctx, tar.NewReader(archive))
	})
}

// maxDated bounds the directories whose time is set again in the end.
const maxDated = 4096

// writer acts with root's power over the sandbox's files; it is used on such a thread only.
type writer struct {
	files *Files
	base  uint32
	dated map[string]time.Time // directories of the archive: what is written into them afterwards moves their time
}

func (w *writer) open(name string, flags uint64) (int, error) {
	return openBelow(w.files.sandbox.root, name, flags, 0)
}

func (w *writer) unpack(ctx context.Context, archive *tar.Reader) error {
	defer w.date()
	var failed []error
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		entry, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return errors.Join(failed...)
		}
		if err != nil {
			return errors.Join(append(failed, fmt.Errorf("read archive: %w", err))...)
		}
		if err := w.entry(ctx, entry, archive); err != nil && len(failed) < maxReported {
			failed = append(failed, fmt.Errorf("%s: %w", entry.Name, err))
		}
	}
}

func (w *writer) entry(ctx context.Context, entry *tar.Header, content io.Reader) error {
	if entry.Uid < 0 || entry.Uid >= idsPerSandbox || entry.Gid < 0 || entry.Gid >= idsPerSandbox || strings.ContainsRune(entry.Name, 0) {
		return fmt.Errorf("%w owner or name", ErrInvalid)
	}
	target := path.Clean(w.files.below(entry.Name))
	switch entry.Typeflag {
	case tar.TypeDir:
		fd, err := w.makeDirs(target)
		if err != nil {
			return refused(cannotOpen, err)
		}
		defer func() { _ = unix.Close(fd) }()
		if _, known := w.dated[target]; known || len(w.dated) < maxDated {
			w.dated[target] = entry.ModTime
		}
		return w.dress(fd, entry)
	case tar.TypeReg:
		return w.file(ctx, target, entry, content)
	default:
		return fmt.Errorf("%w entry: neither a regular file nor a directory", ErrInvalid)
	}
}

// makeDirs opens a directory, and makes what is missing of its path with the default mode.
func (w *writer) makeDirs(target string) (int, error) {
	fd, err := w.open(target, unix.O_RDONLY|unix.O_DIRECTORY)
	if !errors.Is(err, unix.ENOENT) || target == "/" {
		return fd, err
	}
	parent, err := w.makeDirs(path.Dir(target))
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(parent) }()
	if err := unix.Mkdirat(parent, path.Base(target), 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	return w.open(target, unix.O_RDONLY|unix.O_DIRECTORY)
}

// dress gives an open file or directory the owner, mode and time of its entry; the mode last, as chown clears bits of it.
func (w *writer) dress(fd int, entry *tar.Header) error {
	if err := unix.Fchown(fd, int(w.base)+entry.Uid, int(w.base)+entry.Gid); err != nil {
		return fmt.Errorf("cannot change owner: %w", err)
	}
	if err := unix.Fchmod(fd, uint32(entry.Mode)&0o7777); err != nil {
		return fmt.Errorf("cannot change mode: %w", err)
	}
	if err := setTime(fd, entry.ModTime); err != nil {
		return fmt.Errorf("cannot change time: %w", err)
	}
	return nil
}

func setTime(fd int, t time.Time) error {
	var when unix.Timespec
	if !t.IsZero() {
		when = unix.NsecToTimespec(t.UnixNano())
	}
	return unix.UtimesNanoAt(fd, "", []unix.Timespec{when, when}, unix.AT_EMPTY_PATH)
}

// date gives the archive's directories their times, as tar does once everything is in them. A program may have taken one away meanwhile: that is its own affair.
func (w *writer) date() {
	for target, t := range w.dated {
		if fd, err := w.open(target, unix.O_RDONLY|unix.O_DIRECTORY); err == nil {
			_ = setTime(fd, t)
			_ = unix.Close(fd)
		}
	}
}

// GNU tar's words, which clients look for.
const (
	cannotOpen  = "Cannot open"
	cannotWrite = "Cannot write"
)

func refused(what string, err error) error { return fmt.Errorf("%s: %w", what, err) }

// file writes under another name and renames: a program that reads or runs the old file keeps it, whole.
func (w *writer) file(ctx context.Context, target string, entry *tar.Header, content io.Reader) error {
	parent, err := w.makeDirs(path.Dir(target))
	if err != nil {
		return refused(cannotOpen, err)
	}
	defer func() { _ = unix.Close(parent) }()
	temporary := ".rockpool-" + rand.Text()
	fd, err := unix.Openat(parent, temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return refused(cannotOpen, err)
	}
	defer func() { _ = unix.Close(fd) }()
	err = copyTo(ctx, fd, content)
	if err == nil {
		err = w.dress(fd, entry)
	}
	if err == nil && mountedOn(parent, path.Base(target)) {
		err = refused(cannotOpen, unix.EBUSY)
	}
	if err == nil {
		if err = unix.Renameat(parent, temporary, parent, path.Base(target)); err == nil {
			return nil
		}
		err = refused(cannotOpen, err)
	}
	_ = unix.Unlinkat(parent, temporary, 0)
	return err
}

// copied is what contents are copied through: most are far smaller.
var copied = sync.Pool{New: func() any { return new([64 << 10]byte) }}

func copyTo(ctx context.Context, fd int, content io.Reader) error {
	held := copied.Get().(*[64 << 10]byte)
	defer copied.Put(held)
	buffer := held[:]
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, readErr := content.Read(buffer)
		for rest := buffer[:n]; len(rest) > 0; {
			written, err := unix.Write(fd, rest)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return refused(cannotWrite, err)
			}
			rest = rest[written:]
		}
		if errors.Is(readErr, io.EOF) {
			return nil
		}
		if readErr != nil {
			return fmt.Errorf("read archive: %w", readErr)
		}
	}
}
