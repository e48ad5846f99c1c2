package gateway

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"net"
	"strconv"
	"time"

	"rockpool/internal/config"
	"rockpool/internal/logging"
	"rockpool/internal/nomad"
	"rockpool/internal/orchestrator"
	"rockpool/internal/runner/execution"
	"rockpool/internal/timeline"
)

// Embedded is an orchestrator in the gateway's own process. The gateway speaks HTTP with it like with any cluster, but where there is a shorter way.
type Embedded interface {
	// URL is where it answers once Run is under way, Token what it asks for.
	URL() string
	Token() string
	// Inside are the ways to it that need no connection; all nil = there are none.
	Inside() nomad.Inside
	// Timeline is what it records with; nil = nothing is recorded.
	Timeline() *timeline.Recorder
	Ready() <-chan struct{}
	Run(ctx context.Context) error
}

type embedded struct {
	*orchestrator.Agent
	token string
}

func (e embedded) Token() string { return e.token }

func (e embedded) Inside() nomad.Inside {
	return nomad.Inside{Transport: e.Transport(), Programs: programs{e.Agent}, Changes: func(namespace string) (nomad.Changes, error) {
		c, err := e.Agent.Changes(namespace)
		return changes{c}, err
	}}
}

// changes are those of the embedded orchestrator's state.
type changes struct{ *orchestrator.Changes }

func (c changes) Next(ctx context.Context) (uint64, []nomad.Change, error) {
	index, list, err := c.Changes.Next(ctx)
	out := make([]nomad.Change, len(list))
	for i, ch := range list {
		out[i] = nomad.Change(ch)
	}
	return index, out, err
}

// programs starts programs on the embedded orchestrator's own node.
type programs struct{ agent *orchestrator.Agent }

func (p programs) Start(ctx context.Context, allocID, task string, s nomad.Program) (nomad.Running, error) {
	e, err := p.agent.Exec(ctx, allocID, task, orchestrator.ExecSpec{
		ID: s.ID, Argv: s.Argv, Env: s.Env, User: s.User, TTY: s.TTY, SplitStderr: s.SplitStderr, TimeLimit: s.TimeLimit, OutputLimit: s.OutputLimit,
	})
	if errors.Is(err, orchestrator.ErrNotHere) {
		return nil, nomad.ErrElsewhere
	}
	if err != nil {
		return nil, err
	}
	return running{e}, nil
}

type running struct{ *orchestrator.Execution }

// Exit has the code as a shell tells it: that of a program that a signal has ended is 128 and its number.
func (r running) Exit() (execution.Exit, error) {
	res, err := r.Result()
	if err != nil {
		return execution.Exit{}, err
	}
	e := execution.Exit{Code: res.ExitCode}
	if res.Signal != 0 && res.ExitCode <= 0 {
		e.Code = 128 + res.Signal
	}
	switch {
	case res.Warm:
		e.Start = execution.Warm
	case res.Cold:
		e.Start = execution.Cold
	}
	return e, nil
}

// NewEmbedded prepares the embedded orchestrator. Its token is made anew at each start and known to this process only, so that other users of the
// machine cannot use its API.
// The namespace, which the gateway's jobs are in, is made where it is missing.
// What is recorded of the gateway's requests is recorded here too.
func NewEmbedded(cfg config.Orchestrator, tracing config.Tracing, namespace string, log logging.Logger) (Embedded, error) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails, by its documentation
	token := base64.RawURLEncoding.EncodeToString(secret)
	gpus := orchestrator.GPUConfig{
		Off: !cfg.GPU.Enabled, Ignore: cfg.GPU.IgnoredIDs, Period: time.Duration(cfg.GPU.Period) * time.Second, StopAiling: cfg.GPU.OnUnhealthy == config.Stop,
	}
	gpus.Slots.Count, gpus.Slots.MemoryMB, gpus.Slots.Of = int(cfg.GPU.Slots), int(cfg.GPU.SlotMemory), cfg.GPU.SlottedGPUs
	agent, err := orchestrator.NewAgent(orchestrator.AgentConfig{
		DataDir: cfg.DataDir, Address: net.JoinHostPort(cfg.Address, strconv.Itoa(int(cfg.Port))), Token: token,
		RemoveOnStop: cfg.OnStop == config.Remove, AllowUnconfined: cfg.AllowUnconfined, Log: log,
		Server: orchestrator.ServerOptions{EventBuffer: int(cfg.EventBuffer) << 20},
		Images: orchestrator.ImageConfig{
			LocalDirs: cfg.Images.LocalDirs, Mirrors: cfg.Images.Mirrors, PlainHTTP: cfg.Images.PlainHTTP, Credentials: cfg.Images.Credentials,
			MaxBytes: int64(cfg.Images.MaxSize) << 30, MaxAge: time.Duration(cfg.Images.MaxAge) * time.Hour,
		},
		Network: orchestrator.NetworkConfig{
			Range: cfg.Network.Range, DNS: cfg.Network.DNS, CNIConfigs: cfg.Network.CNIConfigs, CNIPlugins: cfg.Network.CNIPlugins,
		},
		GPUs:     gpus,
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
