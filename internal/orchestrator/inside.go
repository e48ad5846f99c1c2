package orchestrator

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"rockpool/internal/endpoint"
	"rockpool/internal/orchestrator/driver"
	"rockpool/internal/orchestrator/node/serve"
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
