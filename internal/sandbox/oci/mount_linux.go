//go:build linux && cgo

package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"rockpool/internal/sandbox"
)

const (
	// A directory of its own is mounted there: a file could not be replaced, but the directory around it moved away by its owner.
	insideDir  = "/.rockpool"
	insideName = "inside"
	insidePath = insideDir + "/" + insideName // of our program, in every container
	harmless   = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
)

// prepare makes the directory in which roots are put together: a small private file system of our own, as /run may forbid to
// execute, and as what is mounted on it must not propagate to other namespaces. Its path can be walked, not read: a runtime
// walks it as the root of a user namespace, which is nobody here. Each sandbox's place in it belongs to that sandbox's own
// root and to nobody else.
func (r *Runtime) prepare() error {
	r.preparing.Lock()
	defer r.preparing.Unlock()
	dir := r.cfg.MountDir
	if _, err := os.Stat(r.program()); err == nil && mountedAt(dir) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("make the mount directory: %w", err)
	}
	if !mountedAt(dir) {
		tree, err := newTmpfs(harmless, "size=16m", "nr_inodes=65536", "mode=0711")
		if err != nil {
			return err
		}
		err = attach(tree, unix.AT_FDCWD, dir)
		_ = tree.Close()
		if err != nil {
			return fmt.Errorf("mount the mount directory: %w", err)
		}
		if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make the mount directory private: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(r.program()), 0o755); err != nil {
		return fmt.Errorf("make a place for the program that runs inside: %w", err)
	}
	next := r.program() + "." + strconv.Itoa(os.Getpid())
	if err := os.WriteFile(next, r.inside, 0o555); err != nil {
		return fmt.Errorf("write the program that runs inside: %w", err)
	}
	if err := os.Rename(next, r.program()); err != nil {
		return fmt.Errorf("write the program that runs inside: %w", err)
	}
	return nil
}

// mountedAt says whether something is mounted on a directory.
func mountedAt(dir string) bool {
	var s unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &s)
	return err == nil && s.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

func newTmpfs(attributes int, options ...string) (*os.File, error) {
	context, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open a tmpfs: %w", err)
	}
	defer func() { _ = unix.Close(context) }()
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		if err := unix.FsconfigSetString(context, key, value); err != nil {
			return nil, fmt.Errorf("set %s of a tmpfs: %w", key, err)
		}
	}
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, fmt.Errorf("create a tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return nil, fmt.Errorf("mount a tmpfs: %w", err)
	}
	return os.NewFile(uintptr(fd), "tmpfs"), nil
}

// attach moves a detached mount to a path below a directory; "" = to the directory itself.
func attach(tree *os.File, dir int, path string) error {
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH
	if path == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	return unix.MoveMount(int(tree.Fd()), "", dir, path, flags)
}

func clone(source string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("clone %s: %w", source, err)
	}
	return os.NewFile(uintptr(fd), source), nil
}

// root is a root file system while it is put together.
type root struct {
	runtime *Runtime
	spec    sandbox.Spec
	place   string // scratch, mounted
	idBase  uint32
	users   *os.File // user namespace that layers are mapped with, nil = they are not
	top     *os.File // the new root
	mounts  []specs.Mount
}

func (r *Runtime) place(slot int) string { return filepath.Join(r.cfg.MountDir, strconv.Itoa(slot)) }

// rootPath is the root that the runtime is given.
func (r *Runtime) rootPath(slot int) string {
	if r.kind.ownKernel {
		return filepath.Join(r.place(slot), "bare")
	}
	return filepath.Join(r.place(slot), "root")
}

