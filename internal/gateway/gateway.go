package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"rockpool/deploy/jobs"
	"rockpool/internal/api"
	"rockpool/internal/api/access"
	"rockpool/internal/config"
	"rockpool/internal/environment"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/metrics"
	"rockpool/internal/metrics/influx"
	"rockpool/internal/nomad"
	"rockpool/internal/runner"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/files"
	"rockpool/internal/runner/pool"
	"rockpool/internal/timeline"
)

// Gateway is the whole program.
type Gateway struct {
	cfg      config.Config
	embedded Embedded
	log      logging.Logger
	template string
	listen   []net.Listener

	tokens      *access.Tokens
	certificate *certificate // nil without TLS
	telemetry   *telemetry
	timeline    *timeline.Recorder // nil = nothing is recorded
	operations  *operations
	stats       atomic.Pointer[runner.Manager] // whose pools the figures tell, once there is one
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
	var err error
	if t := cfg.Server.TLS; t.Active {
		// Here rather than once the service has said that it listens.
		if g.certificate, err = loadCertificate(t.CertFile, t.KeyFile); err != nil {
			return nil, err
		}
	}
	if g.tokens, err = access.Load(cfg.Server.Token, cfg.Server.TokenFile); err != nil {
		return nil, err
	}
	g.telemetry = newTelemetry(g.pools, g.agent(), log)
	o := cfg.Tracing.Options()
	o.Service, o.Version, o.Namespace, o.Count, o.Log = cmp.Or(o.Service, "rockpool-gateway"), Version(), cfg.Nomad.Namespace, g.telemetry.figures.Spans, log
	if g.timeline, err = timeline.New(o); err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	if embedded != nil {
		embedded.Timeline().ShowIn(g.timeline)
	}
	if i := cfg.InfluxDB; i.URL != "" {
		g.telemetry.points = influx.New(influx.Options{
			URL: i.URL, Token: i.Token, Organization: i.Organization, Bucket: i.Bucket, Stage: i.Stage, Count: g.telemetry.figures.Points, Log: log,
		})
	}
	if g.operations, err = newOperations(cfg, g.tokens, g.telemetry.figures.Handler(), log); err != nil {
		return nil, err
	}
	if g.listen, err = listeners(cfg.Server); err != nil {
		g.operations.close()
		return nil, err
	}
	return g, nil
}

// pools are those that the figures tell of.
func (g *Gateway) pools() map[int]metrics.PoolState {
	all := map[int]metrics.PoolState{}
	if m := g.stats.Load(); m != nil {
		for id := range m.AllStats() {
			if r, ok := m.Report(id, false); ok {
				all[int(id)] = poolState(r, time.Now())
			}
		}
	}
	return all
}

// poolState is a report in figures.
func poolState(r runner.Report, now time.Time) metrics.PoolState {
	s := metrics.PoolState{
		Wanted: r.Size, Idle: r.Idle, Starting: r.Starting, Used: r.Used, Waiting: r.Waiting, HitRate: r.Hits.Share, FailedStarts: r.Failures.Count,
	}
	if !r.Failures.Retry.IsZero() {
		s.Retry = max(r.Failures.Retry.Sub(now), 0)
	}
	if r.Automatic != nil {
		s.Automatic, s.Min, s.Max = true, r.Spec.Min, r.Spec.Max
	}
	s.Short, s.Possible = r.Short, r.Possible
	return s
}

// Addr is where the API listens.
func (g *Gateway) Addr() net.Addr { return g.listen[0].Addr() }

// Operations is where the listener of an address of the configuration, metrics.address or profiling.address, is; "" = there is none.
func (g *Gateway) Operations(address string) string {
	if l := g.operations.listeners[address]; l != nil {
		return l.Addr().String()
	}
	return ""
}

// stopTime bounds the end of what has no bound of its own.
const stopTime = 15 * time.Second

