package gateway

import (
	"context"
	"errors"

	"rockpool/internal/config"
	"rockpool/internal/logging"
)

// Embedded is an orchestrator in the gateway's own process. The gateway talks to it over HTTP like to any cluster.
type Embedded interface {
	// Start brings it up and returns its URL and a token for it.
	Start(ctx context.Context) (address, token string, err error)
	// Stop ends it; what it started has ended when it returns.
	Stop(ctx context.Context) error
}

// ErrNoEmbedded says that this binary cannot run without a cluster.
var ErrNoEmbedded = errors.New("nomad.address is empty, and this binary holds no embedded orchestrator: set nomad.address to a cluster")

// NewEmbedded makes the embedded orchestrator.
func NewEmbedded(config.Orchestrator, logging.Logger) (Embedded, error) { return nil, ErrNoEmbedded }