// buildRoot mounts the root of a sandbox at its place. What it leaves behind on an error, takeDown removes.
//
// On a kernel of its own a program is not kept from moving away what is a mount point of the node only, and with it what is
// mounted there: such a runtime gets the bare root, and the mounts on it as mounts of the bundle. The node sees all of it
// in either case.
func (r *Runtime) buildRoot(spec sandbox.Spec, st state) (_ []specs.Mount, err error) {
	b := &root{runtime: r, spec: spec, place: r.place(st.Slot), idBase: st.IDBase}
	if r.kind.userNS {
		if b.users, err = r.userNamespace(st.IDBase); err != nil {
			return nil, err
		}
		defer func() { _ = b.users.Close() }()
	}
	limits := spec.Limits
	owner := strconv.FormatUint(uint64(b.idBase), 10)
	scratch, err := newTmpfs(harmless, "size="+strconv.FormatInt(limits.DiskBytes, 10), "nr_inodes="+strconv.FormatInt(limits.DiskInodes, 10),
		"mode=0700", "uid="+owner, "gid="+owner)
	if err != nil {
		return nil, err
	}
	defer func() { _ = scratch.Close() }()
	if err := attach(scratch, unix.AT_FDCWD, b.place); err != nil {
		return nil, fmt.Errorf("mount the writable layer: %w", err)
	}
	if err := b.overlay(); err != nil {
		return nil, err
	}
	if b.top, err = os.OpenFile(filepath.Join(b.place, "root"), unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return nil, fmt.Errorf("open the new root: %w", err)
	}
	defer func() { _ = b.top.Close() }()
	if r.kind.ownKernel {
		if err := b.bare(); err != nil {
			return nil, err
		}
	}
	for i, d := range sandbox.OwnDirs(spec.Root) {
		if err := b.ownDir(i, d); err != nil {
			return nil, fmt.Errorf("make %s: %w", d.Path, err)
		}
	}
	for i, bind := range spec.Root.Binds {
		if bind.Writable {
			return nil, fmt.Errorf("%w bind: %s cannot be written to, an OCI runtime shows directories of the node for reading only", sandbox.ErrInvalid, bind.Target)
		}
		if err := b.bind(i, bind); err != nil {
			return nil, fmt.Errorf("bind %s: %w", bind.Target, err)
		}
	}
	if err := b.devices(); err != nil {
		return nil, fmt.Errorf("make devices: %w", err)
	}
	// A link of the image would have it mounted elsewhere, and a tenant could then put a program of its own in its place.
	if err := unix.Unlinkat(int(b.top.Fd()), insideDir[1:], 0); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EISDIR) {
		return nil, fmt.Errorf("make room for the program that runs inside: %w", err)
	}
	if err := b.mountOn(filepath.Dir(r.program()), insideDir, true); err != nil {
		return nil, fmt.Errorf("mount the program that runs inside: %w", err)
	}
	return b.mounts, nil
}

// userNamespace makes one that maps the ids of a sandbox, by a process of it that only waits.
func (r *Runtime) userNamespace(base uint32) (*os.File, error) {
	mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(base), Size: idsPerSandbox}}
	cmd := exec.Command(r.program())
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: mapping, GidMappings: mapping, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	users, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		return nil, fmt.Errorf("open the user namespace: %w", err)
	}
	return users, nil
}

// seal makes a mount of the node read-only, and maps its ids so that what belongs to root on the node belongs to root
// inside. File systems that cannot be mapped show their files as nobody's.
func (b *root) seal(tree *os.File) error {
	attributes := unix.MountAttr{Attr_set: harmless | unix.MOUNT_ATTR_RDONLY}
	if b.users != nil && !b.runtime.noIDMap.Load() {
		mapped := attributes
		mapped.Attr_set |= unix.MOUNT_ATTR_IDMAP
		mapped.Userns_fd = uint64(b.users.Fd())
		if unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH, &mapped) == nil {
			return nil
		}
		b.runtime.noIDMap.Store(true)
	}
	if err := unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH, &attributes); err != nil {
		return fmt.Errorf("make %s read-only: %w", tree.Name(), err)
	}
	return nil
}

func (b *root) sealed(source string) (*os.File, error) {
	tree, err := clone(source)
	if err != nil {
		return nil, err
	}
	if err := b.seal(tree); err != nil {
		return nil, errors.Join(err, tree.Close())
	}
	return tree, nil
}

