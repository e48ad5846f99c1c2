package events

import (
	"slices"
	"sync"

	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
)

// Topics that this server has events of.
const (
	TopicJob        = "Job"
	TopicEvaluation = "Evaluation"
	TopicAllocation = "Allocation"
	TopicNode       = "Node"
	TopicNodePool   = "NodePool"
	TopicService    = "Service"
	TopicNamespace  = "Namespace"
	TopicVariable   = "Variable"
	TopicACLToken   = "ACLToken"
	TopicACLPolicy  = "ACLPolicy"
	TopicACLRole    = "ACLRole"
	TopicAll        = "*"
)

// Event is one object that changed.
type Event struct {
	Topic      string
	Type       string
	Key        string
	Namespace  string
	FilterKeys []string
	Index      uint64
	Object     any  // *model.Job, *model.Evaluation, *model.Allocation or *model.Node
	Deleted    bool // of a job: it was purged

	once sync.Once
	line []byte
}

// Encoded is the event's form on the wire, made by encode once for all readers.
func (e *Event) Encoded(encode func(*Event) []byte) []byte {
	e.once.Do(func() { e.line = encode(e) })
	return e.line
}

// Batch is the events of one log entry.
type Batch struct {
	Index  uint64
	Events []*Event
	time   int64
	bytes  int
}

// Estimated sizes of what an event keeps alive.
const (
	jobBytes   = 6 << 10
	allocBytes = 5 << 10
	evalBytes  = 1 << 10
	nodeBytes  = 8 << 10
)

func newBatch(c state.Commit) *Batch {
	b := &Batch{Index: c.Index, time: c.Time}
	for _, ch := range c.Changes {
		e := &Event{Type: c.Kind, Index: c.Index, Object: ch.After}
		size := 0
		switch o := ch.After.(type) {
		case *model.Job:
			e.Topic, e.Key, e.Namespace, size = TopicJob, o.ID, o.Namespace, jobBytes
		case *model.Evaluation:
			e.Topic, e.Key, e.Namespace, size = TopicEvaluation, o.ID, o.Namespace, evalBytes
			e.FilterKeys = []string{o.JobID}
		case *model.Allocation:
			e.Topic, e.Key, e.Namespace, size = TopicAllocation, o.ID, o.Namespace, allocBytes
			e.FilterKeys = []string{o.JobID}
		case *model.Node:
			e.Topic, e.Key, size = TopicNode, o.ID, nodeBytes
		default:
			object, deleted := ch.After, ch.After == nil
			if deleted {
				object = ch.Before
			}
			if shared(e, object) {
				e.Object, e.Deleted, size = object, deleted, sharedBytes
				if e.Topic == TopicService && deleted {
					e.Type = "ServiceDeregistration" // whatever ended it
				}
				break
			}
			// Something was removed. Only the end of a job is an event, and only when it was asked for: allocations go with their job.
			j, ok := ch.Before.(*model.Job)
			if !ok {
				continue
			}
			e.Topic, e.Key, e.Namespace, size = TopicJob, j.ID, j.Namespace, jobBytes
			e.Object, e.Deleted = j, true
		}
		b.Events = append(b.Events, e)
		b.bytes += size
	}
	return b
}

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
