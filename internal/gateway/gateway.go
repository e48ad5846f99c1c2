package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"rockpool/deploy/jobs"
	"rockpool/internal/api"
	"rockpool/internal/config"
	"rockpool/internal/endpoint"
	"rockpool/internal/environment"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/nomad"
	"rockpool/internal/runner"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/pool"
)

// Gateway is the whole program.
type Gateway struct {
	cfg      config.Config
	embedded Embedded
	log      logging.Logger
	template string
	listen   []net.Listener
}

// New prepares a gateway. embedded is the cluster when none is configured, and nil otherwise. Nothing is started, but the listeners
// are open: an address that is taken shows here.
func New(cfg config.Config, embedded Embedded, log logging.Logger) (*Gateway, error) {
	g := &Gateway{cfg: cfg, embedded: embedded, log: log, template: jobs.TemplateEnvironment}
	if (cfg.Nomad.Address == "") != (embedded != nil) {
		return nil, errors.New("a gateway has either nomad.address or an embedded orchestrator")
	}
	if f := cfg.Server.TemplateJobFile; f != "" {
		data, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("server.templatejobfile: %w", err)
		}
		g.template = string(data)
	}
	if t := cfg.Server.TLS; t.Active {
		// Here rather than once the service has said that it listens.
		if _, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile); err != nil {
			return nil, fmt.Errorf("server.tls.certfile, server.tls.keyfile: %w", err)
		}
	}
	var err error
	g.listen, err = listeners(cfg.Server)
	return g, err
}

// Addr is where the API listens.
func (g *Gateway) Addr() net.Addr { return g.listen[0].Addr() }

// stopTime bounds the end of what has no bound of its own.
const stopTime = 15 * time.Second

// Run serves until ctx ends.
func (g *Gateway) Run(ctx context.Context) (err error) {
	defer func() {
		for _, l := range g.listen {
			_ = l.Close()
		}
	}()
	address, token := g.cluster(), g.cfg.Nomad.Token
	var services []lifecycle.Service
	if g.embedded != nil {
		address, token = g.embedded.URL(), g.embedded.Token()
		services = append(services, lifecycle.Service{Name: "orchestrator", Run: g.embedded.Run, Grace: 4 * stopTime})
	}
	cluster, err := nomad.New(g.clusterOptions(address, token), g.log)
	if err != nil {
		return err
	}
	defer cluster.Close()

	server, alert := g.cfg.Server, g.cfg.Server.Alert
	runners := runner.NewManager(cluster, runner.Options{
		Limits: pool.DefaultLimits(), ClaimWait: time.Duration(server.ClaimWait) * time.Second, Pull: true,
		ReloadBelow: alert.PrewarmingPoolThreshold, ReloadAfter: time.Duration(alert.PrewarmingPoolReloadTimeout) * time.Second,
	}, g.log)
	envs := environment.NewService(cluster, runners, !g.cfg.Nomad.DisableForcePull)
	var tasks lifecycle.Tasks
	engine := &execution.Engine{Executor: cluster, SplitStderr: server.InteractiveStderr, OutputLimit: int64(server.OutputLimit) << 20, Native: cluster.Native, Tasks: &tasks}
	ready := make(chan struct{})
	routes := api.New(api.Options{
		Token: server.Token, TLS: server.TLS.Active, PublicURL: server.PublicURL, AlertThreshold: alert.PrewarmingPoolThreshold,
		ForbidSingleQuote: server.ForbidSingleQuote, CopyModificationTime: server.CopyModificationTime, Version: Version(),
		ReattachBuffer: int64(server.ReattachBuffer) << 20,
		Observe:        g.access,
	}, envs, runners, engine, cluster, ready, g.log)

	return lifecycle.Run(ctx, append(services,
		lifecycle.Service{Name: "runners", Grace: stopTime, Run: func(ctx context.Context) error {
			if !g.clusterReady(ctx) {
				return nil
			}
			return runners.Run(ctx)
		}},
		lifecycle.Service{Name: "executions", Grace: stopTime, Run: func(ctx context.Context) error {
			<-ctx.Done()
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
			defer cancel()
			return tasks.Wait(stop)
		}},
		lifecycle.Service{Name: "recovery", Run: func(ctx context.Context) error { return g.recover(ctx, envs, runners, ready) }},
		lifecycle.Service{Name: "http", Grace: 2 * stopTime, Run: func(ctx context.Context) error { return g.serve(ctx, routes) }},
		lifecycle.Service{Name: "watchdog", Run: g.watchdog},
		lifecycle.Service{Name: "profile", Run: g.profile},
	)...)
}

// cluster is the URL of the configured cluster.
func (g *Gateway) cluster() string {
	n := g.cfg.Nomad
	if strings.Contains(n.Address, "://") {
		return n.Address
	}
	scheme := "http"
	if n.TLS.Active {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(strings.Trim(n.Address, "[]"), strconv.Itoa(int(n.Port)))
}

func (g *Gateway) clusterOptions(address, token string) nomad.Options {
	n := g.cfg.Nomad
	o := nomad.Options{
		Address: address, Token: token, Namespace: n.Namespace, Template: g.template, ForcePull: !n.DisableForcePull,
		Network: nomad.Network{
			Mode: n.Network.Mode, Hostname: n.Network.Hostname,
			Servers: n.Network.DNS.Servers, Searches: n.Network.DNS.Searches, Options: n.Network.DNS.Options,
		},
	}
	if n.TLS.Active {
		o.CAFile, o.CertFile, o.KeyFile = n.TLS.CAFile, n.TLS.CertFile, n.TLS.KeyFile
	}
	return o
}

// clusterReady waits until an embedded orchestrator can answer. Of any other cluster only asking tells.
func (g *Gateway) clusterReady(ctx context.Context) bool {
	if g.embedded == nil {
		return true
	}
	select {
	case <-g.embedded.Ready():
		return true
	case <-ctx.Done():
		return false
	}
}

// recover fills the catalogue, waits for the first listing of the runners, and lets requests in.
func (g *Gateway) recover(ctx context.Context, envs *environment.Service, runners *runner.Manager, ready chan<- struct{}) error {
	if !g.clusterReady(ctx) {
		return nil
	}
	for {
		callCtx, cancel := context.WithTimeout(ctx, 30*time.Second)
		err := envs.Recover(callCtx)
		cancel()
		if err == nil {
			break
		}
		g.log.WithField("error", err.Error()).Warn("the environments cannot be read yet, it is tried again")
		t := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
	select {
	case <-runners.Ready():
		g.log.Info("recovery is done")
		close(ready)
	case <-ctx.Done():
	}
	<-ctx.Done()
	return nil
}

// access writes the access log.
func (g *Gateway) access(o endpoint.Observation) {
	entry := g.log.WithFields(logging.Fields{
		"code": o.Status, "method": o.Method, "path": o.Path, "duration": o.Duration.String(), "user_agent": o.Agent,
	})
	if o.Agent == g.agent() {
		logging.Trace(entry, "handled")
		return
	}
	entry.Debug("handled")
}

// agent marks the gateway's requests to itself.
func (g *Gateway) agent() string {
	return fmt.Sprintf("Rockpool/%.7s (%s) %s", Version(), g.cfg.Server.LoggingFilterToken, "Go-http-client/1.1")
}
