package node_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"rockpool/internal/fault"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node"
)

type config = map[string]any

func TestAPlacedAllocationRunsAtOnceAndIsReportedOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		begun := time.Now()
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		if d := time.Since(begun); d != 0 {
			t.Errorf("it took %v of waiting from push to report", d)
		}
		if n := m.server.reportCount(); n != 1 {
			t.Errorf("%d reports, want 1: pending alone is nothing new", n)
		}
		s := m.server.task("one", "a")
		if got := types(s); !slices.Equal(got, []string{"Received", "Task Setup", "Started"}) {
			t.Errorf("events %v", got)
		}
		for _, e := range s.Events {
			if e.DisplayMessage == "" || e.Time == 0 {
				t.Errorf("event %q lacks a message or time", e.Type)
			}
		}
		if s.StartedAt == 0 {
			t.Error("no start time")
		}
	})
}

func TestASlowStartIsReportedAsPending(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("slow", config{"start_delay": "1m"}))
		after(time.Second)
		m.expect("slow", model.ClientPending)
		if got := types(m.server.task("slow", "a")); !slices.Equal(got, []string{"Received", "Task Setup"}) {
			t.Errorf("events %v", got)
		}
		after(time.Minute)
		m.expect("slow", model.ClientRunning)
	})
}

func TestWhatIsPendingDoesNotTravelWithOthersStates(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("slow", config{"start_delay": "200ms"}))
		after(100 * time.Millisecond)
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		if s := m.server.status("slow"); s != "" {
			t.Errorf("slow was told as %s before it had a state", s)
		}
		after(100 * time.Millisecond)
		m.expect("slow", model.ClientRunning)
		if n := m.server.reportCount(); n != 2 {
			t.Errorf("%d reports, want 2", n)
		}
	})
}

func TestEndOfTheMainProcess(t *testing.T) {
	for name, c := range map[string]struct {
		config  config
		status  string
		details map[string]string
	}{
		"success":       {config{"run_for": "1s"}, model.ClientComplete, map[string]string{"exit_code": "0", "oom_killed": "false"}},
		"failure":       {config{"run_for": "1s", "exit_code": 3}, model.ClientFailed, map[string]string{"exit_code": "3", "signal": "0"}},
		"out of memory": {config{"run_for": "1s", "exit_code": 137, "exit_signal": 9, "oom_killed": true}, model.ClientFailed, map[string]string{"oom_killed": "true", "signal": "9"}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, m *machine) {
				m.server.place(alloc("one", c.config))
				after(2 * time.Second)
				m.expect("one", c.status)
				s := m.server.task("one", "a")
				i := slices.IndexFunc(s.Events, func(e *model.TaskEvent) bool { return e.Type == model.TaskTerminated })
				if i < 0 || s.FinishedAt == 0 {
					t.Fatalf("not told how it ended: %+v", s)
				}
				for k, v := range c.details {
					if got := s.Events[i].Details[k]; got != v {
						t.Errorf("%s is %q, want %q", k, got, v)
					}
				}
				if left := m.driver.Tasks(); len(left) != 0 {
					t.Errorf("left behind: %v", left)
				}
			})
		})
	}
}

func TestAnUnknownOutcomeIsAFailure(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		m.driver.End("one.a.1", driver.Exit{Err: driver.ErrTaskGone})
		m.expect("one", model.ClientFailed)
		e := m.server.task("one", "a").Events[3]
		if e.Type != model.TaskTerminated || e.Details["exit_code"] == "0" {
			t.Errorf("reported %q with %v", e.Type, e.Details)
		}
	})
}

func TestStopIsGraceful(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{"ignore_signals": true}))
		m.expect("one", model.ClientRunning)
		begun := time.Now()
		m.server.change("one", func(a *model.Allocation) { a.DesiredStatus = model.DesiredStop })
		for m.server.status("one") == model.ClientRunning {
			after(100 * time.Millisecond)
		}
		m.expect("one", model.ClientComplete)
		if d := time.Since(begun); d != time.Second {
			t.Errorf("killed after %v, want the kill timeout", d)
		}
		if got := types(m.server.task("one", "a")); !slices.Equal(got[3:], []string{"Killing", "Terminated", "Killed"}) {
			t.Errorf("events %v", got)
		}
	})
}

