//go:build !linux

package network

import (
	"context"
	"errors"
	"fmt"

	"rockpool/internal/orchestrator/driver"
)

// Manager gives allocations their networks; this build has none.
type Manager struct{}

var errUnsupported = fmt.Errorf("networks for runners need Linux: %w", errors.ErrUnsupported)

// New says that there are no networks.
func New(Config) (*Manager, error) { return nil, errUnsupported }

// Run waits for the end of ctx.
func (*Manager) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Close does nothing.
func (*Manager) Close() error { return nil }

// Fences are none.
func (*Manager) Fences() []driver.Fence { return nil }

// Fingerprint is empty.
func (*Manager) Fingerprint() map[string]string { return nil }

// Attach fails.
func (*Manager) Attach(context.Context, string, Request) (Attachment, error) {
	return Attachment{}, errUnsupported
}

// Recover fails.
func (*Manager) Recover(context.Context, string) (Attachment, error) {
	return Attachment{}, errUnsupported
}

// Detach does nothing.
func (*Manager) Detach(context.Context, string) error { return nil }

// Sweep does nothing.
func (*Manager) Sweep(context.Context, []string) error { return nil }
