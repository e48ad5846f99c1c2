// Package standin has a library for tests that answers as the one of NVIDIA's driver does, by a scenario that the test writes and changes.
package standin

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Variable of the environment that names the scenario's file. The library reads it anew in every call.
const Variable = "NVML_SCENARIO"

//go:embed testdata/standin.c
var source []byte

// Build makes the library in a directory, under the name that the system's loader looks for, and returns its path. The test is skipped where there is no compiler.
func Build(t testing.TB, dir string, flags ...string) string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("there is no gcc to build the stand-in for the driver's library with")
	}
	module, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/NVIDIA/go-nvml").Output()
	if err != nil {
		t.Skip("the go command cannot say where the header of the driver's library is: " + err.Error())
	}
	text, library := filepath.Join(dir, "standin.c"), filepath.Join(dir, "libnvidia-ml.so.1")
	if err := os.WriteFile(text, source, 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{
		"-shared", "-fPIC", "-Wall", "-O1", "-DNVML_NO_UNVERSIONED_FUNC_DEFS=1", "-I", filepath.Join(strings.TrimSpace(string(module)), "pkg/nvml"), "-o", library, text,
	}, flags...)
	if out, err := exec.CommandContext(t.Context(), gcc, args...).CombinedOutput(); err != nil {
		t.Fatalf("build the stand-in library: %v\n%s", err, out)
	}
	return library
}

// Scenario is what the library says: values by their keys, as its source tells them.
type Scenario map[string]string

// Say changes the scenario: pairs of key and value. An empty value removes a key.
func (s Scenario) Say(pairs ...string) {
	for i := 0; i < len(pairs); i += 2 {
		if s[pairs[i]] = pairs[i+1]; pairs[i+1] == "" {
			delete(s, pairs[i])
		}
	}
}

// Write puts the scenario into its file, all at once.
func (s Scenario) Write(t testing.TB, file string) {
	t.Helper()
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintln(&b, k, s[k])
	}
	if err := errors.Join(os.WriteFile(file+".new", []byte(b.String()), 0o600), os.Rename(file+".new", file)); err != nil {
		t.Fatal(err)
	}
}

// UUID is that of the i-th GPU of GPUs.
func UUID(i int) string { return fmt.Sprintf("GPU-00000000-0000-4000-8000-%012d", i) }

// Bus is the PCI bus id of the i-th GPU, as the driver writes it.
func Bus(i int) string { return fmt.Sprintf("00000000:%02X:00.0", 0x3b+i) }

// GPUs is the scenario of a machine with n equal ones.
func GPUs(n int) Scenario {
	s := Scenario{"driver": "550.54.15", "cuda": "12040"}
	var all []string
	for i := range n {
		all = append(all, fmt.Sprint(i))
		for k, v := range map[string]string{
			"uuid": UUID(i), "bus": Bus(i), "name": "NVIDIA A100-SXM4-40GB", "memory": "40960", "used": "1024", "bar1": "65536", "power_limit": "400000", "power": "61500",
			"temperature": "41", "cores_clock": "1410", "memory_clock": "1215", "pcie_generation": "4", "pcie_width": "16", "display": "0", "persistence": "1",
			"capability": "8.0", "utilization": "37", "ecc": "0", "mig": "0", "reasons": "0", "retiring": "0",
		} {
			s[fmt.Sprintf("gpu %d %s", i, k)] = v
		}
	}
	s.Say("gpus", strings.Join(all, " "))
	return s
}
