//go:build linux && cgo

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rockpool/internal/timeline"
)

// Exec starts a program. When it returns without an error the program is running: what cannot be executed is an error here
// ([ErrNotFound], [ErrNotExecutable], [ErrDirectory], [ErrNoUser]), not an exit code.
func (s *Sandbox) Exec(ctx context.Context, spec ExecSpec) (*Execution, error) {
	if !validID.MatchString(spec.ID) {
		return nil, fmt.Errorf("%w execution id", ErrInvalid)
	}
	if len(spec.Argv) == 0 || spec.Argv[0] == "" {
		return nil, fmt.Errorf("%w command: it is empty", ErrInvalid)
	}
	if spec.Dir == "" {
		spec.Dir = s.spec.Root.WorkDir
	}
	if !path.IsAbs(spec.Dir) {
		return nil, fmt.Errorf("%w working directory: it must be absolute", ErrInvalid)
	}
	for _, text := range append(append([]string{spec.Dir}, spec.Argv...), spec.Env...) {
		if strings.ContainsRune(text, 0) {
			return nil, fmt.Errorf("%w command: it contains a NUL", ErrInvalid)
		}
	}
	if spec.TimeLimit < 0 || spec.CPULimit < 0 || spec.OutputLimit < 0 || spec.Grace < 0 {
		return nil, fmt.Errorf("%w limit: it is negative", ErrInvalid)
	}
	if !spec.Keep {
		return s.exec(ctx, spec, kindExec)
	}
	if spec.TTY || spec.MergeStderr || spec.Background || boundsOf(spec).any() {
		return nil, fmt.Errorf("%w command: one that is kept has streams of its own, no limits, and leaves nothing behind", ErrInvalid)
	}
	return s.exec(ctx, spec, kindKeep)
}

// exec is Exec after its checks. kind is what process 1 is asked for.
func (s *Sandbox) exec(ctx context.Context, spec ExecSpec, kind uint32) (*Execution, error) {
	if kind == kindExec {
		if e, err := s.takeOver(ctx, spec); e != nil || err != nil {
			return e, err
		}
	}
	user, err := s.lookUp(spec.User)
	if err != nil {
		return nil, err
	}
	e := &Execution{
		sandbox: s, id: spec.ID, bounds: boundsOf(spec), meter: newMeter(spec.OutputLimit), kept: spec.Keep,
		over: make(chan struct{}), done: make(chan struct{}), started: time.Now(),
	}
	span := timeline.From(ctx)
	if kind == kindExec { // one that is kept may run for as long as its task
		e.call = span.Above()
	}
	if err := s.enrol(e); err != nil {
		return nil, err
	}
	s.discard() // no program runs beside an interpreter that waits
	e.lap = span.Laps()
	if err := e.join(spec); err != nil {
		s.dismiss(e)
		if errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("%w: execution %s", ErrExists, spec.ID)
		}
		return nil, fmt.Errorf("start execution: %w", err)
	}
	e.lap.Done(timeline.ExecGroup)
	if err := e.start(ctx, spec, user, kind); err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		err = errors.Join(err, e.group.clear(clean))
		close(e.done)
		s.dismiss(e)
		return nil, fmt.Errorf("start execution: %w", err)
	}
	return e, nil
}

// join gives the execution its control group.
func (e *Execution) join(spec ExecSpec) error {
	switch {
	case spec.Background:
		e.group = e.sandbox.group.child(groupOfService + spec.ID)
	case spec.Keep:
		e.group = e.sandbox.group.child(groupOfKept + spec.ID)
	default:
		next, isMade := e.sandbox.groupForNext()
		e.group, e.before = next.group, next.before
		if isMade {
			return nil
		}
	}
	return e.group.make()
}

// enrol registers the execution, so that Destroy waits for it.
func (s *Sandbox) enrol(e *Execution) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed || s.detached {
		return ErrEnded
	}
	if s.executions[e.id] != nil {
		return fmt.Errorf("%w: execution %s", ErrExists, e.id)
	}
	if s.executions == nil {
		s.executions = make(map[string]*Execution)
	}
	s.executions[e.id] = e
	return nil
}