// Run serves until ctx ends.
func (g *Gateway) Run(ctx context.Context) (err error) {
	defer g.operations.close()
	defer func() {
		for _, l := range g.listen {
			_ = l.Close()
		}
	}()
	options := g.clusterOptions(g.cluster(), g.cfg.Nomad.Token)
	var services []lifecycle.Service
	if g.embedded != nil {
		options.Address, options.Token, options.Inside = g.embedded.URL(), g.embedded.Token(), g.embedded.Inside()
		if g.telemetry.points != nil { // they have events as they are on the wire
			options.Inside.Changes = nil
		}
		services = append(services, lifecycle.Service{Name: "orchestrator", Run: g.embedded.Run, Grace: 4 * stopTime})
	}
	cluster, err := nomad.New(options, g.log)
	if err != nil {
		return err
	}
	defer cluster.Close()

	server, alert := g.cfg.Server, g.cfg.Server.Alert
	several, err := g.several(cluster)
	if err != nil {
		return err
	}
	limits := pool.DefaultLimits()
	limits.Concurrency, limits.Runners, limits.Used = int(g.cfg.Pools.Concurrency), int(g.cfg.Pools.MaxRunners), int(g.cfg.Pools.MaxUsed)
	runners := runner.NewManager(watchedCluster{cluster, g.telemetry}, runner.Options{
		Shared: several.shared(cluster), Claimed: g.telemetry.Claimed, Pull: true,
		Limits: limits, ClaimWait: time.Duration(server.ClaimWait) * time.Second, MaxWait: time.Duration(g.cfg.Pools.MaxWait) * time.Second,
		ReloadBelow: alert.PrewarmingPoolThreshold, ReloadAfter: time.Duration(alert.PrewarmingPoolReloadTimeout) * time.Second,
	}, g.log)
	g.stats.Store(runners)
	envs := environment.NewService(cluster, watchedPools{runners, g.telemetry}, !g.cfg.Nomad.DisableForcePull)
	several.join(cluster, envs, runners, g.telemetry.figures)
	var tasks lifecycle.Tasks
	engine := &execution.Engine{Executor: cluster, SplitStderr: server.InteractiveStderr, OutputLimit: int64(server.OutputLimit) << 20, Native: cluster.Native, Tasks: &tasks}
	ready := make(chan struct{})
	routes := api.New(api.Options{
		Tokens: g.tokens, TLS: server.TLS.Active, PublicURL: server.PublicURL, AlertThreshold: alert.PrewarmingPoolThreshold,
		ForbidSingleQuote: server.ForbidSingleQuote, CopyModificationTime: server.CopyModificationTime, Version: Version(),
		ReattachBuffer: int64(server.ReattachBuffer) << 20, Uploads: files.NewRoom(int64(server.Limits.UploadMemory)<<20, int64(server.Limits.UploadDisk)<<20),
		MaxExecutions: int(server.Limits.ExecutionsPerRunner), MaxExecutionsInAll: int(server.Limits.Executions),
		Fits:  cluster.Fits,
		Warms: cluster.Native,
		Watch: g.telemetry, Metrics: g.telemetry.figures.Handler(), Timeline: g.timeline, Gateways: several.gateways(), GatewayTLS: several.tls,
	}, envs, runners, engine, cluster, ready, g.log)

	if g.timeline != nil {
		services = append(services, lifecycle.Service{Name: "tracing", Run: g.timeline.Run, Grace: 2 * stopTime}) // ends after what it records
	}
	if g.telemetry.points != nil {
		services = append(services,
			lifecycle.Service{Name: "influxdb", Run: g.telemetry.points.Run}, // ends last of what has something to tell
			lifecycle.Service{Name: "census", Run: g.telemetry.periodic})
	}
	return lifecycle.Run(ctx, append(services,
		lifecycle.Service{Name: "gateways", Run: func(ctx context.Context) error {
			if !g.clusterReady(ctx) {
				return nil
			}
			return several.run(ctx)
		}},
		lifecycle.Service{Name: "runners", Grace: stopTime, Run: func(ctx context.Context) error {
			if !g.clusterReady(ctx) {
				return nil
			}
			select { // so that one listing tells everything, whoever leads
			case <-several.joined():
			case <-ctx.Done():
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
		lifecycle.Service{Name: "recovery", Run: func(ctx context.Context) error { return g.recover(ctx, cluster, envs, runners, several, ready) }},
		lifecycle.Service{Name: "watchdog", Run: g.watchdog}, // also while executions are waited for
		lifecycle.Service{Name: "http", Grace: 2*stopTime + g.drainTime(), Run: func(ctx context.Context) error { return g.serve(ctx, routes, several.handler(routes, runners)) }},
		lifecycle.Service{Name: "profile", Run: g.profile},
		lifecycle.Service{Name: "memory profile", Run: g.memoryProfile},
		lifecycle.Service{Name: "operations", Run: g.operations.run},
		lifecycle.Service{Name: "reload", Run: g.reload},
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
		Address: address, Token: token, Namespace: n.Namespace, Region: n.Region, Template: g.template, ForcePull: !n.DisableForcePull,
		Observer: g.telemetry, Timeline: g.timeline, SplitStderr: g.cfg.Server.InteractiveStderr,
		Network: nomad.Network{
			Mode: n.Network.Mode, Hostname: n.Network.Hostname,
			Servers: n.Network.DNS.Servers, Searches: n.Network.DNS.Searches, Options: n.Network.DNS.Options,
		},
	}
	if n.TLS.Active {
		o.CAFile, o.CertFile, o.KeyFile, o.ServerName = n.TLS.CAFile, n.TLS.CertFile, n.TLS.KeyFile, n.TLSServerName
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
func (g *Gateway) recover(ctx context.Context, cluster *nomad.Client, envs *environment.Service, runners *runner.Manager, several *several, ready chan<- struct{}) error {
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
	case <-several.joined():
	case <-ctx.Done():
		return nil
	}
	select {
	case <-runners.Ready():
		g.log.Info("recovery is done")
		close(ready)
		cluster.Revive(ctx)
	case <-ctx.Done():
	}
	<-ctx.Done()
	return nil
}

// agent marks the gateway's requests to itself.
func (g *Gateway) agent() string {
	return fmt.Sprintf("Rockpool/%.7s (%s) %s", Version(), g.cfg.Server.LoggingFilterToken, "Go-http-client/1.1")
}
