package events

import "rockpool/internal/orchestrator/model"

const sharedBytes = 1 << 10

// shared fills in the event of something that people share, and reports whether o is such.
func shared(e *Event, o any) bool {
	switch o := o.(type) {
	case *model.ACLToken:
		e.Topic, e.Key = TopicACLToken, o.AccessorID
	case *model.ACLPolicy:
		e.Topic, e.Key = TopicACLPolicy, o.Name
	case *model.ACLRole:
		e.Topic, e.Key = TopicACLRole, o.ID
	case *model.Namespace:
		e.Topic, e.Key = TopicNamespace, o.Name
	case *model.NodePool:
		e.Topic, e.Key = TopicNodePool, o.Name
	case *model.Variable:
		e.Topic, e.Key, e.Namespace = TopicVariable, o.Path, o.Namespace
	case *model.ServiceRegistration:
		e.Topic, e.Key, e.Namespace, e.FilterKeys = TopicService, o.ID, o.Namespace, []string{o.JobID, o.ServiceName}
	default:
		return false
	}
	return true
}
