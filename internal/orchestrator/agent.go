package orchestrator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"rockpool/internal/certs"
	"rockpool/internal/endpoint"
	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/metrics"
	"rockpool/internal/orchestrator/consensus"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/mock"
	"rockpool/internal/orchestrator/httpapi"
	"rockpool/internal/orchestrator/inspect"
	"rockpool/internal/orchestrator/link"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node"
	"rockpool/internal/orchestrator/node/serve"
	"rockpool/internal/timeline"
)

// release is set when a release is linked.
var release string

// Version is the release, or 0.0.0 with the commit behind it: Nomad's clients and autopilot want three numbers.
func Version() string { return version(release) }

var threeNumbers = regexp.MustCompile(`^\d+\.\d+\.\d+([-+]|$)`)

func version(release string) string {
	switch v := strings.TrimPrefix(release, "v"); {
	case release == "":
		return "0.0.0"
	case threeNumbers.MatchString(v):
		return v
	default:
		return "0.0.0+" + release
	}
}

// AgentConfig says what one agent is: a server, a node, or both in one process.
type AgentConfig struct {
	Role            Role
	DataDir         string // state of the server and the node, private to the agent
	Address         string // host:port of the HTTP API; port 0 = any free one
	Advertise       string // host:port that others are told; "" = Address
	Token           string // management token; empty = whoever reaches the address may do everything
	Name            string // in the cluster; "" = "server" for a server, the host's name for a node. It must not change while DataDir is kept.
	Datacenter      string // default dc1
	Server          ServerOptions
	Node            NodeOptions
	TLS             TLSConfig
	Limits          httpapi.Limits  // of client addresses; 0 = unlimited
	Process         httpapi.Process // what the API tells of the process
	RemoveOnStop    bool            // an orderly stop ends all allocations; otherwise the next start takes them back
	AllowUnconfined bool            // run although no control group controller is usable
	Images          ImageConfig
	Network         NetworkConfig
	GPUs            GPUConfig
	Runtimes        []string         // OCI runtimes by name: name=path
	CDIDirs         []string         // where specifications of devices are; empty = the usual directories
	DockerEngine    string           // endpoint of an engine that runs the jobs made for Docker; "" = the native sandbox does
	DockerNetworks  []string         // of that engine, that jobs may have; empty = none
	MockDriver      bool             // offer the driver mock, whose tasks are entries in memory: for measurements and rehearsals
	Namespaces      []string         // made when they are missing
	Tracing         timeline.Options // what is recorded of where time goes; the zero value is nothing
	Log             logging.Logger
}

// ImageConfig says where a node gets images and how long it keeps them.
type ImageConfig struct {
	LocalDirs   []string // directories that images on the node may be taken from
	Mirrors     []string // registry=mirror
	PlainHTTP   []string // registries without TLS
	Credentials string   // a Docker config file; "" = that of the user
	MaxBytes    int64    // 0 = no bound
	MaxAge      time.Duration
}

// NetworkConfig is the network of a node's runners.
type NetworkConfig struct {
	Range      string   // IPv4 prefix; "" = there is no bridge
	DNS        []string // name servers to pass questions on to; empty = the node's own
	CNIConfigs string   // directories
	CNIPlugins string
}

// DefaultNetwork is the network of a node that was told nothing. The directories are Nomad's.
func DefaultNetwork() NetworkConfig {
	return NetworkConfig{Range: "172.30.64.0/20", CNIConfigs: "/opt/cni/config", CNIPlugins: "/opt/cni/bin"}
}

// walls are the drivers that a node isolates with.
type walls struct {
	drivers  []driver.Driver
	images   serve.Images        // of this node; nil = none
	networks node.Networks       // nil = none
	services []lifecycle.Service // that run as long as the node does, and longer
	close    func() error
}

// Agent is a server and a node in one process, which meet on the agent's own HTTP API, or only one of the two.
type Agent struct {
	log      logging.Logger
	listener net.Listener
	scheme   string
	limiter  *httpapi.Limiter
	certs    *certs.Store     // nil = no TLS
	server   *Server          // nil = the agent has none
	direct   *endpoint.Direct // to the API of server, for this process; nil without one
	edge     *httpapi.Edge
	node     *node.Agent // nil = the agent has none
	remote   *node.Remote
	answers  *serve.Handler // what the node answers
	walls    walls
	timeline *timeline.Recorder // nil = nothing is recorded
	unlock   func() error
}

