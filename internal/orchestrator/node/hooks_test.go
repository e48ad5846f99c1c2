package node_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
)

// hooked makes an allocation of a service whose tasks have the given hooks: "" is a main task, a hook that ends with + a sidecar.
func hooked(id string, tasks ...struct {
	name, hook string
	config     config
}) *model.Allocation {
	a := alloc(id)
	g := a.Job.TaskGroups[0]
	for _, t := range tasks {
		spec := &model.Task{Name: t.name, Driver: "mock", Config: t.config, KillTimeout: time.Second, Resources: model.Resources{CPU: 100, MemoryMB: 64}}
		if hook, sidecar := strings.CutSuffix(t.hook, "+"); hook != "" {
			spec.Lifecycle = &model.Lifecycle{Hook: hook, Sidecar: sidecar}
		}
		g.Tasks = append(g.Tasks, spec)
	}
	return a
}

type task = struct {
	name, hook string
	config     config
}

// started lists the names of tasks in the order of their first starts.
func (m *machine) started() (names []string) {
	for _, id := range m.driver.Started() {
		if name := strings.Split(id, ".")[1]; !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

func TestHooksRunInTheirOrder(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(hooked("one", task{"clean", "poststop", config{"run_for": "1s"}}, task{"after", "poststart", config{"run_for": "1s"}},
			task{"main", "", config{"run_for": "10s"}}, task{"init", "prestart", config{"run_for": "2s"}}, task{"proxy", "prestart+", config{}}))
		after(time.Second)
		if got := m.started(); len(got) != 2 || slices.Contains(got, "main") {
			t.Fatalf("after a second there are %v", got)
		}
		after(2 * time.Second)
		if got := m.started(); !slices.Contains(got, "main") || !slices.Contains(got, "after") || slices.Contains(got, "clean") {
			t.Fatalf("once the first has ended there are %v", got)
		}
		m.expect("one", model.ClientRunning)
		after(20 * time.Second)
		m.expect("one", model.ClientComplete)
		if got := m.started(); got[len(got)-1] != "clean" {
			t.Errorf("the last is not what cleans up: %v", got)
		}
		if s := m.server.task("one", "proxy"); s.Failed || !slices.Contains(types(s), "Main Tasks Dead") {
			t.Errorf("the sidecar: %+v", types(s))
		}
		if left := m.driver.Tasks(); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	})
}

func TestAFailedPrestartLetsNothingRun(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(hooked("one", task{"main", "", config{}}, task{"init", "prestart", config{"run_for": "1s", "exit_code": 1}}, task{"clean", "poststop", config{"run_for": "1s"}}))
		after(10 * time.Second)
		m.expect("one", model.ClientFailed)
		if got := m.started(); slices.Contains(got, "main") || !slices.Contains(got, "clean") {
			t.Errorf("started: %v", got)
		}
	})
}

func TestAStoppedAllocationCleansUpAndAPurgedOneVanishes(t *testing.T) {
	for _, purge := range []bool{false, true} {
		t.Run(fmt.Sprintf("purge %v", purge), func(t *testing.T) {
			inBubble(t, func(t *testing.T, m *machine) {
				m.server.place(hooked("one", task{"main", "", config{}}, task{"clean", "poststop", config{"run_for": "5s"}}))
				after(time.Second)
				if purge {
					m.server.purge("one")
				} else {
					m.server.change("one", func(a *model.Allocation) { a.DesiredStatus = model.DesiredStop })
				}
				after(3 * time.Second)
				if cleaning := slices.Contains(m.started(), "clean"); cleaning == purge {
					t.Errorf("it cleans up: %v", cleaning)
				}
				after(10 * time.Second)
				if left := m.driver.Tasks(); len(left) != 0 {
					t.Errorf("left: %v", left)
				}
				if !purge {
					m.expect("one", model.ClientComplete)
				}
			})
		})
	}
}

func TestTheShutdownDelayComesBeforeTheKill(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		a := hooked("one", task{"main", "", config{}})
		a.Job.TaskGroups[0].ShutdownDelay, a.Job.TaskGroups[0].Tasks[0].ShutdownDelay = 5*time.Second, 3*time.Second
		m.server.place(a)
		after(time.Second)
		m.server.change("one", func(a *model.Allocation) { a.DesiredStatus = model.DesiredStop })
		after(7 * time.Second)
		if len(m.driver.Tasks()) != 1 {
			t.Error("it was killed before the delays were over")
		}
		after(2 * time.Second)
		m.expect("one", model.ClientComplete)
	})
}

func TestATasksOwnRestartPolicyCounts(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		a := hooked("one", task{"main", "", config{"run_for": "1s", "exit_code": 1}})
		a.Job.TaskGroups[0].Restart = model.RestartPolicy{Attempts: 0, Mode: model.RestartModeFail}
		a.Job.TaskGroups[0].Tasks[0].Restart = &model.RestartPolicy{Attempts: 2, Interval: time.Hour, Delay: time.Second, Mode: model.RestartModeFail}
		m.server.place(a)
		after(time.Minute)
		m.expect("one", model.ClientFailed)
		if n := len(m.driver.Started()); n != 3 {
			t.Errorf("%d starts", n)
		}
	})
}

