//go:build linux && cgo

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rockpool/internal/timeline"
)

const (
	defaultWorkDir = "/workspace"
	setupTimeout   = 20 * time.Second
	cleanupTimeout = 10 * time.Second
)

// Create starts a sandbox and returns when its supervisor has answered. After an error nothing of it is left.
func (r *Runtime) Create(ctx context.Context, spec Spec) (*Sandbox, error) {
	spec, err := checkedSpec(spec)
	if err != nil {
		return nil, err
	}
	slot, err := r.reserve(spec.ID)
	if err != nil {
		return nil, err
	}
	if left := r.remainsOf(spec.ID); left != nil {
		r.tidyUp(left)
	}
	r.hurryUp()
	// The directory is the reservation of the id: it is made exclusively, also against another process of the node.
	if err := os.Mkdir(r.stateDir(spec.ID), 0o700); err != nil {
		r.release(slot)
		if errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("%w: %s", ErrExists, spec.ID)
		}
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	s, err := r.start(ctx, spec, slot)
	if step, ok := errors.AsType[*StepError](err); ok && step.Step == stepMappedOverlay && !r.noIDMap.Swap(true) {
		r.log.Warn("the kernel cannot map the files of images; they will show as nobody's")
		if err = errors.Join(r.clear(ctx, spec.ID), os.Mkdir(r.stateDir(spec.ID), 0o700)); err == nil {
			s, err = r.start(ctx, spec, slot)
		}
	}
	if err == nil {
		if err = r.adopt(s); err == nil {
			return s, nil
		}
		s.abandon()
		s.closeFiles()
	}
	if left := r.clear(ctx, spec.ID); left != nil {
		return nil, errors.Join(fmt.Errorf("create sandbox: %w", err), left)
	}
	r.release(slot)
	return nil, fmt.Errorf("create sandbox: %w", err)
}

// clear is wipe for a creation that failed, also when its context is over.
func (r *Runtime) clear(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	return r.wipe(ctx, id)
}

func checkedSpec(spec Spec) (Spec, error) {
	if spec.Hostname == "" {
		spec.Hostname = "runner"
	}
	if spec.Root.WorkDir == "" {
		spec.Root.WorkDir = defaultWorkDir
	}
	spec.Limits = spec.Limits.withDefaults()
	switch {
	case !validID.MatchString(spec.ID):
		return spec, fmt.Errorf("%w sandbox id", ErrInvalid)
	case len(spec.Hostname) > 64 || strings.ContainsRune(spec.Hostname, 0):
		return spec, fmt.Errorf("%w host name: at most 64 characters", ErrInvalid)
	case len(spec.Root.Lower) == 0 || len(spec.Root.Lower) > 100 || len(spec.Root.Binds) > maxBinds:
		return spec, fmt.Errorf("%w root: between 1 and 100 lower directories, at most %d binds", ErrInvalid, maxBinds)
	case !filepath.IsAbs(spec.Root.WorkDir):
		return spec, fmt.Errorf("%w working directory: it must be absolute", ErrInvalid)
	case spec.NetNS != "" && !filepath.IsAbs(spec.NetNS):
		return spec, fmt.Errorf("%w network namespace: its path must be absolute", ErrInvalid)
	case spec.Limits.IOBytes < 0 || spec.Limits.IOPS < 0:
		return spec, fmt.Errorf("%w I/O limit: it is negative", ErrInvalid)
	case spec.Limits.MemoryBytes < 8<<20:
		return spec, fmt.Errorf("%w memory limit: at least 8 MiB", ErrInvalid)
	}
	for _, b := range spec.Root.Binds {
		if b.Source != "" && !filepath.IsAbs(b.Source) || !filepath.IsAbs(b.Target) || filepath.Clean(b.Target) == "/" {
			return spec, fmt.Errorf("%w bind: source and target must be absolute paths", ErrInvalid)
		}
		if b.Writable && b.Source == "" {
			return spec, fmt.Errorf("%w bind: an empty directory cannot be written to", ErrInvalid)
		}
		if err := b.checkMade(); err != nil {
			return spec, err
		}
	}
	return spec, checkDevices(spec.Devices)
}

