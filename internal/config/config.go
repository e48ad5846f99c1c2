package config

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"

	"rockpool/internal/logging"
)

// Config is everything that can be configured.
type Config struct {
	Server       Server       `yaml:"server"`
	Nomad        Nomad        `yaml:"nomad"`
	Orchestrator Orchestrator `yaml:"orchestrator"`
	Logger       Logger       `yaml:"logger"`
	Profiling    Profiling    `yaml:"profiling"`
}

// Server is the API's listener and behaviour.
type Server struct {
	Address                 string `yaml:"address"`
	Port                    uint16 `yaml:"port"`
	SystemdSocketActivation bool   `yaml:"systemdsocketactivation"`
	Token                   string `yaml:"token"`
	TLS                     TLS    `yaml:"tls"`
	InteractiveStderr       bool   `yaml:"interactivestderr"`
	TemplateJobFile         string `yaml:"templatejobfile"`
	Alert                   Alert  `yaml:"alert"`
	LoggingFilterToken      string `yaml:"loggingfiltertoken"`
	PublicURL               string `yaml:"publicurl"`
	ClaimWait               uint   `yaml:"claimwait"` // seconds
	CopyModificationTime    bool   `yaml:"copymodificationtime"`
	ForbidSingleQuote       bool   `yaml:"forbidsinglequote"`
	OutputLimit             uint   `yaml:"outputlimit"`    // MB; 0 = none
	ReattachBuffer          uint   `yaml:"reattachbuffer"` // MB; 0 = no connection can be taken up again
}

// Alert says when a pool is running dry.
type Alert struct {
	PrewarmingPoolThreshold     float64 `yaml:"prewarmingpoolthreshold"`
	PrewarmingPoolReloadTimeout uint    `yaml:"prewarmingpoolreloadtimeout"` // seconds
}

// TLS of one side.
type TLS struct {
	Active   bool   `yaml:"active"`
	CAFile   string `yaml:"cafile"`
	CertFile string `yaml:"certfile"`
	KeyFile  string `yaml:"keyfile"`
}

// Nomad is the cluster.
type Nomad struct {
	Enabled          bool    `yaml:"enabled"`
	Address          string  `yaml:"address"` // empty = the embedded orchestrator
	Port             uint16  `yaml:"port"`
	Token            string  `yaml:"token"`
	TLS              TLS     `yaml:"tls"`
	Namespace        string  `yaml:"namespace"`
	DisableForcePull bool    `yaml:"disableforcepull"`
	Network          Network `yaml:"network"`
}

// Network is that of runners with network access, as in Nomad's NetworkResource.
type Network struct {
	Mode     string `yaml:"mode"`
	Hostname string `yaml:"hostname"`
	DNS      DNS    `yaml:"dns"`
}

// DNS of a network.
type DNS struct {
	Servers  []string `yaml:"servers"`
	Searches []string `yaml:"searches"`
	Options  []string `yaml:"options"`
}

// Orchestrator is the embedded one, used when no cluster is configured.
type Orchestrator struct {
	DataDir         string `yaml:"datadir"`
	Address         string `yaml:"address"`
	Port            uint16 `yaml:"port"` // 0 = any free one
	OnStop          string `yaml:"onstop"`
	AllowUnconfined bool   `yaml:"allowunconfined"`

	Images         Images      `yaml:"images"`
	Network        NodeNetwork `yaml:"network"`
	Runtimes       []string    `yaml:"runtimes"` // name=path
	DockerNetworks []string    `yaml:"dockernetworks"`
	DockerEngine   string      `yaml:"dockerengine"` // "" = jobs for Docker run in the native sandbox
}

// Images is where the embedded node gets images and how long it keeps them.
type Images struct {
	LocalDirs   []string `yaml:"localdirs"`
	Mirrors     []string `yaml:"mirrors"` // registry=mirror
	PlainHTTP   []string `yaml:"plainhttp"`
	Credentials string   `yaml:"credentials"`
	MaxSize     uint     `yaml:"maxsize"` // GB
	MaxAge      uint     `yaml:"maxage"`  // hours
}

