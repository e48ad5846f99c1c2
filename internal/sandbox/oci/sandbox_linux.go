//go:build linux && cgo

package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rockpool/internal/sandbox"
)

const cleanupTimeout = 20 * time.Second

// Sandbox is one container that waits, for executions to be started in it.
type Sandbox struct {
	runtime *Runtime
	id      string
	spec    sandbox.Spec
	slot    int
	base    uint32
	process *os.File // its first process, or that of its kernel or virtual machine, as something that cannot be mistaken
	root    *os.File // as the node sees it
	files   *sandbox.Files
	groups  sandbox.Groups
	done    chan struct{}
	exit    sandbox.Exit // written before done is closed

	destroying sync.Mutex // one Destroy at a time

	mu         sync.Mutex
	executions map[string]*Execution
	removed    bool // Destroy was called
	detached   bool // the runtime was closed
	wiped      bool
}

// Create starts a sandbox and returns when its first process runs. After an error nothing of it is left.
func (r *Runtime) Create(ctx context.Context, spec sandbox.Spec) (*Sandbox, error) {
	spec, err := sandbox.Checked(spec)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if err := r.prepare(); err != nil {
		return nil, err
	}
	// The directory is the reservation of the id: it is made exclusively, also against another process of the node.
	if err := os.Mkdir(r.stateDir(spec.ID), 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("%w: %s", sandbox.ErrExists, spec.ID)
		}
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	slot, err := r.reserve()
	if err != nil {
		return nil, errors.Join(err, removeAll(r.stateDir(spec.ID)))
	}
	st := state{Spec: spec, Slot: slot, IDBase: r.idBase(slot), BootID: r.bootID}
	s, err := r.start(ctx, st)
	if err == nil {
		if err = r.enters(ctx, s); err == nil {
			return s, nil
		}
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	return nil, errors.Join(fmt.Errorf("create sandbox: %w", err), r.Remove(clean, spec.ID))
}

// enters finds out, with the first sandbox in a network namespace of the node, whether the runtime can start programs in one. Older ones of runc enter
// the user namespace first, and may enter no namespace of the node's from there (opencontainers/runc, issue 4390).
func (r *Runtime) enters(ctx context.Context, s *Sandbox) error {
	if s.spec.NetNS == "" || !r.kind.userNS || r.joins.Load() {
		return nil
	}
	e, err := s.Exec(ctx, sandbox.ExecSpec{ID: "probe", Argv: []string{insideDir}, Dir: "/", MergeStderr: true})
	switch {
	case err == nil:
		return errors.Join(errors.New("the runtime executed a directory"), e.Kill())
	case errors.Is(err, sandbox.ErrNotExecutable): // as a directory is; it came as far as that
		r.joins.Store(true)
		return nil
	case !errors.Is(err, sandbox.ErrLost):
		return err
	}
	return fmt.Errorf("%w network namespace: %s (%s) starts no programs in one of the node's: update it, or ask for another runtime: %w",
		sandbox.ErrInvalid, r.cfg.Name, r.version, err)
}

func (r *Runtime) start(ctx context.Context, st state) (*Sandbox, error) {
	id := st.Spec.ID
	if err := sandbox.WriteRecord(r.stateDir(id), stateFile, st); err != nil {
		return nil, errors.Join(err, r.takeDown(st.Slot))
	}
	// Only the sandbox's own root passes its place: what is below may be readable for everyone.
	if err := os.Chown(r.place(st.Slot), int(st.IDBase), int(st.IDBase)); err != nil {
		return nil, fmt.Errorf("own the root's place: %w", err)
	}
	mounts, err := r.buildRoot(st.Spec, st)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(sandbox.WriteRecord(r.stateDir(id), "config.json", r.bundle(st.Spec, st, mounts)), sandbox.WriteRecord(r.stateDir(id), "process.json", starter(st.Spec.Limits))); err != nil {
		return nil, err
	}
	if r.kind.ownGroups {
		l := st.Spec.Limits
		l.PIDs += helpers
		groups := r.groups(groupName(id))
		if err := groups.Make(l); err != nil {
			return nil, err
		}
		if err := groups.AllowDevices(st.Spec.Devices); err != nil {
			return nil, err
		}
	}
	pidFile := filepath.Join(r.stateDir(id), "pid")
	run := []string{"run", "--detach", "--bundle", r.stateDir(id), "--pid-file", pidFile, id}
	if st.Spec.NetNS == "" {
		run = append(slices.Clone(r.kind.alone), run...)
	}
	if err := r.boot(ctx, id, run...); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, fmt.Errorf("read the process of the container: %w", err)
	}
	if st.PID, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
		return nil, fmt.Errorf("read the process of the container: %w", err)
	}
	if st.Started, err = sandbox.StartTime(st.PID); err != nil {
		return nil, fmt.Errorf("%w: %w", sandbox.ErrEnded, err)
	}
	if err := sandbox.WriteRecord(r.stateDir(id), stateFile, st); err != nil {
		return nil, err
	}
	return r.take(st)
}

