# Every key of the orchestrator's agent with its default. Start it with: orchestrator agent -config=<this file>
# -config may be given again, and may name a directory: later files win, a list in a later file replaces an earlier one, maps and blocks are merged.
# A file that ends in .yaml or .yml holds the same keys in YAML. Keys that do not exist and values that do not fit are refused at start.
# What the signal HUP reads again: log_level and the files named in tls. Everything else needs a restart.

# Of the server and the node in the cluster. Empty: the host's name. It must not change while data_dir is kept.
name = ""
# There is one region. It is part of the names in servers' certificates.
region = "global"
# Where the machine stands. Jobs may ask for datacenters.
datacenter = "dc1"
# Where all state is, private to the agent: an absolute path. It has no default.
data_dir = ""
# Where the agent listens, unless addresses says otherwise.
bind_addr = "127.0.0.1"

# Where single services listen. Empty: bind_addr.
addresses {
  http = ""
  rpc  = ""
  serf = ""
}

# What others reach the services at, as an address or address:port. Empty: where they listen.
advertise {
  http = ""
  rpc  = ""
  serf = ""
}

ports {
  # Of the HTTP API; 0 = any free one.
  http = 4646
  # Between servers: Raft and forwarded requests.
  rpc = 4647
  # Of the membership protocol, TCP and UDP.
  serf = 4648
}

server {
  enabled = false
  # How many servers meet before the first election: 1, 3 or 5. 0 = this server joins a cluster that exists.
  bootstrap_expect = 0
  # Encrypts the membership protocol: a key from "orchestrator operator gossip keyring generate". Empty: it is open. It is the first key: from then on the
  # servers keep what "orchestrator operator gossip keyring install", "use" and "remove" have made of it.
  encrypt = ""
  # What a node that is not known yet shows to register, where acl is enabled. Empty: only a token with node:write may introduce nodes.
  join_token = ""
  # Holds the key that wraps the keys of variables: the same file on all servers. Without one a server of a cluster keeps no variables.
  key_file = ""

  client_introduction {
    # none: a node that is not known yet may register where acl is not enabled. strict: it must show an introduction token or the join token.
    enforcement = "none"
  }

  server_join {
    # Servers to find at start: host or host:port of their membership protocol. A name stands for all its addresses.
    retry_join = []
    # The longest time between two attempts, which come faster at first.
    retry_interval = "30s"
  }

  # How long a node may stay silent beyond its time to live before it counts as down.
  heartbeat_grace = "10s"
  # The shortest time to live that nodes are given. It grows with their number.
  min_heartbeat_ttl = "10s"

  # How often what has ended is looked for.
  job_gc_interval = "30s"
  # After which dead jobs go.
  job_gc_threshold = "4h"
  # After which ended evaluations go, and how many stay at most.
  eval_gc_threshold = "1h"
  eval_gc_count     = 5000
  # After which ended allocations go, and how many stay at most.
  alloc_gc_age   = "4h"
  alloc_gc_count = 5000
  # Dead jobs that are kept beyond the newest so many go early.
  job_gc_count = 10000
  # Bytes of one file of the Raft log, which is allocated ahead.
  raft_log_segment = 67108864
  # Bytes of events, about, that are kept for ten minutes at most for readers who come back or are slow. One who has missed more lists everything anew. A job of one task
  # that runs and ends has some 35,000, most of which are not used where jobs are alike.
  event_buffer_bytes = 134217728
}

