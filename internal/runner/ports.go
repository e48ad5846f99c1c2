package runner

import (
	"context"
	"errors"
	"time"

	"rockpool/internal/environment"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/pool"
)

// Port is where one of a runner's exposed ports can be reached.
type Port struct {
	Exposed uint
	Address string // ip:port
}

// Seen is one runner as the cluster shows it.
type Seen struct {
	pool.Observed
	Place   execution.Place
	Ports   []Port
	Mark    Mark   // of the claim, when it is used
	Gateway string // that claimed it; "" = one that did not say
	// Cause says why it ended: one of the causes of package execution.
	Cause error
}

// Mark is what a claim writes into a runner's job.
type Mark struct {
	Timeout time.Duration // of inactivity; 0 = none
	Owner   string        // who claimed it; "" = nobody in particular
	// Of a claim that may be repeated: what names it, what was asked for, and when. Key "" = it may not.
	Key     string
	Request string
	At      time.Time // to the second
}

// Feed is told what the cluster shows: first everything, then changes. After a gap, everything again.
type Feed interface {
	All(runners []Seen, index uint64)
	Changed(s Seen)
	Gone(id string)
}

// ErrClaimLost says that somebody else claimed the runner first.
var ErrClaimLost = errors.New("the runner was claimed by somebody else")

// Cluster is where runners live. Calls return within the deadline of their context.
type Cluster interface {
	// Watch feeds until ctx ends. It survives broken connections.
	Watch(ctx context.Context, f Feed) error
	// CreateRunner registers a runner; doing it again under the same id is no error. The index is that of the registration.
	CreateRunner(ctx context.Context, e environment.Environment, id string, pull bool) (index uint64, err error)
	// ClaimRunner marks a runner as used. An error that wraps ErrClaimLost means that it is somebody else's, or, if it is of the
	// kind NotFound too, gone.
	ClaimRunner(ctx context.Context, id string, m Mark) error
	// DestroyRunner leaves nothing of a runner; one that is not there is no error.
	DestroyRunner(ctx context.Context, id string) error
	// RunnersOf are the ids of all runner jobs of an environment.
	RunnersOf(ctx context.Context, id environment.ID) ([]string, error)
	// Orphans are those of an environment's runners that nobody uses and that are certainly a gateway's, if the cluster has no definition of the environment in any
	// state; otherwise there are none.
	Orphans(ctx context.Context, id environment.ID, runners []string) ([]string, error)
}
