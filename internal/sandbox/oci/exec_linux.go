//go:build linux && cgo

package oci

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

	"rockpool/internal/sandbox"
)

const (
	startTimeout = 20 * time.Second
	maxRequest   = 4 << 20
)

// Exec starts a program. When it returns without an error the program is running; what cannot be executed is an error as that
// of [sandbox.Sandbox.Exec].
func (s *Sandbox) Exec(ctx context.Context, spec sandbox.ExecSpec) (*Execution, error) {
	if spec.Dir == "" {
		spec.Dir = s.spec.Root.WorkDir
	}
	switch {
	case !validID.MatchString(spec.ID):
		return nil, fmt.Errorf("%w execution id", sandbox.ErrInvalid)
	case len(spec.Argv) == 0 || spec.Argv[0] == "":
		return nil, fmt.Errorf("%w command: it is empty", sandbox.ErrInvalid)
	case !path.IsAbs(spec.Dir):
		return nil, fmt.Errorf("%w working directory: it must be absolute", sandbox.ErrInvalid)
	case spec.TimeLimit < 0 || spec.CPULimit < 0 || spec.OutputLimit < 0 || spec.Grace < 0:
		return nil, fmt.Errorf("%w limit: it is negative", sandbox.ErrInvalid)
	}
	for _, text := range append(append([]string{spec.Dir}, spec.Argv...), spec.Env...) {
		if strings.ContainsRune(text, 0) {
			return nil, fmt.Errorf("%w command: it contains a NUL", sandbox.ErrInvalid)
		}
	}
	user, err := s.files.LookUp(spec.User)
	if err != nil {
		return nil, err
	}
	// The accounts are the tenant's to write. Whoever had this id could stop the program that holds an execution to its limits.
	if user.UID == helperID || user.GID == helperID || slices.Contains(user.Groups, helperID) {
		return nil, fmt.Errorf("%w: %q has the id %d, which is kept for the sandbox itself", sandbox.ErrNoUser, spec.User, helperID)
	}
	body := request(spec, user, sandbox.WithDefaultsFrom(spec.Env, s.spec.Root.Env), s.runtime.filter)
	if len(body) > maxRequest {
		return nil, fmt.Errorf("%w command: arguments and environment exceed %d bytes", sandbox.ErrInvalid, maxRequest)
	}
	e := &Execution{sandbox: s, spec: spec, done: make(chan struct{}), started: time.Now(), oomKills: s.groups.Counters().OOMKills}
	if err := s.enrol(e); err != nil {
		return nil, err
	}
	if err := e.start(ctx, user, body); err != nil {
		e.release()
		for _, o := range []*output{e.stdout, e.stderr} {
			if o != nil {
				_ = o.file.Close()
			}
		}
		s.dismiss(e)
		close(e.done)
		return nil, fmt.Errorf("start execution: %w", err)
	}
	return e, nil
}

// enrol registers the execution, so that Destroy waits for it.
func (s *Sandbox) enrol(e *Execution) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed || s.detached {
		return sandbox.ErrEnded
	}
	if s.executions[e.spec.ID] != nil {
		return fmt.Errorf("%w: execution %s", sandbox.ErrExists, e.spec.ID)
	}
	if s.executions == nil {
		s.executions = make(map[string]*Execution)
	}
	s.executions[e.spec.ID] = e
	return nil
}

func (s *Sandbox) dismiss(e *Execution) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.executions[e.spec.ID] == e {
		delete(s.executions, e.spec.ID)
	}
}

// start opens the streams, has the runtime start our program, and waits until that has started the tenant's.
func (e *Execution) start(ctx context.Context, user sandbox.User, body []byte) (err error) {
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
	}()
	pipe := func(toProgram bool) (*os.File, error) {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		ours, other := r, w
		if toProgram {
			ours, other = w, r
		}
		theirs = append(theirs, other)
		return ours, nil
	}
	if e.status, err = pipe(false); err != nil {
		return err
	}
	if e.commands, err = pipe(true); err != nil {
		return err
	}
	streams := len(theirs)
	in, err := pipe(true)
	if err != nil {
		return err
	}
	e.stdin = &input{in}
	for _, out := range []**output{&e.stdout, &e.stderr} {
		if out == &e.stderr && e.spec.MergeStderr {
			break
		}
		f, err := pipe(false)
		if err != nil {
			return err
		}
		*out = &output{file: f, allow: e.count}
	}
	for i, f := range theirs {
		if i >= streams { // the program may open /dev/stdout again, which checks permissions as for a file
			if err := f.Chown(int(e.sandbox.base+user.UID), int(e.sandbox.base+user.GID)); err != nil {
				return fmt.Errorf("hand a pipe to the user: %w", err)
			}
			// A kernel of its own does not know whose an id of the node is. The pipe has no name that anybody else could open.
			if e.sandbox.runtime.kind.ownKernel {
				if err := f.Chmod(0o666); err != nil {
					return fmt.Errorf("hand a pipe to the user: %w", err)
				}
			}
		}
		if err := unix.SetNonblock(int(f.Fd()), false); err != nil { // programs expect to wait in read and write
			return err
		}
	}
	return e.launch(ctx, theirs, body)
}

func (e *Execution) launch(ctx context.Context, theirs []*os.File, body []byte) error {
	s, k := e.sandbox, e.sandbox.runtime.kind
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	args := []string{"exec", "--process", s.runtime.processFile(s.id)}
	args = append(args, k.pass(len(theirs))...)
	call, err := s.runtime.invoke(s.id, nil, theirs, append(args, s.id)...)
	if err != nil {
		return err
	}
	for _, f := range theirs {
		_ = f.Close() // from here on they are the program's alone
	}
	limit := time.Now().Add(startTimeout)
	_ = errors.Join(e.commands.SetWriteDeadline(limit), e.status.SetReadDeadline(limit))
	stop := context.AfterFunc(ctx, func() {
		_ = errors.Join(e.commands.SetWriteDeadline(time.Unix(1, 0)), e.status.SetReadDeadline(time.Unix(1, 0)))
	})
	defer stop()
	_, sent := e.commands.Write(body)
	first, err := e.next()
	if err == nil && first.kind == reportFailed {
		_ = call.wait()
		return refusal(first)
	}
	if err != nil || sent != nil || first.kind != reportStarted || !stop() {
		_ = e.commands.Close() // whatever runs by now ends with it
		_ = call.cmd.Process.Kill()
		said := call.wait()
		select {
		case <-s.done:
			return sandbox.ErrEnded
		default:
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w: %s did not start it: %w", sandbox.ErrLost, s.runtime.cfg.Name, errors.Join(said, sent, err))
	}
	_ = errors.Join(e.commands.SetWriteDeadline(time.Time{}), e.status.SetReadDeadline(time.Time{}))
	return e.follow(call)
}

// refusal is what the program inside could not do, as an error that package sandbox's callers know.
func refusal(r report) error {
	step := &sandbox.StepError{Step: steps[r.step], Errno: syscall.Errno(r.value)}
	switch r.step {
	case stepExecute:
		step.Kind = sandbox.ErrNotExecutable
		if errors.Is(step.Errno, syscall.ENOENT) || errors.Is(step.Errno, syscall.ENOTDIR) {
			step.Kind = sandbox.ErrNotFound
		}
	case stepDirectory:
		step.Kind = sandbox.ErrDirectory
	}
	return step
}

// next waits for the next thing that the program inside says.
func (e *Execution) next() (report, error) {
	b := make([]byte, reportSize)
	if _, err := io.ReadFull(e.status, b); err != nil {
		return report{}, err
	}
	return parseReport(b), nil
}
