package docker

import (
	"errors"
	"time"
)

// errElsewhere means that a container's processes are not to be found on this machine: the engine is on another one, or the runtime hides
// them behind a kernel of its own.
var errElsewhere = errors.New("not on this machine")

// measured is what the kernel counts of an execution, as far as it does.
type measured struct {
	cpu       time.Duration
	peak      int64 // bytes of memory
	oomKilled bool
}
