# The gateway as a job of the cluster that it places runners on. Run it with:
#   orchestrator job run -var token=<clients' secret> -var nomad_token=<an ACL token> -var nomad_address=10.0.0.1 gateway.nomad.hcl
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

variable "nomad_address" {
  type        = string
  description = "host of a server's HTTP API"
  default     = "127.0.0.1"
}

variable "nomad_token" {
  type        = string
  description = "secret of a token that may submit jobs, read them and execute in allocations"
  sensitive   = true
  default     = ""
}

job "gateway" {
  type        = "service"
  priority    = 80
  datacenters = ["*"]

  group "gateway" {
    count = 1

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

    task "gateway" {
      driver       = "exec"
      kill_timeout = "30s"
      config {
        command = var.binary
      }
      env {
        ROCKPOOL_SERVER_ADDRESS = "0.0.0.0"
        ROCKPOOL_SERVER_PORT    = "7200"
        ROCKPOOL_SERVER_TOKEN   = var.token
        ROCKPOOL_NOMAD_ADDRESS  = var.nomad_address
        ROCKPOOL_NOMAD_TOKEN    = var.nomad_token
      }
      resources {
        cpu    = 500
        memory = 256
      }
    }
  }
}
