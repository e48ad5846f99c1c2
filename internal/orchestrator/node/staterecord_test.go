package node

import (
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
