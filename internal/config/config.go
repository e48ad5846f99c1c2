package config

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"rockpool/internal/logging"
	"rockpool/internal/timeline"
)

// Config is everything that can be configured.
type Config struct {
	Server       Server       `yaml:"server"`
	Pools        Pools        `yaml:"pools"`
	Nomad        Nomad        `yaml:"nomad"`
	Orchestrator Orchestrator `yaml:"orchestrator"`
	Logger       Logger       `yaml:"logger"`
	Metrics      Metrics      `yaml:"metrics"`
	Profiling    Profiling    `yaml:"profiling"`
	InfluxDB     InfluxDB     `yaml:"influxdb"`
	Tracing      Tracing      `yaml:"tracing"`
}

// Server is the API's listener and behaviour.
type Server struct {
	Address                 string `yaml:"address"`
	Port                    uint16 `yaml:"port"`
	SystemdSocketActivation bool   `yaml:"systemdsocketactivation"`
	Token                   string `yaml:"token"`
	TokenFile               string `yaml:"tokenfile"`
	Limits                  Limits `yaml:"limits"`
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
	MaxConnections          uint   `yaml:"maxconnections"` // 0 = no limit
	PeerAddress             string `yaml:"peeraddress"`    // URL for other gateways; "" = there are none
	PeerSecret              string `yaml:"peersecret"`     // that all gateways of the cluster have; "" = token
	StopTimeout             uint   `yaml:"stoptimeout"`    // seconds
}

// Limits bound what clients may hold at a time; 0 = no bound.
type Limits struct {
	ConnectionsPerAddress uint `yaml:"connectionsperaddress"`
	Executions            uint `yaml:"executions"`
	ExecutionsPerRunner   uint `yaml:"executionsperrunner"`
	UploadMemory          uint `yaml:"uploadmemory"` // MB
	UploadDisk            uint `yaml:"uploaddisk"`   // MB
}

// Pools bounds what runners there are, and how long claims wait for one.
type Pools struct {
	MaxRunners  uint `yaml:"maxrunners"`  // of all environments together, used ones included; 0 = no limit
	MaxUsed     uint `yaml:"maxused"`     // that are used at a time, of each environment; 0 = no limit
	MaxWait     uint `yaml:"maxwait"`     // seconds
	Concurrency uint `yaml:"concurrency"` // calls to create and to remove runners
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
	TLSServerName    string  `yaml:"tlsservername"` // what the servers' certificates are for; empty = the address's host
	Namespace        string  `yaml:"namespace"`
	Region           string  `yaml:"region"` // empty = that of the server asked
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
	EventBuffer     uint   `yaml:"eventbuffer"` // MB

	Images         Images      `yaml:"images"`
	Network        NodeNetwork `yaml:"network"`
	Runtimes       []string    `yaml:"runtimes"` // name=path
	DockerNetworks []string    `yaml:"dockernetworks"`
	CDIDirs        []string    `yaml:"cdidirs"`      // empty = the usual ones
	DockerEngine   string      `yaml:"dockerengine"` // "" = jobs for Docker run in the native sandbox
	GPU            GPU         `yaml:"gpu"`
}

