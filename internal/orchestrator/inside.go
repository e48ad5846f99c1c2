package orchestrator

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"

	"rockpool/internal/endpoint"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/events"
	"rockpool/internal/orchestrator/model"
	"rockpool/internal/orchestrator/node/serve"
	"rockpool/internal/orchestrator/wire"
)

// What a program that has the agent in its own process may use instead of connections to it.
type (
	// ExecSpec is one program to run inside a task.
	ExecSpec = driver.ExecSpec
	// Execution is a program that runs there.
	Execution = serve.Carried
)

// ErrNotHere says that this agent's node does not run an allocation: the API knows more.
var ErrNotHere = errors.New("the allocation is not on this agent's node")

// Transport reaches the agent's own HTTP API, that of a server, without a connection. It is for programs of this process, which no limit of client addresses
// is meant for; tokens are asked for as ever.
func (a *Agent) Transport() http.RoundTripper { return a.direct }

// Exec runs a program in a task of the agent's own node. The caller has all rights; see serve.Handler.Carry for what it owes.
func (a *Agent) Exec(ctx context.Context, allocID, task string, spec ExecSpec) (*Execution, error) {
	if _, err := a.node.Tasks(allocID); err != nil {
		return nil, ErrNotHere
	}
	return a.answers.Carry(ctx, allocID, task, spec)
}

// nearby sends what is meant for the agent's own server there directly, and everything else over the network.
type nearby struct {
	own     []string // host:port
	direct  *endpoint.Direct
	network http.RoundTripper
}

func (n nearby) RoundTrip(r *http.Request) (*http.Response, error) {
	if slices.Contains(n.own, r.URL.Host) {
		return n.direct.RoundTrip(r)
	}
	return n.network.RoundTrip(r)
}

// Change is one event of the stream.
type Change struct {
	Topic, Type, Key string
	// Object makes what it shows, as nomad/api has it. That shares parts with the state: nothing of it may be written to.
	Object func() any
}

// Changes are the events of jobs, evaluations and allocations of one namespace.
type Changes struct{ sub *events.Subscription }

// Changes begins with what comes after now. The namespace "" is the default one.
func (a *Agent) Changes(namespace string) (*Changes, error) {
	every := []string{"*"}
	sub, err := a.server.events.Subscribe(0, events.Filter{
		Namespace: cmp.Or(namespace, model.DefaultNamespace),
		Topics:    map[string][]string{events.TopicJob: every, events.TopicEvaluation: every, events.TopicAllocation: every},
	})
	if err != nil {
		return nil, err
	}
	return &Changes{sub}, nil
}

// Next waits for those of the next index. After an error some may have been missed.
func (c *Changes) Next(ctx context.Context) (index uint64, list []Change, err error) {
	index, batch, err := c.sub.Next(ctx)
	if err != nil {
		return 0, nil, err
	}
	list = make([]Change, len(batch))
	for i, e := range batch {
		list[i] = Change{Topic: e.Topic, Type: e.Type, Key: e.Key, Object: func() any { return wire.Plain(e.Object) }}
	}
	return index, list, nil
}