// own makes a directory in the writable layer that belongs to an id of the sandbox.
func (b *root) own(name string, mode uint32, uid, gid uint32) error {
	dir := filepath.Join(b.place, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chown(dir, int(b.idBase+uid), int(b.idBase+gid)); err != nil {
		return err
	}
	return unix.Chmod(dir, mode)
}

// overlay puts the layers together. Mounted by the node's root it acts on them with that power: its files belong to the
// mapped ids, and nosuid takes away what a setuid file could give.
func (b *root) overlay() error {
	for _, d := range []struct {
		name string
		mode uint32
	}{{"upper", 0o755}, {"work", 0o700}, {"root", 0o755}} {
		if err := b.own(d.name, d.mode, 0, 0); err != nil {
			return fmt.Errorf("make the writable layer: %w", err)
		}
	}
	var lower []string
	for i, source := range b.spec.Root.Lower {
		tree, err := b.sealed(source)
		if err != nil {
			return err
		}
		place := filepath.Join(b.place, "l"+strconv.Itoa(i))
		if err = os.Mkdir(place, 0o700); err == nil {
			err = attach(tree, unix.AT_FDCWD, place)
		}
		_ = tree.Close()
		if err != nil {
			return fmt.Errorf("mount a lower layer: %w", err)
		}
		lower = append(lower, place)
	}
	options := fmt.Sprintf("upperdir=%s/upper,workdir=%s/work,lowerdir=%s", b.place, b.place, strings.Join(lower, ":"))
	if len(options) >= page {
		return fmt.Errorf("%w root: too many layers for one overlay", sandbox.ErrInvalid)
	}
	if err := unix.Mount("overlay", filepath.Join(b.place, "root"), "overlay", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount the overlay: %w", err)
	}
	return nil
}

// makeBelow opens a directory below the new root and makes what is missing of it. An image is hostile too: a link in the
// path stays confined.
func (b *root) makeBelow(target string) (*os.File, error) {
	dir, err := sandbox.OpenInside(b.top, target, unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, fs.ErrNotExist) || target == "/" {
		return dir, err
	}
	parent, err := b.makeBelow(path.Dir(target))
	if err != nil {
		return nil, err
	}
	defer func() { _ = parent.Close() }()
	name := path.Base(target)
	if err := unix.Mkdirat(int(parent.Fd()), name, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Fchownat(int(parent.Fd()), name, int(b.idBase), int(b.idBase), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	return sandbox.OpenInside(b.top, target, unix.O_PATH|unix.O_DIRECTORY)
}

// bare shows the root once more, without what is mounted on it.
func (b *root) bare() error {
	tree, err := clone(filepath.Join(b.place, "root"))
	if err != nil {
		return err
	}
	defer func() { _ = tree.Close() }()
	place := filepath.Join(b.place, "bare")
	if err := os.Mkdir(place, 0o700); err != nil {
		return fmt.Errorf("make a place for the bare root: %w", err)
	}
	if err := attach(tree, unix.AT_FDCWD, place); err != nil {
		return fmt.Errorf("mount the bare root: %w", err)
	}
	return nil
}

// ownDir lies on the writable layer itself and not on the overlay, which is slower and refuses to rename directories.
func (b *root) ownDir(i int, d sandbox.OwnDir) error {
	name := "d" + strconv.Itoa(i)
	if err := b.own(name, d.Mode, d.UID, d.GID); err != nil {
		return err
	}
	return b.mountOn(filepath.Join(b.place, name), d.Path, false)
}

// mountOn shows what is at a path of the node in the new root.
func (b *root) mountOn(source, target string, readOnly bool) error {
	return b.mountAt(source, target, readOnly, false)
}

// mountAt is mountOn; made says that the target may be missing, and that no link of the image leads there.
func (b *root) mountAt(source, target string, readOnly, made bool) error {
	tree, err := clone(source)
	if err != nil {
		return err
	}
	defer func() { _ = tree.Close() }()
	options := []string{"bind", "nosuid", "nodev"}
	if readOnly {
		options = append(options, "ro")
		if err := unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: harmless | unix.MOUNT_ATTR_RDONLY}); err != nil {
			return err
		}
	}
	var s unix.Stat_t
	if err := unix.Fstat(int(tree.Fd()), &s); err != nil {
		return err
	}
	var place *os.File
	switch directory := s.Mode&unix.S_IFMT == unix.S_IFDIR; {
	case made:
		place, err = sandbox.PlaceInside(b.top, target, directory, b.idBase)
	case directory:
		place, err = b.makeBelow(target)
	default:
		place, err = sandbox.OpenInside(b.top, target, unix.O_PATH|unix.O_NOFOLLOW)
	}
	if err != nil {
		return err
	}
	defer func() { _ = place.Close() }()
	if b.runtime.kind.ownKernel {
		b.mounts = append(b.mounts, specs.Mount{Destination: target, Type: "bind", Source: source, Options: options})
	}
	return attach(tree, int(place.Fd()), "")
}

// bind shows something of the node, read-only. It is sealed at a place of its own first, which it is shown from.
func (b *root) bind(i int, bind sandbox.Bind) error {
	place := filepath.Join(b.place, "b"+strconv.Itoa(i))
	target := path.Clean(bind.Target)
	if bind.Source == "" {
		if err := b.own(filepath.Base(place), 0o555, 0, 0); err != nil {
			return err
		}
		for name, to := range bind.Links {
			if err := os.Symlink(to, filepath.Join(place, name)); err != nil {
				return err
			}
		}
		return b.mountAt(place, target, true, bind.Made)
	}
	tree, err := b.sealed(bind.Source)
	if err != nil {
		return err
	}
	defer func() { _ = tree.Close() }()
	var s unix.Stat_t
	if err := unix.Fstat(int(tree.Fd()), &s); err != nil {
		return err
	}
	if s.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(place, 0o700)
	} else {
		err = os.WriteFile(place, nil, 0o600)
	}
	if err != nil {
		return err
	}
	if err := attach(tree, unix.AT_FDCWD, place); err != nil {
		return err
	}
	return b.mountAt(place, target, true, bind.Made)
}

