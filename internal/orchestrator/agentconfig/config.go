package agentconfig

import (
	"fmt"
	"time"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/timeline"
)

// Config is everything that can be configured. A list in a later file replaces that of an earlier one; maps and blocks are merged key by key.
type Config struct {
	Name       string    `key:"name"` // empty = the host's name
	Region     string    `key:"region"`
	Datacenter string    `key:"datacenter"`
	DataDir    string    `key:"data_dir"`
	BindAddr   string    `key:"bind_addr"`
	Addresses  Addresses `key:"addresses"`
	Advertise  Addresses `key:"advertise"`
	Ports      Ports     `key:"ports"`
	Server     Server    `key:"server"`
	Client     Client    `key:"client"`
	ACL        ACL       `key:"acl"`
	Audit      Audit     `key:"audit"`
	TLS        TLS       `key:"tls"`
	Telemetry  Telemetry `key:"telemetry"`
	Tracing    Tracing   `key:"tracing"`
	Limits     Limits    `key:"limits"`

	LogLevel    string `key:"log_level"`
	LogJSON     bool   `key:"log_json"`
	EnableDebug bool   `key:"enable_debug"`
}

// Addresses are an address per service. Empty = that of the whole agent.
type Addresses struct {
	HTTP string `key:"http"`
	RPC  string `key:"rpc"`
	Serf string `key:"serf"`
}

// Ports are a port per service.
type Ports struct {
	HTTP int `key:"http"`
	RPC  int `key:"rpc"`
	Serf int `key:"serf"`
}

// Server is the part of an agent in the cluster's decisions.
type Server struct {
	Enabled         bool       `key:"enabled"`
	BootstrapExpect int        `key:"bootstrap_expect"` // 1, 3 or 5; 0 = it joins a cluster that exists
	Encrypt         string     `key:"encrypt"`          // base64 of 16, 24 or 32 bytes
	ServerJoin      ServerJoin `key:"server_join"`

	HeartbeatGrace  time.Duration `key:"heartbeat_grace"`
	MinHeartbeatTTL time.Duration `key:"min_heartbeat_ttl"`

	JobGCInterval    time.Duration `key:"job_gc_interval"`
	JobGCThreshold   time.Duration `key:"job_gc_threshold"`
	EvalGCThreshold  time.Duration `key:"eval_gc_threshold"`
	EvalGCCount      int           `key:"eval_gc_count"`      // ours
	AllocGCAge       time.Duration `key:"alloc_gc_age"`       // ours
	AllocGCCount     int           `key:"alloc_gc_count"`     // ours
	JobGCCount       int           `key:"job_gc_count"`       // ours
	RaftLogSegment   int           `key:"raft_log_segment"`   // ours; bytes
	EventBufferBytes int           `key:"event_buffer_bytes"` // ours
	JoinToken        string        `key:"join_token"`         // ours
	KeyFile          string        `key:"key_file"`           // ours

	ClientIntroduction ClientIntroduction `key:"client_introduction"`
}

// ClientIntroduction says what a node that is not known yet must show.
type ClientIntroduction struct {
	Enforcement string `key:"enforcement"`
}

// Values of server.client_introduction.enforcement.
const (
	None   = "none"
	Strict = "strict"
)

// ServerJoin is how servers are found at start.
type ServerJoin struct {
	RetryJoin     []string      `key:"retry_join"`
	RetryInterval time.Duration `key:"retry_interval"`
}

// Client is the part of an agent that runs allocations.
type Client struct {
	Enabled    bool                  `key:"enabled"`
	Servers    []string              `key:"servers"`
	NodeClass  string                `key:"node_class"`
	NodePool   string                `key:"node_pool"`
	Meta       map[string]string     `key:"meta"`
	HostVolume map[string]HostVolume `key:"host_volume"`
	Reserved   Reserved              `key:"reserved"`

	CPUTotalCompute int    `key:"cpu_total_compute"`
	MemoryTotalMB   int    `key:"memory_total_mb"`
	CNIPath         string `key:"cni_path"`
	CNIConfigDir    string `key:"cni_config_dir"`

	GCMaxAllocs int           `key:"gc_max_allocs"`
	GCMaxAge    time.Duration `key:"gc_max_age"` // ours; 0 = whatever their age

	OnStop          string   `key:"on_stop"`          // ours
	AllowUnconfined bool     `key:"allow_unconfined"` // ours
	JoinToken       string   `key:"join_token"`       // ours
	Images          Images   `key:"images"`           // ours
	Network         Network  `key:"network"`          // ours
	Runtimes        []string `key:"runtimes"`         // ours; name=path
	CDIDirs         []string `key:"cdi_dirs"`         // ours; empty = the usual directories
	Docker          Docker   `key:"docker"`           // ours
	GPU             GPU      `key:"gpu"`              // ours; its keys are those of Nomad's plugin nvidia-gpu, and on_unhealthy
}

