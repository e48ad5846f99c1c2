//go:build linux && cgo

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Sandbox is one isolated runner.
type Sandbox struct {
	runtime *Runtime
	id      string
	spec    Spec
	slot    int
	pid     int      // of process 1, on the host
	pidfd   *os.File // the same, as something that cannot be mistaken
	dir     *os.File // private state directory
	root    *os.File // the root inside, O_PATH
	group   group
	done    chan struct{}
	exit    Exit // written before done is closed

	destroying sync.Mutex // one Destroy at a time

	mu         sync.Mutex
	executions map[string]*Execution
	waiting    *waiting // an interpreter for the next program; nil = none
	spare      spare    // a group for the next execution
	grouped    int      // how many groups of executions there were
	removed    bool     // Destroy was called
	detached   bool     // the runtime was closed
	wiped      bool
}

// ID is the id of the Spec.
func (s *Sandbox) ID() string { return s.id }

// Spec is what the sandbox was made of, with defaults filled in.
func (s *Sandbox) Spec() Spec { return s.spec }

// Done is closed when every process of the sandbox has ended, whoever ended it.
func (s *Sandbox) Done() <-chan struct{} { return s.done }

// Exit says how the sandbox ended; it is valid when Done is closed.
func (s *Sandbox) Exit() Exit { return s.exit }

// Usage reads the kernel's counters of the whole sandbox.
func (s *Sandbox) Usage() (Usage, error) {
	select {
	case <-s.done:
		return Usage{}, ErrEnded
	default:
	}
	c := s.group.counters()
	return Usage{MemoryBytes: c.memory, PeakMemory: c.peakMemory, CPUTime: c.cpu, PIDs: c.pids}, nil
}

// Attach takes back a sandbox that an earlier process of the node left running. Executions of that time have lost their
// streams and are killed, but for the one that is kept: Resume takes that back.
func (r *Runtime) Attach(ctx context.Context, id string) (*Sandbox, error) {
	if !validID.MatchString(id) {
		return nil, fmt.Errorf("%w sandbox id", ErrInvalid)
	}
	st, err := r.readState(id)
	if err != nil {
		return nil, err
	}
	fd, err := r.identify(st)
	if err != nil {
		return nil, fmt.Errorf("attach sandbox: %w", err)
	}
	s := &Sandbox{runtime: r, id: id, spec: st.Spec, slot: st.Slot, pid: st.PID, group: r.group(id), done: make(chan struct{})}
	if err := errors.Join(s.setPidfd(fd), s.reopen(ctx)); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("attach sandbox: %w", err)
	}
	if err := r.adopt(s); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("attach sandbox: %w", err)
	}
	return s, nil
}

func (s *Sandbox) reopen(ctx context.Context) (err error) {
	if s.dir, err = os.OpenFile(s.runtime.stateDir(s.id), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); err != nil {
		return err
	}
	for _, name := range s.group.children() {
		if name == groupOfInit || strings.HasPrefix(name, groupOfService) || strings.HasPrefix(name, groupOfKept) {
			continue
		}
		left := s.group.child(name)
		if err := left.clear(ctx); err != nil {
			return err
		}
	}
	if err := s.ping(ctx); err != nil {
		return err
	}
	return s.openRoot()
}

// removeIdle takes away the groups of services that nothing runs in any more.
func (s *Sandbox) removeIdle(ctx context.Context) error {
	var errs []error
	for _, name := range s.group.children() {
		service, ok := strings.CutPrefix(name, groupOfService)
		if !ok || s.busyWith(service) {
			continue
		}
		left := s.group.child(name)
		if alive, err := left.populated(); err == nil && !alive {
			errs = append(errs, left.remove(ctx))
		}
	}
	return errors.Join(errs...)
}

// busyWith says whether an execution of that id has a main process.
func (s *Sandbox) busyWith(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.executions[id]
	if e == nil {
		return false
	}
	select {
	case <-e.over:
		return false
	default:
		return true
	}
}

// ping asks the supervisor for a sign of life.
func (s *Sandbox) ping(ctx context.Context) error {
	c, err := s.dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.request(kindPing, nil, nil); err != nil {
		return err
	}
	e, _, err := c.receive()
	if err == nil && e.kind != kindPong {
		err = fmt.Errorf("supervisor answered %d to a ping", e.kind)
	}
	return err
}

