package orchestrator_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const unitFile = "rockpool-orchestrator.service"

// The unit that is shipped says what the agent relies on: that it is waited for until it answers, that a stop ends the agent and nothing else, and that its
// control groups are its own.
func TestTheSystemdUnitSaysWhatTheAgentReliesOn(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("../../deploy/systemd", unitFile))
	if err != nil {
		t.Fatal(err)
	}
	section, has := "", map[string][]string{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch key, value, ok := strings.Cut(line, "="); {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			section = strings.Trim(line, "[]")
		case !ok || section == "":
			t.Errorf("neither a section nor a key: %q", line)
		default:
			has[section+"."+key] = append(has[section+"."+key], value)
		}
	}
	for key, want := range map[string]string{
		"Service.Type": "notify", "Service.NotifyAccess": "main", "Service.KillMode": "process", "Service.Delegate": "yes", "Service.Restart": "on-failure",
		"Service.ExecReload": "/bin/kill -HUP $MAINPID", "Service.ExecStart": "/usr/local/bin/orchestrator agent -config /etc/rockpool", "Install.WantedBy": "multi-user.target",
	} {
		if got := has[key]; !slices.Equal(got, []string{want}) {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	// A mount namespace of its own would hide an agent's sandboxes from the next one.
	for _, key := range []string{"PrivateTmp", "PrivateMounts", "ProtectSystem", "ProtectHome", "ReadOnlyPaths", "RootDirectory", "PrivateDevices"} {
		if got := has["Service."+key]; got != nil {
			t.Errorf("%s=%s gives the agent a mount namespace of its own", key, got)
		}
	}
}

// systemd itself finds nothing to say about the unit.
func TestSystemdTakesTheUnit(t *testing.T) {
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	text, err := os.ReadFile(filepath.Join("../../deploy/systemd", unitFile))
	if err != nil {
		t.Fatal(err)
	}
	complaints := func(text string) (about []string) {
		t.Helper()
		at := filepath.Join(t.TempDir(), unitFile)
		// The program is not installed where the tests run.
		if err := os.WriteFile(at, []byte(strings.ReplaceAll(text, "/usr/local/bin/orchestrator", "/bin/true")), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(verify, "verify", "--man=no", at).CombinedOutput()
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, unitFile) { // the machine's own units may have faults of their own
				about = append(about, line)
			}
		}
		if err != nil && len(about) == 0 {
			t.Skipf("systemd-analyze cannot be used here: %v: %s", err, out)
		}
		return about
	}
	if got := complaints(string(text)); len(got) != 0 {
		t.Errorf("systemd says: %s", got)
	}
	if got := complaints(strings.Replace(string(text), "Restart=on-failure", "Restart=sometimes", 1)); len(got) == 0 {
		t.Error("systemd does not see a fault: the test proves nothing")
	}
}
