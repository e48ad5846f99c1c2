package node_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver/mock"
	"rockpool/internal/orchestrator/model"
)

// What has ended costs no goroutine, however much of it there is, and goes when the servers forget it.
func TestAllocationsThatHaveEndedAreNoGoroutines(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("runs", config{}))
		synctest.Wait()
		before := runtime.NumGoroutine()
		var ids []string
		for i := range 200 {
			ids = append(ids, "ended-"+strings.Repeat("x", i%7)+string(rune('a'+i/26))+string(rune('a'+i%26)))
			m.server.place(alloc(ids[i], config{"run_for": "1s"}, config{"run_for": "1s"}))
		}
		after(5 * time.Second)
		for _, id := range ids {
			m.expect(id, model.ClientComplete)
		}
		if n := runtime.NumGoroutine() - before; n > 10 || m.agent.Runners() != 1 { // others' come and go
			t.Errorf("%d goroutines for %d allocations that have ended", n, len(ids))
		}
		counts := map[string]float64{}
		m.agent.Figures(func(name string, v float64) { counts[name] = v })
		if counts["nomad.client.allocations.terminal"] != 200 || counts["nomad.client.allocations.running"] != 1 {
			t.Errorf("%v", counts)
		}
		for _, id := range ids {
			m.server.purge(id)
		}
		after(time.Second)
		m.server.set(func() {
			for _, id := range ids {
				if !m.server.latest[id].Buried {
					t.Errorf("%s was not buried", id)
				}
			}
		})
		m.restart()
		m.agent.Figures(func(name string, v float64) { counts[name] = v })
		if counts["nomad.client.allocations.terminal"] != 0 || counts["nomad.client.allocations.running"] != 1 {
			t.Errorf("after a restart %v", counts)
		}
	})
}

// Whoever asks for an allocation that has ended is answered as before, also by the next process of the agent.
func TestAnAllocationThatHasEndedAnswers(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{"run_for": "1s", "stdout_string": "x"}, config{"run_for": "2s"}))
		after(3 * time.Second)
		m.expect("one", model.ClientComplete)
		for _, again := range []bool{false, true} {
			if again {
				m.restart()
			}
			if names, err := m.agent.Tasks("one"); !slices.Equal(names, []string{"a", "b"}) || err != nil {
				t.Errorf("tasks %v, %v", names, err)
			}
			if over, err := m.agent.Ended("one", "a"); !over || err != nil {
				t.Errorf("ended: %v, %v", over, err)
			}
			if checks, err := m.agent.Checks("one"); len(checks) != 0 || err != nil {
				t.Errorf("checks %v, %v", checks, err)
			}
			if dir, err := m.agent.Directory("one"); err != nil || dir == "" {
				t.Errorf("directory %q, %v", dir, err)
			}
			if _, err := m.agent.Task(t.Context(), "one", "a"); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "not running") {
				t.Errorf("task: %v", err)
			}
			for _, task := range []string{"a", ""} {
				if err := m.agent.RestartTask(t.Context(), "one", task); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "running") {
					t.Errorf("restart of %q: %v", task, err)
				}
			}
			if err := m.agent.SignalTask(t.Context(), "one", "a", 15); !fault.Is(err, fault.NotFound) {
				t.Errorf("signal: %v", err)
			}
			if err := m.agent.Collect("one"); err != nil || len(m.kept()) > 0 {
				t.Errorf("kept %v, %v", m.kept(), err)
			}
		}
		m.server.purge("one")
		after(time.Second)
		if _, err := m.agent.Tasks("one"); !fault.Is(err, fault.NotFound) {
			t.Errorf("of what was purged: %v", err)
		}
		if err := m.agent.Collect("one"); !fault.Is(err, fault.NotFound) {
			t.Errorf("collect what was purged: %v", err)
		}
	})
}

