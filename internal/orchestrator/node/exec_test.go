package node_test

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node"
)

func TestAnExecutionIsKnownWhileItRunsAndAMinuteLonger(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		spec := driver.ExecSpec{ID: "x", Argv: []string{"exit", "3"}}
		e, err := m.agent.Exec(t.Context(), "one", "a", spec)
		if err != nil {
			t.Fatal(err)
		}
		<-e.Done()
		synctest.Wait()
		if _, err := m.agent.Exec(t.Context(), "one", "a", spec); !fault.Is(err, fault.Conflict) {
			t.Errorf("an id taken twice: %v", err)
		}
		state, res, err := m.agent.Execution("one", "a", "x")
		if state != node.ExecExited || res.ExitCode != 3 || err != nil {
			t.Errorf("%s, %+v, %v", state, res, err)
		}
		after(61 * time.Second)
		if _, _, err := m.agent.Execution("one", "a", "x"); !fault.Is(err, fault.NotFound) {
			t.Errorf("still known: %v", err)
		}
	})
}

func TestAnExecutionWhoseTaskIsGoneIsLost(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		if _, err := m.agent.Exec(t.Context(), "one", "a", driver.ExecSpec{ID: "x", Argv: []string{"cat"}}); err != nil {
			t.Fatal(err)
		}
		if state, _, _ := m.agent.Execution("one", "a", "x"); state != node.ExecRunning {
			t.Errorf("state %s", state)
		}
		if err := m.agent.RestartTask(t.Context(), "one", "a"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if state, res, _ := m.agent.Execution("one", "a", "x"); state != node.ExecLost || res != (driver.ExecResult{}) {
			t.Errorf("state %s, %+v", state, res)
		}
	})
}

func TestExecutionsAreSignalledAndKilled(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		for id, end := range map[string]func() error{
			"int":  func() error { return m.agent.SignalExecution("one", "a", "int", 2) },
			"kill": func() error { return m.agent.KillExecution("one", "a", "kill") },
		} {
			e, err := m.agent.Exec(t.Context(), "one", "a", driver.ExecSpec{ID: id, Argv: []string{"sleep", "1h"}})
			if err != nil {
				t.Fatal(err)
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
			<-e.Done()
			synctest.Wait()
			if err := end(); err != nil {
				t.Errorf("%s of one that has ended: %v", id, err)
			}
		}
		if err := m.agent.KillExecution("one", "a", "none"); !fault.Is(err, fault.NotFound) {
			t.Errorf("kill of none: %v", err)
		}
	})
}

func TestExecErrors(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}), alloc("slow", config{"start_delay": "1m"}))
		synctest.Wait()
		if _, err := m.agent.Exec(t.Context(), "none", "a", driver.ExecSpec{}); fault.Public(err) != `Unknown allocation "none"` {
			t.Errorf("unknown allocation: %v", err)
		}
		if _, err := m.agent.Exec(t.Context(), "slow", "a", driver.ExecSpec{}); fault.Public(err) != `task "a" is not running.` {
			t.Errorf("not running: %v", err)
		}
		if _, err := m.agent.Exec(t.Context(), "one", "a", driver.ExecSpec{Argv: []string{"nope"}}); !errors.Is(err, driver.ErrNoCommand) {
			t.Errorf("no command: %v", err)
		}
		if _, err := m.agent.Exec(t.Context(), "one", "a", driver.ExecSpec{ID: "../x", Argv: []string{"cat"}}); !fault.Is(err, fault.Invalid) {
			t.Errorf("bad id: %v", err)
		}
	})
}

func TestExecutionsEndWithTheAgent(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		e, err := m.agent.Exec(t.Context(), "one", "a", driver.ExecSpec{Argv: []string{"cat"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(e.Stdout()); err != nil {
			t.Error(err)
		}
		<-e.Done()
	})
}
