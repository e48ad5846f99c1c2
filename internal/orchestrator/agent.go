package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"rockpool/internal/lifecycle"
	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/consensus"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/link"
	"rockpool/internal/orchestrator/node"
	"rockpool/internal/orchestrator/node/serve"
)

// release is set when a release is linked.
var release string

// Version is the release, or 0.0.0: Nomad's clients want three numbers.
func Version() string {
	if release != "" {
		return release
	}
	return "0.0.0"
}

// AgentConfig says what one agent, a server and a node in one process, is.
type AgentConfig struct {
	DataDir         string // state of the server and the node, private to the agent
	Address         string // host:port of the HTTP API; port 0 = any free one
	Token           string // management token; empty = whoever reaches the address may do everything
	RemoveOnStop    bool   // an orderly stop ends all allocations; otherwise the next start takes them back
	AllowUnconfined bool   // run although no control group controller is usable
	Images          ImageConfig
	Network         NetworkConfig
	Runtimes        []string // OCI runtimes by name: name=path
	DockerEngine    string   // endpoint of an engine that runs the jobs made for Docker; "" = the native sandbox does
	DockerNetworks  []string // of that engine, that jobs may have; empty = none
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

// Agent is a server and a node in one process, which meet on the agent's own HTTP API.
type Agent struct {
	log      logging.Logger
	listener net.Listener
	server   *Server
	node     *node.Agent
	remote   *node.Remote
	handler  *serve.Handler // what the node answers
	walls    walls
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
	if a.walls, err = openWalls(cfg); err != nil {
		return nil, err
	}
	if a.listener, err = net.Listen("tcp", cfg.Address); err != nil {
		return nil, fmt.Errorf("orchestrator: %w", err)
	}
	address := a.listener.Addr().String()
	a.server, err = NewServer(ServerConfig{
		DataDir: filepath.Join(cfg.DataDir, "server"), Name: "server", Address: address, Version: Version(), Token: cfg.Token, JoinToken: cfg.Token, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	nodeDir := filepath.Join(cfg.DataDir, "node")
	identity, err := node.LoadIdentity(nodeDir)
	if err != nil {
		return nil, err
	}
	servers, err := node.NewRemote([]string{a.URL()}, identity, cfg.Token, &http.Client{})
	if err != nil {
		return nil, err
	}
	onStop := node.Keep
	if cfg.RemoveOnStop {
		onStop = node.Remove
	}
	a.node, err = node.New(node.Config{
		DataDir: nodeDir, HTTPAddr: address, Version: Version(), Drivers: a.walls.drivers, Networks: a.walls.networks,
		OnStop: onStop, Servers: servers, Log: cfg.Log,
		Attributes: func() map[string]string {
			return map[string]string{serve.AttributeImages: strconv.FormatBool(a.walls.images != nil)}
		},
	})
	if err != nil {
		return nil, err
	}
	a.handler = serve.New(a.node, a.walls.images, cfg.Log)
	a.server.SetLocalNode(identity.ID, a.handler)
	a.remote = servers
	return a, nil
}

// URL is where the HTTP API is served. It answers once Run is under way.
func (a *Agent) URL() string { return "http://" + a.listener.Addr().String() }

// Ready is closed once jobs can be placed: the server leads and knows the node.
func (a *Agent) Ready() <-chan struct{} { return a.node.Registered() }

// stopGrace bounds how long the allocations of a node may take to end.
const stopGrace = 30 * time.Second

// Run serves until ctx ends. The node stops first, while the API still takes its last reports.
func (a *Agent) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.close()) }()
	services := append(a.walls.services,
		lifecycle.Service{Name: "server", Run: a.server.Run, Grace: stopGrace},
		lifecycle.Service{Name: "orchestrator api", Run: a.serve},
		lifecycle.Service{Name: "node", Run: a.runNode, Grace: stopGrace},
		lifecycle.Service{Name: "node connections", Run: a.connect},
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
		return link.Keep(ctx, a.remote, a.handler, a.log)
	case <-ctx.Done():
		return nil
	}
}

func (a *Agent) serve(ctx context.Context) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true) // WebSockets need it
	s := &http.Server{
		Handler: a.server.Handler(), Protocols: &protocols,
		ReadHeaderTimeout: 15 * time.Second, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stopped := context.AfterFunc(ctx, func() {
		// Streams end with their context; what is left after a moment is cut.
		quick, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		if s.Shutdown(quick) != nil {
			_ = s.Close()
		}
	})
	defer stopped()
	if err := s.Serve(a.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
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