func TestStoppedBeforeItStarted(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		a := alloc("one", config{})
		a.DesiredStatus = model.DesiredStop
		m.server.place(a)
		m.expect("one", model.ClientComplete)
		if s := m.driver.Started(); len(s) != 0 {
			t.Errorf("started %v", s)
		}
	})
}

func TestAPurgeDestroysWhateverTheState(t *testing.T) {
	for name, c := range map[string]struct {
		config config
		wait   time.Duration
	}{
		"running":  {config{}, 0},
		"ended":    {config{"run_for": "1s"}, 2 * time.Second},
		"starting": {config{"start_delay": "1h"}, time.Second},
		"stubborn": {config{"ignore_signals": true}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, m *machine) {
				m.server.place(alloc("one", c.config))
				after(c.wait)
				m.server.purge("one")
				after(2 * time.Second)
				if left := m.driver.Tasks(); len(left) != 0 {
					t.Errorf("left running: %v", left)
				}
				if _, err := os.Stat(filepath.Join(m.dir, "allocs", "one")); !os.IsNotExist(err) {
					t.Errorf("left on disk: %v", err)
				}
				if s := m.server.status("one"); s != "" {
					t.Errorf("reported as %s after the purge", s)
				}
				if _, err := m.agent.Task(t.Context(), "one", "a"); !fault.Is(err, fault.NotFound) || fault.Public(err) != `Unknown allocation "one"` {
					t.Errorf("task: %v", err)
				}
			})
		})
	}
}

func TestRestartsWithinThePolicyThenFails(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		a := alloc("one", config{"run_for": "1s", "exit_code": 1})
		a.Job.TaskGroups[0].Restart = model.RestartPolicy{Attempts: 2, Interval: time.Minute, Delay: 5 * time.Second, Mode: model.RestartModeFail}
		m.server.place(a)
		after(1500 * time.Millisecond)
		m.expect("one", model.ClientPending) // the same allocation, waiting to start again
		if got := types(m.server.task("one", "a")); !slices.Equal(got[3:], []string{"Terminated", "Restarting"}) {
			t.Errorf("events %v", got)
		}
		after(5 * time.Second)
		m.expect("one", model.ClientRunning)
		after(time.Minute)
		m.expect("one", model.ClientFailed)
		s := m.server.task("one", "a")
		if s.Restarts != 2 || s.LastRestart == 0 || !s.Failed {
			t.Errorf("state %+v", s)
		}
		if got := types(s); got[len(got)-1] != model.TaskNotRestarting {
			t.Errorf("events %v", got)
		}
		if len(s.Events) > 10 {
			t.Errorf("%d events kept", len(s.Events))
		}
		if ids := m.driver.Started(); !slices.Equal(ids, []string{"one.a.1", "one.a.2", "one.a.3"}) {
			t.Errorf("task ids %v", ids)
		}
	})
}

func TestAFailedStartIsTriedAgainWithinThePolicy(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		a := alloc("one", config{"start_error": "no space left", "start_errors": 1})
		a.Job.TaskGroups[0].Restart = model.RestartPolicy{Attempts: 1, Interval: time.Minute, Delay: time.Second, Mode: model.RestartModeFail}
		m.server.place(a)
		after(2 * time.Second)
		m.expect("one", model.ClientRunning)
		if got := types(m.server.task("one", "a")); !slices.Contains(got, model.TaskDriverFailure) {
			t.Errorf("events %v", got)
		}
	})
}

func TestAWrongConfigurationFailsAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		a := alloc("one", config{"colour": "red"})
		a.Job.TaskGroups[0].Restart = model.RestartPolicy{Attempts: 5, Interval: time.Hour, Delay: time.Second}
		m.server.place(a)
		m.expect("one", model.ClientFailed)
	})
}

