package orchestrator

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"

	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/metrics"
	"rockpool/internal/orchestrator/agentconfig"
	"rockpool/internal/orchestrator/device/nvidia"
	"rockpool/internal/orchestrator/httpapi"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
)

// Configured is an agent that configuration files describe.
type Configured struct {
	agent *Agent
	log   *logrus.Logger
	feed  *logging.Feed
	paths []string
}

// NewConfigured prepares the agent that files and directories at paths describe. Its log goes to out. token is a management token that no file holds; "" = none.
func NewConfigured(paths []string, out io.Writer, token string) (*Configured, error) {
	conf, err := agentconfig.Load(paths...)
	if err != nil {
		return nil, err
	}
	c := &Configured{paths: paths}
	form := logging.Text
	if conf.LogJSON {
		form = logging.JSON
	}
	if c.log, c.feed, err = logging.NewFeed(out, conf.LogLevel, form); err != nil {
		return nil, err
	}
	cfg, err := agentConfig(conf, token)
	if err != nil {
		return nil, err
	}
	cfg.Log = c.log
	if cfg.Tracing, err = conf.Tracing.Options(os.Environ()); err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	cfg.Process = httpapi.Process{
		Metrics: metrics.New(nil), NoPrometheus: !conf.Telemetry.PrometheusMetrics, Log: c.feed, Config: conf.Public, Reload: c.Reload,
		Profiles: conf.EnableDebug || conf.ACL.Enabled,
	}
	if err := cfg.Process.Metrics.Adopt(); err != nil {
		return nil, fmt.Errorf("take up the figures of libraries: %w", err)
	}
	c.agent, err = NewAgent(cfg)
	return c, err
}

// agentConfig is what a configuration means.
func agentConfig(conf agentconfig.Config, token string) (AgentConfig, error) {
	if conf.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return AgentConfig{}, fmt.Errorf("find a name for the agent: %w", err)
		}
		conf.Name = host
	}
	n, s := conf.Client, conf.Server
	slotMemory, err := n.GPU.SlotMemoryMB()
	if err != nil {
		return AgentConfig{}, fmt.Errorf("client.gpu.slot_memory: %w", err)
	}
	cfg := AgentConfig{
		DataDir: conf.DataDir, Address: listening(conf.Addresses.HTTP, conf.BindAddr, conf.Ports.HTTP), Advertise: advertised(conf.Advertise.HTTP, conf.Ports.HTTP),
		Token: token, Name: conf.Name, Datacenter: conf.Datacenter,
		Server: ServerOptions{
			ACL: conf.ACL.Enabled, KeyFile: s.KeyFile, AuditFile: conf.Audit.File,
			JoinToken: s.JoinToken, HeartbeatTTL: s.MinHeartbeatTTL, HeartbeatGrace: s.HeartbeatGrace, LogSegment: s.RaftLogSegment, EventBuffer: s.EventBufferBytes,
			Keep: leader.Keep{
				Every: s.JobGCInterval, Jobs: s.JobGCThreshold, Evals: s.EvalGCThreshold, EvalCount: s.EvalGCCount, Allocs: s.AllocGCAge, AllocCount: s.AllocGCCount, JobCount: s.JobGCCount,
			},
		},
		Node: NodeOptions{
			JoinToken: n.JoinToken, Class: n.NodeClass, Pool: n.NodePool, Meta: n.Meta, ReservedCPU: n.Reserved.CPU, ReservedMemory: n.Reserved.Memory,
			ReservedDisk: n.Reserved.Disk, TotalCPU: n.CPUTotalCompute, TotalMemory: n.MemoryTotalMB, KeepEnded: n.GCMaxAllocs, KeepEndedFor: n.GCMaxAge,
		},
		Limits:       httpapi.Limits{Conns: conf.Limits.HTTPMaxConnsPerClient, Streams: conf.Limits.HTTPMaxStreamsPerClient},
		RemoveOnStop: n.OnStop == agentconfig.Remove, AllowUnconfined: n.AllowUnconfined,
		Images: ImageConfig{
			LocalDirs: n.Images.LocalDirs, Mirrors: n.Images.Mirrors, PlainHTTP: n.Images.PlainHTTP, Credentials: n.Images.Credentials,
			MaxBytes: int64(n.Images.MaxSize) << 30, MaxAge: n.Images.MaxAge,
		},
		Network: NetworkConfig{Range: n.Network.Range, DNS: n.Network.DNS, CNIConfigs: n.CNIConfigDir, CNIPlugins: n.CNIPath},
		GPUs: GPUConfig{
			Off: !n.GPU.Enabled, Ignore: n.GPU.IgnoredGPUIDs, Period: n.GPU.FingerprintPeriod, StopAiling: n.GPU.OnUnhealthy == agentconfig.Stop,
			Slots: nvidia.Slots{Count: n.GPU.Slots, MemoryMB: slotMemory, Of: n.GPU.SlottedGPUs},
		},
		Runtimes: n.Runtimes, CDIDirs: n.CDIDirs, DockerEngine: n.Docker.Engine, DockerNetworks: n.Docker.Networks,
	}
	for name, v := range n.HostVolume {
		if cfg.Node.Volumes == nil {
			cfg.Node.Volumes = map[string]*model.HostVolume{}
		}
		cfg.Node.Volumes[name] = &model.HostVolume{Path: v.Path, ReadOnly: v.ReadOnly}
	}
	t := conf.TLS
	cfg.Server.Cluster.Region = conf.Region
	cfg.TLS = TLSConfig{
		CAFile: t.CAFile, CertFile: t.CertFile, KeyFile: t.KeyFile, VerifyServerHostname: t.VerifyServerHostname, HTTP: t.HTTP, VerifyHTTPSClient: t.VerifyHTTPSClient,
	}
	for _, server := range n.Servers {
		cfg.Node.Servers = append(cfg.Node.Servers, agentconfig.ServerURL(server, t.HTTP))
	}
	switch {
	case !s.Enabled:
		cfg.Role = NodeOnly
		return cfg, nil
	case !n.Enabled:
		cfg.Role = ServerOnly
	}
	return cfg, clusterOf(conf, &cfg.Server.Cluster)
}

