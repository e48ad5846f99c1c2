package jobspec_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"rockpool/internal/orchestrator/jobspec"
)

func TestVariablesLocalsAndDynamicBlocks(t *testing.T) {
	const text = `
variables {
  zone = "a"
}
variable "ports" {
  type    = map(number)
  default = { http = 80 }
}
variable "count" {
  type = number
  validation {
    condition     = var.count < 5
    error_message = "at most 4"
  }
}
variable "names" { type = list(string) }
locals {
  full  = "${local.short}-${var.zone}" # what it refers to comes below
  short = upper(join("", [for n in var.names : substr(n, 0, 1)]))
}
job "j" {
  group "g" {
    count = var.count
    network {
      dynamic "port" {
        for_each = var.ports
        iterator = p
        labels   = [p.key]
        content {
          to = p.value
        }
      }
    }
    task "t" {
      driver = "raw_exec"
      config {
        command = "true"
        args    = [local.full, "${node.unique.id}/${local.short}"]
        dynamic "mount" {
          for_each = toset_like
          content {
            target = mount.value
          }
        }
      }
      env {
        SUM  = sha256("x")
        TRY  = try(var.ports.nothing, "none")
        TEXT = <<-EOT
          one ${var.count}
          two $${kept}
        EOT
      }
    }
  }
}`
	src := strings.Replace(text, "toset_like", `["/a", "/b"]`, 1)
	// As several files of variables and then flags, of which the later wins.
	vars := "names = [\"x\"]\ncount = 1\nzone = <<E\nold\nE\nports = {\n  http = 1\n}\ncount = \"3\"\nnames = [\"bob\", \"eve\"]\nports = {\n  http = 8080\n  ssh = 22\n}\nzone = \"b\"\n"
	j, err := jobspec.Parse("job.hcl", []byte(src), vars)
	if err != nil {
		t.Fatal(err)
	}
	g := j.TaskGroups[0]
	if *g.Count != 3 || len(g.Networks[0].DynamicPorts) != 2 || g.Networks[0].DynamicPorts[0].Label != "http" || g.Networks[0].DynamicPorts[0].To != 8080 {
		t.Errorf("the group is %+v with %+v", g, g.Networks[0])
	}
	want := map[string]any{
		"command": "true", "args": []any{"BE-b", "${node.unique.id}/BE"}, "mount": []map[string]any{{"target": "/a"}, {"target": "/b"}},
	}
	if d := cmp.Diff(want, g.Tasks[0].Config); d != "" {
		t.Error(d)
	}
	if e := g.Tasks[0].Env; e["TRY"] != "none" || e["TEXT"] != "one 3\ntwo ${kept}\n" || len(e["SUM"]) != 64 {
		t.Errorf("the environment is %q", e)
	}
	for want, vars := range map[string]string{
		"at most 4": "count = 9\nnames = []", "is not of its type": "count = \"many\"\nnames = []", "does not declare": "count = 1\nnames = []\nother = 1",
		"neither a value nor a default": "names = []",
	} {
		if _, err := jobspec.Parse("job.hcl", []byte(src), vars); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with %q: %v, want it to contain %q", vars, err, want)
		}
	}
}

func TestATaskAloneIsAGroup(t *testing.T) {
	j, err := jobspec.Parse("job.hcl", []byte(`job "j" {
  task "t" {
    driver = "raw_exec"
  }
}`), "")
	if err != nil || len(j.TaskGroups) != 1 || *j.TaskGroups[0].Name != "t" || j.TaskGroups[0].Tasks[0].Driver != "raw_exec" {
		t.Errorf("%+v, %v", j, err)
	}
}

// used is the CPU time of the process: what a file costs does not depend on who else uses the machine.
func used(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A job file is a stranger's text: reading it must neither take long nor much, whatever it says.
func TestFilesThatWouldGrowAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"doubling texts":       "locals {\n a = \"" + strings.Repeat("x", 1<<17) + "\"\n b = \"${local.a}${local.a}${local.a}${local.a}\"\n c = \"${local.b}${local.b}${local.b}${local.b}\"\n d = \"${local.c}${local.c}${local.c}${local.c}\"\n e = \"${local.d}${local.d}${local.d}${local.d}\"\n f = \"${local.e}${local.e}${local.e}${local.e}\"\n}\njob \"j\" {}",
		"loops in loops":       "locals {\n a = [for i in range(1000) : [for j in range(1000) : [for k in range(1000) : k]]]\n}\njob \"j\" {}",
		"a number of digits":   "job \"j\" {\n meta {\n a = 1e9999999\n}\n}",
		"a number in a text":   "job \"j\" {\n meta {\n a = \"x${1e9999999}\"\n}\n}",
		"growing numbers":      "job \"j\" {\n meta {\n a = \"${1e1999 * 1e1999 * 1e1999 * 1e1999}\"\n}\n}",
		"a number as JSON":     "job \"j\" {\n meta {\n a = jsonencode(1e9999999)\n}\n}",
		"a wide format":        "job \"j\" {\n meta {\n a = format(\"%01000000000d\", 1)\n}\n}",
		"a product":            "job \"j\" {\n meta {\n a = length(setproduct(range(1000), range(1000), range(1000)))\n}\n}",
		"a local of itself":    "locals {\n a = local.b\n b = local.a\n}\njob \"j\" {}",
		"deep brackets":        "job \"j\" {\n meta {\n a = " + strings.Repeat("(", 1<<16) + "\n}\n}",
		"a chain of signs":     "job \"j\" {\n meta {\n a = " + strings.Repeat("-", 1<<16) + "1\n}\n}",
		"a chain of sums":      "job \"j\" {\n meta {\n a = 1" + strings.Repeat("+1", 1<<16) + "\n}\n}",
		"a chain of indices":   "job \"j\" {\n meta {\n a = [1]" + strings.Repeat("[0]", 1<<16) + "\n}\n}",
		"blocks without end":   "job \"j\" {\n dynamic \"group\" {\n for_each = range(1000)\n content {\n dynamic \"task\" {\n for_each = range(1000)\n labels = [\"t\"]\n content {}\n}\n}\n labels = [\"g${group.key}\"]\n}\n}",
		"nested blocks":        "job \"j\" " + strings.Repeat("{\n group ", 1<<15),
		"nested interpolation": "job \"j\" {\n meta {\n a = " + strings.Repeat("\"${", 1<<15) + "\n}\n}",
	} {
		start := used(t)
		if _, err := jobspec.Parse("job.hcl", []byte(text), ""); err == nil {
			t.Errorf("%s: nothing was refused", name)
		}
		if d := used(t) - start; d > 5*time.Second {
			t.Errorf("%s: it took %v", name, d)
		}
	}
}
