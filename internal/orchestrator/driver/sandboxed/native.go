package sandboxed

import (
	"errors"

	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/sandbox"
)

// Native makes a Runtime of this machine's own.
func Native(r *sandbox.Runtime) Runtime {
	return Bind(r, func(s *sandbox.Sandbox) driver.Files { return nativeFiles{s.Files()} }, translate)
}

// translate gives the runtime's errors the meaning they have for drivers. The text stays.
func translate(err error) error {
	switch {
	case errors.Is(err, sandbox.ErrNotFound), errors.Is(err, sandbox.ErrNotExecutable):
		return marked{err, driver.ErrNoCommand}
	case errors.Is(err, sandbox.ErrEnded), errors.Is(err, sandbox.ErrUnknown):
		return marked{err, driver.ErrTaskGone}
	}
	return err
}