// take makes a Sandbox of a container that runs.
func (r *Runtime) take(st state) (_ *Sandbox, err error) {
	s := &Sandbox{runtime: r, id: st.Spec.ID, spec: st.Spec, slot: st.Slot, base: st.IDBase, done: make(chan struct{})}
	defer func() {
		if err != nil {
			s.closeFiles()
		}
	}()
	if s.process, err = r.identify(st); err != nil {
		return nil, err
	}
	place := r.place(st.Slot)
	if !mountedAt(place) {
		return nil, fmt.Errorf("%w: its root is not mounted in this mount namespace", sandbox.ErrEnded)
	}
	if s.root, err = os.OpenFile(filepath.Join(place, "root"), unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return nil, fmt.Errorf("open the root: %w", err)
	}
	s.groups = r.groups(groupName(s.id))
	s.files = sandbox.FilesOf(s.root, s.base, s.spec.Root)
	return s, r.adopt(s)
}

// Attach takes back a sandbox that an earlier process of the node left running. Executions of that time have ended: they end
// with the pipe that the node tells them what to do by.
func (r *Runtime) Attach(_ context.Context, id string) (*Sandbox, error) {
	if !validID.MatchString(id) {
		return nil, fmt.Errorf("%w sandbox id", sandbox.ErrInvalid)
	}
	st, err := r.readState(id)
	if err != nil {
		return nil, err
	}
	s, err := r.take(st)
	if err != nil {
		return nil, fmt.Errorf("attach sandbox: %w", err)
	}
	return s, nil
}

// ID is the id of the Spec.
func (s *Sandbox) ID() string { return s.id }

// Spec is what the sandbox was made of, with defaults filled in.
func (s *Sandbox) Spec() sandbox.Spec { return s.spec }

// Done is closed when the container has ended, whoever ended it.
func (s *Sandbox) Done() <-chan struct{} { return s.done }

// Exit says how the sandbox ended; it is valid when Done is closed.
func (s *Sandbox) Exit() sandbox.Exit { return s.exit }

// Files gives access to the sandbox's files.
func (s *Sandbox) Files() *sandbox.Files { return s.files }

// Usage reads the node's counters of the whole sandbox. Of one with a kernel of its own they include that kernel, and count its
// threads as processes.
func (s *Sandbox) Usage() (sandbox.Usage, error) {
	select {
	case <-s.done:
		return sandbox.Usage{}, sandbox.ErrEnded
	default:
	}
	c := s.groups.Counters()
	return sandbox.Usage{MemoryBytes: c.MemoryBytes, CPUTime: c.CPUTime, PIDs: c.PIDs}, nil
}

func signalPidfd(process *os.File, n syscall.Signal) error {
	raw, err := process.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), n, nil, 0) })
	return errors.Join(controlErr, err)
}

// watch waits for the end of the first process.
func (s *Sandbox) watch() {
	raw, err := s.process.SyscallConn()
	if err == nil {
		err = raw.Read(func(fd uintptr) bool { return sandbox.Ended(int(fd)) })
	}
	s.mu.Lock()
	detached, removed := s.detached, s.removed
	s.mu.Unlock()
	if err != nil && detached {
		return
	}
	if err != nil {
		s.runtime.cfg.Log.WithField("runner_id", s.id).WithError(err).Error("waiting for a sandbox failed")
	}
	if raw == nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { // ours to reap where the node is the nearest subreaper
		_ = unix.Waitid(unix.P_PIDFD, int(fd), nil, unix.WEXITED|unix.WNOHANG, nil)
	})
	s.exit = sandbox.Exit{OOMKilled: !removed && s.groups.Counters().OOMKills > 0, Removed: removed}
	close(s.done)
}

// Destroy kills everything in the sandbox and removes every trace: processes, control groups, mounts, state. It may be
// called again, also after an error.
func (s *Sandbox) Destroy(ctx context.Context) error {
	s.destroying.Lock()
	defer s.destroying.Unlock()
	s.mu.Lock()
	if s.wiped {
		s.mu.Unlock()
		return nil
	}
	if s.detached {
		s.mu.Unlock()
		return fs.ErrClosed
	}
	s.removed = true
	s.mu.Unlock()
	if err := signalPidfd(s.process, unix.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("kill sandbox: %w", err)
	}
	waits := []<-chan struct{}{s.done}
	for _, e := range s.running() {
		waits = append(waits, e.done)
	}
	for _, done := range waits {
		select {
		case <-done:
		case <-ctx.Done():
			return fmt.Errorf("destroy sandbox: %w", context.Cause(ctx))
		}
	}
	s.closeFiles()
	if err := s.runtime.wipe(ctx, s.id); err != nil {
		return fmt.Errorf("destroy sandbox: %w", err)
	}
	s.mu.Lock()
	s.wiped = true
	s.mu.Unlock()
	s.runtime.forget(s)
	return nil
}

func (s *Sandbox) running() []*Execution {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Execution, 0, len(s.executions))
	for _, e := range s.executions {
		all = append(all, e)
	}
	return all
}

// detach ends the watching and leaves the sandbox running.
func (s *Sandbox) detach() {
	s.mu.Lock()
	s.detached = true
	s.mu.Unlock()
	_ = s.process.SetReadDeadline(time.Unix(1, 0))
	running := s.running()
	for _, e := range running {
		e.abandon()
	}
	s.runtime.wg.Go(func() {
		for _, e := range running {
			<-e.done
		}
		s.closeFiles()
	})
}

func (s *Sandbox) closeFiles() {
	for _, f := range []*os.File{s.process, s.root} {
		if f != nil {
			_ = f.Close()
		}
	}
}
