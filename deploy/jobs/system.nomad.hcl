# One allocation on every node that is ready, also on those that come later: here a program that reports how full the disk is.
job "disk-watch" {
  type        = "system"
  datacenters = ["*"]

  group "watch" {
    task "watch" {
      driver = "exec"
      config {
        command = "/bin/sh"
        args    = ["-c", "while true; do df -P /; sleep 60; done"]
      }
      logs {
        max_files     = 2
        max_file_size = 1
      }
      resources {
        cpu    = 20
        memory = 16
      }
    }
  }
}