// NewAgent prepares an agent: it probes the machine and opens the listener. The error of a machine that cannot isolate programs is one
// sentence that names what is missing and what to do.
func NewAgent(cfg AgentConfig) (_ *Agent, err error) {
	a := &Agent{log: cfg.Log}
	if cfg.DataDir, err = filepath.Abs(cfg.DataDir); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w: run as root, or name another one with orchestrator.datadir or --data-dir", err)
	}
	// Before anything else: a second process must not so much as look at the sandboxes of the first.
	if a.unlock, err = consensus.Lock(filepath.Join(cfg.DataDir, "lock")); err != nil {
		return nil, err
	}
	devices, specify := cfg.GPUs.devices(cfg.Log)
	if cfg.Role != ServerOnly {
		if a.walls, err = openWalls(cfg, specify); err != nil {
			return nil, err
		}
		if cfg.MockDriver {
			a.walls.drivers = append(a.walls.drivers, mock.New())
		}
	}
	if cfg.Process.Metrics == nil {
		cfg.Process.Metrics = metrics.New(nil)
	}
	if a.timeline, err = cfg.recorder(); err != nil {
		return nil, err
	}
	if err := a.listen(cfg); err != nil {
		return nil, err
	}
	address := cmp.Or(cfg.Advertise, a.listener.Addr().String())
	cfg.Process.Metrics.Read(metrics.Runtime)
	cfg.Process.Metrics.Read(func(set func(string, float64)) { set("nomad.nomad.agent.http.connections", float64(a.limiter.Open())) })
	if cfg.Role != NodeOnly {
		cfg.Server.Cluster.Certs, cfg.Server.Cluster.HTTPS = a.certs, a.certs != nil && cfg.TLS.HTTP
		if a.server, err = NewServer(cfg.serverConfig(address, a.timeline)); err != nil {
			return nil, err
		}
		a.server.SetProcess(cfg.Process)
		a.direct = &endpoint.Direct{Handler: a.server.Handler()}
	}
	if cfg.Role == ServerOnly {
		return a, nil
	}
	nodeDir := filepath.Join(cfg.DataDir, "node")
	identity, err := node.LoadIdentity(nodeDir)
	if err != nil {
		return nil, err
	}
	toServers := &http.Transport{MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute}
	if a.certs != nil {
		toServers.TLSClientConfig = a.certs.HTTPDialer()
	}
	var way http.RoundTripper = toServers
	if a.server != nil {
		way = nearby{own: []string{address, strings.TrimPrefix(a.URL(), a.scheme+"://")}, direct: a.direct, network: toServers}
	}
	servers, err := node.NewRemote(a.servers(cfg), identity, cmp.Or(cfg.Node.JoinToken, cfg.Token), &http.Client{Transport: way})
	if err != nil {
		return nil, err
	}
	onStop := node.Keep
	if cfg.RemoveOnStop {
		onStop = node.Remove
	}
	a.node, err = node.New(node.Config{
		DataDir: nodeDir, HTTPAddr: address, TLS: a.scheme == "https", Version: Version(), Drivers: a.walls.drivers, Networks: a.walls.networks,
		OnStop: onStop, Servers: servers, Log: cfg.Log,
		Name: cfg.Name, Datacenter: cfg.Datacenter, NodePool: cfg.Node.Pool, NodeClass: cfg.Node.Class, Meta: cfg.Node.Meta, Volumes: cfg.Node.Volumes,
		Reserved:  model.NodeResources{CPU: cfg.Node.ReservedCPU, MemoryMB: cfg.Node.ReservedMemory, DiskMB: cfg.Node.ReservedDisk},
		Resources: cfg.Node.resources(), KeepEnded: cfg.Node.KeepEnded, KeepEndedFor: cfg.Node.KeepEndedFor,
		Attributes: a.attributes, Devices: devices, StopAiling: cfg.GPUs.StopAiling, Timeline: a.timeline,
	})
	if err != nil {
		return nil, err
	}
	cfg.Process.Metrics.Read(a.node.Figures)
	a.answers, a.remote = serve.New(a.node, a.walls.images,
		inspect.Process{Name: cfg.Name, Log: cfg.Process.Log, Profiles: cfg.Process.Profiles}, cfg.Log), servers
	a.answers.Record(a.timeline)
	if a.server == nil {
		a.edge, err = httpapi.NewEdge(httpapi.EdgeConfig{
			Servers: a.servers(cfg), Transport: toServers, Known: func() []string { known, _ := servers.Servers(); return known }, NodeID: identity.ID, Name: cfg.Name, Version: Version(), Process: cfg.Process, Log: cfg.Log,
			Registered: func() bool {
				select {
				case <-a.node.Registered():
					return true
				default:
					return false
				}
			},
		})
		return a, err
	}
	a.server.SetLocalNode(identity.ID, a.answers)
	return a, nil
}