// GPU is what the embedded node does about GPUs.
type GPU struct {
	Enabled     bool     `yaml:"enabled"`
	IgnoredIDs  []string `yaml:"ignoredids"` // UUIDs or PCI bus ids
	Period      uint     `yaml:"period"`     // seconds between two looks at them
	OnUnhealthy string   `yaml:"onunhealthy"`
	Slots       uint     `yaml:"slots"`       // of each GPU that is shared; 0 = none is
	SlotMemory  uint     `yaml:"slotmemory"`  // MiB of each slot; 0 = an equal part
	SlottedGPUs []string `yaml:"slottedgpus"` // UUIDs, PCI bus ids or models; empty = all
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

// Values of orchestrator.onstop, and Keep of orchestrator.gpu.onunhealthy.
const (
	Keep   = "keep"
	Remove = "remove"
)

// Stop is the other value of orchestrator.gpu.onunhealthy.
const Stop = "stop"

// Logger is how log lines look.
type Logger struct {
	Level     string `yaml:"level"`
	Formatter string `yaml:"formatter"`
}

// Profiling of the gateway itself.
type Profiling struct {
	CPUEnabled      bool   `yaml:"cpuenabled"`
	CPUFile         string `yaml:"cpufile"`
	MemoryInterval  uint   `yaml:"memoryinterval"`  // ms; 0 = off
	MemoryThreshold uint   `yaml:"memorythreshold"` // MB
	MemoryFile      string `yaml:"memoryfile"`
	Address         string `yaml:"address"` // host:port; "" = off
}

// Metrics is where the figures for Prometheus are served besides the API.
type Metrics struct {
	Address string `yaml:"address"` // host:port; "" = nowhere
}

// InfluxDB is where points are written to; without a URL to nowhere.
type InfluxDB struct {
	URL          string `yaml:"url"`
	Token        string `yaml:"token"`
	Organization string `yaml:"organization"`
	Bucket       string `yaml:"bucket"`
	Stage        string `yaml:"stage"`
}

// Tracing is what is recorded of where time goes. Without timelines and endpoint nothing is.
type Tracing struct {
	Timelines uint     `yaml:"timelines"` // that are kept to be looked at
	Ratio     float64  `yaml:"ratio"`     // of runners and requests that are recorded
	Endpoint  string   `yaml:"endpoint"`  // of a collector that takes OTLP over HTTP; "" = none
	Headers   []string `yaml:"headers"`   // name=value
	CAFile    string   `yaml:"cafile"`
	Timeout   uint     `yaml:"timeout"` // seconds

	// From the environment alone, by OpenTelemetry's standard variables.
	Service  string            `yaml:"-"` // "" = what the program calls itself
	Resource map[string]string `yaml:"-"` // attributes of the sender
}

// Options are what a recorder is made of. The headers have been checked.
func (t Tracing) Options() timeline.Options {
	headers, _ := timeline.Headers(t.Headers)
	return timeline.Options{Service: t.Service, Resource: t.Resource, Ratio: t.Ratio, Keep: int(t.Timelines), Collector: timeline.Collector{
		Endpoint: t.Endpoint, Headers: headers, CAFile: t.CAFile, Timeout: time.Duration(t.Timeout) * time.Second,
	}}
}

// environ takes in the standard variables of OpenTelemetry, where anything is recorded then.
func (t Tracing) environ(environ []string) (Tracing, error) {
	if _, err := timeline.Headers(t.Headers); err != nil {
		return t, nil //nolint:nilerr // check tells of it, and needs them as they are
	}
	o := t.Options()
	if t.Timeout == Default().Tracing.Timeout {
		o.Timeout = 0 // nobody asked for it
	}
	o, err := o.Environ(environ)
	if o.Endpoint == "" && t.Timelines == 0 {
		return t, nil
	}
	t.Ratio, t.Endpoint, t.CAFile, t.Service, t.Resource = o.Ratio, o.Endpoint, o.CAFile, o.Service, o.Resource
	if o.Timeout > 0 {
		t.Timeout = uint((o.Timeout + time.Second - 1) / time.Second)
	}
	t.Headers = nil
	for _, name := range slices.Sorted(maps.Keys(o.Headers)) {
		t.Headers = append(t.Headers, name+"="+o.Headers[name])
	}
	return t, err
}

// check finds what is wrong. Its errors name no value of a header.
func (t Tracing) check(refuse func(format string, args ...any)) {
	if t.Timelines > timeline.MaxKeep {
		refuse("tracing.timelines: %d is more than %d", t.Timelines, timeline.MaxKeep)
	}
	if !timeline.ValidRatio(t.Ratio) {
		refuse("tracing.ratio: %v is not between 0 and 1", t.Ratio)
	}
	if t.Timeout < 1 || t.Timeout > 60 {
		refuse("tracing.timeout: %d is not between 1 and 60 seconds", t.Timeout)
		return
	}
	if _, err := timeline.Headers(t.Headers); err != nil {
		refuse("tracing.headers: %w", err)
	} else if err := t.Options().Check(); err != nil {
		refuse("tracing.endpoint, tracing.headers: %w", err)
	}
}

// Default is the configuration of a gateway that was told nothing.
func Default() Config {
	filter := make([]byte, 32)
	_, _ = rand.Read(filter) // never fails
	return Config{
		Server: Server{
			Address: "127.0.0.1", Port: 7200, InteractiveStderr: true, OutputLimit: 256, ReattachBuffer: 256, MaxConnections: 8192,
			Limits:             Limits{Executions: 10_000, ExecutionsPerRunner: 1024, UploadMemory: 256, UploadDisk: 4096},
			LoggingFilterToken: base64.RawURLEncoding.EncodeToString(filter),
		},
		Pools: Pools{MaxWait: 60, Concurrency: 16},
		Nomad: Nomad{Enabled: true, Port: 4646, Namespace: "default", Network: Network{Mode: "bridge"}},
		Orchestrator: Orchestrator{
			DataDir: "/var/lib/rockpool", Address: "127.0.0.1", OnStop: Keep, EventBuffer: 64,
			Images:  Images{MaxSize: 20, MaxAge: 168},
			Network: NodeNetwork{Range: "172.30.64.0/20", CNIConfigs: "/opt/cni/config", CNIPlugins: "/opt/cni/bin"},
			GPU:     GPU{Enabled: true, Period: 30, OnUnhealthy: Keep},
		},
		Logger:    Logger{Level: "INFO", Formatter: "TextFormatter"},
		Profiling: Profiling{MemoryThreshold: 1000},
		Tracing:   Tracing{Ratio: 1, Timeout: 10},
	}
}

// foreign are the sections and keys of a Poseidon configuration that mean nothing here.
var foreign = map[string]bool{
	"aws": true, "sentry": true,
	"nomad.tls.skipverify": true, "nomad.agents": true, "kubernetes": true,
}

// Bounds of what can be configured.
const (
	maxWait        = 300 // seconds
	maxRunners     = 1_000_000
	maxEventBuffer = 4096 // MB
)

// minUploadDisk is what the largest upload takes in temporary files, in MB: its archive, and the file that is being read.
const minUploadDisk = 1024

// maxStopTimeout is the longest that a stop may wait for executions: a day.
const maxStopTimeout = 86400

// check finds values that are possible each but wrong.
func (c Config) check() (problems []error) {
	refuse := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if !c.Nomad.Enabled {
		refuse("nomad.enabled: false leaves no back end that could run anything")
	}
	if o := c.Orchestrator.OnStop; o != Keep && o != Remove {
		refuse("orchestrator.onstop: %q is neither %s nor %s", o, Keep, Remove)
	}
	if n := c.Orchestrator.EventBuffer; n < 1 || n > maxEventBuffer {
		refuse("orchestrator.eventbuffer: %d is not between 1 and %d MB", n, maxEventBuffer)
	}
	if _, err := logging.New(io.Discard, c.Logger.Level, c.Logger.Formatter); err != nil {
		refuse("%w", err)
	}
	if c.Server.OutputLimit > 1<<30 {
		refuse("server.outputlimit: %d is more than %d MB", c.Server.OutputLimit, 1<<30)
	}
	if c.Server.ClaimWait > maxWait {
		refuse("server.claimwait: %d is more than %d seconds", c.Server.ClaimWait, maxWait)
	}
	if c.Pools.MaxWait > maxWait {
		refuse("pools.maxwait: %d is more than %d seconds", c.Pools.MaxWait, maxWait)
	}
	for name, n := range map[string]uint{"pools.maxrunners": c.Pools.MaxRunners, "pools.maxused": c.Pools.MaxUsed} {
		if n > maxRunners {
			refuse("%s: %d is more than %d", name, n, maxRunners)
		}
	}
	if n := c.Pools.Concurrency; n < 1 || n > 1024 {
		refuse("pools.concurrency: %d is not between 1 and 1024", n)
	}
	if c.Server.ReattachBuffer > 1<<20 {
		refuse("server.reattachbuffer: %d is more than %d MB", c.Server.ReattachBuffer, 1<<20)
	}
	if c.Server.MaxConnections > 1<<20 {
		refuse("server.maxconnections: %d is more than %d, which no process has descriptors for; 0 means no limit", c.Server.MaxConnections, 1<<20)
	}
	if t := c.Server.TLS; t.Active && (t.CertFile == "" || t.KeyFile == "") {
		refuse("server.tls: active needs certfile and keyfile")
	}
	if a := c.Server.Alert.PrewarmingPoolThreshold; a < 0 || a > 1 {
		refuse("server.alert.prewarmingpoolthreshold: %v is not between 0 and 1", a)
	}
	if p := c.Server.PeerAddress; p != "" {
		u, err := url.Parse(p)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
			refuse("server.peeraddress: it is not what other gateways can reach this one by, such as http://10.0.0.5:7200")
		}
		if err == nil && (u.Scheme == "https") != c.Server.TLS.Active {
			refuse("server.peeraddress: https goes with server.tls.active, and http without it")
		}
		if len(c.Server.peerSecret()) < minPeerSecret {
			refuse("server.peersecret: gateways know each other by it: set it to the same at least %d characters at all of them, such as from openssl rand -hex 32 "+
				"(server.token is taken for it if that is as long)", minPeerSecret)
		}
		if c.Nomad.Address == "" {
			refuse("server.peeraddress: several gateways need a cluster of their own: set nomad.address")
		}
	}
	if s := c.Server.StopTimeout; s > maxStopTimeout {
		refuse("server.stoptimeout: %d is more than %d seconds", s, maxStopTimeout)
	}
	if c.Profiling.CPUEnabled && c.Profiling.CPUFile == "" {
		refuse("profiling.cpufile: needed while profiling.cpuenabled is set")
	}
	if c.Profiling.MemoryInterval > 0 && c.Profiling.MemoryFile == "" {
		refuse("profiling.memoryfile: needed while profiling.memoryinterval is set")
	}
	if l := c.Server.Limits; l.ExecutionsPerRunner > 1024 {
		refuse("server.limits.executionsperrunner: %d is more than 1024", l.ExecutionsPerRunner)
	}
	for key, n := range map[string]uint{"server.limits.uploadmemory": c.Server.Limits.UploadMemory, "server.limits.uploaddisk": c.Server.Limits.UploadDisk} {
		if n > 1<<30 {
			refuse("%s: %d is more than %d MB", key, n, 1<<30)
		}
	}
	if n := c.Server.Limits.UploadDisk; n > 0 && n < minUploadDisk {
		refuse("server.limits.uploaddisk: %d is less than %d MB, which one upload may need; 0 means no limit", n, minUploadDisk)
	}
	for key, address := range map[string]string{"metrics.address": c.Metrics.Address, "profiling.address": c.Profiling.Address} {
		if err := c.checkAddress(address); err != nil {
			refuse("%s: %w", key, err)
		}
	}
	if i := c.InfluxDB; i.URL != "" {
		if u, err := url.Parse(i.URL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			refuse("influxdb.url: it is not the address of a server, such as https://influx.example.org") // it may hold a password
		}
		if i.Organization == "" || i.Bucket == "" {
			refuse("influxdb.organization, influxdb.bucket: needed while influxdb.url is set")
		}
	}
	c.Tracing.check(refuse)
	for _, d := range c.Orchestrator.CDIDirs {
		if !filepath.IsAbs(d) {
			refuse("orchestrator.cdidirs: %q is not an absolute path", d)
		}
	}
	for _, err := range c.Orchestrator.GPU.check() {
		refuse("orchestrator.gpu.%w", err)
	}
	if c.Nomad.Address == "" && c.Orchestrator.DataDir == "" {
		refuse("orchestrator.datadir: needed while nomad.address is empty")
	}
	return problems
}