// openRoot opens the root as process 1 sees it. The process is checked afterwards: it was still the one meant.
func (s *Sandbox) openRoot() error {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/root", s.pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the root: %w", err)
	}
	s.root = os.NewFile(uintptr(fd), "root")
	if err := unix.PidfdSendSignal(s.pidfdNumber(), 0, nil, 0); err != nil {
		return fmt.Errorf("%w: %w", ErrEnded, err)
	}
	return nil
}

// setPidfd wraps the descriptor for the poller of the Go runtime: waiting for the end of a sandbox costs no thread.
func (s *Sandbox) setPidfd(fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	s.pidfd = os.NewFile(uintptr(fd), "process 1 of "+s.id)
	return nil
}

func (s *Sandbox) pidfdNumber() int {
	number := -1
	if raw, err := s.pidfd.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { number = int(fd) })
	}
	return number
}

// watch waits for the end of process 1, which the kernel lets end only after everything else in its pid namespace.
func (s *Sandbox) watch() {
	raw, err := s.pidfd.SyscallConn()
	if err == nil {
		err = raw.Read(func(fd uintptr) bool { return Ended(int(fd)) })
	}
	s.mu.Lock()
	detached, removed := s.detached, s.removed
	s.mu.Unlock()
	if err != nil && detached {
		return
	}
	if err != nil {
		s.runtime.logFor(s.id).WithError(err).Error("waiting for a sandbox failed")
	}
	// Our child, unless an earlier process of the node started it.
	_ = unix.Waitid(unix.P_PIDFD, s.pidfdNumber(), nil, unix.WEXITED|unix.WNOHANG, nil)
	oomKills, _ := s.group.init().oomKills()
	s.exit = Exit{OOMKilled: oomKills > 0, Removed: removed}
	close(s.done)
}

// Destroy kills everything in the sandbox and removes every trace: processes, mounts, the record, and then network, control groups and directory, which may be
// removed later (Config.TidyAfter). It may be called again, also after an error.
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

	left := &remains{id: s.id, network: s.holdNetwork()}
	kept := false
	defer func() {
		if !kept {
			left.close()
		}
	}()
	err := unix.PidfdSendSignal(s.pidfdNumber(), unix.SIGKILL, nil, 0)
	if err != nil { // it had ended, and its number may be another's
		left.close()
	}
	if err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill sandbox: %w", err)
	}
	s.discard()
	select {
	case <-s.done:
	case <-ctx.Done():
		return fmt.Errorf("destroy sandbox: %w", context.Cause(ctx))
	}
	for _, e := range s.running() {
		select {
		case <-e.done:
		case <-ctx.Done():
			return fmt.Errorf("destroy sandbox: %w", context.Cause(ctx))
		}
	}
	var oldest *remains
	if kept, oldest, err = s.runtime.dispose(ctx, left); err != nil {
		return fmt.Errorf("destroy sandbox: %w", err)
	}
	s.closeFiles()
	s.mu.Lock()
	s.wiped = true
	s.mu.Unlock()
	s.runtime.forget(s)
	s.runtime.release(s.slot)
	if oldest != nil {
		s.runtime.tidyUp(oldest)
	}
	return nil
}

func (s *Sandbox) running() []*Execution {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*Execution, 0, len(s.executions))
	for _, e := range s.executions {
		list = append(list, e)
	}
	return list
}

// detach ends the watching and leaves the sandbox running.
func (s *Sandbox) detach() {
	s.mu.Lock()
	s.detached = true
	s.mu.Unlock()
	s.discard()
	_ = s.pidfd.SetReadDeadline(time.Unix(1, 0))
	for _, e := range s.running() {
		e.abandon()
	}
	s.closeAfterWatch()
}

// closeAfterWatch leaves the descriptors to the end of the runtime: a file operation may still use them.
func (s *Sandbox) closeAfterWatch() {
	s.runtime.wg.Go(func() {
		for _, e := range s.running() {
			<-e.done
		}
		s.closeFiles()
	})
}

func (s *Sandbox) closeFiles() {
	for _, f := range []*os.File{s.pidfd, s.dir, s.root} {
		if f != nil {
			_ = f.Close()
		}
	}
}
