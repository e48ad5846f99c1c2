//go:build linux && cgo

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Here is what package oci shares with this one: the same specification, files, accounts and system calls behind another
// wall.

// Checked fills in the defaults of a specification and refuses what no sandbox can be made of.
func Checked(spec Spec) (Spec, error) { return checkedSpec(spec) }

// WithDefaultsFrom adds the image's variables that a request does not set itself.
func WithDefaultsFrom(env, defaults []string) []string { return withDefaultsFrom(env, defaults) }

// SystemCallFilter is the allow list as a program for seccomp(2), in the machine's byte order, and its name in the table of
// fences.
func SystemCallFilter() (program []byte, name string, err error) {
	program, err = systemCallFilter()
	return program, filterHash(program), err
}

// OwnDir is a directory that every sandbox starts with, empty and writable.
type OwnDir struct {
	Path     string
	Mode     uint32
	UID, GID uint32 // as they are inside
}

// OwnDirs are those of a root.
func OwnDirs(root Root) []OwnDir {
	var all []OwnDir
	for _, d := range ownDirs(root, lowerUsers(root.Lower)) {
		all = append(all, OwnDir{d.path, d.mode, d.uid, d.gid})
	}
	return all
}

// LowersOf gathers the lower directories of the sandboxes that a list names; one that went meanwhile has none.
func LowersOf(list func() ([]string, error), read func(id string) (Spec, error)) ([]string, error) {
	ids, err := list()
	if err != nil {
		return nil, err
	}
	var all []string
	for _, id := range ids {
		spec, err := read(id)
		switch {
		case errors.Is(err, ErrUnknown): // removed since, or not yet begun
		case err != nil:
			return nil, fmt.Errorf("sandbox %s: %w", id, err)
		default:
			all = append(all, spec.Root.Lower...)
		}
	}
	return all, nil
}

// FilesOf gives access to a tree on the node that is another sandbox's root, whose ids start at idBase. There is no process
// to look with: /proc is what lies in the tree. The caller keeps root open and closes it.
func FilesOf(root *os.File, idBase uint32, of Root) *Files {
	return &Files{&Sandbox{runtime: &Runtime{cfg: Config{IDBase: idBase}}, root: root, spec: Spec{Root: of}}}
}

// User is who a program runs as, in ids as they are inside.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// LookUp finds a user by name in the tree's own /etc/passwd, or takes a decimal uid; "" = root. See [ErrNoUser].
func (f *Files) LookUp(name string) (User, error) {
	id, err := f.sandbox.lookUp(name)
	return User{id.uid, id.gid, id.groups}, err
}