func (s *Sandbox) dismiss(e *Execution) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.executions[e.id] == e {
		delete(s.executions, e.id)
	}
}

// start opens the streams, sends the request and waits until the program runs.
func (e *Execution) start(ctx context.Context, spec ExecSpec, user identity, kind uint32) (err error) {
	s := e.sandbox
	var theirs []*os.File
	defer func() {
		closeAll(theirs)
		if err != nil {
			e.closeStreams()
		}
	}()
	status, statusTheirs, err := pipe(false)
	if err != nil {
		return err
	}
	defer func() { _ = status.Close() }()
	theirs = append(theirs, statusTheirs)
	base := s.runtime.idBase(s.slot)
	forProgram := func(toProgram bool) (*os.File, error) {
		ours, other, err := programPipe(toProgram, int(base+user.uid), int(base+user.gid))
		if err == nil {
			theirs = append(theirs, other)
		}
		return ours, err
	}
	var in, out, stderr *os.File
	if !spec.TTY {
		if in, err = forProgram(true); err != nil {
			return err
		}
		e.stdin = newStdin(in, false)
		if out, err = forProgram(false); err != nil {
			return err
		}
		e.stdout = newOutput(out, false, e.meter)
	}
	if !spec.MergeStderr {
		if stderr, err = forProgram(false); err != nil {
			return err
		}
		e.stderr = newOutput(stderr, false, e.meter)
	}
	theirs = append(theirs, spec.extra...)
	join, err := e.group.join()
	if err != nil {
		return err
	}
	theirs = append(theirs, join...)
	given := theirs
	if e.kept { // process 1 holds on to our ends of what the program writes to
		given = slices.Insert(slices.Clone(theirs), 1, out, stderr)
	}

	e.lap.Done(timeline.ExecStreams)
	if e.connection, err = s.dial(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			e.connection.close()
		}
	}()
	_ = status.SetDeadline(time.Now().Add(requestTimeout)) // before the next line: a context that is over must not be given time again
	stop := context.AfterFunc(ctx, func() { _ = e.connection.SetDeadline(time.Unix(1, 0)); _ = status.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	numbers, err := numbersOf(given)
	if err != nil {
		return err
	}
	message := execMessage(spec, user, withDefaultsFrom(spec.Env, s.spec.Root.Env), e.call != nil)
	if len(message) > maxRequest {
		return fmt.Errorf("%w command: arguments and environment exceed %d bytes", ErrInvalid, maxRequest)
	}
	asked := time.Now()
	sendErr := e.connection.request(kind, message, numbers)
	closeAll(theirs) // the program's ends are the program's alone from here on
	theirs = nil
	if err := launched(status); err != nil {
		return cause(ctx, err)
	}
	if sendErr != nil {
		return cause(ctx, sendErr)
	}
	request := e.lap.Done(timeline.ExecRequest)
	began, fds, err := e.connection.receive()
	if err != nil {
		return cause(ctx, err)
	}
	if want := 1 + boolInt(spec.TTY); began.kind != kindStarting || len(fds) != want {
		closeNumbers(fds)
		return fmt.Errorf("%w: supervisor sent %d descriptors", ErrLost, len(fds))
	}
	e.pidfd = os.NewFile(uintptr(fds[0]), "process of "+e.id)
	// What comes from inside is only a length, and lies within the request whatever it is.
	request.Past(timeline.ExecFork, asked, asked.Add(time.Duration(began.micros)*time.Microsecond))
	if spec.TTY {
		if err := unix.SetNonblock(fds[1], true); err != nil {
			closeNumbers(fds[1:])
			return err
		}
		if e.peer, err = openPeer(fds[1]); err != nil {
			closeNumbers(fds[1:])
			return err
		}
		terminal := os.NewFile(uintptr(fds[1]), "terminal of "+e.id)
		e.terminal, e.stdin, e.stdout = terminal, newStdin(terminal, true), newOutput(terminal, true, e.meter)
	}
	if !stop() {
		return context.Cause(ctx)
	}
	_ = e.connection.SetDeadline(time.Time{})
	e.lap.Done(timeline.ExecStream)
	e.lap = e.call.Laps()
	if len(spec.extra) > 0 { // nothing of a client's runs yet
		return nil
	}
	return e.follow()
}

// numbersOf are the numbers of open files. File.Fd would not do: it takes a file away from the poller.
func numbersOf(files []*os.File) ([]int, error) {
	numbers := make([]int, len(files))
	for i, f := range files {
		raw, err := f.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { numbers[i] = int(fd) })
		}
		if err != nil {
			return nil, err
		}
	}
	return numbers, nil
}