// attributes are those of the node that its agent does not find by itself.
func (a *Agent) attributes() map[string]string {
	attr := map[string]string{serve.AttributeImages: strconv.FormatBool(a.walls.images != nil)}
	if images, ok := a.walls.images.(interface{ Held(most int) []string }); ok {
		if held := images.Held(serve.MaxHeldImages); len(held) > 0 {
			attr[serve.AttributeHeldImages] = strings.Join(held, ",")
		}
	}
	return attr
}

// URL is where the HTTP API is served. It answers once Run is under way.
func (a *Agent) URL() string {
	address := a.listener.Addr().String()
	if at, err := netip.ParseAddrPort(address); err == nil && at.Addr().IsUnspecified() {
		loopback := netip.IPv6Loopback()
		if at.Addr().Is4() {
			loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		address = netip.AddrPortFrom(loopback, at.Port()).String()
	}
	return a.scheme + "://" + address
}

// Ready is closed once the agent does its part: the servers know its node, or without one its server leads or has caught up with the leader.
func (a *Agent) Ready() <-chan struct{} {
	if a.node == nil {
		return a.server.Ready()
	}
	return a.node.Registered()
}

// stopGrace bounds how long the allocations of a node may take to end.
const stopGrace = 30 * time.Second

// Timeline is what the agent records with; nil = nothing is recorded.
func (a *Agent) Timeline() *timeline.Recorder { return a.timeline }

// Run serves until ctx ends. The node stops first, while the API still takes its last reports.
func (a *Agent) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.close()) }()
	services := a.walls.services
	if a.timeline != nil {
		services = append(services, lifecycle.Service{Name: "tracing", Run: a.timeline.Run, Grace: stopGrace}) // ends after what it records
	}
	if a.server != nil {
		services = append(services, lifecycle.Service{Name: "server", Run: a.server.Run, Grace: stopGrace})
	}
	services = append(services, lifecycle.Service{Name: "orchestrator api", Run: a.serve})
	if a.node != nil {
		services = append(services, lifecycle.Service{Name: "node", Run: a.runNode, Grace: stopGrace},
			lifecycle.Service{Name: "node connections", Run: a.connect})
	}
	services = append(services,
		lifecycle.Service{Name: "readiness", Run: func(ctx context.Context) error {
			select {
			case <-a.Ready():
				a.log.WithField("url", a.URL()).Info("the orchestrator is ready")
			case <-ctx.Done():
			}
			<-ctx.Done()
			return nil
		}},
	)
	return lifecycle.Run(ctx, services...)
}

func (a *Agent) runNode(ctx context.Context) error {
	if a.server == nil {
		return a.node.Run(ctx)
	}
	select {
	case <-a.server.Ready():
		return a.node.Run(ctx)
	case <-ctx.Done():
		return nil
	}
}

// connect keeps the node's connections to the servers once they know it.
func (a *Agent) connect(ctx context.Context) error {
	select {
	case <-a.node.Registered():
		return link.Keep(ctx, a.remote, a.answers, a.log)
	case <-ctx.Done():
		return nil
	}
}

func (a *Agent) serve(ctx context.Context) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true) // WebSockets need it
	s := &http.Server{
		Handler: a.limiter.Handler(a.handler()), Protocols: &protocols, ConnContext: a.limiter.Context,
		ReadHeaderTimeout: 15 * time.Second, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx }, ErrorLog: logging.Connections(a.log),
	}
	stopped := context.AfterFunc(ctx, func() {
		// Streams end with their context; what is left after a moment is cut.
		quick, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		if a.direct != nil {
			a.direct.Cut()
		}
		if s.Shutdown(quick) != nil {
			_ = s.Close()
		}
	})
	defer stopped()
	err := s.Serve(a.listener)
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	if a.direct != nil {
		a.direct.Cut()
		quick, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		err = errors.Join(err, a.direct.Wait(quick))
	}
	return err
}

func (a *Agent) close() error {
	var errs []error
	if a.listener != nil {
		if err := a.listener.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if a.walls.close != nil {
		errs = append(errs, a.walls.close())
	}
	if a.unlock != nil {
		errs = append(errs, a.unlock())
	}
	return errors.Join(errs...)
}