// OpenInside opens a path as a sandbox would see it below root, which is never left (openat2(2)).
func OpenInside(root *os.File, path string, flags int) (*os.File, error) {
	fd, err := openBelow(root, path, uint64(flags), 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// PlaceInside opens where something of the node is to show below root, and makes what is missing of the path, as directories and in the end an empty file of the owner's, or a
// directory. No link of the image is followed, but those of a merged /usr, such as /lib to usr/lib.
func PlaceInside(root *os.File, target string, directory bool, owner uint32) (*os.File, error) {
	names := strings.Split(strings.TrimPrefix(target, "/"), "/")
	at := root
	for i, name := range names {
		last := i == len(names)-1
		next, err := placeOne(at, name, !last || directory, i == 0 && !last, owner)
		if at != root {
			_ = at.Close()
		}
		if err != nil {
			return nil, &os.PathError{Op: "place", Path: target, Err: err}
		}
		at = next
	}
	return at, nil
}

func placeOne(at *os.File, name string, directory, top bool, owner uint32) (*os.File, error) {
	const flags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	dir := int(at.Fd())
	if name == "" || name == "." || name == ".." {
		return nil, unix.EINVAL
	}
	fd, err := unix.Openat(dir, name, flags, 0)
	if errors.Is(err, unix.ENOENT) {
		if directory {
			err = unix.Mkdirat(dir, name, 0o755)
		} else if file, made := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o444); made == nil {
			err = unix.Close(file)
		} else {
			err = made
		}
		if err == nil {
			err = unix.Fchownat(dir, name, int(owner), int(owner), unix.AT_SYMLINK_NOFOLLOW)
		}
		if err == nil {
			fd, err = unix.Openat(dir, name, flags, 0)
		}
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	var found unix.Stat_t
	if err := unix.Fstat(fd, &found); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	switch kind := found.Mode & unix.S_IFMT; {
	case directory && kind == unix.S_IFDIR, !directory && kind == unix.S_IFREG:
		return f, nil
	case kind != unix.S_IFLNK:
		_ = f.Close()
		return nil, unix.ENOTDIR
	}
	_ = f.Close()
	text := make([]byte, 64)
	n, err := unix.Readlinkat(dir, name, text)
	if err != nil || !top || strings.TrimPrefix(string(text[:n]), "/") != "usr/"+name {
		return nil, unix.ELOOP
	}
	fd, err = unix.Openat2(dir, "usr/"+name, &unix.OpenHow{Flags: flags | unix.O_DIRECTORY, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Groups are the control groups of one name, in every hierarchy that bounds a sandbox.
type Groups struct{ group group }

// GroupParent makes the group that holds all sandboxes, where it is not there yet, and gives those below it by name.
func GroupParent(parent string) (func(name string) Groups, error) {
	hierarchies, err := findHierarchies(parent)
	if len(hierarchies) == 0 {
		return nil, fmt.Errorf("no control groups can be made: mount them, or delegate a group to this service: %w", err)
	}
	if err := (group{hierarchies: hierarchies}).boundTogether(); err != nil {
		return nil, err
	}
	return func(name string) Groups { return Groups{group{hierarchies: hierarchies, rel: name}} }, nil
}

// Make makes the groups and bounds what will be in them.
func (g Groups) Make(l Limits) error {
	if err := g.group.make(); err != nil {
		return err
	}
	return g.group.limit(l)
}

// AllowDevices holds what will be in the groups to these devices, and the harmless ones that each sandbox has. None = there is no such rule.
func (g Groups) AllowDevices(given []Device) error {
	if len(given) == 0 {
		return nil
	}
	for _, h := range g.group.hierarchies {
		if h.has("devices") || h.unified && h.has("pids") {
			return holdTo(g.group.path(h), h.unified, given)
		}
	}
	return fmt.Errorf("%w devices: %s", ErrInvalid, noDeviceControl)
}

// Join opens what a process writes "0" to in order to enter the groups.
func (g Groups) Join() ([]*os.File, error) { return g.group.join() }

// Counters are figures of the kernel; one that the machine does not keep is zero.
type Counters struct {
	MemoryBytes, OOMKills, PIDs int64
	CPUTime                     time.Duration
}

// Counters reads what everything in the groups uses.
func (g Groups) Counters() Counters {
	c := g.group.counters()
	return Counters{MemoryBytes: c.memory, OOMKills: c.oomKills, PIDs: c.pids, CPUTime: c.cpu}
}

// Bounds says whether a controller is there to bound the groups with.
func (g Groups) Bounds(controller string) bool {
	_, ok := g.group.file(controller, "-", "-")
	return ok
}

// End kills what is in the groups and removes them. Groups that are not there are no error.
func (g Groups) End(ctx context.Context) error {
	present := g.group
	present.hierarchies = slices.DeleteFunc(slices.Clone(present.hierarchies), func(h hierarchy) bool {
		_, err := os.Stat(present.path(h))
		return errors.Is(err, os.ErrNotExist)
	})
	if err := present.clear(ctx); err != nil {
		return err
	}
	return g.removeOthers()
}

// removeOthers takes away the groups of this name in the hierarchies that bound nothing here: a runtime that makes groups makes
// them in every one, beside ours.
func (g Groups) removeOthers() error {
	for _, h := range g.group.hierarchies {
		if h.unified {
			continue
		}
		parent := filepath.Base(h.base)
		others, err := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(h.base)), "*", parent, g.group.rel))
		if err != nil {
			return err
		}
		for _, path := range others {
			if err := removeTree(path); err != nil {
				return fmt.Errorf("remove control group: %w", err)
			}
		}
		return nil // the hierarchies are mounted side by side
	}
	return nil
}
