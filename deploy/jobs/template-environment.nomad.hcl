# The job every execution environment's template and every runner is derived from. The gateway sends this file to the
# cluster to be parsed and fills in id, image, limits and network. Names of groups and tasks are part of the contract.
job "template-0" {
  datacenters = ["dc1"]
  type        = "batch"

  group "default-group" {
    count = 1

    ephemeral_disk {
      migrate = false
      size    = 10
      sticky  = false
    }

    # A container that ended is a dead runner: it is never revived under its old id.
    restart {
      attempts = 0
      mode     = "fail"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }

    spread {
      attribute = "${node.unique.name}"
      weight    = 100
    }

    task "default-task" {
      driver       = "docker"
      kill_timeout = "0s"
      kill_signal  = "SIGKILL"

      config {
        image        = "host"
        command      = "sleep"
        args         = ["infinity"]
        network_mode = "none"
        force_pull   = false
      }

      logs {
        max_files     = 1
        max_file_size = 1
      }

      resources {
        cpu        = 40
        memory     = 50
        memory_max = 256
      }
    }
  }

  # Never runs; it carries what the gateway must remember about the job.
  group "config" {
    count = 0

    task "config" {
      driver = "exec"
      config {
        command = "true"
      }
      logs {
        max_files     = 1
        max_file_size = 1
      }
      resources {
        cpu    = 1
        memory = 10
      }
    }

    meta {
      used               = "false"
      prewarmingPoolSize = "0"
    }
  }
}
