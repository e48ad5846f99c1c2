package node

import (
	"context"

	"rockpool/internal/orchestrator/model"
)

// ServerConn is what the agent needs of the servers. An error of kind fault.NotFound means that they do not know the node.
type ServerConn interface {
	Register(ctx context.Context, n *model.Node) (model.NodeLease, error)
	Heartbeat(ctx context.Context) (model.NodeLease, error)
	// UpdateAllocations returns once the updates are committed. Updates of allocations that are gone are no error.
	UpdateAllocations(ctx context.Context, updates []model.AllocUpdate) error
	// Watch calls f for each message of one stream, the first being full, until the stream or ctx ends, or f fails.
	Watch(ctx context.Context, f func(model.AllocPush) error) error
}
