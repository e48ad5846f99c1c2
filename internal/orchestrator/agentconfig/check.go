package agentconfig

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"rockpool/internal/timeline"
)

var logLevels = []string{"ERROR", "WARN", "INFO", "DEBUG", "TRACE"}

// name is what can be part of a DNS name and of a certificate's.
var name = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?$`)

// gpuID is a UUID as the driver writes it, or a PCI bus id.
var gpuID = regexp.MustCompile(`^(?i:GPU-[0-9a-f-]{8,64}|([0-9a-f]{4}|[0-9a-f]{8}):[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])$`)

// Check finds values that are possible each but wrong. It returns all problems.
func (c *Config) Check() (problems []error) {
	refuse := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("configuration: "+format, args...))
	}
	if !c.Server.Enabled && !c.Client.Enabled {
		refuse("neither server.enabled nor client.enabled is set: the agent would do nothing")
	}
	if c.DataDir == "" || !filepath.IsAbs(c.DataDir) {
		refuse("data_dir: an absolute path is needed, %q is none", c.DataDir)
	}
	for key, v := range map[string]string{"region": c.Region, "datacenter": c.Datacenter} {
		if !name.MatchString(v) {
			refuse("%s: %q is not a name of letters, digits, - and _", key, v)
		}
	}
	if c.Name != "" && !name.MatchString(strings.ReplaceAll(c.Name, ".", "-")) {
		refuse("name: %q is not a name of letters, digits, ., - and _", c.Name)
	}
	if !slices.Contains(logLevels, strings.ToUpper(c.LogLevel)) {
		refuse("log_level: %q is none of %s", c.LogLevel, strings.Join(logLevels, ", "))
	}
	for key, v := range map[string]string{
		"bind_addr": c.BindAddr, "addresses.http": c.Addresses.HTTP, "addresses.rpc": c.Addresses.RPC, "addresses.serf": c.Addresses.Serf,
	} {
		if _, err := netip.ParseAddr(v); v != "" && err != nil {
			refuse("%s: %q is not an IP address", key, v)
		}
	}
	for key, v := range map[string]string{"advertise.http": c.Advertise.HTTP, "advertise.rpc": c.Advertise.RPC, "advertise.serf": c.Advertise.Serf} {
		if host, _, err := net.SplitHostPort(v); v != "" && (err == nil && host == "" || err != nil && strings.Contains(v, ":") && net.ParseIP(v) == nil) {
			refuse("%s: %q is not an address, with or without a port", key, v)
		}
	}
	used := map[int]string{}
	for _, p := range []struct {
		key  string
		port int
	}{{"ports.http", c.Ports.HTTP}, {"ports.rpc", c.Ports.RPC}, {"ports.serf", c.Ports.Serf}} {
		if p.port < 0 || p.port > 65535 || p.port == 0 && p.key != "ports.http" {
			refuse("%s: %d is not a port", p.key, p.port)
		} else if other := used[p.port]; other != "" && p.port != 0 {
			refuse("%s and %s are both %d", other, p.key, p.port)
		}
		used[p.port] = p.key
	}
	c.checkServer(refuse)
	c.checkClient(refuse)
	c.checkTLS(refuse)
	c.checkTracing(refuse)
	for key, n := range map[string]int{
		"limits.http_max_conns_per_client": c.Limits.HTTPMaxConnsPerClient, "limits.http_max_streams_per_client": c.Limits.HTTPMaxStreamsPerClient,
	} {
		if n < 0 {
			refuse("%s: %d is negative; 0 is no limit", key, n)
		}
	}
	slices.SortFunc(problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return problems
}

type refusal func(format string, args ...any)

func (c *Config) checkServer(refuse refusal) {
	s := c.Server
	if !slices.Contains([]int{0, 1, 3, 5}, s.BootstrapExpect) {
		refuse("server.bootstrap_expect: %d is none of 1, 3 and 5; 0 joins a cluster that exists", s.BootstrapExpect)
	}
	if s.Enabled && s.BootstrapExpect > 1 && len(s.ServerJoin.RetryJoin) == 0 {
		refuse("server.bootstrap_expect: %d servers find each other by server.server_join.retry_join, which is empty", s.BootstrapExpect)
	}
	if s.Enabled && s.BootstrapExpect == 0 && len(s.ServerJoin.RetryJoin) == 0 {
		refuse("server.bootstrap_expect: set it to 1 for a server alone, to 3 or 5 for the first servers of a cluster, or name servers to join in server.server_join.retry_join")
	}
	if e := s.ClientIntroduction.Enforcement; e != None && e != Strict {
		refuse("server.client_introduction.enforcement: %q is neither %s nor %s", e, None, Strict)
	}
	if s.Encrypt != "" {
		if _, err := GossipKey(s.Encrypt); err != nil {
			refuse("server.encrypt: %w", err)
		}
	}
	for key, n := range map[string]int{"server.eval_gc_count": s.EvalGCCount, "server.alloc_gc_count": s.AllocGCCount} {
		if n < 1 {
			refuse("%s: %d is less than 1", key, n)
		}
	}
	if s.RaftLogSegment < 1<<20 || s.RaftLogSegment > 1<<30 {
		refuse("server.raft_log_segment: %d bytes are not between 1 MiB and 1 GiB", s.RaftLogSegment)
	}
	if s.EventBufferBytes < 1<<20 || s.EventBufferBytes > 16<<30 {
		refuse("server.event_buffer_bytes: %d bytes are not between 1 MiB and 16 GiB", s.EventBufferBytes)
	}
	for key, zero := range map[string]bool{
		"server.heartbeat_grace": s.HeartbeatGrace == 0, "server.min_heartbeat_ttl": s.MinHeartbeatTTL == 0, "server.job_gc_interval": s.JobGCInterval == 0,
		"server.job_gc_threshold": s.JobGCThreshold == 0, "server.eval_gc_threshold": s.EvalGCThreshold == 0, "server.alloc_gc_age": s.AllocGCAge == 0,
		"server.server_join.retry_interval": s.ServerJoin.RetryInterval == 0,
	} {
		if zero {
			refuse("%s: it must be longer than 0s", key)
		}
	}
}

// GossipKey is the key that server.encrypt writes.
func GossipKey(text string) ([]byte, error) {
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil || !slices.Contains([]int{16, 24, 32}, len(key)) {
		return nil, fmt.Errorf("the key is not base64 of 16, 24 or 32 bytes: make one with \"orchestrator operator gossip keyring generate\"")
	}
	return key, nil
}

func (c *Config) checkClient(refuse refusal) {
	n := c.Client
	if n.Enabled && !c.Server.Enabled && len(n.Servers) == 0 {
		refuse("client.servers: name the HTTP addresses of servers, such as [\"https://10.0.0.1:4646\"]")
	}
	for _, s := range n.Servers {
		if u, err := url.Parse(ServerURL(s, c.TLS.HTTP)); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			refuse("client.servers: %q is neither host:port nor an address such as https://10.0.0.1:4646", s)
		}
	}
	if n.GCMaxAllocs < 1 {
		refuse("client.gc_max_allocs: %d is less than 1", n.GCMaxAllocs)
	}
	if n.OnStop != Keep && n.OnStop != Remove {
		refuse("client.on_stop: %q is neither %s nor %s", n.OnStop, Keep, Remove)
	}
	for _, r := range []struct {
		key string
		n   int
	}{
		{"client.reserved.cpu", n.Reserved.CPU}, {"client.reserved.memory", n.Reserved.Memory}, {"client.reserved.disk", n.Reserved.Disk},
		{"client.cpu_total_compute", n.CPUTotalCompute}, {"client.memory_total_mb", n.MemoryTotalMB}, {"client.images.max_size", n.Images.MaxSize},
	} {
		if r.n < 0 {
			refuse("%s: %d is negative", r.key, r.n)
		}
	}
	for v, h := range n.HostVolume {
		if !filepath.IsAbs(h.Path) {
			refuse("client.host_volume.%s.path: an absolute path is needed, %q is none", v, h.Path)
		}
	}
	for _, d := range n.CDIDirs {
		if !filepath.IsAbs(d) {
			refuse("client.cdi_dirs: an absolute path is needed, %q is none", d)
		}
	}
	if p, err := netip.ParsePrefix(n.Network.Range); n.Network.Range != "" && (err != nil || !p.Addr().Is4()) {
		refuse("client.network.range: %q is not an IPv4 prefix such as %s", n.Network.Range, Default().Client.Network.Range)
	}
	n.GPU.check(refuse)
	for key, list := range map[string][]string{"client.runtimes": n.Runtimes, "client.images.mirrors": n.Images.Mirrors} {
		for _, pair := range list {
			if a, b, ok := strings.Cut(pair, "="); !ok || a == "" || b == "" {
				refuse("%s: %q is not of the form name=value", key, pair)
			}
		}
	}
}

func (c *Config) checkTracing(refuse refusal) {
	t := c.Tracing
	if !timeline.ValidRatio(t.Ratio) {
		refuse("tracing.ratio: %v is not between 0 and 1", t.Ratio)
	}
	if t.Timeout < time.Second || t.Timeout > time.Minute {
		refuse("tracing.timeout: %v is not between 1s and 1m", t.Timeout)
	}
	if t.Endpoint != "" && !t.Enabled {
		refuse("tracing.endpoint: nothing is sent to it unless tracing.enabled is set")
	}
	headers, err := timeline.Headers(t.Headers)
	if err != nil {
		refuse("tracing.headers: %w", err)
	} else if err := (timeline.Collector{Endpoint: t.Endpoint, Headers: headers}).Check(); err != nil {
		refuse("tracing.endpoint, tracing.headers: %w", err)
	}
}

func (g GPU) check(refuse refusal) {
	if g.FingerprintPeriod < time.Second {
		refuse("client.gpu.fingerprint_period: %v is shorter than 1s", g.FingerprintPeriod)
	}
	if o := g.OnUnhealthy; o != Keep && o != Stop {
		refuse("client.gpu.on_unhealthy: %q is neither %s nor %s", o, Keep, Stop)
	}
	for i, id := range g.IgnoredGPUIDs {
		if !gpuID.MatchString(id) {
			refuse("client.gpu.ignored_gpu_ids[%d]: %q is neither a UUID (GPU-...) nor a PCI bus id (0000:3b:00.0)", i, id)
		}
	}
	if g.Slots != 0 && (g.Slots < minSlots || g.Slots > maxSlots) {
		refuse("client.gpu.slots: %d is not from %d to %d; 0 offers whole GPUs", g.Slots, minSlots, maxSlots)
	}
	if _, err := g.SlotMemoryMB(); err != nil {
		refuse("client.gpu.slot_memory: %w", err)
	}
	if g.Slots == 0 && (g.SlotMemory != "" || len(g.SlottedGPUs) > 0) {
		refuse("client.gpu.slots: it is 0, so that slot_memory and slotted_gpus say nothing: set it to how many slots a GPU has")
	}
	for i, s := range g.SlottedGPUs {
		if strings.TrimSpace(s) == "" || strings.HasPrefix(s, "GPU-") && !gpuID.MatchString(s) {
			refuse("client.gpu.slotted_gpus[%d]: %q is neither a UUID (GPU-...), nor a PCI bus id (0000:3b:00.0), nor the name of a model", i, s)
		}
	}
}

// ServerURL is the address of a server's HTTP API: an entry of client.servers may leave out the scheme.
func ServerURL(s string, tls bool) string {
	switch {
	case strings.Contains(s, "://"):
		return s
	case tls:
		return "https://" + s
	}
	return "http://" + s
}

func (c *Config) checkTLS(refuse refusal) {
	t := c.TLS
	if (t.HTTP || t.RPC) && (t.CAFile == "" || t.CertFile == "" || t.KeyFile == "") {
		refuse("tls: http and rpc need ca_file, cert_file and key_file: make them with \"orchestrator tls ca create\" and \"orchestrator tls cert create\"")
	}
	if c.Server.Enabled && t.CAFile != "" && !t.RPC {
		refuse("tls.rpc: servers that have certificates show them to one another: set it to true")
	}
	if t.VerifyHTTPSClient && !t.HTTP {
		refuse("tls.verify_https_client: it needs tls.http")
	}
	if t.VerifyServerHostname && !t.RPC {
		refuse("tls.verify_server_hostname: it needs tls.rpc")
	}
	public := c.BindAddr
	if c.Addresses.HTTP != "" {
		public = c.Addresses.HTTP
	}
	if a, err := netip.ParseAddr(public); err == nil && c.Server.Enabled && !a.IsLoopback() && !c.ACL.Enabled && !t.VerifyHTTPSClient {
		refuse("the HTTP API would be open to everybody who reaches %s: set acl.enabled, or tls.http with tls.verify_https_client, or bind to 127.0.0.1", a)
	}
}