// clusterOf says how the agent's server meets others.
func clusterOf(conf agentconfig.Config, c *ClusterConfig) error {
	s := conf.Server
	c.Expect, c.StrictIntroduction = s.BootstrapExpect, s.ClientIntroduction.Enforcement == agentconfig.Strict
	c.RPCAddress = listening(conf.Addresses.RPC, conf.BindAddr, conf.Ports.RPC)
	c.GossipAddress = listening(conf.Addresses.Serf, conf.BindAddr, conf.Ports.Serf)
	c.AdvertiseRPC, c.AdvertiseGossip = conf.Advertise.RPC, conf.Advertise.Serf
	if c.AdvertiseRPC == "" { // one of the two says where the machine is reached
		c.AdvertiseRPC = hostOf(conf.Advertise.Serf)
	}
	if c.AdvertiseGossip == "" {
		c.AdvertiseGossip = hostOf(conf.Advertise.RPC)
	}
	c.JoinInterval = s.ServerJoin.RetryInterval
	for _, j := range s.ServerJoin.RetryJoin {
		c.Join = append(c.Join, advertised(j, conf.Ports.Serf))
	}
	if s.Encrypt != "" {
		key, err := agentconfig.GossipKey(s.Encrypt)
		if err != nil {
			return fmt.Errorf("server.encrypt: %w", err)
		}
		c.GossipKey = key
	}
	return nil
}

// listening is where a service listens.
func listening(own, all string, port int) string {
	if own == "" {
		own = all
	}
	return net.JoinHostPort(own, strconv.Itoa(port))
}

// hostOf takes the port off an address that has one.
func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// advertised adds the port where an address has none.
func advertised(address string, port int) string {
	if address == "" {
		return ""
	}
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(strings.Trim(address, "[]"), strconv.Itoa(port))
}

// Reload reads the files again and takes over what can change without a restart: the level of the log and the certificates. After an error everything is as it
// was.
func (c *Configured) Reload() error {
	conf, err := agentconfig.Load(c.paths...)
	if err != nil {
		return err
	}
	if err := c.agent.ReloadCertificates(); err != nil {
		return err
	}
	if err := c.feed.SetLevel(conf.LogLevel); err != nil {
		return err
	}
	c.log.Info("configuration read again")
	return nil
}

// Run serves until ctx ends, and reloads whenever something comes from reload. A service manager that wants to know is told.
func (c *Configured) Run(ctx context.Context, reload <-chan os.Signal) error {
	return lifecycle.Run(ctx,
		lifecycle.Service{Name: "agent", Run: c.agent.Run, Grace: 3 * stopGrace},
		lifecycle.Service{Name: "reload", Run: func(ctx context.Context) error { return c.reloads(ctx, reload) }},
	)
}

func (c *Configured) reloads(ctx context.Context, reload <-chan os.Signal) error {
	c.tell(daemon.SdNotifyReady)
	for {
		select {
		case <-reload:
			c.tell(daemon.SdNotifyReloading)
			if err := c.Reload(); err != nil {
				c.log.WithField("error", err.Error()).Error("configuration was not read again, the old one stays")
			}
			c.tell(daemon.SdNotifyReady)
		case <-ctx.Done():
			c.tell(daemon.SdNotifyStopping)
			return nil
		}
	}
}

// tell tells the service manager. There may be none, and a failure to tell it changes nothing.
func (c *Configured) tell(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		c.log.WithField("error", err.Error()).Warn("the service manager could not be told of a change")
	}
}
