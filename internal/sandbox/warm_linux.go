//go:build linux && cgo

package sandbox

import (
	"archive/zip"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An interpreter that waits: it was started as an execution is, by the same shell with the same environment, user, streams and control group, and stopped at the end
// of its own start, before it opens a program. An execution that asks for just that, with any program, takes it over. Everything it is held to as an execution holds
// from its first instruction; what it says is not believed, and where anything does not fit the execution starts as every other.

const (
	warmReply    = time.Second // an interpreter that takes longer to answer is ended, and the program started without it
	waitingName  = "rockpool-waits-for-a-program-"
	waitingBytes = 2000 // of a program's name and arguments together
	warmModule   = "sitecustomize.py"
)

var (
	//go:embed warmup/sitecustomize.py
	warmEntry []byte // what the interpreter imports
	//go:embed warmup/wait.py
	warmCode []byte // what that runs: the first message
)

// waiting is an interpreter that waits, or one that is being started.
type waiting struct {
	spec      WarmSpec
	user      identity
	env       []string // with the image's defaults
	execution *Execution
	control   *os.File // what it is told, and what it answers
	cancel    context.CancelFunc
	settled   chan struct{} // closed when it waits, or will not
	ready     bool          // guarded by the sandbox's mu, as is where it is kept
}

// Warm starts an interpreter and returns when it waits for a program. There is one at a time, and none while a program runs: [ErrBusy]. After any error programs start
// as they do without it.
func (s *Sandbox) Warm(ctx context.Context, spec WarmSpec) error {
	if spec.Dir == "" {
		spec.Dir = s.spec.Root.WorkDir
	}
	env := withDefaultsFrom(spec.Env, s.spec.Root.Env)
	if err := (WarmSpec{Command: spec.Command, Imports: spec.Imports, Env: env}).Check(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &waiting{spec: spec, env: env, cancel: cancel, settled: make(chan struct{})}
	defer close(w.settled)
	if err := s.await(w); err != nil {
		return err
	}
	err := w.start(ctx)
	s.mu.Lock()
	kept := s.waiting == w
	if kept && err == nil {
		w.ready = true
	} else if kept {
		s.waiting = nil
	}
	s.mu.Unlock()
	if !kept { // a program has come meanwhile
		err = ErrBusy
	}
	if err == nil {
		return nil
	}
	w.end()
	return fmt.Errorf("warm up: %w", err)
}

// await makes w the one that the sandbox has.
func (s *Sandbox) await(w *waiting) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.removed, s.detached:
		return ErrEnded
	case s.waiting != nil, len(s.executions) > 0, s.crowded():
		return ErrBusy
	}
	g := s.nextGroup()
	w.execution = &Execution{
		sandbox: s, id: "/" + g.rel, // no id that a client could choose
		group: g, meter: newMeter(0), over: make(chan struct{}), done: make(chan struct{}),
	}
	s.waiting = w
	return nil
}

func (w *waiting) start(ctx context.Context) (err error) {
	e := w.execution
	if w.user, err = e.sandbox.lookUp(w.spec.User); err != nil {
		return err
	}
	archive, err := e.sandbox.runtime.warmArchive()
	if err != nil {
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		_ = archive.Close()
		return err
	}
	theirs := os.NewFile(uintptr(pair[1]), "warm-up")
	if err := unix.SetNonblock(pair[0], true); err != nil {
		closeNumbers(pair[:1])
		closeAll([]*os.File{theirs, archive})
		return err
	}
	w.control = os.NewFile(uintptr(pair[0]), "warm-up")
	if err := e.group.make(); err != nil {
		closeAll([]*os.File{theirs, archive})
		return err
	}
	line := "PYTHONPATH=/proc/self/fd/5 " + strings.Join(w.spec.Command, " ") + " " + waitingName + strings.Repeat("w", waitingBytes)
	err = e.start(ctx, ExecSpec{Argv: []string{shell, "-c", line}, Env: w.env, Dir: w.spec.Dir, User: w.spec.User, TTY: w.spec.TTY, MergeStderr: w.spec.MergeStderr,
		extra: []*os.File{theirs, archive}}, w.user, kindExec)
	if err != nil {
		e.pidfd = nil // start has closed what it opened
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = w.control.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := w.control.Write(warmCode); err != nil {
		return cause(ctx, err)
	}
	if err := w.tell('I', w.spec.Imports...); err != nil {
		return cause(ctx, err)
	}
	if err := w.hear('R'); err != nil {
		return cause(ctx, err)
	}
	if !stop() {
		return context.Cause(ctx)
	}
	return e.group.rest(true)
}

func (w *waiting) tell(kind byte, words ...string) error {
	_, err := w.control.Write(append([]byte{kind}, strings.Join(words, "\x00")...))
	return err
}

func (w *waiting) hear(kind byte) error {
	answer := make([]byte, 16)
	n, err := w.control.Read(answer)
	if err == nil && (n != 1 || answer[0] != kind) {
		err = errors.New("the interpreter answers something else")
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return nil
}

// silent says whether nothing has been written to the streams: what an import prints is no program's output.
func (w *waiting) silent() bool {
	for _, o := range []*output{w.execution.stdout, w.execution.stderr} {
		if o == nil {
			continue
		}
		written := true
		if raw, err := o.file.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				n, err := unix.Poll(fds, 0)
				written = n > 0 || err != nil
			})
		}
		if written {
			return false
		}
	}
	return true
}