// Servers that do not know how it ended are told again, everything; those that know are not.
func TestAnAllocationThatHasEndedIsReportedAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		long := alloc("one", config{})
		long.Job.TaskGroups[0].MaxRunTime = 2 * time.Second
		m.server.place(long)
		after(10 * time.Second)
		m.expect("one", model.ClientComplete)
		var first model.AllocUpdate
		m.server.set(func() { first = m.server.latest["one"] })
		if first.ClientDescription == "All tasks have completed" {
			t.Fatal("its description is nothing special")
		}
		told := m.server.reportCount()
		m.server.change("one", func(a *model.Allocation) { a.DesiredStatus = model.DesiredStop })
		m.server.cut() // and then a stream whose first message has everything
		after(time.Minute)
		if n := m.server.reportCount() - told; n != 0 {
			t.Errorf("%d reports of what the servers know", n)
		}
		lost := func(status string) func() {
			return func() {
				c := *m.server.allocs["one"]
				c.ClientStatus, c.TaskStates = status, nil
				m.server.allocs["one"] = &c
				delete(m.server.latest, "one")
			}
		}
		m.server.set(lost(model.ClientRunning))
		m.server.cut()
		after(time.Minute)
		check := func(when string) {
			t.Helper()
			m.server.set(func() {
				again := m.server.latest["one"]
				again.ModifyTime = first.ModifyTime
				if diff := cmp.Diff(first, again); diff != "" {
					t.Errorf("%s: %s", when, diff)
				}
			})
		}
		check("a stream begins with a status of long ago")
		m.server.set(lost(model.ClientPending))
		m.server.change("one", func(a *model.Allocation) { a.ClientStatus = model.ClientUnknown })
		after(time.Second)
		check("the node was away")
	})
}

// A record that cannot be read any more takes nothing along but itself.
func TestAnEndWhoseRecordIsDamagedIsReportedAsWhatItWas(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("bad", config{"run_for": "1s", "exit_code": 3}), alloc("good", config{"run_for": "1s"}))
		after(3 * time.Second)
		m.expect("bad", model.ClientFailed)
		m.expect("good", model.ClientComplete)
		path := filepath.Join(m.dir, "allocs.log")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.SplitAfter(b, []byte("\n"))
		for i, l := range lines {
			if bytes.Contains(l, []byte(`"ID":"bad"`)) {
				lines[i] = bytes.Replace(l, []byte(`"ID"`), []byte(`"iD"`), 1)
			}
		}
		if err := os.WriteFile(path, bytes.Join(lines, nil), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := m.agent.Tasks("bad"); !fault.Is(err, fault.Internal) {
			t.Errorf("tasks: %v", err)
		}
		if names, err := m.agent.Tasks("good"); len(names) != 1 || err != nil {
			t.Errorf("tasks of the other: %v, %v", names, err)
		}
		for _, id := range []string{"bad", "good"} {
			m.server.set(func() { delete(m.server.latest, id) })
			m.server.change(id, func(a *model.Allocation) { a.ClientStatus = model.ClientUnknown })
		}
		after(time.Second)
		m.expect("bad", model.ClientFailed)
		m.expect("good", model.ClientComplete)
		m.server.set(func() {
			if u := m.server.latest["bad"]; u.ModifyTime == 0 || u.TaskStates["a"] == nil || u.TaskStates["a"].State != model.TaskDead {
				t.Errorf("what the servers know of its task is taken from them: %+v", u)
			}
		})
		m.server.purge("bad")
		after(time.Second)
		m.server.set(func() {
			if !m.server.latest["bad"].Buried {
				t.Error("it was not buried")
			}
		})
	})
}

// What could not be written stays in memory.
func TestAnEndThatCouldNotBeWrittenIsKept(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{"run_for": "1s"}))
		synctest.Wait()
		found := m.agent.LoseState()
		after(3 * time.Second)
		m.expect("one", model.ClientComplete)
		if names, err := m.agent.Tasks("one"); len(names) != 1 || err != nil {
			t.Errorf("tasks: %v, %v", names, err)
		}
		m.server.set(func() { delete(m.server.latest, "one") })
		m.server.change("one", func(a *model.Allocation) { a.ClientStatus = model.ClientUnknown })
		after(time.Second)
		m.expect("one", model.ClientComplete)
		m.server.purge("one")
		after(time.Second)
		m.server.set(func() {
			if m.server.latest["one"].Buried {
				t.Error("it was buried while that could not be written")
			}
		})
		found()
		after(time.Minute)
		m.server.set(func() {
			if !m.server.latest["one"].Buried {
				t.Error("it was not buried")
			}
		})
	})
}

// A purge of what has ended is tried until it can be written.
func TestAPurgeOfWhatHasEndedIsTriedAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{"run_for": "1s"}), alloc("two", config{"run_for": "1s"}))
		after(3 * time.Second)
		m.expect("one", model.ClientComplete)
		found := m.agent.LoseState()
		m.server.purge("one")
		after(time.Second)
		if _, err := m.agent.Tasks("one"); !fault.Is(err, fault.NotFound) {
			t.Errorf("of what was purged: %v", err)
		}
		m.server.purge("two")
		after(time.Second)
		m.server.set(func() {
			if m.server.latest["one"].Buried || m.server.latest["two"].Buried {
				t.Error("buried while that could not be written")
			}
		})
		found()
		after(time.Minute)
		m.server.set(func() {
			if !m.server.latest["one"].Buried || !m.server.latest["two"].Buried {
				t.Errorf("buried %v, %v", m.server.latest["one"].Buried, m.server.latest["two"].Buried)
			}
		})
	})
}

