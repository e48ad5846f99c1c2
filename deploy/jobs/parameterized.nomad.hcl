# Started as often as it is dispatched, each time with a payload and metadata of its own:
#   orchestrator job dispatch -meta student=anna grade-submission submission.py
job "grade-submission" {
  type        = "batch"
  datacenters = ["*"]

  parameterized {
    payload       = "required"
    meta_required = ["student"]
    meta_optional = ["exercise"]
  }

  group "grade" {
    restart {
      attempts = 0
      mode     = "fail"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }
    task "grade" {
      driver = "exec"
      config {
        command = "/usr/bin/python3"
        args    = ["${NOMAD_TASK_DIR}/submission.py", "${NOMAD_META_student}"]
      }
      dispatch_payload {
        file = "submission.py"
      }
      resources {
        cpu        = 200
        memory     = 64
        memory_max = 256
      }
    }
  }
}
