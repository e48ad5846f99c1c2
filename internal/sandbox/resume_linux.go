//go:build linux && cgo

package sandbox

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Resume takes back the program that was started with Keep, in this process or an earlier one: its output from where the last reader left it, and its end, also
// when that has come already. Its stdin has ended, and WallTime counts from here. [ErrNotKept] when there was none.
func (s *Sandbox) Resume(ctx context.Context) (*Execution, error) {
	id := ""
	for _, name := range s.group.children() {
		if kept, ok := strings.CutPrefix(name, groupOfKept); ok {
			id = kept
		}
	}
	if id == "" {
		return nil, ErrNotKept
	}
	return s.resume(ctx, id)
}

// resume is Resume of the program that has that id.
func (s *Sandbox) resume(ctx context.Context, id string) (*Execution, error) {
	e := &Execution{
		sandbox: s, id: id, group: s.group.child(groupOfKept + id), kept: true, meter: newMeter(0), stdin: &stdin{closed: true},
		over: make(chan struct{}), done: make(chan struct{}), started: time.Now(),
	}
	if err := s.enrol(e); err != nil {
		return nil, err
	}
	if err := e.resume(ctx); err != nil {
		close(e.done)
		s.dismiss(e)
		return nil, fmt.Errorf("resume execution: %w", err)
	}
	return e, nil
}

// resume asks process 1 for what it has kept.
func (e *Execution) resume(ctx context.Context) (err error) {
	if e.connection, err = e.sandbox.dial(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			e.connection.close()
			e.closeStreams()
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = e.connection.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := e.connection.request(kindResume, nil, nil); err != nil {
		return cause(ctx, err)
	}
	began, fds, err := e.connection.receive()
	if err != nil {
		return cause(ctx, err)
	}
	if began.kind == kindNone {
		closeNumbers(fds)
		return ErrNotKept
	}
	if began.kind != kindStarting || len(fds) < keptStreams || len(fds) > keptStreams+1 {
		closeNumbers(fds)
		return fmt.Errorf("%w: supervisor sent %d descriptors", ErrLost, len(fds))
	}
	for _, fd := range fds {
		if err := unix.SetNonblock(fd, true); err != nil { // or the poller would not serve it
			closeNumbers(fds)
			return err
		}
	}
	e.stdout = newOutput(os.NewFile(uintptr(fds[0]), "pipe"), false, e.meter)
	e.stderr = newOutput(os.NewFile(uintptr(fds[1]), "pipe"), false, e.meter)
	if len(fds) > keptStreams { // it has not ended
		e.pidfd = os.NewFile(uintptr(fds[keptStreams]), "process of "+e.id)
	}
	if !stop() {
		return context.Cause(ctx)
	}
	_ = e.connection.SetDeadline(time.Time{})
	return e.follow()
}