func TestARestartOnRequestDoesNotCount(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		if err := m.agent.RestartTask(t.Context(), "one", ""); err != nil {
			t.Fatal(err)
		}
		m.expect("one", model.ClientRunning)
		if s := m.server.task("one", "a"); s.Restarts != 1 || s.Failed {
			t.Errorf("state %+v", s)
		}
		if err := m.agent.RestartTask(t.Context(), "one", "b"); fault.Public(err) != `task "b" is not running.` {
			t.Errorf("restart of no task: %v", err)
		}
		if err := m.agent.RestartTask(t.Context(), "two", ""); fault.Public(err) != `Unknown allocation "two"` {
			t.Errorf("restart of no allocation: %v", err)
		}
	})
}

func TestANewSpecificationRestartsNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		reports := m.server.reportCount()
		m.server.change("one", func(a *model.Allocation) {
			job := *a.Job
			job.Meta = map[string]string{"used": "true"}
			job.Version++
			a.Job = &job
		})
		after(time.Minute)
		if ids := m.driver.Started(); len(ids) != 1 {
			t.Errorf("started again: %v", ids)
		}
		if n := m.server.reportCount(); n != reports {
			t.Errorf("%d reports about nothing", n-reports)
		}
		m.restart()
		m.expect("one", model.ClientRunning)
		if ids := m.driver.Started(); len(ids) != 1 {
			t.Errorf("started again: %v", ids)
		}
	})
}

func TestTheEndOfTheLeaderTakesTheOthersAlong(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		a := alloc("one", config{"run_for": "1s"}, config{})
		a.Job.TaskGroups[0].Tasks[0].Leader = true
		m.server.place(a)
		after(2 * time.Second)
		m.expect("one", model.ClientComplete)
		if got := types(m.server.task("one", "b")); !slices.Contains(got, "Leader Task Dead") {
			t.Errorf("events %v", got)
		}
	})
}

func TestTheFailureOfATaskEndsItsSiblings(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{"run_for": "1s", "exit_code": 1}, config{}))
		after(2 * time.Second)
		m.expect("one", model.ClientFailed)
		if s := m.server.task("one", "b"); s.State != model.TaskDead || !slices.Contains(types(s), "Sibling Task Failed") {
			t.Errorf("sibling: %v", types(s))
		}
	})
}

func TestMaxRunTimeEndsTheGroup(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		a := alloc("one", config{})
		a.Job.TaskGroups[0].MaxRunTime = time.Minute
		m.server.place(a)
		after(59 * time.Second)
		m.expect("one", model.ClientRunning)
		after(2 * time.Second)
		m.expect("one", model.ClientComplete)
	})
}

func TestReportsMergeWhileOneIsOnItsWay(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		hold := make(chan struct{})
		m.server.set(func() { m.server.hold = hold })
		m.server.place(alloc("first", config{}))
		synctest.Wait()
		for i := range 50 {
			m.server.place(alloc("more-"+strconv.Itoa(i), config{}))
		}
		synctest.Wait()
		m.server.set(func() { m.server.hold = nil })
		close(hold)
		synctest.Wait()
		if n := m.server.reportCount(); n != 2 {
			t.Errorf("%d reports, want 2", n)
		}
		for i := range 50 {
			m.expect("more-"+strconv.Itoa(i), model.ClientRunning)
		}
	})
}

func TestAFailedReportIsTriedAgainWithTheLatestState(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.set(func() { m.server.failing = 20 })
		m.server.place(alloc("one", config{"run_for": "1s"}), alloc("two", config{}))
		after(10 * time.Minute)
		m.expect("one", model.ClientComplete)
		m.expect("two", model.ClientRunning)
	})
}

func TestABadReportDoesNotHoldUpTheOthers(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.set(func() { m.server.poison = "bad" })
		m.server.place(alloc("bad", config{}), alloc("one", config{}), alloc("two", config{}))
		after(5 * time.Minute)
		m.expect("one", model.ClientRunning)
		m.expect("two", model.ClientRunning)
		m.server.set(func() { m.server.poison = "" })
		after(time.Minute)
		m.expect("bad", model.ClientRunning)
	})
}

