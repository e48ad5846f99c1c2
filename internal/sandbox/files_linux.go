//go:build linux && cgo

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Files is the node's access to the files of a sandbox: by descriptors below its root, never by a path of the host, and
// with the rights of the user it acts for. A tenant may change the tree at any time; what can be reached stays inside.
type Files struct{ sandbox *Sandbox }

// Files gives access to the sandbox's files.
func (s *Sandbox) Files() *Files { return &Files{s} }

// below makes a path absolute: a relative one starts at the working directory of the root. Trailing slashes stay.
func (f *Files) below(name string) string {
	if path.IsAbs(name) {
		return name
	}
	return strings.TrimRight(f.sandbox.spec.Root.WorkDir, "/") + "/" + name
}

// Open opens a regular file for reading with the user's rights; links are followed inside the root. Everything that is not
// a regular file is ErrNotRegular.
func (f *Files) Open(ctx context.Context, name, user string) (io.ReadCloser, FileInfo, error) {
	if err := ctx.Err(); err != nil {
		return nil, FileInfo{}, err
	}
	if name == "" || strings.ContainsRune(name, 0) {
		return nil, FileInfo{}, fmt.Errorf("%w path", ErrInvalid)
	}
	id, err := f.sandbox.lookUp(user)
	if err != nil {
		return nil, FileInfo{}, err
	}
	target, release, err := f.resolveSelf(ctx, f.below(name), id)
	if err != nil {
		return nil, FileInfo{}, err
	}
	defer release()
	var file *os.File
	var stat unix.Stat_t
	var onProc bool
	names := f.names()
	err = f.sandbox.runAs(id, readingRights(id), func(t *thread) error {
		var found int
		err := t.with(lookRights(id), func() (err error) {
			found, err = openBelow(f.sandbox.root, target, unix.O_PATH, 0)
			return err
		})
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(found) }()
		onProc = isProc(found)
		rights := uint32(rootReads)
		if onProc || id.uid != 0 {
			rights = 0 // the kernel's own files are for whoever they are for inside
		}
		return t.with(rights, func() (err error) {
			file, stat, err = reopenRegular(found, name)
			return err
		})
	})
	if err != nil {
		return nil, FileInfo{}, fmt.Errorf("open file: %w", err)
	}
	info := names.info(name, &stat)
	info.SizeUnknown = onProc
	return file, info, nil
}

func readingRights(id identity) uint32 {
	if id.uid == 0 {
		return rootReads | seesProcesses
	}
	return seesProcesses
}

// lookRights are in effect while a path is resolved.
func lookRights(id identity) uint32 { return readingRights(id) }

func isProc(fd int) bool {
	var s unix.Statfs_t
	return unix.Fstatfs(fd, &s) != nil || s.Type == unix.PROC_SUPER_MAGIC
}

// resolveSelf gives /proc/self a meaning: it names whoever looks, and the node is no process of the sandbox. A process of
// the user is started for the time of the look, in the working directory, which is what a shell there would see.
func (f *Files) resolveSelf(ctx context.Context, target string, id identity) (string, func(), error) {
	if f.sandbox.dir == nil { // a tree without processes, see FilesOf
		return target, func() {}, nil
	}
	for _, prefix := range []string{"/proc/self", "/proc/thread-self"} {
		rest, ok := strings.CutPrefix(path.Clean(target), prefix)
		if !ok || rest == "" || rest[0] != '/' {
			continue
		}
		pid, release, err := f.sandbox.hold(ctx, id)
		if err != nil {
			return "", nil, err
		}
		return "/proc/" + strconv.Itoa(pid) + rest, release, nil
	}
	return target, func() {}, nil
}

// hold starts a process that does nothing, as a user; release ends it.
func (s *Sandbox) hold(ctx context.Context, id identity) (pid int, release func(), err error) {
	status, theirs, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = status.Close() }()
	c, err := s.dial(ctx)
	if err != nil {
		return 0, nil, errors.Join(err, theirs.Close())
	}
	err = c.request(kindHold, execMessage(ExecSpec{Dir: s.spec.Root.WorkDir}, id, nil, false), []int{int(theirs.Fd())})
	_ = theirs.Close()
	_ = status.SetDeadline(time.Now().Add(requestTimeout))
	if err == nil {
		err = launched(status)
	}
	if err != nil {
		c.close()
		return 0, nil, err
	}
	e, fds, err := c.receive()
	closeNumbers(fds)
	if err == nil && e.kind != kindStarting {
		err = ErrLost
	}
	if err != nil {
		c.close()
		return 0, nil, err
	}
	return int(e.value), c.close, nil
}

// accounts turns numbers into the sandbox's own names.
type accounts struct {
	base          uint32
	users, groups map[uint32]string
}

func (f *Files) names() accounts {
	s := f.sandbox
	a := accounts{s.runtime.idBase(s.slot), map[uint32]string{0: "root"}, map[uint32]string{0: "root"}}
	if list, err := s.readAccounts("/etc/passwd"); err == nil {
		for _, u := range list {
			if _, ok := a.users[u.uid]; !ok {
				a.users[u.uid] = u.name
			}
		}
	}
	text, _ := s.readBelow("/etc/group")
	for line := range strings.Lines(text) {
		parts := strings.SplitN(line, ":", 4)
		if len(parts) < 4 {
			continue
		}
		if gid, err := strconv.ParseUint(parts[2], 10, 16); err == nil {
			if _, ok := a.groups[uint32(gid)]; !ok {
				a.groups[uint32(gid)] = parts[0]
			}
		}
	}
	return a
}

func (a accounts) inside(id uint32) uint32 {
	if id >= a.base && id-a.base < idsPerSandbox {
		return id - a.base
	}
	return 65534 // what a user namespace shows for everyone else
}

func named(id uint32, names map[uint32]string) string {
	if name, ok := names[id]; ok {
		return name
	}
	return strconv.FormatUint(uint64(id), 10)
}

func (a accounts) info(name string, stat *unix.Stat_t) FileInfo {
	kinds := map[uint32]byte{
		unix.S_IFREG: '-', unix.S_IFDIR: 'd', unix.S_IFLNK: 'l', unix.S_IFCHR: 'c', unix.S_IFBLK: 'b', unix.S_IFIFO: 'p', unix.S_IFSOCK: 's',
	}
	return FileInfo{
		Name: name, Type: kinds[stat.Mode&unix.S_IFMT], Size: stat.Size, Mode: stat.Mode & 0o7777,
		ModTime: time.Unix(stat.Mtim.Unix()),
		Owner:   named(a.inside(stat.Uid), a.users), Group: named(a.inside(stat.Gid), a.groups),
	}
}
