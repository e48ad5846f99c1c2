# A service whose new versions come one by one, each after its check has passed for a while; a version that does not become healthy is taken back.
variable "replicas" {
  type    = number
  default = 3
}

locals {
  page = "<h1>It runs</h1>"
}

job "site" {
  type        = "service"
  datacenters = ["*"]

  update {
    max_parallel      = 1
    canary            = 1
    auto_promote      = true
    auto_revert       = true
    health_check      = "checks"
    min_healthy_time  = "10s"
    healthy_deadline  = "3m"
    progress_deadline = "10m"
  }

  group "site" {
    count = var.replicas

    spread {
      attribute = "${node.unique.id}"
      weight    = 100
    }

    network {
      mode = "bridge"
      port "http" {
        to = 8080
      }
    }

    service {
      name     = "site"
      provider = "nomad"
      port     = "http"
      tags     = ["public"]
      check {
        type     = "http"
        path     = "/"
        interval = "10s"
        timeout  = "2s"
      }
    }

    task "site" {
      driver = "exec"
      config {
        command = "/bin/sh"
        args    = ["-c", "mkdir -p /tmp/site && cd /tmp/site && printf '%s' \"$PAGE\" > index.html && exec python3 -m http.server 8080"]
      }
      env {
        PAGE = local.page
      }
      resources {
        cpu    = 100
        memory = 64
      }
    }
  }
}
