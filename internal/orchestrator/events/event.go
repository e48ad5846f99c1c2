package events

import (
	"cmp"
	"reflect"
	"slices"
	"sync"
	"weak"

	"rockpool/internal/orchestrator/state"
)

// Event is one object that changed.
type Event struct {
	Topic      string
	Type       string
	Key        string
	Namespace  string
	FilterKeys []string
	Index      uint64
	Object     any  // of a type that the table of topics has, such as *model.Job
	Deleted    bool // it was removed, such as a job that was purged

	mu   sync.Mutex
	line weak.Pointer[[]byte] // guarded by mu
}

// Encoded is the event's form on the wire. Readers who are near each other share what encode has made. It is not kept beyond the next collection, as the object is
// kept already: who comes back later has it made again.
func (e *Event) Encoded(encode func(*Event) []byte) []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	if line := e.line.Value(); line != nil {
		return *line
	}
	line := encode(e)
	e.line = weak.Make(&line)
	return line
}

// Batch is the events of one log entry.
type Batch struct {
	Index  uint64
	Events []*Event
	time   int64
	bytes  int
}

func newBatch(c state.Commit) *Batch {
	b := &Batch{Index: c.Index, time: c.Time}
	events := make([]Event, 0, len(c.Changes)) // of one piece: a batch lives and goes as a whole
	for _, ch := range c.Changes {
		object, removed := ch.After, ch.After == nil
		if removed {
			object = ch.Before
		}
		r, ok := topics[reflect.TypeOf(object)]
		if !ok || removed && !r.removals {
			continue
		}
		events = append(events, Event{Topic: r.topic, Type: cmp.Or(ch.Kind, c.Kind), Index: c.Index, Object: object, Deleted: removed})
		e := &events[len(events)-1]
		if removed && r.removed != "" {
			e.Type = r.removed
		}
		weight := 0
		e.Key, e.Namespace, e.FilterKeys, weight = r.describe(object)
		b.bytes += overhead + weight
		b.Events = append(b.Events, e)
	}
	return b
}

// overhead of an event itself, in bytes.
const overhead = 256

// Filter is what a subscription wants to see: keys by topic, "*" standing for all keys and all topics.
type Filter struct {
	Topics    map[string][]string // empty = all
	Namespace string              // "*" = all; events without a namespace are for everybody
	Allowed   func(*Event) bool   // what the reader may see; nil = everything
}

func (f *Filter) apply(events []*Event) []*Event {
	var out []*Event
	for _, e := range events {
		if f.wants(e) {
			out = append(out, e)
		}
	}
	return out
}

func (f *Filter) wants(e *Event) bool {
	if f.Namespace != "*" && e.Namespace != "" && e.Namespace != f.Namespace {
		return false
	}
	if f.Allowed != nil && !f.Allowed(e) {
		return false
	}
	if len(f.Topics) == 0 {
		return true
	}
	match := func(keys []string) bool {
		return slices.ContainsFunc(keys, func(k string) bool {
			return k == "*" || k == e.Key || slices.Contains(e.FilterKeys, k)
		})
	}
	return match(f.Topics[e.Topic]) || match(f.Topics[TopicAll])
}
