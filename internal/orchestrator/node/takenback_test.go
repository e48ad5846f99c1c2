package node_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/driver/mock"
	"rockpool/internal/orchestrator/model"
)

// slowly takes tasks back only after some time.
type slowly struct {
	*mock.Driver
	after time.Duration
}

func (s slowly) Recover(ctx context.Context, cfg driver.TaskConfig) (driver.Task, error) {
	time.Sleep(s.after)
	return s.Driver.Recover(ctx, cfg)
}

// Whoever asks for a task right after a restart of the agent is not told that it does not run, while it does.
func TestATaskIsWaitedForUntilItWasTakenBack(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}))
		after(time.Second)
		m.expect("one", model.ClientRunning)
		m.facade = slowly{m.driver, 5 * time.Second}
		m.restart()
		began := time.Now()
		short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if _, err := m.agent.Task(short, "one", "a"); err == nil || short.Err() == nil {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		if _, err := m.agent.Task(t.Context(), "one", "a"); err != nil {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("it was found after %v", took)
		}
		synctest.Wait()
	})
}
