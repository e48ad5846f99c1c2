package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rockpool/internal/fault"
)

const (
	maxID     = 65534 // the highest id that an image may give a file: higher ones have no place in a sandbox's range
	nobody    = 65534
	maxXattrs = 64 // of one file
	// maxDirNames bounds what is remembered of one layer until its end, in bytes. A hundred thousand directories take a tenth of it.
	maxDirNames = 64 << 20
	blockSize   = 4096
	opaqueName  = "trusted.overlay.opaque"

	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh."
	xattrRecord    = "SCHILY.xattr."
)

// unpacker writes one layer below a directory. Everything is reached through descriptors: the parent of an entry is resolved by the
// kernel confined to the directory, links included, and the entry itself is made in it by its last name alone.
type unpacker struct {
	root   int
	left   *budget
	buffer []byte
	times  []dirTime
	names  int   // bytes in times
	bytes  int64 // on disk
}

type dirTime struct {
	name string
	when time.Time
}

// unpack writes a layer's tar archive into dir, which is empty, and returns the bytes that it takes on disk. What an
// overlay file system needs for deletions is made on the way: see the image specification, "Representing Changes".
func unpack(ctx context.Context, dir string, archive io.Reader, left *budget) (int64, error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open the directory of a layer: %w", err)
	}
	defer func() { _ = unix.Close(root) }()
	u := &unpacker{root: root, left: left, buffer: make([]byte, 256<<10)}
	entries := tar.NewReader(archive)
	for {
		if ctx.Err() != nil {
			return u.bytes, context.Cause(ctx)
		}
		h, err := entries.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return u.bytes, fmt.Errorf("read the layer's archive: %w", err)
		}
		if err := left.take(1, 0); err != nil {
			return u.bytes, err
		}
		if err := u.entry(ctx, h, entries); err != nil {
			return u.bytes, fmt.Errorf("entry %.200q: %w", h.Name, err)
		}
	}
	for i := len(u.times) - 1; i >= 0; i-- {
		t := u.times[i]
		if fd, err := u.open(t.name, unix.O_PATH|unix.O_DIRECTORY); err == nil { // else it was replaced later on
			setTime(fd, "", t.when, unix.AT_EMPTY_PATH)
			_ = unix.Close(fd)
		}
	}
	return u.bytes, nil
}

func bad(format string, args ...any) error { return fault.New(fault.Invalid, format, args...) }

// confined is an entry's name relative to the root; "." is the root itself.
func confined(name string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", bad("its name has a zero byte")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", bad("its name leads out of the layer")
		}
	}
	return path.Clean("./" + name), nil
}

// open resolves a name confined to the layer.
func (u *unpacker) open(name string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV}
	for {
		fd, err := unix.Openat2(u.root, name, &how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// parent opens the directory of an entry, and makes what is missing of it.
func (u *unpacker) parent(dir string) (int, error) {
	fd, err := u.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err == nil || dir == "." || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
		return fd, err
	}
	above, err := u.parent(path.Dir(dir))
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(above) }()
	if err := u.left.take(1, 0); err != nil {
		return -1, err
	}
	return u.makeDir(above, path.Base(dir), 0o755)
}

func (u *unpacker) entry(ctx context.Context, h *tar.Header, content io.Reader) error {
	name, err := confined(h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return bad("the root of a layer is a directory")
		}
		return u.dress(u.root, name, h)
	}
	parent, err := u.parent(path.Dir(name))
	if err != nil {
		return fmt.Errorf("open its directory: %w", err)
	}
	defer func() { _ = unix.Close(parent) }()
	base := path.Base(name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(parent, base)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.dir(parent, base, name, h)
	case tar.TypeReg:
		return u.file(ctx, parent, base, h, content)
	case tar.TypeSymlink:
		return u.symlink(parent, base, h)
	case tar.TypeLink:
		return u.link(parent, base, h)
	case tar.TypeFifo:
		return u.fifo(parent, base, h)
	case tar.TypeChar, tar.TypeBlock: // nothing inside could open it, and 0:0 would be a deletion that nobody sees in the archive
		return nil
	case tar.TypeXGlobalHeader:
		return nil
	}
	return bad("its type %q is not known", h.Typeflag)
}