// start does the work between the reservation and the answer. What it leaves behind on an error, wipe removes.
func (r *Runtime) start(ctx context.Context, spec Spec, slot int) (_ *Sandbox, err error) {
	lap := timeline.From(ctx).Laps()
	top := r.group(spec.ID)
	if err := top.make(); err != nil {
		return nil, err
	}
	if err := top.limit(spec.Limits); err != nil {
		return nil, err
	}
	blockIO, err := r.boundIO(spec)
	if err != nil {
		return nil, err
	}
	defer func() { closeAll(blockIO) }()
	allowed, err := r.allowDevices(spec)
	if err != nil {
		return nil, err
	}
	defer func() { closeAll(allowed) }()
	if err := top.makeInit(); err != nil {
		return nil, err
	}
	var inherited []*os.File
	defer func() { closeAll(inherited) }()
	join, err := top.init().join()
	if err != nil {
		return nil, err
	}
	lap.Done(timeline.SandboxGroup)
	join = slices.Concat(join, blockIO, allowed)
	blockIO, allowed = nil, nil
	trees, err := mountSources(spec.Root)
	inherited = append(join, trees...)
	if err != nil {
		return nil, err
	}
	if spec.NetNS != "" {
		ns, err := os.Open(spec.NetNS)
		if err != nil {
			return nil, fmt.Errorf("open the network namespace: %w", err)
		}
		inherited = append(inherited, ns)
	}
	dir, err := os.OpenFile(r.stateDir(spec.ID), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	s := &Sandbox{runtime: r, id: spec.ID, spec: spec, slot: slot, dir: dir, group: top, done: make(chan struct{})}
	defer func() {
		if err != nil {
			s.closeFiles()
		}
	}()
	listener, err := listenIn(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = listener.Close() }()
	control, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }()
	lap.Done(timeline.SandboxSources)
	err = s.launch(append([]*os.File{theirs, listener}, inherited...))
	_ = theirs.Close()
	if err != nil {
		return nil, err
	}
	lap.Done(timeline.SandboxLaunch)
	if err := s.record(); err != nil {
		s.abandon()
		return nil, err
	}
	if err := s.converse(ctx, control, r.setupMessage(spec, slot, len(join))); err != nil {
		s.abandon()
		return nil, err
	}
	lap.Done(timeline.SandboxSetup)
	return s, nil
}

// converse sends the set-up and waits for the answer.
func (s *Sandbox) converse(ctx context.Context, control net.Conn, message []byte) error {
	_ = control.SetDeadline(time.Now().Add(setupTimeout))
	stop := context.AfterFunc(ctx, func() { _ = control.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := control.Write(message); err != nil {
		return cause(ctx, fmt.Errorf("send the set-up: %w", err))
	}
	answer := make([]byte, verdictSize)
	n, err := io.ReadFull(control, answer)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("wait for the supervisor: %w", err)
	}
	features, err := parseVerdict(answer[:n])
	if err != nil {
		return err
	}
	s.runtime.mu.Lock()
	s.runtime.features, s.runtime.created = features, true
	s.runtime.mu.Unlock()
	return s.openRoot()
}

// record writes down what there is to find, before process 1 is told to make anything of itself. Without the node it ends until then by itself, as nobody is
// at the other end: one record says all, and no sandbox is without.
func (s *Sandbox) record() error {
	started, err := StartTime(s.pid)
	if err != nil {
		return err
	}
	return s.runtime.writeState(s.id, state{s.spec, s.slot, s.pid, started, s.runtime.bootID})
}

// launch executes the sealed binary as process 1 of a new pid namespace, with no environment and no descriptors but
// those given, numbered from 3.
func (s *Sandbox) launch(files []*os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	fds := []uintptr{null.Fd(), null.Fd(), null.Fd()}
	for _, f := range files {
		fds = append(fds, f.Fd())
	}
	pidfd := -1
	s.pid, err = syscall.ForkExec(s.runtime.binaryPath, []string{supervisorName}, &syscall.ProcAttr{
		Dir: "/", Env: []string{}, Files: fds,
		Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID, PidFD: &pidfd},
	})
	if err != nil {
		return fmt.Errorf("start the supervisor: %w", err)
	}
	return s.setPidfd(pidfd)
}