// Servers that have forgotten it while the node was away need not say so: it is not in what they have.
func TestWhatServersNoLongerHaveIsBuried(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{"run_for": "1s"}), alloc("two", config{"run_for": "1s"}))
		after(3 * time.Second)
		m.server.set(func() { delete(m.server.allocs, "one") })
		m.server.cut()
		after(time.Minute)
		m.server.set(func() {
			if !m.server.latest["one"].Buried || m.server.latest["two"].Buried {
				t.Errorf("buried: %v, and of what they have %v", m.server.latest["one"].Buried, m.server.latest["two"].Buried)
			}
		})
	})
}

// stubborn is a driver that cannot destroy some tasks at first.
type stubborn struct {
	*mock.Driver
	resists atomic.Int32
}

func (d *stubborn) Cleanup(ctx context.Context, id string) error {
	if d.resists.Add(-1) >= 0 {
		return errors.New("it is busy")
	}
	return d.Driver.Cleanup(ctx, id)
}

// What is left of a task that could not be destroyed is destroyed before the allocation is forgotten.
func TestAnEndThatLeftSomethingIsKept(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		d := &stubborn{Driver: m.driver}
		d.resists.Store(2)
		m.facade = d
		m.start()
		m.server.place(alloc("one", config{"run_for": "1s"}))
		after(3 * time.Second)
		m.expect("one", model.ClientComplete)
		if left := m.driver.Tasks(); len(left) != 1 {
			t.Fatalf("left are %v", left)
		}
		m.server.purge("one")
		after(time.Minute)
		m.server.set(func() {
			if left := m.driver.Tasks(); len(left) != 0 || !m.server.latest["one"].Buried {
				t.Errorf("buried %v, left are %v", m.server.latest["one"].Buried, left)
			}
		})
	})
}

// Logs that were removed are not counted again, and those that are there are.
func TestCollectedEndsCountNoMore(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		m.keepEnded = 2
		m.start()
		for _, id := range []string{"one", "two", "three"} {
			m.server.place(alloc(id, config{"stdout_string": "x", "run_for": "1s"}))
			after(2 * time.Second)
		}
		if err := m.agent.Collect("three"); err != nil {
			t.Fatal(err)
		}
		after(2 * time.Minute)
		if got := m.kept(); !slices.Equal(got, []string{"one", "two"}) {
			t.Errorf("kept %v", got)
		}
	})
}

// endUnwritten has an allocation end while that cannot be written.
func endUnwritten(m *machine) {
	m.t.Helper()
	m.server.place(alloc("one", config{"run_for": "1s"}))
	synctest.Wait()
	found := m.agent.LoseState()
	after(3 * time.Second)
	if n := m.agent.Runners(); n != 1 {
		m.t.Errorf("%d allocations have a goroutine before it could be written", n)
	}
	found()
}

// What could not be written is written as soon as it can be, without anybody asking for it.
func TestAnEndIsWrittenWhenItCanBe(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		endUnwritten(m)
		after(2 * time.Minute)
		if n := m.agent.Runners(); n != 0 {
			t.Errorf("%d allocations have a goroutine", n)
		}
		m.server.set(func() { delete(m.server.latest, "one") })
		m.restart()
		m.expect("one", model.ClientComplete)
	})
}

// What servers say of an allocation as it ends is written, or the next process of the agent would take older messages for newer ones.
func TestAnEndWaitsForWhatIsStillToBeWritten(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		endUnwritten(m)
		m.server.change("one", func(a *model.Allocation) { a.DesiredStatus = model.DesiredStop }) // and with it, all is written
		after(time.Second)
		if n := m.agent.Runners(); n != 0 {
			t.Errorf("%d allocations have a goroutine", n)
		}
		if a := m.agent.Recorded("one"); a == nil || a.DesiredStatus != model.DesiredStop {
			t.Errorf("recorded is %+v", a)
		}
		m.restart()
		if err := m.agent.Collect("one"); err != nil {
			t.Errorf("after a restart: %v", err)
		}
		m.expect("one", model.ClientComplete)
	})
}
