package node

import (
	"time"

	"rockpool/internal/orchestrator/jsonform"
	"rockpool/internal/orchestrator/model"
)

type writer = jsonform.Writer

// write writes a record's JSON. The states of tasks, which are most records, are written by their forms below: a field that is new in line, taskRecord, model.TaskState
// or model.TaskEvent needs a hole there.
func (l line) write(w *writer) {
	if len(l.Tasks) == 0 || l.Alloc != nil || l.Gone {
		w.Value(l)
		return
	}
	writeTasks(w, l)
}

// Values of samples that nothing else in them has.
const mark = jsonform.Mark

var (
	markedTime  = time.Unix(mark, 0).UTC()
	markedTasks = map[string]*taskRecord{"": nil}
	markedState = &model.TaskState{State: "state", Failed: true, Restarts: mark, LastRestart: mark + 1, StartedAt: mark + 2, FinishedAt: mark + 3, Events: []*model.TaskEvent{}}
)

var writeTasks = jsonform.Of(line{ID: "id", Tasks: markedTasks},
	jsonform.At("id", func(w *writer, l line) { w.Text(l.ID) }),
	jsonform.At(markedTasks, func(w *writer, l line) { jsonform.Map(w, l.Tasks, writeTaskRecord) }),
)

func writeTaskRecord(w *writer, r *taskRecord) {
	if r == nil || r.State == nil || len(r.Wholes) > 0 {
		w.Value(r)
		return
	}
	writeUsualTask(w, r)
}

var writeUsualTask = jsonform.Of(taskRecord{Incarnation: mark, Driver: "driver", Started: true, Restarts: restarts{Count: mark + 1, Since: markedTime}, State: markedState},
	jsonform.At(mark, func(w *writer, r *taskRecord) { w.Uint(r.Incarnation) }),
	jsonform.At("driver", func(w *writer, r *taskRecord) { w.Text(r.Driver) }),
	jsonform.At(true, func(w *writer, r *taskRecord) { w.Bool(r.Started) }),
	jsonform.At(mark+1, func(w *writer, r *taskRecord) { w.Int(int64(r.Restarts.Count)) }),
	jsonform.At(markedTime, func(w *writer, r *taskRecord) { w.Time(r.Restarts.Since) }),
	jsonform.At(markedState, func(w *writer, r *taskRecord) { writeTaskState(w, r.State) }),
)

var writeTaskState = jsonform.Of(markedState,
	jsonform.At("state", func(w *writer, s *model.TaskState) { w.Text(s.State) }),
	jsonform.At(true, func(w *writer, s *model.TaskState) { w.Bool(s.Failed) }),
	jsonform.At(mark, func(w *writer, s *model.TaskState) { w.Uint(s.Restarts) }),
	jsonform.At(mark+1, func(w *writer, s *model.TaskState) { w.Int(s.LastRestart) }),
	jsonform.At(mark+2, func(w *writer, s *model.TaskState) { w.Int(s.StartedAt) }),
	jsonform.At(mark+3, func(w *writer, s *model.TaskState) { w.Int(s.FinishedAt) }),
	jsonform.At([]int{}, func(w *writer, s *model.TaskState) { jsonform.List(w, s.Events, writeTaskEvent) }),
)

func writeTaskEvent(w *writer, e *model.TaskEvent) {
	if e == nil {
		w.WriteString("null")
		return
	}
	writeEvent(w, e)
}

var writeEvent = jsonform.Of(model.TaskEvent{Type: "type", Time: mark, DisplayMessage: "shown", Details: map[string]string{"": ""}},
	jsonform.At("type", func(w *writer, e *model.TaskEvent) { w.Text(e.Type) }),
	jsonform.At(mark, func(w *writer, e *model.TaskEvent) { w.Int(e.Time) }),
	jsonform.At("shown", func(w *writer, e *model.TaskEvent) { w.Text(e.DisplayMessage) }),
	jsonform.At(map[string]string{"": ""}, func(w *writer, e *model.TaskEvent) { jsonform.Map(w, e.Details, (*writer).Text) }),
)