// abandon ends a supervisor that did not get as far as an answer, and reaps it. It is waited for by its number, which an unreaped child keeps:
// with a descriptor that does not block, waitid would not wait either.
func (s *Sandbox) abandon() {
	_ = unix.PidfdSendSignal(s.pidfdNumber(), unix.SIGKILL, nil, 0)
	for errors.Is(unix.Waitid(unix.P_PID, s.pid, nil, unix.WEXITED, nil), unix.EINTR) {
	}
}

// mountSources clones each source of the node as a mount of its own. It happens here because a clone must be made in
// the namespace that the source is in. The path was chosen by the node; it is resolved once.
func mountSources(root Root) ([]*os.File, error) {
	var files []*os.File
	clone := func(path string, wantDir bool) error {
		fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		files = append(files, os.NewFile(uintptr(fd), path))
		var stat unix.Stat_t
		if err := unix.Fstat(fd, &stat); err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		switch kind := stat.Mode & unix.S_IFMT; {
		case kind == unix.S_IFDIR, kind == unix.S_IFREG && !wantDir:
			return nil
		default:
			return fmt.Errorf("%w mount source %s: neither a directory nor a regular file", ErrInvalid, path)
		}
	}
	for _, lower := range root.Lower {
		if err := clone(lower, true); err != nil {
			return files, err
		}
	}
	for _, bind := range root.Binds {
		if bind.Source == "" {
			fd, err := emptyMount(bind.Links)
			if err != nil {
				return files, err
			}
			files = append(files, os.NewFile(uintptr(fd), "empty"))
			continue
		}
		if err := clone(bind.Source, false); err != nil {
			return files, err
		}
	}
	return files, nil
}

// emptyMount is a directory with nothing in it but links, which hides what is below and names no path of the node.
func emptyMount(links map[string]string) (_ int, err error) {
	context, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make an empty mount: %w", err)
	}
	defer func() { _ = unix.Close(context) }()
	for key, value := range map[string]string{"size": strconv.Itoa(4 << 10 * (1 + len(links))), "nr_inodes": strconv.Itoa(1 + len(links)), "mode": "0555"} {
		if err := unix.FsconfigSetString(context, key, value); err != nil {
			return -1, fmt.Errorf("make an empty mount: %w", err)
		}
	}
	if err := unix.FsconfigCreate(context); err != nil {
		return -1, fmt.Errorf("make an empty mount: %w", err)
	}
	fd, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make an empty mount: %w", err)
	}
	for name, target := range links {
		if err := unix.Symlinkat(target, fd, name); err != nil {
			_ = unix.Close(fd)
			return -1, fmt.Errorf("make the link %s: %w", name, err)
		}
	}
	return fd, nil
}

// listenIn binds the supervisor's socket in the state directory, by descriptor: the path could be too long for a socket.
func listenIn(dir *os.File) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make the supervisor's socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), socketFile)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: socketPath(dir)}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind the supervisor's socket: %w", err), f.Close())
	}
	if err := unix.Listen(fd, 128); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on the supervisor's socket: %w", err), f.Close())
	}
	return f, nil
}

func socketPath(dir *os.File) string { return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketFile) }

func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the control socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control")
	conn, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make the control socket: %w", err), theirs.Close())
	}
	return conn, theirs, nil
}
