package mock_test

import (
	"strconv"
	"testing"

	"go.uber.org/goleak"

	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/drivertest"
	"rockpool/internal/orchestrator/driver/mock"
	"rockpool/internal/orchestrator/model"
)

func TestConformance(t *testing.T) {
	defer goleak.VerifyNone(t)
	d := mock.New() // the machine
	drivertest.Run(t, drivertest.Subject{
		New:     func(*testing.T) driver.Driver { return d },
		Forever: map[string]any{},
		Exits:   map[string]any{"run_for": "1ms", "exit_code": 3},
		Says: func(out, err string) map[string]any {
			return map[string]any{"run_for": "1ms", "stdout_string": out, "stderr_string": err}
		},
		Wrong: map[string]any{"colour": "red"},
		Names: "colour",
		Cat:   []string{"cat"},
		Exit:  func(code int) []string { return []string{"exit", strconv.Itoa(code)} },
		Both:  func(out, err string) []string { return []string{"both", out, err} },
		Sleep: []string{"sleep", "5m"},
		Size:  []string{"size"},
	})
}

func TestItsMemoryIsBounded(t *testing.T) {
	d := mock.New()
	const n = 35_000
	for i := range n {
		cfg := driver.TaskConfig{ID: strconv.Itoa(i), AllocID: strconv.Itoa(i), Task: &model.Task{Name: "t", Config: map[string]any{"fail_once": true, "exit_code": 1}}}
		if _, err := d.Start(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		_ = d.Cleanup(t.Context(), cfg.ID)
	}
	started := d.Started()
	if len(started) < 10_000 || len(started) > 20_000 || started[len(started)-1] != strconv.Itoa(n-1) {
		t.Errorf("%d are remembered", len(started))
	}
}