func TestANodeWithoutServersObeysStopOnClientAfter(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		a := hooked("one", task{"main", "", config{}})
		a.Job.TaskGroups[0].Disconnect = &model.DisconnectPolicy{StopOnClientAfter: time.Minute}
		m.server.place(a, alloc("two", config{}))
		after(time.Second)
		m.server.set(func() { m.server.down = true })
		m.server.cut()
		after(50 * time.Second)
		if len(m.driver.Tasks()) != 2 {
			t.Fatal("stopped too early")
		}
		after(time.Minute)
		if left := m.driver.Tasks(); len(left) != 1 || !strings.HasPrefix(left[0], "two.") {
			t.Fatalf("left: %v", left)
		}
		m.server.set(func() { m.server.down = false })
		after(time.Minute)
		m.expect("one", model.ClientComplete)
		m.expect("two", model.ClientRunning)
	})
}

func TestHealthOfADeployment(t *testing.T) {
	for name, c := range map[string]struct {
		config config
		want   *bool
		after  time.Duration
	}{
		"well for long enough":  {config{}, new(true), 12 * time.Second},
		"not yet":               {config{}, nil, 5 * time.Second},
		"a task fails":          {config{"run_for": "2s", "exit_code": 1}, new(false), 4 * time.Second},
		"it takes for too long": {config{"start_delay": "1h"}, new(false), 31 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, m *machine) {
				a := hooked("one", task{"main", "", c.config})
				a.Job.Type, a.DeploymentID = model.JobTypeService, "d"
				a.Job.TaskGroups[0].Update = &model.UpdatePolicy{MaxParallel: 1, HealthCheck: model.HealthChecks, MinHealthyTime: 10 * time.Second, HealthyDeadline: 30 * time.Second}
				m.server.place(a)
				after(c.after)
				m.server.mu.Lock()
				h := m.server.latest["one"].Health
				m.server.mu.Unlock()
				switch {
				case c.want == nil && h != nil, c.want != nil && (h == nil || h.Healthy == nil || *h.Healthy != *c.want):
					t.Errorf("health is %+v", h)
				}
				m.server.purge("one")
				after(2 * time.Second)
			})
		})
	}
}

func TestServicesAreOfferedWhileTheirTaskRuns(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		a := hooked("one", task{"main", "", config{"start_delay": "5s"}})
		g := a.Job.TaskGroups[0]
		g.Services = []*model.Service{{Name: "web", PortLabel: "http", Tags: []string{"${NOMAD_ALLOC_ID}", "x"}}}
		g.ShutdownDelay = 5 * time.Second
		a.Resources.Ports = []model.AllocatedPort{{Label: "http", Value: 20001, HostIP: "192.0.2.7"}}
		m.server.place(a)
		after(time.Second)
		if got := m.server.services("one"); len(got) != 0 {
			t.Fatalf("offered before it runs: %+v", got)
		}
		after(5 * time.Second)
		got := m.server.services("one")
		if len(got) != 1 || got[0].ServiceName != "web" || got[0].Address != "192.0.2.7" || got[0].Port != 20001 || got[0].AllocID != "one" {
			t.Fatalf("offered: %+v", got)
		}
		m.server.change("one", func(a *model.Allocation) { a.DesiredStatus = model.DesiredStop })
		after(time.Second)
		if len(m.driver.Tasks()) != 1 || len(m.server.services("one")) != 0 {
			t.Error("it is offered while it goes away")
		}
		after(10 * time.Second)
		m.expect("one", model.ClientComplete)
	})
}

func TestLogsOfATaskAreThereAfterARestartOfTheAgent(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{"stdout_string": "hello"}))
		after(time.Second)
		m.restart()
		dir, err := m.agent.Directory("one")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "alloc/logs/a.stdout.0")); string(b) != "hello" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		if ended, err := m.agent.Ended("one", "a"); ended || err != nil {
			t.Errorf("ended: %v, %v", ended, err)
		}
		if err := m.agent.Collect("one"); err == nil {
			t.Error("what runs was collected")
		}
		m.driver.End(m.driver.Tasks()[0], driver.Exit{})
		after(time.Second)
		if ended, err := m.agent.Ended("one", "a"); !ended || err != nil {
			t.Errorf("ended: %v, %v", ended, err)
		}
		if err := m.agent.Collect("one"); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left: %v", err)
		}
	})
}

func TestMetadataIsKeptAndRegistered(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		if _, err := m.agent.ApplyMetadata(t.Context(), map[string]*string{"rack": new("r1"), "gone": nil}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := m.server.node.Meta["rack"]; got != "r1" {
			t.Errorf("registered as %q", got)
		}
		for _, bad := range []map[string]*string{nil, {"a b": new("x")}, {"x": new(strings.Repeat("x", 5000))}} {
			if _, err := m.agent.ApplyMetadata(t.Context(), bad); err == nil {
				t.Errorf("%v was taken", bad)
			}
		}
		m.restart()
		if got := m.agent.Metadata(); got.Meta["rack"] != "r1" || len(got.Dynamic) != 1 {
			t.Errorf("after a restart: %+v", got)
		}
		if _, err := m.agent.ApplyMetadata(t.Context(), map[string]*string{"rack": nil}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, ok := m.server.node.Meta["rack"]; ok {
			t.Error("a removed key is still registered")
		}
	})
}
