package orchestrator

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"rockpool/internal/certs"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/device"
	"rockpool/internal/orchestrator/device/nvidia"
	"rockpool/internal/orchestrator/driver/cdi"
	"rockpool/internal/orchestrator/httpapi"
	"rockpool/internal/orchestrator/leader"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/timeline"
)

// Role is which parts an agent has.
type Role uint8

// Roles.
const (
	ServerAndNode Role = iota
	ServerOnly
	NodeOnly
)

// ServerOptions is what an agent's server may be told. Zero values have the defaults of ServerConfig.
type ServerOptions struct {
	ACL            bool   // callers need tokens; see ServerConfig
	KeyFile        string // wraps the keys of variables; see ServerConfig
	AuditFile      string // see ServerConfig; "" = none is kept
	JoinToken      string // what nodes that are not known may show; "" = the agent's Token
	Cluster        ClusterConfig
	HeartbeatTTL   time.Duration
	HeartbeatGrace time.Duration
	Keep           leader.Keep
	LogSegment     int
	EventBuffer    int
}

// NodeOptions is what an agent's node may be told.
type NodeOptions struct {
	Servers   []string // base addresses of servers' HTTP API; empty = the server in the same agent
	JoinToken string   // shown to register for the first time; "" = the agent's Token
	Class     string
	Pool      string // default "default"
	Meta      map[string]string
	Volumes   map[string]*model.HostVolume // directories that jobs may name

	KeepEnded    int           // allocations that have ended whose logs and files stay; 0 = 50
	KeepEndedFor time.Duration // 0 = whatever their age

	ReservedCPU, ReservedMemory, ReservedDisk int // MHz, MB, MB that allocations do not get
	TotalCPU, TotalMemory                     int // MHz and MB that the machine is said to have; 0 = what is found
}

// GPUConfig is what a node does about GPUs. The zero value offers all that are found.
type GPUConfig struct {
	Off        bool          // they are not looked for
	Ignore     []string      // UUIDs or PCI bus ids of those that are not offered
	Period     time.Duration // between two looks at them; 0 = 30 s
	StopAiling bool          // allocations fail when a GPU of theirs becomes unhealthy
	Slots      nvidia.Slots  // that GPUs are shared as
	Library    string        // path of the driver's library; "" = libnvidia-ml.so.1 where the system's loader finds it
}

// devices are what the node finds of devices, and who makes their specifications where the operator has none; nil = nothing is looked for.
func (c GPUConfig) devices(log logging.Logger) (*device.Manager, cdi.Maker) {
	if c.Off {
		return nil, nil
	}
	gpus := nvidia.New(nvidia.Config{Ignore: c.Ignore, Poll: c.Period, Slots: c.Slots, Library: c.Library, Log: log})
	return device.NewManager(log, gpus), gpus.Specify
}

// TLSConfig names the files of mutual TLS between servers, nodes and clients. They are read again by ReloadCertificates.
type TLSConfig struct {
	CAFile, CertFile, KeyFile string // empty = no TLS
	// VerifyServerHostname asks that servers' certificates carry the name server.<region>.nomad (or .rockpool), so that a node's certificate cannot speak
	// as a server.
	VerifyServerHostname bool
	// HTTP asks for TLS on the HTTP API; VerifyHTTPSClient also for a certificate of its clients.
	HTTP, VerifyHTTPSClient bool
}

// resources overrides what was found of the machine; nil = nothing.
func (o NodeOptions) resources() func(*model.NodeResources) {
	if o.TotalCPU == 0 && o.TotalMemory == 0 {
		return nil
	}
	return func(r *model.NodeResources) {
		r.CPU = cmp.Or(o.TotalCPU, r.CPU)
		r.MemoryMB = cmp.Or(o.TotalMemory, r.MemoryMB)
	}
}

// serverConfig is what the agent's server is made of. address is what clients are told.
func (cfg *AgentConfig) serverConfig(address string, steps *timeline.Recorder) ServerConfig {
	o := cfg.Server
	return ServerConfig{
		DataDir: filepath.Join(cfg.DataDir, "server"), Name: cmp.Or(cfg.Name, "server"), Datacenter: cfg.Datacenter, Address: address, Version: Version(),
		Token: cfg.Token, JoinToken: cmp.Or(o.JoinToken, cfg.Token), Log: cfg.Log, Cluster: o.Cluster,
		HeartbeatTTL: o.HeartbeatTTL, HeartbeatGrace: o.HeartbeatGrace, Keep: o.Keep, LogSegment: o.LogSegment, EventBuffer: o.EventBuffer, Metrics: cfg.Process.Metrics,
		Namespaces: cfg.Namespaces, Timeline: steps, ACL: o.ACL, KeyFile: o.KeyFile, AuditFile: o.AuditFile,
	}
}

// recorder is what the agent records with; nil = nothing is.
func (cfg *AgentConfig) recorder() (*timeline.Recorder, error) {
	o := cfg.Tracing
	o.Service, o.Version, o.Log = cmp.Or(o.Service, "rockpool-orchestrator"), Version(), cfg.Log
	o.Count = func(result string, n int) { cfg.Process.Metrics.Count("nomad.nomad.tracing.spans_"+result, float64(n)) }
	r, err := timeline.New(o)
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	return r, nil
}

// listen opens the listener of the HTTP API, with the limits and the certificates that it shall have.
func (a *Agent) listen(cfg AgentConfig) error {
	t := cfg.TLS
	if t.CAFile != "" || t.CertFile != "" || t.KeyFile != "" {
		var err error
		if a.certs, err = certs.Load(certs.Files{CA: t.CAFile, Cert: t.CertFile, Key: t.KeyFile}, cfg.Server.Cluster.Region, t.VerifyServerHostname); err != nil {
			return fmt.Errorf("tls: %w", err)
		}
	}
	in, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return fmt.Errorf("orchestrator: %w", err)
	}
	a.limiter = httpapi.NewLimiter(cfg.Limits, func() { cfg.Process.Metrics.Count("nomad.nomad.agent.http.exceeded", 1) })
	a.listener, a.scheme = a.limiter.Listen(in), "http"
	if t.HTTP {
		if a.certs == nil {
			return fmt.Errorf("tls: HTTPS needs the files of a certificate")
		}
		a.listener, a.scheme = tls.NewListener(a.listener, a.certs.HTTPListener(t.VerifyHTTPSClient)), "https"
	}
	return nil
}

// servers are the addresses that the node finds servers at.
func (a *Agent) servers(cfg AgentConfig) []string {
	if a.server == nil {
		return cfg.Node.Servers
	}
	return []string{a.URL()}
}

// handler is the HTTP API.
func (a *Agent) handler() http.Handler {
	if a.server == nil {
		return a.edge
	}
	return a.server.Handler()
}

// ReloadCertificates reads the files of TLS again. Connections keep what they began with; after an error the old ones stay.
func (a *Agent) ReloadCertificates() error {
	if a.certs == nil {
		return nil
	}
	return a.certs.Reload()
}
