package wire_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/nomad/api"

	"rockpool/internal/orchestrator/jobspec"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/wire"
)

// deviceJob is a job file whose task asks for a device with these contents.
func deviceJob(name, body string) string {
	return fmt.Sprintf(`job "j" {
  type = "batch"
  group "g" {
    task "t" {
      driver = "mock"
      resources {
        device %q {
%s
        }
      }
    }
  }
}`, name, body)
}

// viaJSON is the job as a client sends it and as it is kept.
func viaJSON(t *testing.T, text string) (*api.Job, *model.Job) {
	t.Helper()
	j, err := jobspec.Parse("job.hcl", []byte(text), "")
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	sent := &api.Job{}
	if err := json.Unmarshal(data, sent); err != nil {
		t.Fatal(err)
	}
	if err := wire.Complete(sent); err != nil {
		t.Fatal(err)
	}
	return sent, wire.JobIn(sent)
}

func TestARequestForDevicesReachesTheScheduler(t *testing.T) {
	sent, kept := viaJSON(t, deviceJob("nvidia/gpu", `
          count = 2
          constraint {
            attribute = "${device.attr.memory}"
            operator  = ">="
            value     = "40 GiB"
          }
          constraint {
            attribute = "${device.attr.share}"
            operator  = "is_not_set"
          }
          affinity {
            attribute = "${device.model}"
            operator  = "regexp"
            value     = "H100|A100"
            weight    = 75
          }
          affinity {
            attribute = "${device.attr.compute_capability}"
            operator  = "version"
            value     = ">= 9.0"
          }`))
	if p := wire.Validate(sent); len(p.Errors) > 0 {
		t.Fatal(p.Errors)
	}
	want := []model.DeviceRequest{{
		Name: "nvidia/gpu", Count: 2,
		Constraints: []model.Constraint{{LTarget: "${device.attr.memory}", Operand: ">=", RTarget: "40 GiB"}, {LTarget: "${device.attr.share}", Operand: "is_not_set"}},
		Affinities: []model.Affinity{{LTarget: "${device.model}", Operand: "regexp", RTarget: "H100|A100", Weight: 75},
			{LTarget: "${device.attr.compute_capability}", Operand: "version", RTarget: ">= 9.0", Weight: 50}},
	}}
	if d := cmp.Diff(want, kept.TaskGroups[0].Tasks[0].Resources.Devices); d != "" {
		t.Errorf("what is kept (-want +got):\n%s", d)
	}
	if d := cmp.Diff(sent.TaskGroups[0].Tasks[0].Resources.Devices, wire.JobOut(kept).TaskGroups[0].Tasks[0].Resources.Devices); d != "" {
		t.Errorf("what is answered (-sent +answered):\n%s", d)
	}
}

func TestRequestsForDevicesAreChecked(t *testing.T) {
	constraint := func(attribute, operator, value string) string {
		return fmt.Sprintf("constraint {\n attribute = %q\n operator = %q\n value = %q\n}", attribute, operator, value)
	}
	for _, c := range []struct{ name, device, body, want string }{
		{"a type", "gpu", "", ""},
		{"a model with spaces", "nvidia/gpu/NVIDIA A100-SXM4-40GB slot 10gb", "count = 1", ""},
		{"no name", "", "", "a device needs a name"},
		{"none", "nvidia/gpu", "count = 0", "a count of at least 1"},
		{"too many", "nvidia/gpu", "count = 4096", "at most 1024 devices, not 4096"},
		{"an empty type", "nvidia/", "", `device "nvidia/": a device is named type, vendor/type or vendor/type/model`},
		{"a space", "nvidia / gpu", "", "a device is named type"},
		{"an unknown operator", "nvidia/gpu", constraint("${device.attr.memory}", "bigger", "1 GiB"), `device "nvidia/gpu": constraint 1: unknown constraint operator "bigger"`},
		{"a broken expression", "nvidia/gpu", constraint("${device.model}", "regexp", "("), "regular expression failed to compile"},
		{"an attribute of nodes", "nvidia/gpu", constraint("${attr.driver.cuda}", ">=", "12"), `"${attr.driver.cuda}" is none of ${device.attr.<name>}`},
		{"an unknown part", "nvidia/gpu", constraint("${device.name}", "=", "T4"), "is none of"},
		{"an unknown unit", "nvidia/gpu", constraint("${device.attr.memory}", ">=", "40 gib"), `"gib" is no unit of "40 gib"`},
		{"a known unit", "nvidia/gpu", constraint("${device.attr.memory}", ">=", "40GiB"), ""},
		{"a text that looks like an amount", "nvidia/gpu", constraint("${device.attr.mig_profile}", "=", "1g"), ""},
		{"a condition on nodes", "nvidia/gpu", "constraint {\n distinct_hosts = true\n}", "distinct_hosts is about nodes"},
		{"an affinity without weight", "nvidia/gpu", "affinity {\n attribute = \"${device.model}\"\n value = \"T4\"\n weight = 0\n}", "affinity 1: needs a known operator and a weight"},
		{"an affinity of nodes", "nvidia/gpu", "affinity {\n attribute = \"${node.class}\"\n value = \"x\"\n}", `affinity 1: "${node.class}" is none of`},
		{"two mistakes", "nvidia/", constraint("${device.nothing}", "=", "1"), "is none of"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sent, _ := viaJSON(t, deviceJob(c.device, c.body))
			errs := strings.Join(wire.Validate(sent).Errors, "\n")
			if (errs == "") != (c.want == "") || !strings.Contains(errs, c.want) {
				t.Errorf("the errors are %q, not %q", errs, c.want)
			}
		})
	}
	for _, c := range []struct{ body, want string }{
		{"colour = 1", `unknown attribute "colour"`}, {"count = \"many\"", "count must be a number"}, {"spread {}", `unknown block "spread"`},
		{"count = -1", "count"},
	} {
		if _, err := jobspec.Parse("job.hcl", []byte(deviceJob("nvidia/gpu", c.body)), ""); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.body, err)
		}
	}
}
