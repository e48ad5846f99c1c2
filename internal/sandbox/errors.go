package sandbox

import (
	"errors"
	"fmt"
)

// The conditions a caller can act on. Test with errors.Is.
var (
	ErrNotFound      = errors.New("program not found")
	ErrNotExecutable = errors.New("program cannot be executed")
	ErrDirectory     = errors.New("working directory cannot be entered")
	ErrNoUser        = errors.New("no such user in the sandbox")
	ErrNotRegular    = errors.New("not a regular file")
	ErrEnded         = errors.New("sandbox has ended")
	ErrUnknown       = errors.New("no such sandbox")
	ErrExists        = errors.New("sandbox exists already")
	ErrFull          = errors.New("no free sandbox slot on this node")
	ErrBusy          = errors.New("a program runs in the sandbox, or an interpreter waits already")
	ErrNotKept       = errors.New("the sandbox keeps no program")
	ErrLost          = errors.New("outcome of the execution is unknown")
	ErrInvalid       = errors.New("invalid")
	ErrNotContained  = errors.New("this machine does not contain hostile programs")
)

// StepError is a step of the supervisor that the kernel refused. It unwraps to one of the conditions above, where one
// fits, and to the errno.
type StepError struct {
	Step  string
	Errno error
	Kind  error // may be nil
}

func (e *StepError) Error() string { return fmt.Sprintf("%s: %v", e.Step, e.Errno) }

// Unwrap gives the condition and the errno.
func (e *StepError) Unwrap() []error {
	if e.Kind == nil {
		return []error{e.Errno}
	}
	return []error{e.Kind, e.Errno}
}
