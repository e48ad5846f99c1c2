//go:build linux && cgo

package sandboxed

import (
	"errors"
	"fmt"

	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/sandbox"
)

// Native makes a Runtime of this machine's own.
func Native(r *sandbox.Runtime) Runtime {
	return Bind(r, func(*sandbox.Sandbox) driver.Files { return nil }, translate)
}

// translate gives the runtime's errors the meaning they have for drivers. The text stays.
func translate(err error) error {
	switch {
	case errors.Is(err, sandbox.ErrNotFound), errors.Is(err, sandbox.ErrNotExecutable):
		return fmt.Errorf("%w: %w", driver.ErrNoCommand, err)
	case errors.Is(err, sandbox.ErrEnded), errors.Is(err, sandbox.ErrUnknown):
		return fmt.Errorf("%w: %w", driver.ErrTaskGone, err)
	case errors.Is(err, sandbox.ErrDirectory):
		return fmt.Errorf("%w: %w", driver.ErrNotFound, err)
	}
	return err
}