// begin makes the waiting interpreter run a program. After an error it never will: it needs the last word, and does not get it.
func (w *waiting) begin(argv []string, spec ExecSpec) error {
	e := w.execution
	if err := e.group.rest(false); err != nil {
		return err
	}
	_ = w.control.SetDeadline(time.Now().Add(warmReply))
	if err := w.tell('P', argv...); err != nil {
		return err
	}
	if err := w.hear('Y'); err != nil {
		return err
	}
	if !w.silent() {
		return errors.New("it has written something")
	}
	if spec.Width != 0 || spec.Height != 0 {
		if err := e.Resize(spec.Width, spec.Height); err != nil {
			return err
		}
	}
	return w.tell('G')
}

// takeOver gives an execution the interpreter that waits, where that is what the execution would start. No execution and no error: it starts as others do.
func (s *Sandbox) takeOver(ctx context.Context, spec ExecSpec) (*Execution, error) {
	s.mu.Lock()
	w := s.waiting
	if w == nil || !w.ready {
		s.mu.Unlock()
		return nil, nil
	}
	argv, ok := w.program(spec, s.spec.Root.Env)
	if !ok || s.removed || s.detached || s.executions[spec.ID] != nil || len(s.executions) > 0 {
		s.mu.Unlock()
		return nil, nil
	}
	s.waiting = nil
	e := w.execution
	e.id, e.started, e.bounds, e.warm = spec.ID, time.Now(), boundsOf(spec), true
	e.meter.limit = spec.OutputLimit
	if s.executions == nil {
		s.executions = make(map[string]*Execution)
	}
	s.executions[e.id] = e
	s.mu.Unlock()

	user, err := s.lookUp(spec.User)
	if err == nil && (user.uid != w.user.uid || user.gid != w.user.gid || !slices.Equal(user.groups, w.user.groups)) {
		err = ErrNoUser
	}
	if err == nil {
		err = w.begin(argv, spec)
	}
	if err == nil {
		_ = w.control.Close()
		if ctx.Err() == nil {
			if err = e.follow(); err == nil {
				return e, nil
			}
		}
		w.end()
		return nil, fmt.Errorf("start execution: %w", cause(ctx, err))
	}
	s.runtime.logFor(s.id).WithError(err).Debug("an interpreter that waited was of no use")
	w.end()
	return nil, nil
}

// program is what spec runs in the interpreter: the program's file and its arguments. ok = false: it asks for anything else.
func (w *waiting) program(spec ExecSpec, defaults []string) (argv []string, ok bool) {
	dir := spec.Dir
	if len(spec.Argv) != 3 || spec.Argv[0] != shell || spec.Argv[1] != "-c" || spec.User != w.spec.User || dir != w.spec.Dir ||
		spec.TTY != w.spec.TTY || spec.MergeStderr != w.spec.MergeStderr || spec.Background || spec.Keep {
		return nil, false
	}
	words, ok := plainWords(spec.Argv[2])
	if n := len(w.spec.Command); !ok || len(words) <= n || !slices.Equal(words[:n], w.spec.Command) {
		return nil, false
	}
	argv = words[len(w.spec.Command):]
	bytes := 0
	for _, word := range argv {
		bytes += len(word) + 1
	}
	// Versions of Python differ in what they make of "./" where they make a name absolute.
	if bytes > waitingBytes || argv[0] == "" || strings.HasPrefix(argv[0], "-") || strings.HasPrefix(argv[0], "./") {
		return nil, false
	}
	return argv, slices.Equal(withDefaultsFrom(spec.Env, defaults), w.env)
}

// discard ends an interpreter that waits: no program of the tenant's ever runs beside one, which could tamper with it and have a share in what comes next.
func (s *Sandbox) discard() {
	s.mu.Lock()
	w := s.waiting
	if w == nil {
		s.mu.Unlock()
		return
	}
	s.waiting = nil
	ready := w.ready
	if ready { // Destroy waits for it
		if s.executions == nil {
			s.executions = make(map[string]*Execution)
		}
		s.executions[w.execution.id] = w.execution
	}
	s.mu.Unlock()
	w.cancel()
	if !ready {
		<-w.settled
		return
	}
	_ = w.execution.group.rest(false) // or its end would take long; where it fails it does
	_ = w.execution.killGroup()
	r := s.runtime
	r.mu.Lock()
	closed := r.closed
	if !closed {
		r.wg.Go(w.end)
	}
	r.mu.Unlock()
	if closed {
		w.end()
	}
}

// end kills the interpreter and removes every trace of it.
func (w *waiting) end() {
	e := w.execution
	if w.control != nil {
		_ = w.control.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	_ = e.group.rest(false)
	if err := e.group.clear(ctx); err != nil {
		e.sandbox.runtime.logFor(e.sandbox.id).WithError(err).Warn("the control group of a warm-up is left")
	}
	if e.pidfd != nil {
		e.connection.close()
		e.closeStreams()
	}
	e.sandbox.dismiss(e)
	close(e.done)
}

// warmArchive opens the code of warm-ups: one sealed file in memory for all sandboxes, which Python imports from. Each has an opening of its own, only for reading: what is
// shared of one, such as its place of reading, one tenant could tell another by.
func (r *Runtime) warmArchive() (*os.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, os.ErrClosed
	}
	if r.archive == nil {
		f, err := sealedArchive()
		if err != nil {
			return nil, fmt.Errorf("make the archive of warm-ups: %w", err)
		}
		r.archive = f
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", r.archive.Fd()))
}

func sealedArchive() (*os.File, error) {
	var content bytes.Buffer
	z := zip.NewWriter(&content)
	member, err := z.CreateHeader(&zip.FileHeader{Name: warmModule, Method: zip.Store})
	if err == nil {
		_, err = member.Write(warmEntry)
	}
	if err = errors.Join(err, z.Close()); err != nil {
		return nil, err
	}
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(warmModule, flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(warmModule, flags)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), warmModule)
	_, err = f.Write(content.Bytes())
	err = errors.Join(err, f.Chmod(0o444))
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
