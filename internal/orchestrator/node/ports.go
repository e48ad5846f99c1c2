package node

import (
	"context"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/network"
)

// Networks gives allocations a network namespace of their own.
type Networks interface {
	// Fingerprint are attributes of the node: "network.<mode>" for each mode that is offered, and the address of mapped ports.
	Fingerprint() map[string]string
	// Attach makes an allocation's network, or finds it made. After an error there is none.
	Attach(ctx context.Context, allocID string, r network.Request) (network.Attachment, error)
	// Recover finds the network that an earlier process of the agent made.
	Recover(ctx context.Context, allocID string) (network.Attachment, error)
	// Detach takes it back; that there is none is no error.
	Detach(ctx context.Context, allocID string) error
	// Sweep takes back the networks of all allocations but those to keep. The agent calls it before anything else but Fingerprint.
	Sweep(ctx context.Context, keep []string) error
}

// ServerConn is what the agent needs of the servers. An error of kind fault.NotFound means that they do not know the node.
type ServerConn interface {
	Register(ctx context.Context, n *model.Node) (model.NodeLease, error)
	Heartbeat(ctx context.Context) (model.NodeLease, error)
	// UpdateAllocations returns once the updates are committed. Updates of allocations that are gone are no error.
	UpdateAllocations(ctx context.Context, updates []model.AllocUpdate) error
	// Watch calls f for each message of one stream, the first being full, until the stream or ctx ends, or f fails.
	Watch(ctx context.Context, f func(model.AllocPush) error) error
}

// ServiceConn is what the agent needs of servers that keep a catalogue of services.
type ServiceConn interface {
	// UpdateServices replaces all that these allocations offer; it returns once that is committed.
	UpdateServices(ctx context.Context, services []model.AllocServices) error
}
