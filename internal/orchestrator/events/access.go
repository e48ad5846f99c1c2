package events

import "rockpool/internal/orchestrator/model"

// Topics of what people share.
const (
	TopicNodePool  = "NodePool"
	TopicService   = "Service"
	TopicNamespace = "Namespace"
	TopicVariable  = "Variable"
	TopicACLToken  = "ACLToken"
	TopicACLPolicy = "ACLPolicy"
	TopicACLRole   = "ACLRole"
)

const accessBytes = 1 << 10

// access are the topics of what people share. All their removals are events.
var access = []row{
	define(TopicACLToken, true, func(t *model.ACLToken) about { return about{key: t.AccessorID, weight: accessBytes} }),
	define(TopicACLPolicy, true, func(p *model.ACLPolicy) about { return about{key: p.Name, weight: accessBytes + 2*len(p.Rules)} }),
	define(TopicACLRole, true, func(r *model.ACLRole) about { return about{key: r.ID, weight: accessBytes} }),
	define(TopicNamespace, true, func(n *model.Namespace) about { return about{key: n.Name, weight: accessBytes} }),
	define(TopicNodePool, true, func(p *model.NodePool) about { return about{key: p.Name, weight: accessBytes} }),
	define(TopicVariable, true, func(v *model.Variable) about {
		return about{key: v.Path, namespace: v.Namespace, weight: accessBytes + len(v.Data)}
	}),
	withdrawal(define(TopicService, true, func(s *model.ServiceRegistration) about {
		return about{s.ID, s.Namespace, keys(s.JobID, s.ServiceName), accessBytes}
	})),
}

// withdrawal names the removal of a service, whatever ended it.
func withdrawal(r row) row {
	r.removed = "ServiceDeregistration"
	return r
}