// devices makes the nodes that the sandbox is given, by number and as its own root's, on a file system where they work. The runtime shows each in the /dev that it
// makes: nothing of the image has a part in that.
func (b *root) devices() error {
	if len(b.spec.Devices) == 0 {
		return nil
	}
	if b.runtime.kind.ownKernel {
		return fmt.Errorf("%w devices: programs in %s have a kernel of their own, and do not reach the node's devices", sandbox.ErrInvalid, b.runtime.cfg.Name)
	}
	nodes, err := newTmpfs(unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, "size=64k", "nr_inodes="+strconv.Itoa(len(b.spec.Devices)+1), "mode=0755")
	if err != nil {
		return err
	}
	defer func() { _ = nodes.Close() }()
	place := filepath.Join(b.place, "devices")
	if err = os.Mkdir(place, 0o755); err == nil {
		err = attach(nodes, unix.AT_FDCWD, place)
	}
	if err != nil {
		return err
	}
	for i, d := range b.spec.Devices {
		node := filepath.Join(place, strconv.Itoa(i))
		kind := uint32(unix.S_IFCHR)
		if d.Block {
			kind = unix.S_IFBLK
		}
		if err := unix.Mknod(node, kind, int(unix.Mkdev(d.Major, d.Minor))); err != nil {
			return fmt.Errorf("%s: %w", d.Path, err)
		}
		if err := errors.Join(os.Chown(node, int(b.idBase), int(b.idBase)), unix.Chmod(node, d.Mode())); err != nil {
			return err
		}
		b.mounts = append(b.mounts, specs.Mount{Destination: d.Path, Type: "bind", Source: node, Options: []string{"bind", "nosuid", "noexec"}})
	}
	return nil
}

// takeDown detaches all that is mounted at a place, and gives the place back.
func (r *Runtime) takeDown(slot int) error {
	place := r.place(slot)
	for mountedAt(place) {
		if err := unix.Unmount(place, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount the root: %w", err)
		}
	}
	if err := os.Remove(place); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the root's place: %w", err)
	}
	return nil
}
