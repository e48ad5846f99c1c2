package node_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"rockpool/internal/orchestrator/model"
)

// swap stops old and places next in one message, as a plan does.
func (s *server) swap(old string, next *model.Allocation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := *s.allocs[old]
	c.DesiredStatus = model.DesiredStop
	next.CreateIndex = s.index + 1
	s.allocs[old], s.allocs[next.ID] = &c, next
	s.send(model.AllocPush{Allocs: []*model.Allocation{next, &c}}) // in the order of their ids, whatever that is
}

func held(label string, port int) model.AllocatedResources {
	return model.AllocatedResources{Ports: []model.AllocatedPort{{Label: label, Value: port}}}
}

func TestAnAllocationStartsWhenThoseHaveEndedWhosePlaceItTakes(t *testing.T) {
	gpu := func(id string) model.AllocatedResources {
		return model.AllocatedResources{Tasks: map[string]*model.AllocatedTask{"a": {Devices: []model.AllocatedDevice{{Vendor: "nvidia", Type: "gpu", Name: "x", DeviceIDs: []string{id}}}}}}
	}
	for name, c := range map[string]struct {
		with  func(old, next *model.Allocation)
		waits bool
	}{
		"preempted":              {func(_, next *model.Allocation) { next.Preempts = []string{"old", "elsewhere"} }, true},
		"replaced":               {func(_, next *model.Allocation) { next.PreviousAllocation = "old" }, true},
		"another's port":         {func(old, next *model.Allocation) { old.Resources, next.Resources = held("a", 80), held("b", 80) }, true},
		"another's device":       {func(old, next *model.Allocation) { old.Resources, next.Resources = gpu("1"), gpu("1") }, true},
		"nothing in common":      {func(old, next *model.Allocation) { old.Resources, next.Resources = held("a", 80), held("a", 81) }, false},
		"other devices":          {func(old, next *model.Allocation) { old.Resources, next.Resources = gpu("1"), gpu("2") }, false},
		"its task resists":       {func(old, next *model.Allocation) { next.Preempts = []string{"old"} }, true},
		"replaced on other node": {func(_, next *model.Allocation) { next.PreviousAllocation = "elsewhere" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, m *machine) {
				old, next := alloc("old", config{"ignore_signals": true}), alloc("next", config{})
				old.Job.TaskGroups[0].Tasks[0].KillTimeout = 20 * time.Second
				c.with(old, next)
				m.server.place(old)
				m.expect("old", model.ClientRunning)
				m.server.swap("old", next)
				after(19 * time.Second)
				if got := m.server.status("next") == model.ClientRunning; got == c.waits {
					t.Fatalf("runs beside the other: %v", got)
				}
				if c.waits {
					s := m.server.task("next", "a")
					if i := slices.IndexFunc(s.Events, func(e *model.TaskEvent) bool { return strings.Contains(e.DisplayMessage, "allocation old") }); i < 0 {
						t.Errorf("not told what it waits for: %v", types(s))
					}
				}
				after(2 * time.Second)
				m.expect("old", model.ClientComplete)
				m.expect("next", model.ClientRunning)
			})
		})
	}
}

func TestACanaryRunsBesideWhatItMayReplace(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("old", config{}))
		canary := alloc("canary", config{})
		canary.PreviousAllocation = "old"
		m.server.place(canary)
		m.expect("canary", model.ClientRunning)
		m.expect("old", model.ClientRunning)
	})
}

func TestWhoWaitsForAPlaceCanBeStopped(t *testing.T) {
	for name, end := range map[string]func(*machine){
		"stopped": func(m *machine) {
			m.server.change("next", func(a *model.Allocation) { a.DesiredStatus = model.DesiredStop })
			after(time.Second)
			m.expect("next", model.ClientComplete)
		},
		"purged": func(m *machine) { m.server.purge("next"); after(time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, m *machine) {
				m.server.place(alloc("old", config{}))
				next := alloc("next", config{})
				next.Preempts = []string{"old"}
				m.server.place(next) // the one that has to go is not told, so that it goes on
				after(time.Second)
				end(m)
				if s := m.driver.Started(); !slices.Equal(s, []string{"old.a.1"}) {
					t.Errorf("started %v", s)
				}
			})
		})
	}
}

func TestAPlaceThatNeverBecomesFreeFailsTheAllocation(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("old", config{}))
		next := alloc("next", config{})
		next.Preempts = []string{"old"}
		m.server.place(next)
		after(10 * time.Minute)
		m.expect("next", model.ClientFailed)
		s := m.server.task("next", "a")
		if !slices.ContainsFunc(s.Events, func(e *model.TaskEvent) bool {
			return e.Type == model.TaskSetupFailure && strings.Contains(e.DisplayMessage, "has not ended within")
		}) {
			t.Errorf("events %v", types(s))
		}
	})
}

func TestTheTurnIsKeptOverARestartOfTheAgent(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		old, next := alloc("old", config{"ignore_signals": true}), alloc("next", config{})
		old.Job.TaskGroups[0].Tasks[0].KillTimeout = 20 * time.Second
		next.PreviousAllocation = "old"
		m.server.place(old)
		m.expect("old", model.ClientRunning)
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		m.server.swap("old", next) // told while there was no agent
		m.start()
		after(19 * time.Second)
		if s := m.driver.Started(); !slices.Equal(s, []string{"old.a.1"}) {
			t.Fatalf("started %v", s)
		}
		after(2 * time.Second)
		m.expect("next", model.ClientRunning)
	})
}

func TestAnAllocationThatCountsAsUnknownIsReportedAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		begun := time.Now()
		m.server.set(func() { delete(m.server.latest, "one") })
		m.server.change("one", func(a *model.Allocation) { a.ClientStatus = model.ClientUnknown })
		m.expect("one", model.ClientRunning)
		if d := time.Since(begun); d != 0 {
			t.Errorf("reported after %v", d)
		}
		if s := m.driver.Started(); len(s) != 1 {
			t.Errorf("started %v", s)
		}
	})
}