// NodeNetwork is the network of the embedded node's runners.
type NodeNetwork struct {
	Range      string   `yaml:"range"`
	DNS        []string `yaml:"dns"`
	CNIConfigs string   `yaml:"cniconfigs"`
	CNIPlugins string   `yaml:"cniplugins"`
}

// Values of orchestrator.onstop.
const (
	Keep   = "keep"
	Remove = "remove"
)

// Logger is how log lines look.
type Logger struct {
	Level     string `yaml:"level"`
	Formatter string `yaml:"formatter"`
}

// Profiling of the gateway itself.
type Profiling struct {
	CPUEnabled bool   `yaml:"cpuenabled"`
	CPUFile    string `yaml:"cpufile"`
}

// Default is the configuration of a gateway that was told nothing.
func Default() Config {
	filter := make([]byte, 32)
	_, _ = rand.Read(filter) // never fails
	return Config{
		Server: Server{
			Address: "127.0.0.1", Port: 7200, InteractiveStderr: true, OutputLimit: 256, ReattachBuffer: 256,
			LoggingFilterToken: base64.RawURLEncoding.EncodeToString(filter),
		},
		Nomad: Nomad{Enabled: true, Port: 4646, Namespace: "default", Network: Network{Mode: "bridge"}},
		Orchestrator: Orchestrator{
			DataDir: "/var/lib/rockpool", Address: "127.0.0.1", OnStop: Keep,
			Images:  Images{MaxSize: 20, MaxAge: 168},
			Network: NodeNetwork{Range: "172.30.64.0/20", CNIConfigs: "/opt/cni/config", CNIPlugins: "/opt/cni/bin"},
		},
		Logger: Logger{Level: "INFO", Formatter: "TextFormatter"},
	}
}

// foreign are the sections and keys of a Poseidon configuration that mean nothing here.
var foreign = map[string]bool{
	"aws": true, "sentry": true, "influxdb": true,
	"profiling.memoryinterval": true, "profiling.memorythreshold": true, "nomad.tls.skipverify": true, "nomad.agents": true, "kubernetes": true,
}

// check finds values that are possible each but wrong.
func (c Config) check() (problems []error) {
	refuse := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if !c.Nomad.Enabled {
		refuse("nomad.enabled: false leaves no back end that could run anything")
	}
	if o := c.Orchestrator.OnStop; o != Keep && o != Remove {
		refuse("orchestrator.onstop: %q is neither %s nor %s", o, Keep, Remove)
	}
	if _, err := logging.New(io.Discard, c.Logger.Level, c.Logger.Formatter); err != nil {
		refuse("%w", err)
	}
	if c.Server.OutputLimit > 1<<30 {
		refuse("server.outputlimit: %d is more than %d MB", c.Server.OutputLimit, 1<<30)
	}
	if c.Server.ReattachBuffer > 1<<20 {
		refuse("server.reattachbuffer: %d is more than %d MB", c.Server.ReattachBuffer, 1<<20)
	}
	if t := c.Server.TLS; t.Active && (t.CertFile == "" || t.KeyFile == "") {
		refuse("server.tls: active needs certfile and keyfile")
	}
	if a := c.Server.Alert.PrewarmingPoolThreshold; a < 0 || a > 1 {
		refuse("server.alert.prewarmingpoolthreshold: %v is not between 0 and 1", a)
	}
	if c.Profiling.CPUEnabled && c.Profiling.CPUFile == "" {
		refuse("profiling.cpufile: needed while profiling.cpuenabled is set")
	}
	if c.Nomad.Address == "" && c.Orchestrator.DataDir == "" {
		refuse("orchestrator.datadir: needed while nomad.address is empty")
	}
	return problems
}