// gpuID is a UUID as the driver writes it, or a PCI bus id.
var gpuID = regexp.MustCompile(`^(?i:GPU-[0-9a-f-]{8,64}|([0-9a-f]{4}|[0-9a-f]{8}):[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])$`)

// Bounds of orchestrator.gpu.slots and slotmemory.
const (
	minSlots      = 2
	maxSlots      = 64
	maxSlotMemory = 1 << 30 // MiB
)

// maxPeriod is the longest time between two looks at the GPUs, in seconds.
const maxPeriod = 3600

func (g GPU) check() (problems []error) {
	if g.Period < 1 || g.Period > maxPeriod {
		problems = append(problems, fmt.Errorf("period: %d is not between 1 and %d seconds", g.Period, maxPeriod))
	}
	if g.OnUnhealthy != Keep && g.OnUnhealthy != Stop {
		problems = append(problems, fmt.Errorf("onunhealthy: %q is neither %s nor %s", g.OnUnhealthy, Keep, Stop))
	}
	for i, id := range g.IgnoredIDs {
		if !gpuID.MatchString(id) {
			problems = append(problems, fmt.Errorf("ignoredids[%d]: %q is neither a UUID (GPU-...) nor a PCI bus id (0000:3b:00.0)", i, id))
		}
	}
	if g.Slots != 0 && (g.Slots < minSlots || g.Slots > maxSlots) {
		problems = append(problems, fmt.Errorf("slots: %d is not from %d to %d; 0 offers whole GPUs", g.Slots, minSlots, maxSlots))
	}
	if g.SlotMemory > maxSlotMemory {
		problems = append(problems, fmt.Errorf("slotmemory: %d is more than %d MiB", g.SlotMemory, maxSlotMemory))
	}
	if g.Slots == 0 && (g.SlotMemory > 0 || len(g.SlottedGPUs) > 0) {
		problems = append(problems, fmt.Errorf("slots: it is 0, so that slotmemory and slottedgpus say nothing: set it to how many slots a GPU has"))
	}
	for i, s := range g.SlottedGPUs {
		if strings.TrimSpace(s) == "" || strings.HasPrefix(s, "GPU-") && !gpuID.MatchString(s) {
			problems = append(problems, fmt.Errorf("slottedgpus[%d]: %q is neither a UUID (GPU-...), nor a PCI bus id (0000:3b:00.0), nor the name of a model", i, s))
		}
	}
	return problems
}

// minPeerSecret is how many characters the secret of gateways has at least: what lies in the cluster's variables lets those who read them try guesses.
const minPeerSecret = 16

func (s Server) peerSecret() string { return cmp.Or(s.PeerSecret, s.Token) }

// PeerKey is what gateways prove to each other with that they are.
func (s Server) PeerKey() []byte {
	sum := sha256.Sum256([]byte("rockpool-peers/" + s.peerSecret()))
	return sum[:]
}

// checkAddress looks at an address of a listener for operators. Beyond the machine it answers only to tokens, so there has to be one.
func (c Config) checkAddress(address string) error {
	if address == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not host:port", address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q has no port between 0 and 65535", address)
	}
	if !Loopback(host) && c.Server.Token == "" && c.Server.TokenFile == "" {
		return fmt.Errorf("%q can be reached from other machines, and no token is configured: use 127.0.0.1, or set server.token or server.tokenfile", address)
	}
	return nil
}

// Loopback reports whether a host means this machine alone.
func Loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