// whiteout turns a marker into what an overlay takes for a deletion.
func (u *unpacker) whiteout(parent int, base string) error {
	if base == whiteoutOpaque {
		return opaque(parent)
	}
	if strings.HasPrefix(base, whiteoutMeta) { // of AUFS itself
		return nil
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return bad("it deletes its own directory or the one above")
	}
	err := unix.Mknodat(parent, name, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	// The layer has the name itself: that stays, but what lies below in other layers is gone.
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil //nolint:nilerr // no directory: it hides what is below anyway
	}
	defer func() { _ = unix.Close(fd) }()
	return opaque(fd)
}

func opaque(dir int) error {
	if err := unix.Fsetxattr(dir, opaqueName, []byte("y"), 0); err != nil {
		return fmt.Errorf("mark a directory as opaque: %w", err)
	}
	return nil
}

// presence says what a name is so far.
type presence uint8

const (
	nothing presence = iota
	deleted
	directory
	other
)

func (u *unpacker) presence(parent int, base string) (presence, error) {
	var stat unix.Stat_t
	err := unix.Fstatat(parent, base, &stat, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nothing, nil
	case err != nil:
		return nothing, err
	case stat.Mode&unix.S_IFMT == unix.S_IFCHR: // only whiteout makes these
		return deleted, nil
	case stat.Mode&unix.S_IFMT == unix.S_IFDIR:
		return directory, nil
	}
	return other, nil
}

// clear makes room for an entry: the later of two with one name wins.
func (u *unpacker) clear(parent int, base string) error {
	found, err := u.presence(parent, base)
	switch {
	case err != nil:
		return err
	case found == nothing:
		return nil
	case found == directory:
		return removeTree(parent, base)
	}
	return unix.Unlinkat(parent, base, 0)
}

// removeTree removes a directory that an entry of another type replaces. It goes through descriptors, and no link is followed.
func removeTree(parent int, base string) error {
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), base)
	names, err := dir.Readdirnames(-1)
	for _, name := range names {
		if err != nil {
			break
		}
		if err = unix.Unlinkat(fd, name, 0); errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
			err = removeTree(fd, name)
		}
	}
	if err := errors.Join(err, dir.Close()); err != nil {
		return err
	}
	return unix.Unlinkat(parent, base, unix.AT_REMOVEDIR)
}

func (u *unpacker) dir(parent int, base, name string, h *tar.Header) error {
	if found, err := u.presence(parent, base); err != nil {
		return err
	} else if found == other {
		if err := u.clear(parent, base); err != nil {
			return err
		}
	}
	fd, err := u.makeDir(parent, base, 0o700)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return u.dress(fd, name, h)
}

// makeDir opens a directory that is there or can be made. Where the layer deleted the name, what is below stays hidden.
func (u *unpacker) makeDir(parent int, base string, mode uint32) (int, error) {
	found, err := u.presence(parent, base)
	if err != nil {
		return -1, err
	}
	if found == other {
		return -1, unix.ENOTDIR
	}
	if found == deleted {
		if err := unix.Unlinkat(parent, base, 0); err != nil {
			return -1, err
		}
	}
	if found != directory {
		u.bytes += blockSize
		if err := unix.Mkdirat(parent, base, mode); err != nil {
			return -1, err
		}
	}
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil || found != deleted {
		return fd, err
	}
	if err := opaque(fd); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func (u *unpacker) file(ctx context.Context, parent int, base string, h *tar.Header, content io.Reader) error {
	if err := u.clear(parent, base); err != nil {
		return err
	}
	fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, readErr := content.Read(u.buffer)
		if err := u.left.take(0, int64(n)); err != nil {
			return err
		}
		if err := writeAll(fd, u.buffer[:n]); err != nil {
			return err
		}
		if errors.Is(readErr, io.EOF) {
			break
		}
		if readErr != nil {
			return fmt.Errorf("read the layer's archive: %w", readErr)
		}
	}
	u.bytes += (h.Size + blockSize - 1) / blockSize * blockSize
	return u.dress(fd, "", h)
}

func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func (u *unpacker) symlink(parent int, base string, h *tar.Header) error {
	if err := u.clear(parent, base); err != nil {
		return err
	}
	if h.Linkname == "" || strings.ContainsRune(h.Linkname, 0) {
		return bad("its target is not one")
	}
	if err := unix.Symlinkat(h.Linkname, parent, base); err != nil {
		return err
	}
	return u.dressAt(parent, base, h)
}

