# Once on every node, to its end: here a look at the kernel of each machine. "orchestrator alloc logs" shows what was found.
job "kernel-versions" {
  type        = "sysbatch"
  datacenters = ["*"]

  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }

  group "look" {
    task "look" {
      driver = "exec"
      config {
        command = "/bin/uname"
        args    = ["-a"]
      }
      resources {
        cpu    = 20
        memory = 16
      }
    }
  }
}
