package gateway

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"net"
	"strconv"
	"time"

	"rockpool/internal/config"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator"
	"rockpool/internal/timeline"
)

// Embedded is an orchestrator in the gateway's own process. The gateway talks to it over HTTP like to any cluster.
type Embedded interface {
	// URL is where it answers once Run is under way, Token what it asks for.
	URL() string
	Token() string
	Ready() <-chan struct{}
	Run(ctx context.Context) error
}

type embedded struct {
	*orchestrator.Agent
	token string
}

func (e embedded) Token() string { return e.token }

// NewEmbedded prepares the embedded orchestrator. Its token is made anew at each start and known to this process only, so that other users of the
// machine cannot use its API.
// The namespace, which the gateway's jobs are in, is made where it is missing.
// What is recorded of the gateway's requests is recorded here too.
func NewEmbedded(cfg config.Orchestrator, tracing config.Tracing, namespace string, log logging.Logger) (Embedded, error) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails, by its documentation
	token := base64.RawURLEncoding.EncodeToString(secret)
	agent, err := orchestrator.NewAgent(orchestrator.AgentConfig{
		DataDir: cfg.DataDir, Address: net.JoinHostPort(cfg.Address, strconv.Itoa(int(cfg.Port))), Token: token,
		RemoveOnStop: cfg.OnStop == config.Remove, AllowUnconfined: cfg.AllowUnconfined, Log: log,
		Images: orchestrator.ImageConfig{
			LocalDirs: cfg.Images.LocalDirs, Mirrors: cfg.Images.Mirrors, PlainHTTP: cfg.Images.PlainHTTP, Credentials: cfg.Images.Credentials,
			MaxBytes: int64(cfg.Images.MaxSize) << 30, MaxAge: time.Duration(cfg.Images.MaxAge) * time.Hour,
		},
		Network: orchestrator.NetworkConfig{
			Range: cfg.Network.Range, DNS: cfg.Network.DNS, CNIConfigs: cfg.Network.CNIConfigs, CNIPlugins: cfg.Network.CNIPlugins,
		},
		Runtimes: cfg.Runtimes, CDIDirs: cfg.CDIDirs, DockerEngine: cfg.DockerEngine, DockerNetworks: cfg.DockerNetworks, Namespaces: []string{namespace},
		Tracing: steps(tracing),
	})
	if err != nil {
		return nil, err
	}
	return embedded{agent, token}, nil
}

// steps is what the orchestrator records: its part of what the gateway does, which the gateway keeps.
func steps(t config.Tracing) timeline.Options {
	o := t.Options()
	o.Tell, o.Keep = o.Keep > 0, 0
	return o
}