// GPU is what a node does about GPUs.
type GPU struct {
	Enabled           bool          `key:"enabled"`
	IgnoredGPUIDs     []string      `key:"ignored_gpu_ids"` // UUIDs or PCI bus ids
	FingerprintPeriod time.Duration `key:"fingerprint_period"`
	OnUnhealthy       string        `key:"on_unhealthy"`
	Slots             int           `key:"slots"`        // of each GPU that is shared; 0 = none is
	SlotMemory        string        `key:"slot_memory"`  // such as "8 GiB"; "" = an equal part
	SlottedGPUs       []string      `key:"slotted_gpus"` // UUIDs, PCI bus ids or models; empty = all
}

// Bounds of client.gpu.slots.
const (
	minSlots = 2
	maxSlots = 64
)

// SlotMemoryMB is client.gpu.slot_memory in MiB; 0 = an equal part.
func (g GPU) SlotMemoryMB() (int, error) {
	if g.SlotMemory == "" {
		return 0, nil
	}
	n, ok := model.ParseAttribute(g.SlotMemory).In("MiB")
	if !ok || n < 1 || n > 1<<30 {
		return 0, fmt.Errorf("%q is no amount of memory such as \"8 GiB\"", g.SlotMemory)
	}
	return int(n), nil
}

// Values of client.gpu.on_unhealthy. Keep is the other one.
const Stop = "stop"

// HostVolume is a directory of the node that jobs may ask for.
type HostVolume struct {
	Path     string `key:"path"`
	ReadOnly bool   `key:"read_only"`
}

// Reserved is kept away from allocations.
type Reserved struct {
	CPU    int `key:"cpu"`    // MHz
	Memory int `key:"memory"` // MB
	Disk   int `key:"disk"`   // MB
}

// Images is where a node gets images and how long it keeps them.
type Images struct {
	LocalDirs   []string      `key:"local_dirs"`
	Mirrors     []string      `key:"mirrors"` // registry=mirror
	PlainHTTP   []string      `key:"plain_http"`
	Credentials string        `key:"credentials"`
	MaxSize     int           `key:"max_size"` // GB; 0 = no bound
	MaxAge      time.Duration `key:"max_age"`  // 0 = never
}

// Network is that of a node's runners.
type Network struct {
	Range string   `key:"range"` // IPv4 prefix; empty = there is no bridge
	DNS   []string `key:"dns"`
}

// Docker is an engine that runs the jobs made for Docker.
type Docker struct {
	Engine   string   `key:"engine"` // empty = the native sandbox runs them
	Networks []string `key:"networks"`
}

// Audit is the log of who asked for what. The block is ours.
type Audit struct {
	File string `key:"file"` // empty = none is kept
}

// ACL says whether tokens are asked for.
type ACL struct {
	Enabled bool `key:"enabled"`
}

// TLS between servers, nodes and clients.
type TLS struct {
	HTTP                 bool   `key:"http"`
	RPC                  bool   `key:"rpc"`
	CAFile               string `key:"ca_file"`
	CertFile             string `key:"cert_file"`
	KeyFile              string `key:"key_file"`
	VerifyServerHostname bool   `key:"verify_server_hostname"`
	VerifyHTTPSClient    bool   `key:"verify_https_client"`
}

// Telemetry is what the agent measures.
type Telemetry struct {
	PrometheusMetrics bool `key:"prometheus_metrics"`
}

// Tracing is what the agent records of where time goes. The block is ours.
type Tracing struct {
	Enabled  bool          `key:"enabled"`  // record for callers who ask, and tell them
	Ratio    float64       `key:"ratio"`    // of the starts of tasks that are recorded; the callers decide about their requests
	Endpoint string        `key:"endpoint"` // of a collector that takes OTLP over HTTP; empty = none
	Headers  []string      `key:"headers"`  // name=value
	CAFile   string        `key:"ca_file"`
	Timeout  time.Duration `key:"timeout"`
}

// Options are what a recorder is made of, with the standard variables of OpenTelemetry taken in, in the form of os.Environ. Nothing is recorded unless it is enabled.
func (t Tracing) Options(environ []string) (timeline.Options, error) {
	if !t.Enabled {
		return timeline.Options{}, nil
	}
	headers, err := timeline.Headers(t.Headers)
	if err != nil {
		return timeline.Options{}, fmt.Errorf("tracing.headers: %w", err)
	}
	o := timeline.Options{Ratio: t.Ratio, Tell: true, Collector: timeline.Collector{Endpoint: t.Endpoint, Headers: headers, CAFile: t.CAFile}}
	if t.Timeout != timeline.DefaultTimeout {
		o.Timeout = t.Timeout
	}
	if o, err = o.Environ(environ); err != nil {
		return o, err
	}
	return o, o.Check()
}