client {
  enabled = false
  # HTTP addresses of servers: host:port or a URL. Empty: the server in this agent.
  servers = []
  # What this node shows to register for the first time: the servers' join_token. Later it has an identity of its own.
  join_token = ""
  # Jobs may ask for a class of nodes, and are placed in a pool.
  node_class = ""
  node_pool  = "default"
  # Jobs may ask for these in constraints, such as "${meta.rack}": rack = "r1"
  meta {}
  # Directories that jobs may ask for by name: a block per name, host_volume "datasets" { path = "/srv/datasets", read_only = true }
  host_volume {}

  # Kept away from allocations: MHz, MB and MB.
  reserved {
    cpu    = 0
    memory = 0
    disk   = 0
  }

  # What the machine is said to have, in MHz and MB; 0 = what is found.
  cpu_total_compute = 0
  memory_total_mb   = 0
  # Where CNI plugins and configurations are, for jobs with network mode cni/<name>.
  cni_path       = "/opt/cni/bin"
  cni_config_dir = "/opt/cni/config"

  # Of how many allocations that have ended the logs and files stay on the node, and for how long ("0s": whatever their age). The newest stay.
  gc_max_allocs = 50
  gc_max_age    = "24h"

  # Whether allocations outlive an orderly stop of the agent: keep or remove. Tasks that are a command in a sandbox end in any case.
  on_stop = "keep"
  # Start although this machine cannot confine what it runs. Never where strangers' code runs.
  allow_unconfined = false

  images {
    # Directories that images on this machine may be taken from, besides images/local below data_dir.
    local_dirs = []
    # Other places to pull a registry's images from: "registry=mirror".
    mirrors = []
    # Registries that are asked over HTTP without TLS.
    plain_http = []
    # A Docker config file with credentials. Empty: that of the user who runs this.
    credentials = ""
    # GB that unpacked images may take; 0 = no bound.
    max_size = 20
    # After which an image that nothing uses goes; "0s" = never.
    max_age = "168h"
  }

  network {
    # Addresses of runners with network access: a range that is in use nowhere near this machine. Empty: none have.
    range = "172.30.64.0/20"
    # Name servers that runners' questions are passed on to. Empty: those of this machine.
    dns = []
  }

  # OCI runtimes that jobs may ask for by name: "runsc=/usr/local/bin/runsc".
  runtimes = []
  # Where specifications of devices, such as GPUs, are looked for (the Container Device Interface). Only root may write there. Empty: /etc/cdi and /var/run/cdi.
  cdi_dirs = []

  gpu {
    # Look for NVIDIA's GPUs and offer them to jobs that ask for device "nvidia/gpu". Where there is no driver nothing is offered. See docs/gpu.md.
    enabled = true
    # GPUs that are not offered, by UUID or PCI bus id: "GPU-fef8089b-4820-abfc-e83e-94318197576e", "0000:3b:00.0".
    ignored_gpu_ids = []
    # How often GPUs are looked at. Errors that the driver reports by itself are known at once.
    fingerprint_period = "30s"
    # What becomes of allocations when a GPU of theirs becomes unhealthy: keep (their tasks are told) or stop (they fail, and are placed elsewhere).
    on_unhealthy = "keep"
    # Share each GPU as so many slots, 2 to 64, on which tasks take turns: each slot is offered as a device of its own, and the GPU as a whole is not. 0: GPUs are not
    # shared. The GPU does not keep a task from the memory of the other slots. See docs/gpu.md.
    slots = 0
    # Memory of a slot: "8 GiB". A GPU that has not enough for all its slots is not offered. Empty: an equal part.
    slot_memory = ""
    # GPUs that are shared, by UUID, PCI bus id or model: "Tesla T4". Empty: all, but those in MIG mode.
    slotted_gpus = []
  }

  docker {
    # Run jobs for Docker in this engine instead of the native sandbox: "unix:///var/run/docker.sock".
    engine = ""
    # Networks of that engine that jobs may have. Docker's own keep programs from neither this machine nor private addresses.
    networks = []
  }
}

audit {
  # Who asked for what, one line of JSON each, rotated. Empty: none is kept.
  file = ""
}

acl {
  # Ask for tokens. The first one comes from "orchestrator acl bootstrap".
  enabled = false
}

tls {
  # Serve HTTPS. Between servers mutual TLS, which those that have certificates need.
  http = false
  rpc  = false
  # Made by "orchestrator tls ca create" and "orchestrator tls cert create".
  ca_file   = ""
  cert_file = ""
  key_file  = ""
  # A server's certificate must be made for a server, so that a node's cannot speak as one.
  verify_server_hostname = false
  # Clients of the HTTP API show a certificate of the same authority.
  verify_https_client = false
}

telemetry {
  # Answer /v1/metrics?format=prometheus.
  prometheus_metrics = true
}

tracing {
  # Record where the time of requests goes, for callers who ask with a Traceparent that says so, and tell them in the answer. Off, it costs nothing.
  enabled = false
  # Of how many jobs the starts of their tasks are recorded, from 0 to 1. Give gateways and agents the same.
  ratio = 1
  # A collector of OpenTelemetry that takes OTLP over HTTP, such as "http://127.0.0.1:4318". Empty: none.
  # OTEL_EXPORTER_OTLP_ENDPOINT, _HEADERS, _CERTIFICATE and _TIMEOUT stand in for what is not set here.
  endpoint = ""
  # Headers of each request to it, such as "Authorization=Bearer xyz".
  headers = []
  # Whom to trust besides the system's certificate authorities.
  ca_file = ""
  # Of one request to it, a minute at most.
  timeout = "10s"
}

limits {
  # Connections that one client address may have, and of those the ones that carry a long answer (event streams, logs, executions) beyond that.
  # 0 = unlimited.
  http_max_conns_per_client   = 1000
  http_max_streams_per_client = 10000
}

# ERROR, WARN, INFO, DEBUG or TRACE.
log_level = "INFO"
# One JSON object per line instead of text.
log_json = false
# Serve profiles at /v1/agent/pprof also where acl is not enabled.
enable_debug = false
