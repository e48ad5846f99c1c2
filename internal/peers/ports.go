package peers

import (
	"context"
	"errors"
	"time"
)

// ErrLost says that a lease is not held any more.
var ErrLost = errors.New("the lease is not held any more")

// Lease is a name that is held until a while after its last renewal.
type Lease interface {
	// Renew errors wrap ErrLost when the lease is lost; after others its state is not known.
	Renew(ctx context.Context) error
	Release(ctx context.Context) error
}

// Entry is a lease as others see it.
type Entry struct {
	Held  bool
	Index uint64 // of its last change
}

// Leases are where names can be held. Calls return within the deadline of their context.
type Leases interface {
	// Acquire takes a name and stores items with it; false = another holds it.
	Acquire(ctx context.Context, name string, items map[string]string) (Lease, bool, error)
	Names(ctx context.Context) (map[string]Entry, error)
	Items(ctx context.Context, name string) (map[string]string, error)
	// Remove takes away what is left of a lease that nobody has touched since index.
	Remove(ctx context.Context, name string, index uint64) error
}

// Runners are those that this gateway knows.
type Runners interface {
	// Idle is how long ago a runner was last used through this gateway; false = it is not known here.
	Idle(id string) (time.Duration, bool)
	// Expired tells that a runner is being removed because nobody used it.
	Expired(id string)
}
