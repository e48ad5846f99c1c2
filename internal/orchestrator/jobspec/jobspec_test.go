package jobspec_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/jobspec"
)

const template = `
variable "memory" {
  type    = number
  default = 512
}
locals {
  image = "python:${var.tag}"
}
variable "tag" {}

job "template-0" {
  datacenters = ["dc1"]
  type        = "batch"
  priority    = 70
  namespace   = "poseidon"
  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }
  constraint {
    distinct_hosts = true
  }
  affinity {
    attribute = "${node.class}"
    regexp    = "gpu.*"
    weight    = -50
  }
  meta {
    example = "x"
    number        = 7
  }
  group "default-group" {
    count = 1
    ephemeral_disk {
      migrate = false
      size    = 10
      sticky  = false
    }
    spread {
      attribute = "${node.unique.name}"
      weight    = 100
      target "a" {
        percent = 30
      }
    }
    restart {
      attempts = 3
      interval = "1h"
      delay    = "15s"
      mode     = "fail"
    }
    reschedule {
      unlimited = false
      attempts  = 0
    }
    network {
      mode = "bridge"
      dns {
        servers = ["1.1.1.1"]
      }
      port "http" {
        to = 80
      }
      port "ssh" {
        static = 2222
      }
    }
    task "default-task" {
      driver       = "docker"
      kill_timeout = "0s"
      kill_signal  = "SIGKILL"
      config {
        image        = local.image
        command      = "sleep"
        args         = ["infinity", "${NOMAD_ALLOC_ID}-x"]
        network_mode = "none"
        pids_limit   = 100
        mount {
          type   = "tmpfs"
          target = "/tmp"
        }
      }
      env {
        HOME = "/home/${var.tag}"
      }
      logs {
        max_files     = 1
        max_file_size = 1
      }
      resources {
        cpu        = 40
        memory     = 30
        memory_max = var.memory
        device "nvidia/gpu" {
          count = 2
        }
      }
    }
  }
  group "config" {
    count = 0
    task "config" {
      driver = "exec"
      config {
        command = "true"
      }
    }
    meta = {
      used = "false"
    }
  }
}
`

func TestATemplateJobIsRead(t *testing.T) {
	got, err := jobspec.Parse("job.hcl", []byte(template), `tag = "3"`)
	if err != nil {
		t.Fatal(err)
	}
	want := &api.Job{
		ID: new("template-0"), Name: new("template-0"), Datacenters: []string{"dc1"}, Type: new("batch"), Priority: new(70),
		Namespace: new("poseidon"),
		Constraints: []*api.Constraint{
			{LTarget: "${attr.kernel.name}", RTarget: "linux"}, {Operand: "distinct_hosts"},
		},
		Affinities: []*api.Affinity{{LTarget: "${node.class}", RTarget: "gpu.*", Operand: "regexp", Weight: new(int8(-50))}},
		Meta:       map[string]string{"example": "x", "number": "7"},
		TaskGroups: []*api.TaskGroup{
			{
				Name: new("default-group"), Count: new(1),
				EphemeralDisk: &api.EphemeralDisk{Migrate: new(false), Sticky: new(false), SizeMB: new(10)},
				Spreads: []*api.Spread{{Attribute: "${node.unique.name}", Weight: new(int8(100)),
					SpreadTarget: []*api.SpreadTarget{{Value: "a", Percent: 30}}}},
				RestartPolicy:    &api.RestartPolicy{Attempts: new(3), Interval: new(time.Hour), Delay: new(15 * time.Second), Mode: new("fail")},
				ReschedulePolicy: &api.ReschedulePolicy{Unlimited: new(false), Attempts: new(0)},
				Networks: []*api.NetworkResource{{
					Mode: "bridge", DNS: &api.DNSConfig{Servers: []string{"1.1.1.1"}},
					DynamicPorts: []api.Port{{Label: "http", To: 80}}, ReservedPorts: []api.Port{{Label: "ssh", Value: 2222}},
				}},
				Tasks: []*api.Task{{
					Name: "default-task", Driver: "docker", KillTimeout: new(time.Duration(0)), KillSignal: "SIGKILL",
					Config: map[string]any{
						"image": "python:3", "command": "sleep", "args": []any{"infinity", "${NOMAD_ALLOC_ID}-x"}, "network_mode": "none",
						"pids_limit": 100, "mount": []map[string]any{{"type": "tmpfs", "target": "/tmp"}},
					},
					Env:       map[string]string{"HOME": "/home/3"},
					LogConfig: &api.LogConfig{MaxFiles: new(1), MaxFileSizeMB: new(1)},
					Resources: &api.Resources{CPU: new(40), MemoryMB: new(30), MemoryMaxMB: new(512),
						Devices: []*api.RequestedDevice{{Name: "nvidia/gpu", Count: new(uint64(2))}}},
				}},
			},
			{
				Name: new("config"), Count: new(0), Meta: map[string]string{"used": "false"},
				Tasks: []*api.Task{{Name: "config", Driver: "exec", Config: map[string]any{"command": "true"}}},
			},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestMistakesAreToldWithTheirPlace(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"no job", `locals {}`, "no job"},
		{"broken HCL", `job "a" {`, "job.hcl:1"},
		{"an unknown attribute", "job \"a\" {\n colour = 1\n}", `job.hcl:2,2: unknown attribute "colour"`},
		{"an unknown block", "job \"a\" {\n paint {}\n}", `unknown block "paint"`},
		{"a block that is an attribute", "job \"a\" {\n type {}\n}", "is an attribute"},
		{"an attribute that is a block", "job \"a\" {\n update = 3\n}", "is a block"},
		{"a wrong type", "job \"a\" {\n priority = \"high\"\n}", "priority must be a number"},
		{"a bad duration", "job \"a\" {\n group \"g\" {\n restart {\n delay = \"soon\"\n}\n}\n}", "duration such as"},
		{"a variable without a value", "variable \"x\" {}\njob \"a\" {\n type = var.x\n}", "neither a value nor a default"},
		{"a group without a name", "job \"a\" {\n group {}\n}", "names"},
		{"two mistakes", "job \"a\" {\n x = 1\n y = 2\n}", `"y"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := jobspec.Parse("job.hcl", []byte(c.text), "")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want it to contain %q", err, c.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(template))
	f.Fuzz(func(_ *testing.T, src []byte) { _, _ = jobspec.Parse("job.hcl", src, "") })
}