func TestStartsAreBoundedAndStopsAreNot(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.starts = 2
		m.restart()
		for i := range 8 {
			m.server.place(alloc("slow-"+strconv.Itoa(i), config{"start_delay": "1h"}))
		}
		synctest.Wait()
		m.server.change("slow-7", func(a *model.Allocation) { a.DesiredStatus = model.DesiredStop })
		m.expect("slow-7", model.ClientComplete)
		after(5 * time.Hour)
		if p := m.driver.PeakStarts(); p != 2 {
			t.Errorf("%d starts at a time, want 2", p)
		}
		m.expect("slow-6", model.ClientRunning)
	})
}

func TestTasksSurviveTheAgent(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("stays", config{}), alloc("dies", config{}), alloc("purged", config{}), alloc("stubborn", config{"recover_error": "no such sandbox"}))
		m.expect("stays", model.ClientRunning)
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		m.driver.Lose("dies.a.1")
		m.server.purge("purged")
		m.start()
		after(time.Second)
		m.expect("stays", model.ClientRunning)
		m.expect("dies", model.ClientFailed)
		m.expect("stubborn", model.ClientFailed)
		if left := m.driver.Tasks(); !slices.Equal(left, []string{"stays.a.1"}) {
			t.Errorf("running: %v", left)
		}
		if len(m.driver.Started()) != 4 {
			t.Errorf("started again: %v", m.driver.Started())
		}
		if _, err := m.agent.Task(t.Context(), "stays", "a"); err != nil {
			t.Error(err)
		}
	})
}

func TestAStopThatTheAgentMissedIsGraceful(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		m.server.change("one", func(a *model.Allocation) { a.DesiredStatus = model.DesiredStop })
		m.start()
		after(time.Second)
		m.expect("one", model.ClientComplete)
		if len(m.driver.Tasks()) != 0 {
			t.Error("left running")
		}
		m.restart() // and it is not started again
		after(time.Second)
		if len(m.driver.Started()) != 1 {
			t.Error("started again")
		}
	})
}

func TestAStopInProgressGoesOnAfterARestart(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		a := alloc("one", config{"ignore_signals": true})
		a.Job.TaskGroups[0].Tasks[0].KillTimeout = time.Hour
		m.server.place(a)
		m.expect("one", model.ClientRunning)
		m.server.change("one", func(a *model.Allocation) { a.DesiredStatus = model.DesiredStop })
		synctest.Wait()
		begun := time.Now()
		m.restart() // the agent does not wait for an hour
		after(time.Second)
		m.expect("one", model.ClientComplete)
		if d := time.Since(begun); d > time.Minute {
			t.Errorf("stopping the agent took %v", d)
		}
	})
}

func TestAnEndWhileTheAgentWasAwayIsReported(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{"run_for": "1m"}))
		m.expect("one", model.ClientRunning)
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		after(2 * time.Minute)
		m.start()
		m.expect("one", model.ClientComplete)
	})
}

func TestAStateWhoseReportWasLostWithTheAgentIsReportedLater(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{"run_for": "1s"}))
		m.expect("one", model.ClientRunning)
		m.server.set(func() { m.server.failing = 1 << 30 })
		after(time.Minute)
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		m.server.set(func() { m.server.failing = 0 })
		m.start()
		after(time.Second)
		m.expect("one", model.ClientComplete)
	})
}

func TestWhatRanAndIsUnknownHereHasFailed(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		m.driver.Lose("one.a.1")
		if err := os.RemoveAll(filepath.Join(m.dir, "allocs")); err != nil {
			t.Fatal(err)
		}
		m.start()
		m.expect("one", model.ClientFailed)
		if len(m.driver.Started()) != 1 {
			t.Error("a used allocation was started as if it were fresh")
		}
	})
}

func TestStopRemovesTasksIfToldSo(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.onStop = node.Remove
		m.restart()
		m.server.place(alloc("one", config{}), alloc("two", config{"ignore_signals": true}))
		m.expect("two", model.ClientRunning)
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		if left := m.driver.Tasks(); len(left) != 0 {
			t.Errorf("left running: %v", left)
		}
		m.expect("one", model.ClientFailed) // neither asked for nor by itself: it did not complete
	})
}

func TestAnOlderMessageChangesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		m.server.set(func() {
			for _, ch := range m.server.streams {
				ch <- model.AllocPush{Generation: 5, Full: true} // a server that lags
				ch <- model.AllocPush{Generation: 5, Purged: []string{"one"}}
			}
		})
		after(time.Minute)
		if len(m.driver.Tasks()) != 1 {
			t.Error("an old answer killed an allocation")
		}
		m.restart()
		m.server.set(func() { m.server.streams[0] <- model.AllocPush{Generation: 5, Full: true} })
		after(time.Minute)
		if len(m.driver.Tasks()) != 1 {
			t.Error("an old answer killed an allocation after a restart")
		}
	})
}

func TestAStreamThatEndsIsOpenedAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		m.server.cut()
		m.server.set(func() { delete(m.server.allocs, "one") })
		m.server.place(alloc("two", config{}))
		after(time.Minute)
		m.expect("two", model.ClientRunning)
		if left := m.driver.Tasks(); !slices.Equal(left, []string{"two.a.1"}) {
			t.Errorf("running: %v", left)
		}
	})
}

func TestHeartbeatsAndRegistration(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		after(time.Minute + time.Second)
		m.server.set(func() {
			if m.server.beats != 12 {
				t.Errorf("%d heartbeats in a minute with a TTL of 15 s", m.server.beats)
			}
			m.server.unknown = true
		})
		m.server.cut()
		after(20 * time.Second)
		m.server.set(func() {
			if m.server.registered != 2 || m.server.unknown {
				t.Errorf("registered %d times", m.server.registered)
			}
		})
	})
}

func TestServersThatStartedOverAreHeard(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		m.server.set(func() {
			m.server.index = 0
			m.server.unknown = true
			m.server.allocs = map[string]*model.Allocation{}
		})
		m.server.cut()
		after(time.Minute)
		if left := m.driver.Tasks(); len(left) != 0 {
			t.Errorf("left running: %v", left)
		}
	})
}

func TestIdentityIsKeptAndPrivate(t *testing.T) {
	dir := t.TempDir()
	a, err := node.LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := node.LoadIdentity(dir)
	if err != nil || a != b {
		t.Fatalf("%v then %v, %v", a, b, err)
	}
	info, err := os.Stat(filepath.Join(dir, "identity.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
}

func TestAnUpgradeFromOneDirectoryPerAllocationKeepsWhatRuns(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.server.place(alloc("one", config{}))
		m.expect("one", model.ClientRunning)
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		m.toOlderState()
		m.start()
		m.expect("one", model.ClientRunning)
		if s := m.driver.Started(); !slices.Equal(s, []string{"one.a.1"}) {
			t.Errorf("started %v", s)
		}
		if tasks := m.driver.Tasks(); !slices.Equal(tasks, []string{"one.a.1"}) {
			t.Errorf("tasks %v", tasks)
		}
	})
}

// toOlderState keeps the state of a node that is stopped in the way of releases before the one file.
func (m *machine) toOlderState() {
	m.t.Helper()
	at := filepath.Join(m.dir, "allocs.log")
	text, err := os.ReadFile(at)
	if err != nil {
		m.t.Fatal(err)
	}
	for record := range bytes.Lines(text) {
		var r struct {
			ID    string
			Alloc json.RawMessage
			Tasks json.RawMessage
		}
		if err := json.Unmarshal(record[9:], &r); err != nil {
			m.t.Fatal(err)
		}
		dir := filepath.Join(m.dir, "allocs", r.ID)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			m.t.Fatal(err)
		}
		for name, part := range map[string]json.RawMessage{"alloc.json": r.Alloc, "tasks.json": r.Tasks} {
			if len(part) > 0 {
				if err := os.WriteFile(filepath.Join(dir, name), part, 0o600); err != nil {
					m.t.Fatal(err)
				}
			}
		}
	}
	if err := os.Remove(at); err != nil {
		m.t.Fatal(err)
	}
}
