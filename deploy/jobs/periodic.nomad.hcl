# Every night at half past three, unless the last one still runs.
job "nightly-report" {
  type        = "batch"
  datacenters = ["*"]

  periodic {
    crons            = ["30 3 * * *"]
    time_zone        = "Europe/Berlin"
    prohibit_overlap = true
  }

  group "report" {
    restart {
      attempts = 2
      interval = "1h"
      delay    = "1m"
      mode     = "fail"
    }
    task "report" {
      driver = "exec"
      config {
        command = "/bin/sh"
        args    = ["-c", "date; uptime"]
      }
      resources {
        cpu    = 50
        memory = 32
      }
    }
  }
}
