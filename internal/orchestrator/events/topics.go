package events

import (
	"fmt"
	"reflect"
	"slices"

	"rockpool/internal/orchestrator/model"
)

// Topics that this server has events of.
const (
	TopicJob        = "Job"
	TopicEvaluation = "Evaluation"
	TopicAllocation = "Allocation"
	TopicDeployment = "Deployment"
	TopicNode       = "Node"
	TopicAll        = "*"
)

// row says how objects of one type become events.
type row struct {
	topic    string
	object   reflect.Type
	removals bool   // its removal is an event too
	removed  string // type of that event; "" = that of the log entry
	describe func(object any) (key, namespace string, filterKeys []string, weight int)
}

// about is what an event says of its object besides the object itself.
type about struct {
	key       string
	namespace string   // "" = it is in none
	filter    []string // more keys that a subscription may name
	weight    int      // bytes that the object keeps in memory, about
}

// define makes a row for objects of type *T, which must be those of a table that is observed.
func define[T any](topic string, removals bool, describe func(*T) about) row {
	return row{topic: topic, object: reflect.TypeFor[*T](), removals: removals, describe: func(object any) (string, string, []string, int) {
		d := describe(object.(*T))
		return d.key, d.namespace, d.filter, d.weight
	}}
}

// core are the topics of jobs, evaluations, allocations, deployments and nodes. Other areas have files and lists of their own; see topics.
var core = []row{
	define(TopicJob, true, func(j *model.Job) about { return about{j.ID, j.Namespace, nil, weigh(j)} }),
	define(TopicEvaluation, false, func(e *model.Evaluation) about {
		return about{e.ID, e.Namespace, keys(e.JobID, e.DeploymentID), 1 << 10}
	}),
	// An allocation that is removed goes with its job, whose removal says so.
	define(TopicAllocation, false, func(a *model.Allocation) about {
		return about{a.ID, a.Namespace, keys(a.JobID, a.DeploymentID), 4<<10 + told(a)}
	}),
	define(TopicDeployment, false, func(d *model.Deployment) about {
		return about{d.ID, d.Namespace, keys(d.JobID), 1<<10 + len(d.TaskGroups)<<8}
	}),
	define(TopicNode, false, func(n *model.Node) about {
		return about{n.ID, "", nil, 2<<10 + (len(n.Attributes)+len(n.Meta))<<7}
	}),
}

// topics is all rows by the type of their objects. A type that is not here causes no events.
var topics = func() map[reflect.Type]row {
	m := map[reflect.Type]row{}
	for _, r := range slices.Concat(core, access) {
		if _, ok := m[r.object]; ok {
			panic(fmt.Sprintf("events: %v has two topics", r.object))
		}
		m[r.object] = r
	}
	return m
}()

// keys leaves out what is empty.
func keys(list ...string) []string {
	return slices.DeleteFunc(list, func(k string) bool { return k == "" })
}

// told estimates what a node has said of an allocation's tasks. How long its texts are is up to the node.
func told(a *model.Allocation) (n int) {
	for _, s := range a.TaskStates {
		n += 256
		if s == nil {
			continue
		}
		for _, e := range s.Events {
			if e != nil {
				n += 128 + len(e.Type) + len(e.DisplayMessage) + texts(e.Details)
			}
		}
	}
	return n
}

// weigh estimates a job. Its user decides how long the texts in it are.
func weigh(j *model.Job) int {
	n := 2<<10 + texts(j.Meta) + len(j.Payload)
	for _, g := range j.TaskGroups {
		n += 1<<10 + texts(g.Meta)
		for _, t := range g.Tasks {
			n += 2<<10 + texts(t.Meta) + texts(t.Env) + length(t.Config)
			for i := range t.Templates {
				n += len(t.Templates[i].Text)
			}
		}
	}
	return n
}

func texts(m map[string]string) int {
	n := 0
	for k, v := range m {
		n += len(k) + len(v)
	}
	return n
}

func length(v any) int {
	n := 16
	switch v := v.(type) {
	case string:
		n += len(v)
	case []any:
		for _, e := range v {
			n += length(e)
		}
	case map[string]any:
		for k, e := range v {
			n += len(k) + length(e)
		}
	}
	return n
}
