//go:build linux

package raw_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/drivertest"
	"rockpool/internal/orchestrator/driver/raw"
	"rockpool/internal/orchestrator/model"
)

func TestConformance(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir := t.TempDir()
	drivertest.Run(t, drivertest.ShellSubject(drivertest.Subject{
		New:     func(*testing.T) driver.Driver { return raw.New(raw.Config{Enabled: true, Dir: dir}) },
		Forever: map[string]any{"command": "sleep", "args": []any{"300"}},
		Exits:   map[string]any{"command": "sh", "args": []any{"-c", "exit 3"}},
		Says: func(out, err string) map[string]any {
			return map[string]any{"command": "sh", "args": []any{"-c", `printf %s "$1"; printf %s "$2" >&2`, "sh", out, err}}
		},
		SaysOn: map[string]any{"command": "sh", "args": []any{"-c", `x=; i=0; while [ $i -lt 100 ]; do echo "$x"; x=x$x; i=$((i+1)); sleep 0.005; done`}},
		Wrong:  map[string]any{"command": "true", "image": "x"},
		Names:  "image",
	}))
}

func TestDisabledUnlessEnabled(t *testing.T) {
	d := raw.New(raw.Config{Dir: t.TempDir()})
	if info := d.Fingerprint(t.Context()); info.Detected || info.Healthy || info.HealthDescription == "" {
		t.Errorf("fingerprint %+v", info)
	}
	task := &model.Task{Name: "task", Config: map[string]any{"command": "true"}}
	if err := d.Validate(task); !fault.Is(err, fault.Unsupported) {
		t.Errorf("validate: %v", err)
	}
	if _, err := d.Start(t.Context(), driver.TaskConfig{ID: "x", Task: task, StateDir: t.TempDir()}); err == nil {
		t.Error("started")
	}
}

func TestUsageIsOfTheWholeGroup(t *testing.T) {
	defer goleak.VerifyNone(t)
	d := raw.New(raw.Config{Enabled: true, Dir: t.TempDir()})
	cfg := driver.TaskConfig{ID: "one", StateDir: t.TempDir(), Task: &model.Task{Name: "task", Config: map[string]any{
		"command": "sh", "args": []any{"-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done & sleep 300"}}}}
	task, err := d.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Cleanup(t.Context(), cfg.ID); err != nil {
			t.Error(err)
		}
		if err := d.Detach(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	var u driver.Usage
	for end := time.Now().Add(20 * time.Second); u.CPUTime == 0 || u.PIDs < 2 || u.MemoryBytes == 0; time.Sleep(time.Millisecond) {
		if u, err = task.Usage(t.Context()); err != nil || time.Now().After(end) {
			t.Fatalf("%+v, %v", u, err)
		}
	}
}

// An agent that was started by nohup ignores hang-ups; what it starts must not.
func TestTasksHearSignalsThatTheAgentWasStartedToIgnore(t *testing.T) {
	cmd := exec.Command("sh", "-c", `trap "" HUP INT; exec "$0" "$@"`, os.Args[0], "-test.run=^TestConformance$/^ends_by_any_signal$", "-test.v", "-test.timeout=30s")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestConformance/ends_by_any_signal") {
		t.Errorf("%v:\n%s", err, out)
	}
}
