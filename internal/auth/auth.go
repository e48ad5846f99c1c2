// Package auth says who is calling and what a caller may do. Tokens are compared in constant time.
package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
)

// Scope is a right that a route asks for. The zero scope is refused when a route table is built, so that no route is open
// by oversight.
type Scope string

// Scopes. Those of the orchestrator are named after Nomad's capabilities.
const (
	Public     Scope = "public"     // everybody, also without a token
	Gateway    Scope = "gateway"    // whoever showed a token of the gateway
	AnyToken   Scope = "any-token"  // whoever showed a token that is valid
	AnyRight   Scope = "any-right"  // whoever may do anything at all; the handler looks at each object
	NodeSelf   Scope = "node-self"  // a node's own agent, proved by its secret
	Management Scope = "management" // everything

	// Of the gateway's tokens, on an execution environment.
	GatewayRead         Scope = "read"         // see environments, pools and statistics
	GatewayRun          Scope = "run"          // claim runners, and use the own ones
	GatewayEnvironments Scope = "environments" // define and delete environments
	GatewayOperate      Scope = "operate"      // metrics, and everybody's runners

	// In a namespace.
	AnyInNamespace Scope = "namespace-any" // whoever may do anything in the namespace
	ListJobs       Scope = "list-jobs"
	ReadJob        Scope = "read-job"
	SubmitJob      Scope = "submit-job"
	DispatchJob    Scope = "dispatch-job"
	ParseJob       Scope = "parse-job"
	ScaleJob       Scope = "scale-job"
	ReadScaling    Scope = "read-job-scaling"
	ListScaling    Scope = "list-scaling-policies"
	ScalingPolicy  Scope = "read-scaling-policy"
	AllocLife      Scope = "alloc-lifecycle"
	AllocExec      Scope = "alloc-exec"
	AllocNodeExec  Scope = "alloc-node-exec" // as AllocExec, where a task's driver has no walls
	ReadLogs       Scope = "read-logs"
	ReadFS         Scope = "read-fs"
	WriteFS        Scope = "write-fs" // ours: Nomad has no way to write files

	// On the path of a variable in a namespace; see MayVariable.
	VariablesList    Scope = "variables-list"
	VariablesRead    Scope = "variables-read"
	VariablesWrite   Scope = "variables-write"
	VariablesDestroy Scope = "variables-destroy"

	// On a node pool or a host volume.
	PoolRead   Scope = "node-pool-read"
	PoolWrite  Scope = "node-pool-write"
	PoolDelete Scope = "node-pool-delete"
	VolumeRead Scope = "host-volume-read"

	// On the cluster.
	NodeRead   Scope = "node-read"
	NodeWrite  Scope = "node-write"
	AgentRead  Scope = "agent-read"
	AgentWrite Scope = "agent-write"
	OpRead     Scope = "operator-read"
	OpWrite    Scope = "operator-write"
	QuotaRead  Scope = "quota-read"
	QuotaWrite Scope = "quota-write"
	PluginList Scope = "plugin-list"
	PluginRead Scope = "plugin-read"
)

// Rights is what its policies give a caller. The language of policies is not known here.
type Rights interface {
	// May reports whether s holds for what is called target: a namespace, a node pool or a host volume, as s asks for. Scopes on the cluster ignore it.
	May(s Scope, target string) bool
	// MaySomewhere reports whether s holds for any target at all.
	MaySomewhere(s Scope) bool
	// MayVariable reports whether s, one of the scopes on variables, holds for a path.
	MayVariable(s Scope, namespace, path string) bool
}

// Identity is a caller.
type Identity struct {
	Name       string
	Accessor   string         // public id of the token that was shown; "" = none, or the configured one
	Management bool           // may do everything but speak for a node
	Scopes     map[Scope]bool // nil = none
	Rights     Rights         // nil = none
	NodeID     string         // the node that proved to be itself, if any
	Expires    int64          // unix ns at which the token ends; 0 = never
}

// Everywhere is the target of requests that ask about all namespaces.
const Everywhere = "*"

// May reports whether the caller has scope s for anything at all.
func (i Identity) May(s Scope) bool { return i.MayIn(s, Everywhere) }

// MayIn reports whether the caller has scope s in a namespace, or for the node pool or host volume of that name; with [Everywhere] whether there is any for
// which the caller has it. The pipeline asks it of the namespace that a request names, or that its object lives in; a handler of each object of a list.
func (i Identity) MayIn(s Scope, target string) bool {
	switch {
	case s == Public:
		return true
	case s == NodeSelf:
		return i.NodeID != ""
	case i.Management || i.Scopes[s]:
		return true
	case s == AnyToken:
		return i.Accessor != ""
	case i.Rights == nil || s == Management || s == Gateway:
		return false
	case target == Everywhere:
		return i.Rights.MaySomewhere(s)
	}
	return i.Rights.May(s, target)
}

// MayVariable is MayIn for a variable's path.
func (i Identity) MayVariable(s Scope, namespace, path string) bool {
	return i.Management || i.Rights != nil && i.Rights.MayVariable(s, namespace, path)
}

// Authenticator finds out who sent a request. An error is of kind Unauthenticated or Forbidden, as the wire wants it; a request
// without a token is an anonymous Identity where that is allowed.
type Authenticator interface {
	Authenticate(r *http.Request) (Identity, error)
}

// Func makes a function an Authenticator.
type Func func(r *http.Request) (Identity, error)

// Authenticate calls f.
func (f Func) Authenticate(r *http.Request) (Identity, error) { return f(r) }

// TokenEqual compares in time that depends on neither content nor length.
func TokenEqual(given, want string) bool {
	g, w := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(want))
	return subtle.ConstantTimeCompare(g[:], w[:]) == 1
}
