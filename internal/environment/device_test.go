package environment_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"rockpool/internal/environment"
	"rockpool/internal/fault"
)

func TestDevicesAreChecked(t *testing.T) {
	gpu := func(change func(*environment.Device)) []environment.Device {
		d := environment.Device{Name: "nvidia/gpu", Count: 1}
		change(&d)
		return []environment.Device{d}
	}
	on := func(attribute, operator, value string) []environment.Device {
		return gpu(func(d *environment.Device) {
			d.Constraints = []environment.DeviceConstraint{environment.DeviceConstraint{Attribute: attribute, Operator: operator, Value: value}.Canonical()}
		})
	}
	for _, c := range []struct {
		name    string
		devices []environment.Device
		want    string // "" = it is good
	}{
		{"none", nil, ""},
		{"a vendor's", gpu(func(*environment.Device) {}), ""},
		{"a model with spaces and slashes", gpu(func(d *environment.Device) { d.Name, d.Count = "nvidia/gpu/Tesla T4 slot 4 GiB/s", 128 }), ""},
		{"no name", gpu(func(d *environment.Device) { d.Name = "" }), "devices[0]: name is missing"},
		{"an empty part", gpu(func(d *environment.Device) { d.Name = "nvidia/" }), "none of type, vendor/type"},
		{"a line break", gpu(func(d *environment.Device) { d.Name = "a\nb" }), "cannot be printed"},
		{"a long name", gpu(func(d *environment.Device) { d.Name = strings.Repeat("g", 257) }), "longer than 256 bytes"},
		{"no instance", gpu(func(d *environment.Device) { d.Count = 0 }), "count 0 is not between 1 and 128"},
		{"too many instances", gpu(func(d *environment.Device) { d.Count = 129 }), "count 129"},
		{"too many kinds", make([]environment.Device, 9), "there are 9, more than 8"},
		{"too many conditions", gpu(func(d *environment.Device) { d.Constraints = make([]environment.DeviceConstraint, 17) }), "17 constraints"},
		{"a condition", on("memory", ">=", "40 GiB"), ""},
		{"a condition as Nomad writes it", on("${device.attr.memory}", "==", "40 GiB"), ""},
		{"no operator", on("mig_profile", "", "1g.5gb"), ""},
		{"on the model", on("${device.model}", "regexp", "A100|H100"), ""},
		{"on the node", on("${attr.cpu.arch}", "=", "amd64"), "neither the name of one"},
		{"an unknown operator", on("memory", "~", "1"), `no operator "~"`},
		{"no expression", on("${device.model}", "regexp", "("), "no regular expression"},
		{"no value", on("memory", ">=", ""), "value is missing"},
		{"presence", on("nvlink", "is_set", ""), ""},
		{"presence with a value", on("nvlink", "is_set", "1"), "takes no value"},
		{"a part by presence", on("share", "is_not_set", ""), "is said by share"},
		{"a part by kind", on("share", "=", "mig"), ""},
	} {
		err := environment.Environment{Devices: c.devices}.Validate()
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (!fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func TestANameMeansDevicesAsInNomad(t *testing.T) {
	for _, c := range []struct {
		name string
		want bool
	}{
		{"gpu", true}, {"nvidia/gpu", true}, {"nvidia/gpu/A100", true}, {"nvidia/gpu/A10", false}, {"amd/gpu", false}, {"nvidia", false}, {"A100", false},
	} {
		if got := (environment.Device{Name: c.name}).Names("nvidia", "gpu", "A100"); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

func TestARequestCoversThoseThatAreMoreExact(t *testing.T) {
	names := []string{"gpu", "nvidia/gpu", "nvidia/gpu/A100", "nvidia/gpu/H100", "amd/gpu", "fpga"}
	covered := map[string][]string{"gpu": {"gpu", "nvidia/gpu", "nvidia/gpu/A100", "nvidia/gpu/H100", "amd/gpu"}, "nvidia/gpu": {"nvidia/gpu", "nvidia/gpu/A100", "nvidia/gpu/H100"}}
	for _, a := range names {
		for _, b := range names {
			want := a == b || slices.Contains(covered[a], b)
			if got := (environment.Device{Name: a}).Covers(environment.Device{Name: b}); got != want {
				t.Errorf("%s covers %s: %t", a, b, got)
			}
		}
	}
}

// Runners are replaced if and only if what they are made of differs.
func TestDevicesArePartOfTheSettings(t *testing.T) {
	texts := rapid.SampledFrom([]string{"a", "b", `a" "b`, "a b", "=", "", "]"})
	device := rapid.Custom(func(t *rapid.T) environment.Device {
		d := environment.Device{Name: texts.Draw(t, "name"), Count: uint(rapid.IntRange(1, 3).Draw(t, "count")), Share: environment.Share(rapid.IntRange(0, 2).Draw(t, "share"))}
		for range rapid.IntRange(0, 2).Draw(t, "constraints") {
			d.Constraints = append(d.Constraints, environment.DeviceConstraint{Attribute: texts.Draw(t, "attribute"), Operator: texts.Draw(t, "operator"), Value: texts.Draw(t, "value")})
		}
		return d
	})
	same := func(a, b []environment.Device) bool {
		if len(a) != len(b) {
			return false
		}
		for i := range a {
			if a[i].Name != b[i].Name || a[i].Count != b[i].Count || a[i].Share != b[i].Share || len(a[i].Constraints) != len(b[i].Constraints) {
				return false
			}
			for k := range a[i].Constraints {
				if a[i].Constraints[k] != b[i].Constraints[k] {
					return false
				}
			}
		}
		return true
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.SliceOfN(device, 0, 2).Draw(t, "one"), rapid.SliceOfN(device, 0, 2).Draw(t, "other")
		if got := (environment.Environment{Devices: a}).Equal(environment.Environment{Devices: b}); got != same(a, b) {
			t.Fatalf("%q and %q are told as the same: %t", a, b, got)
		}
	})
}