// Limits on clients of the HTTP API.
type Limits struct {
	HTTPMaxConnsPerClient   int `key:"http_max_conns_per_client"`   // 0 = unlimited
	HTTPMaxStreamsPerClient int `key:"http_max_streams_per_client"` // ours; 0 = unlimited
}

// Values of client.on_stop.
const (
	Keep   = "keep"
	Remove = "remove"
)

// Default is the configuration of an agent that was told nothing.
func Default() Config {
	return Config{
		Region: "global", Datacenter: "dc1", BindAddr: "127.0.0.1",
		Ports: Ports{HTTP: 4646, RPC: 4647, Serf: 4648},
		Server: Server{
			ServerJoin:     ServerJoin{RetryInterval: 30 * time.Second},
			HeartbeatGrace: 10 * time.Second, MinHeartbeatTTL: 10 * time.Second,
			JobGCInterval: 30 * time.Second, JobGCThreshold: 4 * time.Hour, EvalGCThreshold: time.Hour, EvalGCCount: 5000,
			AllocGCAge: 4 * time.Hour, AllocGCCount: 5000, JobGCCount: 10_000, ClientIntroduction: ClientIntroduction{Enforcement: None}, RaftLogSegment: 64 << 20, EventBufferBytes: 128 << 20,
		},
		Client: Client{
			NodePool: "default", CNIPath: "/opt/cni/bin", CNIConfigDir: "/opt/cni/config", GCMaxAllocs: 50, GCMaxAge: 24 * time.Hour, OnStop: Keep,
			Images:  Images{MaxSize: 20, MaxAge: 168 * time.Hour},
			Network: Network{Range: "172.30.64.0/20"},
			GPU:     GPU{Enabled: true, FingerprintPeriod: 30 * time.Second, OnUnhealthy: Keep},
		},
		Telemetry: Telemetry{PrometheusMetrics: true},
		Tracing:   Tracing{Ratio: 1, Timeout: timeline.DefaultTimeout},
		Limits:    Limits{HTTPMaxConnsPerClient: 1000, HTTPMaxStreamsPerClient: 10_000},
		LogLevel:  "INFO",
	}
}

// foreign are keys of Nomad that are not offered, and what to do instead.
var foreign = map[string]string{
	"plugin":                        "drivers and devices are built in: see client.runtimes, client.docker and client.gpu",
	"plugin_dir":                    "drivers and devices are built in",
	"consul":                        "there is no Consul integration: services and checks are kept by the servers themselves",
	"vault":                         "there is no Vault integration: use variables",
	"ui":                            "there is no web interface to configure",
	"sentinel":                      "policies in Sentinel are not offered",
	"autopilot":                     "it is part of the state: change it with the API, /v1/operator/autopilot/configuration",
	"server.license_path":           "there is nothing to license",
	"server.license_env":            "there is nothing to license",
	"server.authoritative_region":   "there is one region",
	"server.data_dir":               "the server's state is below data_dir",
	"server.start_join":             "use server.server_join.retry_join",
	"server.retry_join":             "use server.server_join.retry_join",
	"client.state_dir":              "the node's state is below data_dir",
	"client.alloc_dir":              "allocations are below data_dir",
	"client.options":                "options by driver are keys of the client block",
	"client.chroot_env":             "sandboxes see an image, not parts of this machine",
	"client.server_join":            "name the servers' HTTP addresses in client.servers",
	"client.artifact":               "artifacts are not fetched by nodes",
	"client.template":               "templates are not rendered by nodes",
	"leave_on_interrupt":            "the agent leaves in order on both signals, and its place in the cluster is kept",
	"leave_on_terminate":            "the agent leaves in order on both signals, and its place in the cluster is kept",
	"enable_syslog":                 "the log goes to standard error; the service manager keeps it",
	"log_file":                      "the log goes to standard error; the service manager keeps it",
	"disable_update_check":          "no updates are looked for",
	"tls.rpc_upgrade_mode":          "servers without TLS do not mix with servers that have it",
	"keyring":                       "keys are kept by the servers themselves",
	"users":                         "tasks run as the user that their job names, within their sandbox",
	"reporting":                     "nothing is reported to anybody",
	"telemetry.collection_interval": "figures are read when somebody asks for them",
	"http_api_response_headers":     "set headers in the proxy in front of the agent",
}
