# The gateway as a job of the cluster that it places runners on. Run it with:
#   orchestrator job run -var token=<clients' secret> -var nomad_token=<an ACL token> -var nomad_address=10.0.0.1 gateway.nomad.hcl
# What is given by -var is kept with the job: whoever may read the job may read it. docs/operations.md says what the ACL token needs.
# The node needs the gateway's binary at var.binary, as the driver exec runs programs of an image, here the node's own system.

variable "binary" {
  type        = string
  description = "path of the gateway on the nodes"
  default     = "/usr/local/bin/gateway"
}

variable "token" {
  type        = string
  description = "what clients send in the header Poseidon-Token"
  sensitive   = true
  default     = ""
}

variable "peer_secret" {
  type        = string
  description = "what the gateways know each other by, at least 16 characters such as from openssl rand -hex 32; empty = token, which then has to be as long"
  sensitive   = true
  default     = ""
}

variable "nomad_address" {
  type        = string
  description = "host of a server's HTTP API, as allocations reach it: in a bridge's network 127.0.0.1 is the allocation itself"
}

variable "nomad_token" {
  type        = string
  description = "secret of a token that may submit jobs, read them, execute in allocations, and use the variables at rockpool/gateways/* and rockpool/keys/*"
  sensitive   = true
  default     = ""
}

variable "replicas" {
  type        = number
  description = "gateways, each on a node of its own, all at port 7200 of theirs; a balancer belongs in front of more than one"
  default     = 1
}

variable "public_url" {
  type        = string
  description = "what clients reach the gateways by, such as https://runners.example.org; empty = the host that they ask"
  default     = ""
}

job "gateway" {
  type        = "service"
  priority    = 80
  datacenters = ["*"]

  # One at a time. Whoever was to be replaced serves until the new one answers, and claims are safe with both.
  update {
    max_parallel      = 1
    health_check      = "checks"
    min_healthy_time  = "10s"
    healthy_deadline  = "3m"
    progress_deadline = "10m"
    auto_revert       = true
  }

  group "gateway" {
    count = var.replicas

    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }

    network {
      mode = "bridge"
      port "http" {
        static = 7200
        to     = 7200
      }
    }

    restart {
      attempts = 5
      interval = "10m"
      delay    = "5s"
      mode     = "delay"
    }

    service {
      name     = "rockpool-gateway"
      provider = "nomad"
      port     = "http"
      # 503 while the gateway starts or stops. Not /health: that says when a pool runs dry, which is no reason to take a gateway back.
      check {
        type     = "http"
        path     = "/api/v1/rockpool/ready"
        interval = "10s"
        timeout  = "2s"
      }
    }

    task "gateway" {
      driver       = "exec"
      kill_timeout = "60s"
      config {
        command = var.binary
        args    = ["serve"]
      }
      env {
        ROCKPOOL_SERVER_ADDRESS     = "0.0.0.0"
        ROCKPOOL_SERVER_PORT        = "7200"
        ROCKPOOL_SERVER_TOKEN       = var.token
        ROCKPOOL_SERVER_PUBLICURL   = var.public_url
        # Where the other gateways reach this one. Without it each of several would keep the pools. One alone has it too: an upgrade has two for a while.
        ROCKPOOL_SERVER_PEERADDRESS = "http://${NOMAD_ADDR_http}"
        ROCKPOOL_SERVER_PEERSECRET  = var.peer_secret
        ROCKPOOL_NOMAD_ADDRESS      = var.nomad_address
        ROCKPOOL_NOMAD_TOKEN        = var.nomad_token
      }
      resources {
        cpu    = 500
        # server.reattachbuffer (256 MB) and the points that wait for InfluxDB (32 MB) may both be full, and requests need room besides.
        memory = 768
      }
    }
  }
}
