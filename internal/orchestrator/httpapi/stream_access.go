package httpapi

import (
	"context"
	"errors"
	"sync"
	"time"

	"rockpool/internal/auth"
	"rockpool/internal/orchestrator/events"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/state"
	"rockpool/internal/orchestrator/wire"
)

// topicScopes are what the events of a topic need; management for all others.
var topicScopes = map[string]auth.Scope{
	events.TopicJob: auth.ReadJob, events.TopicEvaluation: auth.ReadJob, events.TopicAllocation: auth.ReadJob, "Deployment": auth.ReadJob,
	events.TopicService: auth.ReadJob, events.TopicNode: auth.NodeRead,
}

// mayRead reports whether a caller may see events of a topic in a namespace.
func mayRead(id auth.Identity, topic, namespace string) bool {
	scope, ok := topicScopes[topic]
	if !ok {
		scope = auth.Management
	}
	return id.MayIn(scope, namespace)
}

// mayStream refuses a stream of which the caller might not see something that it asks for. Of all namespaces it gets those that it may read.
func mayStream(id auth.Identity, f events.Filter) error {
	if len(f.Topics) == 0 {
		return require(id, auth.Management, "")
	}
	for topic := range f.Topics {
		if !mayRead(id, topic, f.Namespace) {
			return denied()
		}
	}
	return nil
}

var errRevoked = errors.New("what the token allows has changed")

// whileAllowed makes a context that ends when a caller's token ends, or allows something else than it did. end stops watching and waits for that.
func (a *API) whileAllowed(ctx context.Context, id auth.Identity, secret string) (_ context.Context, end func()) {
	if !a.controlled() {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := func() { cancel(context.Canceled) }
	if id.Expires != 0 {
		var unset context.CancelFunc
		ctx, unset = context.WithDeadlineCause(ctx, time.Unix(0, id.Expires), errRevoked)
		stop = func() { unset(); cancel(context.Canceled) }
	}
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for {
			w := state.NewWatch()
			s := a.store.Snapshot()
			s.WatchACL(w)
			if now, err := a.identify(s, secret); err != nil || !sameRights(now, id) {
				cancel(errRevoked)
				return
			}
			if w.WatchCtx(ctx) != nil {
				return
			}
		}
	})
	return ctx, func() { stop(); watcher.Wait() }
}

// accessPayloads belong to events' topics of what people share. No secret and no value of a variable is in them.
var accessPayloads = []payload{
	payloadOf("ACLToken", func(t *model.ACLToken) any { return wire.TokenStub(t, func(string) string { return "" }) }),
	payloadOf("ACLPolicy", func(p *model.ACLPolicy) any { return wire.PolicyOut(p) }),
	payloadOf("ACLRole", func(r *model.ACLRole) any { return wire.RoleOut(r) }),
	payloadOf("Namespace", func(n *model.Namespace) any { return wire.NamespaceOut(n) }),
	payloadOf("NodePool", func(p *model.NodePool) any { return wire.PoolOut(p) }),
	payloadOf("Variable", func(v *model.Variable) any { return wire.VariableMeta(v, 0, false) }),
	payloadOf("Service", func(s *model.ServiceRegistration) any { return wire.ServiceOut(s) }),
}