// openPeer opens the program's side of a terminal for the node to hold. While it is open, a program that closes all its descriptors of the terminal
// and goes on is not mistaken for one that has ended; and the terminal is not hung up under a program that is just about to exit.
func openPeer(master int) (*os.File, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, fmt.Errorf("open the program's side of the terminal: %w", errno)
	}
	return os.NewFile(fd, "terminal"), nil
}

func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// launched reads the status pipe: its end without a byte means that execve closed it.
func launched(status *os.File) error {
	answer := make([]byte, verdictSize)
	n, err := io.ReadFull(status, answer)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	_, err = parseVerdict(answer[:n])
	step, ok := errors.AsType[*StepError](err)
	if !ok {
		return err
	}
	switch step.Step {
	case "execute":
		step.Kind = ErrNotExecutable
		if errors.Is(step.Errno, syscall.ENOENT) || errors.Is(step.Errno, syscall.ENOTDIR) {
			step.Kind = ErrNotFound
		}
	case "enter the working directory", "look at the working directory", "find the working directory in the root":
		step.Kind = ErrDirectory
	}
	return step
}

func execMessage(spec ExecSpec, user identity, env []string, timed bool) []byte {
	var b body
	b.u32(user.uid)
	b.u32(user.gid)
	b.u32(uint32(len(user.groups)))
	for _, g := range user.groups {
		b.u32(g)
	}
	var flags uint32
	if spec.TTY {
		flags |= flagTTY
	}
	if spec.MergeStderr {
		flags |= flagMerge
	}
	if len(spec.extra) > 0 {
		flags |= flagExtra
	}
	if timed {
		flags |= flagTimed
	}
	b.u32(flags)
	b.u32(uint32(spec.Width))
	b.u32(uint32(spec.Height))
	b.str(spec.Dir)
	b.strs(spec.Argv)
	b.strs(env)
	return b
}

// withDefaultsFrom adds the image's variables that the request does not set itself.
func withDefaultsFrom(env, defaults []string) []string {
	set := make(map[string]bool, len(env))
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		set[name] = true
	}
	all := append([]string(nil), env...)
	for _, d := range defaults {
		if name, _, _ := strings.Cut(d, "="); !set[name] {
			all = append(all, d)
		}
	}
	return all
}

// pipe makes a pipe of which only our end is served by the poller of the Go runtime. Programs expect to wait in read and write.
func pipe(toProgram bool) (ours, theirs *os.File, err error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	mine, other := 0, 1
	if toProgram {
		mine, other = 1, 0
	}
	if err := unix.SetNonblock(ends[mine], true); err != nil {
		closeNumbers(ends[:])
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	return os.NewFile(uintptr(ends[mine]), "pipe"), os.NewFile(uintptr(ends[other]), "pipe of the program"), nil
}

// programPipe makes a pipe without a name. Its inode is given to the program's user, so that the program can open
// /dev/stdin, /dev/stdout and /dev/stderr again, which checks permissions as for a file.
func programPipe(toProgram bool, uid, gid int) (ours, theirs *os.File, err error) {
	if ours, theirs, err = pipe(toProgram); err != nil {
		return nil, nil, err
	}
	if err := theirs.Chown(uid, gid); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("hand a pipe to the user: %w", err), ours.Close(), theirs.Close())
	}
	return ours, theirs, nil
}