// link makes a hard link to an entry of the same layer. Neither end can be anywhere else.
func (u *unpacker) link(parent int, base string, h *tar.Header) error {
	target, err := confined(h.Linkname)
	if err != nil {
		return fmt.Errorf("link to %.200q: %w", h.Linkname, err)
	}
	dir, err := u.open(path.Dir(target), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return bad("it is a hard link to %.200q, which this layer does not have", h.Linkname)
	}
	defer func() { _ = unix.Close(dir) }()
	found, err := u.presence(dir, path.Base(target))
	if err != nil || found != other || target == "." {
		return bad("it is a hard link to %.200q, which is no file of this layer", h.Linkname)
	}
	if same, err := sameFile(dir, path.Base(target), parent, base); same || err != nil {
		return err
	}
	if err := u.clear(parent, base); err != nil {
		return err
	}
	return unix.Linkat(dir, path.Base(target), parent, base, 0)
}

func sameFile(dirA int, a string, dirB int, b string) (bool, error) {
	var statA, statB unix.Stat_t
	if err := unix.Fstatat(dirA, a, &statA, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	if unix.Fstatat(dirB, b, &statB, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false, nil
	}
	return statA.Ino == statB.Ino, nil
}

func (u *unpacker) fifo(parent int, base string, h *tar.Header) error {
	if err := u.clear(parent, base); err != nil {
		return err
	}
	if err := unix.Mknodat(parent, base, unix.S_IFIFO|uint32(h.Mode)&0o777, 0); err != nil {
		return err
	}
	return u.dressAt(parent, base, h)
}

// owner is who a file belongs to. An id beyond the range of a sandbox is nobody's.
func owner(h *tar.Header) (uid, gid int) {
	uid, gid = h.Uid, h.Gid
	if uid < 0 || uid > maxID {
		uid = nobody
	}
	if gid < 0 || gid > maxID {
		gid = nobody
	}
	return uid, gid
}

// dress gives an open file or directory what its entry says; the mode after the owner, as chown clears bits of it. Set-user-id stays:
// sandboxes mount nosuid.
func (u *unpacker) dress(fd int, name string, h *tar.Header) error {
	uid, gid := owner(h)
	if err := unix.Fchown(fd, uid, gid); err != nil {
		return fmt.Errorf("set the owner: %w", err)
	}
	if err := unix.Fchmod(fd, uint32(h.Mode)&0o7777); err != nil {
		return fmt.Errorf("set the mode: %w", err)
	}
	if err := u.xattrs(fd, h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		// What is made in it later would change its time.
		if u.names += len(name); u.names > maxDirNames {
			return bad("the names of its directories have more than %d bytes together", maxDirNames)
		}
		u.times = append(u.times, dirTime{name, h.ModTime})
		return nil
	}
	setTime(fd, "", h.ModTime, unix.AT_EMPTY_PATH)
	return nil
}

// xattrs keeps the attributes that programs themselves set. Those of the kernel's own name spaces give power or forge
// what an overlay believes, and are left out.
func (u *unpacker) xattrs(fd int, h *tar.Header) error {
	kept := 0
	for record, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(record, xattrRecord)
		if !ok || !strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		if kept++; kept > maxXattrs {
			return bad("it has more than %d extended attributes", maxXattrs)
		}
		u.bytes += int64(len(value))
		if err := u.left.take(0, int64(len(value))); err != nil {
			return err
		}
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("set the extended attribute %.100q: %w", name, err)
		}
	}
	return nil
}

// dressAt is dress for what is not opened.
func (u *unpacker) dressAt(parent int, base string, h *tar.Header) error {
	uid, gid := owner(h)
	if err := unix.Fchownat(parent, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set the owner: %w", err)
	}
	setTime(parent, base, h.ModTime, unix.AT_SYMLINK_NOFOLLOW)
	return nil
}

// setTime sets a time as far as the file system can hold it.
func setTime(fd int, name string, when time.Time, flags int) {
	if when.IsZero() || when.Unix() < 0 || when.Unix() >= 1<<33 {
		when = time.Unix(0, 0)
	}
	t := unix.NsecToTimespec(when.UnixNano())
	_ = unix.UtimesNanoAt(fd, name, []unix.Timespec{t, t}, flags)
}

// opaqueRoot reports whether a layer hides all layers below it.
func opaqueRoot(dir string) bool {
	value := make([]byte, 4)
	n, err := unix.Lgetxattr(dir, opaqueName, value)
	return err == nil && string(value[:n]) == "y"
}

// flush brings what was written below a directory to the disk.
func flush(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return unix.Syncfs(int(f.Fd()))
}
