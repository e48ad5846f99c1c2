package node

import (
	"testing"

	"rockpool/internal/logging"
	"rockpool/internal/orchestrator/model"
)

// What has not changed is told once, and an allocation that has no task at all is told too: the servers wait for it.
func TestOnlyWhatHasChangedIsReported(t *testing.T) {
	told := func(a *Agent) bool {
		a.reporter.mu.Lock()
		defer a.reporter.mu.Unlock()
		_, ok := a.reporter.dirty["one"]
		delete(a.reporter.dirty, "one")
		return ok
	}
	for name, group := range map[string]string{"its group": "group", "no such group": "other"} {
		t.Run(name, func(t *testing.T) {
			alloc := stateAlloc("one", 1)
			alloc.TaskGroup = group
			a := &Agent{reporter: newReporter(nil, logging.Discard())}
			r := newAllocRunner(a, alloc, nil)
			r.report(false)
			if !told(a) {
				t.Error("nothing was reported")
			}
			r.report(false)
			if told(a) {
				t.Error("the same was reported again")
			}
			r.report(true)
			if !told(a) {
				t.Error("nothing was reported where that was asked for")
			}
			for _, task := range r.tasks {
				task.record.State = withEvents(task.record.State, event(model.TaskDriver, "news"))
				r.report(false)
				if !told(a) {
					t.Error("a change was not reported")
				}
			}
		})
	}
}
