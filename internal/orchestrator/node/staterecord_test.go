package node

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rockpool/internal/orchestrator/jsonform"
	"rockpool/internal/orchestrator/jsonform/jsonformtest"
	"rockpool/internal/orchestrator/model"
)

// A record of tasks is what encoding/json makes of it, which reads it: so do agents of other versions.
func TestARecordOfTasksIsWrittenAsEncodingJSONDoes(t *testing.T) {
	own := map[reflect.Type]func(*rapid.T) any{
		reflect.TypeFor[time.Time](): func(t *rapid.T) any {
			return rapid.SampledFrom([]time.Time{{}, time.Unix(1_790_000_000, 17).UTC(), time.Unix(1_790_000_000, 0).In(time.FixedZone("east", 3600)), time.Now()}).Draw(t, "since")
		},
		reflect.TypeFor[*model.Allocation](): func(t *rapid.T) any {
			return rapid.SampledFrom([]*model.Allocation{nil, nil, {ID: "alloc"}}).Draw(t, "alloc")
		},
	}
	rapid.Check(t, func(t *rapid.T) {
		var l line
		jsonformtest.Draw(t, &l, own)
		for _, r := range l.Tasks {
			if r.State != nil && len(r.State.Events) > 0 && rapid.Bool().Draw(t, "an event is nil") {
				r.State.Events[0] = nil
			}
		}
		if rapid.Bool().Draw(t, "a task is nil") && l.Tasks != nil {
			l.Tasks["none"] = nil
		}
		if got, want := jsonformtest.Written(func(w *jsonform.Writer) { l.write(w) }), jsonformtest.Encoded(l); got != want {
			t.Fatalf("written:  %s\nexpected: %s", got, want)
		}
	})
}

// A record that cannot be encoded fails alone, also where it stands between others in one piece.
func TestARecordThatCannotBeEncodedFailsAlone(t *testing.T) {
	db := openState(t, t.TempDir())
	defer db.close()
	piece := make([]*unwritten, 3)
	for i := range piece {
		l := line{ID: fmt.Sprint("alloc-", i), Tasks: map[string]*taskRecord{"t": {Incarnation: 1, State: &model.TaskState{State: model.TaskRunning}}}}
		if i == 1 {
			l.Tasks["t"].Restarts.Since = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)
		}
		piece[i] = &unwritten{line: l, done: make(chan error, 1)}
	}
	if rest := newStateWriter(db).piece(piece); len(rest) != 0 {
		t.Fatalf("%d records are left", len(rest))
	}
	for i, u := range piece {
		if err := <-u.done; (err != nil) != (i == 1) {
			t.Errorf("record %d: %v", i, err)
		}
		records, err := db.records(u.line.ID)
		if i == 1 {
			if err == nil {
				t.Error("there is a record that could not be encoded")
			}
			continue
		}
		if err != nil || len(records) != 1 {
			t.Fatalf("record %d: %d of them, %v", i, len(records), err)
		}
		if l, ok := decode(records[0]); !ok || l.ID != u.line.ID || l.Tasks["t"].State.State != model.TaskRunning {
			t.Errorf("record %d is %s", i, records[0])
		}
	}
}
